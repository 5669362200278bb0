"""xDS, delta and state-of-the-world, as a client sees it: what it is told, in which order, and what counts as taken."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import pytest
from envoy.service.discovery.v3 import discovery_pb2

from l7proxy.resource import CLUSTER, LISTENER, ROUTES, SECRET, Resource
from l7proxy.snapshot import Snapshot
from l7proxy.streams import RESPONSE_BYTES, DeltaStream, StateOfTheWorldStream


def snapshot(*resources: tuple[str, str, str]) -> Snapshot:
    return Snapshot(Resource(type_url, name, version, version.encode()) for type_url, name, version in resources)


class DeltaClient:
    """Keeps what it is told, as Envoy does, and answers each response; `bad`: versions it refuses."""

    def __init__(self, stream: DeltaStream | None = None) -> None:
        self.stream = stream or DeltaStream()
        self.has: dict[tuple[str, str], str] = {}
        self.bad: set[str] = set()
        self.order: list[str] = []

    def ask(self, type_url: str, names: Iterable[str] = (), gone: Iterable[str] = (), **initial: str) -> None:
        self.stream.receive(
            discovery_pb2.DeltaDiscoveryRequest(
                type_url=type_url,
                resource_names_subscribe=names,
                resource_names_unsubscribe=gone,
                initial_resource_versions=initial,
            )
        )

    def follow(self, current: Snapshot) -> list[Any]:
        """Takes and answers until there is nothing more."""
        seen = []
        while responses := list(self.stream.responses(current)):
            seen += responses
            for response in responses:
                self.answer(response)
        return seen

    def answer(self, response: Any) -> None:
        self.order.append(response.type_url)
        request = discovery_pb2.DeltaDiscoveryRequest(type_url=response.type_url, response_nonce=response.nonce)
        if any(one.version in self.bad for one in response.resources):
            request.error_detail.message = "no good"
        else:
            for one in response.resources:
                assert one.resource.type_url == response.type_url
                self.has[response.type_url, one.name] = one.version
            for name in response.removed_resources:
                self.has.pop((response.type_url, name), None)
        self.stream.receive(request)


@pytest.fixture
def client() -> DeltaClient:
    client = DeltaClient()
    client.ask(CLUSTER)
    client.ask(LISTENER)
    return client


def test_wildcard_gets_everything_and_then_what_changes(client: DeltaClient) -> None:
    client.follow(snapshot((LISTENER, "a", "1"), (LISTENER, "b", "1"), (CLUSTER, "c", "1")))
    assert client.has == {(LISTENER, "a"): "1", (LISTENER, "b"): "1", (CLUSTER, "c"): "1"} == client.stream.acked
    (response,) = client.follow(snapshot((LISTENER, "a", "2"), (LISTENER, "b", "1"), (CLUSTER, "c", "1")))
    assert [one.name for one in response.resources] == ["a"]
    assert client.follow(snapshot((LISTENER, "a", "2"), (LISTENER, "b", "1"), (CLUSTER, "c", "1"))) == []


def test_names_get_what_they_name_when_it_is_there(client: DeltaClient) -> None:
    client.ask(ROUTES, ["a", "later"])
    first = client.follow(snapshot((ROUTES, "a", "1"), (ROUTES, "b", "1")))
    assert client.has == {(ROUTES, "a"): "1"}
    assert [list(one.removed_resources) for one in first if one.removed_resources] == [["later"]]
    client.follow(snapshot((ROUTES, "a", "1"), (ROUTES, "later", "1")))
    assert client.has[ROUTES, "later"] == "1"
    client.ask(ROUTES, gone=["a"])
    assert client.follow(snapshot((ROUTES, "a", "2"), (ROUTES, "later", "1"))) == []
    assert (ROUTES, "a") not in client.stream.acked


def test_asked_for_again_it_is_sent_again(client: DeltaClient) -> None:
    current = snapshot((ROUTES, "a", "1"))
    client.ask(ROUTES, ["a"])
    assert len(client.follow(current)) == 1
    client.ask(ROUTES, ["a"])
    assert len(client.follow(current)) == 1


def test_made_before_broken(client: DeltaClient) -> None:
    """What is new comes before what names it; what goes, after what named it, and only once what is new was taken."""
    client.ask(SECRET, ["s1", "s2"])
    client.ask(ROUTES, ["l1", "l2"])
    old = snapshot((CLUSTER, "c1", "1"), (SECRET, "s1", "1"), (LISTENER, "l1", "1"), (ROUTES, "l1", "1"))
    new = snapshot((CLUSTER, "c2", "1"), (SECRET, "s2", "1"), (LISTENER, "l2", "1"), (ROUTES, "l2", "1"))
    client.follow(old)
    added = list(client.stream.responses(new))
    assert [one.type_url for one in added] == [CLUSTER, SECRET, LISTENER, ROUTES]
    assert not any(one.removed_resources for one in added)
    for response in added[:-1]:
        client.answer(response)
        assert list(client.stream.responses(new)) == []
    client.answer(added[-1])
    removed = list(client.stream.responses(new))
    assert [one.type_url for one in removed] == [LISTENER, ROUTES, SECRET, CLUSTER]
    assert [list(one.removed_resources) for one in removed] == [["l1"], ["l1"], ["s1"], ["c1"]]
    for response in removed:
        client.answer(response)
    assert (
        client.stream.acked
        == client.has
        == {(CLUSTER, "c2"): "1", (SECRET, "s2"): "1"}
        | {
            (LISTENER, "l2"): "1",
            (ROUTES, "l2"): "1",
        }
    )


def test_refused_is_not_sent_again_until_it_changes(client: DeltaClient) -> None:
    client.follow(snapshot((LISTENER, "a", "1")))
    client.bad = {"2"}
    bad = snapshot((LISTENER, "a", "2"))
    assert len(client.follow(bad)) == 1
    assert client.stream.acked[LISTENER, "a"] == "1"
    rejected = client.stream.rejected[LISTENER, "a"]
    assert (rejected.version, rejected.message) == ("2", "no good")
    assert client.follow(bad) == []
    client.follow(snapshot((LISTENER, "a", "3")))
    assert client.stream.acked[LISTENER, "a"] == "3"
    assert client.stream.rejected == {}


def test_refused_and_taken_back_the_old_is_sent_once_more(client: DeltaClient) -> None:
    """Envoy may keep a Secret that it refused."""
    old = snapshot((SECRET, "s", "1"))
    client.ask(SECRET, ["s"])
    client.follow(old)
    client.bad = {"2"}
    client.follow(snapshot((SECRET, "s", "2")))
    (response,) = client.follow(old)
    assert [one.version for one in response.resources] == ["1"]
    assert client.stream.rejected == {}


def test_listener_refused_for_its_secrets_sake_is_sent_again_with_it(client: DeltaClient) -> None:
    client.ask(SECRET, ["s"])
    client.bad = {"bad", "l"}
    client.follow(snapshot((SECRET, "s", "bad"), (LISTENER, "a", "l")))
    client.bad = set()
    client.follow(snapshot((SECRET, "s", "good"), (LISTENER, "a", "l")))
    assert client.stream.acked == {(SECRET, "s"): "good", (LISTENER, "a"): "l"}


def test_one_that_is_refused_does_not_take_the_others_along(client: DeltaClient) -> None:
    client.bad = {"bad"}
    client.follow(snapshot(*((LISTENER, f"{at}", "bad" if at == 3 else "1") for at in range(6))))
    assert {name for _, name in client.stream.acked} == {"0", "1", "2", "4", "5"}
    assert list(client.stream.rejected) == [(LISTENER, "3")]


def test_one_response_of_a_type_at_a_time_and_the_next_holds_all_that_changed(client: DeltaClient) -> None:
    (first,) = client.stream.responses(snapshot((LISTENER, "a", "1")))
    assert list(client.stream.responses(snapshot((LISTENER, "a", "2"), (LISTENER, "b", "1")))) == []
    client.answer(first)
    (second,) = client.stream.responses(snapshot((LISTENER, "a", "3"), (LISTENER, "b", "1")))
    assert {one.name: one.version for one in second.resources} == {"a": "3", "b": "1"}


def test_answer_with_another_nonce_is_no_answer(client: DeltaClient) -> None:
    (response,) = client.stream.responses(snapshot((LISTENER, "a", "1")))
    client.stream.receive(discovery_pb2.DeltaDiscoveryRequest(type_url=LISTENER, response_nonce="77"))
    assert client.stream.acked == {}
    client.answer(response)
    assert client.stream.acked == {(LISTENER, "a"): "1"}


def test_who_comes_back_with_what_it_has_is_told_the_difference() -> None:
    client = DeltaClient()
    client.ask(LISTENER, a="1", lost="1", changed="1")
    client.ask(ROUTES, ["a"], a="1")
    current = snapshot((LISTENER, "a", "1"), (LISTENER, "changed", "2"), (ROUTES, "a", "1"))
    assert client.stream.acked[ROUTES, "a"] == "1"
    changed, gone = client.follow(current)
    assert [one.name for one in changed.resources] == ["changed"]
    assert list(gone.removed_resources) == ["lost"]
    assert client.stream.acked == {(LISTENER, "a"): "1", (LISTENER, "changed"): "2", (ROUTES, "a"): "1"}


def test_much_goes_in_parts(client: DeltaClient) -> None:
    large = b"x" * (RESPONSE_BYTES // 3)
    current = Snapshot(Resource(LISTENER, f"{at}", "1", large) for at in range(10))
    responses = client.follow(current)
    assert len(responses) == 4
    assert len(client.has) == 10


# ---- state of the world --------------------------------------------------------------------------------------


class Client:
    def __init__(self) -> None:
        self.stream = StateOfTheWorldStream()
        self.has: dict[str, list[bytes]] = {}
        self.bad: set[bytes] = set()
        self._versions: dict[str, str] = {}
        self._names: dict[str, list[str]] = {}

    def ask(self, type_url: str, *names: str, nonce: str = "", error: str = "") -> None:
        self._names[type_url] = list(names)
        request = discovery_pb2.DiscoveryRequest(
            type_url=type_url,
            resource_names=names,
            response_nonce=nonce,
            version_info=self._versions.get(type_url, ""),
        )
        if error:
            request.error_detail.message = error
        self.stream.receive(request)

    def answer(self, response: Any) -> None:
        values = [one.value for one in response.resources]
        bad = self.bad.intersection(values)
        if not bad:
            self.has[response.type_url] = values
            self._versions[response.type_url] = response.version_info
        names = self._names[response.type_url]
        self.ask(response.type_url, *names, nonce=response.nonce, error="no good" if bad else "")

    def follow(self, current: Snapshot) -> list[Any]:
        seen = []
        while responses := list(self.stream.responses(current)):
            seen += responses
            for response in responses:
                self.answer(response)
        return seen


def test_all_of_a_type_each_time() -> None:
    client = Client()
    client.ask(LISTENER)
    client.ask(ROUTES, "a")
    client.follow(snapshot((LISTENER, "a", "1"), (LISTENER, "b", "1"), (ROUTES, "a", "1"), (ROUTES, "b", "1")))
    assert client.has == {LISTENER: [b"1", b"1"], ROUTES: [b"1"]}
    (response,) = client.follow(snapshot((LISTENER, "a", "2"), (ROUTES, "a", "1")))
    assert response.version_info
    assert client.has[LISTENER] == [b"2"]
    assert client.stream.acked == {(LISTENER, "a"): "2", (ROUTES, "a"): "1"}
    client.ask(ROUTES, "b", nonce="99")  # about nothing that was sent
    assert client.follow(snapshot((LISTENER, "a", "2"), (ROUTES, "a", "1"), (ROUTES, "b", "1"))) == []


def test_more_names_on_the_way() -> None:
    client = Client()
    client.ask(ROUTES, "a")
    current = snapshot((ROUTES, "a", "1"), (ROUTES, "b", "1"))
    (first,) = client.stream.responses(current)
    client._names[ROUTES] = ["a", "b"]
    client.answer(first)
    client.follow(current)
    assert client.has[ROUTES] == [b"1", b"1"]


def test_refused_world_is_not_sent_again_until_it_changes() -> None:
    client = Client()
    client.ask(LISTENER)
    client.follow(snapshot((LISTENER, "a", "1"), (LISTENER, "b", "1")))
    client.bad = {b"2"}
    bad = snapshot((LISTENER, "a", "2"), (LISTENER, "b", "1"))
    assert len(client.follow(bad)) == 1
    assert client.stream.acked == {(LISTENER, "a"): "1", (LISTENER, "b"): "1"}
    assert [one.message for one in client.stream.rejected.values()] == ["no good"]
    client.follow(snapshot((LISTENER, "a", "3"), (LISTENER, "b", "1")))
    assert client.stream.rejected == {}
    assert client.stream.acked[LISTENER, "a"] == "3"


def test_what_listeners_name_goes_last() -> None:
    client = Client()
    client.ask(CLUSTER)
    client.ask(LISTENER)
    client.follow(snapshot((CLUSTER, "old", "old"), (LISTENER, "a", "1")))
    worlds = client.follow(snapshot((CLUSTER, "new", "new"), (LISTENER, "a", "2")))
    said = [(one.type_url, sorted(each.value for each in one.resources)) for one in worlds]
    assert said == [(CLUSTER, [b"new", b"old"]), (LISTENER, [b"2"]), (CLUSTER, [b"new"])]

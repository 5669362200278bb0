"""Lists and watches, asked of the in-test API server and of a real kube-apiserver."""

from __future__ import annotations

import base64
import http.client
import itertools
import json
import os
import ssl
from typing import Any

import pytest
from apiserver import ApiServer
from apiserver.client import Client, Watching
from apiserver.real import RealServer

CNPS = "/apis/cilium.io/v2/namespaces/{ns}/ciliumnetworkpolicies"
MERGE = "application/merge-patch+json"

_numbers = itertools.count(1)


class Site:
    """A namespace of one test, with config maps (of the core) or policies (custom) in it."""

    def __init__(self, client: Client, path: str, about: dict[str, Any]) -> None:
        self.client = client
        self.namespace = f"list-{os.getpid()}-{next(_numbers)}"
        self.path = path.replace("{ns}", self.namespace)
        self._about = about
        client.ask("POST", "/api/v1/namespaces", {"metadata": {"name": self.namespace}}, expect=201)

    def make(self, name: str, **labels: str) -> str:
        """Its resourceVersion, as of all that follow."""
        obj = self._about | {"metadata": {"name": name, "labels": labels}}
        return version(self.client.ask("POST", self.path, obj, expect=201).json())

    def label(self, name: str, **labels: str | None) -> str:
        patch = {"metadata": {"labels": labels}}
        return version(self.client.ask("PATCH", f"{self.path}/{name}", patch, content_type=MERGE, expect=200).json())

    def delete(self, name: str) -> None:
        self.client.ask("DELETE", f"{self.path}/{name}", expect=200)

    def page(self, query: str = "", expect: int = 200) -> Any:
        return self.client.ask("GET", f"{self.path}?{query}", expect=expect).json()

    def names(self, query: str = "") -> list[str]:
        return [item["metadata"]["name"] for item in self.page(query)["items"]]


def version(obj: dict[str, Any]) -> str:
    found: str = obj["metadata"]["resourceVersion"]
    return found


@pytest.fixture(params=["core", "custom"])
def site(either: Client, request: pytest.FixtureRequest) -> Site:
    if request.param == "core":
        return Site(either, "/api/v1/namespaces/{ns}/configmaps", {})
    return Site(either, CNPS, {"apiVersion": "cilium.io/v2", "kind": "CiliumNetworkPolicy", "spec": {}})


@pytest.fixture
def five(site: Site) -> Site:
    """a to e; app is web, api, web, none, ""; those before d are old."""
    site.make("a", app="web", age="old")
    site.make("b", app="api", age="old")
    site.make("c", app="web", age="old")
    site.make("d")
    site.make("e", app="")
    return site


SELECTORS = {
    "": "abcde",
    "labelSelector=app%3Dweb": "ac",
    "labelSelector=app%3D%3Dweb": "ac",
    "labelSelector=app!%3Dweb": "bde",
    "labelSelector=app": "abce",
    "labelSelector=!app": "d",
    "labelSelector=app%3D": "e",
    "labelSelector=app+in+(web,api)": "abc",
    "labelSelector=app+notin+(web,api)": "de",
    "labelSelector=app+notin+(web),age%3Dold": "b",
    "fieldSelector=metadata.name%3Db": "b",
    "fieldSelector=metadata.name!%3Db": "acde",
    "fieldSelector=metadata.name%3Db&labelSelector=app%3Dweb": "",
    "limit=2&resourceVersion=0": "abcde",
}


def test_selectors(five: Site) -> None:
    assert {query: "".join(sorted(five.names(query))) for query in SELECTORS} == SELECTORS


@pytest.mark.parametrize(
    "query",
    ["labelSelector=a(", "fieldSelector=spec.nothing%3D1", "limit=x", "continue=abc", "resourceVersion=x"],
)
def test_a_list_that_cannot_be_read_is_refused(site: Site, query: str) -> None:
    assert site.page(query, expect=400)["reason"] == "BadRequest"


def test_items_of_the_core_have_no_kind(five: Site) -> None:
    listed = five.page()
    is_custom = five.path.startswith("/apis/cilium.io")
    assert listed["kind"] == ("CiliumNetworkPolicyList" if is_custom else "ConfigMapList")
    assert all(("kind" in item) == ("apiVersion" in item) == is_custom for item in listed["items"])


def test_pages_are_of_the_first_ones_version(five: Site) -> None:
    first = five.page("limit=2")
    assert [item["metadata"]["name"] for item in first["items"]] == ["a", "b"]
    five.delete("c")
    five.make("cc")
    five.label("d", app="new")
    second = five.page(f"limit=2&continue={first['metadata']['continue']}")
    assert [(item["metadata"]["name"], item["metadata"].get("labels")) for item in second["items"]] == [
        ("c", {"app": "web", "age": "old"}),
        ("d", None),
    ]
    last = five.page(f"limit=2&continue={second['metadata']['continue']}")
    assert [item["metadata"]["name"] for item in last["items"]] == ["e"]
    assert version(first) == version(second) == version(last) and not last["metadata"].get("continue")
    assert five.names() == ["a", "b", "cc", "d", "e"]


def test_a_limit_with_a_selector(five: Site) -> None:
    first = five.page("limit=1&labelSelector=app%3Dweb")
    second = five.page(f"limit=1&labelSelector=app%3Dweb&continue={first['metadata']['continue']}")
    assert [item["metadata"]["name"] for each in (first, second) for item in each["items"]] == ["a", "c"]


def test_a_continue_token_and_a_version_do_not_go_together(five: Site) -> None:
    token = five.page("limit=1")["metadata"]["continue"]
    assert five.page(f"limit=1&continue={token}&resourceVersion=7", expect=400)["reason"] == "BadRequest"


def test_an_exact_version(five: Site) -> None:
    then = version(five.page())
    five.delete("a")
    listed = five.page(f"resourceVersion={then}&resourceVersionMatch=Exact")
    assert version(listed) == then and len(listed["items"]) == 5
    newer = five.page(f"resourceVersion={then}&resourceVersionMatch=NotOlderThan")
    assert int(version(newer)) > int(then) and len(newer["items"]) == 4
    assert five.page("resourceVersionMatch=Exact", expect=422)["reason"] == "Invalid"


def test_a_version_that_is_still_to_come(five: Site) -> None:
    refused = five.page("resourceVersion=99999999&resourceVersionMatch=NotOlderThan", expect=504)
    assert refused["reason"] == "Timeout"
    assert [cause["reason"] for cause in refused["details"]["causes"]] == ["ResourceVersionTooLarge"]


def seen(watching: Watching, count: int) -> list[tuple[str, str]]:
    events = [watching.next() for _ in range(count)]
    return [(event["type"], event["object"]["metadata"]["name"]) for event in events]


def test_a_watch_goes_on_from_a_list(five: Site) -> None:
    start = version(five.page())
    five.make("f")
    with five.client.watch(f"{five.path}?watch=1&resourceVersion={start}") as watching:
        five.label("a", app="new")
        five.delete("b")
        assert seen(watching, 3) == [("ADDED", "f"), ("MODIFIED", "a"), ("DELETED", "b")]


def test_versions_of_a_watch_rise(five: Site) -> None:
    start = version(five.page())
    with five.client.watch(f"{five.path}?watch=1&resourceVersion={start}") as watching:
        changed = five.label("a", app="new")
        five.delete("a")
        events = [watching.next()["object"] for _ in range(2)]
    assert version(events[0]) == changed and int(version(events[1])) > int(changed) > int(start)
    assert events[1]["metadata"]["labels"]["app"] == "new", "a deletion brings the object as it was"
    assert all(event["kind"] and event["apiVersion"] for event in events)


@pytest.mark.parametrize("start", ["", "0"])
def test_a_watch_from_no_version_starts_with_what_is_there(five: Site, start: str) -> None:
    with five.client.watch(f"{five.path}?watch=1&resourceVersion={start}") as watching:
        assert sorted(seen(watching, 5)) == [("ADDED", name) for name in "abcde"]
        five.delete("a")
        assert seen(watching, 1) == [("DELETED", "a")]


def test_what_enters_and_leaves_a_selector(five: Site) -> None:
    start = version(five.page())
    query = f"watch=1&resourceVersion={start}&labelSelector=app%3Dweb"
    with five.client.watch(f"{five.path}?{query}") as watching:
        five.label("b", app="web")  # enters
        five.label("b", more="1")
        five.label("d", app="api")  # was and is outside
        five.label("a", app=None)  # leaves
        five.delete("d")
        five.delete("c")
        assert seen(watching, 4) == [("ADDED", "b"), ("MODIFIED", "b"), ("DELETED", "a"), ("DELETED", "c")]


def test_what_leaves_a_selector_comes_as_it_was_with_the_new_version(five: Site) -> None:
    start = version(five.page())
    query = f"watch=1&resourceVersion={start}&labelSelector=app%3Dweb"
    with five.client.watch(f"{five.path}?{query}") as watching:
        changed = five.label("a", app="api")
        left = watching.next()["object"]
    assert left["metadata"]["labels"]["app"] == "web" and version(left) == changed


def test_a_watch_of_one_name(five: Site) -> None:
    query = f"watch=1&resourceVersion={version(five.page())}&fieldSelector=metadata.name%3Db"
    with five.client.watch(f"{five.path}?{query}") as watching:
        five.delete("a")
        five.delete("b")
        assert seen(watching, 1) == [("DELETED", "b")]


def test_a_watch_ends_at_its_time(five: Site) -> None:
    start = version(five.page())
    with five.client.watch(f"{five.path}?watch=1&resourceVersion={start}&timeoutSeconds=1") as watching:
        assert watching.code == 200 and watching.read() == b""


def test_a_watch_with_bookmarks_ends_with_one(five: Site) -> None:
    start = version(five.page())
    query = f"watch=1&resourceVersion={start}&timeoutSeconds=3&allowWatchBookmarks=true"
    with five.client.watch(f"{five.path}?{query}") as watching:
        changed = five.label("a", app="new")
        events = list(watching)
    assert [event["type"] for event in events[:2]] == ["MODIFIED", "BOOKMARK"]
    assert {event["type"] for event in events[1:]} == {"BOOKMARK"}
    marked = events[-1]["object"]
    assert int(version(marked)) >= int(changed) and set(marked) == {"kind", "apiVersion", "metadata"}


def test_initial_events_end_with_a_marked_bookmark(five: Site) -> None:
    query = "watch=1&sendInitialEvents=true&resourceVersionMatch=NotOlderThan&allowWatchBookmarks=true"
    with five.client.watch(f"{five.path}?{query}") as watching:
        assert sorted(seen(watching, 5)) == [("ADDED", name) for name in "abcde"]
        marked = watching.next()
    assert marked["type"] == "BOOKMARK"
    assert marked["object"]["metadata"]["annotations"] == {"k8s.io/initial-events-end": "true"}


def test_initial_events_want_a_match(five: Site) -> None:
    with five.client.watch(f"{five.path}?watch=1&sendInitialEvents=true") as watching:
        assert watching.code == 422


def test_a_watch_from_too_old_a_version_is_told_so_in_the_stream(either: Client) -> None:
    site = Site(either, CNPS, {})
    with either.watch(f"{site.path}?watch=1&resourceVersion=1") as watching:
        assert watching.code == 200
        event = watching.next()
        assert event["type"] == "ERROR" and event["object"]["code"] == 410
        assert event["object"]["reason"] == "Expired" and watching.read() == b""


def test_a_continue_token_says_where_it_goes_on(five: Site) -> None:
    """Clients do not look inside; that both servers mean the same by it lets a test make an old one."""
    token = five.page("limit=2")["metadata"]["continue"]
    inside = json.loads(base64.urlsafe_b64decode(token + "=" * (-len(token) % 4)))
    assert set(inside) == {"v", "rv", "start"} and inside["rv"] == int(version(five.page("limit=1")))


def test_a_server_that_was_stopped_has_what_it_had(either_api: ApiServer | RealServer) -> None:
    with either_api.client() as client:
        site = Site(client, CNPS, {"apiVersion": "cilium.io/v2", "kind": "CiliumNetworkPolicy", "spec": {}})
        site.make("a")
        with client.watch(f"{site.path}?watch=1") as watching:
            assert seen(watching, 1) == [("ADDED", "a")]
            either_api.stop()
            with pytest.raises((ConnectionResetError, http.client.IncompleteRead, ssl.SSLEOFError)):
                watching.read()
    either_api.start()
    with either_api.client() as client:
        site.client = client
        listed = site.page()
        assert [item["metadata"]["name"] for item in listed["items"]] == ["a"]
        with client.watch(f"{site.path}?watch=1&resourceVersion={version(listed)}") as watching:
            site.make("b")
            assert seen(watching, 1) == [("ADDED", "b")]

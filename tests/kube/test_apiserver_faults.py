"""What the in-test API server does when it is told to misbehave, and what a test may do to it while it serves."""

from __future__ import annotations

import http.client
import json
import socket
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import rig
import yaml
from apiserver import TABLE, ApiServer
from apiserver.client import Client, Watching
from apiserver.real import definitions
from apiserver.remote import RemoteApi

PODS = "/api/v1/namespaces/default/pods"
SERVICES = "/api/v1/namespaces/default/services"
SHORT_S = 0.3
"""So long nothing must come where nothing is to come."""


@pytest.fixture
def client(api: ApiServer) -> Iterator[Client]:
    with Client(api.url) as client:
        yield client


def pod(name: str, node: str = "n1") -> dict[str, Any]:
    return {"apiVersion": "v1", "kind": "Pod", "metadata": {"name": name}, "spec": {"nodeName": node}}


def service(name: str) -> dict[str, Any]:
    return {"apiVersion": "v1", "kind": "Service", "metadata": {"name": name}, "spec": {}}


def event(watching: Watching) -> tuple[str, str]:
    found = watching.next()
    return found["type"], found["object"]["metadata"].get("name", "")


def in_background(function: Callable[[], object]) -> tuple[threading.Thread, list[BaseException]]:
    raised: list[BaseException] = []

    def run() -> None:
        try:
            function()
        except (OSError, http.client.HTTPException) as error:
            raised.append(error)

    thread = threading.Thread(target=run)
    thread.start()
    return thread, raised


@pytest.mark.parametrize(
    ("status", "reason"), [(429, "TooManyRequests"), (500, "InternalError"), (503, "ServiceUnavailable")]
)
def test_refusals_of_a_verb_and_resource(api: ApiServer, client: Client, status: int, reason: str) -> None:
    api.faults.refuse(status, retry_after_s=7, verbs=["list"], resources=["pods"], times=2)
    for _ in range(2):
        answer = client.ask("GET", PODS, expect=status)
        assert answer.json()["reason"] == reason and answer.headers["retry-after"] == "7"
        client.ask("GET", SERVICES, expect=200)
        client.ask("POST", PODS, pod(f"p{time.monotonic_ns()}"), expect=201)
    client.ask("GET", PODS, expect=200)


def test_a_rule_holds_until_it_is_removed(api: ApiServer, client: Client) -> None:
    rule = api.faults.refuse(503)
    assert [client.ask("GET", path).code for path in (PODS, "/readyz", "/apis")] == [503] * 3
    api.faults.remove(rule)
    client.ask("GET", PODS, expect=200)


def test_a_hanging_server_takes_requests_and_never_answers(api: ApiServer, client: Client) -> None:
    api.faults.hang(verbs=["list"])
    thread, raised = in_background(lambda: client.ask("GET", PODS))
    thread.join(SHORT_S)
    assert thread.is_alive()
    with Client(api.url) as other:
        other.ask("GET", f"{PODS}/p", expect=404)
    api.stop()
    thread.join()
    assert isinstance(raised[0], ConnectionResetError)


def test_a_slow_body_comes_whole(api: ApiServer, client: Client) -> None:
    api.load(pod(f"p{number}") for number in range(20))
    size = len(client.ask("GET", PODS).body)
    api.faults.slow(bytes_per_s=size * 4)
    started = time.monotonic()
    answer = client.ask("GET", PODS)
    assert len(answer.json()["items"]) == 20 and time.monotonic() - started > 0.1


def test_a_reset_in_the_middle_of_a_body(api: ApiServer, client: Client) -> None:
    api.load(pod(f"p{number}") for number in range(20))
    api.faults.reset(after=100, verbs=["list"], times=1)
    with pytest.raises((ConnectionResetError, http.client.IncompleteRead)):
        client.ask("GET", PODS)
    assert len(client.ask("GET", PODS).json()["items"]) == 20


def test_a_reset_in_the_middle_of_a_watch(api: ApiServer, client: Client) -> None:
    api.faults.reset(after=600, verbs=["watch"])
    with client.watch(f"{PODS}?watch=1") as watching:
        api.put(pod("a"))
        assert event(watching) == ("ADDED", "a")
        api.put(pod("b"))
        api.put(pod("c"))
        with pytest.raises((ConnectionResetError, http.client.IncompleteRead)):
            watching.read()


def test_dropped_watches_end_in_good_order(api: ApiServer, client: Client) -> None:
    with client.watch(f"{PODS}?watch=1") as pods, client.watch(f"{SERVICES}?watch=1") as services:
        assert api.watching() == 2 and api.drop_watches("pods") == 1
        assert pods.read() == b""
        api.put(service("s"))
        assert event(services) == ("ADDED", "s")


def test_a_stalled_watch_stays_open_and_goes_on(api: ApiServer, client: Client) -> None:
    with client.watch(f"{PODS}?watch=1") as watching:
        api.faults.stall("pods")
        api.put(pod("a"))
        thread, _ = in_background(watching.next)
        thread.join(SHORT_S)
        assert thread.is_alive()
        api.faults.flow("pods")
        thread.join()
        api.put(pod("b"))
        assert event(watching) == ("ADDED", "b")


def test_changes_reach_a_client_in_another_order(api: ApiServer, client: Client) -> None:
    api.put(service("s"))
    with client.watch(f"{PODS}?watch=1") as pods, client.watch(f"{SERVICES}?watch=1") as services:
        assert event(services) == ("ADDED", "s")
        api.faults.stall()
        api.put(pod("a"))
        api.delete("services", "s", "default")
        api.faults.flow("services")
        assert event(services) == ("DELETED", "s")
        api.faults.flow()
        assert event(pods) == ("ADDED", "a")


@pytest.mark.parametrize("as_status", [False, True])
def test_a_410_storm(api: ApiServer, client: Client, as_status: bool) -> None:
    api.load(pod(f"p{number}") for number in range(4))
    first = client.ask("GET", f"{PODS}?limit=1").json()["metadata"]
    api.faults.gone_as_status = as_status
    with client.watch(f"{PODS}?watch=1&resourceVersion={first['resourceVersion']}") as watching:
        assert api.compact() == 1
        told = watching.next()
        assert (told["type"], told["object"]["code"]) == ("ERROR", 410) and watching.read() == b""
    with client.watch(f"{PODS}?watch=1&resourceVersion={first['resourceVersion']}") as watching:
        assert watching.code == (410 if as_status else 200)
        assert b'"code":410' in watching.read()
    expired = client.ask("GET", f"{PODS}?limit=1&continue={first['continue']}", expect=410).json()
    assert expired["reason"] == "Expired"
    rest = client.ask("GET", f"{PODS}?continue={expired['metadata']['continue']}", expect=200).json()
    assert [item["metadata"]["name"] for item in rest["items"]] == ["p1", "p2", "p3"]
    newest = client.ask("GET", PODS).json()["metadata"]["resourceVersion"]
    with client.watch(f"{PODS}?watch=1&resourceVersion={newest}") as watching:
        api.put(pod("new"))
        assert event(watching) == ("ADDED", "new")


def test_a_watch_that_was_stalled_past_the_window_is_gone(api: ApiServer, client: Client) -> None:
    with client.watch(f"{PODS}?watch=1") as watching:
        api.faults.stall("pods")
        api.put(pod("a"))
        api.compact(tell=False)
        api.faults.flow("pods")
        assert watching.next()["object"]["code"] == 410


def test_bookmarks_on_demand_go_to_those_that_asked(api: ApiServer, client: Client) -> None:
    asked = f"{PODS}?watch=1&resourceVersion={api.store.version}&allowWatchBookmarks=true"
    with client.watch(asked) as with_marks, client.watch(f"{PODS}?watch=1") as without:
        api.put(service("s"))
        assert api.bookmark() == 2
        marked = with_marks.next()
        assert (
            marked["type"] == "BOOKMARK" and int(marked["object"]["metadata"]["resourceVersion"]) == api.store.version
        )
        api.put(pod("a"))
        assert event(without) == ("ADDED", "a")


def test_stopped_and_started_again_it_is_the_same(api: ApiServer, client: Client) -> None:
    port = api.port
    made = client.ask("POST", PODS, pod("a"), expect=201).json()
    with client.watch(f"{PODS}?watch=1") as watching:
        watching.next()
        api.stop()
        with pytest.raises((ConnectionResetError, http.client.IncompleteRead)):
            watching.read()
    with pytest.raises(ConnectionRefusedError):
        socket.create_connection(("127.0.0.1", port))
    api.put(pod("b"))
    api.start()
    with Client(api.url) as again:
        assert api.port == port and again.ask("GET", f"{PODS}/a").json() == made
        with again.watch(f"{PODS}?watch=1&resourceVersion={made['metadata']['resourceVersion']}") as watching:
            assert event(watching) == ("ADDED", "b")


def test_a_token_that_is_replaced_is_refused(api: ApiServer, tmp_path: Path) -> None:
    api.set_token("one")
    config = yaml.safe_load(api.kubeconfig(tmp_path / "config", tmp_path / "token").read_text())
    assert Path(config["users"][0]["user"]["tokenFile"]).read_text() == "one"
    with Client(api.url, "one") as one, Client(api.url, "two") as two, Client(api.url) as none:
        assert [each.ask("GET", PODS).code for each in (one, two, none)] == [200, 401, 401]
        api.set_token("two")
        assert [each.ask("GET", PODS).code for each in (one, two, none)] == [401, 200, 401]
        assert none.ask("GET", "/readyz").code == 200


def test_over_tls(tmp_path: Path) -> None:
    with ApiServer(tls=True) as api:
        cluster = yaml.safe_load(api.kubeconfig(tmp_path / "config").read_text())["clusters"][0]["cluster"]
        authority = Path(cluster["certificate-authority"]).read_bytes()
        with Client(cluster["server"], authority=authority) as client:
            client.ask("GET", PODS, expect=200)


def test_definitions_come_and_go(client: Client, api: ApiServer) -> None:
    path = "/apis/policy.networking.k8s.io/v1beta1/clusternetworkpolicies"
    resource = next(each for each in TABLE if each.plural == "clusternetworkpolicies")
    with client.watch(f"{path}?watch=1") as watching:
        api.uninstall("clusternetworkpolicies")
        assert watching.read() == b""
    client.ask("GET", path, expect=404)
    api.install(resource)
    client.ask("GET", path, expect=200)
    with ApiServer(without=["cilium.io"]) as bare, Client(bare.url) as asking:
        asking.ask("GET", "/apis/cilium.io", expect=404)


def test_a_client_that_goes_leaves_no_watch(api: ApiServer, client: Client) -> None:
    with client.watch(f"{PODS}?watch=1") as watching:
        api.put(pod("a"))
        event(watching)
        assert api.watching("pods") == 1
    rig.wait_until(lambda: api.watching("pods") == 0, 10.0, "the server has noticed")


@pytest.mark.parametrize("host", ["127.0.0.1", "::1"])
def test_inside_a_network_namespace(root: None, host: str) -> None:
    with rig.Netns("api") as netns, ApiServer(netns=netns, host=host) as api:
        with pytest.raises(ConnectionRefusedError):
            socket.create_connection((host, api.port))
        api.stop()
        api.start()
        with api.client() as client:
            assert netns.call(client.ask, "GET", "/readyz").body == b"ok"


def test_requests_are_kept_as_rbac_sees_them(api: ApiServer, client: Client) -> None:
    client.ask("POST", PODS, pod("a"))
    client.ask("GET", f"{PODS}?labelSelector=a")
    client.ask("PATCH", f"{PODS}/a/status", {}, content_type="application/merge-patch+json")
    client.ask("GET", "/version")
    assert [(seen.verb, seen.resource, seen.namespace, seen.name) for seen in api.requests] == [
        ("create", "pods", "default", ""),
        ("list", "pods", "default", ""),
        ("patch", "pods/status", "default", "a"),
        ("", "", "", ""),
    ]
    assert api.requests[1].query == {"labelSelector": "a"} and api.requests[0].agent == "by-hand/1"


def test_pods_of_one_node(api: ApiServer, client: Client) -> None:
    api.load([pod("a", "n1"), pod("b", "n2")])
    with client.watch("/api/v1/pods?watch=1&fieldSelector=spec.nodeName%3Dn2") as watching:
        assert event(watching) == ("ADDED", "b")
        api.put(pod("c", "n1"))
        api.put(pod("d", "n2"))
        assert event(watching) == ("ADDED", "d")


def test_what_is_loaded_stays_the_callers(api: ApiServer) -> None:
    given = service("s") | {"spec": {"ports": [{"port": 80}]}}
    before = json.dumps(given)
    api.load([given])
    assert json.dumps(given) == before and api.objects("services")[0]["spec"]["ports"][0]["targetPort"] == 80


def test_a_server_in_a_process_of_its_own(tmp_path: Path) -> None:
    with RemoteApi(token="t") as remote, Client(remote.url, "t") as client:
        assert remote.load(pod(f"p{number}") for number in range(2500)) == 2500
        assert len(client.ask("GET", PODS).json()["items"]) == 2500
        remote.call("faults.refuse", 503, times=1)
        client.ask("GET", PODS, expect=503)
        assert [seen.verb for seen in remote.requests] == ["list", "list"]
        with pytest.raises(RuntimeError, match="no resource nothings"):
            remote.call("delete", "nothings", "a")
        assert yaml.safe_load(remote.kubeconfig(tmp_path / "c").read_text())["users"][0]["user"] == {"token": "t"}


def test_the_table_agrees_with_the_charts_definitions() -> None:
    by_name = {f"{each.plural}.{each.group}": each for each in TABLE if each.custom}
    named = {each["metadata"]["name"]: each["spec"] for each in definitions()}
    assert named.keys() == by_name.keys()
    for name, spec in named.items():
        resource = by_name[name]
        assert spec["names"]["kind"] == resource.kind
        assert (spec["scope"] == "Namespaced") == resource.namespaced
        assert tuple(each["name"] for each in spec["versions"]) == resource.versions
        assert all(("status" in each.get("subresources", {})) == resource.status for each in spec["versions"])

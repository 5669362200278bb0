"""HTTP rules between nodes, and for clients that are no pods: two nodes with an agent and an Envoy each, a client
outside, processes of the nodes themselves."""

from __future__ import annotations

import json
from collections.abc import Iterator
from contextlib import ExitStack
from functools import partial

import pytest
from agents import Document
from l7_policies import PORT, cnp, http
from north_south import FAMILIES, NODE_IPS, NorthSouth, pod, pod_ip, routed_ip
from probes import tcp
from rig import wait_until
from web import Client, WebServer

CLIENT, WEB, LOCAL = "shop/client", "shop/web", "shop/local"
"""On n1, on n2, and a client on n2 as well."""
NODE_PORT = {"Local": 30801, "Cluster": 30802}
PUBLIC = ("Local", "Cluster")
SHORT_S = 0.4
"""How long silence must last to be silence."""


@pytest.fixture(scope="module")
def cluster(datapath_host: None, tmp_path_factory: pytest.TempPathFactory) -> Iterator[NorthSouth]:
    with ExitStack() as stack:
        cluster = stack.enter_context(NorthSouth(tmp_path_factory.mktemp("l7-nodes")))
        pods = [pod(CLIENT, "n1", 20, app="client"), pod(WEB, "n2", 10, app="web"), pod(LOCAL, "n2", 20, app="local")]
        cluster.write("pods.yaml", *pods)
        cluster.write("services.yaml", *(service(number, policy) for number, policy in enumerate(PUBLIC)))
        cluster.write("policies.yaml", *BOTH_ENDS)
        cluster.run("--xdp", "off")
        for agent in cluster.agents.values():
            agent.await_listeners()
        yield cluster


@pytest.fixture
def web(cluster: NorthSouth) -> Iterator[WebServer]:
    with WebServer(cluster.netns("n2", WEB), PORT) as web:
        yield web


def paths(*texts: str) -> list[Document]:
    return http(*({"path": text} for text in texts))


def web_policy(**peers: list[str] | list[Document]) -> Document:
    return cnp("shop/web", {"app": "web"}, ingress=[{**peers, "toPorts": paths("/(b|c)")}])


PODS_ONLY = web_policy(
    fromEndpoints=[{"matchExpressions": [{"key": "app", "operator": "In", "values": ["client", "local"]}]}]
)
TO_WEB = {"toEndpoints": [{"matchLabels": {"app": "web"}}], "toPorts": paths("/(a|b)")}
BOTH_ENDS = [cnp("shop/client", {"app": "client"}, egress=[TO_WEB]), PODS_ONLY]


def service(number: int, policy: str) -> Document:
    """Also at addresses that the client sends to n2."""
    spec = {
        "type": "NodePort",
        "selector": {"app": "web"},
        "externalTrafficPolicy": policy,
        "ports": [{"port": 80, "targetPort": PORT, "nodePort": NODE_PORT[policy]}],
        "externalIPs": [routed_ip("n2", 60 + number, family) for family in FAMILIES],
    }
    return {
        "apiVersion": "v1",
        "kind": "Service",
        "metadata": {"name": policy.lower(), "namespace": "shop"},
        "spec": spec,
    }


def put(cluster: NorthSouth, *policies: Document) -> None:
    cluster.write("policies.yaml", *policies)
    for agent in cluster.agents.values():
        agent.await_listeners()


@pytest.mark.parametrize("family", FAMILIES)
def test_both_ends_on_two_nodes(cluster: NorthSouth, web: WebServer, family: str) -> None:
    put(cluster, *BOTH_ENDS)
    address = pod_ip("n2", 10, family)
    with Client(cluster.netns("n1", CLIENT), address, PORT) as connection:
        got = {path: connection.get(path).status for path in ("/a", "/b", "/c", "/d")}
    assert got == {"/a": 403, "/b": 200, "/c": 403, "/d": 403}
    assert {(one.path, one.source) for one in web.seen} == {("/b", pod_ip("n1", 20, family))}
    for name, path in (("n1", "/c"), ("n2", "/a")):
        wait_until(
            partial(is_refusal_seen, cluster, name, path, address), what=f"{path} is refused by the proxy of {name}"
        )


def is_refusal_seen(cluster: NorthSouth, node: str, path: str, address: str) -> bool:
    """By that node. It is asked anew each time: soon after its start an agent has not told all names of pods yet."""
    with Client(cluster.netns("n1", CLIENT), address, PORT) as connection:
        assert connection.get(path).status == 403
    shown = cluster.agents[node].cli("observe", "-o", "json", "--verdict", "DROPPED", "--http-path", path).stdout
    flows = map(json.loads, shown.splitlines())
    return any((flow["source"]["pod"], flow["destination"]["pod"]) == ("client", "web") for flow in flows)


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize("side", ["egress", "ingress"])
def test_one_end_of_two_nodes(cluster: NorthSouth, web: WebServer, family: str, side: str) -> None:
    put(cluster, BOTH_ENDS[side == "ingress"])
    allowed = "/a" if side == "egress" else "/c"
    with Client(cluster.netns("n1", CLIENT), pod_ip("n2", 10, family), PORT) as connection:
        assert [connection.get(path).status for path in (allowed, "/d", "/b")] == [200, 403, 200]
    assert [(one.path, one.source) for one in web.seen] == [
        (path, pod_ip("n1", 20, family)) for path in (allowed, "/b")
    ]


@pytest.mark.parametrize("family", FAMILIES)
def test_through_a_service_with_the_backend_on_the_other_node(cluster: NorthSouth, web: WebServer, family: str) -> None:
    put(cluster, *BOTH_ENDS)
    with Client(cluster.netns("n1", CLIENT), routed_ip("n2", 61, family), 80) as connection:
        assert [connection.get(path).status for path in ("/a", "/b", "/c")] == [403, 200, 403]
    assert {(one.path, one.source) for one in web.seen} == {("/b", pod_ip("n1", 20, family))}


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize("policy", PUBLIC)
def test_a_client_outside(cluster: NorthSouth, web: WebServer, policy: str, family: str) -> None:
    """Its address is kept by the node that has the backend; answers come from whom it asked."""
    put(cluster, web_policy(fromEntities=["world"]))
    for address, port in (
        (NODE_IPS["n2"][family], NODE_PORT[policy]),
        (routed_ip("n2", 60 + PUBLIC.index(policy), family), 80),
    ):
        web.seen.clear()
        with Client(cluster.outside, address, port) as connection:
            assert [connection.get(path).status for path in ("/b", "/a", "/c")] == [200, 403, 200]
            assert [(one.path, one.source) for one in web.seen] == [
                ("/b", connection.source),
                ("/c", connection.source),
            ]
    assert not tcp(cluster.netns("n2", LOCAL), pod_ip("n2", 10, family), PORT, SHORT_S), "of pods it says nothing"


@pytest.mark.parametrize("family", FAMILIES)
def test_a_client_outside_by_way_of_the_other_node(cluster: NorthSouth, web: WebServer, family: str) -> None:
    """It comes with that node's address, for answers have to go back that way."""
    put(cluster, web_policy(fromEntities=["world", "remote-node"]))
    with Client(cluster.outside, NODE_IPS["n1"][family], NODE_PORT["Cluster"]) as connection:
        assert [connection.get(path).status for path in ("/b", "/a", "/c")] == [200, 403, 200]
    assert [(one.path, one.source) for one in web.seen] == [(path, NODE_IPS["n1"][family]) for path in ("/b", "/c")]


@pytest.mark.parametrize("family", FAMILIES)
def test_processes_of_nodes(cluster: NorthSouth, web: WebServer, family: str) -> None:
    """Of the other node they are asked for what rules say; the own node reaches its pods whatever these say."""
    put(cluster, web_policy(fromEntities=["remote-node"]))
    address = pod_ip("n2", 10, family)
    for name, statuses in (("n1", [200, 403, 200]), ("n2", [200, 200, 200])):
        web.seen.clear()
        with Client(cluster.nodes[name], address, PORT) as connection:
            assert [connection.get(path).status for path in ("/b", "/a", "/c")] == statuses
            assert {one.source for one in web.seen} == {connection.source}

"""Three nodes in strict mode: whatever way packets of pods take, between nodes they are encrypted."""

from __future__ import annotations

from collections.abc import Iterator
from functools import partial

import pytest
import rig
from agents import START_S, Document
from dnsrig import Resolver, ask
from encrypted_cluster import PATIENT_S, STRICT, listen, meet, plaintext, status, use
from kube_cluster import FAMILIES, KubeAgent, KubeCluster, KubePod, node_ips
from l7_policies import cnp, egress, ingress
from probes import Server, ping, tcp, udp
from web import Client, WebServer
from wire import Wire

from agent.api import client as api

HTTP, PORT, TARGET, NODE_PORT = 8080, 80, 9080, 30080
SERVICE = {"v4": "10.96.7.7", "v6": "fd00:10:96::77"}
OUTSIDE = {"v4": "192.0.2.100", "v6": "2001:db8:0:1::100"}
KINDS = {"tcp": tcp, "udp": udp}


@pytest.fixture(scope="module")
def cluster(backends: str, tmp_path_factory: pytest.TempPathFactory) -> Iterator[KubeCluster]:
    flags = (*STRICT, "--service-cidrs", "10.96.0.0/16,fd00:10:96::/112")
    with KubeCluster(tmp_path_factory.mktemp("kube"), "n1", "n2", "n3", flags=flags) as cluster:
        use(cluster, backends)
        cluster.outside.ip(f"address add {OUTSIDE['v6']}/64 dev eth0 nodad")
        cluster.start()
        cluster.add("n1/shop/client", app="client")
        cluster.add("n2/shop/web", app="web")
        far = cluster.add("n3/shop/far", app="far")
        cluster.apply(service(), *(slice_of(far, family) for family in FAMILIES))
        know(cluster, *cluster.pods.values())
        meet(cluster)
        with Server(far.netns, "tcp", TARGET, "far"), Server(far.netns, "udp", TARGET, "far"):
            yield cluster


def pod(cluster: KubeCluster, name: str) -> KubePod:
    return next(one for one in cluster.pods.values() if one.short == name)


def know(cluster: KubeCluster, *pods: KubePod) -> None:
    """Until every agent knows these pods, and who they are: whom it does not know policy denies."""

    def knows(agent: KubeAgent) -> bool:
        found = {one["name"]: one["labels"] for one in api.call(agent.instance.agent_socket, "endpoints")}
        return all(found.get(pod.short) for pod in pods)

    for agent in cluster.agents.values():
        rig.wait_until(partial(knows, agent), START_S, f"{agent.name} knows the pods")


def service() -> Document:
    ports = [
        {"name": kind, "protocol": kind.upper(), "port": PORT, "targetPort": TARGET, "nodePort": NODE_PORT}
        for kind in KINDS
    ]
    families = {"ipFamilies": ["IPv4", "IPv6"], "ipFamilyPolicy": "RequireDualStack"}
    addresses = {"clusterIP": SERVICE["v4"], "clusterIPs": list(SERVICE.values())}
    return {
        "apiVersion": "v1",
        "kind": "Service",
        "metadata": {"name": "far", "namespace": "shop"},
        "spec": {"type": "NodePort", "selector": {"app": "far"}, "ports": ports, **families, **addresses},
    }


def slice_of(backend: KubePod, family: str, **conditions: bool) -> Document:
    target = {"kind": "Pod", "namespace": "shop", "name": backend.short}
    endpoint = {
        "addresses": [backend.ip(family)], "conditions": conditions or {"ready": True},
        "nodeName": backend.agent.name, "targetRef": target,
    }  # fmt: skip
    return {
        "apiVersion": "discovery.k8s.io/v1",
        "kind": "EndpointSlice",
        "metadata": {"name": f"far-{family}", "namespace": "shop", "labels": {"kubernetes.io/service-name": "far"}},
        "addressType": "IPv4" if family == "v4" else "IPv6",
        "endpoints": [endpoint],
        "ports": [{"name": kind, "protocol": kind.upper(), "port": TARGET} for kind in KINDS],
    }


def nothing_plain(cluster: KubeCluster, seen: Wire) -> None:
    assert seen.encrypted
    assert seen.seen() == []
    assert plaintext(cluster) == 0


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize("kind", KINDS)
def test_services(cluster: KubeCluster, family: str, kind: str) -> None:
    """To a pod of another node: by the cluster's address; by a port of a third node, for pods and for clients outside.
    Between the nodes all of it is encrypted, and the answers are."""
    probe = partial(KINDS[kind], timeout_s=PATIENT_S)
    client = pod(cluster, "client")
    with listen(cluster) as seen:
        assert probe(client.netns, SERVICE[family], PORT).seen_from == client.ip(family)
        for node in (1, 2):
            answer = probe(cluster.outside, node_ips(node)[family], NODE_PORT)
            assert (answer.label, answer.seen_from) == ("far", node_ips(node)[family])
        assert probe(cluster.outside, node_ips(3)[family], NODE_PORT).seen_from == OUTSIDE[family]
        assert probe(client.netns, node_ips(2)[family], NODE_PORT).label == "far"
    nothing_plain(cluster, seen)


@pytest.mark.parametrize("family", FAMILIES)
def test_a_backend_that_ends(cluster: KubeCluster, family: str) -> None:
    """Its connections go on until it has ended, and so do those that begin, as there is no other."""
    client, far = pod(cluster, "client"), pod(cluster, "far")
    with listen(cluster) as seen:
        cluster.apply(slice_of(far, family, ready=False, serving=True, terminating=True))
        assert tcp(client.netns, SERVICE[family], PORT, PATIENT_S).label == "far"
        assert tcp(cluster.outside, node_ips(1)[family], NODE_PORT, PATIENT_S).label == "far"
    cluster.apply(slice_of(far, family))
    nothing_plain(cluster, seen)


@pytest.mark.parametrize("family", FAMILIES)
def test_http_rules_at_both_ends(cluster: KubeCluster, family: str) -> None:
    """Each node's Envoy makes the connection anew, in the pod's name."""
    client, web = pod(cluster, "client"), pod(cluster, "web")
    cluster.apply(
        cnp("shop/web", {"app": "web"}, ingress=ingress({"method": "GET", "path": "/(public|odd)"})),
        cnp("shop/client", {"app": "client"}, egress=egress({"method": "GET", "path": "/(public|secret)"})),
    )
    for agent in cluster.agents.values():
        agent.await_listeners(START_S)
    with (
        listen(cluster) as seen,
        WebServer(web.netns, HTTP) as server,
        Client(client.netns, web.ip(family), HTTP, PATIENT_S) as connection,
    ):
        for path, code in (("/public", 200), ("/secret", 403), ("/odd", 403), ("/public", 200)):
            assert connection.get(path).status == code, path
        assert {(one.path, one.source) for one in server.seen} == {("/public", client.ip(family))}
    for name in ("web", "client"):
        cluster.api.delete("ciliumnetworkpolicies", name, "shop")
    nothing_plain(cluster, seen)


@pytest.mark.parametrize("family", FAMILIES)
def test_names_asked_of_a_resolver_of_another_node(cluster: KubeCluster, family: str) -> None:
    """By way of the DNS proxy."""
    asking, resolving = f"asking-{family}", f"resolver-{family}"
    resolver = cluster.add(f"n2/shop/{resolving}", app="resolver")
    client = cluster.add(f"n1/shop/{asking}", app=asking)
    ports = [{"port": "53", "protocol": "ANY"}]
    rules = [{
        "toEndpoints": [{"matchLabels": {"app": "resolver"}}],
        "toPorts": [{"ports": ports, "rules": {"dns": [{"matchPattern": "*.ok"}]}}],
    }]  # fmt: skip
    cluster.apply(cnp(f"shop/{asking}", {"app": asking}, egress=rules))
    cluster.agents["n1"].await_listeners(START_S)
    know(cluster, client, resolver)
    with listen(cluster) as seen, Resolver(resolver.netns) as answering:
        answering.records["a.ok"] = ("203.0.113.7",)
        for tcp_too in (False, True):
            reply = ask(client.netns, resolver.ip(family), "a.ok", tcp=tcp_too, timeout_s=PATIENT_S)
            assert "203.0.113.7" in str(reply)
        ask(client.netns, resolver.ip(family), "a.refused")
        assert {one.name for one in answering.asked} == {"a.ok"}
    nothing_plain(cluster, seen)


@pytest.mark.parametrize("family", FAMILIES)
def test_pods_that_are_deleted_and_live_on(cluster: KubeCluster, family: str) -> None:
    """The Pod object is gone, its processes are not yet."""
    client = cluster.add(f"n1/shop/ending-{family}", app="ending")
    far = pod(cluster, "far")
    with listen(cluster) as seen:
        assert tcp(client.netns, far.ip(family), TARGET, PATIENT_S)
        cluster.api.delete("pods", client.short, "shop")
        gone = lambda: client.short not in {one["name"] for one in cluster.agents["n3"].json("endpoints")}  # noqa: E731
        rig.wait_until(gone, START_S, "the others know")
        for probe in (tcp, udp):
            probe(client.netns, far.ip(family), TARGET, 0.4)
        ping(client.netns, far.ip(family), 0.4)
        ping(far.netns, client.ip(family), 0.4)
    assert seen.seen() == []
    assert plaintext(cluster) == 0


def test_a_node_that_claims_pods_of_another(cluster: KubeCluster) -> None:
    """It is refused, and said; what is sent there goes to whose they are."""
    client, web = pod(cluster, "client"), pod(cluster, "web")
    claim = {
        "apiVersion": "gatehouse.io/v1alpha1",
        "kind": "NodeEndpoints",
        "metadata": {"name": "n0"},
        "spec": {
            "addresses": ["192.0.2.66"],
            "podCIDRs": ["10.244.2.0/24"],
            "publicKey": "c29tZWJvZHkgZWxzZSdzIGtleSwgMzIgYnl0ZXMgbG8=",
            "endpoints": [],
        },
    }
    cluster.apply(claim)
    agent = cluster.agents["n1"]
    rig.wait_until(lambda: len(status(agent)["peers"]) == 3, START_S, "it is known")
    peers = {peer["node"]: peer for peer in status(agent)["peers"]}
    shown = cluster.nodes["n1"].run("wg", "show", status(agent)["device"], "allowed-ips").stdout
    owner = next(line for line in shown.splitlines() if "10.244.2.0/24" in line)
    assert owner.startswith(peers["n2"]["public_key"])
    said = [agent.cli("status", "-o", "json").stdout, agent.log()]
    assert any("10.244.2.0/24" in text and "n0" in text for text in said)
    with Server(web.netns, "tcp", TARGET, "web"), listen(cluster) as seen:
        assert tcp(client.netns, web.ip(), TARGET, PATIENT_S).label == "web"
    nothing_plain(cluster, seen)
    cluster.api.delete("nodeendpoints", "n0")
    rig.wait_until(lambda: len(status(agent)["peers"]) == 2, START_S, "it is gone")

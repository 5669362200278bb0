"""Routes between nodes on which agents run: who a packet is from is known on the other node, nobody passes for another,
and services reach backends there."""

from __future__ import annotations

import json
import socket
from collections.abc import Iterator
from pathlib import Path

import probes
import pytest
import rig
from agents import START_S, allow_from, policy
from north_south import CLIENT_IPS, FAMILIES, NODE_IPS, NODES, POD_CIDRS, NorthSouth, pod, pod_ip, routed_ip
from traffic import DROPPED_S

from agent.routing import tunnel

CLIENT, OTHER, WEB, FREE = "shop/client", "shop/other", "shop/web", "shop/free"
"""On n1: client, other. On n2: web, which takes the client alone, and free, which no policy isolates."""
HEADERS = {"v4": 28, "v6": 48}
MODES = ("native", "vxlan")
SIZES = {"native": 1500, "vxlan": 1450}
ROUTES_S = START_S


class Routed(NorthSouth):
    """What routes there are between nodes agents make, who tell each other of themselves by files."""

    def __init__(self, folder: Path, mode: str) -> None:
        told = str(folder / "manifests" / "told")
        super().__init__(folder, "--mtu", str(SIZES[mode]), "--routing", mode, "--node-files", told, routed=False)
        self.mode = mode


@pytest.fixture(scope="module", params=MODES)
def cluster(
    datapath_host: None, tmp_path_factory: pytest.TempPathFactory, request: pytest.FixtureRequest
) -> Iterator[Routed]:
    cluster = Routed(tmp_path_factory.mktemp("routed"), request.param)
    with cluster:
        cluster.write(
            "pods.yaml",
            pod(CLIENT, "n1", 20, app="client"),
            pod(OTHER, "n1", 21, app="other"),
            pod(WEB, "n2", 10, app="web"),
            pod(FREE, "n2", 11, app="free"),
        )
        cluster.write("policy.yaml", policy("shop/web", {"app": "web"}, ingress=allow_from(app="client")))
        cluster.run()
        for name, other in (NODES, NODES[::-1]):
            blocks = set(POD_CIDRS[other].values())
            rig.wait_until(lambda n=name, b=blocks: own_routes(cluster, n) == b, ROUTES_S, f"{name} has routes")  # type: ignore[misc]
        yield cluster


def own_routes(cluster: Routed, node: str) -> set[str]:
    found = []
    for family in ("-4", "-6"):
        found += json.loads(cluster.nodes[node].run("ip", "-j", family, "route", "show", "proto", "71").stdout or "[]")
    return {route["dst"] for route in found if "gateway" in route}


@pytest.mark.parametrize("family", FAMILIES)
def test_policy_knows_who_sends(cluster: Routed, family: str) -> None:
    with cluster.served("n2/shop/web", "n2/shop/free"):
        for name, allowed in ((CLIENT, True), (OTHER, False)):
            netns, number = cluster.netns("n1", name), 20 + (name == OTHER)
            answer = probes.tcp(netns, pod_ip("n2", 10, family), 8080, probes.TIMEOUT_S if allowed else DROPPED_S)
            assert answer.result == ("ok" if allowed else "timeout")
            free = probes.tcp(netns, pod_ip("n2", 11, family), 8080)
            assert free.seen_from == pod_ip("n1", number, family)
    refused = cluster.agents["n2"].await_flows(
        lambda flow: flow["verdict"] == "DROPPED" and flow["source"]["ip"] == pod_ip("n1", 21, family), 1
    )
    assert {(flow["source"]["pod"], flow["destination"]["pod"]) for flow in refused} == {("other", "web")}


@pytest.mark.parametrize("family", FAMILIES)
def test_packets_of_every_size(cluster: Routed, family: str) -> None:
    netns, target = cluster.netns("n1", CLIENT), pod_ip("n2", 11, family)
    (link,) = json.loads(netns.run("ip", "-j", "link", "show", "dev", "eth0").stdout)
    assert link["mtu"] == SIZES[cluster.mode]
    largest = SIZES[cluster.mode] - HEADERS[family]
    for size in (largest, largest + 1, 4000):
        assert probes.ping(netns, target, size=size), size


# Whom a process of n1 may pass for in what it sends to pods of n2, and whom not. `reason`: why n2 drops it, where it is
# the datapath that does.
CLAIMS = [
    ("n1", "free", True, ""),
    ("n1", "web", False, "POLICY_INGRESS"),
    ("client", "web", True, ""),  # it is that pod's node
    ("free", "web", False, "SPOOFED_SOURCE"),
    ("web", "web", False, "SPOOFED_SOURCE"),
    ("nobody's of n2", "web", False, "POLICY_INGRESS"),
    ("n2", "web", False, None),
]


def claimed(name: str, family: str) -> str:
    if name in NODE_IPS:
        return NODE_IPS[name][family]
    node, number = {"client": ("n1", 20), "free": ("n2", 11), "web": ("n2", 10), "nobody's of n2": ("n2", 99)}[name]
    return pod_ip(node, number, family)


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize(("source", "target", "arrives", "reason"), CLAIMS)
def test_whom_a_node_may_pass_for(
    cluster: Routed, source: str, target: str, arrives: bool, reason: str | None, family: str
) -> None:
    netns = cluster.netns("n2", WEB if target == "web" else FREE)
    kind = socket.AF_INET6 if family == "v6" else socket.AF_INET
    address = claimed(target, family)
    before = drops(cluster)
    with netns.call(socket.socket, kind, socket.SOCK_DGRAM) as heard:
        heard.bind((address, 0))
        heard.settimeout(probes.TIMEOUT_S if arrives else DROPPED_S)
        send_as(cluster.nodes["n1"], claimed(source, family), address, heard.getsockname()[1])
        if arrives:
            assert heard.recvfrom(100)[1][0] == claimed(source, family)
            return
        with pytest.raises(TimeoutError):
            heard.recvfrom(100)
    if reason is not None:
        assert drops(cluster)[reason] > before.get(reason, 0)


def drops(cluster: Routed) -> dict[str, int]:
    found: dict[str, int] = cluster.agents["n2"].status()["drops"]
    return found


_TRANSPARENT = {socket.AF_INET: (socket.IPPROTO_IP, 19), socket.AF_INET6: (socket.IPPROTO_IPV6, 75)}


def send_as(netns: rig.Netns, source: str, address: str, port: int) -> None:
    """A datagram from an address that may be anybody's."""
    family = socket.AF_INET6 if ":" in source else socket.AF_INET
    with netns.call(socket.socket, family, socket.SOCK_DGRAM) as sender:
        sender.setsockopt(*_TRANSPARENT[family], 1)
        sender.bind((source, 0))
        sender.sendto(b"probe", (address, port))


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize("forwarding", ["snat", "dsr"])
def test_services_by_way_of_the_other_node(cluster: Routed, forwarding: str, family: str) -> None:
    cluster.run("--forwarding", forwarding, "--xdp", "generic")
    frontend = routed_ip("n1", 77, family)
    cluster.write("services.yaml", service(frontend))
    seen = CLIENT_IPS[family] if forwarding == "dsr" else NODE_IPS["n1"][family]
    with cluster.served("n2/shop/free"):
        for probe in (probes.tcp, probes.udp):
            assert probe(cluster.outside, frontend, 80, source=(CLIENT_IPS[family], 0)) == probes.Answer(
                "ok", "free", seen
            )


def service(frontend: str) -> dict[str, object]:
    ports = [{"name": p.lower(), "protocol": p, "port": 80, "targetPort": 8080} for p in ("TCP", "UDP")]
    spec = {"selector": {"app": "free"}, "externalIPs": [frontend], "ports": ports, "type": "NodePort"}
    return {"apiVersion": "v1", "kind": "Service", "metadata": {"name": "free", "namespace": "shop"}, "spec": spec}


def test_cleanup_takes_them_along(cluster: Routed) -> None:
    """Last: the agent of n1 is no more."""
    agent = cluster.agents["n1"]
    assert agent.stop() == 0
    assert own_routes(cluster, "n1") == {"10.244.2.0/24", "fd00:10:244:2::/64"}, (
        "an agent that stops leaves its network"
    )
    agent.cli("cleanup", check=True)
    assert own_routes(cluster, "n1") == set()
    assert tunnel.NAME not in cluster.nodes["n1"].run("ip", "link").stdout

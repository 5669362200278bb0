"""What a pod forges for a pod of another node: packets in the name of a third, wrapped in what nodes themselves use."""

from __future__ import annotations

import json
import socket
import struct
from collections.abc import Iterator

import pytest
import rig
from agents import GONE_S
from encrypted_cluster import PATIENT_S, STRICT, meet, use
from kube_cluster import FAMILIES, KubeCluster, KubePod, node_ips
from patience import SLOWER
from probes import Server, udp

from agent.config import build
from agent.routing.tunnel import VNI

PORT = 8080
TUNNEL_PORT = build({"manifests": "m"}).tunnel_port
TUNNEL = "gatehouse_vxlan"
SILENT_S = 0.5 * SLOWER
WORDS = b"forged"


@pytest.fixture(scope="module", params=[(), ("--node-encryption",)], ids=["pods", "nodes too"])
def cluster(
    backends: str, tmp_path_factory: pytest.TempPathFactory, request: pytest.FixtureRequest
) -> Iterator[KubeCluster]:
    flags = (*STRICT, "--routing", "vxlan", *request.param)
    with KubeCluster(tmp_path_factory.mktemp("kube"), "n1", "n2", "n3", flags=flags) as cluster:
        use(cluster, backends)
        cluster.start()
        meet(cluster)
        for where in ("n1/shop/forger", "n2/shop/neighbour", "n2/shop/web", "n3/shop/other"):
            cluster.add(where, app=where.rsplit("/", 1)[1])
        yield cluster


def checksum(data: bytes) -> int:
    total: int = sum(struct.unpack(f"!{len(data) // 2}H", data))
    while total >> 16:
        total = (total & 0xFFFF) + (total >> 16)
    return ~total & 0xFFFF


def datagram(source: str, destination: str, port: int) -> bytes:
    """An IP packet."""
    body = struct.pack("!HHHH", 5000, port, 8 + len(WORDS), 0) + WORDS
    if ":" not in source:
        head = struct.pack("!BBHHHBBH", 0x45, 0, 20 + len(body), 1, 0, 64, socket.IPPROTO_UDP, 0)
        head += socket.inet_aton(source) + socket.inet_aton(destination)
        return head[:10] + struct.pack("!H", checksum(head)) + head[12:] + body
    ends = socket.inet_pton(socket.AF_INET6, source) + socket.inet_pton(socket.AF_INET6, destination)
    pseudo = ends + struct.pack("!II", len(body), socket.IPPROTO_UDP)
    body = body[:6] + struct.pack("!H", checksum(pseudo + body)) + body[8:]
    return struct.pack("!IHBB", 6 << 28, len(body), socket.IPPROTO_UDP, 64) + ends + body


def tunnelled(cluster: KubeCluster, node: str, packet: bytes) -> bytes:
    """The packet as another node would send it to this one in VXLAN (RFC 7348)."""
    (link,) = json.loads(cluster.nodes[node].run("ip", "-j", "link", "show", TUNNEL).stdout)
    mac = bytes.fromhex(link["address"].replace(":", ""))
    kind = 0x0800 if packet[0] >> 4 == 4 else 0x86DD
    return struct.pack("!II", 0x08 << 24, VNI << 8) + mac + b"\2" * 6 + struct.pack("!H", kind) + packet


def drops(cluster: KubeCluster, node: str) -> int:
    return sum(int(count) for count in cluster.agents[node].status()["drops"].values())


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize("forger", ["n1/shop/forger", "n2/shop/neighbour"])
@pytest.mark.parametrize("named", ["n3/shop/other", "n1/shop/forger", "n2/shop/neighbour"])
def test_in_a_tunnel_of_its_own(cluster: KubeCluster, forger: str, named: str, family: str) -> None:
    """It asks the node to unwrap it. That the wrapping came by WireGuard says nothing of what is in it."""
    web: KubePod = cluster.pods["n2/shop/web"]
    kind = socket.AF_INET6 if family == "v6" else socket.AF_INET
    with web.netns.call(socket.socket, kind, socket.SOCK_DGRAM) as heard:
        heard.bind((web.ip(family), PORT + 1))
        heard.settimeout(SILENT_S)
        before = drops(cluster, "n2")
        inner = datagram(cluster.pods[named].ip(family), web.ip(family), PORT + 1)
        with cluster.pods[forger].netns.call(socket.socket, socket.AF_INET, socket.SOCK_DGRAM) as sending:
            sending.sendto(tunnelled(cluster, "n2", inner), (node_ips(2)["v4"], TUNNEL_PORT))
        with pytest.raises(TimeoutError):
            heard.recv(100)
        rig.wait_until(lambda: drops(cluster, "n2") > before, GONE_S, "it came, and was dropped")
    with Server(web.netns, "udp", PORT, "web"):
        answer = udp(cluster.pods["n1/shop/forger"].netns, web.ip(family), PORT, PATIENT_S)
        assert answer.seen_from == cluster.pods["n1/shop/forger"].ip(family)

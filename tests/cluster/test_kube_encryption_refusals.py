"""What a node answers itself, in strict mode, to a pod of another one: encrypted, as it was asked; what it heeds."""

from __future__ import annotations

import json
import socket
import struct
from collections.abc import Iterator

import pytest
from encrypted_cluster import PATIENT_S, STRICT, listen, meet, plaintext, use
from forged import by_device, checksum, datagram, hearing, senders
from kube_cluster import FAMILIES, KubeCluster, node_ips
from probes import ping, tcp, udp

PORT, NODE_PORT = 80, 30081
KINDS = {"tcp": tcp, "udp": udp}


@pytest.fixture(scope="module")
def cluster(backends: str, tmp_path_factory: pytest.TempPathFactory) -> Iterator[KubeCluster]:
    """A service that has nobody."""
    flags = (*STRICT, "--service-cidrs", "10.96.0.0/16,fd00:10:96::/112")
    with KubeCluster(tmp_path_factory.mktemp("kube"), "n1", "n2", flags=flags) as cluster:
        use(cluster, backends)
        cluster.start()
        cluster.add("n1/shop/client", app="client")
        cluster.add("n2/shop/web", app="web")
        ports = [
            {"name": kind, "protocol": kind.upper(), "port": PORT, "targetPort": PORT, "nodePort": NODE_PORT}
            for kind in KINDS
        ]
        addresses = ["10.96.7.8", "fd00:10:96::78"]
        spec = {
            "type": "NodePort", "selector": {"app": "nobody"}, "ports": ports, "clusterIP": addresses[0],
            "clusterIPs": addresses, "ipFamilies": ["IPv4", "IPv6"], "ipFamilyPolicy": "RequireDualStack",
        }  # fmt: skip
        cluster.apply(
            {"apiVersion": "v1", "kind": "Service", "metadata": {"name": "none", "namespace": "shop"}, "spec": spec}
        )
        meet(cluster)
        yield cluster


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize("kind", KINDS)
def test_a_node_port_that_has_nobody(cluster: KubeCluster, kind: str, family: str) -> None:
    """An RST, or an ICMP error that quotes the packet."""
    client = cluster.pods["n1/shop/client"]
    with listen(cluster) as seen:
        for number in (1, 2):
            assert KINDS[kind](client.netns, node_ips(number)[family], NODE_PORT, PATIENT_S).result == "refused", number
    assert seen.seen() == []
    assert plaintext(cluster) == 0


@pytest.mark.parametrize("family", FAMILIES)
def test_a_packet_that_is_too_big(cluster: KubeCluster, family: str) -> None:
    """For the pod's link here: the node says so to its sender, and quotes it."""
    client, web = cluster.pods["n1/shop/client"], cluster.pods["n2/shop/web"]
    links = [name for name in cluster.agents["n2"].links() if name]
    assert len(links) == 1
    mtu = 1280
    cluster.nodes["n2"].ip(f"link set {links[0]} mtu {mtu}")
    words = b"a secret. " * 136
    assert len(words) > mtu
    with listen(cluster) as seen:
        before = seen.encrypted
        by_device(cluster, "n1", datagram(client.ip(family), web.ip(family), PORT, words))
        told = client.netns.run("ping", "-c", "1", "-W", "5", "-M", "do", "-s", "1340", web.ip(family), check=False)
        assert "mtu" in (told.stdout + told.stderr).lower(), told
    assert seen.seen() == []
    assert seen.encrypted > before


def neighbours(cluster: KubeCluster, node: str, address: str) -> str:
    (found,) = json.loads(cluster.nodes[node].run("ip", "-j", "neigh", "show", address).stdout)
    return str(found["lladdr"])


def test_neighbours_are_on_the_link_alone(cluster: KubeCluster) -> None:
    """Nobody says through the tunnel which machine has an address: RFC 4861 asks for a hop limit anybody can set."""
    one, two = (node_ips(number)["v6"] for number in (1, 2))
    assert ping(cluster.nodes["n2"], one, PATIENT_S)
    before = neighbours(cluster, "n2", one)
    ends = socket.inet_pton(socket.AF_INET6, one) + socket.inet_pton(socket.AF_INET6, two)
    target = socket.inet_pton(socket.AF_INET6, one)
    body = struct.pack("!BBHI", 136, 0, 0, 0x20000000) + target + b"\2\1" + b"\2\0\0\0\6\6"
    pseudo = ends + struct.pack("!II", len(body), socket.IPPROTO_ICMPV6)
    body = body[:2] + struct.pack("!H", checksum(pseudo + body)) + body[4:]
    packet = struct.pack("!IHBB", 6 << 28, len(body), socket.IPPROTO_ICMPV6, 255) + ends + body
    with hearing(cluster.pods["n2/shop/web"], "v6", PORT + 1) as heard:
        own, web = cluster.pods["n1/shop/client"].ip("v6"), cluster.pods["n2/shop/web"].ip("v6")
        by_device(cluster, "n1", *[packet] * 3, datagram(own, web, PORT + 1))
        assert senders(heard) == [own], "all of it has come"
    assert neighbours(cluster, "n2", one) == before

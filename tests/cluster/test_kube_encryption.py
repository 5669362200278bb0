"""WireGuard between the nodes of a cluster: nothing of pods in plain text on the link between them."""

from __future__ import annotations

import json
import socket
import threading
from collections.abc import Iterator
from functools import partial
from typing import Any

import pytest
import rig
from agents import START_S
from kube_cluster import FAMILIES, KubeAgent, KubeCluster, node_ips
from probes import Connection, Server, ping, tcp, udp

PORT = 8080
WIREGUARD = 51871


class Wire:
    """Listens to all that goes over the link of n1, until closed. `plain`: packets that are neither WireGuard's, nor
    between the node and the API server, nor ARP or neighbour discovery.

    On the link's far side: on the node's own device decrypted packets are seen as they come in.
    """

    def __init__(self, cluster: KubeCluster) -> None:
        self.plain: list[str] = []
        self.encrypted = 0
        self._api_port = cluster.api.port
        self._socket = cluster.network.call(socket.socket, socket.AF_PACKET, socket.SOCK_RAW, socket.htons(3))
        self._socket.bind(("p-n1", 3))
        self._socket.settimeout(0.2)
        self._over = threading.Event()
        self._thread = threading.Thread(target=self._listen)
        self._thread.start()

    def __enter__(self) -> Wire:
        return self

    def __exit__(self, *_: object) -> None:
        self._over.set()
        self._thread.join()
        self._socket.close()

    def _listen(self) -> None:
        while not self._over.is_set():
            try:
                frame = self._socket.recv(65535)
            except TimeoutError:
                continue
            kind = self._kind(frame)
            if kind == "encrypted":
                self.encrypted += 1
            elif kind:
                self.plain.append(kind)

    def _kind(self, frame: bytes) -> str:
        ethertype, ip = int.from_bytes(frame[12:14], "big"), frame[14:]
        if ethertype == 0x0806:
            return ""
        if ethertype == 0x0800:
            header, protocol = (ip[0] & 15) * 4, ip[9]
            ends = f"{socket.inet_ntoa(ip[12:16])} > {socket.inet_ntoa(ip[16:20])}"
        else:
            header, protocol = 40, ip[6]
            ends = f"{socket.inet_ntop(socket.AF_INET6, ip[8:24])} > {socket.inet_ntop(socket.AF_INET6, ip[24:40])}"
            if protocol == socket.IPPROTO_ICMPV6 and ip[40] in range(133, 138):
                return ""
            if protocol == 0:  # hop-by-hop: multicast listeners
                return ""
        ports = {int.from_bytes(ip[header + at : header + at + 2], "big") for at in (0, 2)}
        if protocol == socket.IPPROTO_UDP and WIREGUARD in ports:
            return "encrypted"
        if protocol == socket.IPPROTO_TCP and self._api_port in ports:
            return ""
        return f"{ends} protocol {protocol} ports {ports}"


@pytest.fixture(scope="module", params=["native", "vxlan"])
def cluster(
    datapath_host: None, tmp_path_factory: pytest.TempPathFactory, request: pytest.FixtureRequest
) -> Iterator[KubeCluster]:
    flags = ("--encryption", "wireguard", "--strict-encryption", "--routing", request.param, "--mtu", "0")
    with KubeCluster(tmp_path_factory.mktemp("kube"), "n1", "n2", flags=flags) as cluster:
        cluster.start()
        yield cluster


@pytest.mark.parametrize("family", FAMILIES)
def test_nothing_in_plain_text(cluster: KubeCluster, family: str) -> None:
    with Wire(cluster) as wire:
        web = cluster.add(f"n2/shop/web-{family}", app="web")
        client = cluster.add(f"n1/shop/client-{family}", app="client")
        with Server(web.netns, "tcp", PORT, "web"), Server(web.netns, "udp", PORT, "web"):
            for probe in (tcp, udp):
                found = rig.wait_until(partial(probe, client.netns, web.ip(family), PORT), START_S, "it is answered")
                assert found.seen_from == client.ip(family)
        for size in (8, 1200, 4000):
            assert ping(client.netns, web.ip(family), size=size)
    assert wire.encrypted
    assert wire.plain == []
    for agent in cluster.agents.values():
        rig.wait_until(partial(has_shaken_hands, agent), START_S, "the handshake is seen")
        assert status(agent)["plaintext_packets"] == 0


def status(agent: KubeAgent) -> dict[str, Any]:
    return dict(json.loads(agent.cli("encryption", "status", "-o", "json").stdout))


def has_shaken_hands(agent: KubeAgent) -> bool:
    return all(peer["ready"] and peer["last_handshake_s"] is not None for peer in status(agent)["peers"])


def test_a_change_of_key_breaks_no_connection(cluster: KubeCluster) -> None:
    web, client = cluster.add("n2/shop/web", app="web"), cluster.add("n1/shop/client", app="client")
    before = status(cluster.agents["n1"])["public_key"]
    with Server(web.netns, "tcp", PORT, "web"), Wire(cluster) as wire:
        with Connection(client.netns, socket.SOCK_STREAM, web.ip(), PORT) as connection:
            assert connection.exchange()
            cluster.agents["n1"].cli("encryption", "rotate", check=True)
            assert connection.exchange()
        after = status(cluster.agents["n1"])["public_key"]
        assert after != before
    assert wire.plain == []


def test_the_agents_are_killed_and_come_back(cluster: KubeCluster) -> None:
    web, client = cluster.add("n2/shop/web-2", app="web"), cluster.add("n1/shop/client-2", app="client")
    with Server(web.netns, "tcp", PORT, "web"), Wire(cluster) as wire:
        assert tcp(client.netns, web.ip(), PORT)
        for agent in cluster.agents.values():
            agent.kill()
        assert tcp(client.netns, web.ip(), PORT)
        for agent in cluster.agents.values():
            agent.start()
            assert tcp(client.netns, web.ip(), PORT)
    assert wire.plain == []
    assert node_ips(1)["v4"] in str(cluster.agents["n2"].cli("encryption", "status").stdout)

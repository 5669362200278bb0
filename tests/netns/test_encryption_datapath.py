"""Real packets between two nodes through WireGuard: what the datapath steers to it, and what it does with what comes.

The devices are made and configured by hand. No agent runs: what is pinned and attached does all of it.
"""

from __future__ import annotations

import hashlib
import itertools
import os
import socket
import threading
from collections.abc import Iterator
from contextlib import ExitStack

import probes
import pytest
import rig
from agents import Document
from north_south import CLIENT_IPS, FAMILIES, NODE_IPS, NODES, PROTOCOLS, TARGET, NorthSouth, pod, pod_ip, routed_ip
from patience import SLOWER
from probes import Answer, Connection
from steered_nodes import Encrypted, Wire
from wireguard_backends import CLUSTERS, need_all

ANSWERED_S, SILENT_S = probes.TIMEOUT_S, 0.5 * SLOWER
BULK = int((4 << 20) / SLOWER)
FORWARDING = ("snat", "dsr")
NODE_PORT = 31_000
PROBES = {"TCP": probes.tcp, "UDP": probes.udp}


def service(forwarding: str, node: str) -> Document:
    """Served by the pod of one node. Its load balancer's addresses are routed to the other."""
    number = 2 * FORWARDING.index(forwarding) + NODES.index(node)
    (entry,) = set(NODES) - {node}
    ports = [
        {
            "name": protocol.lower(), "protocol": protocol, "port": 80, "targetPort": TARGET,
            "nodePort": NODE_PORT + 2 * number + PROTOCOLS.index(protocol),
        }
        for protocol in PROTOCOLS
    ]  # fmt: skip
    return {
        "apiVersion": "v1",
        "kind": "Service",
        "metadata": {
            "name": f"{forwarding}-{node}", "namespace": "shop", "annotations": {"gatehouse.io/forwarding": forwarding}
        },
        "spec": {"type": "LoadBalancer", "selector": {"on": node}, "ports": ports},
        "status": {
            "loadBalancer": {"ingress": [{"ip": routed_ip(entry, 40 + number, f), "ipMode": "VIP"} for f in FAMILIES]}
        },
    }  # fmt: skip


def node_port(forwarding: str, node: str, protocol: str) -> int:
    return NODE_PORT + 2 * (2 * FORWARDING.index(forwarding) + NODES.index(node)) + PROTOCOLS.index(protocol)


@pytest.fixture(scope="module")
def cluster(datapath_host: None, tmp_path_factory: pytest.TempPathFactory) -> Iterator[NorthSouth]:
    with NorthSouth(tmp_path_factory.mktemp("encrypted")) as cluster:
        pods = [pod(f"shop/{node}", node, 10, on=node) for node in NODES]
        cluster.write("all.yaml", *pods, *itertools.starmap(service, itertools.product(FORWARDING, NODES)))
        cluster.run()
        with cluster.served(*(f"{node}/shop/{node}" for node in NODES)):
            for agent in cluster.agents.values():
                agent.kill()
            yield cluster


@pytest.fixture(params=CLUSTERS)
def backends(request: pytest.FixtureRequest, datapath_host: None) -> str:
    need_all(request.param)
    return str(request.param)


@pytest.fixture(params=FAMILIES)
def encrypted(request: pytest.FixtureRequest, backends: str, cluster: NorthSouth) -> Iterator[Encrypted]:
    """Devices that know each other, by an underlay of either family; nothing is steered yet."""
    with Encrypted(cluster, backends, request.param) as encrypted:
        encrypted.make()
        yield encrypted


def netns(cluster: NorthSouth, node: str) -> rig.Netns:
    return cluster.netns(node, f"shop/{node}")


def asked(cluster: NorthSouth, client: str, family: str, protocol: str, timeout_s: float = ANSWERED_S) -> Answer:
    """The pod of one node asks that of the other."""
    (other,) = set(NODES) - {client}
    return PROBES[protocol](netns(cluster, client), pod_ip(other, 10, family), TARGET, timeout_s)


def everything(cluster: NorthSouth) -> None:
    """Pods ask each other by all ways; all is answered, and everybody sees the other's own address."""
    for client, family in itertools.product(NODES, FAMILIES):
        (other,) = set(NODES) - {client}
        for protocol in PROTOCOLS:
            answer = asked(cluster, client, family, protocol)
            assert (answer.label, answer.seen_from) == (other, pod_ip(client, 10, family)), (client, family, protocol)
        assert probes.ping(netns(cluster, client), pod_ip(other, 10, family), ANSWERED_S)


def test_the_wire_shows_what_is_not_encrypted(cluster: NorthSouth) -> None:
    """Or all that follows would say nothing."""
    with Encrypted(cluster) as off, Wire(cluster.network) as wire:
        everything(cluster)
        found = "".join(wire.seen())
        assert all(pod_ip(node, 10, family) in found for node in NODES for family in FAMILIES)
        assert off.plaintext() == 0, "nothing was to be encrypted"


def test_pods(cluster: NorthSouth, encrypted: Encrypted) -> None:
    before = encrypted.plaintext()
    encrypted.turn_on("ENCRYPT STRICT")
    with Wire(cluster.network) as wire:
        everything(cluster)
        assert wire.seen() == []
        assert wire.encrypted > 20
    assert encrypted.plaintext() == before


def send(netns: rig.Netns, address: str, port: int, data: bytes) -> bytes:
    """By TCP; the answer to it, to its end."""
    family = socket.AF_INET6 if ":" in address else socket.AF_INET
    with netns.call(socket.socket, family, socket.SOCK_STREAM) as sock:
        sock.settimeout(ANSWERED_S)
        sock.connect((address, port))
        sock.sendall(data)
        sock.shutdown(socket.SHUT_WR)
        return b"".join(iter(lambda: sock.recv(1 << 16), b""))


def echoes(netns: rig.Netns, address: str) -> tuple[int, threading.Thread]:
    """A server of one connection, which sends back all it gets; its port."""
    family = socket.AF_INET6 if ":" in address else socket.AF_INET
    listening = netns.call(socket.socket, family, socket.SOCK_STREAM)
    listening.settimeout(ANSWERED_S)
    listening.bind((address, 0))
    listening.listen()

    def serve() -> None:
        with listening, listening.accept()[0] as sock:
            sock.settimeout(ANSWERED_S)
            data = b"".join(iter(lambda: sock.recv(1 << 16), b""))
            sock.sendall(data)

    thread = threading.Thread(target=serve, daemon=True)
    thread.start()
    return listening.getsockname()[1], thread


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize("mtu", [1500, 1408], ids=["larger than fits", "fits"])
def test_much_data(cluster: NorthSouth, encrypted: Encrypted, family: str, mtu: int) -> None:
    """In segments that stand for many packets, with checksums left to a device: not a byte is otherwise."""
    encrypted.turn_on("ENCRYPT STRICT")
    for node in NODES:
        netns(cluster, node).ip(f"link set eth0 mtu {mtu}")
    with Wire(cluster.network) as wire:
        port, thread = echoes(netns(cluster, "n2"), pod_ip("n2", 10, family))
        data = os.urandom(BULK)
        answer = send(netns(cluster, "n1"), pod_ip("n2", 10, family), port, data)
        thread.join()
        assert hashlib.sha256(answer).digest() == hashlib.sha256(data).digest()
        assert wire.seen() == []


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize("size", [1400, 1500, 4000, 20000])
def test_large_packets_and_fragments(cluster: NorthSouth, encrypted: Encrypted, family: str, size: int) -> None:
    encrypted.turn_on("ENCRYPT STRICT")
    with Wire(cluster.network) as wire:
        for client, other in (NODES, NODES[::-1]):
            assert probes.ping(netns(cluster, client), pod_ip(other, 10, family), ANSWERED_S, size)
        assert wire.seen() == []


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize("forwarding", FORWARDING)
def test_services_to_clients_outside(cluster: NorthSouth, encrypted: Encrypted, family: str, forwarding: str) -> None:
    """Between the nodes by SNAT, whatever the service says."""
    encrypted.turn_on("ENCRYPT STRICT")
    with Wire(cluster.network) as wire:
        for entry, backend in (NODES, NODES[::-1]):
            number = 2 * FORWARDING.index(forwarding) + NODES.index(backend)
            for protocol in PROTOCOLS:
                for address, port in (
                    (NODE_IPS[entry][family], node_port(forwarding, backend, protocol)),
                    (routed_ip(entry, 40 + number, family), 80),
                ):
                    answer = PROBES[protocol](cluster.outside, address, port, ANSWERED_S)
                    assert (answer.label, answer.seen_from) == (backend, NODE_IPS[entry][family]), (address, protocol)
        assert wire.seen() == []
        assert wire.encrypted


@pytest.mark.parametrize("family", FAMILIES)
def test_services_to_pods(cluster: NorthSouth, encrypted: Encrypted, family: str) -> None:
    """By any node's node port, with the backend on either node; there and back nothing is in plaintext."""
    encrypted.turn_on("ENCRYPT STRICT")
    with Wire(cluster.network) as wire:
        for client, entry, backend, protocol in itertools.product(NODES, NODES, NODES, PROTOCOLS):
            port = node_port("snat", backend, protocol)
            answer = PROBES[protocol](netns(cluster, client), NODE_IPS[entry][family], port, ANSWERED_S)
            assert answer.label == backend, (client, entry, backend, protocol)
        assert wire.seen() == []


@pytest.mark.parametrize("family", FAMILIES)
def test_nodes_and_pods(cluster: NorthSouth, encrypted: Encrypted, family: str) -> None:
    """In plaintext, but where the setting says otherwise: then both ways."""
    for features, clean in (("ENCRYPT STRICT", False), ("ENCRYPT STRICT NODE_ENCRYPTION", True)):
        encrypted.turn_on(features)
        with Wire(cluster.network) as wire:
            for node, other in (NODES, NODES[::-1]):
                answer = probes.tcp(cluster.nodes[node], pod_ip(other, 10, family), TARGET, ANSWERED_S)
                assert (answer.label, answer.seen_from) == (other, NODE_IPS[node][family])
            assert (wire.seen() == []) is clean


@pytest.mark.parametrize("family", FAMILIES)
def test_who_asks_encrypted_is_answered_so(cluster: NorthSouth, encrypted: Encrypted, family: str) -> None:
    """A node whose own traffic is encrypted asks the pod of one that does not do so by itself."""
    encrypted.set("n1", "ENCRYPT NODE_ENCRYPTION")
    encrypted.set("n2", "ENCRYPT")
    with Wire(cluster.network) as wire:
        assert probes.tcp(cluster.nodes["n1"], pod_ip("n2", 10, family), TARGET, ANSWERED_S).label == "n2"
        assert wire.seen() == []


@pytest.mark.parametrize("family", FAMILIES)
def test_strict_without_a_device(cluster: NorthSouth, encrypted: Encrypted, family: str) -> None:
    """Its program is killed: nothing passes, nothing is shown. With it passes again what came before."""
    encrypted.turn_on("ENCRYPT STRICT")
    assert asked(cluster, "n1", family, "UDP")
    for device in encrypted.devices.values():
        device.remove()
    with Wire(cluster.network) as wire:
        for protocol in PROTOCOLS:
            assert asked(cluster, "n1", family, protocol, SILENT_S).result == "timeout"
        assert wire.seen() == []
    encrypted.make()
    everything(cluster)


@pytest.mark.parametrize("family", FAMILIES)
def test_strict_before_a_peer_is_ready(cluster: NorthSouth, encrypted: Encrypted, family: str) -> None:
    encrypted.turn_on("ENCRYPT STRICT", ready=False)
    dropped = encrypted.dropped()
    with Wire(cluster.network) as wire:
        for protocol in PROTOCOLS:
            assert asked(cluster, "n1", family, protocol, SILENT_S).result == "timeout"
        assert wire.seen() == []
    assert encrypted.dropped() >= dropped + 2


@pytest.mark.parametrize("family", FAMILIES)
def test_one_end_alone_is_strict(cluster: NorthSouth, encrypted: Encrypted, family: str) -> None:
    """What comes in plaintext is refused; without strict mode it is counted."""
    encrypted.set("n2", "ENCRYPT STRICT")
    assert asked(cluster, "n1", family, "UDP", SILENT_S).result == "timeout"
    encrypted.set("n2", "ENCRYPT")
    before = encrypted.plaintext()
    assert asked(cluster, "n1", family, "UDP")
    assert encrypted.plaintext() == before + 1, "the question; the answer went encrypted"


def test_a_block_of_nobody(cluster: NorthSouth, encrypted: Encrypted) -> None:
    """Pods that nobody knows yet: their packets stay here."""
    encrypted.turn_on("ENCRYPT STRICT")
    node = cluster.nodes["n1"]
    node.ip(f"route add 10.244.77.0/24 via {CLIENT_IPS['v4']}")
    try:
        dropped = encrypted.dropped()
        with Wire(cluster.network) as wire:
            assert probes.udp(netns(cluster, "n1"), "10.244.77.7", TARGET, SILENT_S).result == "timeout"
            assert wire.seen() == []
        assert encrypted.dropped() == dropped + 1
    finally:
        node.ip("route delete 10.244.77.0/24")


def test_a_pod_that_is_gone(cluster: NorthSouth, encrypted: Encrypted) -> None:
    """What is still sent to it does not leave its node again by the default route."""
    encrypted.turn_on()
    node = cluster.nodes["n2"]
    node.ip(f"route add default via {CLIENT_IPS['v4']}")
    try:
        with Wire(cluster.network) as wire:
            for client in NODES:
                there = pod_ip("n2", 99, "v4")
                assert probes.udp(netns(cluster, client), there, TARGET, SILENT_S).result != "ok"
            assert wire.seen() == []
    finally:
        node.ip("route delete default")


@pytest.mark.parametrize("family", FAMILIES)
def test_on_and_off_under_connections_that_live(cluster: NorthSouth, encrypted: Encrypted, family: str) -> None:
    with ExitStack() as stack:
        held = [
            stack.enter_context(Connection(netns(cluster, one), kind, pod_ip(other, 10, family), TARGET))
            for one, other in (NODES, NODES[::-1])
            for kind in (socket.SOCK_STREAM, socket.SOCK_DGRAM)
        ]
        for _ in range(2):
            assert all(one.exchange(ANSWERED_S) for one in held)
            for name in NODES:
                encrypted.set(name, "ENCRYPT")
                assert all(one.exchange(ANSWERED_S) for one in held), "one end is ahead of the other"
            with Wire(cluster.network) as wire:
                assert all(one.exchange(ANSWERED_S) for one in held)
                assert wire.seen() == []
            for name in NODES:
                encrypted.set(name, "")
                assert all(one.exchange(ANSWERED_S) for one in held)


def test_the_stock_tool_shows_the_sessions(cluster: NorthSouth, encrypted: Encrypted) -> None:
    encrypted.turn_on()
    everything(cluster)
    for name, device in encrypted.devices.items():
        (line,) = cluster.nodes[name].run("wg", "show", device.name, "transfer").stdout.splitlines()
        assert all(int(word) > 1000 for word in line.split()[1:])

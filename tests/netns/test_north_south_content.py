"""What goes through a node to a backend on another one arrives whole, whatever its size; which backend that is does not
depend on the node."""

from __future__ import annotations

import errno
import hashlib
import itertools
import socket
import threading
import time
from collections.abc import Iterator
from contextlib import ExitStack, closing, contextmanager
from typing import Any

import probes
import pytest
import rig
from agents import Document
from north_south import CLIENT_IPS, FAMILIES, NODE_IPS, NorthSouth, pod, routed_ip

FORWARDINGS = ("snat", "dsr")
BULK_BYTES = 3_000_000
DATAGRAM_SIZES = (1, 1200, 1432, 1452, 1472, 4000, 20000)
"""Around the MTU of 1500 with and without what DSR adds, and beyond: those go in fragments."""
ECHOED_S = 30.0
"""A datagram that is too big is answered by an ICMP error, and the next one goes in fragments."""
BULK, ECHO = 8081, 8082
BACKENDS = 4
FAMILY = {"v4": socket.AF_INET, "v6": socket.AF_INET6}


def service(number: int, name: str, selector: dict[str, str], **annotations: str) -> Document:
    """Its load balancer addresses are routed to either node."""
    ports = [
        {"name": "bulk", "port": BULK, "targetPort": BULK},
        {"name": "echo", "port": ECHO, "targetPort": ECHO, "protocol": "UDP"},
        {"name": "who", "port": 80, "targetPort": 8080, "protocol": "UDP"},
    ]
    ingress = [{"ip": routed_ip(node, number, family)} for node in NODE_IPS for family in FAMILIES]
    notes = {f"gatehouse.io/{key}": value for key, value in annotations.items()}
    return {
        "apiVersion": "v1",
        "kind": "Service",
        "metadata": {"name": name, "namespace": "shop", "annotations": notes},
        "spec": {"type": "LoadBalancer", "selector": selector, "ports": ports},
        "status": {"loadBalancer": {"ingress": ingress}},
    }


SERVICES = {name: number for number, name in enumerate((*FORWARDINGS, "maglev"), 200)}
"""Their load balancer addresses by number: test_north_south has those below."""


@pytest.fixture(scope="module")
def cluster(north_south: NorthSouth) -> Iterator[NorthSouth]:
    cluster = north_south
    with ExitStack() as stack:
        backends = [(f"b{number}", ("n1", "n2")[number % 2]) for number in range(BACKENDS)]
        pods = [pod(f"shop/{name}", node, 40 + i, app="many") for i, (name, node) in enumerate(backends)]
        documents = [service(SERVICES[f], f, {"app": "far"}, forwarding=f) for f in FORWARDINGS]
        documents.append(service(SERVICES["maglev"], "maglev", {"app": "many"}, algorithm="maglev"))
        cluster.write("content.yaml", pod("shop/far", "n2", 30, app="far"), *pods, *documents)
        cluster.run("--xdp", "off")
        far = cluster.netns("n2", "shop/far")
        stack.enter_context(bulk_server(far))
        stack.enter_context(echo_server(far))
        stack.enter_context(cluster.served(*(f"{node}/shop/{name}" for name, node in backends)))
        yield cluster


@contextmanager
def serving(sock: socket.socket, serve: Any) -> Iterator[None]:
    """`serve(sock)` again and again in a thread, until the socket is closed."""
    over = threading.Event()

    def run() -> None:
        while not over.is_set():
            try:
                serve(sock)
            except TimeoutError:
                continue

    sock.settimeout(0.1)
    thread = threading.Thread(target=run, daemon=True)
    thread.start()
    with closing(sock):
        yield
        over.set()
        thread.join()


def bulk_server(netns: rig.Netns) -> Any:
    """Answers each connection with the digest of all it was sent, and as much again."""

    def serve(listener: socket.socket) -> None:
        with listener.accept()[0] as made:
            made.settimeout(60)
            digest = hashlib.sha256()
            while data := made.recv(1 << 16):
                digest.update(data)
            made.sendall(digest.digest() + bytes(BULK_BYTES))

    return serving(netns.call(socket.create_server, ("::", BULK), family=socket.AF_INET6, dualstack_ipv6=True), serve)


def echo_server(netns: rig.Netns) -> Any:
    """Sends datagrams back."""
    made = netns.call(socket.socket, socket.AF_INET6, socket.SOCK_DGRAM)
    made.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY, 0)
    made.bind(("::", ECHO))

    def serve(sock: socket.socket) -> None:
        data, peer = sock.recvfrom(1 << 16)
        sock.sendto(data, peer)

    return serving(made, serve)


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize("forwarding", FORWARDINGS)
def test_streams(cluster: NorthSouth, forwarding: str, family: str) -> None:
    sent = bytes(range(256)) * (BULK_BYTES // 256)
    address = routed_ip("n1", SERVICES[forwarding], family)
    with cluster.outside.call(socket.create_connection, (address, BULK), 60) as made:
        made.sendall(sent)
        made.shutdown(socket.SHUT_WR)
        answer = b"".join(iter(lambda: made.recv(1 << 16), b""))
    assert answer[:32] == hashlib.sha256(sent).digest()
    assert len(answer) == 32 + BULK_BYTES


@pytest.mark.parametrize("size", DATAGRAM_SIZES)
@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize("forwarding", FORWARDINGS)
def test_datagrams(cluster: NorthSouth, forwarding: str, family: str, size: int) -> None:
    sent = bytes(number % 251 for number in range(size))
    with cluster.outside.call(socket.socket, FAMILY[family], socket.SOCK_DGRAM) as made:
        made.connect((routed_ip("n1", SERVICES[forwarding], family), ECHO))
        made.settimeout(1.0)
        assert echoed(made, sent) == sent


def echoed(made: socket.socket, sent: bytes) -> bytes:
    """Asked for again and again: what is larger than the path takes is lost at first."""
    deadline = time.monotonic() + ECHOED_S
    while time.monotonic() < deadline:
        try:
            made.send(sent)
            return made.recv(1 << 16)
        except TimeoutError:
            continue
        except OSError as error:  # the path's MTU is smaller than it was thought to be
            if error.errno != errno.EMSGSIZE:
                raise
    return b""


def test_by_maglev_both_nodes_choose_the_same_backend(cluster: NorthSouth) -> None:
    served: dict[str, list[tuple[str, str]]] = {}
    for family, port in itertools.product(FAMILIES, range(20_000, 20_040)):
        labels = []
        for node in NODE_IPS:
            # Every flow is asked for once at each node: to the same address, by way of another node.
            address = routed_ip("n1", SERVICES["maglev"], family)
            cluster.outside.ip(f"route replace {address} via {NODE_IPS[node][family]}")
            answer = probes.udp(cluster.outside, address, 80, source=(CLIENT_IPS[family], port))
            assert answer, (family, port, node)
            labels.append(answer.label)
        served.setdefault(family, []).append((labels[0], labels[1]))
    for family, pairs in served.items():
        assert all(one == other for one, other in pairs), pairs
        assert len({one for one, _ in pairs}) == BACKENDS, family

"""What belongs to a flow without being of its protocol, and packets in pieces: ICMP errors, path MTU, fragments."""

from __future__ import annotations

import errno
import socket
import struct
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager

import probes
import pytest
import rig
from agents import Document
from traffic import ANSWERED_S, DROPPED_S, FAMILIES, Cluster, named, objects, pods

FILE = "packets.yaml"
ECHO, CLOSED = 5353, 5354
LARGE = 5000
NARROW_MTU = 1300
# linux/in.h, linux/in6.h, linux/errqueue.h; the socket module has them for neither family.
IP_MTU_DISCOVER, IP_MTU, IPV6_MTU_DISCOVER, IPV6_MTU, PMTUDISC_DO, PMTUDISC_WANT = 10, 14, 23, 24, 2, 1
IP_RECVERR, IPV6_RECVERR, MSG_ERRQUEUE = 11, 25, 0x2000
ISOLATED = """
mail/server:
  podSelector: {matchLabels: {app: server}}
  policyTypes: [Ingress, Egress]
  ingress:
  - from:
    - podSelector: {matchLabels: {app: client}}
    - ipBlock: {cidr: 192.0.2.2/32}
    - ipBlock: {cidr: "2001:db8:0:1::2/128"}
    ports: [{protocol: UDP, port: 5353, endPort: 5354}]
mail/client:
  podSelector: {matchLabels: {app: client}}
  policyTypes: [Ingress, Egress]
  egress:
  - to: [{podSelector: {matchLabels: {app: server}}}]
    ports: [{protocol: UDP, port: 5353, endPort: 5354}]
  - to: [{ipBlock: {cidr: 192.0.2.2/32}}, {ipBlock: {cidr: "2001:db8:0:1::2/128"}}]
    ports: [{protocol: UDP, port: 5353, endPort: 5354}, {port: 8080}]
"""
SERVICES = """
mail/echo: {selector: {app: server}, ports: [{protocol: UDP, port: 53, targetPort: 5353}]}
mail/closed: {selector: {app: server}, ports: [{protocol: UDP, port: 53, targetPort: 5354}]}
mail/far: {ports: [{protocol: UDP, port: 53}]}
"""


def far_slices() -> list[Document]:
    return [
        {
            "apiVersion": "discovery.k8s.io/v1",
            "kind": "EndpointSlice",
            "metadata": named(f"mail/far-{kind.lower()}", {"kubernetes.io/service-name": "far"}),
            "addressType": kind,
            "ports": [{"port": ECHO, "protocol": "UDP"}],
            "endpoints": [{"addresses": [address]}],
        }
        for kind, address in (("IPv4", rig.OUTSIDE_V4), ("IPv6", rig.OUTSIDE_V6))
    ]


@pytest.fixture(scope="module")
def mail(cluster: Cluster) -> Iterator[Cluster]:
    cast = pods("""
    mail/server: {labels: {app: server}}
    mail/client: {labels: {app: client}}
    mail/other: {labels: {app: other}}
    """)
    documents = [*cast, *objects("NetworkPolicy", ISOLATED), *objects("Service", SERVICES), *far_slices()]
    with cluster.written(FILE, *documents):
        yield cluster


def datagrams(netns: rig.Netns, family: str, address: str = "", port: int = 0) -> socket.socket:
    sock = netns.call(socket.socket, socket.AF_INET6 if family == "v6" else socket.AF_INET, socket.SOCK_DGRAM)
    sock.bind((address, port))
    sock.settimeout(ANSWERED_S)
    return sock


def option(sock: socket.socket, v4: int, v6: int, value: int | None = None) -> int:
    """Set (or get) an option that has a number of its own in each family."""
    level, name = (socket.IPPROTO_IP, v4) if sock.family == socket.AF_INET else (socket.IPPROTO_IPV6, v6)
    if value is None:
        return sock.getsockopt(level, name)
    sock.setsockopt(level, name, value)
    return value


# ---- errors about flows that are allowed

ERRORS = """
    mail/client  mail/server           UDP/5354  refused   # nobody listens there
    outside      mail/server           UDP/5354  refused
    mail/client  outside               UDP/5354  refused
    mail/client  outside               TCP/8080  refused
    mail/client  service:mail/closed   UDP/53    refused   # told by the backend, translated back
    mail/other   mail/server           UDP/5354  dropped   # not allowed, so told nothing
    mail/other   service:mail/closed   UDP/53    dropped
    outside      mail/client           UDP/5354  dropped
"""


def test_a_closed_port_is_told_between_isolated_pods(mail: Cluster) -> None:
    mail.check(ERRORS)


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize("target", ["outside", "service:mail/far"])
def test_a_router_on_the_way_tells_that_time_ran_out(mail: Cluster, target: str, family: str) -> None:
    """As traceroute asks. The error quotes what the node saw, and still finds the socket that asked for the service."""
    with datagrams(mail.netns("mail/client"), family) as sock:
        sock.connect((mail.ip(target, family), 53 if "service" in target else ECHO))
        option(sock, IP_RECVERR, IPV6_RECVERR, 1)
        option(sock, socket.IP_TTL, socket.IPV6_UNICAST_HOPS, 1)
        sock.send(b"how far?")
        number, kind, offender = error_of(sock)
        assert (number, kind) == (errno.EHOSTUNREACH, 11 if family == "v4" else 3)
        assert offender == mail.ip("node", family)


def error_of(sock: socket.socket) -> tuple[int, int, str]:
    """errno, ICMP type and the router of the next error about what the socket sent (struct sock_extended_err)."""
    with pytest.raises(OSError, match="No route to host"):
        sock.recv(100)
    _, ancillary, _, _ = sock.recvmsg(1000, 1000, MSG_ERRQUEUE)
    ((_, _, data),) = (part for part in ancillary if part[1] in (IP_RECVERR, IPV6_RECVERR))
    number, _, kind = struct.unpack_from("=IBB", data)
    at, size, family = (20, 4, socket.AF_INET) if sock.family == socket.AF_INET else (24, 16, socket.AF_INET6)
    return number, kind, socket.inet_ntop(family, data[at : at + size])


# ---- the path's MTU


@contextmanager
def narrow(cluster: Cluster) -> Iterator[None]:
    """The way outside takes packets of so many bytes, as a tunnel would."""
    cluster.node.ip(f"link set {cluster.outside.link} mtu {NARROW_MTU}")
    try:
        yield
    finally:
        cluster.node.ip(f"link set {cluster.outside.link} mtu 1500")


def forget_mtu(netns: rig.Netns) -> None:
    netns.run("ip", "-4", "route", "flush", "cache")
    netns.run("ip", "-6", "route", "flush", "cache")


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize("target", ["outside", "service:mail/far"])
def test_a_pod_learns_the_mtu_of_the_path(mail: Cluster, target: str, family: str) -> None:
    client = mail.netns("mail/client")
    forget_mtu(client)
    with narrow(mail), ExitStack() as stack:
        far = stack.enter_context(datagrams(mail.outside, family, mail.ip("outside", family), ECHO))
        sock = stack.enter_context(datagrams(client, family))
        sock.connect((mail.ip(target, family), 53 if "service" in target else ECHO))
        option(sock, IP_MTU_DISCOVER, IPV6_MTU_DISCOVER, PMTUDISC_DO)
        assert option(sock, IP_MTU, IPV6_MTU) == 1500
        sock.send(bytes(1400))
        with pytest.raises(OSError, match="too long"):  # the router's answer
            sock.recv(100)
        assert option(sock, IP_MTU, IPV6_MTU) == NARROW_MTU
        with pytest.raises(OSError, match="too long"):  # the pod's own stack's
            sock.send(bytes(1400))
        option(sock, IP_MTU_DISCOVER, IPV6_MTU_DISCOVER, PMTUDISC_WANT)
        sock.send(b"L" * 1400)
        received, source = far.recvfrom(LARGE)
        assert received == b"L" * 1400
        far.sendto(b"thanks", source)
        assert sock.recv(100) == b"thanks"
    forget_mtu(client)


@pytest.mark.parametrize("family", FAMILIES)
def test_tcp_goes_on_over_a_narrow_path(mail: Cluster, family: str) -> None:
    """Full segments are under way when the path turns out to be narrow."""
    client = mail.netns("mail/client")
    forget_mtu(client)
    kind = socket.AF_INET6 if family == "v6" else socket.AF_INET
    with ExitStack() as stack:
        listener = stack.enter_context(mail.outside.call(socket.socket, kind, socket.SOCK_STREAM))
        listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        listener.bind((mail.ip("outside", family), 8080))
        listener.listen()
        listener.settimeout(ANSWERED_S)
        sock = stack.enter_context(client.call(socket.socket, kind, socket.SOCK_STREAM))
        sock.settimeout(ANSWERED_S)
        sock.connect((mail.ip("outside", family), 8080))
        far = stack.enter_context(listener.accept()[0])
        far.settimeout(ANSWERED_S)
        with narrow(mail):
            for sender, receiver in ((sock, far), (far, sock)):
                sender.sendall(bytes(50_000))
                left = 50_000
                while left:
                    left -= len(receiver.recv(left))
    forget_mtu(client)


# ---- fragments


def exchange(client: socket.socket, server: socket.socket, size: int) -> None:
    """A datagram there and back, each in several fragments."""
    message = bytes(n % 251 for n in range(size))
    client.send(message)
    received, source = server.recvfrom(65535)
    assert received == message
    server.sendto(received[::-1], source)
    assert client.recv(65535) == message[::-1]


WAYS = [
    ("mail/client", "mail/server", "mail/server", ECHO),
    ("mail/client", "service:mail/echo", "mail/server", 53),
    ("mail/client", "outside", "outside", ECHO),
    ("mail/client", "service:mail/far", "outside", 53),
    ("outside", "mail/server", "mail/server", ECHO),
    ("node", "mail/server", "mail/server", ECHO),
    ("mail/server", "mail/server", "mail/server", ECHO),
    ("mail/server", "service:mail/echo", "mail/server", 53),
]


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize(("source", "target", "served", "port"), WAYS, ids=[f"{s}_to_{t}" for s, t, _, _ in WAYS])
def test_fragments_pass_where_their_datagram_may(
    mail: Cluster, source: str, target: str, served: str, port: int, family: str
) -> None:
    with ExitStack() as stack:
        server = stack.enter_context(datagrams(mail.netns(served), family, mail.ip(served, family), ECHO))
        client = stack.enter_context(datagrams(mail.netns(source), family, mail.ip(source, family)))
        client.connect((mail.ip(target, family), port))
        for size in (10, LARGE, 60_000):
            exchange(client, server, size)


@pytest.mark.parametrize("family", FAMILIES)
def test_fragments_are_dropped_where_their_datagram_is_lesson_8(mail: Cluster, family: str) -> None:
    with ExitStack() as stack:
        server = stack.enter_context(datagrams(mail.netns("mail/server"), family, mail.ip("mail/server", family), ECHO))
        server.settimeout(DROPPED_S)
        for source in ("mail/other", "outside"):
            allowed = source == "outside"
            client = stack.enter_context(datagrams(mail.netns(source), family, mail.ip(source, family)))
            client.sendto(bytes(LARGE), (mail.ip("mail/server", family), ECHO))
            client.sendto(bytes(LARGE), (mail.ip("mail/server", family), ECHO + 2))
            if allowed:
                assert len(server.recv(65535)) == LARGE
            with pytest.raises(TimeoutError):
                server.recv(65535)


@pytest.mark.parametrize("family", FAMILIES)
def test_large_echoes_pass_by_rules_without_ports_alone_lesson_8(mail: Cluster, family: str) -> None:
    """An echo request in fragments: rules with ports say nothing of it."""
    other, client = mail.netns("mail/other"), mail.netns("mail/client")
    assert probes.ping(mail.node, mail.ip("mail/server", family), ANSWERED_S, size=LARGE)
    assert not probes.ping(client, mail.ip("mail/server", family), DROPPED_S, size=LARGE)
    assert probes.ping(other, mail.ip("outside", family), ANSWERED_S, size=LARGE)

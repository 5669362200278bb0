"""Calls of real sockets: what they reach, whom they take for their peer, which fail, and what is counted.

Frontends are named as in the packet tables; servers (socket_site.SERVERS) say where a call arrived.
"""

from __future__ import annotations

import errno
import socket
from collections.abc import Iterator
from dataclasses import dataclass

import pytest
from frames import TCP, UDP
from map_content import Frontend
from socket_site import BACKEND_PORT, SHAPES, Site, sockaddr

B = (("b", BACKEND_PORT),)
ONE = Frontend(B)
WAYS = ("tcp", "udp", "sendto")
"""connect of a stream, connect of a datagram socket, and a datagram socket that is not connected."""


@pytest.fixture
def site(loaded_site: Site) -> Iterator[Site]:
    yield loaded_site
    assert loaded_site.entries() == {"socket_frontends": 0, "socket_backends": 0}, "entries of closed sockets"


@dataclass(frozen=True)
class Row:
    """`reaches`: the server that answers, or the errno of the call. `at`: where the frontend is; `asks`: what is
    called, if not that; `named`: whom the client takes for its peer, if not what it asked for."""

    name: str
    who: str
    reaches: str
    frontend: Frontend = ONE
    at: tuple[str, int] = ("web", 80)
    asks: tuple[str, int] | None = None
    named: str = ""
    host_only: bool = False
    other_protocol: bool = False

    def __str__(self) -> str:
        return self.name.replace(" ", "-")


def loopback(*kinds: str) -> Frontend:
    return Frontend(B, kinds=("NODE_PORT", "LOOPBACK", *kinds))


NODE_PORT, LOOPBACK = ("node", 30080), ("loopback", 30080)
NONE, NO_LOCAL = Frontend(), Frontend(kinds=("CLUSTER_IP", "DROP_INSIDE"))
RANGES = Frontend(B, kinds=("LOAD_BALANCER",), ranges=[("world", 24, 64)])
RANGES_WITH_NODE = Frontend(B, kinds=("LOAD_BALANCER", "NODE_IN_RANGES"), ranges=[("world", 24, 64)])

ROWS = [
    Row("node to a service", "node", "b"),
    Row("pod to a service", "pod", "b"),
    Row("stranger to a service", "stranger", "web"),
    Row("pod where only the node is to", "pod", "web", host_only=True),
    Row("node where only the node is to", "node", "b", host_only=True),
    Row("the pool of those inside", "pod", "b", Frontend(B, outside=[("c", BACKEND_PORT)])),
    Row("node to its node port", "node", "b", Frontend(B, kinds=("NODE_PORT",)), NODE_PORT),
    Row("pod to a node port", "pod", "b", Frontend(B, kinds=("NODE_PORT",)), NODE_PORT),
    Row("node to a node port at loopback", "node", "b", loopback(), LOOPBACK),
    Row("node to a node port at no address", "node", "b", loopback(), LOOPBACK, ("none", 30080), "loopback"),
    Row("pod to what is at the node's loopback", "pod", "loopback", loopback(), LOOPBACK),
    Row("node to loopback of a service without", "node", "loopback", at=NODE_PORT, asks=LOOPBACK),
    Row("pod is its own backend", "pod", "a", Frontend([("a", BACKEND_PORT)])),
    Row("node, no backend", "node", "ECONNREFUSED", NONE),
    Row("pod, no backend", "pod", "ECONNREFUSED", NONE),
    Row("stranger, no backend", "stranger", "web", NONE),
    Row("node, no local backend", "node", "EHOSTUNREACH", NO_LOCAL),
    Row("pod, no local backend", "pod", "web", NO_LOCAL),
    Row("node not in the source ranges", "node", "EHOSTUNREACH", RANGES),
    Row("node in the source ranges", "node", "b", RANGES_WITH_NODE),
    Row("pod to source ranges", "pod", "web", RANGES_WITH_NODE),
    Row("another port", "node", "web", at=("web", 81), asks=("web", 80)),
    Row("another protocol", "pod", "web", other_protocol=True),
    Row("Maglev", "pod", "b", Frontend([("c", BACKEND_PORT), *B], table=[1, 1, 1])),
    Row("Maglev with affinity", "pod", "b", Frontend([("c", BACKEND_PORT), *B], table=[1, 1, 1], affinity_s=60)),
]


def call(client: socket.socket, way: str, to: tuple[str, int]) -> tuple[str, tuple[str, int]]:
    """One exchange: who answered, and whom the client takes for its peer."""
    if way == "sendto":
        client.sendto(b"?", to)
        answer, peer = client.recvfrom(100)
        return answer.split()[0].decode(), peer[:2]
    client.connect(to)
    client.send(b"?")
    answer, source = client.recvfrom(100)
    peer = client.getpeername()
    assert way == "tcp" or source == peer
    return answer.split()[0].decode(), peer[:2]


@pytest.mark.parametrize("way", WAYS)
@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("row", ROWS, ids=str)
def test_calls(site: Site, row: Row, shape: str, way: str) -> None:
    site.reset(SHAPES[shape][1])
    if row.host_only:
        site.config(features=0)
    protocol = TCP if (way == "tcp") != row.other_protocol else UDP
    site.frontend(*row.at, row.frontend, protocol)
    asked = row.asks or row.at
    with site.party(row.who).socket(shape, "tcp" if way == "tcp" else "udp") as client:
        if row.reaches.startswith("E"):
            with pytest.raises(OSError) as failure:
                call(client, way, sockaddr(*asked, shape))
            assert failure.value.errno == getattr(errno, row.reaches)
        else:
            named = sockaddr(row.named or asked[0], asked[1], shape)
            assert call(client, way, sockaddr(*asked, shape)) == (row.reaches, named)


@pytest.mark.parametrize(
    ("who", "frontend", "reason"),
    [
        ("node", NONE, "DROP_NO_BACKEND"),
        ("pod", NONE, "DROP_NO_BACKEND"),
        ("node", NO_LOCAL, "DROP_NO_LOCAL_BACKEND"),
        ("node", RANGES, "DROP_SOURCE_RANGE"),
    ],
)
@pytest.mark.parametrize("shape", SHAPES)
def test_what_fails_is_counted_and_told_of(site: Site, who: str, frontend: Frontend, reason: str, shape: str) -> None:
    site.reset(SHAPES[shape][1])
    site.frontend("web", 80, frontend)
    number = site.abi.constants[reason]
    before = site.maps["drops"].sums()
    with site.party(who).socket(shape, "tcp") as client, pytest.raises(OSError):
        client.connect(sockaddr("web", 80, shape))
    after = site.maps["drops"].sums()
    assert [new - old for new, old in zip(after, before, strict=True)] == [int(n == number) for n in range(len(after))]
    (event,) = site.abi.records["event"].records(b"".join(site.ring.drain(1 << 30)))
    assert (event.hook, event.reason, event.protocol) == (site.abi.constants.HOOK_SOCKET, number, TCP)
    assert (event.source, event.destination) == (site.address("node" if who == "node" else "a"), site.address("web"))
    assert (event.service, event.service_port_be) == (event.destination, event.destination_port_be)
    assert event.source_identity == (site.abi.constants.IDENTITY_HOST if who == "node" else 1001)


def test_every_loopback_address_leads_to_the_node_ports(site: Site) -> None:
    site.reset(4)
    site.frontend(*LOOPBACK, loopback())
    with site.party("node").socket("v4", "tcp") as client:
        assert call(client, "tcp", ("127.8.9.10", 30080)) == ("b", ("127.8.9.10", 30080))


@pytest.mark.parametrize("shape", SHAPES)
def test_one_port_two_protocols(site: Site, shape: str) -> None:
    site.reset(SHAPES[shape][1])
    site.frontend("web", 80, Frontend([("b", BACKEND_PORT)]), TCP)
    site.frontend("web", 80, Frontend([("c", BACKEND_PORT)]), UDP)
    for way, reaches in (("tcp", "b"), ("udp", "c"), ("sendto", "c")):
        with site.party("pod").socket(shape, "tcp" if way == "tcp" else "udp") as client:
            assert call(client, way, sockaddr("web", 80, shape))[0] == reaches


BOTH = Frontend([("b", BACKEND_PORT), ("c", BACKEND_PORT)])


@pytest.mark.parametrize("shape", SHAPES)
def test_an_unconnected_socket_keeps_its_backend_others_choose_anew(site: Site, shape: str) -> None:
    site.reset(SHAPES[shape][1])
    site.frontend("web", 80, BOTH, UDP)
    to = sockaddr("web", 80, shape)
    seen = set()
    for _ in range(40):  # all alike once in 2 ** 39 runs
        with site.party("pod").socket(shape, "udp") as client:
            answers = {call(client, "sendto", to) for _ in range(5)}
        assert len(answers) == 1
        seen |= {name for name, _ in answers}
    assert seen == {"b", "c"}


@pytest.mark.parametrize("shape", SHAPES)
def test_it_chooses_anew_once_user_space_has_removed_the_entry(site: Site, shape: str) -> None:
    site.reset(SHAPES[shape][1])
    site.frontend("web", 80, Frontend(B), UDP)
    to = sockaddr("web", 80, shape)
    with site.party("node").socket(shape, "udp") as client:
        assert call(client, "sendto", to) == ("b", to)
        site.frontend("web", 80, Frontend([("c", BACKEND_PORT)]), UDP, pool=7)
        assert call(client, "sendto", to) == ("b", to)
        site.retire(client, ("web", 80), B[0])
        assert call(client, "sendto", to) == ("c", to)


@pytest.mark.parametrize("shape", SHAPES)
def test_two_frontends_of_one_backend_answer_as_they_were_asked(site: Site, shape: str) -> None:
    site.reset(SHAPES[shape][1])
    for name in ("web", "dns"):
        site.frontend(name, 80, Frontend(B), UDP)
    with site.party("pod").socket(shape, "udp") as client:
        for name in ("web", "dns", "web"):
            assert call(client, "sendto", sockaddr(name, 80, shape)) == ("b", sockaddr(name, 80, shape))
        direct = sockaddr("b", BACKEND_PORT, shape)
        assert call(client, "sendto", direct) == ("b", direct)
        assert call(client, "sendto", sockaddr("web", 80, shape)) == ("b", sockaddr("web", 80, shape))


@pytest.mark.parametrize("shape", SHAPES)
def test_a_frontend_that_moves_takes_no_other_along(site: Site, shape: str) -> None:
    site.reset(SHAPES[shape][1])
    for name in ("web", "dns"):
        site.frontend(name, 80, Frontend(B), UDP)
    with site.party("pod").socket(shape, "udp") as client:
        client.connect(sockaddr("web", 80, shape))
        client.sendto(b"?", sockaddr("dns", 80, shape))
        site.frontend("web", 80, Frontend([("c", BACKEND_PORT)]), UDP, pool=7)
        client.connect(sockaddr("web", 80, shape))
        assert site.entries() == {"socket_frontends": 2, "socket_backends": 4}
        client.connect(sockaddr("dns", 80, shape))
        client.send(b"?")
        assert client.recvfrom(100)[1][:2] == sockaddr("dns", 80, shape)


@pytest.mark.parametrize("shape", SHAPES)
def test_a_socket_that_connects_again_has_its_new_peer(site: Site, shape: str) -> None:
    site.reset(SHAPES[shape][1])
    site.frontend("web", 80, Frontend(B), UDP)
    with site.party("pod").socket(shape, "udp") as client:
        for name, port in (("web", 80), ("b", BACKEND_PORT), ("web", 80)):
            assert call(client, "udp", sockaddr(name, port, shape)) == ("b", sockaddr(name, port, shape))


@pytest.mark.parametrize("shape", SHAPES)
def test_a_refused_connection_names_nobody_else(site: Site, shape: str) -> None:
    """The backend refuses; then the socket connects to another frontend, or to the backend's address by itself. What an
    attempt leaves, at most one entry for each backend, is the LRU's to forget."""
    site.reset(SHAPES[shape][1])
    site.frontend("web", 80, Frontend([("b", 8081)]))
    site.frontend("dns", 80, Frontend(B))
    for name, port in (("dns", 80), ("b", BACKEND_PORT)):
        with site.party("pod").socket(shape, "tcp") as client:
            client.setblocking(True)
            for _ in range(2):
                with pytest.raises(ConnectionRefusedError):
                    client.connect(sockaddr("web", 80, shape))
            assert site.entries()["socket_frontends"] == 1
            assert call(client, "tcp", sockaddr(name, port, shape)) == ("b", sockaddr(name, port, shape))
        assert site.entries() == {"socket_frontends": 1, "socket_backends": 0}
        site.empty("socket_frontends")


@pytest.mark.parametrize("who", ["node", "pod"])
@pytest.mark.parametrize("way", WAYS)
def test_affinity(site: Site, who: str, way: str) -> None:
    site.reset(4)
    protocol = TCP if way == "tcp" else UDP
    site.frontend("web", 80, Frontend(BOTH.backends, affinity_s=600), protocol)
    reached = set()
    for _ in range(12):
        with site.party(who).socket("v4", "tcp" if way == "tcp" else "udp") as client:
            reached.add(call(client, way, sockaddr("web", 80, "v4"))[0])
    assert len(reached) == 1
    ((key, _),) = site.maps["affinity"].items()
    assert site.abi.records["affinity_key"].unpack(key).client == site.address("node" if who == "node" else "a")


def test_no_room_for_affinity(site: Site) -> None:
    """The pod's packets are dropped where all its packets are judged; the node is told."""
    site.reset(4)
    site.frontend("web", 80, Frontend(B, affinity_s=600))
    site.fill("affinity")
    with site.party("pod").socket("v4", "tcp") as client:
        assert call(client, "tcp", sockaddr("web", 80, "v4"))[0] == "web"
    with site.party("node").socket("v4", "tcp") as client, pytest.raises(OSError) as failure:
        client.connect(sockaddr("web", 80, "v4"))
    assert failure.value.errno == errno.EHOSTUNREACH


@pytest.mark.parametrize("shape", SHAPES)
def test_many_frontends_of_one_socket_are_forgotten_when_it_closes(site: Site, shape: str) -> None:
    site.reset(SHAPES[shape][1])
    ports = range(100, 112)
    for port in ports:
        site.frontend("web", port, Frontend([("b", port)]), UDP)
    with site.party("pod").socket(shape, "udp") as client:
        for port in ports:
            client.sendto(b"?", sockaddr("web", port, shape))
        assert site.entries() == {"socket_frontends": len(ports), "socket_backends": 2 * len(ports)}


def test_beyond_what_is_kept_track_of_translation_goes_on(site: Site) -> None:
    site.reset(4)
    ports = range(100, 140)
    for port in ports:
        site.frontend("web", port, Frontend(B), UDP, pool=5)
    with site.party("pod").socket("v4", "udp") as client:
        for port in ports:
            assert call(client, "sendto", sockaddr("web", port, "v4")) == ("b", sockaddr("web", port, "v4"))
    for name in ("socket_frontends", "socket_backends"):
        site.empty(name)

"""Direct server return: at the node that is asked, and at the node of the backend that answers."""

from __future__ import annotations

import struct
from dataclasses import replace

import pytest
from frames import SCTP, UDP, Family, Packet, error, flow, fragments, raw_address, tcp, udp
from kernel import Kernel
from map_content import Frontend
from network_node import PORT, SMALL_MTU
from network_rows import (
    comes_in,
    edit_nat,
    expire,
    goes_on,
    goes_out,
    ignored,
    mark_gone,
    nat,
    stopped,
    told,
)
from refusals import refused
from table import Case, Change, do, run

KINDS = ("LOAD_BALANCER", "DSR")
AWAY = do("frontend", "vip", 80, Frontend([("far", 8080)], kinds=KINDS))
AWAY_UDP = do("frontend", "vip", 53, Frontend([("far", 5353)], kinds=KINDS), UDP)
HERE = do("frontend", "vip", 80, Frontend([("b", 8080)], kinds=KINDS))
HERE_UDP = do("frontend", "vip", 53, Frontend([("b", 5353)], kinds=KINDS), UDP)

OPTION_SIZE = {4: 8, 6: 24}
PADDING = b"\1\1\1\0"
EXTENSIONS = ((60, bytes([0, 1, 4, 0, 0, 0, 0])),)


def naming(packet: Packet, frontend: str, port: int) -> Packet:
    """The packet with the option that names a frontend, before what options it has."""
    v4 = struct.pack("!BBH", 0x9E, 8, port) + raw_address(frontend, 4)
    v6 = struct.pack("!BBB", 2, 0x1E, 18) + raw_address(frontend, 6) + struct.pack("!HBB", port, 1, 0)
    return replace(packet, options=v4 + packet.options, extensions=((60, v6), *packet.extensions))


def one_family(family: Family, *steps: Change) -> list[Change]:
    def only(step: Change) -> Change:
        return lambda kernel: step(kernel) if kernel.family == family else None

    return [only(step) for step in steps]


SYN, SYN_FAR = tcp("world", "vip", 1000, 80, "S"), naming(tcp("world", "far", 1000, 8080, "S"), "vip", 80)
ACK, ACK_FAR = tcp("world", "vip", 1000, 80), tcp("world", "far", 1000, 8080)
DNS, DNS_FAR = udp("world", "vip", 1000, 53), naming(udp("world", "far", 1000, 5353), "vip", 53)
FITS = replace(DNS, l4=replace(DNS.l4, data=bytes(SMALL_MTU - 48 - 24)))
LARGE = replace(DNS, l4=replace(DNS.l4, data=bytes(SMALL_MTU - 48)))

FIN, FIN_FAR = tcp("world", "vip", 1000, 80, "FA"), tcp("world", "far", 1000, 8080, "FA")
AWAY_81 = do("frontend", "vip", 81, Frontend([("far", 8080)], kinds=KINDS))
SYN_81, SYN_FAR_81 = tcp("world", "vip", 1000, 81, "S"), naming(tcp("world", "far", 1000, 8080, "S"), "vip", 81)
DNS_54 = udp("world", "vip", 1000, 54)

ASKED_CASES: list[Case] = [
    (
        "TCP: the SYN names the frontend",
        [
            AWAY,
            goes_on(SYN, SYN_FAR),
            nat(SYN, flags="DSR", packets=1),
            nat(tcp("far", "world", 8080, 1000), flags="DSR REPLY", packets=0),
            goes_on(SYN, SYN_FAR),
            nat(SYN, flags="DSR", packets=2),
            do("frontend", "vip", 80, Frontend([("far-too", 8080)], kinds=KINDS)),
            goes_on(ACK, ACK_FAR),
            nat(SYN, flags="DSR ESTABLISHED", lasts=600),
            goes_on(tcp("world", "vip", 1000, 80, "FA"), tcp("world", "far", 1000, 8080, "FA")),
            nat(SYN, flags="DSR ESTABLISHED FIN", lasts=60),
            goes_on(ACK, ACK_FAR),
            nat(SYN, lasts=60),
            goes_on(tcp("world", "vip", 1000, 80, "R"), tcp("world", "far", 1000, 8080, "R")),
            nat(SYN, flags="DSR ESTABLISHED FIN CLOSED"),
            nat(tcp("far", "world", 8080, 1000), flags="DSR REPLY ESTABLISHED CLOSED"),
            goes_on(SYN, naming(tcp("world", "far-too", 1000, 8080, "S"), "vip", 80)),
            nat(tcp("far", "world", 8080, 1000)),
        ],
    ),
    (
        "a SYN after the client's FIN is another connection",
        [
            AWAY,
            goes_on(SYN, SYN_FAR),
            goes_on(FIN, FIN_FAR),
            do("frontend", "vip", 80, Frontend([("far-too", 8080)], kinds=KINDS)),
            goes_on(ACK, ACK_FAR),
            goes_on(SYN, naming(tcp("world", "far-too", 1000, 8080, "S"), "vip", 80)),
            nat(SYN, flags="DSR"),
        ],
    ),
    (
        "two frontends of one backend asked from one source port: the second flow goes by way of this node",
        [
            AWAY,
            AWAY_81,
            goes_on(SYN, SYN_FAR),
            goes_on(SYN_81, tcp("node", "far", PORT, 8080, "S")),
            nat(SYN_81, flags="FORWARD"),
            goes_on(tcp("far", "node", 8080, PORT, "SA"), tcp("vip", "world", 81, 1000, "SA")),
            goes_on(FIN, FIN_FAR),
            goes_on(tcp("world", "vip", 1000, 81), tcp("node", "far", PORT, 8080)),
        ],
    ),
    (
        "where the first of them has ended the second takes its place",
        [
            AWAY,
            AWAY_81,
            goes_on(SYN, SYN_FAR),
            goes_on(FIN, FIN_FAR),
            goes_on(SYN_81, SYN_FAR_81),
            nat(SYN_81, flags="DSR"),
            nat(SYN),
            goes_on(tcp("world", "vip", 1000, 81, "R"), tcp("world", "far", 1000, 8080, "R")),
            goes_on(SYN, SYN_FAR),
            nat(SYN_81),
        ],
    ),
    (
        "two frontends of one backend, UDP",
        [
            AWAY_UDP,
            do("frontend", "vip", 54, Frontend([("far", 5353)], kinds=KINDS), UDP),
            goes_on(DNS, DNS_FAR),
            goes_on(DNS_54, udp("node", "far", PORT, 5353)),
            goes_on(DNS, DNS_FAR),
            expire(DNS, DNS_54, udp("far", "world", 5353, 1000), udp("far", "node", 5353, PORT)),
            goes_on(DNS_54, naming(udp("world", "far", 1000, 5353), "vip", 54)),
            nat(DNS),
        ],
    ),
    (
        "a connection that another node began names it, too, once",
        [
            AWAY,
            goes_on(ACK, naming(ACK_FAR, "vip", 80)),
            goes_on(ACK, ACK_FAR),
        ],
    ),
    (
        "UDP names it in every packet",
        [
            AWAY_UDP,
            goes_on(DNS, DNS_FAR),
            nat(DNS, flags="DSR"),
            goes_on(DNS, DNS_FAR),
            nat(DNS, flags="DSR ESTABLISHED", lasts=120),
            goes_on(udp("world", "vip", 1000, 53, True), naming(udp("world", "far", 1000, 5353, True), "vip", 53)),
        ],
    ),
    (
        "SCTP, whose port stays",
        [
            do("frontend", "vip", 9, Frontend([("far", 9)], kinds=KINDS), SCTP),
            goes_on(flow(SCTP, "world", "vip", 1000, 9), naming(flow(SCTP, "world", "far", 1000, 9), "vip", 9)),
        ],
    ),
    (
        "many clients, one port each: nothing of this node is used up",
        [
            AWAY,
            *(goes_on(replace(SYN, source=name), replace(SYN_FAR, source=name)) for name in ("world", "router")),
        ],
    ),
    (
        "a backend that asks itself cannot answer itself directly",
        [AWAY, goes_on(tcp("far", "vip", 1000, 80, "S"), tcp("node", "far", PORT, 8080, "S"))],
    ),
    (
        "a backend here is answered for here",
        [
            HERE,
            comes_in(SYN, tcp("world", "b", 1000, 8080, "S")),
            goes_out(tcp("b", "world", 8080, 1000, "SA"), tcp("vip", "world", 80, 1000, "SA")),
        ],
    ),
    (
        "what does not fit once it names the frontend",
        [
            do("frontend", "vip", 53, Frontend([("beyond", 5353)], kinds=KINDS), UDP),
            goes_on(
                FITS, naming(replace(FITS, destination="beyond", l4=replace(FITS.l4, destination_port=5353)), "vip", 53)
            ),
            *one_family(
                4,
                told(
                    replace(LARGE, l4=replace(LARGE.l4, data=bytes(SMALL_MTU - 28))),
                    "TOO_BIG",
                    (3, 2),
                    (4, 0),
                    SMALL_MTU - OPTION_SIZE[4],
                ),
            ),
            *one_family(6, told(LARGE, "TOO_BIG", (3, 2), (4, 0), SMALL_MTU - OPTION_SIZE[6])),
        ],
    ),
    (
        "before other options, but not before hop-by-hop ones, nor where there is no room",
        [
            AWAY,
            goes_on(
                replace(SYN, options=PADDING, extensions=EXTENSIONS),
                naming(
                    replace(tcp("world", "far", 1000, 8080, "S"), options=PADDING, extensions=EXTENSIONS), "vip", 80
                ),
            ),
            *one_family(4, stopped(replace(SYN, options=PADDING * 9), "TRANSLATION")),
            *one_family(6, stopped(replace(SYN, extensions=((0, bytes([0, 1, 4, 0, 0, 0, 0])),)), "TRANSLATION")),
        ],
    ),
    (
        "the first fragment names it",
        [
            AWAY_UDP,
            goes_on(
                fragments(DNS, [16, 8])[0], naming(fragments(udp("world", "far", 1000, 5353), [16, 8])[0], "vip", 53)
            ),
            goes_on(fragments(DNS, [16, 8])[1], fragments(udp("world", "far", 1000, 5353), [16, 8])[1]),
        ],
    ),
    (
        "an error about an answer goes on to the backend",
        [
            AWAY,
            goes_on(SYN, SYN_FAR),
            goes_on(
                error("router", "vip", tcp("vip", "world", 80, 1000)),
                error("router", "far", tcp("far", "world", 8080, 1000)),
            ),
        ],
    ),
    (
        "a backend that is gone",
        [
            AWAY,
            goes_on(SYN, SYN_FAR),
            mark_gone(SYN),
            refused("eth", ACK, "BACKEND_GONE", "from_network"),
        ],
    ),
    (
        "a map that is full",
        [AWAY, do("fill", "nat"), stopped(SYN, "NAT_FULL", tally="NAT_FULL")],
    ),
]

SYN_B, BACK, BACK_VIP = (
    tcp("world", "b", 1000, 8080, "S"),
    tcp("b", "world", 8080, 1000, "SA"),
    tcp("vip", "world", 80, 1000, "SA"),
)

HERE_81 = do("frontend", "vip", 81, Frontend([("b", 8080)], kinds=KINDS))


def tracked(packet: Packet, *flags: str) -> Change:
    """Policy's entry of the flow, as to_pod leaves it."""

    def write(kernel: Kernel) -> None:
        value = sum(kernel.abi.constants[f"CT_{flag}"] for flag in flags)
        kernel.maps["conntrack"].update(kernel.key(packet), kernel.pack("conntrack", flags=value))

    return write


def own_address(name: str) -> Change:
    """The node's first address."""

    def write(kernel: Kernel) -> None:
        kernel.config(**{f"ipv{kernel.family}": kernel.address(name)})

    return write


BACKEND_CASES: list[Case] = [
    (
        "TCP: answers take the frontend's address",
        [
            HERE,
            comes_in(naming(SYN_B, "vip", 80), SYN_B),
            nat(BACK, flags="DSR REPLY"),
            nat(SYN_B),
            goes_out(BACK, BACK_VIP),
            nat(BACK, flags="DSR REPLY ESTABLISHED"),
            ignored(tcp("world", "b", 1000, 8080)),
            comes_in(naming(SYN_B, "vip", 80), SYN_B),
            nat(BACK, flags="DSR REPLY ESTABLISHED", packets=1),
            goes_out(tcp("b", "world", 8080, 1000, "R"), tcp("vip", "world", 80, 1000, "R")),
            nat(BACK, flags="DSR REPLY ESTABLISHED CLOSED"),
            comes_in(naming(SYN_B, "vip", 80), SYN_B),
            nat(BACK, flags="DSR REPLY"),
        ],
    ),
    (
        "UDP",
        [
            HERE_UDP,
            comes_in(naming(udp("world", "b", 1000, 5353), "vip", 53), udp("world", "b", 1000, 5353)),
            goes_out(udp("b", "world", 5353, 1000), udp("vip", "world", 53, 1000)),
            edit_nat(udp("b", "world", 5353, 1000), expires_ns=1 << 62),
            comes_in(naming(udp("world", "b", 1000, 5353, True), "vip", 53), udp("world", "b", 1000, 5353, True)),
            nat(udp("b", "world", 5353, 1000), flags="DSR REPLY ESTABLISHED", lasts=120),
        ],
    ),
    (
        "a process of the node",
        [
            do("frontend", "vip", 80, Frontend([("node", 8080)], kinds=KINDS)),
            comes_in(naming(tcp("world", "node", 1000, 8080, "S"), "vip", 80), tcp("world", "node", 1000, 8080, "S")),
            goes_out(tcp("node", "world", 8080, 1000, "SA"), BACK_VIP, via=0),
        ],
    ),
    (
        "other options stay",
        [
            HERE,
            comes_in(
                naming(replace(SYN_B, options=PADDING, extensions=EXTENSIONS), "vip", 80),
                replace(SYN_B, options=PADDING, extensions=EXTENSIONS),
            ),
        ],
    ),
    (
        "a first fragment",
        [
            HERE_UDP,
            comes_in(
                naming(fragments(udp("world", "b", 1000, 5353), [16, 8])[0], "vip", 53),
                fragments(udp("world", "b", 1000, 5353), [16, 8])[0],
            ),
            ignored(fragments(udp("world", "b", 1000, 5353), [16, 8])[1]),
        ],
    ),
    (
        "nobody can have a pod speak in the name of what is no such frontend, or have others speak",
        [
            HERE,
            do("frontend", "node", 30080, Frontend([("b", 8080)], kinds=("NODE_PORT",))),
            ignored(naming(SYN_B, "node", 30080)),
            ignored(naming(SYN_B, "vip", 81)),
            ignored(naming(SYN_B, "nobody", 80)),
            ignored(naming(udp("world", "b", 1000, 8080), "vip", 80)),
            ignored(naming(tcp("world", "far", 1000, 8080, "S"), "vip", 80)),
            nat(BACK),
            ignored(BACK, program="to_network", via=102),
        ],
    ),
    (
        "options of the same type that are another's",
        [
            HERE,
            ignored(replace(SYN_B, options=b"\x9e\x04\0\0", extensions=((60, bytes([0, 0x1E, 4, 0, 0, 0, 0])),))),
            ignored(
                replace(
                    SYN_B,
                    options=b"\x9e\x04\0\0\x9e\x04\0\0",
                    extensions=((60, bytes([2, 0x1E, 4, 0, 0, 0, 0, 1, 14, *bytes(14)])),),
                )
            ),
        ],
    ),
    (
        "a flow whose answers are another's by now",
        [
            HERE,
            HERE_81,
            comes_in(naming(SYN_B, "vip", 80), SYN_B),
            stopped(naming(SYN_B, "vip", 81), "TUPLE_TAKEN"),
            goes_out(BACK, BACK_VIP),
            expire(BACK),
            comes_in(naming(SYN_B, "vip", 81), SYN_B),
            goes_out(BACK, tcp("vip", "world", 81, 1000, "SA")),
        ],
    ),
    (
        "a flow that has ended makes room for one to another frontend: the backend has said so",
        [
            HERE,
            HERE_81,
            comes_in(naming(SYN_B, "vip", 80), SYN_B),
            goes_out(BACK, BACK_VIP),
            goes_out(tcp("b", "world", 8080, 1000, "FA"), tcp("vip", "world", 80, 1000, "FA")),
            stopped(naming(tcp("world", "b", 1000, 8080), "vip", 81), "TUPLE_TAKEN"),
            comes_in(naming(SYN_B, "vip", 81), SYN_B),
            nat(BACK, flags="DSR REPLY"),
            goes_out(BACK, tcp("vip", "world", 81, 1000, "SA")),
        ],
    ),
    (
        "a flow that has ended makes room for one to another frontend: the client has said so",
        [
            HERE,
            HERE_81,
            comes_in(naming(SYN_B, "vip", 80), SYN_B),
            goes_out(BACK, BACK_VIP),
            tracked(SYN_B, "ESTABLISHED", "FIN"),
            comes_in(naming(SYN_B, "vip", 81), SYN_B),
            goes_out(BACK, tcp("vip", "world", 81, 1000, "SA")),
        ],
    ),
    (
        "a flow that has ended makes room for one to another frontend: the client has broken it off",
        [
            HERE,
            HERE_81,
            comes_in(naming(SYN_B, "vip", 80), SYN_B),
            goes_out(BACK, BACK_VIP),
            tracked(SYN_B, "ESTABLISHED"),
            stopped(naming(SYN_B, "vip", 81), "TUPLE_TAKEN"),
            tracked(SYN_B, "ESTABLISHED", "CLOSED"),
            stopped(naming(tcp("world", "b", 1000, 8080), "vip", 81), "TUPLE_TAKEN"),
            comes_in(naming(SYN_B, "vip", 81), SYN_B),
            goes_out(BACK, tcp("vip", "world", 81, 1000, "SA")),
        ],
    ),
    (
        "a node port of another node is this node's",
        [
            do("frontend", "node", 30080, Frontend([("b", 8080)], kinds=("NODE_PORT", "DSR"))),
            comes_in(naming(SYN_B, "other-node", 30080), SYN_B),
            goes_out(BACK, tcp("other-node", "world", 30080, 1000, "SA")),
        ],
    ),
    (
        "a node port that is not open at the device's address",
        [
            own_address("uplink"),
            do("frontend", "uplink", 30080, Frontend([("b", 8080)], kinds=("NODE_PORT", "DSR"))),
            comes_in(naming(SYN_B, "other-node", 30080), SYN_B),
            goes_out(BACK, tcp("other-node", "world", 30080, 1000, "SA")),
        ],
    ),
    (
        "of another node's address nothing but a node port that answers directly is believed",
        [
            do("frontend", "node", 80, Frontend([("b", 8080)], kinds=KINDS)),
            ignored(naming(SYN_B, "other-node", 80)),
            do("frontend", "node", 30080, Frontend([("b", 8080)], kinds=("NODE_PORT",))),
            ignored(naming(SYN_B, "other-node", 30080)),
            do("frontend", "node", 30081, Frontend([("b", 8080)], kinds=("NODE_PORT", "DSR")), UDP),
            ignored(naming(SYN_B, "other-node", 30081)),
            do("frontend", "node", 30082, Frontend([("b", 8080)], kinds=("NODE_PORT", "DSR"))),
            ignored(naming(SYN_B, "router", 30082)),
            ignored(naming(SYN_B, "nobody", 30082)),
            nat(BACK),
        ],
    ),
    (
        "an error about an asking packet goes to who asked, about what it asked",
        [
            HERE,
            comes_in(naming(SYN_B, "vip", 80), SYN_B),
            goes_out(error("b", "world", SYN_B), error("vip", "world", SYN)),
            goes_out(error("node", "world", SYN_B), error("node", "world", SYN), via=0),
        ],
    ),
    (
        "a map that is full",
        [HERE, do("fill", "nat"), stopped(naming(SYN_B, "vip", 80), "NAT_FULL", tally="NAT_FULL")],
    ),
]
CASES = ASKED_CASES + BACKEND_CASES


@pytest.mark.parametrize("steps", [steps for _, steps in CASES], ids=[name for name, _ in CASES])
def test_direct_server_return(node: Kernel, steps: list[Change]) -> None:
    run(node, steps)

"""What a packet must look like: headers, fragments, link control, spoofing. Every reason to drop one."""

from __future__ import annotations

from dataclasses import replace

import pytest
from frames import (
    AH,
    DESTINATION_OPTIONS,
    FAMILIES,
    FRAGMENT,
    HOP_BY_HOP,
    L4,
    NO_NEXT_HEADER,
    ROUTING,
    TCP,
    UDP,
    Family,
    Icmp,
    Packet,
    echo,
    echo_reply,
    flow,
    fragments,
    icmp,
    tcp,
    udp,
)
from kernel import ANY, CLOSED, OPEN, Kernel
from table import STACK, Case, Change, arrives, arrives_new, do, dropped, epoch, new, policy, run, sent, stopped

SYN, DATAGRAM = tcp("a", "b", 1000, 80, "S"), udp("a", "b", 1000, 80)
FROM_WORLD = udp("world", "a", 1000, 80)
EXTENSION = bytes([0, 1, 4, 0, 0, 0, 0])
LONG_EXTENSION = bytes([2]) + bytes(22)
LATER_FRAGMENT = FRAGMENT, bytes([0, 0, 8, 0, 0, 0, 7])
AH_HEADER = bytes([1, 0, 0]) + bytes(8)
NOP, END_OF_OPTIONS, RECORD_ROUTE, LSRR, SSRR = 1, 0, 7, 131, 137


def routing(kind: int, segments_left: int) -> tuple[int, bytes]:
    return ROUTING, bytes([2, kind, segments_left]) + bytes(20)


def extended(*kinds: int) -> Packet:
    """IPv6 with these extension headers before a SYN."""
    bodies = {AH: AH_HEADER, DESTINATION_OPTIONS: LONG_EXTENSION}
    return replace(SYN, extensions=tuple((kind, bodies.get(kind, EXTENSION)) for kind in kinds))


def optioned(*options: int) -> Packet:
    """IPv4 with these option bytes, padded, before a SYN."""
    return replace(SYN, options=bytes(options) + bytes(-len(options) % 4))


BOTH: list[Case] = [
    ("an interface without a pod", [
        dropped("d", SYN, "UNKNOWN_ENDPOINT", source="a", destination="b", source_identity=0),
        stopped("d", FROM_WORLD, "UNKNOWN_ENDPOINT", source="world", destination="a"),
        dropped("d", replace(SYN, length=5000), "UNKNOWN_ENDPOINT"),
    ]),
    ("another's source address", [
        dropped("a", tcp("b", "c", 1, 2, "S"), "SPOOFED_SOURCE", source="b", destination="c", source_identity=1001),
        dropped("a", tcp("world", "c", 1, 2, "S"), "SPOOFED_SOURCE"),
        dropped("a", tcp("node", "c", 1, 2, "S"), "SPOOFED_SOURCE"),
        dropped("a", tcp("free", "c", 1, 2, "S"), "SPOOFED_SOURCE"),
        dropped("a", tcp("none", "c", 1, 2, "S"), "SPOOFED_SOURCE"),
        dropped("a", tcp("link-local", "c", 1, 2, "S"), "SPOOFED_SOURCE"),
        dropped("a", echo("b", "c"), "SPOOFED_SOURCE"),
    ]),
    ("another's source address, on a flow of the other's", [
        new("b", tcp("b", "c", 1, 80, "S"), "c"),
        dropped("a", tcp("b", "c", 1, 80), "SPOOFED_SOURCE"),
        dropped("a", tcp("c", "b", 80, 1), "SPOOFED_SOURCE"),
        arrives_new("b", udp("world", "b", 1, 2)),
        dropped("a", udp("b", "world", 2, 1), "SPOOFED_SOURCE"),
        arrives_new("b", udp("node", "b", 1, 2), via=0),
        dropped("a", udp("b", "node", 2, 1), "SPOOFED_SOURCE"),
        new("b", udp("b", "world", 5, 5), STACK),
        dropped("a", udp("world", "b", 5, 5), "SPOOFED_SOURCE"),
    ]),
    ("a pod without an address of this family may send nothing", [
        lambda kernel: kernel.maps["interfaces"].update(
            (101).to_bytes(4, "little"), kernel.pack("endpoint", subject=1, identity=9, ifindex=101)),
        dropped("a", tcp("none", "c", 1, 2, "S"), "SPOOFED_SOURCE"),
        dropped("a", SYN, "SPOOFED_SOURCE"),
    ]),
    ("a pod's source address, from the stack", [
        stopped("a", tcp("b", "a", 1, 2, "S"), "SPOOFED_SOURCE", source="b", destination="a"),
        stopped("a", tcp("b", "a", 1, 2, "S"), "SPOOFED_SOURCE", via=0),
        stopped("a", tcp("a", "a", 1, 2, "S"), "SPOOFED_SOURCE"),
        stopped("a", echo("b", "a"), "SPOOFED_SOURCE"),
        new("a", SYN, "b"),
        stopped("a", tcp("b", "a", 80, 1000, "SA"), "SPOOFED_SOURCE"),
        stopped("b", tcp("a", "b", 1000, 80), "SPOOFED_SOURCE"),
        epoch,
        stopped("a", tcp("b", "a", 80, 1000, "SA"), "SPOOFED_SOURCE"),
        stopped("b", tcp("a", "b", 1000, 80), "SPOOFED_SOURCE"),
    ]),
    ("an address that is a pod's since the flow began", [
        arrives_new("a", udp("free", "a", 1, 2)),
        do("pod", "d", "free"),
        epoch,
        stopped("a", udp("free", "a", 1, 2), "SPOOFED_SOURCE"),
    ]),
    ("delivered to an interface that does not own the address", [
        stopped("a", udp("world", "b", 1, 2), "WRONG_DESTINATION", source="world", destination="b"),
        stopped("a", udp("world", "node", 1, 2), "WRONG_DESTINATION"),
        stopped("a", udp("world", "none", 1, 2), "WRONG_DESTINATION"),
        arrives_new("b", udp("world", "b", 1, 2)),
        stopped("a", udp("world", "b", 1, 2), "WRONG_DESTINATION"),
        new("b", udp("b", "world", 5, 5), STACK),
        stopped("a", udp("world", "b", 5, 5), "WRONG_DESTINATION"),
    ]),
    ("neither IP nor ARP, and VLANs", [
        dropped("a", replace(SYN, ethertype=0x88CC), "UNSUPPORTED_PROTOCOL"),
        dropped("a", replace(SYN, vlan=5), "UNSUPPORTED_PROTOCOL"),
        stopped("a", replace(FROM_WORLD, ethertype=0x8847), "UNSUPPORTED_PROTOCOL"),
    ]),
    ("ARP", [
        dropped("a", replace(SYN, ethertype=0x0806), "LINK_CONTROL"),
        stopped("a", replace(FROM_WORLD, ethertype=0x0806), "LINK_CONTROL"),
    ]),
    ("multicast and broadcast", [
        dropped("a", udp("a", "multicast", 5353, 5353), "LINK_CONTROL"),
        dropped("a", udp("a", "broadcast", 67, 68), "LINK_CONTROL"),
        dropped("a", udp("none", "broadcast", 67, 68), "LINK_CONTROL"),
        dropped("a", echo("a", "multicast"), "LINK_CONTROL"),
        stopped("a", udp("world", "multicast", 1, 2), "LINK_CONTROL"),
    ]),
    ("redirects", [
        dropped("a", icmp("a", "b", (5, 137)), "LINK_CONTROL"),
        stopped("a", icmp("world", "a", (5, 137)), "LINK_CONTROL"),
    ]),
    ("headers cut short", [
        dropped("a", replace(SYN, l4=replace(SYN.l4, size=19)), "MALFORMED"),
        dropped("a", replace(DATAGRAM, l4=replace(DATAGRAM.l4, size=7)), "MALFORMED"),
        dropped("a", replace(DATAGRAM, l4=replace(DATAGRAM.l4, size=0)), "MALFORMED"),
        dropped("a", replace(SYN, l4=L4(132, 1, 2, size=11)), "MALFORMED"),
        dropped("a", replace(SYN, l4=Icmp(size=7)), "MALFORMED"),
        stopped("a", replace(FROM_WORLD, l4=replace(FROM_WORLD.l4, size=7)), "MALFORMED"),
    ]),
    ("headers that contradict each other", [
        dropped("a", replace(SYN, length=2000), "MALFORMED"),
        dropped("a", replace(SYN, length=7), "MALFORMED"),
        dropped("a", replace(SYN, version=5), "MALFORMED"),
        dropped("a", replace(SYN, padding=bytes(40), l4=replace(SYN.l4, size=8)), "MALFORMED"),
        dropped("a", replace(DATAGRAM, padding=bytes(40), l4=replace(DATAGRAM.l4, size=4)), "MALFORMED"),
        new("a", replace(SYN, padding=bytes(40)), "b"),
    ]),
    (
        # LESSONS 8.
        "lesson 8: fragments go where their first goes",
        [
            *((new if n == 0 else sent)("a", part, "b") for n, part in enumerate(fragments(SYN, [24, 8, 4]))),
            *((new if n == 0 else sent)("a", part, STACK) for n, part in
              enumerate(fragments(udp("a", "world", 1, 2), [8, 8, 8]))),
            arrives_new("a", fragments(FROM_WORLD, [16, 8])[0]),
            arrives("a", fragments(FROM_WORLD, [16, 8])[1]),
        ],
    ),
    (
        "lesson 8: fragments are denied with their first",
        [
            policy("b", "ingress", ANY, CLOSED),
            *(dropped("a", part, "POLICY_INGRESS", destination_port_be=80) for part in fragments(DATAGRAM, [8, 8, 8])),
        ],
    ),
    (
        "lesson 8: fragments of a ping",
        [
            new("a", fragments(echo("a", "b"), [16, 8])[0], "b"),
            sent("a", fragments(echo("a", "b"), [16, 8])[1], "b"),
            sent("b", fragments(echo_reply("b", "a"), [16, 8])[0], "a"),
            sent("b", fragments(echo_reply("b", "a"), [16, 8])[1], "a"),
        ],
    ),
    (
        "lesson 8: a fragment whose first was not seen",
        [
            dropped("a", fragments(DATAGRAM, [16, 8])[1], "FRAGMENT_UNKNOWN"),
            stopped("a", fragments(FROM_WORLD, [16, 8])[1], "FRAGMENT_UNKNOWN"),
            new("a", fragments(DATAGRAM, [16, 8])[0], "b"),
            dropped("a", replace(fragments(DATAGRAM, [16, 8])[1], identification=8), "FRAGMENT_UNKNOWN"),
            dropped("a", replace(fragments(DATAGRAM, [16, 8])[1], destination="c"), "FRAGMENT_UNKNOWN"),
            dropped("a", fragments(echo("a", "b"), [16, 8])[1], "FRAGMENT_UNKNOWN"),
        ],
    ),
    (
        "lesson 8: a first fragment without its ports, and one that would overlap them",
        [
            dropped("a", fragments(SYN, [16, 20])[0], "FRAGMENT_TINY"),
            dropped("a", fragments(SYN, [8, 28])[0], "FRAGMENT_TINY"),
            dropped("a", fragments(SYN, [8, 28])[1], "FRAGMENT_TINY"),
            dropped("a", fragments(SYN, [16, 20])[1], "FRAGMENT_TINY"),
            dropped("a", fragments(Packet("a", "b", L4(132, 1, 2)), [8, 20])[0], "FRAGMENT_TINY"),
            dropped("a", replace(DATAGRAM, fragment=(0, True, 0)), "FRAGMENT_TINY"),
        ],
    ),
    ("fragments of a protocol without ports need no first", [
        new("a", fragments(Packet("a", "b", L4(47)), [8, 8])[1], "b", protocol=47),
    ]),
    ("protocols without ports", [
        new("a", Packet("a", "b", L4(47)), "b", protocol=47, source_port_be=0, destination_port_be=0),
        sent("b", Packet("b", "a", L4(47)), "a"),
        policy("b", "ingress", ANY, ((TCP, None, True),)),
        dropped("a", Packet("a", "b", L4(50)), "POLICY_INGRESS"),
        policy("b", "ingress", ANY, OPEN),
        new("a", Packet("a", "b", L4(50)), "b"),
    ]),
]  # fmt: skip

IPV4: list[Case] = [
    ("options", [
        new("a", optioned(NOP, NOP, END_OF_OPTIONS), "b"),
        sent("a", optioned(RECORD_ROUTE, 7, 4, 0, 0, 0, 0), "b"),
        sent("a", optioned(*([NOP] * 40)), "b"),
        sent("a", optioned(END_OF_OPTIONS, LSRR, 7, 4), "b"),
        dropped("a", optioned(RECORD_ROUTE, 1, 0, 0), "MALFORMED"),
        dropped("a", optioned(RECORD_ROUTE, 9, 0, 0), "MALFORMED"),
        dropped("a", optioned(NOP, NOP, NOP, RECORD_ROUTE), "MALFORMED"),
    ]),
    ("lesson 8: source routes", [
        dropped("a", optioned(LSRR, 7, 4, 0, 0, 0, 0), "SOURCE_ROUTE"),
        dropped("a", optioned(SSRR, 7, 4, 0, 0, 0, 0), "SOURCE_ROUTE"),
        dropped("a", optioned(NOP, RECORD_ROUTE, 3, NOP, SSRR, 3), "SOURCE_ROUTE"),
        dropped("a", optioned(*([NOP] * 37), LSRR, 3, 4), "SOURCE_ROUTE"),
        dropped("a", optioned(LSRR, 0), "SOURCE_ROUTE"),
        stopped("a", replace(FROM_WORLD, options=bytes([LSRR, 7, 4, 0, 0, 0, 0, 0])), "SOURCE_ROUTE"),
    ]),
    ("router advertisement is an ICMP message like others", [
        policy("b", "ingress", ANY, ((TCP, None, True),)),
        dropped("a", icmp("a", "b", (9, 9)), "POLICY_INGRESS"),
    ]),
]  # fmt: skip

IPV6: list[Case] = [
    ("extension headers", [
        new("a", extended(HOP_BY_HOP), "b", tcp_flags=2, destination_port_be=80),
        sent("a", extended(HOP_BY_HOP, DESTINATION_OPTIONS, AH, DESTINATION_OPTIONS), "b"),
        sent("a", extended(*([DESTINATION_OPTIONS] * 6)), "b"),
        dropped("a", extended(*([DESTINATION_OPTIONS] * 7)), "EXTENSION_HEADERS"),
        dropped("a", extended(HOP_BY_HOP, *([AH] * 7)), "EXTENSION_HEADERS"),
        dropped("a", replace(extended(DESTINATION_OPTIONS), length=8), "MALFORMED"),
        dropped("a", replace(SYN, extensions=((DESTINATION_OPTIONS, bytes([200]) + bytes(6)),)), "MALFORMED"),
        dropped("a", replace(SYN, extensions=((HOP_BY_HOP, b""),), l4=L4(NO_NEXT_HEADER, data=b"")), "MALFORMED"),
    ]),
    ("lesson 8: policy is asked about what extension headers hide", [
        policy("b", "ingress", ANY, ((TCP, 81, True),)),
        dropped("a", extended(HOP_BY_HOP, DESTINATION_OPTIONS), "POLICY_INGRESS", protocol=TCP, destination_port_be=80),
        dropped("a", extended(AH), "POLICY_INGRESS", protocol=TCP, destination_port_be=80),
    ]),
    ("lesson 8: routing headers", [
        dropped("a", replace(SYN, extensions=(routing(0, 1),)), "SOURCE_ROUTE"),
        dropped("a", replace(SYN, extensions=(routing(0, 0),)), "SOURCE_ROUTE"),
        dropped("a", replace(SYN, extensions=(routing(2, 1),)), "SOURCE_ROUTE"),
        dropped("a", replace(SYN, extensions=(routing(4, 2),)), "SOURCE_ROUTE"),
        dropped("a", replace(SYN, extensions=((HOP_BY_HOP, EXTENSION), routing(4, 2))), "SOURCE_ROUTE"),
        stopped("a", replace(FROM_WORLD, extensions=(routing(0, 1),)), "SOURCE_ROUTE"),
        new("a", replace(SYN, extensions=(routing(4, 0),)), "b"),
    ]),
    ("lesson 8: fragment headers", [
        new("a", replace(SYN, fragment=(0, False, 100)), "b"),  # atomic (RFC 6946)
        dropped("a", replace(SYN, fragment=(0, False, 100), extensions=((FRAGMENT, bytes(7)),)), "MALFORMED"),
        dropped("a", replace(SYN, extensions=(LATER_FRAGMENT, (DESTINATION_OPTIONS, EXTENSION))), "FRAGMENT_UNKNOWN"),
        *(sent("a", replace(part, extensions=((HOP_BY_HOP, EXTENSION),)), "b") for part in fragments(SYN, [24, 8, 4])),
    ]),
    ("neighbour discovery and listener reports", [
        *(dropped("a", icmp("link-local", "b", (0, kind)), "LINK_CONTROL") for kind in (*range(130, 138), 143)),
        dropped("a", icmp("none", "multicast", (0, 135)), "LINK_CONTROL"),
        dropped("a", replace(icmp("link-local", "multicast", (0, 143)), extensions=((HOP_BY_HOP, EXTENSION),)),
                "LINK_CONTROL"),
        stopped("a", icmp("node", "a", (0, 135)), "LINK_CONTROL", via=0),
    ]),
    ("no next header", [new("a", Packet("a", "b", L4(NO_NEXT_HEADER, data=b"")), "b", protocol=59)]),
    ("the other family's ICMP has no ids", [
        policy("b", "ingress", ANY, ((TCP, None, True),)),
        dropped("a", Packet("a", "b", L4(1, data=bytes([8, 0, 0, 0, 0, 5, 0, 0]))), "POLICY_INGRESS", source_port_be=0),
    ]),
]  # fmt: skip


def rows(cases: list[Case], families: tuple[Family, ...]) -> list[object]:
    return [pytest.param(f, steps, id=f"v{f}-{name}") for f in families for name, steps in cases]


@pytest.mark.parametrize(("family", "steps"), [*rows(BOTH, FAMILIES), *rows(IPV4, (4,)), *rows(IPV6, (6,))])
def test_packet(loaded: Kernel, family: Family, steps: list[Change]) -> None:
    loaded.reset(family)
    run(loaded, steps)


def test_a_packet_cut_anywhere_is_malformed(kernel: Kernel) -> None:
    """It is shorter than it says. (The kernel runs no test on less than an IP header.)"""
    whole = len(SYN.encode(kernel.family, bytes(6), bytes(6)))
    for size in range(14 + (20 if kernel.family == 4 else 40), whole):
        assert kernel.send("a", replace(SYN, size=size)).drops == {"DROP_MALFORMED": 1}, size


def test_every_protocol_is_closed_by_rules_for_ports(kernel: Kernel) -> None:
    """Of all 256 protocol numbers none passes to an isolated pod but those a rule names."""
    kernel.policy("b", "ingress", ANY, ((TCP, 80, True), (UDP, None, True)))
    for protocol in range(256):
        packet = flow(protocol, "a", "b", 0x1111, 80)
        outcome = kernel.send("a", replace(packet, l4=replace(packet.l4, data=bytes(range(1, 60)))))
        assert outcome.action == (7 if protocol in (TCP, UDP) else 2), (protocol, outcome)

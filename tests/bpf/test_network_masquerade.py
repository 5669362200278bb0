"""Pods' flows that leave the cluster, by the node's devices; and the node's own that must not be mixed up with them."""

from __future__ import annotations

from dataclasses import replace

import pytest
from frames import L4, SCTP, UDP, Packet, echo, echo_reply, flow, fragments, icmp, tcp, udp
from kernel import Kernel
from map_content import INTERFACES, Frontend
from network_node import PORT
from network_rows import comes_in, expire, goes_on, goes_out, ignored, nat, stopped
from table import Case, Change, do, run

from agent.datapath.abi import be16

MASQUERADE = do("config", features=1)
SYN, SYN_OUT = tcp("b", "world", 1000, 443, "S"), tcp("node", "world", PORT, 443, "S")
ANSWER, ANSWER_B = tcp("world", "node", 443, PORT, "SA"), tcp("world", "b", 443, 1000, "SA")
POD = INTERFACES["b"]


def kept(packet: Packet, via: int = POD, device: str = "eth") -> Change:
    """It leaves as it is."""
    return ignored(packet, device, "to_network", via)


def kept_back(packet: Packet, reason: str, via: int = POD, tally: str = "") -> Change:
    return stopped(packet, reason, "to_network", tally, via)


def tracked(packet: Packet, flag: str) -> Change:
    """A conntrack entry that a pod's packet meets."""

    def change(kernel: Kernel) -> None:
        value = kernel.pack("conntrack", flags=kernel.abi.constants[flag])
        kernel.maps["conntrack"].update(kernel.key(packet), value)

    return change


CASES: list[Case] = [
    (
        "TCP, and its answers",
        [
            MASQUERADE,
            goes_out(SYN, SYN_OUT),
            nat(SYN, flags="MASQUERADE", packets=1, ifindex=INTERFACES["eth"]),
            nat(ANSWER, flags="MASQUERADE REPLY"),
            comes_in(ANSWER, ANSWER_B),
            nat(SYN, flags="MASQUERADE ESTABLISHED"),
            goes_out(tcp("b", "world", 1000, 443, "FA"), tcp("node", "world", PORT, 443, "FA")),
            comes_in(tcp("world", "node", 443, PORT, "FA"), tcp("world", "b", 443, 1000, "FA")),
            nat(SYN, flags="MASQUERADE ESTABLISHED FIN CLOSED"),
            goes_out(SYN, SYN_OUT),
            nat(SYN, flags="MASQUERADE"),
        ],
    ),
    (
        "UDP, with and without checksum",
        [
            MASQUERADE,
            goes_out(udp("b", "world", 1000, 53), udp("node", "world", PORT, 53)),
            comes_in(udp("world", "node", 53, PORT), udp("world", "b", 53, 1000)),
            goes_out(udp("b", "world", 1000, 53, True), udp("node", "world", PORT, 53, True)),
        ],
    ),
    (
        "echo, by its id",
        [
            MASQUERADE,
            goes_out(echo("b", "world", 7), echo("node", "world", PORT)),
            comes_in(echo_reply("world", "node", PORT), echo_reply("world", "b", 7)),
            kept_back(echo("b", "world", 8), "NAT_PORTS"),
            ignored(echo("world", "node", PORT)),
        ],
    ),
    (
        "SCTP keeps its port",
        [
            MASQUERADE,
            goes_out(flow(SCTP, "b", "world", 1000, 9), flow(SCTP, "node", "world", 1000, 9)),
            comes_in(flow(SCTP, "world", "node", 9, 1000), flow(SCTP, "world", "b", 9, 1000)),
            kept_back(flow(SCTP, "c", "world", 1000, 9), "NAT_PORTS"),
        ],
    ),
    (
        "what could not find back does not leave",
        [
            MASQUERADE,
            kept_back(Packet("b", "world", L4(47)), "UNSUPPORTED_PROTOCOL"),
            kept_back(icmp("b", "world", (13, 200)), "UNSUPPORTED_PROTOCOL"),
        ],
    ),
    (
        "each device has its own address",
        [
            MASQUERADE,
            goes_out(SYN, SYN_OUT),
            goes_out(SYN, tcp("uplink", "world", PORT, 443, "S"), "uplink"),
            nat(SYN, flags="MASQUERADE", packets=1, ifindex=INTERFACES["uplink"]),
            nat(ANSWER),
            do("empty", "devices"),
            kept_back(tcp("c", "world", 1000, 443, "S"), "NO_ROUTE"),
        ],
    ),
    (
        "pods are told apart by the port; a flow that is over gives it back",
        [
            MASQUERADE,
            goes_out(SYN, SYN_OUT),
            kept_back(tcp("c", "world", 1000, 443, "S"), "NAT_PORTS"),
            goes_out(tcp("c", "world", 1000, 444, "S"), tcp("node", "world", PORT, 444, "S")),
            expire(SYN, ANSWER),
            goes_out(SYN, SYN_OUT),
            do("config", port_min=PORT, port_max=PORT + 1),
        ],
    ),
    (
        "who keeps its address: off, excluded, towards nodes, others' packets, the node's",
        [
            kept(SYN),
            MASQUERADE,
            do("unmasqueraded", ("far", 24, 64)),
            kept(tcp("b", "far", 1000, 443, "S")),
            kept(tcp("b", "far-too", 1000, 443, "S")),
            kept(tcp("b", "other-node", 1000, 443, "S")),
            kept(tcp("b", "node", 1000, 443, "S")),
            kept(tcp("free", "world", 1000, 443, "S")),
            kept(tcp("node", "world", 1000, 443, "S"), via=0),
            kept(tcp("world", "nobody", 1000, 443, "S"), via=INTERFACES["eth"]),
            goes_out(tcp("b", "beyond", 1000, 443, "S"), tcp("node", "beyond", PORT, 443, "S")),
        ],
    ),
    (
        "what a pod answers to somebody who asked it by its own address",
        [
            MASQUERADE,
            tracked(tcp("b", "world", 8080, 1000, "SA"), "CT_REPLY"),
            kept(tcp("b", "world", 8080, 1000, "SA")),
            tracked(SYN, "CT_ESTABLISHED"),
            goes_out(SYN, SYN_OUT),
        ],
    ),
    (
        "what a backend answers by its frontend is not masqueraded",
        [
            MASQUERADE,
            do("frontend", "node", 30080, Frontend([("b", 8080)], kinds=("NODE_PORT",))),
            comes_in(tcp("world", "node", 1000, 30080, "S"), tcp("world", "b", 1000, 8080, "S")),
            goes_out(tcp("b", "world", 8080, 1000, "SA"), tcp("node", "world", 30080, 1000, "SA")),
        ],
    ),
    (
        "fragments",
        [
            MASQUERADE,
            *(
                goes_out(before, after)
                for before, after in zip(
                    fragments(udp("b", "world", 1000, 53), [16, 8]),
                    fragments(udp("node", "world", PORT, 53), [16, 8]),
                    strict=True,
                )
            ),
        ],
    ),
    (
        "behind options and extension headers",
        [
            MASQUERADE,
            goes_out(
                replace(SYN, options=b"\1\1\1\0", extensions=((60, bytes([0, 1, 4, 0, 0, 0, 0])),)),
                replace(SYN_OUT, options=b"\1\1\1\0", extensions=((60, bytes([0, 1, 4, 0, 0, 0, 0])),)),
            ),
        ],
    ),
    (
        "a map that is full",
        [
            MASQUERADE,
            goes_out(SYN, SYN_OUT),
            do("fill", "nat", 1),
            kept_back(tcp("c", "world", 1000, 444, "S"), "NAT_FULL", tally="NAT_FULL"),
            goes_out(tcp("b", "world", 1000, 443), tcp("node", "world", PORT, 443)),
            comes_in(ANSWER, ANSWER_B),
        ],
    ),
    (
        "the node's own packet whose answers would be taken for a pod's, or for those of a backend elsewhere",
        [
            MASQUERADE,
            do("frontend", "vip", 53, Frontend([("far", 5353)], kinds=("LOAD_BALANCER",)), UDP),
            goes_out(SYN, SYN_OUT),
            kept_back(tcp("node", "world", PORT, 443, "S"), "TUPLE_TAKEN", via=0),
            kept(tcp("node", "world", PORT, 444, "S"), via=0),
            kept(tcp("node", "world", PORT, 443, "S"), via=INTERFACES["eth"]),
            goes_on(udp("world", "vip", 1000, 53), udp("node", "far", PORT, 5353)),
            kept_back(udp("node", "far", PORT, 5353), "TUPLE_TAKEN", via=0),
            expire(SYN, ANSWER),
            kept(tcp("node", "world", PORT, 443, "S"), via=0),
        ],
    ),
    (
        "a pod's source from outside finds nothing",
        [MASQUERADE, goes_out(SYN, SYN_OUT), ignored(tcp("b", "world", 1000, 443))],
    ),
]


@pytest.mark.parametrize("steps", [steps for _, steps in CASES], ids=[name for name, _ in CASES])
def test_masquerade(node: Kernel, steps: list[Change]) -> None:
    run(node, steps)


def test_ports_are_all_found(node: Kernel) -> None:
    """Flows to one destination get each port of the range once, until tries fail."""
    first, last = PORT, PORT + 7
    node.config(features=1, port_min=first, port_max=last)
    ports = set()
    for source_port in range(1000, 1000 + 200):
        packet = tcp("b", "world", source_port, 443, "S")
        outcome = node.send("eth", packet, "to_network", POD)
        if outcome.action == 0:
            ports.add(be16(node.nat(packet).after_source_port_be))
        else:
            assert outcome.drops == {"DROP_NAT_PORTS": 1}
    assert ports == set(range(first, last + 1))
    assert sum(1 for _ in node.maps["nat"].items()) == 2 * len(ports)

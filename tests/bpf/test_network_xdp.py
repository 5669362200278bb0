"""XDP: what passes through this node is sent on at once, and all else goes to tc as it came."""

from __future__ import annotations

import struct
from dataclasses import replace

import pytest
from frames import (
    SCTP,
    TCP,
    UDP,
    Packet,
    checksum,
    error,
    flow,
    fragments,
    host_mac,
    icmp,
    pod_mac,
    raw_address,
    tcp,
    udp,
)
from kernel import Kernel
from map_content import INTERFACES, Frontend
from network_node import PORT
from network_rows import by_xdp, comes_in, expire, goes_on, left_to_tc, mark_gone, nat, stopped
from table import Case, Change, do, run
from test_network_dsr import naming

from agent.datapath import testrun
from agent.datapath.testrun import XdpAction

HERE = do("frontend", "node", 30080, Frontend([("b", 8080)], kinds=("NODE_PORT",)))
AWAY = do("frontend", "vip", 80, Frontend([("far", 8080)], kinds=("LOAD_BALANCER",)))
AWAY_UDP = do("frontend", "vip", 53, Frontend([("far", 5353)], kinds=("LOAD_BALANCER",)), UDP)
OUT, OUT_FAR = tcp("world", "vip", 1000, 80, "S"), tcp("node", "far", PORT, 8080, "S")
ANSWER, ANSWER_VIP = tcp("far", "node", 8080, PORT, "SA"), tcp("vip", "world", 80, 1000, "SA")
SYN = tcp("world", "node", 1000, 30080, "S")


def tunnel(kernel: Kernel) -> None:
    """`uplink` is one from now on: it has no address, and packets leave it with the node's."""
    kernel.maps["devices"].update(
        struct.pack("=I", INTERFACES["uplink"]), kernel.pack("device", mac=host_mac("uplink"))
    )
    kernel.config(ipv4=kernel.address("node"), ipv6=kernel.address("node"))


CASES: list[Case] = [
    (
        "a TCP connection, both ways",
        [
            AWAY,
            by_xdp(OUT, OUT_FAR),
            nat(OUT, flags="FORWARD", packets=1),
            by_xdp(ANSWER, ANSWER_VIP),
            nat(OUT, flags="FORWARD ESTABLISHED"),
            by_xdp(tcp("world", "vip", 1000, 80), tcp("node", "far", PORT, 8080)),
            by_xdp(tcp("world", "vip", 1000, 80, "FA"), tcp("node", "far", PORT, 8080, "FA")),
            by_xdp(tcp("far", "node", 8080, PORT, "FA"), tcp("vip", "world", 80, 1000, "FA")),
            nat(OUT, flags="FORWARD ESTABLISHED FIN CLOSED", packets=3),
            do("frontend", "vip", 80, Frontend([("far-too", 8080)], kinds=("LOAD_BALANCER",))),
            by_xdp(OUT, tcp("node", "far-too", PORT, 8080, "S")),
        ],
    ),
    (
        "UDP, with and without checksum",
        [
            AWAY_UDP,
            by_xdp(udp("world", "vip", 1000, 53), udp("node", "far", PORT, 5353)),
            by_xdp(udp("far", "node", 5353, PORT), udp("vip", "world", 53, 1000)),
            by_xdp(udp("world", "vip", 1000, 53, True), udp("node", "far", PORT, 5353, True)),
        ],
    ),
    (
        "one flow, some of it by tc",
        [
            AWAY,
            goes_on(OUT, OUT_FAR),
            by_xdp(ANSWER, ANSWER_VIP),
            goes_on(tcp("world", "vip", 1000, 80), tcp("node", "far", PORT, 8080)),
        ],
    ),
    (
        "from another device; towards one whose neighbour is not known yet",
        [
            AWAY,
            do("frontend", "vip", 81, Frontend([("beyond", 8080)], kinds=("LOAD_BALANCER",))),
            by_xdp(tcp("world", "vip", 1000, 81, "S"), tcp("uplink", "beyond", PORT, 8080, "S"), by="uplink"),
            by_xdp(tcp("nobody", "vip", 1000, 80, "S"), OUT_FAR, "uplink"),
            left_to_tc(ANSWER),
            goes_on(ANSWER, tcp("vip", "nobody", 80, 1000, "SA")),
        ],
    ),
    (
        "a backend here: tc follows what was chosen",
        [
            HERE,
            left_to_tc(SYN),
            nat(SYN, flags="", packets=0),
            do("frontend", "node", 30080, Frontend([("c", 8080)], kinds=("NODE_PORT",))),
            comes_in(SYN, tcp("world", "b", 1000, 8080, "S")),
            nat(SYN, flags="", packets=1),
            left_to_tc(SYN),
        ],
    ),
    (
        "direct server return, once the frontend is named",
        [
            do("frontend", "vip", 80, Frontend([("far", 8080)], kinds=("LOAD_BALANCER", "DSR"))),
            do("frontend", "vip", 53, Frontend([("far", 5353)], kinds=("LOAD_BALANCER", "DSR")), UDP),
            left_to_tc(OUT),
            nat(OUT),
            goes_on(OUT, naming(tcp("world", "far", 1000, 8080, "S"), "vip", 80)),
            left_to_tc(OUT),
            by_xdp(tcp("world", "vip", 1000, 80), tcp("world", "far", 1000, 8080)),
            goes_on(udp("world", "vip", 1000, 53), naming(udp("world", "far", 1000, 5353), "vip", 53)),
            left_to_tc(udp("world", "vip", 1000, 53)),
        ],
    ),
    (
        "what is not plain TCP or UDP to this device",
        [
            AWAY,
            AWAY_UDP,
            do("frontend", "vip", 9, Frontend([("far", 9)], kinds=("LOAD_BALANCER",)), SCTP),
            by_xdp(OUT, OUT_FAR),
            left_to_tc(OUT, macs=(b"\2\0\0\0\7\7", pod_mac("eth"))),
            left_to_tc(OUT, macs=(b"\xff" * 6, pod_mac("eth"))),
            left_to_tc(OUT, macs=(host_mac("uplink"), pod_mac("eth"))),
            left_to_tc(replace(OUT, vlan=5)),
            left_to_tc(replace(OUT, ethertype=0x0806)),
            left_to_tc(replace(OUT, options=b"\1\1\1\0", extensions=((60, bytes([0, 1, 4, 0, 0, 0, 0])),))),
            left_to_tc(replace(OUT, length=1000)),
            left_to_tc(replace(OUT, ttl=1)),
            left_to_tc(fragments(udp("world", "vip", 1000, 53), [16, 8])[0]),
            left_to_tc(flow(SCTP, "world", "vip", 1000, 9)),
            left_to_tc(icmp("world", "vip", (8, 128))),
            left_to_tc(error("world", "vip", ANSWER_VIP)),
            nat(OUT, flags="FORWARD", packets=1),
        ],
    ),
    (
        "what tc is to drop or refuse",
        [
            do("frontend", "vip", 80, Frontend(kinds=("LOAD_BALANCER",))),
            left_to_tc(OUT),
            do("frontend", "vip", 80, Frontend([("unreachable", 8080)], kinds=("LOAD_BALANCER",))),
            left_to_tc(OUT),
            AWAY,
            by_xdp(OUT, OUT_FAR),
            mark_gone(OUT),
            left_to_tc(tcp("world", "vip", 1000, 80)),
            left_to_tc(tcp("router", "vip", 1000, 80, "S")),
            stopped(tcp("router", "vip", 1000, 80, "S"), "NAT_PORTS"),
        ],
    ),
    (
        "no frontend, or none for clients outside",
        [
            do("service", "web", 80, [("far", 8080)]),
            left_to_tc(tcp("world", "web", 1000, 80, "S")),
            left_to_tc(tcp("world", "node", 1000, 22, "S")),
            left_to_tc(tcp("world", "b", 1000, 8080, "S")),
        ],
    ),
    (
        "a flow that is over",
        [
            AWAY,
            by_xdp(OUT, OUT_FAR),
            expire(OUT, ANSWER),
            left_to_tc(ANSWER),
            do("frontend", "vip", 80, Frontend([("far-too", 8080)], kinds=("LOAD_BALANCER",))),
            by_xdp(OUT, tcp("node", "far-too", PORT, 8080, "S")),
        ],
    ),
    (
        "a device that is not the datapath's",
        [
            AWAY,
            by_xdp(OUT, OUT_FAR),
            do("empty", "devices"),
            left_to_tc(OUT),
            do("device", "eth"),
            by_xdp(OUT, OUT_FAR),
            do("frontend", "vip", 81, Frontend([("beyond", 8080)], kinds=("LOAD_BALANCER",))),
            left_to_tc(tcp("world", "vip", 1000, 81, "S")),
        ],
    ),
    (
        "to a node behind a tunnel, which takes no frames from XDP",
        [
            do("frontend", "vip", 81, Frontend([("beyond", 8080)], kinds=("LOAD_BALANCER",))),
            tunnel,
            left_to_tc(tcp("world", "vip", 1000, 81, "S")),
            nat(tcp("world", "vip", 1000, 81, "S")),
            goes_on(tcp("world", "vip", 1000, 81, "S"), tcp("node", "beyond", PORT, 8080, "S")),
            left_to_tc(tcp("world", "vip", 1000, 81)),
        ],
    ),
]


@pytest.mark.parametrize("steps", [steps for _, steps in CASES], ids=[name for name, _ in CASES])
def test_xdp(node: Kernel, steps: list[Change]) -> None:
    run(node, steps)


def test_a_frame_cut_short_is_left_to_tc(node: Kernel) -> None:
    """At every length: nothing is read or written beyond the end."""
    AWAY(node)
    frame = OUT.encode(node.family, host_mac("eth"), pod_mac("eth"))
    for size in range(14, len(frame)):
        left_to_tc(replace(OUT, size=size))(node)
    by_xdp(OUT, OUT_FAR)(node)


@pytest.mark.parametrize("packet", [OUT, udp("world", "vip", 1000, 53)], ids=["TCP", "UDP"])
def test_a_checksum_left_to_the_device_is_left_to_tc(node: Kernel, packet: Packet) -> None:
    """What a sender on the same machine writes in its place, the sum of the pseudo header, cannot be updated here."""
    AWAY(node)
    AWAY_UDP(node)
    source, destination = (raw_address(name, node.family) for name in (packet.source, packet.destination))
    length = len(packet.l4.encode(node.family, b""))
    pseudo = source + destination + struct.pack("!HH", packet.l4.protocol, length)
    frame = bytearray(packet.encode(node.family, host_mac("eth"), pod_mac("eth")))
    at = len(frame) - length + (16 if packet.l4.protocol == TCP else 6)
    struct.pack_into("!H", frame, at, ~checksum(pseudo) & 0xFFFF)
    result = node.network.run(testrun.run_xdp, node.programs["xdp_network"], bytes(frame), ifindex=INTERFACES["eth"])
    assert (result.action, result.packet) == (XdpAction.PASS, bytes(frame))
    by_xdp(
        packet,
        replace(
            packet,
            source="node",
            destination="far",
            l4=replace(packet.l4, source_port=PORT, destination_port=8080 if packet is OUT else 5353),
        ),
    )(node)


def test_a_udp_checksum_that_comes_to_zero_is_sent_as_ones(node: Kernel) -> None:
    """RFC 768: zero means that there is none."""
    AWAY_UDP(node)
    for data in range(1 << 16):
        ask = udp("world", "vip", 1000, 53)
        ask = replace(ask, l4=replace(ask.l4, data=struct.pack("!H", data)))
        out = replace(
            ask, source="node", destination="far", l4=replace(ask.l4, source_port=PORT, destination_port=5353)
        )
        if out.encode_ip(node.family)[-4:-2] == b"\xff\xff":
            break
    else:
        raise AssertionError("no data makes the checksum zero")
    by_xdp(ask, out)(node)
    goes_on(ask, out)(node)

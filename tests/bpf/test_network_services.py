"""Frontends to clients outside: by the node's devices to backends here and, with the node's address, elsewhere."""

from __future__ import annotations

from dataclasses import replace

import pytest
from frames import L4, SCTP, UDP, Packet, address, error, flow, fragments, host_mac, icmp, pod_mac, tcp, udp
from kernel import Kernel
from map_content import INTERFACES, Frontend
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

from agent.datapath import testrun
from agent.datapath.abi import be16
from agent.datapath.testrun import Action

NODE_PORT, BALANCER = ("NODE_PORT",), ("LOAD_BALANCER",)
HERE = do("frontend", "node", 30080, Frontend([("b", 8080)], kinds=NODE_PORT))
AWAY = do("frontend", "vip", 80, Frontend([("far", 8080)], kinds=BALANCER))
AWAY_UDP = do("frontend", "vip", 53, Frontend([("far", 5353)], kinds=BALANCER), UDP)

SYN, SYN_B = tcp("world", "node", 1000, 30080, "S"), tcp("world", "b", 1000, 8080, "S")
BACK, BACK_NODE = tcp("b", "world", 8080, 1000, "SA"), tcp("node", "world", 30080, 1000, "SA")
OUT, OUT_FAR = tcp("world", "vip", 1000, 80, "S"), tcp("node", "far", PORT, 8080, "S")
ANSWER, ANSWER_VIP = tcp("far", "node", 8080, PORT, "SA"), tcp("vip", "world", 80, 1000, "SA")


def big(packet: Packet, size: int) -> Packet:
    return replace(packet, l4=replace(packet.l4, data=bytes(size)))


HERE_CASES: list[Case] = [
    (
        "TCP to a pod here: its client's address is kept, its answers take the frontend's",
        [
            HERE,
            comes_in(SYN, SYN_B),
            nat(SYN, flags="", packets=1, ifindex=INTERFACES["eth"]),
            nat(BACK, flags="REPLY", packets=0),
            goes_out(BACK, BACK_NODE),
            nat(SYN, flags="ESTABLISHED"),
            nat(BACK, flags="REPLY ESTABLISHED", packets=1),
            comes_in(tcp("world", "node", 1000, 30080), tcp("world", "b", 1000, 8080)),
            comes_in(tcp("world", "node", 1000, 30080, "FA"), tcp("world", "b", 1000, 8080, "FA")),
            nat(SYN, flags="ESTABLISHED FIN"),
            goes_out(tcp("b", "world", 8080, 1000, "FA"), tcp("node", "world", 30080, 1000, "FA")),
            nat(SYN, flags="ESTABLISHED FIN CLOSED"),
            nat(BACK, flags="REPLY ESTABLISHED FIN CLOSED"),
            comes_in(tcp("world", "node", 1000, 30080), tcp("world", "b", 1000, 8080)),
            do("frontend", "node", 30080, Frontend([("c", 8080)], kinds=NODE_PORT)),
            comes_in(SYN, tcp("world", "c", 1000, 8080, "S")),
            nat(SYN, flags="", packets=1),
            nat(BACK),
        ],
    ),
    (
        "a reset that nobody can have sent who knows the connection does not end it",
        [
            HERE,
            comes_in(SYN, SYN_B),
            goes_out(BACK, BACK_NODE),
            comes_in(
                Packet("world", "node", L4(6, 1000, 30080, "R", sequence=1 << 30)),
                Packet("world", "b", L4(6, 1000, 8080, "R", sequence=1 << 30)),
            ),
            nat(SYN, flags="ESTABLISHED"),
            comes_in(tcp("world", "node", 1000, 30080, "R"), tcp("world", "b", 1000, 8080, "R")),
            nat(SYN, flags="ESTABLISHED CLOSED"),
        ],
    ),
    (
        "UDP, with and without checksum",
        [
            do("frontend", "vip", 53, Frontend([("b", 5353)], kinds=BALANCER), UDP),
            comes_in(udp("world", "vip", 1000, 53), udp("world", "b", 1000, 5353)),
            goes_out(udp("b", "world", 5353, 1000), udp("vip", "world", 53, 1000)),
            comes_in(udp("world", "vip", 1000, 53, True), udp("world", "b", 1000, 5353, True)),
        ],
    ),
    (
        "SCTP, whose port stays",
        [
            do("frontend", "vip", 9, Frontend([("b", 9)], kinds=BALANCER), SCTP),
            do("frontend", "vip", 10, Frontend([("b", 9)], kinds=BALANCER), SCTP),
            comes_in(flow(SCTP, "world", "vip", 1000, 9), flow(SCTP, "world", "b", 1000, 9)),
            goes_out(flow(SCTP, "b", "world", 9, 1000), flow(SCTP, "vip", "world", 9, 1000)),
            stopped(flow(SCTP, "world", "vip", 1000, 10), "SCTP_PORT"),
        ],
    ),
    (
        "a process of this node as backend",
        [
            do("frontend", "node", 30080, Frontend([("node", 8080)], kinds=NODE_PORT)),
            comes_in(SYN, tcp("world", "node", 1000, 8080, "S")),
            goes_out(tcp("node", "world", 8080, 1000, "SA"), BACK_NODE, via=0),
        ],
    ),
    (
        "two frontends of one backend asked from one port: each is answered in its name",
        [
            HERE,
            do("frontend", "vip", 80, Frontend([("b", 8080)], kinds=BALANCER)),
            comes_in(SYN, SYN_B),
            comes_in(OUT, tcp("world", "b", PORT, 8080, "S")),
            goes_out(tcp("b", "world", 8080, PORT, "SA"), ANSWER_VIP),
            goes_out(BACK, BACK_NODE),
            comes_in(tcp("world", "vip", 1000, 80), tcp("world", "b", PORT, 8080)),
        ],
    ),
    (
        "what no frontend is for passes as it is",
        [
            HERE,
            do("service", "web", 80, [("b", 8080)]),
            do("frontend", "node", 30081, Frontend([("b", 8080)], kinds=("LOOPBACK",))),
            ignored(tcp("world", "web", 1000, 80, "S")),
            ignored(tcp("world", "node", 1000, 30081, "S")),
            ignored(tcp("world", "node", 1000, 22, "S")),
            ignored(udp("world", "node", 1000, 30080)),
            ignored(tcp("world", "b", 1000, 8080, "S")),
            ignored(icmp("world", "node", (8, 128))),
            ignored(icmp("router", "node", (9, 134))),
            ignored(BACK, program="to_network", via=102),
            ignored(tcp("node", "world", 22, 1000), program="to_network"),
            ignored(replace(SYN, vlan=5)),
            ignored(replace(SYN, length=1000)),
            nat(SYN),
        ],
    ),
    (
        "an entry is for packets of its direction alone",
        [
            HERE,
            AWAY,
            comes_in(SYN, SYN_B),
            ignored(BACK),
            ignored(SYN, program="to_network", via=111),
            goes_on(OUT, OUT_FAR),
            ignored(ANSWER, program="to_network", via=111),
        ],
    ),
    (
        "a backend that is gone: its client is told, and may begin anew",
        [
            HERE,
            comes_in(SYN, SYN_B),
            goes_out(BACK, BACK_NODE),
            mark_gone(SYN),
            refused("eth", tcp("world", "node", 1000, 30080), "BACKEND_GONE", "from_network"),
            do("frontend", "node", 30080, Frontend([("c", 8080)], kinds=NODE_PORT)),
            comes_in(SYN, tcp("world", "c", 1000, 8080, "S")),
        ],
    ),
    (
        "an entry outlives its partner, but not both their times",
        [
            HERE,
            comes_in(SYN, SYN_B),
            do("frontend", "node", 30080, Frontend([("c", 8080)], kinds=NODE_PORT)),
            expire(SYN),
            comes_in(SYN, SYN_B),
            expire(BACK),
            goes_out(BACK, BACK_NODE),
            expire(SYN, BACK),
            ignored(BACK, program="to_network", via=102),
            comes_in(SYN, tcp("world", "c", 1000, 8080, "S")),
        ],
    ),
    (
        "a map that is full: flows live on, new ones are dropped and counted",
        [
            HERE,
            comes_in(SYN, SYN_B),
            do("fill", "nat", 1),
            stopped(tcp("world", "node", 1001, 30080, "S"), "NAT_FULL", tally="NAT_FULL", service="node"),
            nat(tcp("b", "world", 8080, 1001)),
            do("fill", "nat"),
            stopped(tcp("world", "node", 1001, 30080, "S"), "NAT_FULL", tally="NAT_FULL"),
            goes_out(BACK, BACK_NODE),
            comes_in(tcp("world", "node", 1000, 30080), tcp("world", "b", 1000, 8080)),
        ],
    ),
    (
        "fragments",
        [
            do("frontend", "vip", 53, Frontend([("b", 5353)], kinds=BALANCER), UDP),
            *(
                comes_in(before, after)
                for before, after in zip(
                    fragments(udp("world", "vip", 1000, 53), [16, 8]),
                    fragments(udp("world", "b", 1000, 5353), [16, 8]),
                    strict=True,
                )
            ),
            ignored(replace(fragments(udp("world", "vip", 1000, 53), [16, 8])[1], identification=8)),
        ],
    ),
]

LIFE_CASES: list[Case] = [
    (
        "how long TCP is remembered: unanswered, answered, closed",
        [
            HERE,
            comes_in(SYN, SYN_B),
            nat(SYN, lasts=60),
            goes_out(BACK, BACK_NODE),
            nat(BACK, lasts=600),
            nat(SYN, lasts=60),
            comes_in(tcp("world", "node", 1000, 30080), tcp("world", "b", 1000, 8080)),
            nat(SYN, lasts=600),
            comes_in(tcp("world", "node", 1000, 30080, "FA"), tcp("world", "b", 1000, 8080, "FA")),
            nat(SYN, lasts=600),
            goes_out(tcp("b", "world", 8080, 1000, "FA"), tcp("node", "world", 30080, 1000, "FA")),
            nat(SYN, lasts=10),
            nat(BACK, lasts=10),
            comes_in(tcp("world", "node", 1000, 30080), tcp("world", "b", 1000, 8080)),
            nat(SYN, lasts=10),
        ],
    ),
    (
        "how long UDP is",
        [
            do("frontend", "vip", 53, Frontend([("b", 5353)], kinds=BALANCER), UDP),
            comes_in(udp("world", "vip", 1000, 53), udp("world", "b", 1000, 5353)),
            nat(udp("world", "vip", 1000, 53), lasts=30),
            goes_out(udp("b", "world", 5353, 1000), udp("vip", "world", 53, 1000)),
            nat(udp("b", "world", 5353, 1000), lasts=120),
            comes_in(udp("world", "vip", 1000, 53), udp("world", "b", 1000, 5353)),
            nat(udp("world", "vip", 1000, 53), lasts=120),
        ],
    ),
    (
        "the entry of another flow keeps none alive",
        [
            HERE,
            comes_in(SYN, SYN_B),
            expire(SYN),
            edit_nat(BACK, created_ns=1),
            do("frontend", "node", 30080, Frontend([("c", 8080)], kinds=NODE_PORT)),
            comes_in(SYN, tcp("world", "c", 1000, 8080, "S")),
            nat(BACK, created_ns=1),
        ],
    ),
    (
        "a connection that is over keeps nobody from asking the backend by another frontend",
        [
            HERE,
            do("frontend", "vip", 80, Frontend([("b", 8080)], kinds=BALANCER)),
            comes_in(SYN, SYN_B),
            goes_out(tcp("b", "world", 8080, 1000, "R"), tcp("node", "world", 30080, 1000, "R")),
            comes_in(OUT, SYN_B),
            nat(SYN),
        ],
    ),
]

CHOICE_CASES: list[Case] = [
    (
        "no backend at all: refused",
        [
            do("frontend", "node", 30080, Frontend(kinds=NODE_PORT)),
            do("frontend", "node", 30053, Frontend(kinds=NODE_PORT), UDP),
            refused("eth", SYN, "NO_BACKEND", "from_network", source="world", destination="node"),
            refused("eth", udp("world", "node", 1000, 30053), "NO_BACKEND", "from_network"),
            nat(SYN),
        ],
    ),
    (
        "no backend here, where none but local ones may be: dropped; clients in the cluster use all",
        [
            do("frontend", "node", 30080, Frontend([("b", 8080)], [], (*NODE_PORT, "DROP_OUTSIDE", "LOCAL_OUTSIDE"))),
            stopped(SYN, "NO_LOCAL_BACKEND", source_identity=2),
            stopped(tcp("other-node", "node", 1000, 30080, "S"), "NO_LOCAL_BACKEND", source_identity=6),
            comes_in(tcp("far", "node", 1000, 30080, "S"), tcp("far", "b", 1000, 8080, "S")),
        ],
    ),
    (
        "source ranges",
        [
            do("frontend", "vip", 80, Frontend([("b", 8080)], kinds=BALANCER, ranges=[("world", 24, 64)])),
            comes_in(OUT, SYN_B),
            stopped(tcp("nobody", "vip", 1000, 80, "S"), "SOURCE_RANGE"),
        ],
    ),
    (
        "clients that keep their backend",
        [
            do("frontend", "vip", 80, Frontend([("b", 8080), ("c", 8080)], kinds=BALANCER, affinity_s=60, table=[0])),
            comes_in(OUT, SYN_B),
            do("frontend", "vip", 80, Frontend([("b", 8080), ("c", 8080)], kinds=BALANCER, affinity_s=60, table=[1])),
            comes_in(tcp("world", "vip", 1001, 80, "S"), tcp("world", "b", 1001, 8080, "S")),
            comes_in(tcp("router", "vip", 1001, 80, "S"), tcp("router", "c", 1001, 8080, "S")),
        ],
    ),
]

AWAY_CASES: list[Case] = [
    (
        "TCP to a backend elsewhere goes with this node's address, and its answers come back by here",
        [
            AWAY,
            goes_on(OUT, OUT_FAR),
            nat(OUT, flags="FORWARD", packets=1),
            nat(ANSWER, flags="FORWARD REPLY", packets=0),
            goes_on(ANSWER, ANSWER_VIP),
            nat(OUT, flags="FORWARD ESTABLISHED"),
            goes_on(tcp("world", "vip", 1000, 80), tcp("node", "far", PORT, 8080)),
            ignored(OUT_FAR, program="to_network", via=INTERFACES["eth"]),
            ignored(ANSWER_VIP, program="to_network", via=INTERFACES["eth"]),
        ],
    ),
    (
        "UDP, with and without checksum",
        [
            AWAY_UDP,
            goes_on(udp("world", "vip", 1000, 53), udp("node", "far", PORT, 5353)),
            goes_on(udp("far", "node", 5353, PORT), udp("vip", "world", 53, 1000)),
            goes_on(udp("world", "vip", 1000, 53, True), udp("node", "far", PORT, 5353, True)),
        ],
    ),
    (
        "two clients are told apart by the port alone; another backend's flows may have the same",
        [
            AWAY,
            do("frontend", "vip", 81, Frontend([("far-too", 8080)], kinds=BALANCER)),
            goes_on(OUT, OUT_FAR),
            stopped(tcp("world", "vip", 1001, 80, "S"), "NAT_PORTS"),
            nat(tcp("world", "vip", 1001, 80)),
            goes_on(tcp("world", "vip", 1001, 81, "S"), tcp("node", "far-too", PORT, 8080, "S")),
            do("config", port_min=PORT + 1, port_max=PORT + 1),
            goes_on(tcp("world", "vip", 1001, 80, "S"), tcp("node", "far", PORT + 1, 8080, "S")),
            goes_on(tcp("far", "node", 8080, PORT + 1, "SA"), tcp("vip", "world", 80, 1001, "SA")),
            goes_on(ANSWER, ANSWER_VIP),
        ],
    ),
    (
        "no port to give out",
        [
            AWAY,
            do("config", port_min=0, port_max=0),
            stopped(OUT, "NAT_PORTS"),
            do("config", port_min=PORT, port_max=PORT - 1),
            stopped(OUT, "NAT_PORTS"),
        ],
    ),
    (
        "SCTP keeps the client's port, if it can",
        [
            do("frontend", "vip", 9, Frontend([("far", 9)], kinds=BALANCER), SCTP),
            goes_on(flow(SCTP, "world", "vip", 1000, 9), flow(SCTP, "node", "far", 1000, 9)),
            goes_on(flow(SCTP, "far", "node", 9, 1000), flow(SCTP, "vip", "world", 9, 1000)),
            stopped(flow(SCTP, "router", "vip", 1000, 9), "NAT_PORTS"),
            expire(flow(SCTP, "world", "vip", 1000, 9), flow(SCTP, "far", "node", 9, 1000)),
            goes_on(flow(SCTP, "router", "vip", 1000, 9), flow(SCTP, "node", "far", 1000, 9)),
        ],
    ),
    (
        "a client behind another device, and a backend there: each with the device's address",
        [
            AWAY,
            goes_on(tcp("nobody", "vip", 1000, 80, "S"), OUT_FAR, "uplink"),
            goes_on(ANSWER, tcp("vip", "nobody", 80, 1000, "SA")),
            do("frontend", "vip", 81, Frontend([("nobody", 8080)], kinds=BALANCER)),
            goes_on(tcp("world", "vip", 1000, 81, "S"), tcp("uplink", "nobody", PORT, 8080, "S")),
        ],
    ),
    (
        "a backend to which no route leads, or for which this node has no address",
        [
            do("frontend", "vip", 80, Frontend([("unreachable", 8080)], kinds=BALANCER)),
            stopped(OUT, "NO_ROUTE", destination="unreachable"),
            nat(OUT),
            AWAY,
            do("empty", "devices"),
            stopped(OUT, "NO_ROUTE"),
        ],
    ),
    (
        "a backend that is gone",
        [
            AWAY,
            goes_on(OUT, OUT_FAR),
            mark_gone(OUT),
            mark_gone(ANSWER),
            goes_on(ANSWER, ANSWER_VIP),
            goes_on(error("world", "vip", ANSWER_VIP), error("node", "far", ANSWER)),
            refused("eth", tcp("world", "vip", 1000, 80), "BACKEND_GONE", "from_network"),
            do("frontend", "vip", 80, Frontend([("far-too", 8080)], kinds=BALANCER)),
            goes_on(OUT, tcp("node", "far-too", PORT, 8080, "S")),
            nat(ANSWER),
        ],
    ),
    (
        "its hops end here",
        [
            AWAY,
            told(replace(OUT, ttl=1), "TTL_EXCEEDED", (11, 3), (0, 0)),
            nat(OUT),
            AWAY_UDP,
            goes_on(
                fragments(udp("world", "vip", 1000, 53), [16, 8])[0],
                fragments(udp("node", "far", PORT, 5353), [16, 8])[0],
            ),
            stopped(replace(fragments(udp("world", "vip", 1000, 53), [16, 8])[1], ttl=1), "TTL_EXCEEDED"),
        ],
    ),
    (
        "behind options and extension headers",
        [
            AWAY,
            goes_on(
                replace(OUT, options=b"\1\1\1\0", extensions=((60, bytes([0, 1, 4, 0, 0, 0, 0])),)),
                replace(OUT_FAR, options=b"\1\1\1\0", extensions=((60, bytes([0, 1, 4, 0, 0, 0, 0])),)),
            ),
        ],
    ),
    (
        "fragments",
        [
            AWAY_UDP,
            *(
                goes_on(before, after)
                for before, after in zip(
                    fragments(udp("world", "vip", 1000, 53), [16, 8]),
                    fragments(udp("node", "far", PORT, 5353), [16, 8]),
                    strict=True,
                )
            ),
        ],
    ),
]

TOO_BIG = big(udp("world", "vip", 1000, 53), 1400)
TOO_BIG_CASES: list[Case] = [
    (
        "a packet too big for the way on",
        [
            do("frontend", "vip", 53, Frontend([("beyond", 5353)], kinds=BALANCER), UDP),
            told(TOO_BIG, "TOO_BIG", (3, 2), (4, 0), SMALL_MTU),
            goes_on(udp("world", "vip", 1000, 53), udp("uplink", "beyond", PORT, 5353)),
        ],
    )
]

CASES = HERE_CASES + LIFE_CASES + CHOICE_CASES + AWAY_CASES + TOO_BIG_CASES


@pytest.mark.parametrize("steps", [steps for _, steps in CASES], ids=[name for name, _ in CASES])
def test_network_service(node: Kernel, steps: list[Change]) -> None:
    run(node, steps)


def test_a_frame_for_another_host_is_left_alone(node: Kernel) -> None:
    """Such frames come in while somebody listens to all that is on the wire."""
    HERE(node)
    frame = SYN.encode(node.family, b"\2\0\0\0\7\7", b"\2\0\0\0\7\6")
    outcome = node.send("eth", frame, "from_network")
    assert (outcome.action, outcome.frame, outcome.drops) == (0, frame, {})


def test_a_backend_of_the_other_family_is_none(node: Kernel) -> None:
    HERE(node)
    other = node.pack("backend_value", address=address("b", 6 if node.family == 4 else 4), port_be=be16(8080))
    for key in [key for key, _ in node.maps["backends"].items()]:
        node.maps["backends"].update(key, other)
    refused("eth", SYN, "NO_BACKEND", "from_network")(node)


@pytest.mark.parametrize("fits", [True, False])
def test_of_many_packets_in_one_each_must_fit(node: Kernel, fits: bool) -> None:
    """What the node's device has merged will leave as the packets that came."""
    node.frontend("vip", 80, Frontend([("beyond", 8080)], kinds=BALANCER))
    headers = len(OUT.encode_ip(node.family)) - len(OUT.l4.data)
    frame = big(OUT, 3000).encode(node.family, host_mac("eth"), pod_mac("eth"))
    segment = SMALL_MTU - headers + (not fits)
    result = node.network.run(
        testrun.run, node.programs["from_network"], frame, ifindex=INTERFACES["eth"], gso_size=segment
    )
    assert result.action == Action.REDIRECT
    assert (len(result.packet) == len(frame)) is fits
    nat(OUT, **({"packets": 1} if fits else {}))(node)

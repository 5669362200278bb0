"""ICMP errors about flows that the node's devices translate: each end hears of the packet it sent."""

from __future__ import annotations

import pytest
from frames import TIME_EXCEEDED, TOO_BIG, UDP, Packet, error, fragments, tcp, udp
from kernel import Kernel
from map_content import INTERFACES, Frontend
from network_node import PORT
from network_rows import comes_in, goes_on, goes_out, ignored, stopped
from table import Case, Change, do, run

HERE = do("frontend", "node", 30080, Frontend([("b", 8080)], kinds=("NODE_PORT",)))
AWAY = do("frontend", "vip", 80, Frontend([("far", 8080)], kinds=("LOAD_BALANCER",)))
AWAY_UDP = do("frontend", "vip", 53, Frontend([("far", 5353)], kinds=("LOAD_BALANCER",)), UDP)
MASQUERADE = do("config", features=1)

SYN, SYN_B = tcp("world", "node", 1000, 30080, "S"), tcp("world", "b", 1000, 8080, "S")
BACK, BACK_NODE = tcp("b", "world", 8080, 1000, "SA"), tcp("node", "world", 30080, 1000, "SA")
OUT, OUT_FAR = tcp("world", "vip", 1000, 80, "S"), tcp("node", "far", PORT, 8080, "S")
ANSWER, ANSWER_VIP = tcp("far", "node", 8080, PORT, "SA"), tcp("vip", "world", 80, 1000, "SA")
ASK, ASK_FAR = udp("world", "vip", 1000, 53), udp("node", "far", PORT, 5353)
POD, POD_OUT = tcp("b", "world", 1000, 443, "S"), tcp("node", "world", PORT, 443, "S")


def too_big(source: str, destination: str, quoted: Packet) -> Packet:
    return error(source, destination, quoted, TOO_BIG, (4, 0))


CASES: list[Case] = [
    (
        "about an answer of a backend here",
        [
            HERE,
            comes_in(SYN, SYN_B),
            comes_in(error("world", "node", BACK_NODE), error("world", "b", BACK)),
            comes_in(too_big("router", "node", BACK_NODE), too_big("router", "b", BACK)),
        ],
    ),
    (
        "about a packet to a backend here: by the backend, and by the node on the way to it",
        [
            HERE,
            comes_in(SYN, SYN_B),
            goes_out(error("b", "world", SYN_B), error("node", "world", SYN)),
            goes_out(too_big("node", "world", SYN_B), too_big("node", "world", SYN), via=0),
        ],
    ),
    (
        "about an answer that this node sent on: by the client, and by a router, in whose name this node cannot speak",
        [
            AWAY,
            goes_on(OUT, OUT_FAR),
            goes_on(error("world", "vip", ANSWER_VIP), error("node", "far", ANSWER)),
            goes_on(too_big("router", "vip", ANSWER_VIP), too_big("node", "far", ANSWER)),
        ],
    ),
    (
        "about a packet that this node sent on: by the backend, and by a router",
        [
            AWAY_UDP,
            goes_on(ASK, ASK_FAR),
            goes_on(error("far", "node", ASK_FAR), error("vip", "world", ASK)),
            goes_on(
                error("router", "node", ASK_FAR, TIME_EXCEEDED, (0, 0)),
                error("router", "world", ASK, TIME_EXCEEDED, (0, 0)),
            ),
            goes_on(error("far", "node", ASK_FAR, quoted_size=48), error("vip", "world", ASK, quoted_size=48)),
        ],
    ),
    (
        "about a pod's packet that left with the node's address, and about what the pod was answered",
        [
            MASQUERADE,
            goes_out(POD, POD_OUT),
            comes_in(error("router", "node", POD_OUT), error("router", "b", POD)),
            comes_in(too_big("world", "node", POD_OUT), too_big("world", "b", POD)),
            goes_out(
                error("b", "world", tcp("world", "b", 443, 1000)),
                error("node", "world", tcp("world", "node", 443, PORT)),
            ),
        ],
    ),
    (
        "about no flow of ours",
        [
            HERE,
            MASQUERADE,
            ignored(error("world", "node", BACK_NODE)),
            ignored(error("world", "node", tcp("node", "world", 22, 1000))),
            ignored(error("b", "world", tcp("world", "b", 1, 2)), program="to_network", via=INTERFACES["b"]),
        ],
    ),
    (
        "about a first fragment",
        [
            AWAY_UDP,
            goes_on(ASK, ASK_FAR),
            goes_on(
                error("far", "node", fragments(ASK_FAR, [16, 8])[0]), error("vip", "world", fragments(ASK, [16, 8])[0])
            ),
        ],
    ),
    (
        "no error is answered by another, and none keeps a flow alive",
        [
            AWAY,
            goes_on(OUT, OUT_FAR),
            do("empty", "devices"),
            stopped(Packet("world", "vip", error("world", "vip", ANSWER_VIP).l4, ttl=1), "TTL_EXCEEDED"),
        ],
    ),
]


@pytest.mark.parametrize("steps", [steps for _, steps in CASES], ids=[name for name, _ in CASES])
def test_network_icmp_error(node: Kernel, steps: list[Change]) -> None:
    run(node, steps)

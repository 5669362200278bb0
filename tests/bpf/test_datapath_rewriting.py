"""What rewriting (bpf/nat.h) does to packets that services never translate: pings, and protocols without ports."""

from __future__ import annotations

from dataclasses import replace

import pytest
from frames import L4, TOO_BIG, Icmp, Packet, echo, echo_reply, error, fragments
from kernel import Kernel
from table import STACK, Case, Change, arrives, do, new, run, sent

ID, GIVEN = 5, 61007
PING, PING_OUT = echo("a", "world", ID), echo("a", "world", GIVEN)
PONG, PONG_SEEN = echo_reply("world", "a", GIVEN), echo_reply("world", "a", ID)
MASQUERADED = echo("node", "world", GIVEN)
GRE = 47
TUNNEL, TUNNEL_OUT = Packet("a", "world", L4(GRE)), Packet("node", "world", L4(GRE))
QUERY = Icmp(kind=(13, 139), identifier=77)
TIMESTAMP, TIMESTAMP_OUT = Packet("a", "world", QUERY), Packet("node", "world", QUERY)
EXTENSIONS = ((60, bytes([0, 1, 4, 0, 0, 0, 0])),)
OPTIONS = bytes([1, 1, 1, 0])

BEGUN: list[Change] = [new("a", PING, STACK), do("retarget", PING, PING_OUT)]

CASES: list[Case] = [
    (
        "a ping gets another id, and its answers the first",
        [*BEGUN, sent("a", PING, STACK, PING_OUT), arrives("a", PONG, PONG_SEEN)],
    ),
    (
        "also from id 0, which is an id like others",
        [
            new("a", echo("a", "world", 0), STACK),
            do("retarget", echo("a", "world", 0), PING_OUT),
            sent("a", echo("a", "world", 0), STACK, PING_OUT),
        ],
    ),
    (
        "also behind options and extension headers",
        [
            *BEGUN,
            sent("a", replace(PING, options=OPTIONS, extensions=EXTENSIONS), STACK,
                 replace(PING_OUT, options=OPTIONS, extensions=EXTENSIONS)),
            arrives("a", replace(PONG, options=OPTIONS, extensions=EXTENSIONS),
                    replace(PONG_SEEN, options=OPTIONS, extensions=EXTENSIONS)),
        ],
    ),
    (
        "and another source",
        [new("a", PING, STACK), do("retarget", PING, MASQUERADED), sent("a", PING, STACK, MASQUERADED)],
    ),
    (
        "in fragments",
        [
            new("a", PING, STACK),
            do("retarget", PING, MASQUERADED),
            *(sent("a", part, STACK, replace(part, source="node", l4=MASQUERADED.l4))
              for part in fragments(PING, [16, 8])),
        ],
    ),
    (
        "errors about it have the first id",
        [
            *BEGUN,
            arrives("a", error("router", "a", PING_OUT, TOO_BIG, (4, 0)), error("router", "a", PING, TOO_BIG, (4, 0))),
            arrives("a", error("world", "a", PING_OUT), error("world", "a", PING)),
            lambda kernel: arrives("a", error("world", "a", PING_OUT, quoted_size=28 if kernel.family == 4 else 48),
                                   error("world", "a", PING, quoted_size=28 if kernel.family == 4 else 48))(kernel),
        ],
    ),
    (
        "errors about one that went to another address",
        [
            new("a", PING, STACK),
            do("retarget", PING, echo("a", "router", GIVEN)),
            arrives("a", error("router", "a", echo("a", "router", GIVEN)), error("world", "a", PING)),
            arrives("a", error("free", "a", echo("a", "router", GIVEN)), error("free", "a", PING)),
        ],
    ),
    (
        "errors about its answers have the other",
        [*BEGUN, arrives("a", PONG, PONG_SEEN), sent("a", error("a", "world", PONG_SEEN), STACK,
                                                     error("a", "world", PONG))],
    ),
    (
        "of a protocol without ports only the addresses change",
        [new("a", TUNNEL, STACK), do("retarget", TUNNEL, TUNNEL_OUT), sent("a", TUNNEL, STACK, TUNNEL_OUT)],
    ),
    (
        "of an ICMP message without an id too",
        [
            new("a", TIMESTAMP, STACK),
            do("retarget", TIMESTAMP, TIMESTAMP_OUT),
            sent("a", TIMESTAMP, STACK, TIMESTAMP_OUT),
        ],
    ),
]  # fmt: skip


@pytest.mark.parametrize("steps", [c[1] for c in CASES], ids=[c[0] for c in CASES])
def test_rewriting(kernel: Kernel, steps: list[Change]) -> None:
    run(kernel, steps)


def test_every_carry_of_an_id(kernel: Kernel) -> None:
    """60 pairs of ids, there and back."""
    for number in range(60):
        first, other = 1 + number * 1091, 65535 - number * 1087
        there, out = echo("a", "world", first), echo("a", "world", other)
        run(
            kernel,
            [
                new("a", there, STACK),
                do("retarget", there, out),
                sent("a", there, STACK, out),
                arrives("a", echo_reply("world", "a", other), echo_reply("world", "a", first)),
                arrives("a", error("router", "a", out), error("router", "a", there)),
            ],
        )
        kernel.empty("conntrack")

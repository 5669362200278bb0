"""Flows whose backend is no more: user space marks them, and the next packet there is refused."""

from __future__ import annotations

import time
from dataclasses import replace
from typing import Any

import pytest
from frames import SCTP, UDP, Packet, error, flow, tcp, udp
from kernel import SECONDS, Kernel
from refusals import refused
from table import STACK, Case, Change, arrives, arrives_new, do, dropped, entry, epoch, new, run, sent

CT_REPLY, CT_SERVICE, CT_SOURCE, CT_ESTABLISHED, CT_CLOSED, CT_LOCAL, CT_GONE = 1, 2, 4, 8, 32, 128, 256
LIVE = CT_SERVICE | CT_LOCAL | CT_ESTABLISHED
OVER = LIVE | CT_GONE | CT_CLOSED


def there(flags: str = "PA", port: int = 1000) -> Packet:
    """The numbers of a connection under way: a reset must have the one that its receiver expects."""
    packet = tcp("a", "web", port, 80, flags)
    return replace(packet, l4=replace(packet.l4, sequence=0x1000_0001, acknowledged=0xFFFF_FFF0))


SYN, ACK = there("S"), there("A")
EXTENSIONS = ((60, bytes([0, 1, 4, 0, 0, 0, 0])),)
OPTIONS = bytes([1, 1, 1, 0])
BACK, BACK_WEB = tcp("b", "a", 8080, 1000, "SA"), tcp("web", "a", 80, 1000, "SA")


def to_b(packet: Packet) -> Packet:
    return replace(packet, destination="b", l4=replace(packet.l4, destination_port=8080))


ESTABLISHED: list[Change] = [
    do("service", "web", 80, [("b", 8080)]),
    new("a", SYN, "b", to_b(SYN)),
    sent("b", BACK, "a", BACK_WEB),
    sent("a", ACK, "b", to_b(ACK)),
]
GONE: list[Change] = [*ESTABLISHED, do("service", "web", 80, [("c", 8080)]), do("mark", "GONE", SYN, BACK)]
OF_WEB: dict[str, Any] = {
    "source": "a",
    "destination": "b",
    "service": "web",
    "service_port_be": 80,
    "source_identity": 1001,
}


def answered_by_a_reset(name: str, packet: Packet) -> Case:
    return (
        f"{name} is answered by a reset, once and again",
        [
            *GONE,
            refused("a", packet, "BACKEND_GONE", **OF_WEB, destination_port_be=8080),
            entry(SYN, flags=OVER, packets=2),
            entry(BACK, flags=OVER | CT_REPLY),
            refused("a", packet, "BACKEND_GONE", **OF_WEB),
        ],
    )


def port_unreachable(name: str, protocol: int) -> Case:
    return (
        f"{name}: port unreachable",
        [
            do("service", "web", 80, [("b", 80)], protocol),
            new("a", flow(protocol, "a", "web", 1, 80), "b", flow(protocol, "a", "b", 1, 80)),
            do("mark", "GONE", flow(protocol, "a", "web", 1, 80), flow(protocol, "b", "a", 80, 1)),
            refused("a", flow(protocol, "a", "web", 1, 80), "BACKEND_GONE", service="web"),
        ],
    )


def from_outside(name: str, there: Packet, back: Packet) -> Case:
    return (
        f"flows from outside are not the pods' matter: {name}",
        [
            arrives_new("a", there),
            do("mark", "GONE", there, back),
            arrives("a", there),
            sent("a", back, STACK),
        ],
    )


CASES: list[Case] = [
    answered_by_a_reset("data", there()),
    answered_by_a_reset("an acknowledgement", ACK),
    answered_by_a_reset("an end", there("FA")),
    answered_by_a_reset("much data", replace(there(), l4=replace(there().l4, data=bytes(1000)))),
    answered_by_a_reset("padding", replace(there(), padding=b"padding")),
    (
        "options and extension headers: port unreachable",
        [*GONE, refused("a", replace(there(), options=OPTIONS, extensions=EXTENSIONS), "BACKEND_GONE", **OF_WEB),
         entry(SYN, flags=OVER)],
    ),
    (
        "a reset is not answered, but ends it",
        [*GONE, dropped("a", there("R"), "BACKEND_GONE", **OF_WEB), entry(SYN, flags=OVER)],
    ),
    (
        "the next connection goes to a backend that is there",
        [
            *GONE,
            refused("a", ACK, "BACKEND_GONE"),
            new("a", SYN, "c", replace(to_b(SYN), destination="c")),
            sent("c", tcp("c", "a", 8080, 1000, "SA"), "a", BACK_WEB),
            sent("a", ACK, "c", replace(to_b(ACK), destination="c")),
        ],
    ),
    (
        "so does a SYN that comes first, be it the old one again",
        [
            do("service", "web", 80, [("b", 8080)]),
            new("a", SYN, "b", to_b(SYN)),
            do("service", "web", 80, [("c", 8080)]),
            do("mark", "GONE", SYN, BACK),
            new("a", SYN, "c", replace(to_b(SYN), destination="c")),
            entry(SYN, flags=CT_SERVICE | CT_LOCAL),
        ],
    ),
    (
        "a service without any backend refuses it",
        [*GONE, do("service", "web", 80, []), refused("a", ACK, "BACKEND_GONE"), refused("a", SYN, service="web")],
    ),
    (
        "what still comes from there passes",
        [*GONE, sent("b", BACK, "a", BACK_WEB), epoch, sent("b", BACK, "a", BACK_WEB, tally="REJUDGED"),
         refused("a", ACK, "BACKEND_GONE")],
    ),
    (
        "one mark is enough",
        [*ESTABLISHED, do("mark", "GONE", SYN), refused("a", ACK, "BACKEND_GONE"),
         entry(BACK, flags=LIVE | CT_CLOSED | CT_REPLY)],
    ),
    (
        "after a change of policy",
        [*GONE, epoch, refused("a", ACK, "BACKEND_GONE", **OF_WEB)],
    ),
    (
        "others live on",
        [
            *ESTABLISHED,
            new("a", there("S", 1001), "b", to_b(there("S", 1001))),
            do("mark", "GONE", SYN, BACK),
            refused("a", ACK, "BACKEND_GONE"),
            sent("a", there("A", 1001), "b", to_b(there("A", 1001))),
        ],
    ),
    (
        "another pod's packet in its name is no packet of it",
        [*GONE, dropped("c", ACK, "SPOOFED_SOURCE"), entry(SYN, flags=LIVE | CT_GONE)],
    ),
    (
        "errors about it pass",
        [*GONE, sent("b", error("b", "a", to_b(ACK)), "a", error("web", "a", ACK)),
         sent("a", error("a", "web", BACK_WEB), "b", error("a", "b", BACK))],
    ),
    (
        "a backend outside",
        [
            do("service", "web", 80, [("world", 8080)]),
            new("a", SYN, STACK, replace(to_b(SYN), destination="world")),
            do("mark", "GONE", SYN, replace(BACK, source="world")),
            refused("a", ACK, "BACKEND_GONE", destination="world", service="web"),
        ],
    ),
    (
        "a connection that the socket translated: refused by the backend's address",
        [
            new("a", to_b(SYN), "b"),
            do("mark", "GONE", to_b(SYN), BACK),
            refused("a", to_b(ACK), "BACKEND_GONE", destination="b", service=""),
        ],
    ),
    (
        "a pod that was its own backend",
        [
            do("service", "web", 80, [("a", 8080)]),
            new("a", SYN, "a", replace(SYN, source="hairpin", destination="a",
                                       l4=replace(SYN.l4, destination_port=8080))),
            do("mark", "GONE", SYN, tcp("a", "hairpin", 8080, 1000)),
            refused("a", ACK, "BACKEND_GONE", service="web"),
            entry(tcp("a", "hairpin", 8080, 1000), flags=CT_SERVICE | CT_SOURCE | CT_LOCAL | CT_GONE | CT_CLOSED |
                  CT_REPLY),
        ],
    ),
    (
        "a source port that it was given is free again",
        [
            do("config", port_min=61000, port_max=61000),
            *(do("service", name, 80, [("b", 8080)]) for name in ("web", "dns")),
            new("a", tcp("a", "dns", 1000, 80, "S"), "b", tcp("a", "b", 1000, 8080, "S")),
            new("a", SYN, "b", replace(to_b(SYN), l4=replace(to_b(SYN).l4, source_port=61000))),
            do("mark", "GONE", tcp("a", "dns", 1000, 80), BACK),
            refused("a", tcp("a", "dns", 1000, 80), "BACKEND_GONE", service="dns"),
            new("a", tcp("a", "b", 1000, 8080, "S"), "b"),
        ],
    ),
    port_unreachable("UDP", UDP),
    port_unreachable("SCTP", SCTP),
    from_outside("TCP", tcp("world", "a", 1, 80), tcp("a", "world", 80, 1)),
    from_outside("UDP", udp("world", "a", 1, 80), udp("a", "world", 80, 1)),
]  # fmt: skip


@pytest.mark.parametrize("steps", [c[1] for c in CASES], ids=[c[0] for c in CASES])
def test_gone(kernel: Kernel, steps: list[Change]) -> None:
    run(kernel, steps)


def test_entries_go_soon(kernel: Kernel) -> None:
    """Within the time-out of closed connections, and their end is left for the sweeper to report."""
    run(kernel, [*GONE, refused("a", ACK, "BACKEND_GONE")])
    ended = kernel.abi.constants.CT_ENDED
    for packet in (SYN, BACK):
        found = kernel.entry(packet)
        assert found.expires_ns <= time.monotonic_ns() + 10 * SECONDS
        assert not found.flags & ended

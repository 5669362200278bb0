"""ICMP errors: only those about a live flow pass, translated as the flow is."""

from __future__ import annotations

from dataclasses import replace

import pytest
from frames import (
    L4,
    PARAMETER_PROBLEM,
    SCTP,
    TCP,
    TIME_EXCEEDED,
    TOO_BIG,
    UDP,
    UNREACHABLE,
    Packet,
    echo,
    echo_reply,
    error,
    flow,
    fragments,
    icmp,
    tcp,
    udp,
)
from kernel import ANY, CLOSED, OPEN, Kernel
from table import (
    STACK,
    Case,
    Change,
    arrives,
    arrives_new,
    do,
    dropped,
    entry,
    epoch,
    new,
    policy,
    run,
    sent,
    stopped,
)

HERE, HERE_BACK = udp("a", "b", 1000, 80), udp("b", "a", 80, 1000)
OUT, OUT_BACK = udp("a", "world", 1000, 53), udp("world", "a", 53, 1000)
WEB, WEB_B = tcp("a", "web", 1000, 80, "S"), tcp("a", "b", 1000, 8080, "S")
DNS, DNS_WORLD = udp("a", "dns", 1000, 53), udp("a", "world", 1000, 5353)
SERVER_TO_CLIENT, SERVER_TO_CLIENT_SEEN = tcp("b", "a", 8080, 1000, "SA"), tcp("web", "a", 80, 1000, "SA")
SELF, SELF_IN = udp("a", "dns", 1000, 53), udp("hairpin", "a", 1000, 5353)
SELF_BACK, SELF_BACK_IN = udp("a", "hairpin", 5353, 1000), udp("dns", "a", 53, 1000)

CASES: list[Case] = [
    (
        "about a flow between pods, from its far end",
        [
            new("a", HERE, "b"),
            sent("b", error("b", "a", HERE), "a"),
            entry(HERE_BACK, packets=0, flags=128 | 1),  # an error is no answer
        ],
    ),
    ("about an answer, from the near end", [new("a", HERE, "b"), sent("b", HERE_BACK, "a"),
                                            sent("a", error("a", "b", HERE_BACK), "b")]),
    (
        "of every type that is an error",
        [
            new("a", HERE, "b"),
            *(sent("b", error("b", "a", HERE, kind, (0, 0)), "a") for kind in
              (UNREACHABLE, TOO_BIG, TIME_EXCEEDED, PARAMETER_PROBLEM)),
        ],
    ),
    (
        "from a router on the way, and from the node",
        [
            new("a", OUT, STACK),
            arrives("a", error("router", "a", OUT, TIME_EXCEEDED, (0, 0))),
            arrives("a", error("world", "a", OUT)),
            arrives("a", error("node", "a", OUT, TOO_BIG, (4, 0)), via=0),
            arrives("a", error("nobody", "a", OUT)),
        ],
    ),
    (
        "past isolation in both directions",
        [
            policy("a", "ingress", ANY, CLOSED),
            policy("b", "egress", ANY, CLOSED),
            new("a", HERE, "b"),
            sent("b", error("b", "a", HERE), "a"),
            new("a", OUT, STACK),
            arrives("a", error("router", "a", OUT)),
        ],
    ),
    (
        "about a flow from outside",
        [
            arrives_new("a", udp("world", "a", 1, 2)),
            sent("a", error("a", "world", udp("world", "a", 1, 2)), STACK),
            arrives("a", error("router", "a", udp("a", "world", 2, 1))),
        ],
    ),
    (
        "about the node's own flow",
        [
            policy("a", "egress", ANY, CLOSED),
            arrives_new("a", udp("node", "a", 1, 2), via=0),
            sent("a", error("a", "node", udp("node", "a", 1, 2)), STACK),
            arrives("a", error("node", "a", udp("a", "node", 2, 1)), via=0),
            dropped("a", error("a", "node", udp("node", "a", 3, 2)), "ICMP_UNRELATED"),
            stopped("a", error("node", "a", udp("a", "node", 2, 3)), "ICMP_UNRELATED", via=0),
        ],
    ),
    (
        "about a ping",
        [
            new("a", echo("a", "b"), "b"),
            sent("b", error("b", "a", echo("a", "b")), "a"),
            sent("b", echo_reply("b", "a"), "a"),
            sent("a", error("a", "b", echo_reply("b", "a")), "b"),
            dropped("b", error("b", "a", echo("a", "b", 6)), "ICMP_UNRELATED"),
        ],
    ),
    (
        "about SCTP, a protocol without ports, and a first fragment",
        [
            new("a", flow(SCTP, "a", "b", 7, 8), "b"),
            sent("b", error("b", "a", flow(SCTP, "a", "b", 7, 8)), "a"),
            new("a", Packet("a", "b", L4(47)), "b"),
            sent("b", error("b", "a", Packet("a", "b", L4(47))), "a"),
            new("a", HERE, "b"),
            sent("b", error("b", "a", fragments(HERE, [16, 8])[0]), "a"),
            dropped("b", error("b", "a", fragments(HERE, [16, 8])[1]), "ICMP_UNRELATED"),
        ],
    ),
    (
        "about nothing that is known",
        [
            dropped("b", error("b", "a", HERE), "ICMP_UNRELATED", source="b", destination="a"),
            stopped("a", error("router", "a", OUT), "ICMP_UNRELATED", source="router", destination="a"),
            new("a", HERE, "b"),
            dropped("b", error("b", "a", udp("a", "b", 1001, 80)), "ICMP_UNRELATED"),
            dropped("b", error("b", "a", tcp("a", "b", 1000, 80)), "ICMP_UNRELATED"),
            dropped("b", error("b", "a", udp("a", "c", 1000, 80)), "ICMP_UNRELATED"),
            stopped("a", error("router", "a", HERE), "ICMP_UNRELATED"),
        ],
    ),
    (
        "that quote what their receiver did not send",
        [
            new("a", HERE, "b"),
            new("c", udp("c", "b", 1, 2), "b"),
            dropped("b", error("b", "c", HERE), "ICMP_UNRELATED"),
            dropped("b", error("b", "a", HERE_BACK), "ICMP_UNRELATED"),
            dropped("c", error("b", "a", HERE), "SPOOFED_SOURCE"),
            dropped("c", error("c", "a", HERE), "ICMP_UNRELATED"),  # a pod is no router
            sent("b", HERE_BACK, "a"),
        ],
    ),
    (
        "that quote too little, nonsense, or another error",
        [
            new("a", HERE, "b"),
            dropped("b", error("b", "a", HERE, quoted_size=0), "ICMP_UNRELATED"),
            dropped("b", error("b", "a", HERE, quoted_size=10), "ICMP_UNRELATED"),
            dropped("b", error("b", "a", replace(HERE, version=9)), "ICMP_UNRELATED"),
            dropped("b", error("b", "a", error("a", "b", HERE_BACK)), "ICMP_UNRELATED"),
            dropped("b", error("b", "a", icmp("a", "b", (5, 137))), "ICMP_UNRELATED"),
        ],
    ),
    (
        "quoting the least: 8 bytes of transport header",
        [
            new("a", tcp("a", "b", 1000, 80, "S"), "b"),
            lambda kernel: sent("b", error("b", "a", tcp("a", "b", 1000, 80, "S"),
                                           quoted_size=(28 if kernel.family == 4 else 48)), "a")(kernel),
        ],
    ),
    (
        "as the flow is judged, also after a change of policy",
        [
            new("a", HERE, "b"),
            policy("b", "ingress", ANY, CLOSED),
            dropped("b", error("b", "a", HERE), "POLICY_INGRESS", tally="REJUDGED", source="b", destination="a"),
            policy("b", "ingress", ANY, OPEN),
            sent("b", error("b", "a", HERE), "a", tally="REJUDGED"),
            new("a", OUT, STACK),
            policy("a", "egress", ANY, CLOSED),
            stopped("a", error("router", "a", OUT), "POLICY_EGRESS", tally="REJUDGED", source="router"),
        ],
    ),
    (
        "about a flow that is over",
        [new("a", HERE, "b"), do("expire", HERE, HERE_BACK), dropped("b", error("b", "a", HERE), "ICMP_UNRELATED")],
    ),
    (
        "about a service's flow, from the backend: it looks like the frontend's",
        [
            do("service", "web", 80, [("b", 8080)]),
            new("a", WEB, "b", WEB_B),
            sent("b", error("b", "a", WEB_B), "a", error("web", "a", WEB)),
        ],
    ),
    (
        "about a service's answer, from the client: it goes to the backend",
        [
            do("service", "web", 80, [("b", 8080)]),
            new("a", WEB, "b", WEB_B),
            sent("b", SERVER_TO_CLIENT, "a", SERVER_TO_CLIENT_SEEN),
            sent("a", error("a", "web", SERVER_TO_CLIENT_SEEN), "b", error("a", "b", SERVER_TO_CLIENT)),
        ],
    ),
    (
        "about a service's flow, from a router and from a backend outside",
        [
            do("service", "dns", 53, [("world", 5353)], UDP),
            new("a", DNS, STACK, DNS_WORLD),
            arrives("a", error("world", "a", DNS_WORLD), error("dns", "a", DNS)),
            arrives("a", error("router", "a", DNS_WORLD, TOO_BIG, (4, 0)), error("router", "a", DNS, TOO_BIG, (4, 0))),
            sent("a", error("a", "dns", udp("dns", "a", 53, 1000)), STACK,
                 error("a", "world", udp("world", "a", 5353, 1000))),
        ],
    ),
    (
        "about a service's flow, quoting 8 bytes of TCP and so no checksum",
        [
            do("service", "web", 80, [("b", 8080)]),
            new("a", WEB, "b", WEB_B),
            lambda kernel: sent("b", error("b", "a", WEB_B, quoted_size=28 if kernel.family == 4 else 48), "a",
                                error("web", "a", WEB, quoted_size=28 if kernel.family == 4 else 48))(kernel),
        ],
    ),
    (
        "about a service's flow of UDP without a checksum",
        [
            do("service", "dns", 53, [("b", 5353)], UDP),
            new("a", udp("a", "dns", 1000, 53, True), "b", udp("a", "b", 1000, 5353, True)),
            sent("b", error("b", "a", udp("a", "b", 1000, 5353, True)), "a",
                 error("dns", "a", udp("a", "dns", 1000, 53, True))),
        ],
    ),
    (
        "about a service's flow of SCTP",
        [
            do("service", "web", 80, [("b", 80)], SCTP),
            new("a", flow(SCTP, "a", "web", 7, 80), "b", flow(SCTP, "a", "b", 7, 80)),
            sent("b", error("b", "a", flow(SCTP, "a", "b", 7, 80)), "a",
                 error("web", "a", flow(SCTP, "a", "web", 7, 80))),
        ],
    ),
    (
        "about a pod's flow to itself through a service",
        [
            do("service", "dns", 53, [("a", 5353)], UDP),
            new("a", SELF, "a", SELF_IN),
            sent("a", error("a", "hairpin", SELF_IN), "a", error("dns", "a", SELF)),
            sent("a", SELF_BACK, "a", SELF_BACK_IN),
            sent("a", error("a", "dns", SELF_BACK_IN), "a", error("hairpin", "a", SELF_BACK)),
        ],
    ),
    (
        "spoofed by the stack about a flow between pods",
        [
            new("a", HERE, "b"),
            stopped("a", error("b", "a", HERE), "SPOOFED_SOURCE"),
            stopped("a", error("router", "a", HERE), "ICMP_UNRELATED"),
            epoch,
            stopped("a", error("router", "a", HERE), "ICMP_UNRELATED"),
            sent("b", error("b", "a", HERE), "a", tally="REJUDGED"),
        ],
    ),
    (
        "in fragments: only the first can be judged",
        [
            new("a", HERE, "b"),
            dropped("b", fragments(error("b", "a", HERE), [24, 100])[1], "FRAGMENT_UNKNOWN"),
        ],
    ),
]  # fmt: skip


@pytest.mark.parametrize("steps", [c[1] for c in CASES], ids=[c[0] for c in CASES])
def test_icmp_error(kernel: Kernel, steps: list[Change]) -> None:
    run(kernel, steps)


@pytest.mark.parametrize("size", range(0, 17, 2))
@pytest.mark.parametrize("protocol", [TCP, UDP])
def test_checksums_of_quotes_of_any_length(kernel: Kernel, protocol: int, size: int) -> None:
    """Whatever is quoted of the transport header, all of it is translated, and the outer checksum is right."""
    headers = 28 if kernel.family == 4 else 48
    for port in (1, 0x7FFF, 0x8001, 0xFFFE):
        kernel.service("web", 80, [("b", port)], protocol)
        flags = "S" if protocol == TCP else ""
        asked = Packet("a", "web", L4(protocol, 1000 + port % 77, 80, flags))
        seen = Packet("a", "b", L4(protocol, 1000 + port % 77, port, flags))
        run(
            kernel,
            [
                new("a", asked, "b", seen),
                sent(
                    "b",
                    error("b", "a", seen, quoted_size=headers + size),
                    "a",
                    error("web", "a", asked, quoted_size=headers + size),
                ),
            ],
        )
        kernel.empty("conntrack")

"""What an attacker would try beyond malformed packets: borrowed addresses, other flows' tuples, fragments in another's
name. Beside each, what an honest sender does that looks alike and must pass."""

from __future__ import annotations

from dataclasses import replace

import pytest
from frames import (
    UDP,
    Packet,
    echo,
    echo_reply,
    error,
    fragments,
    host_mac,
    icmp,
    pod_mac,
    tcp,
    udp,
)
from kernel import ANY, CLOSED, Kernel
from table import (
    END,
    STACK,
    Case,
    Change,
    arrives,
    arrives_new,
    do,
    dropped,
    entry,
    new,
    policy,
    run,
    sent,
    stopped,
)

CT_REPLY, CT_ESTABLISHED, CT_LOCAL = 1, 8, 128

SYN, SYN_ACK, ACK = tcp("a", "b", 1000, 80, "S"), tcp("b", "a", 80, 1000, "SA"), tcp("a", "b", 1000, 80)
PROBE, PROBE_BACK = tcp("node", "a", 1, 80, "S"), tcp("a", "node", 80, 1, "SA")
NODE_ASKS, NODE_IS_TOLD = udp("node", "a", 1, 2), udp("a", "node", 2, 1)
QUERY, ANSWER = (13, 139), (14, 140)  # timestamp, node information


def reset(packet: Packet, sequence: int) -> Packet:
    return replace(packet, l4=replace(packet.l4, sequence=sequence))


CASES: list[Case] = [
    (
        "lesson 8: an echo request is no answer, whatever its id",
        [
            policy("a", "ingress", ANY, CLOSED),
            new("a", echo("a", "b", 0), "b"),
            dropped("b", echo("b", "a", 0), "POLICY_INGRESS", source="b", destination="a"),
            sent("b", echo_reply("b", "a", 0), "a"),
            new("a", echo("a", "world", 0), STACK),
            stopped("a", echo("world", "a", 0), "POLICY_INGRESS"),
            arrives("a", echo_reply("world", "a", 0)),
        ],
    ),
    (
        "lesson 8: nor is a query of another type",
        [
            policy("a", "ingress", ANY, CLOSED),
            new("a", icmp("a", "b", QUERY), "b"),
            dropped("b", icmp("b", "a", QUERY), "POLICY_INGRESS"),
            dropped("b", echo("b", "a", 0), "POLICY_INGRESS"),
            sent("b", icmp("b", "a", ANSWER), "a"),
        ],
    ),
    (
        "lesson 8: nor does the node's ping let a pod ping the node",
        [
            policy("a", "egress", ANY, CLOSED),
            arrives_new("a", echo("node", "a", 0), via=0),
            dropped("a", echo("a", "node", 0), "POLICY_EGRESS"),
            sent("a", echo_reply("a", "node", 0), STACK),
        ],
    ),
    (
        "both ends ping with one id",
        [
            new("a", echo("a", "b", 5), "b"),
            new("b", echo("b", "a", 5), "a"),
            sent("a", echo_reply("a", "b", 5), "b"),
            sent("b", echo_reply("b", "a", 5), "a"),
            new("a", echo("a", "b", 0), "b"),
            new("b", echo("b", "a", 0), "a"),
            sent("a", echo_reply("a", "b", 0), "b"),
        ],
    ),
    (
        "lesson 8: fragments of a long answer to a ping",
        [
            policy("a", "ingress", ANY, CLOSED),
            new("a", echo("a", "b", 0), "b"),
            *(sent("b", part, "a") for part in fragments(echo_reply("b", "a", 0), [8, 8, 8])),
        ],
    ),
    (
        "lesson 8: a first fragment in another's name does not speak for the rest",
        [
            policy("c", "ingress", "b", ((UDP, 80, True),)),
            new("b", fragments(udp("b", "c", 1000, 80), [16, 8])[0], "c"),
            dropped("a", fragments(udp("b", "c", 1000, 81), [16, 8])[0], "SPOOFED_SOURCE"),
            sent("b", fragments(udp("b", "c", 1000, 80), [16, 8])[1], "c"),
            stopped("c", fragments(udp("b", "c", 1000, 81), [16, 8])[0], "SPOOFED_SOURCE"),
            sent("b", fragments(udp("b", "c", 1000, 80), [16, 8])[1], "c"),
            stopped("a", fragments(udp("world", "b", 1000, 80), [16, 8])[0], "WRONG_DESTINATION"),
            stopped("b", fragments(udp("world", "b", 1000, 80), [16, 8])[1], "FRAGMENT_UNKNOWN"),
        ],
    ),
    (
        "lesson 8: one identification, two protocols or ports",
        [
            policy("b", "ingress", ANY, ((UDP, 80, True),)),
            new("a", fragments(udp("a", "b", 1000, 80), [16, 8])[0], "b"),
            dropped("a", fragments(tcp("a", "b", 1000, 80), [24, 8])[1], "FRAGMENT_UNKNOWN"),
            dropped("a", fragments(tcp("a", "b", 1000, 80), [24, 8])[0], "POLICY_INGRESS"),
            dropped("a", fragments(tcp("a", "b", 1000, 80), [24, 8])[1], "POLICY_INGRESS"),
            sent("a", fragments(udp("a", "b", 1000, 80), [16, 8])[1], "b"),
            # A first fragment that is denied takes the rest with it.
            dropped("a", fragments(udp("a", "b", 1000, 81), [16, 8])[0], "POLICY_INGRESS"),
            dropped("a", fragments(udp("a", "b", 1000, 80), [16, 8])[1], "POLICY_INGRESS"),
        ],
    ),
    (
        "lesson 8: an error in fragments does not speak for them",
        [
            new("a", udp("a", "b", 1000, 80), "b"),
            sent("b", fragments(error("b", "a", udp("a", "b", 1000, 80)), [64, 8])[0], "a"),
            dropped("b", fragments(error("b", "a", udp("a", "b", 1000, 80)), [64, 8])[1], "FRAGMENT_UNKNOWN"),
        ],
    ),
    (
        "the hairpin address is nobody's, though the world covers it",
        [
            do("identity", "world", "hairpin"),
            dropped("a", udp("a", "hairpin", 1, 2), "UNKNOWN_IDENTITY"),
            dropped("a", echo("a", "hairpin"), "UNKNOWN_IDENTITY"),
            stopped("a", udp("hairpin", "a", 1, 2), "UNKNOWN_IDENTITY"),
            stopped("a", tcp("hairpin", "a", 1000, 8080), "UNKNOWN_IDENTITY", via=0),
            do("service", "web", 80, [("a", 8080)]),
            new("a", tcp("a", "web", 1000, 80, "S"), "a", tcp("hairpin", "a", 1000, 8080, "S")),
            dropped("b", tcp("b", "hairpin", 8080, 1000, "SA"), "UNKNOWN_IDENTITY"),
            stopped("a", tcp("hairpin", "a", 1000, 8080), "UNKNOWN_IDENTITY"),
        ],
    ),
    (
        "from outside in a frontend's name: no answer to a service's client",
        [
            do("service", "web", 80, [("b", 8080)]),
            do("identity", "world", "web"),
            new("a", tcp("a", "web", 1000, 80, "S"), "b", tcp("a", "b", 1000, 8080, "S")),
            stopped("a", tcp("web", "a", 80, 1000, "SA"), "TUPLE_TAKEN"),
            dropped("b", tcp("web", "a", 80, 1000, "SA"), "SPOOFED_SOURCE"),
            policy("c", "egress", ANY, CLOSED),
            dropped("c", tcp("c", "a", 8080, 1000, "SA"), "POLICY_EGRESS"),
        ],
    ),
    (
        "from outside, in a backend's name before the service is used: denied, so it takes no tuple",
        [
            do("service", "dns", 53, [("world", 5353)], UDP),
            policy("a", "ingress", ANY, CLOSED),
            stopped("a", udp("world", "a", 5353, 1000), "POLICY_INGRESS"),
            new("a", udp("a", "dns", 1000, 53), STACK, udp("a", "world", 1000, 5353)),
            arrives("a", udp("world", "a", 5353, 1000), udp("dns", "a", 53, 1000)),
        ],
    ),
    (
        "a reset in another's name ends nothing",
        [
            new("a", SYN, "b"),
            sent("b", SYN_ACK, "a"),
            dropped("c", tcp("b", "a", 80, 1000, "R"), "SPOOFED_SOURCE"),
            dropped("c", tcp("a", "b", 1000, 80, "R"), "SPOOFED_SOURCE"),
            stopped("a", tcp("b", "a", 80, 1000, "R"), "SPOOFED_SOURCE"),
            stopped("b", tcp("a", "b", 1000, 80, "FA"), "SPOOFED_SOURCE"),
            entry(SYN, flags=CT_LOCAL | CT_ESTABLISHED),
            entry(SYN_ACK, flags=CT_LOCAL | CT_ESTABLISHED | CT_REPLY),
        ],
    ),
    (
        "a reset from one who does not know the connection passes, and ends nothing",
        [
            arrives_new("a", tcp("world", "a", 1000, 80, "S")),
            sent("a", tcp("a", "world", 80, 1000, "SA"), STACK),
            arrives("a", reset(tcp("world", "a", 1000, 80, "R"), 1 << 30)),
            arrives("a", reset(tcp("world", "a", 1000, 80, "R"), (1 << 32) - (1 << 21))),
            sent("a", reset(tcp("a", "world", 80, 1000, "R"), 1 << 31), STACK),
            arrives("a", tcp("world", "a", 1000, 80)),
            entry(tcp("world", "a", 1000, 80), flags=CT_ESTABLISHED),
            entry(tcp("a", "world", 80, 1000), flags=CT_ESTABLISHED | CT_REPLY),
            arrives("a", reset(tcp("world", "a", 1000, 80, "R"), 1 << 19), events=END),
        ],
    ),
    (
        "a reset across the turn of sequence numbers; one to an end that has not spoken",
        [
            new("a", replace(SYN, l4=replace(SYN.l4, acknowledged=(1 << 32) - 10)), "b"),
            sent("a", reset(tcp("a", "b", 1000, 80, "R"), 12345678), "b", events=END),
            new("a", SYN, "b"),
            sent("a", replace(tcp("a", "b", 1000, 80), l4=replace(ACK.l4, acknowledged=(1 << 32) - 10)), "b"),
            sent("b", reset(tcp("b", "a", 80, 1000, "R"), 10), "a", events=END),
        ],
    ),
    (
        "the refusal of a SYN is a reset with sequence number 0 (RFC 9293, 3.5.2)",
        [
            new("a", replace(SYN, l4=replace(SYN.l4, acknowledged=0)), "b"),
            sent("b", reset(tcp("b", "a", 80, 1000, "RA"), 0), "a", events=END),
        ],
    ),
    (
        "lesson 18: a reset and a SYN do not revive what policy has ended",
        [
            new("a", SYN, "b"),
            sent("b", SYN_ACK, "a"),
            policy("b", "ingress", ANY, CLOSED),
            dropped("a", tcp("a", "b", 1000, 80, "R"), "POLICY_INGRESS", tally="REJUDGED"),
            dropped("a", SYN, "POLICY_INGRESS"),
            dropped("b", tcp("b", "a", 80, 1000, "R"), "POLICY_INGRESS", tally="REJUDGED"),
            dropped("a", SYN, "POLICY_INGRESS"),
        ],
    ),
    ("both ends open at once (RFC 9293, 3.5)", [
        new("a", SYN, "b"),
        sent("b", tcp("b", "a", 80, 1000, "S"), "a"),
        sent("a", tcp("a", "b", 1000, 80, "SA"), "b"),
    ]),
    (
        "the node uses a port again after a close: the pod's answers pass",
        [
            policy("a", "egress", ANY, CLOSED),
            arrives_new("a", PROBE, via=0),
            sent("a", PROBE_BACK, STACK),
            arrives("a", tcp("node", "a", 1, 80, "R"), events=END, via=0),
            arrives_new("a", PROBE, via=0),
            sent("a", PROBE_BACK, STACK),
            arrives("a", tcp("node", "a", 1, 80), via=0),
        ],
    ),
    (
        "the node uses a port again after a time-out: the pod's answers pass",
        [
            policy("a", "egress", ANY, CLOSED),
            do("timeouts", other=0),
            arrives_new("a", NODE_ASKS, via=0),
            dropped("a", NODE_IS_TOLD, "POLICY_EGRESS"),
            do("timeouts"),
            arrives_new("a", NODE_ASKS, via=0),
            sent("a", NODE_IS_TOLD, STACK),
        ],
    ),
    (
        "an IP version that is not the frame's",
        [
            lambda kernel: dropped("a", replace(SYN, ethertype=0x86DD if kernel.family == 4 else 0x0800), "MALFORMED")(
                kernel
            ),
            lambda kernel: stopped(
                "a", replace(udp("world", "a", 1, 2), ethertype=0x86DD if kernel.family == 4 else 0x0800), "MALFORMED"
            )(kernel),
        ],
    ),
]  # fmt: skip

MAPPED: list[Case] = [
    (
        "IPv4-mapped addresses in IPv6 packets are nobody's (RFC 4942, 2.2)",
        [
            do("identity", "world", "mapped-world"),
            do("service", "mapped-web", 80, [("mapped-b", 8080)]),
            dropped("a", tcp("a", "mapped-world", 1, 2, "S"), "MALFORMED"),
            dropped("a", tcp("a", "mapped-web", 1, 80, "S"), "MALFORMED"),
            dropped("a", tcp("mapped-a", "b", 1, 2, "S"), "MALFORMED"),
            dropped("a", echo("a", "mapped-world"), "MALFORMED"),
            stopped("a", udp("mapped-world", "a", 1, 2), "MALFORMED"),
            stopped("a", replace(udp("mapped-world", "a", 1, 2), extensions=((60, bytes([0, 1, 4, 0, 0, 0, 0])),)),
                    "MALFORMED"),
        ],
    ),
    (
        "IPv4-compatible addresses are IPv6 addresses",
        [do("identity", "world", "compatible"), new("a", udp("a", "compatible", 1, 2), STACK)],
    ),
    (
        "a backend of the other family is none",
        [
            do("service", "web", 80, [("mapped-b", 8080)]),
            do("identity", "world", "mapped-b"),
            lambda kernel: _is_refused(kernel, tcp("a", "web", 1000, 80, "S")),
        ],
    ),
]  # fmt: skip


def _is_refused(kernel: Kernel, packet: Packet) -> None:
    assert kernel.send(packet.source, packet).drops == {"DROP_NO_BACKEND": 1}


@pytest.mark.parametrize("steps", [c[1] for c in CASES], ids=[c[0] for c in CASES])
def test_attack(kernel: Kernel, steps: list[Change]) -> None:
    run(kernel, steps)


@pytest.mark.parametrize("steps", [c[1] for c in MAPPED], ids=[c[0] for c in MAPPED])
def test_mapped_address(loaded: Kernel, steps: list[Change]) -> None:
    loaded.reset(6)
    run(loaded, steps)


def test_an_ipv6_packet_does_not_ride_on_an_ipv4_flow(loaded: Kernel) -> None:
    """Their tuples would be the same bytes."""
    loaded.reset(4)
    new("a", udp("a", "b", 1, 2), "b")(loaded)
    new("a", udp("a", "world", 1, 2), STACK)(loaded)
    there = udp("mapped-a", "mapped-b", 1, 2).encode(6, host_mac("a"), pod_mac("a"))
    back = udp("mapped-world", "mapped-a", 2, 1).encode(6, pod_mac("a"), host_mac("a"))
    assert loaded.send("a", there).drops == {"DROP_MALFORMED": 1}
    assert loaded.send("a", back, "to_pod", 7).drops == {"DROP_MALFORMED": 1}


def test_scratch_in_use_is_not_entered(kernel: Kernel) -> None:
    """Should a kernel let one program interrupt another on its CPU, the second drops its packet."""
    scratch, key = kernel.maps["scratch"], bytes(4)
    values = scratch.lookup(key)
    assert values is not None
    try:
        scratch.update(key, b"\1" * len(values))
        for program in ("from_pod", "to_pod"):
            outcome = kernel.send("a", SYN, program)
            assert (outcome.action, outcome.drops) == (2, {"DROP_INTERNAL": 1})
    finally:
        scratch.update(key, bytes(len(values)))
    new("a", SYN, "b")(kernel)

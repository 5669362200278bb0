"""Flows: conntrack, policy verdicts, expiry, TCP states, the node's own traffic."""

from __future__ import annotations

import pytest
from frames import ICMP, SCTP, TCP, UDP, echo, echo_reply, flow, icmp, sctp, tcp, udp
from kernel import ANY, CLOSED, OPEN, Kernel, Rule
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
    epoch,
    event,
    new,
    policy,
    run,
    sent,
    stopped,
)

SYN, SYN_ACK, ACK = tcp("a", "b", 1000, 80, "S"), tcp("b", "a", 80, 1000, "SA"), tcp("a", "b", 1000, 80)
FIN, FIN_BACK = tcp("a", "b", 1000, 80, "FA"), tcp("b", "a", 80, 1000, "FA")
RST, RST_BACK = tcp("a", "b", 1000, 80, "R"), tcp("b", "a", 80, 1000, "R")
OUT, OUT_BACK = udp("a", "world", 1000, 53), udp("world", "a", 53, 1000)
IN, IN_BACK = udp("world", "a", 1000, 53), udp("a", "world", 53, 1000)
CT_REPLY, CT_ESTABLISHED, CT_FIN, CT_CLOSED, CT_ENDED, CT_LOCAL = 1, 8, 16, 32, 64, 128

CASES: list[Case] = [
    (
        "a connection between two pods",
        [
            new(
                "a", SYN, "b",
                source="a", destination="b", service="", source_port_be=1000, destination_port_be=80, service_port_be=0,
                source_identity=1001, destination_identity=1002, protocol=6, tcp_flags=2, reason=0,
                rule_egress="RULE_NOT_ISOLATED", rule_ingress="RULE_NOT_ISOLATED", egress_judged=1, ingress_judged=1,
            ),
            entry(SYN, packets=1, flags=CT_LOCAL, verdict=1, ifindex=101, sender_ifindex=101, receiver_ifindex=102),
            entry(SYN, source_identity=1001, destination_identity=1002),
            entry(SYN_ACK, packets=0, flags=CT_LOCAL | CT_REPLY, verdict=1, ifindex=101),
            sent("b", SYN_ACK, "a"),
            entry(SYN, packets=1, flags=CT_LOCAL | CT_ESTABLISHED),
            entry(SYN_ACK, packets=1, flags=CT_LOCAL | CT_ESTABLISHED | CT_REPLY),
            sent("a", ACK, "b"),
            entry(ACK, packets=2),
        ],
    ),
    (
        "FIN both ways ends it once; a SYN starts anew",
        [
            new("a", SYN, "b"),
            sent("b", SYN_ACK, "a"),
            sent("a", FIN, "b"),
            entry(FIN, flags=CT_LOCAL | CT_ESTABLISHED | CT_FIN),
            sent(
                "b", FIN_BACK, "a",
                events=event("END", source="a", destination="b", source_port_be=1000, destination_port_be=80, packets=4,
                             source_identity=1001, destination_identity=1002, egress_judged=1, ingress_judged=1),
            ),
            entry(FIN, flags=CT_LOCAL | CT_ESTABLISHED | CT_FIN | CT_CLOSED | CT_ENDED),
            entry(FIN_BACK, flags=CT_LOCAL | CT_ESTABLISHED | CT_FIN | CT_CLOSED | CT_ENDED | CT_REPLY),
            sent("a", ACK, "b"),
            sent("b", FIN_BACK, "a"),
            new("a", SYN, "b"),
            entry(SYN, flags=CT_LOCAL, packets=1),
            entry(SYN_ACK, flags=CT_LOCAL | CT_REPLY, packets=0),
        ],
    ),
    (
        "a half-closed connection stays open",
        [
            new("a", SYN, "b"),
            sent("b", SYN_ACK, "a"),
            sent("a", FIN, "b"),
            sent("a", FIN, "b"),
            sent("b", tcp("b", "a", 80, 1000), "a"),
            entry(SYN_ACK, flags=CT_LOCAL | CT_ESTABLISHED | CT_REPLY),
        ],
    ),
    (
        "RST from the server ends it",
        [new("a", SYN, "b"), sent("b", RST_BACK, "a", events=END), sent("b", RST_BACK, "a"), new("a", SYN, "b")],
    ),
    ("RST from the client ends it", [new("a", SYN, "b"), sent("a", RST, "b", events=END), sent("b", SYN_ACK, "a")]),
    (
        "a SYN the other way over a closed connection is judged in its own direction",
        [
            policy("b", "egress", ANY, CLOSED),
            new("a", SYN, "b"),
            sent("b", RST_BACK, "a", events=END),
            dropped("b", tcp("b", "a", 80, 1000, "S"), "POLICY_EGRESS"),
        ],
    ),
    ("a SYN of a live connection is sent again", [new("a", SYN, "b"), sent("a", SYN, "b"), entry(SYN, packets=2)]),
    ("picked up in mid-stream", [new("a", ACK, "b", tcp_flags=16), sent("b", SYN_ACK, "a")]),
    (
        "picked up in mid-stream, against policy",
        [policy("b", "egress", ANY, CLOSED), dropped("b", tcp("b", "a", 80, 1000), "POLICY_EGRESS")],
    ),
    (
        "both entries expired: a new flow",
        [
            new("a", SYN, "b"),
            sent("b", SYN_ACK, "a"),
            do("expire", SYN, SYN_ACK),
            new("a", ACK, "b"),
            entry(SYN, packets=1, flags=CT_LOCAL),
            entry(SYN_ACK, packets=0),
        ],
    ),
    (
        "one expired entry of a flow the other keeps alive",
        [
            new("a", SYN, "b"),
            sent("b", SYN_ACK, "a"),
            do("expire", SYN),
            sent("a", ACK, "b"),
            do("expire", SYN_ACK),
            sent("b", SYN_ACK, "a"),
            entry(SYN, packets=2, flags=CT_LOCAL | CT_ESTABLISHED),
        ],
    ),
    (
        "an expired reply is judged as a flow of its own",
        [
            policy("b", "egress", ANY, CLOSED),
            new("a", SYN, "b"),
            sent("b", SYN_ACK, "a"),
            do("expire", SYN, SYN_ACK),
            dropped("b", SYN_ACK, "POLICY_EGRESS"),
            dropped("b", SYN_ACK, "POLICY_EGRESS"),
            new("a", SYN, "b"),
        ],
    ),
    (
        "to the world and back by the stack",
        [
            new("a", OUT, STACK, destination_identity=2, egress_judged=1, ingress_judged=0, rule_ingress=0),
            entry(OUT, flags=0, ifindex=101),
            arrives("a", OUT_BACK),
            entry(OUT, flags=CT_ESTABLISHED),
            sent("a", OUT, STACK),
        ],
    ),
    (
        "from the world and back",
        [
            arrives_new("a", IN, source_identity=2, destination_identity=1001, egress_judged=0, ingress_judged=1,
                        rule_egress=0, rule_ingress="RULE_NOT_ISOLATED"),
            entry(IN, flags=0, ifindex=101),
            sent("a", IN_BACK, STACK),
            entry(IN, flags=CT_ESTABLISHED),
            entry(IN_BACK, flags=CT_ESTABLISHED | CT_REPLY),
            arrives("a", IN),
        ],
    ),
    (
        "TCP from the world ends with an event in its own direction",
        [
            arrives_new("a", tcp("world", "a", 1000, 80, "S")),
            sent("a", tcp("a", "world", 80, 1000, "SA"), STACK),
            arrives("a", tcp("world", "a", 1000, 80, "R"),
                    events=event("END", source="world", destination="a", packets=3, egress_judged=0, ingress_judged=1)),
        ],
    ),
    (
        "replies pass an isolated pod, in both directions of isolation",
        [
            policy("a", "ingress", ANY, CLOSED),
            policy("b", "egress", ANY, CLOSED),
            new("a", SYN, "b"),
            sent("b", SYN_ACK, "a"),
            new("a", OUT, STACK),
            arrives("a", OUT_BACK),
        ],
    ),
    (
        "from outside, replies pass egress isolation",
        [policy("a", "egress", ANY, CLOSED), arrives_new("a", IN), sent("a", IN_BACK, STACK)],
    ),
    ("a pod reaches itself", [
        policy("a", "egress", ANY, CLOSED),
        policy("a", "ingress", ANY, CLOSED),
        new("a", udp("a", "a", 1, 2), "a", rule_egress="RULE_SELF", rule_ingress="RULE_SELF", egress_judged=1,
            ingress_judged=1),
    ]),
    ("ping and its answers", [
        new("a", echo("a", "b"), "b", source_port_be=5, destination_port_be=0),
        sent("b", echo_reply("b", "a"), "a"),
        sent("a", echo("a", "b"), "b"),
        new("a", echo("a", "b", 6), "b", source_port_be=6),
        new("b", echo_reply("b", "a", 9), "a", source_port_be=0, destination_port_be=9),
    ]),
    (
        "ICMP passes by a row for every protocol and by nothing else",
        [
            policy("b", "ingress", ANY, ((TCP, None, True), (UDP, None, True), (SCTP, None, True))),
            dropped("a", echo("a", "b"), "POLICY_INGRESS"),
            policy("b", "ingress", ANY, OPEN),
            new("a", echo("a", "b"), "b"),
        ],
    ),
    (
        "an echo reply nobody asked for is judged by its own type",
        [
            policy("a", "ingress", ANY, ((ICMP, 8, True), (58, 128, True))),
            dropped("b", echo_reply("b", "a"), "POLICY_INGRESS"),
            policy("a", "ingress", ANY, ((ICMP, 0, True), (58, 129, True))),
            new("b", echo_reply("b", "a"), "a"),
        ],
    ),
    (
        "ICMP is judged by the type it began with, answers and errors about it as well",
        [
            policy("b", "ingress", ANY, ((ICMP, 8, True), (58, 128, True))),
            dropped("a", icmp("a", "b", (13, 139)), "POLICY_INGRESS"),
            new("a", echo("a", "b"), "b"),
            sent("b", echo_reply("b", "a"), "a"),
            epoch,
            sent("b", echo_reply("b", "a"), "a", tally="REJUDGED"),
            sent("a", echo("a", "b"), "b", tally="REJUDGED"),
            policy("b", "ingress", ANY, ((ICMP, 0, True), (58, 129, True))),
            dropped("b", echo_reply("b", "a"), "POLICY_INGRESS", tally="REJUDGED"),
            dropped("a", echo("a", "b"), "POLICY_INGRESS", tally="REJUDGED"),
        ],
    ),
    (
        "other ICMP types are one flow without ports",
        [new("a", icmp("a", "b", (13, 139)), "b", source_port_be=0), sent("b", icmp("b", "a", (14, 140)), "a")],
    ),
    ("SCTP", [new("a", sctp("a", "b", 7, 8), "b", protocol=SCTP), sent("b", sctp("b", "a", 8, 7), "a")]),
    (
        "verdicts by port, protocol and class",
        [
            policy("b", "ingress", "a", ((TCP, 80, True), (TCP, 81, False), (UDP, None, True))),
            policy("b", "ingress", ANY, ((TCP, 90, True),), Rule.LATER),
            new("a", flow(TCP, "a", "b", 1, 80), "b", rule_ingress=Rule.ALLOW),
            dropped("a", flow(TCP, "a", "b", 1, 81), "POLICY_INGRESS", rule_ingress=Rule.DENY, ingress_judged=1,
                    rule_egress="RULE_NOT_ISOLATED", egress_judged=1),
            dropped("a", flow(TCP, "a", "b", 1, 82), "POLICY_INGRESS", rule_ingress=0),
            dropped("a", flow(SCTP, "a", "b", 1, 80), "POLICY_INGRESS"),
            new("a", flow(UDP, "a", "b", 1, 81), "b"),
            # A row of one's own hides the row of all others.
            dropped("a", flow(TCP, "a", "b", 1, 90), "POLICY_INGRESS"),
            new("c", flow(TCP, "c", "b", 1, 90), "b", rule_ingress=Rule.LATER),
            dropped("c", flow(TCP, "c", "b", 1, 80), "POLICY_INGRESS"),
            entry(flow(TCP, "a", "b", 1, 81)),
        ],
    ),
    (
        "a longer match wins within a row",
        [
            policy("b", "ingress", ANY, ((None, None, True), (TCP, None, False), (TCP, 80, True))),
            new("a", flow(TCP, "a", "b", 1, 80), "b"),
            dropped("a", flow(TCP, "a", "b", 1, 81), "POLICY_INGRESS"),
            new("a", flow(UDP, "a", "b", 1, 81), "b"),
        ],
    ),
    (
        "egress is judged before ingress",
        [
            policy("a", "egress", "b", CLOSED),
            policy("b", "ingress", "a", CLOSED),
            dropped("a", SYN, "POLICY_EGRESS", source="a", destination="b", source_identity=1001,
                    destination_identity=1002, egress_judged=1, ingress_judged=0, packets=1),
        ],
    ),
    ("no entry for the subject is a deny", [
        do("remove_policy", "b", "ingress"),
        dropped("a", SYN, "POLICY_INGRESS", rule_ingress=0),
        do("remove_policy", "a", "egress"),
        dropped("a", SYN, "POLICY_EGRESS", rule_egress=0),
        stopped("b", udp("world", "b", 1, 2), "POLICY_INGRESS"),
    ]),
    ("a class that points at no row is a deny", [
        policy("b", "ingress", "a", CLOSED), dropped("a", SYN, "POLICY_INGRESS"),
    ]),
    (
        # LESSONS 13: identity 0 was once a wildcard.
        "lesson 13: unknown matches no allow, of any direction",
        [
            dropped("a", udp("a", "nobody", 1, 2), "UNKNOWN_IDENTITY", egress_judged=1, destination_identity=0),
            stopped("a", udp("nobody", "a", 1, 2), "UNKNOWN_IDENTITY", ingress_judged=1, source_identity=0),
            policy("a", "egress", "nobody", OPEN),
            policy("a", "ingress", "nobody", OPEN),
            dropped("a", udp("a", "nobody", 1, 2), "UNKNOWN_IDENTITY"),
            stopped("a", udp("nobody", "a", 1, 2), "UNKNOWN_IDENTITY"),
        ],
    ),
    (
        # LESSONS 18.
        "lesson 18: a live connection stops at a new deny, and goes on at a new allow",
        [
            new("a", SYN, "b"),
            sent("b", SYN_ACK, "a"),
            policy("b", "ingress", "a", ((None, None, False),)),
            dropped("a", ACK, "POLICY_INGRESS", tally="REJUDGED", rule_ingress=Rule.DENY, source="a", destination="b"),
            entry(ACK, verdict=0, packets=1),
            dropped("a", ACK, "POLICY_INGRESS"),
            dropped("b", SYN_ACK, "POLICY_INGRESS", tally="REJUDGED", source="b", destination="a", source_identity=1002,
                    destination_identity=1001),
            policy("b", "ingress", "a", OPEN, Rule.LATER),
            sent("a", ACK, "b", tally="REJUDGED"),
            sent("b", SYN_ACK, "a", tally="REJUDGED"),
            sent("b", SYN_ACK, "a"),
            entry(ACK, verdict=1, packets=2, rule_ingress=Rule.LATER),
        ],
    ),
    (
        "lesson 18: also between a pod and the world, whoever began",
        [
            new("a", OUT, STACK),
            arrives_new("a", IN),
            policy("a", "egress", ANY, CLOSED),
            stopped("a", OUT_BACK, "POLICY_EGRESS", tally="REJUDGED", source="world", destination="a"),
            dropped("a", OUT, "POLICY_EGRESS", tally="REJUDGED"),
            arrives("a", IN, tally="REJUDGED"),
            sent("a", IN_BACK, STACK, tally="REJUDGED"),
            policy("a", "ingress", ANY, CLOSED),
            stopped("a", IN, "POLICY_INGRESS", tally="REJUDGED"),
            dropped("a", IN_BACK, "POLICY_INGRESS", tally="REJUDGED", source="a", destination="world"),
        ],
    ),
    (
        "a denied flow does not stay alive by sending",
        [
            new("a", SYN, "b"),
            policy("b", "ingress", ANY, CLOSED),
            do("edit", SYN, expires_ns=(1 << 62)),
            dropped("a", ACK, "POLICY_INGRESS", tally="REJUDGED"),
            entry(SYN, expires_ns=1 << 62),
        ],
    ),
    ("a new epoch alone changes nothing", [
        new("a", SYN, "b"), epoch, sent("a", ACK, "b", tally="REJUDGED"), sent("a", ACK, "b"),
    ]),
    (
        "the node always reaches its pods",
        [
            policy("a", "ingress", ANY, CLOSED),
            policy("a", "egress", ANY, CLOSED),
            arrives_new("a", tcp("node", "a", 1, 80, "S"), via=0, rule_ingress="RULE_HOST", ingress_judged=1,
                        source_identity=1, destination_identity=1001),
            entry(tcp("node", "a", 1, 80)),
            entry(tcp("node", "a", 1, 80), host=True, flags=0, ifindex=101),
            sent("a", tcp("a", "node", 80, 1, "SA"), STACK),
            arrives("a", tcp("node", "a", 1, 80), via=0),
            entry(tcp("node", "a", 1, 80), host=True, flags=CT_ESTABLISHED, packets=2),
            epoch,
            sent("a", tcp("a", "node", 80, 1), STACK),
            dropped("a", tcp("a", "node", 81, 1), "POLICY_EGRESS"),
            arrives("a", tcp("node", "a", 1, 80, "R"), via=0, events=END),
        ],
    ),
    (
        "only what the node itself sends is the node's",
        [
            policy("a", "ingress", ANY, CLOSED),
            stopped("a", tcp("node", "a", 1, 80, "S"), "POLICY_INGRESS", via=7),
            arrives_new("a", tcp("node", "a", 1, 80, "S"), via=0),
            stopped("a", tcp("node", "a", 1, 80), "POLICY_INGRESS", via=7),
            stopped("a", tcp("world", "a", 1, 80, "S"), "POLICY_INGRESS", via=0),
        ],
    ),
    (
        "a pod reaches the node by policy",
        [
            policy("a", "ingress", ANY, CLOSED),
            new("a", tcp("a", "node", 1, 22, "S"), STACK, destination_identity=1),
            arrives("a", tcp("node", "a", 22, 1, "SA"), via=0),
            policy("a", "egress", ANY, CLOSED),
            dropped("a", tcp("a", "node", 1, 22), "POLICY_EGRESS", tally="REJUDGED"),
            stopped("a", tcp("node", "a", 22, 1), "POLICY_EGRESS", tally="REJUDGED", via=0),
        ],
    ),
    (
        "an address that another pod has now: nothing of the old pod's flows holds",
        [
            new("a", SYN, "b"),
            sent("b", SYN_ACK, "a"),
            arrives_new("a", IN),
            new("a", OUT, STACK),
            do("remove_pod", "a"),
            epoch,
            do("pod", "c", "a", "c"),
            policy("c", "ingress", ANY, CLOSED),
            policy("c", "egress", ANY, ((UDP, None, True),)),
            dropped("c", ACK, "POLICY_EGRESS"),
            dropped("b", SYN_ACK, "POLICY_INGRESS", source_identity=1002, destination_identity=1003),
            stopped("c", OUT_BACK, "POLICY_INGRESS"),
            stopped("c", IN, "POLICY_INGRESS"),
            new("c", IN_BACK, STACK),
            new("c", OUT, STACK),
        ],
    ),
    (
        "the address of a pod that is gone is nobody's here",
        [
            new("a", SYN, "b"),
            do("remove_pod", "b"),
            epoch,
            dropped("b", SYN_ACK, "UNKNOWN_ENDPOINT"),
            policy("a", "egress", "free", CLOSED),
            dropped("a", ACK, "POLICY_EGRESS", tally="REJUDGED", destination_identity=3),
            policy("a", "egress", "free", OPEN),
            sent("a", ACK, STACK, tally="REJUDGED"),
            entry(ACK, flags=0),
        ],
    ),
]  # fmt: skip


@pytest.mark.parametrize("steps", [c[1] for c in CASES], ids=[c[0] for c in CASES])
def test_flow(kernel: Kernel, steps: list[Change]) -> None:
    run(kernel, steps)

"""Flows that rows leave to a proxy, as far as there need be no proxy: who is sent there, who may pass for one.

In a test run no packet can be given to a socket: where one would be, it is refused here. With sockets: tests/netns.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any

import pytest
from frames import TCP, UDP, Packet, echo, error, fragments, sctp, tcp, udp
from kernel import ANY, CLOSED, OPEN, PORTS, Kernel, Listener, Rule
from refusals import answer_to, refused
from table import (
    Case,
    Change,
    Events,
    Step,
    arrives_new,
    check_events,
    do,
    drop_event,
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

from agent.datapath.abi import be16
from agent.datapath.testrun import Action

ASKED = ((TCP, 80, Listener.ENVOY), (UDP, 53, Listener.DNS))
PROXIES: list[Change] = [
    lambda kernel: kernel.config(features=kernel.abi.constants.FEATURE_PROXY),
    do("listener", Listener.ENVOY, 15001, 0),
    do("listener", Listener.DNS, 15053, 15054),
]
GIVEN = 61007
ONLY_ONE = do("config", port_min=GIVEN, port_max=GIVEN)
"""So that rows can say which port is given out."""
EGRESS, INGRESS = policy("a", "egress", ANY, ASKED), policy("b", "ingress", ANY, ASKED)
ASK: dict[str, Any] = {"verdict": "VERDICT_REDIRECT"}


def syn(source: str, destination: str, port: int = 80, source_port: int = 1000) -> Packet:
    return tcp(source, destination, source_port, port, "S")


def udp_80(source: str, destination: str, port: int = 80, source_port: int = 1000) -> Packet:
    return udp(source, destination, source_port, port)


def ack(source: str, destination: str, port: int = 80, source_port: int = 1000, flags: str = "A") -> Packet:
    return tcp(source, destination, source_port, port, flags)


def sends_on(packet: Packet, mark: str, reason: str = "", **members: object) -> Step:
    """A proxy does, in the name of the packet's source. `reason`: why it is dropped."""
    events = drop_event(reason, members) if reason else ()
    to = "" if reason else "stack"
    return Step("b", packet, "to_pod", to, None, reason or "NONE", events, mark=mark)


@dataclass(frozen=True)
class HandedOn:
    """to_pod gives it to from_pod, for a listener at `port` or (0) a connection."""

    packet: Packet
    port: int = 0
    events: Events = ()
    mark: str = ""
    via: int = 7
    tally: str = ""

    def __call__(self, kernel: Kernel) -> None:
        constants = kernel.abi.constants
        mark = constants[f"MARK_{self.mark}"] if self.mark else 0
        outcome = kernel.send("b", self.packet, "to_pod", 0 if self.mark else self.via, mark=mark)
        assert outcome.action == Action.REDIRECT, outcome
        assert outcome.mark == constants.MARK_HAND_ON + self.port, outcome
        assert outcome.drops == {"DROP_NONE": 1}, outcome
        assert outcome.tallies == ({f"TALLY_{self.tally}": 1} if self.tally else {}), outcome
        check_events(kernel, "b", "to_pod", outcome.events, self.events, str(outcome))


@dataclass(frozen=True)
class Told:
    """from_pod refuses what was handed on: the answer goes by the stack, as it came."""

    packet: Packet
    port: int = 0
    rule: int = Rule.ALLOW

    def __call__(self, kernel: Kernel) -> None:
        mark = kernel.abi.constants.MARK_HAND_ON + self.port
        outcome = kernel.send("b", self.packet, "from_pod", mark=mark)
        assert outcome.action == Action.OK, outcome
        assert outcome.mark == 0, outcome
        assert outcome.drops == {"DROP_PROXY_UNREADY": 1}, outcome
        (told,) = outcome.events
        assert told.rule_ingress == self.rule, told
        answer = replace(answer_to(self.packet, kernel.family), identification=0)
        assert outcome.frame[14:] == answer.encode_ip(kernel.family), outcome


def begun(packet: Packet, **members: Any) -> Change:
    """A redirected flow begins at a pod; no socket can be given in a test run, so that is refused."""
    step = refused(packet.source, packet, "PROXY_UNREADY", **members)
    return replace(step, events=event("NEW", **ASK, **members) + step.events)


def _sent_on_by_another_port(packet: Packet, mark: str) -> Change:
    def step(kernel: Kernel) -> None:
        outcome = kernel.send("b", packet, "to_pod", mark=kernel.abi.constants[f"MARK_{mark}"])
        assert (outcome.action, outcome.drops) == (Action.OK, {"DROP_NONE": 1}), outcome
        at = 34 if kernel.family == 4 else 54
        port = int.from_bytes(outcome.frame[at : at + 2], "big")
        assert port in PORTS, outcome
        answered = kernel.entry(tcp(packet.destination, packet.source, packet.l4.destination_port, port), leg=1)
        assert answered.after_destination_port_be == be16(packet.l4.source_port), answered

    return step


CASES: list[Case] = [
    (
        "a listener that does not serve yet: dropped, named, and not tracked",
        [
            EGRESS,
            dropped("a", syn("a", "b"), "PROXY_UNREADY", rule_egress=Rule.ALLOW, destination_identity=1002),
            dropped("a", udp("a", "b", 1000, 53), "PROXY_UNREADY", rule_egress=Rule.ALLOW),
            entry(syn("a", "b")),
        ],
    ),
    (
        "egress: a flow to the proxy and one from it, for which no pod can speak",
        [
            *PROXIES,
            EGRESS,
            begun(syn("a", "b"), rule_egress=Rule.ALLOW, egress_judged=1),
            entry(syn("a", "b"), listener=Listener.ENVOY, sender_ifindex=101, receiver_ifindex=0),
            entry(tcp("b", "a", 80, 1000), sender_ifindex=0, receiver_ifindex=101, ifindex=101),
            dropped("b", tcp("b", "a", 80, 1000, "SA"), "TUPLE_TAKEN"),
            stopped("a", tcp("b", "a", 80, 1000, "SA"), "SPOOFED_SOURCE"),
            Step("a", tcp("b", "a", 80, 1000, "SA"), "to_pod", "stack", mark="PROXY_ANSWERS"),
            refused("a", ack("a", "b"), "PROXY_UNREADY", rule_egress=Rule.ALLOW),
        ],
    ),
    (
        "the proxy's answers are judged by the rules of the day, of both sides",
        [
            *PROXIES,
            EGRESS,
            begun(udp("a", "b", 1000, 53)),
            Step("a", udp("b", "a", 53, 1000), "to_pod", "stack", mark="PROXY_ANSWERS"),
            policy("b", "ingress", "a", CLOSED),
            Step("a", udp("b", "a", 53, 1000), "to_pod", "", reason="POLICY_INGRESS",
                 events=drop_event("POLICY_INGRESS", {}), mark="PROXY_ANSWERS", tally="REJUDGED"),
            dropped("a", udp("a", "b", 1000, 53), "POLICY_INGRESS", tally="REJUDGED"),
            policy("b", "ingress", "a", OPEN),
            Step("a", udp("b", "a", 53, 1000), "to_pod", "stack", mark="PROXY_ANSWERS", tally="REJUDGED"),
        ],
    ),
    (
        "ingress, from a pod here: as egress; a deny of either side goes before a redirect",
        [
            *PROXIES,
            INGRESS,
            begun(syn("a", "b"), rule_ingress=Rule.ALLOW, ingress_judged=1, egress_judged=1),
            policy("a", "egress", ANY, CLOSED),
            dropped("a", syn("a", "b", source_port=1001), "POLICY_EGRESS"),
            EGRESS,
            policy("b", "ingress", ANY, CLOSED),
            dropped("a", syn("a", "b", source_port=1002), "POLICY_INGRESS"),
        ],
    ),
    (
        "ingress, from outside: handed on",
        [
            *PROXIES,
            INGRESS,
            HandedOn(syn("world", "b"), 15001, event("NEW", **ASK, rule_ingress=Rule.ALLOW, egress_judged=0)),
            HandedOn(ack("world", "b")),
            epoch,
            HandedOn(ack("world", "b"), tally="REJUDGED"),
            HandedOn(udp("world", "b", 1000, 53), 15054, event("NEW", **ASK)),
            HandedOn(udp("world", "b", 1000, 53), 15054),
            policy("b", "ingress", ANY, CLOSED),
            stopped("b", ack("world", "b"), "POLICY_INGRESS", tally="REJUDGED"),
            stopped("b", udp("world", "b", 1000, 53), "POLICY_INGRESS", tally="REJUDGED"),
        ],
    ),
    (
        "what was handed on and finds no socket is refused by the stack; the drop names the rule",
        [
            *PROXIES,
            INGRESS,
            HandedOn(syn("world", "b"), 15001, event("NEW", **ASK)),
            Told(syn("world", "b"), 15001),
            Told(ack("world", "b")),
        ],
    ),
    (
        "from outside: one of the two directions is seen here, so the client's word is enough for an end",
        [
            *PROXIES,
            INGRESS,
            HandedOn(syn("world", "b"), 15001, event("NEW", **ASK)),
            HandedOn(ack("world", "b")),
            HandedOn(ack("world", "b", flags="FA"), events=event("END", **ASK, packets=3)),
            HandedOn(ack("world", "b")),
            HandedOn(syn("world", "b"), 15001, event("NEW", **ASK)),
        ],
    ),
    (
        "a live connection that is to be judged by a proxy only now is refused, to both ends; another may follow",
        [
            new("a", syn("a", "b"), "b"),
            sent("b", ack("b", "a", 1000, 80, "SA"), "a"),
            *PROXIES,
            INGRESS,
            epoch,
            refused("b", ack("b", "a", 1000, 80), "PROXY_UNREADY", rule_ingress=Rule.ALLOW),
            refused("a", ack("a", "b"), "PROXY_UNREADY", rule_ingress=Rule.ALLOW),
            begun(syn("a", "b")),
        ],
    ),
    (
        "a SYN that meets such a connection is dropped once, and begins another when it comes again",
        [
            new("a", syn("a", "b"), "b"),
            *PROXIES,
            INGRESS,
            dropped("a", syn("a", "b"), "PROXY_UNREADY", tally="REJUDGED"),
            begun(syn("a", "b")),
            sends_on(syn("world", "b", source_port=7), "FROM_INGRESS"),
            policy("b", "ingress", ANY, OPEN),
            sends_on(syn("a", "b", source_port=7), "FROM_EGRESS"),
            INGRESS,
            Step("b", syn("a", "b", source_port=7), "to_pod", "", reason="PROXY_UNREADY", mark="FROM_EGRESS",
                 events=drop_event("PROXY_UNREADY", {}), tally="REJUDGED"),
            HandedOn(syn("a", "b", source_port=7), 15001, mark="FROM_EGRESS"),
        ],
    ),
    (
        "the same, from outside",
        [
            arrives_new("b", syn("world", "b")),
            *PROXIES,
            INGRESS,
            HandedOn(ack("world", "b"), tally="REJUDGED"),
            Told(ack("world", "b")),
            HandedOn(syn("world", "b"), 15001, event("NEW", **ASK)),
        ],
    ),
    (
        "a connection stays with its proxy; a flow of datagrams goes where rules say, whichever end is judged first",
        [
            *PROXIES,
            EGRESS,
            begun(syn("a", "b")),
            begun(udp("a", "b", 1000, 53)),
            policy("a", "egress", ANY, OPEN),
            refused("a", ack("a", "b"), "PROXY_UNREADY"),
            entry(ack("a", "b"), listener=Listener.ENVOY, receiver_ifindex=0),
            sent("b", udp("b", "a", 53, 1000), "a", tally="REJUDGED"),
            sent("a", udp("a", "b", 1000, 53), "b", tally="REJUDGED"),
            EGRESS,
            refused("a", udp("a", "b", 1000, 53), "PROXY_UNREADY"),
            dropped("b", udp("b", "a", 53, 1000), "TUPLE_TAKEN", tally="REJUDGED"),
        ],
    ),
    (
        "what the proxy of an egress rule sends on meets ingress in full",
        [
            *PROXIES,
            sends_on(syn("a", "b"), "FROM_EGRESS"),
            entry(syn("a", "b"), leg=1, ifindex=102, receiver_ifindex=102),
            entry(syn("a", "b")),
            sends_on(ack("a", "b"), "FROM_EGRESS"),
            policy("b", "ingress", "a", CLOSED),
            Step("b", ack("a", "b"), "to_pod", "", reason="POLICY_INGRESS", mark="FROM_EGRESS", tally="REJUDGED",
                 events=drop_event("POLICY_INGRESS", {"rule_ingress": 0, "ingress_judged": 1, "egress_judged": 0})),
            sends_on(syn("a", "b", source_port=1001), "FROM_EGRESS", "POLICY_INGRESS"),
            policy("b", "ingress", "a", ASKED),
            HandedOn(syn("a", "b", source_port=1001), 15001, mark="FROM_EGRESS"),
            HandedOn(ack("a", "b", source_port=1001), mark="FROM_EGRESS"),
        ],
    ),
    (
        "what the proxy of an ingress rule sends on it has judged; a deny stops that as well",
        [
            *PROXIES,
            INGRESS,
            sends_on(syn("a", "b"), "FROM_INGRESS"),
            sends_on(ack("a", "b"), "FROM_INGRESS"),
            sends_on(syn("world", "b"), "FROM_INGRESS"),
            sends_on(syn("nobody", "b"), "FROM_INGRESS", "UNKNOWN_IDENTITY"),
            policy("b", "ingress", ANY, CLOSED),
            Step("b", ack("a", "b"), "to_pod", "", reason="POLICY_INGRESS", mark="FROM_INGRESS", tally="REJUDGED",
                 events=drop_event("POLICY_INGRESS", {})),
            dropped("b", ack("b", "a", 1000, 80), "POLICY_INGRESS", tally="REJUDGED"),
        ],
    ),
    (
        "a tuple that the other proxy had is judged as that of this one",
        [
            *PROXIES,
            INGRESS,
            sends_on(udp("a", "b", 1000, 53), "FROM_INGRESS"),
            HandedOn(udp("a", "b", 1000, 53), 15054, mark="FROM_EGRESS"),
            sends_on(udp("a", "b", 1000, 53), "FROM_INGRESS"),
        ],
    ),
    (
        "its answers are for the proxy, and not for the pod in whose name it asked",
        [
            *PROXIES,
            sends_on(udp("a", "b", 1000, 53), "FROM_EGRESS"),
            refused("b", udp("b", "a", 53, 1000), "PROXY_UNREADY"),
            dropped("b", error("b", "a", udp("a", "b", 1000, 53)), "ICMP_UNRELATED"),
            dropped("b", fragments(udp("b", "a", 53, 1000), [16, 8])[0], "PROXY_FRAGMENT"),
            epoch,
            refused("b", udp("b", "a", 53, 1000), "PROXY_UNREADY"),
        ],
    ),
    (
        "marks of proxies count for what the node sends, not for what it forwards",
        [
            *PROXIES,
            INGRESS,
            *(
                Step("b", syn("a", "b"), "to_pod", "", reason="SPOOFED_SOURCE", ingress_ifindex=7, mark=mark,
                     events=drop_event("SPOOFED_SOURCE", {}))
                for mark in ("FROM_EGRESS", "FROM_INGRESS", "PROXY_ANSWERS", "TO_PROXY")
            ),
            stopped("b", syn("a", "b"), "SPOOFED_SOURCE", via=0),
            Step("b", syn("a", "b"), "to_pod", "", reason="SPOOFED_SOURCE", mark="TO_PROXY",
                 events=drop_event("SPOOFED_SOURCE", {})),
        ],
    ),
    (
        "a proxy's answer begins nothing",
        [
            *PROXIES,
            *(
                Step("b", ack(source, "b"), "to_pod", "", reason="POLICY_INGRESS", mark="PROXY_ANSWERS",
                     events=drop_event("POLICY_INGRESS", {}))
                for source in ("a", "world")
            ),
        ],
    ),
    (
        "the node is not judged",
        [
            *PROXIES,
            INGRESS,
            arrives_new("b", syn("node", "b"), via=0, verdict="VERDICT_ALLOW", rule_ingress="RULE_HOST"),
            sent("b", ack("b", "node", 1000, 80, "SA"), "stack"),
        ],
    ),
    (
        "no proxy is led to the node's loopback",
        [
            *PROXIES,
            EGRESS,
            do("identity", "world", "loopback"),
            dropped("a", syn("a", "loopback"), "WRONG_DESTINATION"),
            dropped("a", udp("a", "loopback", 1000, 53), "WRONG_DESTINATION"),
        ],
    ),
    (
        "there are no proxies for other protocols",
        [
            *PROXIES,
            policy("a", "egress", ANY, ((None, None, Listener.ENVOY),)),
            dropped("a", sctp("a", "b", 1000, 80), "PROXY_UNREADY"),
            dropped("a", echo("a", "b"), "PROXY_UNREADY"),
        ],
    ),
    (
        "to redirect to nobody is to deny",
        [
            *PROXIES,
            policy("a", "egress", ANY, ((TCP, 80, Listener.NOBODY),)),
            dropped("a", syn("a", "b"), "POLICY_EGRESS"),
        ],
    ),
    (
        "a datagram in pieces cannot begin a flow",
        [
            *PROXIES,
            INGRESS,
            Step("a", fragments(udp("a", "b", 1000, 53), [16, 8])[0], "from_pod", "", reason="PROXY_FRAGMENT",
                 events=event("NEW", **ASK) + drop_event("PROXY_FRAGMENT", {})),
            dropped("a", fragments(udp("a", "b", 1000, 53), [16, 8])[1], "PROXY_FRAGMENT"),
        ],
    ),
    (
        "no room to track: nothing passes, whoever sends",
        [
            *PROXIES,
            INGRESS,
            do("fill_conntrack"),
            replace(sends_on(syn("a", "b"), "FROM_INGRESS", "CONNTRACK_FULL"), tally="CONNTRACK_FULL"),
            dropped("a", syn("a", "b"), "CONNTRACK_FULL", tally="CONNTRACK_FULL"),
            stopped("b", syn("world", "b"), "CONNTRACK_FULL", tally="CONNTRACK_FULL"),
        ],
    ),
    (
        "a pod's connection and a proxy's in its name have different ports at the other pod",
        [
            *PROXIES,
            new("a", syn("a", "b"), "b"),
            _sent_on_by_another_port(syn("a", "b"), "FROM_EGRESS"),
            sent("b", ack("b", "a", 1000, 80, "SA"), "a"),
        ],
    ),
    (
        "also where the pod's has just been closed: what comes late is told from answers to the proxy",
        [
            *PROXIES,
            new("a", syn("a", "b"), "b"),
            sent("a", ack("a", "b", flags="R"), "b", events=event("END")),
            _sent_on_by_another_port(syn("a", "b"), "FROM_EGRESS"),
        ],
    ),
    (
        "the same where the proxy's was first, TCP and UDP; a pod's connection keeps a port that nobody else has",
        [
            *PROXIES,
            ONLY_ONE,
            *(
                step
                for flow, back in ((syn, ack), (udp_80, udp_80))
                for step in (
                    sends_on(flow("a", "b"), "FROM_EGRESS"),
                    new("a", flow("a", "b"), "b", flow("a", "b", source_port=GIVEN), source_port_be=1000),
                    sent("b", back("b", "a", GIVEN, 80), "a", back("b", "a", 1000, 80)),
                    entry(flow("a", "b"), leg=1, ifindex=102),
                    new("a", flow("a", "b", source_port=1001), "b"),
                    new("a", flow("a", "c"), "c"),
                )
            ),
        ],
    ),
    (
        "its time over, the port is the pod's again",
        [
            *PROXIES,
            ONLY_ONE,
            sends_on(syn("a", "b"), "FROM_EGRESS"),
            do("expire", syn("a", "b"), tcp("b", "a", 80, 1000), leg=1),
            new("a", syn("a", "b"), "b"),
        ],
    ),
    (
        "no port is left",
        [
            *PROXIES,
            ONLY_ONE,
            sends_on(syn("a", "b"), "FROM_EGRESS"),
            sends_on(syn("a", "b", source_port=GIVEN), "FROM_EGRESS"),
            dropped("a", syn("a", "b"), "TUPLE_TAKEN"),
        ],
    ),
]  # fmt: skip


@pytest.mark.parametrize("steps", [c[1] for c in CASES], ids=[c[0] for c in CASES])
def test_proxy(kernel: Kernel, steps: list[Change]) -> None:
    run(kernel, steps)

"""Events → records, and their times."""

from __future__ import annotations

from typing import Any

import msgspec
import pytest
from flow_events import ABI, EVENT, C, event, known_names

from agent.datapath.abi import be16
from agent.flows.clock import STEPS, WallClock, rfc3339
from agent.flows.flow import Flow
from agent.flows.names import Names
from agent.flows.record import TCP_FLAGS, Recorder, drop_reasons, hook_names
from policies.address import parse_address

WALL = 1_700_000_000 * 10**9


def flows(values: dict[str, Any], known: Names | None = None) -> tuple[Flow, ...]:
    unpacked = EVENT.unpack(EVENT.pack(**values))
    return Recorder(ABI, known or known_names(), WallClock(0, WALL)).flows(17, unpacked)


def test_the_json_of_a_flow_is_as_promised() -> None:
    service = {"service": parse_address("10.96.0.9"), "service_port_be": be16(80)}
    first, second = (msgspec.json.decode(msgspec.json.encode(flow)) for flow in flows(event(**service)))
    source = {
        "identity": 300, "namespace": "shop", "pod": "client-1", "ip": "10.0.0.1", "port": 40000,
        "labels": ["app=client", "tier=front"],
    }  # fmt: skip
    assert first == {
        "time": "2023-11-14T22:13:20.000000005Z",
        "seq": 17,
        "type": "new",
        "verdict": "FORWARDED",
        "drop_reason": None,
        "direction": "egress",
        "source": source,
        "destination": {
            "identity": 400, "namespace": "shop", "pod": "web-1", "ip": "10.0.0.2", "port": 8080, "labels": ["app=web"],
        },
        "protocol": "TCP",
        "l7": None,
        "policy": {"kind": "NetworkPolicy", "namespace": "shop", "name": "client", "rule": "egress[1]"},
        "service": {"namespace": "shop", "name": "web", "ip": "10.96.0.9", "port": 80, "port_name": "http"},
        "node": "n1",
        "packets": None,
        "bytes": None,
        "tcp_flags": ["SYN"],
        "icmp": None,
        "encrypted": False,
        "hook": "from-pod",
        "ifindex": 7,
    }  # fmt: skip
    ingress = {"kind": "NetworkPolicy", "namespace": "shop", "name": "web", "rule": "ingress[0]"}
    assert second == first | {"direction": "ingress", "policy": ingress}


DENY, DROP, END = C.VERDICT_DENY, C.EVENT_DROP, C.EVENT_END
TO_POD = C.HOOK_TO_POD
ONLY_IN = {"egress_judged": 0, "rule_egress": 0, "hook": TO_POD}
ONLY_OUT = {"ingress_judged": 0, "rule_ingress": 0}
NEITHER = ONLY_OUT | {"egress_judged": 0, "rule_egress": 0}
DROPPED = {"type": DROP, "verdict": DENY}

# what changes in the event → (direction, type, verdict, reason, policy "name rule" or None) of each record
CASES: list[tuple[str, dict[str, Any], list[tuple[str, str, str, str | None, str | None]]]] = [
    ("egress alone", ONLY_OUT, [("egress", "new", "FORWARDED", None, "shop/client egress[1]")]),
    ("ingress alone", ONLY_IN, [("ingress", "new", "FORWARDED", None, "shop/web ingress[0]")]),
    ("the node", ONLY_IN | {"rule_ingress": C.RULE_HOST}, [("ingress", "new", "FORWARDED", None, "node")]),
    (
        "not isolated",
        {"rule_egress": C.RULE_NOT_ISOLATED},
        [
            ("egress", "new", "FORWARDED", None, "not-isolated"),
            ("ingress", "new", "FORWARDED", None, "shop/web ingress[0]"),
        ],
    ),
    (
        "end",
        {"type": END, "packets": 9, "bytes": 900},
        [
            ("egress", "end", "FORWARDED", None, "shop/client egress[1]"),
            ("ingress", "end", "FORWARDED", None, "shop/web ingress[0]"),
        ],
    ),
    (
        "dropped by ingress default deny although egress allowed",
        DROPPED | {"reason": C.DROP_POLICY_INGRESS, "rule_ingress": 0},
        [("ingress", "drop", "DROPPED", "POLICY_INGRESS", "default-deny")],
    ),
    (
        "dropped by egress default deny",
        DROPPED | ONLY_OUT | {"reason": C.DROP_POLICY_EGRESS, "rule_egress": 0},
        [("egress", "drop", "DROPPED", "POLICY_EGRESS", "default-deny")],
    ),
    (
        "dropped by a rule that denies",
        DROPPED | {"reason": C.DROP_POLICY_INGRESS},
        [("ingress", "drop", "DROPPED", "POLICY_INGRESS", "shop/web ingress[0]")],
    ),
    (
        "spoofed: no rules were asked",
        DROPPED | NEITHER | {"reason": C.DROP_SPOOFED_SOURCE},
        [("egress", "drop", "DROPPED", "SPOOFED_SOURCE", None)],
    ),
    (
        "spoofed on the way in",
        DROPPED | NEITHER | {"reason": C.DROP_SPOOFED_SOURCE, "hook": TO_POD},
        [("ingress", "drop", "DROPPED", "SPOOFED_SOURCE", None)],
    ),
    (
        "no backend is refused",
        DROPPED | NEITHER | {"reason": C.DROP_NO_BACKEND},
        [("egress", "drop", "REFUSED", "NO_BACKEND", None)],
    ),
    (
        "conntrack full after both sides allowed",
        DROPPED | {"reason": C.DROP_CONNTRACK_FULL},
        [("egress", "drop", "DROPPED", "CONNTRACK_FULL", None)],
    ),
    (
        "the backend of a connection is gone",
        DROPPED | NEITHER | {"reason": C.DROP_BACKEND_GONE},
        [("egress", "drop", "REFUSED", "BACKEND_GONE", None)],
    ),
    (
        "a node port, and no backend on this node",
        DROPPED | NEITHER | {"reason": C.DROP_NO_LOCAL_BACKEND, "hook": C.HOOK_FROM_NETWORK},
        [("ingress", "drop", "DROPPED", "NO_LOCAL_BACKEND", None)],
    ),
    (
        "too big to be sent on",
        DROPPED | NEITHER | {"reason": C.DROP_TOO_BIG, "hook": C.HOOK_TO_NETWORK},
        [("egress", "drop", "REFUSED", "TOO_BIG", None)],
    ),
    (
        "no room for the client's affinity, at the socket",
        DROPPED | NEITHER | {"reason": C.DROP_AFFINITY_FULL, "hook": C.HOOK_SOCKET},
        [("egress", "drop", "DROPPED", "AFFINITY_FULL", None)],
    ),
    (
        "the end of a flow that a policy change cut",
        {"type": END, "verdict": DENY, "rule_ingress": 0},
        [
            ("egress", "end", "DROPPED", None, "shop/client egress[1]"),
            ("ingress", "end", "DROPPED", None, None),
        ],
    ),
]


@pytest.mark.parametrize(("changes", "expected"), [c[1:] for c in CASES], ids=[c[0] for c in CASES])
def test_each_side_judged_gives_a_record_and_a_drop_gives_one(
    changes: dict[str, Any], expected: list[tuple[str, str, str, str | None, str | None]]
) -> None:
    got = [
        (f.direction, f.type, f.verdict, f.drop_reason, str(f.policy) if f.policy else None)
        for f in flows(event(**changes))
    ]
    assert got == expected


def test_only_ends_carry_totals() -> None:
    (end, _) = flows(event(type=END, packets=9, bytes=900))
    assert (end.packets, end.bytes, end.tcp_flags) == (9, 900, None)
    (new, _) = flows(event(packets=9, bytes=900))
    assert (new.packets, new.bytes) == (None, None)


@pytest.mark.parametrize(
    ("protocol", "name", "ports", "icmp"),
    [
        (6, "TCP", True, False),
        (17, "UDP", True, False),
        (132, "SCTP", True, False),
        (1, "ICMP", False, True),
        (58, "ICMPv6", False, True),
        (47, "47", False, False),
    ],
)
def test_protocols_show_what_they_have(protocol: int, name: str, ports: bool, icmp: bool) -> None:
    flow, _ = flows(event(protocol=protocol, icmp_type=8, icmp_code=1))
    assert flow.protocol == name
    assert (flow.source.port, flow.destination.port) == ((40000, 8080) if ports else (None, None))
    assert (flow.icmp is not None and (flow.icmp.type, flow.icmp.code) == (8, 1)) is icmp
    assert (flow.tcp_flags is not None) is (name == "TCP")


def test_what_has_no_name_keeps_its_numbers() -> None:
    values = event(
        source=parse_address("192.0.2.7"),
        source_identity=9,
        destination=parse_address("fd00::9"),
        destination_identity=555,
        service=parse_address("10.96.0.10"),
        service_port_be=be16(443),
    )
    flow, _ = flows(values)
    assert (flow.source.namespace, flow.source.pod, flow.source.ip) == (None, None, "192.0.2.7")
    assert flow.source.labels == ("reserved:world-ipv4",)
    assert (flow.destination.ip, flow.destination.labels) == ("fd00::9", ())
    assert flow.service is not None
    assert (flow.service.name, flow.service.ip, flow.service.port) == (None, "10.96.0.10", 443)


def test_what_was_encrypted() -> None:
    for kind in (C.EVENT_NEW, C.EVENT_END, C.EVENT_DROP):
        for encrypted in (False, True):
            assert {f.encrypted for f in flows(event(type=kind, encrypted=encrypted))} == {encrypted}


def test_every_drop_reason_of_the_abi_has_a_name() -> None:
    reasons = drop_reasons(ABI)
    assert sorted(reasons) == list(range(1, C.DROP_REASONS))
    assert reasons[C.DROP_POLICY_INGRESS] == "POLICY_INGRESS"


def test_every_hook_of_the_abi_has_a_name() -> None:
    programs = ["from-pod", "to-pod", "from-network", "to-network", "xdp", "socket", "from-wireguard"]
    assert list(hook_names(ABI).values()) == [*programs, "proxy"]


@pytest.mark.parametrize(
    ("bits", "expected"), [(0, ()), (0x12, ("SYN", "ACK")), (0x01, ("FIN",)), (0xC0, ("ECE", "CWR"))]
)
def test_tcp_flags(bits: int, expected: tuple[str, ...]) -> None:
    assert TCP_FLAGS[bits] == expected


SECOND = 10**9


def test_a_clock_step_moves_later_events_only() -> None:
    clock = WallClock(monotonic_ns=0, wall_ns=WALL)
    clock.observe(10 * SECOND, WALL + 10 * SECOND + 1000)  # jitter
    assert clock.wall_ns(9 * SECOND) == WALL + 9 * SECOND
    clock.observe(20 * SECOND, WALL + 3620 * SECOND)  # an hour forward
    clock.observe(30 * SECOND, WALL + 30 * SECOND)  # and back
    assert clock.wall_ns(19 * SECOND) == WALL + 19 * SECOND
    assert clock.wall_ns(21 * SECOND) == WALL + 3621 * SECOND
    assert clock.wall_ns(31 * SECOND) == WALL + 31 * SECOND
    assert clock.wall_ns(-5) == WALL - 5


def test_clock_steps_are_bounded() -> None:
    clock = WallClock(0, WALL)
    for step in range(10 * STEPS):
        clock.observe(step * SECOND, WALL + step * 60 * SECOND)
    assert len(clock._since) == len(clock._offset) == STEPS


def test_rfc3339_has_nine_digits_and_is_utc() -> None:
    assert rfc3339(0) == "1970-01-01T00:00:00.000000000Z"
    assert rfc3339(WALL + 123456789) == "2023-11-14T22:13:20.123456789Z"

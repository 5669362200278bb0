"""Names of numbers and addresses at the time of an event."""

from __future__ import annotations

from typing import Any

import pytest

from agent.datapath.abi import load
from agent.flows.flow import PolicyRule
from agent.flows.names import FrontendName, Name, Names, Table
from policies.address import parse_address

ABI = load()
POD = {"t": "pod", "ip": "10.0.0.3", "namespace": "shop", "name": "web-1"}
ADDRESS = parse_address("10.0.0.3")

# what happened to one address: (when, value or None for gone); then (event time, name expected)
HISTORIES: list[tuple[str, list[tuple[int, str | None]], list[tuple[int, str | None]]]] = [
    ("never named", [], [(5, None)]),
    ("one name, also for what came just before it", [(10, "a")], [(0, "a"), (10, "a"), (99, "a")]),
    ("gone, and still remembered", [(10, "a"), (20, None)], [(0, "a"), (15, "a"), (99, "a")]),
    ("gone twice", [(10, "a"), (20, None), (30, None)], [(99, "a")]),
    ("address used again", [(10, "a"), (20, None), (30, "b")], [(15, "a"), (21, "a"), (29, "b"), (40, "b")]),
    ("replaced", [(10, "a"), (20, "b")], [(15, "a"), (19, "a"), (20, "b"), (30, "b")]),
    ("back and forth", [(10, "a"), (20, "b"), (30, "a")], [(15, "a"), (25, "b"), (35, "a")]),
    ("said again", [(10, "a"), (20, "a")], [(15, "a"), (25, "a")]),
]


@pytest.mark.parametrize(("history", "expected"), [h[1:] for h in HISTORIES], ids=[h[0] for h in HISTORIES])
def test_the_name_is_that_of_the_events_time(
    history: list[tuple[int, str | None]], expected: list[tuple[int, str | None]]
) -> None:
    table: Table[str, str] = Table()
    for when, value in history:
        if value is None:
            table.remove("k", when)
        else:
            table.set("k", value, when)
    assert [(when, table.at("k", when)) for when, _ in expected] == expected


def test_what_is_gone_is_remembered_up_to_a_bound() -> None:
    table: Table[int, int] = Table(past_entries=10)
    for key in range(100):
        table.set(key, key, now_ns=key)
        table.remove(key, now_ns=key)
    for turn in range(100):
        table.set(1000, turn, now_ns=turn)
    assert table.remembered == 10
    assert table.at(99, 99) is None
    assert table.at(1000, 98) == 98
    assert len(table) == 1


def test_a_snapshot_removes_what_it_does_not_name() -> None:
    names = Names(ABI)
    names.apply(POD, 1)
    names.apply(POD | {"ip": "10.0.0.4", "name": "web-2"}, 1)
    names.apply({"t": "identity", "id": 300, "labels": ["app=web"]}, 1)
    names.begin_snapshot()
    names.apply(POD | {"ip": "10.0.0.4", "name": "web-2"}, 50)
    assert names.counts() == {"rules": 0, "identities": 1, "pods": 2, "services": 0}
    names.apply({"t": "synced"}, 60)
    assert names.counts() == {"rules": 0, "identities": 0, "pods": 1, "services": 0}
    assert names.pod(ADDRESS, 55) == Name("shop", "web-1"), "late events still have a name"
    assert names.labels(300, 55) == ("app=web",)


def test_a_stream_that_breaks_off_within_its_snapshot_removes_nothing() -> None:
    names = Names(ABI)
    names.apply(POD, 1)
    names.begin_snapshot()
    names.begin_snapshot()
    names.apply(POD, 2)
    names.apply({"t": "synced"}, 3)
    assert names.counts()["pods"] == 1


def test_each_kind_of_delta_names_its_kind_of_thing() -> None:
    names = Names(ABI, node="n1")
    rule = {"t": "rule", "id": 2**64 - 2, "kind": "NetworkPolicy", "namespace": "shop", "name": "web"}
    names.apply(rule | {"rule": "ingress[0]"}, 1)
    names.apply({"t": "identity", "id": 300, "labels": ["app=web", "tier=front"]}, 1)
    names.apply(POD, 1)
    names.apply(POD | {"ip": "fd00::3"}, 1)
    names.apply({"t": "service", "address": "10.96.0.9", "port": 53, "protocol": "UDP", "name": "dns"}, 1)
    assert names.rule(2**64 - 2, 5) == PolicyRule("NetworkPolicy", "shop", "web", "ingress[0]")
    assert names.labels(300, 5) == ("app=web", "tier=front")
    assert names.pod(ADDRESS, 5) == names.pod(parse_address("fd00::3"), 5) == Name("shop", "web-1")
    frontend = parse_address("10.96.0.9")
    assert names.service(frontend, 53, 17, 5) == FrontendName("", "dns", "")
    assert names.service(frontend, 53, 6, 5) is None, "LESSONS 19: same port, other protocol"
    names.apply({"t": "node", "name": "n2"}, 9)
    assert names.node == "n2"


@pytest.mark.parametrize(
    ("number", "expected"),
    [
        ("RULE_NONE", "Built-in|default-deny"),
        ("RULE_NOT_ISOLATED", "Built-in|not-isolated"),
        ("RULE_HOST", "Built-in|node"),
        ("RULE_SELF", "Built-in|self"),
    ],
)
def test_rules_that_nobody_wrote_have_fixed_names(number: str, expected: str) -> None:
    rule = Names(ABI).rule(ABI.constants[number], 0)
    assert f"{rule.kind}|{rule.name}" == expected


def test_a_rule_nobody_has_named_shows_its_number() -> None:
    assert Names(ABI).rule(0xABCDEF0123456789, 0) == PolicyRule("Unknown", "", "abcdef0123456789", "")


@pytest.mark.parametrize(
    ("identity", "labels"),
    [
        (0, ("reserved:unknown",)),
        (1, ("reserved:host",)),
        (6, ("reserved:remote-node",)),
        (7, ("reserved:kube-apiserver",)),
        (9, ("reserved:world-ipv4",)),
        (256, ()),
    ],
)
def test_reserved_identities_have_labels_of_their_own(identity: int, labels: tuple[str, ...]) -> None:
    assert Names(ABI).labels(identity, 0) == labels


BAD: list[Any] = [
    None,
    "pod",
    {},
    {"t": "comet"},
    {"t": "pod"},
    {"t": "pod", "ip": "10.0.0"},
    {"t": "rule", "id": "seven"},
    {"t": "service", "address": "10.0.0.1", "port": 1, "protocol": "ICMP"},
]


@pytest.mark.parametrize("line", BAD, ids=str)
def test_a_line_that_is_no_delta_is_a_value_error_and_changes_nothing(line: Any) -> None:
    names = Names(ABI)
    with pytest.raises(ValueError):
        names.apply(line, 1)
    assert not any(names.counts().values())

"""The two entries of a flow find each other, and tell of its end alike."""

from __future__ import annotations

from typing import Any

import pytest
from conntrack_entries import CONNTRACK, FLOWS, TUPLE, Flow
from flow_events import ABI, EVENT, C

from agent.datapath.abi import be16
from agent.flows.pairs import Pairs
from agent.flows.sweeper import LONGEST_S, SHORTEST_S, interval_s
from policies.address import format_address

PAIRS = Pairs(ABI)
each_flow = pytest.mark.parametrize("flow", FLOWS.values(), ids=FLOWS)


def unpacked(flow: Flow, **fields: Any) -> list[tuple[Any, Any]]:
    return [(TUPLE.unpack(k), CONNTRACK.unpack(v)) for k, v in flow.entries(expires_ns=10, **fields).items()]


@each_flow
def test_each_entry_leads_to_the_other(flow: Flow) -> None:
    (forward_key, forward), (reply_key, reply) = unpacked(flow)
    assert PAIRS.partner(forward_key, forward) == flow.reply_key
    assert PAIRS.partner(reply_key, reply) == flow.forward_key


@each_flow
@pytest.mark.parametrize("alone", [False, True], ids=["both", "alone"])
def test_the_end_is_the_same_from_either_entry(flow: Flow, alone: bool) -> None:
    forward, reply = unpacked(flow)
    backend = flow.backend or flow.destination
    for (key, entry), (_, partner) in ((forward, reply), (reply, forward)):
        data = PAIRS.end(key, entry, None if alone else partner, now_ns=99)
        assert data is not None
        end = EVENT.unpack(data)
        assert (format_address(end.source), be16(end.source_port_be)) == flow.source
        assert (format_address(end.destination), be16(end.destination_port_be)) == backend
        if flow.backend:
            assert (format_address(end.service), be16(end.service_port_be)) == flow.destination
        else:
            assert (end.service, end.service_port_be) == (bytes(16), 0)
        assert (end.packets, end.bytes) == ((entry.packets, entry.bytes) if alone else (5, 500))
        assert (end.type, end.verdict, end.reason, end.time_ns) == (C.EVENT_END, C.VERDICT_ALLOW, 0, 99)
        assert (end.rule_egress, end.rule_ingress, end.egress_judged, end.ingress_judged) == (100, 200, 1, 1)
        assert (end.source_identity, end.destination_identity, end.protocol) == (300, 400, flow.protocol)


@pytest.mark.parametrize(
    ("fields", "hook", "judged"),
    [
        ({"rule_egress": 0}, "HOOK_TO_POD", (0, 1)),
        ({"rule_ingress": 0}, "HOOK_FROM_POD", (1, 0)),
    ],
)
def test_a_side_without_a_rule_was_not_judged(fields: dict[str, int], hook: str, judged: tuple[int, int]) -> None:
    ((key, entry), (_, partner)) = unpacked(FLOWS["plain"], **fields)
    data = PAIRS.end(key, entry, partner, 1)
    assert data is not None
    end = EVENT.unpack(data)
    assert end.hook == C[hook]
    assert (end.egress_judged, end.ingress_judged) == judged


@pytest.mark.parametrize("flag", ["CT_TO_PROXY", "CT_FROM_PROXY"])
def test_a_flow_that_a_proxy_judged_ends_as_one(flag: str) -> None:
    ((key, entry), _) = unpacked(FLOWS["plain"], flags=C[flag])
    data = PAIRS.end(key, entry, None, 1)
    assert data is not None
    assert EVENT.unpack(data).verdict == C.VERDICT_REDIRECT


@pytest.mark.parametrize("encrypted", [False, True])
def test_a_flow_that_was_encrypted_ends_as_one(encrypted: bool) -> None:
    ((key, entry), _) = unpacked(FLOWS["plain"], flags=C.CT_ENCRYPTED * encrypted)
    data = PAIRS.end(key, entry, None, 1)
    assert data is not None
    assert EVENT.unpack(data).encrypted == encrypted


def test_the_other_leg_is_another_flow() -> None:
    ((key, entry), _) = unpacked(FLOWS["plain"])
    upstream = entry._replace(after_leg=1)
    assert TUPLE.unpack(PAIRS.partner(key, upstream)).leg == 1
    assert PAIRS.partner(key, upstream) != PAIRS.partner(key, entry)


def test_an_end_that_the_datapath_reported_is_not_reported_again() -> None:
    ((key, entry), (_, partner)) = unpacked(FLOWS["plain"], flags=C.CT_ENDED)
    assert PAIRS.end(key, entry, partner, 1) is None
    assert PAIRS.end(key, entry, None, 1) is None


LIVES = [
    # own expiry, partner's (None: there is none), made at the same time, live at 50
    (51, 10, True, True),
    (10, 51, True, True),
    (10, 51, False, False),  # another flow's entry under that key
    (10, None, True, False),
    (50, 50, True, False),
]


@pytest.mark.parametrize(("own", "other", "same", "live"), LIVES)
def test_expiry_is_the_later_of_both(own: int, other: int | None, same: bool, live: bool) -> None:
    entry = CONNTRACK.unpack(CONNTRACK.pack(expires_ns=own, created_ns=1))
    partner = None
    if other is not None:
        partner = CONNTRACK.unpack(CONNTRACK.pack(expires_ns=other, created_ns=1 if same else 2))
    assert PAIRS.is_live(entry, partner, 50) is live


def test_the_fuller_the_map_the_sooner_the_next_sweep() -> None:
    intervals = [interval_s(fill / 20) for fill in range(21)]
    assert intervals == sorted(intervals, reverse=True)
    assert (intervals[0], intervals[-1]) == (LONGEST_S, SHORTEST_S)

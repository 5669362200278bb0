"""Sweeps over a real conntrack map."""

from __future__ import annotations

import asyncio
from collections.abc import Callable

import pytest
from conntrack_entries import CONNTRACK, FLOWS, Flow
from flow_events import ABI, EVENT, C

from agent.datapath.abi import be16
from agent.datapath.maps import Map, Maps
from agent.flows.conntrack import GRACE_NS, TURN_S, Forget, Port, Sweep, Sweeper
from policies.address import format_address, parse_address

NOW = 10**12
LIVE, DEAD = NOW + 1, NOW - GRACE_NS - 1


def sweep(
    table: Map, forget: dict[str, int] | None = None, frontends: dict[Port, tuple[frozenset[Port], int]] | None = None
) -> tuple[Sweep, list[str]]:
    """What it did, and the ends it reported as `source port`."""
    reported: list[bytes] = []
    sweeper = Sweeper(ABI, table, reported.append, now_ns=lambda: NOW)
    addresses = {parse_address(ip): when for ip, when in (forget or {}).items()}
    result = asyncio.run(sweeper.sweep(Forget(addresses, frontends or {})))
    events = [event for data in reported for event in EVENT.records(data)]
    return result, sorted(f"{format_address(e.source)} {e.packets}" for e in events)


def keys(table: Map) -> set[bytes]:
    return {key for key, _ in table.items()}


CASES: list[tuple[str, dict[str, int], bool, bool]] = [
    # expiries and flags → removed, reported
    ("live", {"expires_ns": LIVE}, False, False),
    ("over", {"expires_ns": DEAD}, True, True),
    ("within the grace for the coarser clock", {"expires_ns": NOW - 1}, False, False),
    ("only answers still come", {"expires_ns": DEAD, "reply_expires_ns": LIVE}, False, False),
    ("only the originator still sends", {"expires_ns": LIVE, "reply_expires_ns": DEAD}, False, False),
    ("over, reported by the datapath", {"expires_ns": DEAD, "flags": C.CT_ENDED}, True, False),
]


@pytest.mark.parametrize("kind", ["conntrack", "conntrack_host"])
@pytest.mark.parametrize(("fields", "removed", "reported"), [c[1:] for c in CASES], ids=[c[0] for c in CASES])
def test_what_is_over_goes_with_its_partner(
    maps: Maps, kind: str, fields: dict[str, int], removed: bool, reported: bool
) -> None:
    table = maps[kind]
    for flow in FLOWS.values():
        table.update_many(flow.entries(**fields))
    before = keys(table)
    assert len(before) == 2 * len(FLOWS)
    result, ends = sweep(table)
    assert keys(table) == (set() if removed else before)
    assert result.entries == (0 if removed else len(before))
    assert result.expired == (len(before) if removed else 0)
    assert ends == (sorted(f"{flow.source[0]} 5" for flow in FLOWS.values()) if reported else [])
    assert result.ended == len(ends)


def test_an_entry_without_its_partner_goes_alone(maps: Maps) -> None:
    table = maps["conntrack"]
    flow = FLOWS["service"]
    other_flow = flow.entries(expires_ns=LIVE, created_ns=2)[flow.reply_key]
    table.update(flow.forward_key, flow.entries(expires_ns=DEAD)[flow.forward_key])
    table.update(flow.reply_key, other_flow)
    result, ends = sweep(table)
    assert keys(table) == {flow.reply_key}
    assert (result.entries, result.expired, ends) == (1, 1, ["10.0.0.1 3"])


FORGET = [
    ("10.0.0.1", {"plain", "service", "hairpin", "echo"}),
    ("10.0.0.2", {"plain", "service", "echo"}),
    ("fd00::2", {"udp over IPv6", "service over IPv6"}),
    ("10.96.0.9", {"service", "hairpin"}),
    ("10.0.0.3", set()),
]


@pytest.mark.parametrize(("ip", "expected"), FORGET)
def test_flows_of_an_address_are_forgotten_on_either_end(maps: Maps, ip: str, expected: set[str]) -> None:
    table = maps["conntrack"]
    for flow in FLOWS.values():
        table.update_many(flow.entries(expires_ns=LIVE, created_ns=500))
    result, ends = sweep(table, {ip: 500})
    kept = {key for name, flow in FLOWS.items() if name not in expected for key in (flow.forward_key, flow.reply_key)}
    assert keys(table) == kept
    assert (result.forgotten, result.expired, result.entries) == (2 * len(expected), 0, len(kept))
    assert len(ends) == len(expected)


UDP_FLOW = Flow(("10.0.0.1", 40002), ("10.96.0.9", 53), ("10.0.0.2", 5353), protocol=17)
UDP_SELF = Flow(("10.0.0.1", 40004), ("10.96.0.9", 53), ("10.0.0.1", 5353), protocol=17)
TCP_FLOW = Flow(("10.0.0.1", 40002), ("10.96.0.9", 53), ("10.0.0.2", 5353))
DIRECT = Flow(("10.0.0.1", 40002), ("10.0.0.2", 53), protocol=17)
RETIRE: list[tuple[tuple[str, int], list[tuple[str, int]], int, list[Flow]]] = [
    # frontend, backends that stay, until → flows that are forgotten
    (("10.96.0.9", 53), [], 500, [UDP_FLOW, UDP_SELF]),
    (("10.96.0.9", 53), [], 499, []),
    (("10.96.0.9", 53), [("10.0.0.1", 5353)], 500, [UDP_FLOW]),
    (("10.96.0.9", 53), [("10.0.0.1", 53), ("10.0.0.2", 5353)], 500, [UDP_SELF]),
    (("10.96.0.9", 5353), [], 500, []),
    (("10.0.0.2", 53), [], 500, []),
]


@pytest.mark.parametrize(("frontend", "keep", "until_ns", "expected"), RETIRE)
def test_udp_flows_to_a_retired_backend_are_forgotten_lesson_20(
    maps: Maps, frontend: tuple[str, int], keep: list[tuple[str, int]], until_ns: int, expected: list[Flow]
) -> None:
    table = maps["conntrack"]
    flows = [UDP_FLOW, UDP_SELF, TCP_FLOW, DIRECT]
    for flow in flows:
        table.update_many(flow.entries(expires_ns=LIVE, created_ns=500))
    result, ends = sweep(table, frontends={port_of(*frontend): (frozenset(port_of(*k) for k in keep), until_ns)})
    assert keys(table) == {key for flow in flows if flow not in expected for key in (flow.forward_key, flow.reply_key)}
    assert (result.forgotten, len(ends)) == (2 * len(expected), len(expected))


def port_of(ip: str, port: int) -> Port:
    return parse_address(ip), be16(port)


def test_the_next_owner_of_an_address_keeps_its_flows(maps: Maps) -> None:
    table = maps["conntrack"]
    table.update_many(FLOWS["plain"].entries(expires_ns=LIVE, created_ns=501))
    result, _ = sweep(table, {"10.0.0.1": 500})
    assert (result.forgotten, result.entries) == (0, 2)


def test_a_flow_that_lives_again_when_its_turn_comes_is_left(maps: Maps) -> None:
    """A chunk is a copy: what it says may be past by the time an entry of it is looked at."""
    table = maps["conntrack"]
    flow = FLOWS["plain"]
    table.update_many(flow.entries(expires_ns=DEAD))
    asked = 0

    def now_ns() -> int:
        nonlocal asked
        asked += 1
        if asked == 2:  # the first was for the chunk
            table.update_many(flow.entries(expires_ns=LIVE))
        return NOW

    sweeper = Sweeper(ABI, table, lambda _data: pytest.fail("it has not ended"), now_ns=now_ns)
    result = asyncio.run(sweeper.sweep())
    assert asked >= 2
    assert keys(table) == {flow.forward_key, flow.reply_key}
    assert result.entries == 2


def test_many_flows_go_without_holding_the_loop(maps: Maps) -> None:
    table = maps["conntrack"]
    flows = [Flow((f"10.1.{n >> 8}.{n & 255}", 1000), ("10.0.0.2", 80)) for n in range(8000)]
    entries: dict[bytes, bytes] = {}
    for number, flow in enumerate(flows):
        entries |= flow.entries(expires_ns=DEAD if number % 2 else LIVE)
    table.update_many(entries)
    turns = 0
    sweeping = True

    async def count_turns() -> None:
        nonlocal turns
        while sweeping:
            turns += 1
            await asyncio.sleep(0)

    async def run() -> Sweep:
        nonlocal sweeping
        other = asyncio.create_task(count_turns())
        reported: list[bytes] = []
        report: Callable[[bytes], None] = reported.append
        result = await Sweeper(ABI, table, report, now_ns=lambda: NOW).sweep()
        sweeping = False
        await other
        assert sum(len(data) for data in reported) == 4000 * EVENT.size
        return result

    result = asyncio.run(run())
    duration_s = result.duration_s
    assert (result.entries, result.expired, result.ended) == (8000, 8000, 4000)
    assert turns >= duration_s / (10 * TURN_S) > 0
    left = keys(table)
    assert left == {key for number, flow in enumerate(flows) if not number % 2 for key in flow.entries(expires_ns=1)}
    assert len(next(iter(table.items()))[1]) == CONNTRACK.size

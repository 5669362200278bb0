"""Sweeps over a real conntrack map."""

from __future__ import annotations

import asyncio
from collections.abc import Callable

import pytest
from conntrack_entries import CONNTRACK, FLOWS, NAT, Ends, Flow
from flow_events import ABI, EVENT, C

from agent.datapath import bpf
from agent.datapath.abi import be16
from agent.datapath.maps import Map, Maps
from agent.flows.forget import Forget
from agent.flows.pairs import Pair
from agent.flows.sweeper import GRACE_NS, LINGER_NS, TURN_S, Sweep, Sweeper
from policies.address import format_address, parse_address

NOW = 10**12
LIVE, DEAD = NOW + 1, NOW - GRACE_NS - 1


def sweep(
    table: Map, forget: dict[str, int] | None = None, retired: dict[Pair, int] | None = None
) -> tuple[Sweep, list[str]]:
    """What it did, and the ends it reported as `source port`."""
    reported: list[bytes] = []
    report = None if table.spec.name == "nat" else reported.append
    sweeper = Sweeper(ABI, table, report, now_ns=lambda: NOW)
    addresses = {parse_address(ip): when for ip, when in (forget or {}).items()}
    result = asyncio.run(sweeper.sweep(Forget(addresses, retired or {})))
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
SCTP_FLOW = Flow(("10.0.0.1", 40002), ("10.96.0.9", 53), ("10.0.0.2", 5353), protocol=132)
DIRECT = Flow(("10.0.0.1", 40003), ("10.0.0.2", 5353), protocol=17)
THROUGH = [UDP_FLOW, UDP_SELF, TCP_FLOW, SCTP_FLOW, DIRECT]


def pair(frontend: Ends, protocol: int, backend: Ends) -> Pair:
    (ip, port), (to, to_port) = frontend, backend
    return parse_address(ip), be16(port), protocol, parse_address(to), be16(to_port)


DNS, BACKEND = ("10.96.0.9", 53), ("10.0.0.2", 5353)
RETIRE: list[tuple[Pair, int, list[Flow], list[Flow]]] = [
    # frontend to backend, until → flows that are removed, flows that are marked
    (pair(DNS, 17, BACKEND), 500, [UDP_FLOW], []),
    (pair(DNS, 17, BACKEND), 499, [], []),
    (pair(DNS, 17, ("10.0.0.1", 5353)), 500, [UDP_SELF], []),
    (pair(DNS, 132, BACKEND), 500, [SCTP_FLOW], []),
    (pair(DNS, 6, BACKEND), 500, [], [TCP_FLOW]),
    (pair(DNS, 6, BACKEND), 499, [], []),
    (pair(("10.96.0.9", 54), 17, BACKEND), 500, [], []),  # another frontend of the same backend
    (pair(("10.96.0.8", 53), 17, BACKEND), 500, [], []),
    (pair(DNS, 17, ("10.0.0.2", 53)), 500, [], []),
    (pair(("10.0.0.2", 5353), 17, BACKEND), 500, [], []),  # not through a service
]


@pytest.mark.parametrize("kind", ["conntrack", "conntrack_host"])
@pytest.mark.parametrize(("retired", "until_ns", "removed", "marked"), RETIRE)
def test_flows_to_a_backend_that_is_gone_lessons_20_and_21(
    maps: Maps, kind: str, retired: Pair, until_ns: int, removed: list[Flow], marked: list[Flow]
) -> None:
    table = maps[kind]
    before: dict[bytes, bytes] = {}
    for flow in THROUGH:
        before |= flow.entries(expires_ns=LIVE, created_ns=500)
    table.update_many(before)
    result, ends = sweep(table, retired={retired: until_ns})
    after = dict(table.items())
    assert after.keys() == before.keys() - {key for flow in removed for key in flow.keys}
    assert (result.forgotten, len(ends)) == (2 * len(removed), len(removed))
    of_marked = {key for flow in marked for key in flow.keys}
    for key, value in after.items():
        was = CONNTRACK.unpack(before[key])
        expected = was._replace(flags=was.flags | C.CT_GONE) if key in of_marked else was
        assert CONNTRACK.unpack(value) == expected
    assert result.refused == len(of_marked)
    assert sweep(table, retired={retired: until_ns})[0].refused == 0, "once is enough"


FORWARDED = Flow(("192.0.2.9", 4000), ("192.0.2.1", 30053), ("10.2.0.2", 5353), protocol=17, sender=("10.3.0.1", 61000))
FORWARDED_TCP = Flow(("192.0.2.9", 4000), ("192.0.2.1", 30053), ("10.2.0.2", 5353), sender=("10.3.0.1", 61000))
MASQUERADED = Flow(
    ("10.0.0.1", 4000), ("192.0.2.9", 5353), ("192.0.2.9", 5353), protocol=17, sender=("10.3.0.1", 61001)
)


def test_translations_of_a_backend_that_is_gone(maps: Maps) -> None:
    table = maps["nat"]
    for flow in (FORWARDED, FORWARDED_TCP):
        table.update_many(flow.nat_entries(expires_ns=LIVE, created_ns=500, flags=C.NAT_FORWARD))
    table.update_many(MASQUERADED.nat_entries(expires_ns=LIVE, created_ns=500, flags=C.NAT_MASQUERADE))
    frontend, backend = ("192.0.2.1", 30053), ("10.2.0.2", 5353)
    retired = {pair(frontend, protocol, backend): 500 for protocol in (6, 17)}
    retired[pair(("192.0.2.9", 5353), 17, ("192.0.2.9", 5353))] = 500
    result, ends = sweep(table, retired=retired)
    assert keys(table) == FORWARDED_TCP.keys | MASQUERADED.keys
    gone = {key for key, value in table.items() if NAT.unpack(value).flags & C.NAT_GONE}
    assert gone == FORWARDED_TCP.keys
    assert (result.forgotten, result.refused, ends) == (2, 2, [])


def test_what_answers_directly_has_one_entry(maps: Maps) -> None:
    """NAT_DSR at the backend's node: the reply alone, through a frontend of another node, who ends it."""
    table = maps["nat"]
    for flow, expires_ns in ((FORWARDED, DEAD), (FORWARDED_TCP, LIVE)):
        entries = flow.nat_entries(expires_ns=expires_ns, flags=C.NAT_DSR)
        table.update(flow.reply_key, entries[flow.reply_key])
    assert sweep(table)[0].expired == 1
    assert keys(table) == {FORWARDED_TCP.reply_key}
    frontend, backend = ("192.0.2.1", 30053), ("10.2.0.2", 5353)
    assert sweep(table, retired={pair(frontend, 6, backend): NOW})[0].refused == 0
    assert asyncio.run(Sweeper(ABI, table).used()) == set()


def test_what_is_sent_on_for_direct_answers_ends_where_the_frontend_is(maps: Maps) -> None:
    table = maps["nat"]
    for flow in (FORWARDED, FORWARDED_TCP):
        table.update_many(flow.nat_entries(expires_ns=LIVE, flags=C.NAT_DSR))
    frontend, backend = ("192.0.2.1", 30053), ("10.2.0.2", 5353)
    result, _ = sweep(table, retired={pair(frontend, protocol, backend): NOW for protocol in (6, 17)})
    assert (result.forgotten, result.refused) == (2, 2)
    assert keys(table) == FORWARDED_TCP.keys


@pytest.mark.parametrize(("fields", "removed"), [c[1:3] for c in CASES[:5]], ids=[c[0] for c in CASES[:5]])
def test_translations_that_are_over_go_unreported(maps: Maps, fields: dict[str, int], removed: bool) -> None:
    table = maps["nat"]
    table.update_many(FORWARDED.nat_entries(**fields) | MASQUERADED.nat_entries(**fields, flags=C.NAT_MASQUERADE))
    result, ends = sweep(table)
    assert keys(table) == (set() if removed else FORWARDED.keys | MASQUERADED.keys)
    assert (result.expired, ends) == (4 if removed else 0, [])


@pytest.mark.parametrize(("left_ns", "lingers_ns"), [(10 * LINGER_NS, LINGER_NS), (1000, 1000)])
def test_what_is_marked_does_not_wait_for_its_own_time_out(maps: Maps, left_ns: int, lingers_ns: int) -> None:
    table = maps["conntrack"]
    table.update_many(TCP_FLOW.entries(expires_ns=NOW + left_ns))
    sweep(table, retired={pair(DNS, 6, BACKEND): NOW})
    assert {CONNTRACK.unpack(value).expires_ns for _, value in table.items()} == {NOW + lingers_ns}


def test_a_mark_does_not_bring_back_what_the_datapath_removed(maps: Maps, monkeypatch: pytest.MonkeyPatch) -> None:
    table = maps["conntrack"]
    table.update_many(TCP_FLOW.entries(expires_ns=LIVE))
    update = Map.update

    def removed_before(self: Map, key: bytes, value: bytes, flags: int = bpf.ANY) -> None:
        self.delete(key)
        update(self, key, value, flags)

    monkeypatch.setattr(Map, "update", removed_before)
    result, _ = sweep(table, retired={pair(DNS, 6, BACKEND): NOW})
    assert keys(table) == set()
    assert result.refused == 0


def test_a_connection_that_was_closed_is_not_marked(maps: Maps) -> None:
    """Its ports may begin another."""
    table = maps["conntrack"]
    table.update_many(TCP_FLOW.entries(expires_ns=LIVE, flags=C.CT_CLOSED))
    assert sweep(table, retired={pair(DNS, 6, BACKEND): NOW})[0].refused == 0


def test_frontends_in_use(maps: Maps) -> None:
    conntrack, nat = maps["conntrack"], maps["nat"]
    for flow in THROUGH:
        conntrack.update_many(flow.entries(expires_ns=LIVE, flags=C.CT_GONE if flow is SCTP_FLOW else 0))
    nat.update_many(FORWARDED.nat_entries(expires_ns=LIVE))
    nat.update_many(MASQUERADED.nat_entries(expires_ns=LIVE, flags=C.NAT_MASQUERADE))
    assert asyncio.run(Sweeper(ABI, conntrack).used()) == {
        pair(DNS, 17, BACKEND), pair(DNS, 17, ("10.0.0.1", 5353)), pair(DNS, 6, BACKEND)
    }  # fmt: skip
    assert asyncio.run(Sweeper(ABI, nat).used()) == {pair(("192.0.2.1", 30053), 17, ("10.2.0.2", 5353))}


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

"""Rows against brute force over a few ports, and the rows that were worked out by hand."""

from __future__ import annotations

from itertools import pairwise

import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from policies.flatten import LEARNING, Claim, flatten, lookup
from policies.l7 import L7, HttpRule, NamePattern
from policies.meet import meet
from policies.model import (
    DEFAULT_DENY,
    NOT_ISOLATED,
    Action,
    Cell,
    Direction,
    ObjectRef,
    PortRange,
    Row,
    RuleRef,
    Tier,
    Verdict,
)

ALLOW, DENY = Verdict.ALLOW, Verdict.DENY
EDGES = (0, 1, 2, 3, 4, 5, 79, 80, 81, 65534, 65535)
PROTOCOLS = (6, 17, 1)


def rule(index: int) -> RuleRef:
    return RuleRef(ObjectRef("NetworkPolicy", "a", "p"), Direction.INGRESS, index)


def tcp(first: int, last: int) -> PortRange:
    return PortRange(6, first, last)


def cell(protocol: int | None, first: int, last: int, index: int, verdict: Verdict = ALLOW) -> Cell:
    return Cell(protocol, first, last, verdict, rule(index))


ANY = (0, 65535)
# claims (ports of rule 0, of rule 1, …) → row
ROWS: list[tuple[list[list[PortRange] | None], Row]] = [
    ([], ()),
    ([[]], ()),
    ([None], (cell(None, *ANY, 0),)),
    ([None, [tcp(80, 80)], None], (cell(None, *ANY, 0),)),
    ([[tcp(80, 80)], None], (cell(None, *ANY, 1), cell(6, 80, 80, 0))),
    ([[tcp(80, 80), tcp(81, 90)]], (cell(6, 80, 90, 0),)),
    ([[tcp(80, 90), tcp(85, 100)]], (cell(6, 80, 100, 0),)),
    ([[tcp(80, 80)], [tcp(*ANY)]], (cell(6, 0, 79, 1), cell(6, 80, 80, 0), cell(6, 81, 65535, 1))),
    ([[tcp(*ANY)], [tcp(80, 80)]], (cell(6, *ANY, 0),)),
    ([[tcp(1, 5)], [tcp(3, 9)], [tcp(8, 12)]], (cell(6, 1, 5, 0), cell(6, 6, 9, 1), cell(6, 10, 12, 2))),
    ([[PortRange(17, 53, 53)], [tcp(53, 53)]], (cell(6, 53, 53, 1), cell(17, 53, 53, 0))),
]


@pytest.mark.parametrize(("ports", "row"), ROWS)
def test_rows(ports: list[list[PortRange] | None], row: Row) -> None:
    assert flatten([Claim(rule(i), p) for i, p in enumerate(ports)]) == row


@st.composite
def ranges(draw: st.DrawFn) -> PortRange:
    first, last = sorted((draw(st.sampled_from(EDGES)), draw(st.sampled_from(EDGES))))
    return PortRange(draw(st.sampled_from(PROTOCOLS[:2])), first, last)


def claims() -> st.SearchStrategy[list[Claim]]:
    ports = st.one_of(st.lists(ranges(), max_size=4), st.lists(ranges(), max_size=4), st.none())
    return st.lists(ports, max_size=6).map(lambda drawn: [Claim(rule(i), p) for i, p in enumerate(drawn)])


def well_formed(row: Row) -> None:
    """Sorted, disjoint, and no two neighbours that could be one."""
    assert list(row) == sorted(row, key=lambda c: (-1 if c.protocol is None else c.protocol, c.first))
    assert sum(c.protocol is None for c in row) <= 1
    for one, two in pairwise(row):
        if one.protocol == two.protocol:
            assert one.last < two.first
            same = (one.rule, one.verdict, one.demands) == (two.rule, two.verdict, two.demands)
            assert not (same and one.last + 1 == two.first)


@given(claims())
@settings(max_examples=250)
def test_first_claim_that_covers_a_port_is_named(drawn: list[Claim]) -> None:
    row = flatten(drawn)
    well_formed(row)
    for protocol in PROTOCOLS:
        for port in EDGES:
            expected = next(
                (
                    ref
                    for ref, ports, *_ in drawn
                    if ports is None or any(r.protocol == protocol and r.first <= port <= r.last for r in ports)
                ),
                None,
            )
            found = lookup(row, protocol, port)
            assert (None if found is None else found.rule) == expected
            assert found is None or found.verdict is ALLOW


HTTP = [L7(http=frozenset({HttpRule(path=path)})) for path in "abc"]
DNS = L7(dns=frozenset({NamePattern("a.example")}))
TLS = L7(dns=frozenset(), server_names=frozenset())  # nothing that UDP could be asked
A, D, P = Action
ADMIN, NAMESPACED, BASELINE = Tier
WEB = [tcp(80, 80)]
LAST = Cell(None, *ANY, ALLOW, NOT_ISOLATED)


def asked(protocol: int, first: int, last: int, index: int, *l7s: L7) -> Cell:
    return Cell(protocol, first, last, Verdict.REDIRECT, rule(index), frozenset(l7s))


# (ports, action, tier, l7) of rules 0, 1, …; isolated → row
Said = tuple[list[PortRange] | None, Action, Tier, L7 | None]
SETTLED: list[tuple[list[Said], bool, Row]] = [
    ([], False, (LAST,)),
    ([(WEB, A, NAMESPACED, None)], False, (LAST,)),
    ([(WEB, D, NAMESPACED, None)], False, (LAST, cell(6, 80, 80, 0, DENY))),
    ([(WEB, D, NAMESPACED, None)], True, (cell(6, 80, 80, 0, DENY),)),
    ([(None, A, NAMESPACED, None), (WEB, D, NAMESPACED, None)], True, (cell(None, *ANY, 0), cell(6, 80, 80, 1, DENY))),
    ([(WEB, A, NAMESPACED, None), (None, D, NAMESPACED, None)], True, (cell(None, *ANY, 1, DENY),)),
    ([(WEB, A, NAMESPACED, HTTP[0])], True, (asked(6, 80, 80, 0, HTTP[0]),)),
    ([(WEB, A, NAMESPACED, HTTP[0]), (None, A, NAMESPACED, HTTP[1])], True,
     (asked(6, 0, 79, 1, HTTP[1]), asked(6, 80, 80, 0, *HTTP[:2]), asked(6, 81, 65535, 1, HTTP[1]))),
    ([(WEB, A, NAMESPACED, HTTP[0]), (WEB, A, NAMESPACED, None)], True, (cell(6, 80, 80, 1),)),
    ([(WEB, A, NAMESPACED, HTTP[0]), (WEB, D, NAMESPACED, None)], True, (cell(6, 80, 80, 1, DENY),)),
    # A proxy that reads HTTP reads no UDP; one that reads DNS reads both, and no SCTP.
    ([([PortRange(17, 80, 80)], A, NAMESPACED, HTTP[0])], True, ()),
    ([([PortRange(n, 53, 53) for n in (6, 17, 132)], A, NAMESPACED, DNS)], True,
     (asked(6, 53, 53, 0, DNS), asked(17, 53, 53, 0, DNS))),
    ([([tcp(53, 53), PortRange(17, 53, 53)], A, NAMESPACED, TLS)], True, (asked(6, 53, 53, 0, TLS),)),
    # Where nothing isolates, names are learned and nothing else is asked.
    ([(WEB, A, NAMESPACED, HTTP[0])], False, (LAST,)),
    ([([tcp(53, 53)], A, NAMESPACED, DNS)], False, (LAST, asked(6, 53, 53, 0, *LEARNING))),
    ([([tcp(53, 53)], A, NAMESPACED, DNS), ([tcp(53, 53)], D, BASELINE, None)], False,
     (LAST, cell(6, 53, 53, 1, DENY))),
    ([([tcp(53, 53)], A, ADMIN, None), ([tcp(53, 53)], A, NAMESPACED, DNS)], False, (LAST, cell(6, 53, 53, 0))),
    # Where another rule lets everything pass, too.
    ([([tcp(53, 53)], A, NAMESPACED, DNS), ([tcp(53, 54)], A, NAMESPACED, None)], True,
     (asked(6, 53, 53, 1, *LEARNING), cell(6, 54, 54, 1))),
    # The first of the admin tier; what it passes on; the baseline tier only where nothing isolates.
    ([(WEB, A, ADMIN, None), (None, D, ADMIN, None)], True, (cell(None, *ANY, 1, DENY), cell(6, 80, 80, 0))),
    ([(WEB, D, ADMIN, None), (None, A, NAMESPACED, None)], True, (cell(None, *ANY, 1), cell(6, 80, 80, 0, DENY))),
    ([(WEB, P, ADMIN, None), (None, A, ADMIN, None)], True,
     (cell(None, *ANY, 1), Cell(6, 80, 80, DENY, DEFAULT_DENY))),
    ([(WEB, P, ADMIN, None), (WEB, D, ADMIN, None), (WEB, A, NAMESPACED, None)], True, (cell(6, 80, 80, 2),)),
    ([(WEB, A, ADMIN, HTTP[0]), (WEB, D, NAMESPACED, None)], True, (asked(6, 80, 80, 0, HTTP[0]),)),
    ([(WEB, A, BASELINE, None), (None, D, BASELINE, None)], True, ()),
    ([(WEB, A, BASELINE, None), (None, D, BASELINE, None)], False, (cell(None, *ANY, 1, DENY), cell(6, 80, 80, 0))),
    ([(WEB, D, BASELINE, None)], False, (LAST, cell(6, 80, 80, 0, DENY))),
    # ICMP types are ports; rules without ports cover them.
    ([([PortRange(1, 8, 8)], A, NAMESPACED, None)], True, (cell(1, 8, 8, 0),)),
    ([([PortRange(1, 8, 8)], D, NAMESPACED, None), (None, A, NAMESPACED, None)], True,
     (cell(None, *ANY, 1), cell(1, 8, 8, 0, DENY))),
]  # fmt: skip


@pytest.mark.parametrize(("said", "isolated", "row"), SETTLED)
def test_precedence(said: list[Said], isolated: bool, row: Row) -> None:
    found = flatten([Claim(rule(i), *one) for i, one in enumerate(said)], isolated)
    well_formed(found)
    assert found == row


DEMANDS = st.frozensets(st.sampled_from(HTTP), min_size=1)
DECISIONS = st.sampled_from(((ALLOW, None), (ALLOW, None), (DENY, None))) | st.tuples(
    st.just(Verdict.REDIRECT), DEMANDS
)


def with_other_verdicts(row: Row) -> st.SearchStrategy[Row]:
    return st.lists(DECISIONS, min_size=len(row), max_size=len(row)).map(
        lambda drawn: tuple(
            Cell(c.protocol, c.first, c.last, verdict, c.rule, demands)
            for c, (verdict, demands) in zip(row, drawn, strict=True)
        )
    )


ROW = claims().map(flatten).flatmap(with_other_verdicts)


def passing(row: Row, protocol: int, port: int) -> frozenset[L7] | None:
    """What a proxy lets pass, where the three there are stand for all requests; None: no proxy is asked."""
    found = lookup(row, protocol, port)
    if found is None or found.verdict is DENY:
        return frozenset()
    return found.demands


@given(ROW, ROW)
@example((cell(None, *ANY, 0),), (cell(None, *ANY, 1), cell(6, 80, 80, 2, DENY)))
@example((cell(6, 80, 80, 0),), (cell(None, *ANY, 1),))
@settings(max_examples=250)
def test_meet_allows_what_both_allow(old: Row, new: Row) -> None:
    """Of rows that ask different things, where neither asks less: nothing."""
    met = meet(old, new)
    well_formed(met)
    for protocol in PROTOCOLS:
        for port in EDGES:
            before, after, both = (passing(row, protocol, port) for row in (old, new, met))
            if before is None or after is None:
                assert both == (after if before is None else before)
            else:
                assert both == (before & after if before & after in (before, after) else frozenset())
            allowing = lookup(new, protocol, port)
            if both is None or (both and both == after):
                found = lookup(met, protocol, port)
                assert found is not None and allowing is not None and found.rule == allowing.rule


@given(ROW)
@settings(max_examples=100)
def test_meet_with_itself_and_with_nothing(row: Row) -> None:
    for protocol in PROTOCOLS:
        for port in EDGES:
            assert passing(row, protocol, port) == passing(meet(row, row), protocol, port)
    assert meet(row, ()) == meet((), row) == ()

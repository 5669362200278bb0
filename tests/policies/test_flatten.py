"""Rows against brute force over a few ports, and the rows that were worked out by hand."""

from __future__ import annotations

from itertools import pairwise

import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from policies.flatten import Claim, flatten, lookup
from policies.meet import meet
from policies.model import Cell, Direction, ObjectRef, PortRange, Row, RuleRef, Verdict

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
            same = (one.rule, one.verdict) == (two.rule, two.verdict)
            assert not (same and one.last + 1 == two.first)


@given(claims())
@settings(max_examples=500, deadline=None, print_blob=True)
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


def with_denies(row: Row) -> st.SearchStrategy[Row]:
    """As languages with deny rules will make rows."""
    return st.lists(st.sampled_from((ALLOW, ALLOW, DENY)), min_size=len(row), max_size=len(row)).map(
        lambda verdicts: tuple(Cell(c.protocol, c.first, c.last, v, c.rule) for c, v in zip(row, verdicts, strict=True))
    )


ROW = claims().map(flatten).flatmap(with_denies)


@given(ROW, ROW)
@example((cell(None, *ANY, 0),), (cell(None, *ANY, 1), cell(6, 80, 80, 2, DENY)))
@example((cell(6, 80, 80, 0),), (cell(None, *ANY, 1),))
@settings(max_examples=500, deadline=None, print_blob=True)
def test_meet_allows_what_both_allow(old: Row, new: Row) -> None:
    met = meet(old, new)
    well_formed(met)
    for protocol in PROTOCOLS:
        for port in EDGES:
            both = all((found := lookup(row, protocol, port)) and found.verdict is ALLOW for row in (old, new))
            found = lookup(met, protocol, port)
            assert bool(found and found.verdict is ALLOW) is both
            if both:
                allowing = lookup(new, protocol, port)
                assert found is not None and allowing is not None and found.rule == allowing.rule


@given(ROW)
@settings(max_examples=100, deadline=None, print_blob=True)
def test_meet_with_itself_and_with_nothing(row: Row) -> None:
    for protocol in PROTOCOLS:
        for port in EDGES:
            found, kept = lookup(row, protocol, port), lookup(meet(row, row), protocol, port)
            assert bool(found and found.verdict is ALLOW) is bool(kept and kept.verdict is ALLOW)
    assert meet(row, ()) == meet((), row) == ()

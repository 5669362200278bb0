"""Rules that apply to one remote, flattened to a row: disjoint port ranges, each with what was decided and by which
rule. All precedence is settled here."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from itertools import pairwise
from typing import NamedTuple

from policies.l7 import L7, Demands, NamePattern
from policies.model import DEFAULT_DENY, NOT_ISOLATED, Action, Cell, PortRange, Row, RuleRef, Tier, Verdict

LAST_PORT = 65535
TCP, UDP = 6, 17

LEARNING: Demands = frozenset({L7(dns=frozenset({NamePattern(pattern="*")}))})
"""Every name may be asked for; the proxy is there to learn the answers."""

NOBODY = (Verdict.DENY, DEFAULT_DENY, None)

Decision = tuple[Verdict, RuleRef, Demands | None]


class Claim(NamedTuple):
    """What one rule says about one remote. `ports` None: every protocol and port."""

    rule: RuleRef
    ports: Sequence[PortRange] | None
    action: Action = Action.ALLOW
    tier: Tier = Tier.NAMESPACED
    l7: L7 | None = None


def flatten(claims: Sequence[Claim], isolated: bool = True) -> Row:
    """The row of claims, in the order of their precedence. `isolated`: what no rule allows is denied."""
    always = 0  # a set of claims is a number with a bit for each
    bit = 1
    ranges: dict[int, list[tuple[int, int, int]]] = {}
    for _, ports, action, _, l7 in claims:
        concerned = None if l7 is None or action is not Action.ALLOW else protocols_of(l7)
        if ports is not None:
            for port in ports:
                if concerned is None or port.protocol in concerned:
                    ranges.setdefault(port.protocol, []).append((port.first, port.last, bit))
        elif concerned is None:
            always |= bit
        else:
            for protocol in concerned:
                ranges.setdefault(protocol, []).append((0, LAST_PORT, bit))
        bit <<= 1
    decide = _Precedence(claims, isolated)
    fallback = decide(always)
    cells = [] if fallback is None else [Cell(None, 0, LAST_PORT, *fallback)]
    for protocol in sorted(ranges):
        for first, last, covering in _segments(ranges[protocol]):
            decision = decide(covering | always)
            if decision != fallback:
                _append(cells, Cell(protocol, first, last, *(decision or NOBODY)))
    return tuple(cells)


def protocols_of(l7: L7) -> tuple[int, ...]:
    """Protocols on which it can be judged. On others a rule that asks it allows nothing."""
    of_streams = (l7.http, l7.server_names, l7.terminating, l7.originating)
    return (TCP, UDP) if l7.dns is not None and all(asked is None for asked in of_streams) else (TCP,)


class _Precedence:
    """Which of some claims decides, and what."""

    __slots__ = (
        "_admin", "_allows", "_asking", "_baseline", "_claims", "_denying", "_isolated", "_known", "_learning",
        "_plain",
    )  # fmt: skip

    def __init__(self, claims: Sequence[Claim], isolated: bool) -> None:
        self._claims = claims
        self._isolated = isolated
        self._known: dict[int, Decision | None] = {}
        admin = baseline = denying = plain = asking = learning = 0
        bit = 1
        for _, _, action, tier, l7 in claims:
            if tier is Tier.ADMIN:
                admin |= bit
            elif tier is Tier.BASELINE:
                baseline |= bit
            elif action is Action.ALLOW:
                if l7 is None:
                    plain |= bit
                else:
                    asking |= bit
                    if l7.dns is not None:
                        learning |= bit
            elif action is Action.DENY:
                denying |= bit
            bit <<= 1
        self._allows = isolated and bit == plain + 1
        self._admin, self._baseline, self._denying = admin, baseline, denying
        self._plain, self._asking, self._learning = plain, asking, learning

    def __call__(self, covering: int) -> Decision | None:
        """None: no rule decides, which is a deny."""
        if self._allows:  # the usual case: nothing but rules that allow
            return (Verdict.ALLOW, self._claims[_lowest(covering)].rule, None) if covering else None
        try:
            return self._known[covering]
        except KeyError:
            decision = self._known[covering] = self._decide(covering)
            return decision

    def _decide(self, covering: int) -> Decision | None:
        if (ordered := covering & self._admin) and (decided := self._first(ordered)) is not None:
            return decided
        if denying := covering & self._denying:
            return Verdict.DENY, self._claims[_lowest(denying)].rule, None
        if not self._isolated:
            return self._not_isolated(covering)
        if plain := covering & self._plain:
            rule = self._claims[_lowest(plain)].rule
            return (Verdict.REDIRECT, rule, LEARNING) if covering & self._learning else (Verdict.ALLOW, rule, None)
        if asking := covering & self._asking:
            asked = [claim.l7 for rank, claim in enumerate(self._claims) if asking >> rank & 1]
            return Verdict.REDIRECT, self._claims[_lowest(asking)].rule, frozenset(l7 for l7 in asked if l7 is not None)
        return None

    def _not_isolated(self, covering: int) -> Decision:
        """What rules allow is allowed anyhow; but names are learned where a rule looks at them."""
        decided = self._first(covering & self._baseline) or (Verdict.ALLOW, NOT_ISOLATED, None)
        if decided[0] is Verdict.ALLOW and (learning := covering & self._learning):
            return Verdict.REDIRECT, self._claims[_lowest(learning)].rule, LEARNING
        return decided

    def _first(self, ordered: int) -> Decision | None:
        """Of a tier in which the first rule decides; None where there is none, or it leaves that to the next tier."""
        if not ordered:
            return None
        claim = self._claims[_lowest(ordered)]
        if claim.action is Action.PASS:
            return None
        if claim.action is Action.DENY:
            return Verdict.DENY, claim.rule, None
        if claim.l7 is None:
            return Verdict.ALLOW, claim.rule, None
        return Verdict.REDIRECT, claim.rule, frozenset({claim.l7})


def _lowest(claims: int) -> int:
    return (claims & -claims).bit_length() - 1


def _segments(ranges: list[tuple[int, int, int]]) -> Iterable[tuple[int, int, int]]:
    """(first, last, claims that cover it), as far as any does."""
    ranges.sort()
    end = -1
    for first, last, _ in ranges:
        if first <= end:
            return _overlapping(ranges)
        end = last
    return ranges


def _overlapping(ranges: Sequence[tuple[int, int, int]]) -> Iterator[tuple[int, int, int]]:
    edges = sorted({first for first, _, _ in ranges} | {last + 1 for _, last, _ in ranges})
    place = {edge: at for at, edge in enumerate(edges)}
    covering = [0] * len(edges)
    for first, last, bit in ranges:
        for at in range(place[first], place[last + 1]):
            covering[at] |= bit
    for at, (first, after) in enumerate(pairwise(edges)):
        if covering[at]:
            yield first, after - 1, covering[at]


def _append(cells: list[Cell], cell: Cell) -> None:
    """One cell more; made one with the last where they are neighbours and say the same."""
    last = cells[-1] if cells else None
    if (
        last is not None
        and last.protocol == cell.protocol
        and last.last + 1 == cell.first
        and (last.verdict, last.rule, last.demands) == (cell.verdict, cell.rule, cell.demands)
    ):
        cells[-1] = Cell(cell.protocol, last.first, cell.last, cell.verdict, cell.rule, cell.demands)
    else:
        cells.append(cell)


def lookup(row: Row, protocol: int, port: int) -> Cell | None:
    """The cell that judges a packet, None where none does (it is denied). Of ICMP the port is the type; protocols
    without either have port 0."""
    fallback = None
    for cell in row:
        if cell.protocol is None:
            fallback = cell
        elif cell.protocol == protocol and cell.first <= port <= cell.last:
            return cell
    return fallback


def allows_everything(row: Row) -> bool:
    """Whether nothing is denied or left to a proxy."""
    return bool(row) and row[0].protocol is None and all(cell.verdict is Verdict.ALLOW for cell in row)

"""Rules that apply to one remote, flattened to a row: disjoint port ranges, each with the rule that decides it."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from heapq import heappop, heappush
from itertools import pairwise

from policies.model import Cell, PortRange, Row, RuleRef, Verdict

LAST_PORT = 65535

Claim = tuple[RuleRef, Sequence[PortRange] | None]
"""What one rule allows towards one remote; None: every protocol and port."""


def flatten(claims: Sequence[Claim]) -> Row:
    """The row of claims that all allow, the most preferred first: where two overlap, the earlier is named."""
    ranges: dict[int, list[tuple[int, int, int]]] = {}
    fallback: Row = ()
    for rank, (rule, ports) in enumerate(claims):
        if ports is None:
            # Whatever a later claim covers, this one covers before it.
            fallback = (Cell(None, 0, LAST_PORT, Verdict.ALLOW, rule),)
            break
        for port in ports:
            ranges.setdefault(port.protocol, []).append((port.first, port.last, rank))
    cells = [
        Cell(protocol, first, last, Verdict.ALLOW, claims[rank][0])
        for protocol in sorted(ranges)
        for first, last, rank in _sweep(sorted(ranges[protocol]))
    ]
    return (*fallback, *cells)


def _sweep(ranges: list[tuple[int, int, int]]) -> list[tuple[int, int, int]]:
    """Disjoint (first, last, rank) from overlapping ones sorted by first: the lowest rank wins each port."""
    out: list[tuple[int, int, int]] = []
    open_ranges: list[tuple[int, int]] = []  # heap of (rank, last)
    port = index = 0
    while index < len(ranges) or open_ranges:
        if not open_ranges:
            port = max(port, ranges[index][0])
        while index < len(ranges) and ranges[index][0] <= port:
            heappush(open_ranges, (ranges[index][2], ranges[index][1]))
            index += 1
        while open_ranges and open_ranges[0][1] < port:
            heappop(open_ranges)
        if not open_ranges:
            continue
        rank, last = open_ranges[0]
        if index < len(ranges):
            last = min(last, ranges[index][0] - 1)
        if out and out[-1][1] == port - 1 and out[-1][2] == rank:
            out[-1] = (out[-1][0], last, rank)
        else:
            out.append((port, last, rank))
        port = last + 1
    return out


def lookup(row: Row, protocol: int, port: int) -> Cell | None:
    """The cell that judges a packet, None where none does (it is denied). ICMP and its like have port 0."""
    fallback = None
    for cell in row:
        if cell.protocol is None:
            fallback = cell
        elif cell.protocol == protocol and cell.first <= port <= cell.last:
            return cell
    return fallback


def meet(old: Row, new: Row) -> Row:
    """A row that allows exactly what both rows allow, naming the rules of the new one.

    Used while a pod moves from one to the other: nothing passes that either would deny.
    """
    fallback = _both(lookup(old, -1, 0), lookup(new, -1, 0), None, 0, LAST_PORT)
    allows_rest = fallback is not None and fallback.verdict is Verdict.ALLOW
    cells: list[Cell] = [fallback] if fallback is not None and allows_rest else []
    for protocol in sorted({cell.protocol for cell in (*old, *new) if cell.protocol is not None}):
        pieces = [
            _both(lookup(old, protocol, first), lookup(new, protocol, first), protocol, first, last)
            for first, last in _segments(protocol, (*old, *new))
        ]
        kept = [p for p in pieces if p is not None and (p.verdict is Verdict.ALLOW or allows_rest)]
        cells += [c for c in _merged(kept) if fallback is None or not _same_decision(c, fallback)]
    return tuple(cells)


def _segments(protocol: int, cells: Iterable[Cell]) -> list[tuple[int, int]]:
    """All ports, cut wherever a cell of the protocol begins or ends."""
    cuts = {0, LAST_PORT + 1}
    for cell in cells:
        if cell.protocol == protocol:
            cuts |= {cell.first, cell.last + 1}
    edges = sorted(cuts)
    return [(first, after - 1) for first, after in pairwise(edges)]


def _both(old: Cell | None, new: Cell | None, protocol: int | None, first: int, last: int) -> Cell | None:
    if old is None and new is None:
        return None
    named = new or old
    assert named is not None
    allowed = all(cell is not None and cell.verdict is Verdict.ALLOW for cell in (old, new))
    return Cell(protocol, first, last, Verdict.ALLOW if allowed else Verdict.DENY, named.rule)


def _same_decision(cell: Cell, other: Cell) -> bool:
    return cell.verdict is other.verdict and cell.rule == other.rule


def _merged(cells: list[Cell]) -> list[Cell]:
    """Neighbours with one decision made one cell."""
    out: list[Cell] = []
    for cell in cells:
        if out and out[-1].last + 1 == cell.first and _same_decision(out[-1], cell):
            out[-1] = Cell(cell.protocol, out[-1].first, cell.last, cell.verdict, cell.rule)
        else:
            out.append(cell)
    return out

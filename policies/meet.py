"""What two rows both allow: the row in force while something moves from one to the other."""

from __future__ import annotations

from collections.abc import Iterable
from itertools import pairwise

from policies.flatten import LAST_PORT, lookup
from policies.model import Cell, Row, Verdict


def meet(old: Row, new: Row) -> Row:
    """A row that allows exactly what both rows allow, naming the rules of the new one.

    Used while a pod moves from one to the other: nothing passes that either would deny. Of two that leave it to
    proxies the stricter stands; where neither is (they ask different things), nothing passes.
    """
    fallback = _both(lookup(old, -1, 0), lookup(new, -1, 0), None, 0, LAST_PORT)
    passes_rest = fallback is not None and fallback.verdict is not Verdict.DENY
    cells: list[Cell] = [fallback] if fallback is not None and passes_rest else []
    for protocol in sorted({cell.protocol for cell in (*old, *new) if cell.protocol is not None}):
        pieces = [
            _both(lookup(old, protocol, first), lookup(new, protocol, first), protocol, first, last)
            for first, last in _segments(protocol, (*old, *new))
        ]
        kept = [p for p in pieces if p is not None and (p.verdict is not Verdict.DENY or passes_rest)]
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
    if old is None or new is None:
        return None
    if (stricter := _stricter(old, new)) is not None:
        return Cell(protocol, first, last, stricter.verdict, stricter.rule, stricter.demands)
    denying = old if old.verdict is Verdict.DENY and new.verdict is not Verdict.DENY else new
    return Cell(protocol, first, last, Verdict.DENY, denying.rule)


def _stricter(old: Cell, new: Cell) -> Cell | None:
    """The one that allows only what the other does, the new one if they allow the same; None: neither does.

    A REDIRECT goes by its own cell's rule, whose direction its listener has.
    """
    if Verdict.DENY in (old.verdict, new.verdict):
        return None
    if old.demands is None:
        return new
    if new.demands is None or old.demands < new.demands:
        return old
    return new if new.demands <= old.demands else None


def _same_decision(cell: Cell, other: Cell) -> bool:
    return (cell.verdict, cell.rule, cell.demands) == (other.verdict, other.rule, other.demands)


def _merged(cells: list[Cell]) -> list[Cell]:
    """Neighbours with one decision made one cell."""
    out: list[Cell] = []
    for cell in cells:
        if out and out[-1].last + 1 == cell.first and _same_decision(out[-1], cell):
            out[-1] = Cell(cell.protocol, out[-1].first, cell.last, cell.verdict, cell.rule, cell.demands)
        else:
            out.append(cell)
    return out

"""Blocks: what entries point at by a number. Written whole before, deleted after, and named by their content.

Rows of verdicts are here; for what frontends point at see agent.plan.pools.
"""

from __future__ import annotations

import struct
from collections.abc import Iterator, Mapping
from functools import lru_cache
from itertools import pairwise

import msgspec

from agent.datapath import abi
from agent.plan.ids import NUMBERS, Asked, Names, content_id
from agent.services.maglev import table
from policies.flatten import LAST_PORT
from policies.l7 import Demands
from policies.meet import meet
from policies.model import Cell, Row, RuleRef, Verdict

ABI = abi.load()
ROW_KEY = ABI.records["policy_row_key"]
ROW_VALUE = ABI.records["policy_row_value"]
POOL_VALUE = ABI.records["backend_value"]

ROWS, POOLS, MEMBERS, MAGLEV, RANGES = "policy_row", "backends", "members", "maglev", "source_ranges"
BLOCKS = (ROWS, POOLS, MEMBERS, MAGLEV, RANGES)
"""Maps of blocks, in the order in which they are written."""

ENTRY_SIZES = {name: (ABI.maps[name].key_size, ABI.maps[name].value_size) for name in BLOCKS}
MAGLEV_KEY = struct.Struct("=Q")
TABLE_HEAD = struct.Struct("=QI")
"""Seed and size of a Maglev table; the backends (struct backend_value) follow."""

PORT_BITS = 16
VERDICTS = {
    Verdict.DENY: NUMBERS.VERDICT_DENY,
    Verdict.ALLOW: NUMBERS.VERDICT_ALLOW,
    Verdict.REDIRECT: NUMBERS.VERDICT_REDIRECT,
}

Decision = tuple[Verdict, RuleRef, Demands | None]
Span = tuple[int, int, int, Decision]
"""Bits fixed, first and last port, what is decided there."""


class Block(msgspec.Struct, frozen=True, gc=False):
    """`data`: the entries, each key followed by its value, in the order of the keys. One buffer, for there are many.

    Of a Maglev table it is what the table is made of, for that is small: it is made when it is written. A table that
    was found in the kernel is none but its number.
    """

    id: int
    map: str
    data: bytes

    def entries(self) -> Iterator[tuple[bytes, bytes]]:
        if self.map == MAGLEV:
            yield MAGLEV_KEY.pack(self.id), self._table()
            return
        key_size, value_size = ENTRY_SIZES[self.map]
        for at in range(0, len(self.data), key_size + value_size):
            yield self.data[at : at + key_size], self.data[at + key_size : at + key_size + value_size]

    def keys(self) -> Iterator[bytes]:
        if self.map == MAGLEV:
            yield MAGLEV_KEY.pack(self.id)
            return
        key_size, value_size = ENTRY_SIZES[self.map]
        for at in range(0, len(self.data), key_size + value_size):
            yield self.data[at : at + key_size]

    @property
    def size(self) -> int:
        """Entries."""
        return 1 if self.map == MAGLEV else len(self.data) // sum(ENTRY_SIZES[self.map])

    def same(self, other: Block | None) -> bool:
        """Whether both have the same entries. A Maglev table is put in place whole, so one that is there is right."""
        return other is not None and (self.map == MAGLEV or self.data == other.data)

    def _table(self) -> bytes:
        seed, size = TABLE_HEAD.unpack_from(self.data)
        members = POOL_VALUE.records(self.data[TABLE_HEAD.size :])
        return table([(member.address, abi.be16(member.port_be)) for member in members], size, seed)


def block_of(number: int, map_name: str, entries: Mapping[bytes, bytes]) -> Block:
    return Block(number, map_name, b"".join([key + value for key, value in sorted(entries.items())]))


# ---- rows


def row(cells: Row, names: Names) -> Block:
    """A row as entries of the LPM map. Port ranges become the prefixes that cover them."""
    entries = {}
    for cell in cells:
        listener = 0 if cell.demands is None else names.listener(Asked(cell.rule.direction, cell.demands))
        value = ROW_VALUE.pack_values(names.rule(cell.rule), listener, VERDICTS[cell.verdict])
        for bits, protocol, port in _prefixes(cell):
            entries[bits, protocol, abi.be16(port)] = value
    content = b"".join(bytes(key[:2]) + key[2].to_bytes(2, "big") + value for key, value in sorted(entries.items()))
    number = content_id("row", content)
    high, low = abi.be32(number >> 32), abi.be32(number & 0xFFFFFFFF)
    return block_of(
        number,
        ROWS,
        {ROW_KEY.pack_values(bits, high, low, proto, port): value for (bits, proto, port), value in entries.items()},
    )


def row_number(key: bytes) -> int:
    """The row a policy_row key belongs to."""
    fields = ROW_KEY.unpack(key)
    return int(abi.be32(fields.row_high_be)) << 32 | abi.be32(fields.row_low_be)


def rules_of(block: Block) -> set[int]:
    """Numbers of the rules a row names."""
    return {ROW_VALUE.unpack(value).rule for _, value in block.entries()}


def cells(block: Block, names: Names) -> Row:
    """What the entries of a row say together; the most specific entry decides, as in the kernel."""
    spans: dict[int, list[Span]] = {}
    fallback: Decision | None = None
    for key, value in block.entries():
        fields, decision = ROW_KEY.unpack(key), _decision(value, names)
        if fields.prefixlen <= NUMBERS.ROW_BITS_ANY:
            fallback = decision
            continue
        size = 1 << (NUMBERS.ROW_BITS_PORT - max(fields.prefixlen, NUMBERS.ROW_BITS_PROTOCOL))
        first = abi.be16(fields.port_be) & ~(size - 1)
        spans.setdefault(fields.protocol, []).append((fields.prefixlen, first, first + size - 1, decision))
    out = [] if fallback is None else [Cell(None, 0, LAST_PORT, *fallback)]
    for protocol in sorted(spans):
        out += _disjoint(protocol, spans[protocol])
    return tuple(out)


def _decision(value: bytes, names: Names) -> Decision:
    """A row of an earlier run may name what nobody knows any more: that is a deny."""
    fields = ROW_VALUE.unpack(value)
    rule = names.rule_ref(fields.rule)
    if fields.verdict == NUMBERS.VERDICT_ALLOW:
        return Verdict.ALLOW, rule, None
    asked = names.listeners.get(fields.listener) if fields.verdict == NUMBERS.VERDICT_REDIRECT else None
    if asked is None or asked.direction is not rule.direction:
        return Verdict.DENY, rule, None
    return Verdict.REDIRECT, rule, asked.demands


class RowMeets:
    """Meets of rows by number, computed once each. The empty row (deny) stands where there is none."""

    def __init__(self, rows: Mapping[int, Block], names: Names) -> None:
        self._rows = rows
        self._names = names
        self.made: dict[int, Block] = {}
        self.empty = row((), names)
        self._meet = lru_cache(maxsize=None)(self._compute)

    def meet(self, old: int, new: int) -> int:
        """The number of the row that allows what both allow."""
        return old if old == new else self._meet(old, new)

    def _compute(self, old: int, new: int) -> int:
        if self.empty.id in (old, new):
            return self.empty.id
        before, after = self._cells(old), self._cells(new)
        both = meet(before, after)
        # Where one of them is the meet, keep it: it is there already, whatever it calls its rules.
        for number, one in ((old, before), (new, after)):
            if _allowed(one) == _allowed(both) and self._is_understood(number):
                return number
        block = row(both, self._names)
        self.made[block.id] = block
        return block.id

    def _is_understood(self, number: int) -> bool:
        """Whether the kernel reads a row as `cells` does: not where it redirects to what nobody knows any more."""
        block = self._rows.get(number)
        values = () if block is None else (value for _, value in block.entries())
        return all(VERDICTS[_decision(value, self._names)[0]] == ROW_VALUE.unpack(value).verdict for value in values)

    def _cells(self, number: int) -> Row:
        block = self._rows.get(number)
        return () if block is None else cells(block, self._names)


def _allowed(one: Row) -> list[tuple[int | None, int, int, Verdict, Demands | None]]:
    """What a row allows, in a form that is the same for rows that allow the same, but for cuts between rules."""
    out: list[tuple[int | None, int, int, Verdict, Demands | None]] = []
    for cell in one:
        said = (cell.verdict, cell.demands)
        if out and out[-1][0] == cell.protocol and out[-1][2] + 1 == cell.first and out[-1][3:] == said:
            out[-1] = (cell.protocol, out[-1][1], cell.last, *said)
        else:
            out.append((cell.protocol, cell.first, cell.last, *said))
    return out


def _prefixes(cell: Cell) -> Iterator[tuple[int, int, int]]:
    """(bits, protocol, port) of the LPM entries that cover a cell."""
    if cell.protocol is None:
        yield NUMBERS.ROW_BITS_ANY, 0, 0
        return
    first = cell.first
    while first <= cell.last:
        free = min((first & -first).bit_length() - 1 if first else PORT_BITS, (cell.last - first + 1).bit_length() - 1)
        yield NUMBERS.ROW_BITS_PORT - free, cell.protocol, first
        first += 1 << free


def _disjoint(protocol: int, spans: list[Span]) -> list[Cell]:
    cuts = sorted({edge for span in spans for edge in (span[1], span[2] + 1)})
    out: list[Cell] = []
    for first, after in pairwise(cuts):
        covering = [span for span in spans if span[1] <= first <= span[2]]
        if not covering:
            continue
        decision = max(covering, key=lambda span: span[0])[3]
        last = out[-1] if out else None
        if last is not None and last.last + 1 == first and (last.verdict, last.rule, last.demands) == decision:
            out[-1] = Cell(protocol, last.first, after - 1, *decision)
        else:
            out.append(Cell(protocol, first, after - 1, *decision))
    return out

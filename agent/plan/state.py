"""What the datapath's maps hold, or are to hold: of a plan, or read from the kernel."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Iterator, Mapping
from itertools import chain

import msgspec

from agent.datapath import abi
from agent.plan.blocks import BLOCKS, MAGLEV, MAGLEV_KEY, MEMBERS, POOLS, RANGES, ROWS, Block, block_of, row_number
from agent.plan.ids import CLASS_ANY
from agent.plan.pools import member_number, pointed_at, pool_number, ranges_number

ABI = abi.load()
ENDPOINT = ABI.records["endpoint"]
IPCACHE_KEY = ABI.records["ipcache_key"]
IPCACHE_VALUE = ABI.records["ipcache_value"]
CLASS_KEY = ABI.records["policy_class_key"]
CLASS_VALUE = ABI.records["policy_class_value"]
NETNS = ABI.records["netns"]

INTERFACES, ENDPOINTS, IPCACHE, POLICY, SERVICES = "interfaces", "endpoints", "ipcache", "policy_class", "services"
NAMESPACES = "namespaces"
TABLES = (INTERFACES, ENDPOINTS, IPCACHE, SERVICES, NAMESPACES)
MAPS = (*TABLES, POLICY, *BLOCKS)
"""The maps a plan fills."""

OWNERS = {ROWS: row_number, POOLS: pool_number, MEMBERS: member_number, RANGES: ranges_number}
"""Which block a key belongs to."""

Side = tuple[int, int]
"""Subject and direction."""
Table = dict[bytes, bytes]
MapState = Mapping[str, Mapping[bytes, bytes]]

NO_ADDRESS = bytes(16)
NO_ROWS: Mapping[int, int] = {}


class Changes(msgspec.Struct):
    """What is to be otherwise: entries by key, rows by side and class; None: gone. `blocks`: content pointed at."""

    tables: dict[str, dict[bytes, bytes | None]] = msgspec.field(default_factory=lambda: {name: {} for name in TABLES})
    policy: dict[Side, dict[int, int | None]] = {}
    blocks: dict[str, dict[int, Block]] = msgspec.field(default_factory=lambda: {name: {} for name in BLOCKS})

    def __bool__(self) -> bool:
        return any(self.tables.values()) or any(self.policy.values())

    @property
    def moves_nobody(self) -> bool:
        """Whether every address keeps its subject and its class."""
        return not any(self.tables[name] for name in (ENDPOINTS, INTERFACES, IPCACHE))


class Uses:
    """How many entries point at each block, class and subject."""

    def __init__(self) -> None:
        self.blocks: dict[str, dict[int, int]] = {name: {} for name in BLOCKS}
        self.classes: dict[int, int] = {}
        self.subjects: dict[int, int] = {}

    def count(self, table: str, value: bytes, step: int) -> None:
        """One entry more (step 1) or less (-1) with this value."""
        if table == SERVICES:
            for name, number in pointed_at(value):
                _count(self.blocks[name], number, step)
        elif table == NAMESPACES:
            return
        elif table == IPCACHE:
            _count(self.classes, ipcache_class(value), step)
        else:
            subject, *classes = endpoint_numbers(value)
            _count(self.subjects, subject, step)
            for number in classes:
                _count(self.classes, number, step)

    def count_rows(self, rows: Iterable[int | None], step: int) -> None:
        """Each of these entries more, or less; None is no entry."""
        for row, count in Counter(rows).items():
            if row is not None:
                _count(self.blocks[ROWS], row, step * count)

    def add(self, changes: Uses) -> None:
        for name, counts in changes.blocks.items():
            _add(self.blocks[name], counts)
        _add(self.classes, changes.classes)
        _add(self.subjects, changes.subjects)


class State:
    """Entries of the maps. Policy entries are kept as side → class → row, everything else as bytes."""

    def __init__(self) -> None:
        self.tables: dict[str, Table] = {name: {} for name in TABLES}
        self.policy: dict[Side, dict[int, int]] = {}
        self.blocks: dict[str, dict[int, Block]] = {name: {} for name in BLOCKS}
        self.uses = Uses()
        self._lengths: dict[int, int] = {}  # of ipcache prefixes

    @classmethod
    def read(cls, maps: MapState) -> State:
        """From the contents of kernel maps by name; maps that are not a plan's are left out of account."""
        state = cls()
        changes = Changes()
        for name, entries in changes.tables.items():
            entries.update(maps.get(name, {}))
        for key, value in maps.get(POLICY, {}).items():
            subject, remote, direction = CLASS_KEY.unpack_values(key)
            changes.policy.setdefault((subject, direction), {})[remote] = CLASS_VALUE.unpack_values(value)[0]
        for name, owner in OWNERS.items():
            found: dict[int, Table] = {}
            for key, value in maps.get(name, {}).items():
                found.setdefault(owner(key), {})[key] = value
            state.blocks[name] = {number: block_of(number, name, entries) for number, entries in found.items()}
        tables = (MAGLEV_KEY.unpack(key)[0] for key in maps.get(MAGLEV, {}))
        state.blocks[MAGLEV] = {number: Block(number, MAGLEV, b"") for number in tables}
        state.advance(changes)
        return state

    def maps(self) -> dict[str, Table]:
        """The contents of every map of a plan, as the kernel is to hold them."""
        out: dict[str, Table] = {name: dict(table) for name, table in self.tables.items()}
        out[POLICY] = {
            policy_key(subject, remote, direction): CLASS_VALUE.pack_values(row)
            for (subject, direction), rows in self.policy.items()
            for remote, row in rows.items()
        }
        for name, blocks in self.blocks.items():
            out[name] = {key: value for block in blocks.values() for key, value in block.entries()}
        return out

    # ---- questions

    def covering(self, key: bytes, changes: Mapping[bytes, bytes | None] | None = None) -> bytes | None:
        """The ipcache value of the longest prefix around this one, not its own; once these changes are made."""
        length, address = IPCACHE_KEY.unpack_values(key)
        number = int.from_bytes(address, "big")
        table = self.tables[IPCACHE]
        lengths = self._lengths.keys() | {_length(changed) for changed in changes or ()}
        for shorter in sorted((n for n in lengths if n < length), reverse=True):
            shift = 128 - shorter
            around = IPCACHE_KEY.pack_values(shorter, (number >> shift << shift).to_bytes(16, "big"))
            value = changes[around] if changes and around in changes else table.get(around)
            if value is not None:
                return value
        return None

    def row(self, side: Side, remote: int) -> int | None:
        """The row that judges a class: its own, or that of any remote; None: none, which is a deny."""
        rows = self.policy.get(side, {})
        return rows.get(remote, rows.get(CLASS_ANY))

    def strays(self) -> Iterator[Block]:
        """Blocks nothing points at. A plan has none, a kernel may."""
        for name, blocks in self.blocks.items():
            for number in blocks.keys() - self.uses.blocks[name].keys():
                yield blocks[number]

    # ---- changes

    def use_changes(self, changes: Changes) -> Uses:
        """How many more (or, negative, fewer) entries would point at each block, class and subject."""
        uses = Uses()
        for name, entries in changes.tables.items():
            for key, value in entries.items():
                if (before := self.tables[name].get(key)) is not None:
                    uses.count(name, before, -1)
                if value is not None:
                    uses.count(name, value, 1)
        held = (map(self.policy.get(side, NO_ROWS).get, rows) for side, rows in changes.policy.items())
        uses.count_rows(chain.from_iterable(held), -1)
        uses.count_rows(chain.from_iterable(rows.values() for rows in changes.policy.values()), 1)
        return uses

    def advance(self, changes: Changes, uses: Uses | None = None) -> None:
        """Take changes over. Blocks that nothing points at any more are forgotten. `uses`: see use_changes."""
        uses = uses or self.use_changes(changes)
        for name, entries in changes.tables.items():
            self._advance_table(name, entries)
        for side, rows in changes.policy.items():
            self._advance_rows(side, rows)
        self.uses.add(uses)
        for name, blocks in changes.blocks.items():
            used = self.uses.blocks[name]
            self.blocks[name].update(
                (n, block) for n, block in blocks.items() if n in used and n not in self.blocks[name]
            )
            for number in uses.blocks[name]:  # few, where a difference of key views would go through all that is used
                if number not in used:
                    self.blocks[name].pop(number, None)

    def _advance_table(self, name: str, entries: Mapping[bytes, bytes | None]) -> None:
        table = self.tables[name]
        for key, value in entries.items():
            old = table.pop(key, None)
            if value is not None:
                table[key] = value
            if name == IPCACHE:
                step = (value is not None) - (old is not None)
                if step:
                    _count(self._lengths, _length(key), step)

    def _advance_rows(self, side: Side, rows: Mapping[int, int | None]) -> None:
        kept = self.policy.setdefault(side, {})
        kept.update({remote: row for remote, row in rows.items() if row is not None})
        if None in rows.values():
            for remote in [remote for remote, row in rows.items() if row is None]:
                kept.pop(remote, None)
        if not kept:
            del self.policy[side]


def policy_key(subject: int, remote: int, direction: int) -> bytes:
    return CLASS_KEY.pack_values(subject, remote, direction)


def ipcache_class(value: bytes) -> int:
    return int(IPCACHE_VALUE.unpack_values(value)[0])


def endpoint_numbers(value: bytes) -> tuple[int, ...]:
    """Subject and the classes of the addresses the endpoint has."""
    fields = ENDPOINT.unpack(value)
    classes = ((fields.class_v4, fields.ipv4), (fields.class_v6, fields.ipv6))
    return (fields.subject, *(number for number, address in classes if address != NO_ADDRESS))


def _length(key: bytes) -> int:
    return int(IPCACHE_KEY.unpack_values(key)[0])


def _count(counts: dict[int, int], number: int, step: int) -> None:
    left = counts.get(number, 0) + step
    if left:
        counts[number] = left
    else:
        del counts[number]


def _add(counts: dict[int, int], changes: Mapping[int, int]) -> None:
    for number, step in changes.items():
        _count(counts, number, step)

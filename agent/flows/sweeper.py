"""Removing flows that are over from the conntrack and nat maps, and those of an address or a backend that is gone.

The datapath takes an expired entry for none, so nothing depends on when this runs but the room in the map, and the
time at which silent flows are reported as ended. Ends are reported of conntrack alone: what nat holds of a local
backend's flow conntrack holds, too.
"""

from __future__ import annotations

import asyncio
import struct
import time
from collections.abc import Callable, Collection
from contextlib import suppress
from typing import Any

import msgspec

from agent.datapath import bpf
from agent.datapath.abi import Abi
from agent.datapath.maps import Map
from agent.flows.forget import Fate, Forget
from agent.flows.pairs import Pair, Pairs

CHUNK = 1024
"""Entries read at a time."""

TURN_S = 0.005
"""The event loop gets its turn after that, and after each chunk."""

GRACE_NS = 50_000_000
"""The datapath reads a coarser clock, which is behind by a few ms."""

LONGEST_S, SHORTEST_S = 15.0, 1.0
FULL_ENOUGH = 0.75

LINGER_NS = 60_000_000_000
"""An entry whose backend is gone is kept for so long. Afterwards another backend refuses what belongs to no connection
of its own."""


def interval_s(fill: float) -> float:
    """How long to wait between sweeps: the fuller the fullest map (0–1), the shorter."""
    return max(LONGEST_S * (1 - fill / FULL_ENOUGH), SHORTEST_S)


class Sweep(msgspec.Struct):
    """What one pass over a map did. `entries` are those left, a flow has two."""

    entries: int = 0
    expired: int = 0  # entries removed because their flow was over
    forgotten: int = 0  # entries removed with their address or backend
    refused: int = 0  # entries marked, whose backend is gone
    ended: int = 0  # flows reported as ended
    duration_s: float = 0.0


class Sweeper:
    """Sweeps one map of flows. `report` takes END events; without it none are made."""

    def __init__(
        self,
        abi: Abi,
        flows: Map,
        report: Callable[[bytes], None] | None = None,
        now_ns: Callable[[], int] = time.monotonic_ns,
    ) -> None:
        self.capacity = flows.spec.max_entries
        self._map = flows
        self._report = report
        self._now_ns = now_ns
        assert flows.spec.value is not None
        self._key, self._entry = abi.records["tuple"], flows.spec.value
        self._pairs = Pairs(abi, self._entry.name)
        self._words = self._entry.size // 8
        self._expires_word = self._entry.offset("expires_ns") // 8
        self._key_ends = _addresses(self._key.offset("source"), self._key.size)
        self._after_ends = _addresses(self._entry.offset("after_source"), self._entry.size)

    async def sweep(self, forget: Forget | None = None) -> Sweep:
        """Remove the flows that have expired, and do with those to forget what is to be done."""
        forget = forget or Forget()
        concerned = forget.concerned()
        result = Sweep()
        started = time.monotonic()
        for keys, values in self._map.chunks(CHUNK):
            gone: set[bytes] = set()
            turn_ends = time.monotonic() + TURN_S
            result.entries += len(keys) // self._key.size
            for index in self._suspects(keys, values, concerned):
                key, entry = self._at(keys, values, index)
                if key not in gone:
                    self._consider(key, entry, forget, gone, result)
                result.entries -= key in gone
                if time.monotonic() > turn_ends:
                    await asyncio.sleep(0)
                    turn_ends = time.monotonic() + TURN_S
            await asyncio.sleep(0)
        result.duration_s = time.monotonic() - started
        return result

    async def used(self) -> set[Pair]:
        """The frontends that flows go through, with their backends."""
        found: set[Pair] = set()
        gone = self._pairs.table.gone
        for keys, values in self._map.chunks(CHUNK):
            for key, entry in zip(self._key.records(keys), self._entry.records(values), strict=True):
                if (pair := self._pairs.ends(key, entry)) is not None and not entry.flags & gone:
                    found.add(pair)
            await asyncio.sleep(0)
        return found

    def _suspects(self, keys: memoryview, values: memoryview, concerned: frozenset[bytes]) -> Collection[int]:
        """Indexes of entries worth a look. All but a few are live, and told by their first word."""
        now_ns = self._now_ns() - GRACE_NS
        expiries = values.cast("Q")[self._expires_word :: self._words].tolist()
        if not concerned:
            return [index for index, expires_ns in enumerate(expiries) if expires_ns <= now_ns]
        ends = zip(self._key_ends.iter_unpack(keys), self._after_ends.iter_unpack(values), expiries, strict=True)
        return [
            index
            for index, (before, after, expires_ns) in enumerate(ends)
            if expires_ns <= now_ns or not (concerned.isdisjoint(before) and concerned.isdisjoint(after))
        ]

    def _at(self, keys: memoryview, values: memoryview, index: int) -> tuple[bytes, Any]:
        key_size, size = self._key.size, self._entry.size
        key = bytes(keys[index * key_size : (index + 1) * key_size])
        return key, self._entry.unpack(values[index * size : (index + 1) * size])

    def _consider(
        self,
        key: bytes,
        entry: Any,
        forget: Forget,
        gone: set[bytes],
        result: Sweep,
    ) -> None:
        unpacked = self._key.unpack(key)
        fate = forget.fate(self._pairs, unpacked, entry)
        now_ns = self._now_ns()
        if fate is Fate.STAYS and entry.expires_ns > now_ns - GRACE_NS:
            return
        partner_key = self._pairs.partner(unpacked, entry)
        partner, current = self._lookup(partner_key), self._lookup(key)  # as they are now, not when the chunk was read
        if current is None or current.created_ns != entry.created_ns:
            return
        if partner is not None and partner.created_ns != current.created_ns:
            partner = None
        if fate is not Fate.REMOVED and self._pairs.is_live(current, partner, now_ns - GRACE_NS):
            if fate is Fate.REFUSED:
                result.refused += self._refuse(key, current) + self._refuse(partner_key, partner)
            return
        removed = int(self._map.delete(key))
        gone.add(key)
        if partner is not None:
            removed += int(self._map.delete(partner_key))
            gone.add(partner_key)
        if fate is Fate.REMOVED:
            result.forgotten += removed
        else:
            result.expired += removed
        self._report_end(unpacked, current, partner, now_ns, result)

    def _refuse(self, key: bytes, current: Any | None) -> bool:
        """Mark an entry whose backend is gone. What the datapath counts in the same instant is lost, and an entry that
        it has just removed stays removed."""
        table = self._pairs.table
        if current is None or current.flags & (table.gone | table.over):
            return False
        expires_ns = min(current.expires_ns, self._now_ns() + LINGER_NS)
        marked = current._replace(flags=current.flags | table.gone, expires_ns=expires_ns)
        with suppress(bpf.NoEntry):
            self._map.update(key, self._entry.pack_values(*marked), bpf.EXIST)
            return True
        return False

    def _report_end(self, key: Any, current: Any, partner: Any | None, now_ns: int, result: Sweep) -> None:
        end = self._pairs.end(key, current, partner, now_ns) if self._report is not None else None
        if self._report is not None and end is not None:
            result.ended += 1
            self._report(end)

    def _lookup(self, key: bytes) -> Any | None:
        value = self._map.lookup(key)
        return self._entry.unpack(value) if value is not None else None


def _addresses(offset: int, size: int) -> struct.Struct:
    """The two addresses that a struct tuple at `offset` of a record begins with."""
    return struct.Struct(f"={offset}x16s16s{size - offset - 32}x")

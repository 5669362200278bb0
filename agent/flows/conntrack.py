"""Removing flows that are over from the conntrack maps, and those of an address or a service port that changes hands.

The datapath takes an expired entry for none, so nothing depends on when this runs but the room in the map, and the
time at which silent flows are reported as ended.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable, Collection
from typing import Any

import msgspec

from agent.datapath.abi import Abi
from agent.datapath.maps import Map
from agent.flows.pairs import Pairs
from policies.model import Protocol

CHUNK = 1024
"""Entries read at a time."""

TURN_S = 0.005
"""The event loop gets its turn after that, and after each chunk."""

GRACE_NS = 50_000_000
"""The datapath reads a coarser clock, which is behind by a few ms."""

UDP = Protocol.BY_NAME["UDP"]

Port = tuple[bytes, int]
"""An address (16 bytes) and a UDP port, big-endian as in the map."""


class Forget(msgspec.Struct):
    """Flows to remove although they live, if they are not younger than the CLOCK_MONOTONIC ns given: what came later is
    another's.

    `addresses`: flows with such an end. `frontends`: UDP flows through such a frontend to other backends than these.
    """

    addresses: dict[bytes, int] = {}
    frontends: dict[Port, tuple[frozenset[Port], int]] = {}

    def __bool__(self) -> bool:
        return bool(self.addresses or self.frontends)


LONGEST_S, SHORTEST_S = 15.0, 1.0
FULL_ENOUGH = 0.75


def interval_s(fill: float) -> float:
    """How long to wait between sweeps: the fuller the map (0–1), the shorter."""
    return max(LONGEST_S * (1 - fill / FULL_ENOUGH), SHORTEST_S)


class Sweep(msgspec.Struct):
    """What one pass over a map did. `entries` are those left, a flow has two."""

    entries: int = 0
    expired: int = 0  # entries removed because their flow was over
    forgotten: int = 0  # entries removed with their address
    ended: int = 0  # flows reported as ended
    duration_s: float = 0.0


class Sweeper:
    """Sweeps one conntrack map. `report` takes END events."""

    def __init__(
        self,
        abi: Abi,
        conntrack: Map,
        report: Callable[[bytes], None],
        now_ns: Callable[[], int] = time.monotonic_ns,
    ) -> None:
        self._map = conntrack
        self._report = report
        self._now_ns = now_ns
        self._pairs = Pairs(abi)
        self._service, self._reply = abi.constants.CT_SERVICE, abi.constants.CT_REPLY
        self._key, self._entry = abi.records["tuple"], abi.records["conntrack"]
        self._words = self._entry.size // 8
        self._expires_word = self._entry.offset("expires_ns") // 8

    async def sweep(self, forget: Forget | None = None) -> Sweep:
        """Remove the flows that have expired, and those to forget."""
        forget = forget or Forget()
        result = Sweep()
        started = time.monotonic()
        for keys, values in self._map.chunks(CHUNK):
            gone: set[bytes] = set()
            turn_ends = time.monotonic() + TURN_S
            result.entries += len(keys) // self._key.size
            for index in self._suspects(keys, values, forget):
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

    def _suspects(self, keys: memoryview, values: memoryview, forget: Forget) -> Collection[int]:
        """Indexes of entries worth a look. All but a few are live, and told by their first word."""
        if forget:
            return range(len(keys) // self._key.size)
        now_ns = self._now_ns() - GRACE_NS
        expiries = values.cast("Q")[self._expires_word :: self._words].tolist()
        return [index for index, expires_ns in enumerate(expiries) if expires_ns <= now_ns]

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
        forgotten = self._is_forgotten(unpacked, entry, forget)
        now_ns = self._now_ns()
        if not forgotten and entry.expires_ns > now_ns - GRACE_NS:
            return
        partner_key = self._pairs.partner(unpacked, entry)
        partner, current = self._lookup(partner_key), self._lookup(key)  # as they are now, not when the chunk was read
        if current is None or current.created_ns != entry.created_ns:
            return
        if partner is not None and partner.created_ns != current.created_ns:
            partner = None
        if not forgotten and self._pairs.is_live(current, partner, now_ns - GRACE_NS):
            return
        removed = int(self._map.delete(key))
        gone.add(key)
        if partner is not None:
            removed += int(self._map.delete(partner_key))
            gone.add(partner_key)
        if forgotten:
            result.forgotten += removed
        else:
            result.expired += removed
        end = self._pairs.end(unpacked, current, partner, now_ns)
        if end is not None:
            result.ended += 1
            self._report(end)

    def _is_forgotten(self, key: Any, entry: Any, forget: Forget) -> bool:
        ends = (key.source, key.destination, entry.after_source, entry.after_destination)
        if any(entry.created_ns <= forget.addresses.get(address, -1) for address in ends):
            return True
        if key.protocol != UDP or not entry.flags & self._service:
            return False
        if entry.flags & self._reply:
            frontend, backend = (entry.after_source, entry.after_source_port_be), (key.source, key.source_port_be)
        else:
            frontend = (key.destination, key.destination_port_be)
            backend = (entry.after_destination, entry.after_destination_port_be)
        keep, until_ns = forget.frontends.get(frontend, (frozenset(), -1))
        return backend not in keep and entry.created_ns <= until_ns

    def _lookup(self, key: bytes) -> Any | None:
        value = self._map.lookup(key)
        return self._entry.unpack(value) if value is not None else None

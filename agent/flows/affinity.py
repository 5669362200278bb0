"""Removing clients from the affinity map that have not come back within their service's time-out.

The datapath takes no heed of them; all that depends on this is the room for others.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable

import msgspec

from agent.datapath.abi import Abi
from agent.datapath.maps import Map
from agent.flows.sweeper import CHUNK, GRACE_NS

NS = 1_000_000_000


class AffinitySweep(msgspec.Struct):
    entries: int = 0  # left
    expired: int = 0


class AffinitySweeper:
    """`services` says for how long clients of which service port keep their backend."""

    def __init__(self, abi: Abi, affinity: Map, services: Map, now_ns: Callable[[], int] = time.monotonic_ns) -> None:
        self.capacity = affinity.spec.max_entries
        self._map, self._services = affinity, services
        self._now_ns = now_ns
        self._key, self._value = abi.records["affinity_key"], abi.records["affinity_value"]
        self._service = abi.records["service_value"]

    async def sweep(self) -> AffinitySweep:
        result = AffinitySweep()
        timeouts_ns: dict[int, int] | None = None
        for keys, values in self._map.chunks(CHUNK):
            if timeouts_ns is None:  # there is a client to look at
                timeouts_ns = await self._timeouts_ns()
            clients = list(zip(self._key.struct.iter_unpack(keys), self._value.records(values), strict=True))
            over_ns = self._now_ns() - GRACE_NS
            result.entries += len(clients)
            for (affinity, client), value in clients:
                if value.used_ns + timeouts_ns.get(affinity, 0) <= over_ns:
                    result.expired += self._remove(self._key.pack_values(affinity, client), value.used_ns)
            await asyncio.sleep(0)
        result.entries -= result.expired
        return result

    def _remove(self, key: bytes, used_ns: int) -> bool:
        """Unless the client has come back since."""
        value = self._map.lookup(key)
        return value is not None and self._value.unpack(value).used_ns == used_ns and self._map.delete(key)

    async def _timeouts_ns(self) -> dict[int, int]:
        """By number of a service port. What has none here is of a service that is gone, or has no affinity any more."""
        found: dict[int, int] = {}
        for _, values in self._services.chunks():
            words = values.cast("Q")[self._service.offset("affinity") // 8 :: self._service.size // 8].tolist()
            for index, affinity in enumerate(words):
                if affinity:
                    at = index * self._service.size
                    service = self._service.unpack(values[at : at + self._service.size])
                    found[affinity] = service.affinity_timeout_s * NS
            await asyncio.sleep(0)
        return found

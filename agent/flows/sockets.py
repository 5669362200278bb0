"""Ending connections that sockets were given to backends that are gone.

A socket that was translated when it connected speaks to its backend itself: no packet of it tells of a service. The
maps of the socket hooks know which sockets those are.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Collection, Container
from typing import Any

from agent import log as logs
from agent.datapath.abi import Abi, be16
from agent.datapath.maps import Map
from agent.datapath.sockets import Backend
from agent.flows.pairs import Pair
from agent.flows.sweeper import CHUNK

Destroy = Callable[[Collection[str], Collection[tuple[int, Backend]]], int]
"""Ends the sockets with these cookies that are connected to these backends, in these network namespaces (paths) and in
this process's own; returns how many there were. Raises OSError."""

log = logs.get("flows.sockets")


class Sockets:
    """`frontends` and `backends`: the maps socket_frontends and socket_backends."""

    def __init__(self, abi: Abi, frontends: Map, backends: Map, destroy: Destroy) -> None:
        self._frontends, self._backends = frontends, backends
        self._destroy = destroy
        self._key, self._value = abi.records["socket_key"], abi.records["socket_value"]

    async def retire(self, retired: Container[Pair], namespaces: Collection[str]) -> int:
        """End the connections of these pairs; how many sockets that were. What is not connected chooses anew."""
        ended: set[tuple[int, Backend]] = set()
        for table, key, pair in await self._entries():
            if pair in retired:
                table.delete(self._key.pack_values(*key))
                ended.add((key.cookie, (pair[3], be16(pair[4]))))
        if not ended:
            return 0
        try:
            return await asyncio.to_thread(self._destroy, namespaces, ended)
        except OSError as error:
            log.warning("sockets go on to backends that are gone", sockets=len(ended), reason=str(error))
            return 0

    async def used(self) -> set[Pair]:
        return {pair for _, _, pair in await self._entries()}

    async def _entries(self) -> list[tuple[Map, Any, Pair]]:
        """A datagram socket may have entries in either map: with two frontends of one backend, each in one alone. In
        the order in which bpf/socket_memory.h wants them removed."""
        found: list[tuple[Map, Any, Pair]] = []
        for keys, values in self._backends.chunks(CHUNK):
            for key, value in zip(self._key.records(keys), self._value.records(values), strict=True):
                if any(key.address):  # else a slot
                    found.append((self._backends, key, _pair(key.protocol, key, value)))
            await asyncio.sleep(0)
        for keys, values in self._frontends.chunks(CHUNK):
            for key, value in zip(self._key.records(keys), self._value.records(values), strict=True):
                found.append((self._frontends, key, _pair(key.protocol, value, key)))
            await asyncio.sleep(0)
        return found


def _pair(protocol: int, frontend: Any, backend: Any) -> Pair:
    return frontend.address, frontend.port_be, protocol, backend.address, backend.port_be

"""Ending connections that sockets were given to backends that are gone.

A socket that was translated when it connected speaks to its backend itself: no packet of it tells of a service. The
maps of the socket hooks know which sockets those are.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Collection, Container
from typing import Any

from agent import log as logs
from agent.datapath.abi import Abi
from agent.datapath.maps import Map
from agent.flows.pairs import Pair
from agent.flows.sweeper import CHUNK

Destroy = Callable[[Collection[str], Collection[int]], int]
"""Ends the connected sockets with these cookies in these network namespaces (paths) and in this process's own; returns
how many there were. Raises OSError."""

log = logs.get("flows.sockets")


class Sockets:
    """`frontends` and `backends`: the maps socket_frontends and socket_backends."""

    def __init__(self, abi: Abi, frontends: Map, backends: Map, destroy: Destroy) -> None:
        self._frontends, self._backends = frontends, backends
        self._destroy = destroy
        self._key, self._value = abi.records["socket_key"], abi.records["socket_value"]

    async def retire(self, retired: Container[Pair], namespaces: Collection[str]) -> int:
        """End the connections of these pairs; how many sockets that were."""
        cookies: set[int] = set()
        for key, value in await self._entries():
            if _pair(key, value) in retired:
                cookies.add(key.cookie)
                self._frontends.delete(self._key.pack_values(*key))
                self._backends.delete(self._key.pack_values(key.cookie, value.address, value.port_be, key.protocol))
        if not cookies:
            return 0
        try:
            return await asyncio.to_thread(self._destroy, namespaces, cookies)
        except OSError as error:
            log.warning("sockets go on to backends that are gone", sockets=len(cookies), reason=str(error))
            return 0

    async def used(self) -> set[Pair]:
        return {_pair(key, value) for key, value in await self._entries()}

    async def _entries(self) -> list[tuple[Any, Any]]:
        found: list[tuple[Any, Any]] = []
        for keys, values in self._frontends.chunks(CHUNK):
            found += zip(self._key.records(keys), self._value.records(values), strict=True)
            await asyncio.sleep(0)
        return found


def _pair(key: Any, value: Any) -> Pair:
    """The key has the backend, the value the frontend that the socket asked for."""
    return value.address, value.port_be, key.protocol, key.address, key.port_be

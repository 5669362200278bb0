"""When the maps of flows are swept: the fuller the sooner; at once where there is no room, or something to forget."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Collection, Iterable, Mapping

from agent.flows.affinity import AffinitySweep, AffinitySweeper
from agent.flows.forget import Forget
from agent.flows.pairs import Pair
from agent.flows.sockets import Sockets
from agent.flows.sweeper import Sweep, Sweeper, interval_s


class Collector:
    """`swept` has the last sweep of each map of flows, by its name; `affinity` that of the affinity map. Runs in the
    process's event loop. `lru`: maps that make room by themselves."""

    def __init__(
        self, flows: Mapping[str, Sweeper], affinity: AffinitySweeper, sockets: Sockets, lru: Collection[str] = ()
    ) -> None:
        self.swept = {name: Sweep() for name in flows}
        self.affinity = AffinitySweep()
        self.sweeps = 0
        self.interval_s = 0.0
        self._sweepers = flows
        self._affinity_sweeper = affinity
        self._sockets = sockets
        self._lru = lru
        self._forget = Forget()
        self._waiting: list[asyncio.Future[int]] = []
        self._wake = asyncio.Event()

    def hurry(self) -> None:
        """Sweep at once: a flow found no room."""
        self._wake.set()

    async def forget(self, addresses: Iterable[bytes]) -> int:
        """Remove all flows of these addresses that exist by now; how many entries that were. A flow has two."""
        self._forget.addresses.update(dict.fromkeys(addresses, time.monotonic_ns()))
        return await self._swept()

    async def retire(self, pairs: Collection[Pair], until_ns: int, namespaces: Collection[str]) -> tuple[int, int]:
        """End all flows there were then from these frontends to these backends; how many entries were removed or
        marked, and how many sockets ended. `namespaces`: paths of those the pods' sockets are in."""
        self._forget.retired.update(dict.fromkeys(pairs, until_ns))
        sockets = self._sockets.retire(frozenset(pairs), namespaces)
        entries, ended = await asyncio.gather(self._swept(), sockets)
        return entries, ended

    async def used(self) -> set[Pair]:
        """The frontends in use, with the backends they are used with."""
        found = await self._sockets.used()
        for sweeper in self._sweepers.values():
            found |= await sweeper.used()
        return found

    async def _swept(self) -> int:
        done: asyncio.Future[int] = asyncio.get_running_loop().create_future()
        self._waiting.append(done)
        self._wake.set()
        return await done

    async def run(self) -> None:
        while True:
            self._wake.clear()
            forget, self._forget = self._forget, Forget()
            waiting, self._waiting = self._waiting, []
            for name, sweeper in self._sweepers.items():
                self.swept[name] = await sweeper.sweep(forget)
            for future in waiting:
                if not future.done():
                    future.set_result(sum(sweep.forgotten + sweep.refused for sweep in self.swept.values()))
            self.affinity = await self._affinity_sweeper.sweep()
            self.sweeps += 1
            self.interval_s = interval_s(self._fill())
            try:
                async with asyncio.timeout(self.interval_s):
                    await self._wake.wait()
            except TimeoutError:
                continue

    def _fill(self) -> float:
        """Of the fullest map (0–1) of those that are full one day."""
        fills = [
            sweep.entries / self._sweepers[name].capacity for name, sweep in self.swept.items() if name not in self._lru
        ]
        return max(*fills, self.affinity.entries / self._affinity_sweeper.capacity)

"""When the conntrack maps are swept: the fuller the sooner; at once where there is no room, or something to forget."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Iterable, Mapping

from agent.flows.conntrack import Forget, Port, Sweep, Sweeper, interval_s


class Collector:
    """`conntrack` and `host` are the last sweep of either map. Runs in the process's event loop."""

    def __init__(self, conntrack: Sweeper, host: Sweeper, capacity: int) -> None:
        self.conntrack = Sweep()
        self.host = Sweep()
        self.sweeps = 0
        self.interval_s = 0.0
        self._sweepers = conntrack, host
        self._capacity = capacity
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

    async def retire(self, frontends: Mapping[Port, frozenset[Port]]) -> int:
        """Remove all UDP flows through these frontends to other backends than these; how many entries that were."""
        now_ns = time.monotonic_ns()
        self._forget.frontends.update({frontend: (keep, now_ns) for frontend, keep in frontends.items()})
        return await self._swept()

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
            conntrack, host = self._sweepers
            self.conntrack = await conntrack.sweep(forget)
            self.host = await host.sweep(forget)
            self.sweeps += 1
            for future in waiting:
                if not future.done():
                    future.set_result(self.conntrack.forgotten + self.host.forgotten)
            self.interval_s = interval_s(self.conntrack.entries / self._capacity)
            try:
                async with asyncio.timeout(self.interval_s):
                    await self._wake.wait()
            except TimeoutError:
                continue

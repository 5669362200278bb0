"""Rules of the day for connections that live: a listener is told what changed for its flows, as long as they live."""

from __future__ import annotations

import asyncio
from collections.abc import Mapping
from contextlib import suppress
from typing import Protocol

from agent import log as logs
from agent.datapath.maps import Map
from agent.plan.ids import Asked
from agent.plan.live import LiveFlow, Otherwise, cannot_go_on, judged_otherwise, out_of_date
from agent.plan.plan import Plan
from agent.proxy.live import end, live_flows

AGAIN_S = (0.05, 0.25, 1.0)
"""After a change flows are looked for at once, and again: some had begun and were not in conntrack yet."""
TCP = 6
ROUND_S = 5.0
"""While there is something to be undone."""

log = logs.get("proxy")


class Judges(Protocol):
    """What sides offer."""

    @property
    def lingering(self) -> Mapping[int, Asked]: ...

    def judge_otherwise(self, overrides: Mapping[int, tuple[Otherwise, ...]], alive: frozenset[int]) -> None:
        """Of listeners of all sides."""

    async def told(self) -> None:
        """Until it has taken that, or cannot soon."""


class LiveRules:
    """`changed` says for which listeners some flows may be judged otherwise than when they began."""

    def __init__(self, plan: Plan, conntrack: Map, *sides: Judges) -> None:
        self._plan = plan
        self._map = conntrack
        self._sides = sides
        self._watched: frozenset[int] = frozenset()  # some flows of theirs are judged otherwise
        self._changed: frozenset[int] = frozenset()  # not looked at since
        self._wake = asyncio.Event()
        self._settled = asyncio.Event()
        self._settled.set()

    def changed(self, listeners: frozenset[int]) -> None:
        """Those that are watched already may be judged otherwise again."""
        self._changed |= listeners
        if self._changed or self._watched or self._lingering:
            self._settled.clear()
            self._wake.set()

    async def start(self) -> None:
        """Once the maps hold the plan: connections that began by rules which changed while there was no agent end, for
        Envoy has not been told, and it may be a while until it is."""
        flows = await live_flows(self._map)
        streams = [flow for flow in flows if flow.protocol == TCP]
        self._end(out_of_date(streams, self._plan.state, self._plan.names))

    async def settled(self) -> None:
        """Until the last change holds for connections that live."""
        await self._settled.wait()

    async def run(self) -> None:
        """Until cancelled."""
        again: frozenset[int] = frozenset()
        while True:
            busy = bool(self._watched or self._lingering)
            try:
                async with asyncio.timeout(ROUND_S if busy else None):
                    await self._wake.wait()
            except TimeoutError:
                await self._look(frozenset())
                continue
            again = await self._follow(again)

    async def _follow(self, also: frozenset[int]) -> frozenset[int]:
        """A change. Returns what is to be looked at again, where another one came meanwhile."""
        self._wake.clear()
        looked, self._changed = also | self._changed, frozenset()
        await self._look(looked)
        for side in self._sides:
            await side.told()
        if not self._wake.is_set():
            self._settled.set()
        for pause_s in AGAIN_S:
            with suppress(TimeoutError):
                await asyncio.wait_for(self._wake.wait(), pause_s)
                return looked
            await self._look(looked)
        return frozenset()

    async def _look(self, also: frozenset[int]) -> None:
        wanted = self._watched | self._lingering.keys() | also
        flows = await live_flows(self._map, wanted)
        # What began to linger while flows were read was not looked for.
        alive = frozenset(flow.listener for flow in flows) | (self._lingering.keys() - wanted)
        overrides = judged_otherwise(flows, self._plan.state, self._plan.names, self._lingering)
        self._watched = frozenset(overrides)
        self._end(cannot_go_on(flows, overrides, self._plan.names))
        for side in self._sides:
            side.judge_otherwise(overrides, alive)

    def _end(self, flows: list[LiveFlow]) -> None:
        if flows and (ended := end(self._map, flows)):
            log.info("connections ended that their proxy would judge by other rules than hold now", connections=ended)

    @property
    def _lingering(self) -> dict[int, Asked]:
        return {number: asked for side in self._sides for number, asked in side.lingering.items()}

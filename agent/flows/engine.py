"""The parts of the flows process, wired."""

from __future__ import annotations

import asyncio
import time
from pathlib import Path

from agent import log as logs
from agent.api.server import Server
from agent.datapath.abi import load
from agent.datapath.maps import Maps
from agent.datapath.ring import Ring
from agent.datapath.sockets import destroy_in
from agent.flows.affinity import AffinitySweeper
from agent.flows.clock import WallClock
from agent.flows.collector import Collector
from agent.flows.intake import Intake
from agent.flows.l7 import EnvoyLog, L7Intake
from agent.flows.names import Names
from agent.flows.sockets import Sockets
from agent.flows.store import Store
from agent.flows.subscription import Subscription
from agent.flows.sweeper import Sweeper

WATCH_S = 1.0
"""How often counters, clocks and the state directory are looked at."""

log = logs.get("flows")


class Flows:
    """All that the process holds, over open maps."""

    def __init__(
        self, state_dir: Path, pin_dir: Path, maps: Maps, *, node: str, records: int, redacted: bool = True
    ) -> None:
        self.state_dir = state_dir
        self.pin_dir = pin_dir
        self.abi = load()
        self.maps = maps
        self.stopping = asyncio.Event()
        self.clock = WallClock(*read_clocks())
        self.store = Store(self.abi, records)
        self.names = Names(self.abi, node)
        self.l7 = L7Intake(self.abi, maps, self.store, self.clock)
        self.envoy_log = EnvoyLog(state_dir / "envoy" / "accesslog.sock", self.l7, redacted=redacted)
        self.subscription = Subscription(state_dir / "agent.sock", self.names)
        self.collector = Collector(
            {
                "conntrack": Sweeper(self.abi, maps["conntrack"], self.store.append),
                "conntrack_host": Sweeper(self.abi, maps["conntrack_host"], self.store.append),
                "nat": Sweeper(self.abi, maps["nat"]),
            },
            AffinitySweeper(self.abi, maps["affinity"], maps["services"]),
            Sockets(self.abi, maps["socket_frontends"], maps["socket_backends"], destroy_in),
            lru=("conntrack_host",),
        )

    async def run(self, server: Server, ring: Ring) -> None:
        """Until told to stop, or nobody can reach it any more."""
        intake = Intake(ring, self.store)
        self.l7.catch_up = intake.catch_up
        await self.envoy_log.reopen()
        tasks = [asyncio.create_task(work) for work in (self.subscription.run(), self.collector.run())]
        tasks.append(asyncio.create_task(self._watch(server)))
        stopping = asyncio.create_task(self.stopping.wait())
        try:
            done, _ = await asyncio.wait([*tasks, stopping], return_when=asyncio.FIRST_COMPLETED)
        finally:
            intake.close()
            await self.envoy_log.close()
            for task in (*tasks, stopping):
                task.cancel()
            await asyncio.gather(*tasks, stopping, return_exceptions=True)
        for task in done:
            task.result()  # what failed ends the process, and the agent starts another

    async def _watch(self, server: Server) -> None:
        constants = self.abi.constants
        full = constants.TALLY_CONNTRACK_FULL, constants.TALLY_NAT_FULL, constants.TALLY_AFFINITY_FULL
        before = self.maps["tallies"].sums()
        while server.reachable():
            await asyncio.sleep(WATCH_S)
            self.clock.observe(*read_clocks())
            now = self.maps["tallies"].sums()
            lost = now[constants.TALLY_EVENTS_LOST] - before[constants.TALLY_EVENTS_LOST]
            if lost:
                self.store.lose(lost, time.monotonic_ns())
                log.warning("the kernel's ring was full", events_lost=lost)
            self.l7.say_lost()
            if any(now[tally] != before[tally] for tally in full):
                self.collector.hurry()
            before = now
        log.info("the state directory is gone: ending", state_dir=str(self.state_dir))


def read_clocks() -> tuple[int, int]:
    """CLOCK_MONOTONIC and wall clock at the same moment: the closest of a few readings."""
    readings = []
    for _ in range(3):
        before, wall, after = time.monotonic_ns(), time.time_ns(), time.monotonic_ns()
        readings.append((after - before, before, wall))
    _, monotonic, wall = min(readings)
    return monotonic, wall

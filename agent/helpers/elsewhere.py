"""A helper that runs in a container of its own, as the agent sees it."""

from __future__ import annotations

import asyncio
import time
from pathlib import Path

from agent import log as logs
from agent.helpers import order as orders
from agent.helpers.order import Order
from agent.status import ProcessView
from agent.supervisor import connected, is_left

AGAIN_S = 0.2
GRACE_S = 10.0
"""How long nobody may answer before that is a problem: containers start when the kubelet comes to it."""

log = logs.get("helpers")


class Elsewhere:
    """In a Supervisor's place. `path`: of the order; where it listens, the order says."""

    def __init__(self, name: str, order: Order, path: Path) -> None:
        self.name = name
        self._order = order
        self._path = path
        self._socket = Path(order.socket)
        self._runs = False
        self._seen = (0, 0)
        self._restarts = 0
        self._problem = ""

    def view(self) -> ProcessView:
        state = "running" if self._runs else ("restarting" if self._problem else "stopped")
        return ProcessView(state=state, pid=0, restarts=self._restarts, problem=self._problem)

    async def run(self) -> None:
        """Until cancelled; the helper then goes on."""
        orders.write(self._path, self._order)
        lost = time.monotonic()
        while True:
            try:
                async with connected(self._socket) as reader:
                    self._note()
                    while await reader.read(4096):
                        pass
                lost = time.monotonic()
                continue  # whoever listens may close what only listens, too
            except OSError:
                self._miss(time.monotonic() - lost)
            await asyncio.sleep(AGAIN_S)

    def leave(self) -> bool:
        """Nothing asks for it; whether anything had."""
        there = self._path.exists()
        self._path.unlink(missing_ok=True)
        return there

    async def stop(self) -> None:
        """Once `run` has been cancelled."""
        self.leave()
        if not await asyncio.to_thread(is_left, self._socket, orders.STOP_S):
            log.warning("helper does not end", helper=self.name)

    def _note(self) -> None:
        status = self._socket.stat()
        bound = status.st_ino, status.st_mtime_ns
        if not self._runs or bound != self._seen:
            log.info("helper answers", helper=self.name)
            self._restarts += any(self._seen) and bound != self._seen
        self._runs, self._seen, self._problem = True, bound, ""

    def _miss(self, for_s: float) -> None:
        if self._runs:
            log.warning("helper does not answer", helper=self.name)
        self._runs = False
        if for_s >= GRACE_S or any(self._seen):
            folders = dict.fromkeys((str(self._path.parent), str(self._socket.parent)))
            self._problem = (
                f"nobody answers at {self._socket}: does the container of `gatehouse helper {self.name}` run, "
                f"with {' and '.join(folders)} of the node? See its log"
            )

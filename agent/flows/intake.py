"""From the kernel's ring into the store."""

from __future__ import annotations

import asyncio

from agent.datapath.ring import Ring
from agent.flows.store import Store

PAUSE_S = 0.005
"""After each look at the ring. Under load a look takes in many events; without the pause it would take in one."""

DRAIN_BYTES = 1 << 20
"""At most so much at once, some 8 ms, before others get their turn."""


class Intake:
    """Drains the ring from the event loop while it is open."""

    def __init__(self, ring: Ring, store: Store) -> None:
        self._ring = ring
        self._store = store
        self._loop = asyncio.get_running_loop()
        self._timer: asyncio.TimerHandle | None = None
        self._wait()

    def catch_up(self) -> None:
        """Take in what is in the ring now: what is appended next has come about after it."""
        self._take()

    def close(self) -> None:
        self._loop.remove_reader(self._ring.fileno())
        if self._timer is not None:
            self._timer.cancel()

    def _wait(self) -> None:
        self._loop.add_reader(self._ring.fileno(), self._drain)

    def _drain(self) -> None:
        self._loop.remove_reader(self._ring.fileno())
        self._take()
        behind = self._ring.unread_bytes > DRAIN_BYTES // 4
        self._timer = self._loop.call_later(0 if behind else PAUSE_S, self._wait)

    def _take(self) -> None:
        events = self._ring.drain(DRAIN_BYTES)
        if events:
            self._store.append(b"".join(events))

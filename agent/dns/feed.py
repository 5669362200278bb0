"""Records of queries to the flows process: in batches, and none at all while it is away or too slow."""

from __future__ import annotations

import asyncio
from collections import deque
from pathlib import Path

import msgspec

from agent.api import aio
from agent.api.protocol import ApiError
from l7proxy.records import L7Record

HELD = 16_384
"""Records that wait; older ones are lost."""
BATCH = 1024
INTERVAL_S = 0.2
AWAY_S = 1.0
"""Before the flows process is asked again."""


class Feed:
    def __init__(self, socket: Path) -> None:
        self.lost = 0
        self._socket = socket
        self._held: deque[L7Record] = deque(maxlen=HELD)

    def put(self, record: L7Record) -> None:
        self.lost += len(self._held) == HELD
        self._held.append(record)

    async def run(self) -> None:
        """Until cancelled."""
        while True:
            await asyncio.sleep(INTERVAL_S)
            while self._held:
                batch = [self._held.popleft() for _ in range(min(BATCH, len(self._held)))]
                try:
                    await aio.call(self._socket, "l7", records=msgspec.to_builtins(batch), timeout_s=5)
                except ApiError:
                    self.lost += len(batch) + len(self._held)
                    self._held.clear()
                    await asyncio.sleep(AWAY_S)

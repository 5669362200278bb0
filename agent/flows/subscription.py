"""The agent's stream of names, followed across its restarts."""

from __future__ import annotations

import asyncio
import time
from contextlib import aclosing
from pathlib import Path

from agent import log as logs
from agent.api import aio
from agent.api.protocol import ApiError
from agent.flows.names import Names

RETRY_S = (0.1, 2.0)

log = logs.get("flows.names")


class Subscription:
    """`connected` while an agent sends names. Those known stay in use while none does."""

    def __init__(self, agent_socket: Path, names: Names) -> None:
        self.connected = False
        self._path = agent_socket
        self._names = names

    async def run(self) -> None:
        delay = RETRY_S[0]
        while True:
            try:
                await self._follow()
                reason = "the agent ended the stream"
            except ApiError as error:
                reason = str(error)
            if self.connected:
                self.connected = False
                delay = RETRY_S[0]
                log.warning("no more names, flows keep those known", reason=reason)
            await asyncio.sleep(delay)
            delay = min(delay * 2, RETRY_S[1])

    async def _follow(self) -> None:
        async with aclosing(aio.stream(self._path, "names")) as lines:
            async for line in lines:
                if not self.connected:
                    self.connected = True
                    self._names.begin_snapshot()
                    log.info("names come from the agent", socket=str(self._path))
                try:
                    self._names.apply(line, time.monotonic_ns())
                except ValueError as error:
                    log.warning("a name that is not understood: are agent and flows of one version?", reason=str(error))

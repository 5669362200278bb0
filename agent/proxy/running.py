"""A proxy's process: started when something first asks for it, or not at all; looked after as any other."""

from __future__ import annotations

import asyncio
from collections.abc import Callable

from agent import log as logs
from agent import memory
from agent.status import ProxyView
from agent.supervisor import Kept

log = logs.get("proxy")


class Running:
    """`setting`: auto, on or off. `begin` is called once, when it is first wanted: what makes packets come to it."""

    def __init__(self, process: Kept, setting: str, begin: Callable[[], None]) -> None:
        self._process = process
        self._setting = setting
        self._begin = begin
        self._wanted = asyncio.Event()
        if setting == "on":
            self.want()

    @property
    def is_wanted(self) -> bool:
        return self._wanted.is_set()

    @property
    def is_off(self) -> bool:
        return self._setting == "off"

    def want(self) -> None:
        """A rule asks for it. It then runs until the agent is started without such rules."""
        if not self.is_off and not self.is_wanted:
            self._begin()
            self._wanted.set()

    async def wanted(self) -> None:
        """Until something asks for it."""
        await self._wanted.wait()

    def leave(self) -> None:
        """Once all rules are known at a start: one that an earlier agent started goes if nothing asks for it."""
        if not self.is_wanted and self._process.leave():
            log.info("proxy ended: nothing asks for it", process=self._process.name)

    async def run(self) -> None:
        """Until cancelled; the process then goes on."""
        await self.wanted()
        await self._process.run()

    async def stop(self) -> None:
        await self._process.stop()

    def view(self, listeners: int, waiting: int, problems: tuple[str, ...]) -> ProxyView:
        process = self._process.view()
        off = ("it is turned off, and rules ask for it: their flows are denied",) if self.is_off and waiting else ()
        return ProxyView(
            wanted=self.is_wanted,
            process=process,
            listeners=listeners,
            waiting=waiting,
            resident_bytes=memory.resident_bytes(process.pid) if process.pid else 0,
            problems=(*off, *problems),
        )

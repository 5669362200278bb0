"""Updates of objects that were not taken in yet: of each object the newest."""

from __future__ import annotations

import asyncio
import time

import msgspec

from agent.kube.replica import Update

ROOM = 2000
"""Lists wait while more than this is not taken in, so that a large cluster is never there twice."""


class Inbox:
    """What has just happened goes before what a list found, so that a policy is not kept waiting by a resync."""

    def __init__(self) -> None:
        self._urgent: dict[str, Update] = {}
        self._found: dict[str, Update] = {}
        self._some = asyncio.Event()
        self._room = asyncio.Event()
        self._room.set()
        self._received_ns = 0

    def __len__(self) -> int:
        return len(self._urgent) + len(self._found)

    def push(self, update: Update) -> None:
        if not self:
            self._received_ns = time.monotonic_ns()
        before = self._urgent.get(update.file) or self._found.get(update.file)
        if before is not None and update.text is not None and (before.text is None or before.anew):
            update = msgspec.structs.replace(update, anew=True)
        if update.urgent or update.file in self._urgent:
            self._found.pop(update.file, None)
            self._urgent[update.file] = update
        else:
            self._found[update.file] = update
        self._some.set()
        if len(self) > ROOM:
            self._room.clear()

    def pop(self) -> Update | None:
        for updates in (self._urgent, self._found):
            if updates:
                update = updates.pop(next(iter(updates)))
                if len(self) <= ROOM // 2:
                    self._room.set()
                if not self:
                    self._some.clear()
                return update
        return None

    def wake(self) -> None:
        """There is something else to be told."""
        self._some.set()

    async def some(self) -> int:
        """Until there is something; when (CLOCK_MONOTONIC, ns) the first of it came."""
        await self._some.wait()
        if not self:
            self._some.clear()
            return time.monotonic_ns()
        return self._received_ns

    async def room(self) -> None:
        await self._room.wait()

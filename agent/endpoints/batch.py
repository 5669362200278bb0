"""Work that costs the same for one item as for many: what comes while it is being done is done together next."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from typing import Generic, TypeVar

T = TypeVar("T")


class Batch(Generic[T]):
    """`work` gets a set of items; never twice at a time."""

    def __init__(self, work: Callable[[set[T]], Awaitable[None]]) -> None:
        self._work = work
        self._items: set[T] = set()
        self._next: asyncio.Task[None] | None = None
        self._working = asyncio.Lock()

    async def add(self, item: T) -> None:
        """Returns when the item has been worked on; raises what the work raised. Goes on if the caller is cancelled."""
        await asyncio.shield(self.begin(item))

    def begin(self, item: T) -> asyncio.Task[None]:
        """The same as a task that others wait for, too: it is not to be cancelled."""
        self._items.add(item)
        if self._next is None:
            self._next = asyncio.get_running_loop().create_task(self._run())
        return self._next

    async def _run(self) -> None:
        async with self._working:
            items, self._items, self._next = self._items, set(), None
            await self._work(items)

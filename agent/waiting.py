"""What is asked of the agent's turns by somebody who waits until it holds."""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import Callable, Iterable
from typing import Generic, TypeVar

T = TypeVar("T")


class Waiting(Generic[T]):
    """`wake` is called when there is something to take."""

    def __init__(self, wake: Callable[[], None]) -> None:
        self._wake = wake
        self._asked: deque[tuple[T, asyncio.Future[None]]] = deque()
        self._over = False

    def __len__(self) -> int:
        return len(self._asked)

    async def ask(self, what: T) -> None:
        """Returns once it holds, or all is over."""
        if self._over:
            return
        done: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        self._asked.append((what, done))
        self._wake()
        await done

    def take(self, most: int) -> list[tuple[T, asyncio.Future[None]]]:
        """What was asked first. Who takes it says when it holds: `release`."""
        return [self._asked.popleft() for _ in range(min(len(self._asked), most))]

    def stop(self) -> None:
        """Nothing more will be taken: nobody is to wait for it."""
        self._over = True
        release(done for _, done in self._asked)
        self._asked.clear()


def release(waiting: Iterable[asyncio.Future[None]]) -> None:
    """It holds now. Some may have given up."""
    for done in waiting:
        if not done.done():
            done.set_result(None)

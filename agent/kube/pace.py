"""Requests to a server that may be away or overloaded: no storm while it is, and none when it is back."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from typing import TypeVar

from agent.kube.backoff import Backoff
from agent.kube.writes import ApiFailure, Away

T = TypeVar("T")


class Pace:
    """While requests fail for want of a server, all who would make one queue up, and the first tries again after the
    delay. Every request through one Pace knows of the others' failures."""

    def __init__(self, backoff: Backoff | None = None) -> None:
        self._backoff = backoff or Backoff(first_s=0.2)
        self._one = asyncio.Lock()
        self._failures = 0
        self._delay_s = 0.0

    @property
    def away(self) -> bool:
        """Whether the last request found no server."""
        return self._failures > 0

    async def once(self, request: Callable[[], Awaitable[T]]) -> T:
        """One try, when it is time. Raises ApiFailure."""
        if self._failures:
            async with self._one:
                if self._failures:
                    await asyncio.sleep(self._delay_s)
                    return await self._try(request)
        return await self._try(request)

    async def persist(self, request: Callable[[], Awaitable[T]]) -> T:
        """Try until there is a server. Raises ApiFailure other than Away."""
        while True:
            try:
                return await self.once(request)
            except Away:
                continue

    async def _try(self, request: Callable[[], Awaitable[T]]) -> T:
        before = self._failures
        try:
            answer = await request()
        except Away as away:
            if self._failures == before:  # many at once that fail are one failure
                self._failures += 1
                self._delay_s = self._backoff.delay_s(away.retry_after_s)
            raise
        except ApiFailure:
            self._succeeded()  # a server that refuses is there
            raise
        self._succeeded()
        return answer

    def _succeeded(self) -> None:
        self._failures = 0
        self._backoff.reset()

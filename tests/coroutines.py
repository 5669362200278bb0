"""Tests that are coroutines, each on an event loop of its own, with an end to it."""

import asyncio
import functools
import selectors
from collections.abc import Callable, Coroutine
from typing import Any, ParamSpec

P = ParamSpec("P")
WHOLE_S = 250.0


def on_a_loop(test: Callable[P, Coroutine[Any, Any, None]]) -> Callable[P, None]:
    """Fixtures and parameters as they are."""

    @functools.wraps(test)
    def run(*args: P.args, **kwargs: P.kwargs) -> None:
        async def bounded() -> None:
            async with asyncio.timeout(WHOLE_S):
                await test(*args, **kwargs)

        asyncio.run(bounded())

    return run


class _Skipping(selectors.DefaultSelector):
    """Instead of waiting for a time to come, it makes it now."""

    skipped_s = 0.0

    def select(self, timeout: float | None = None) -> Any:
        if timeout is None:
            raise RuntimeError("everybody waits for something that does not come with time")
        self.skipped_s += max(timeout, 0.0)
        return super().select(0)


class _SkippingLoop(asyncio.SelectorEventLoop):
    def __init__(self) -> None:
        self.skipping = _Skipping()
        super().__init__(self.skipping)

    def time(self) -> float:
        return 1000.0 + self.skipping.skipped_s


def in_no_time(test: Callable[P, Coroutine[Any, Any, None]]) -> Callable[P, None]:
    """On a loop whose clock skips what nobody does anything in: hours pass at once. Nothing in it may wait for a file
    descriptor or a thread. An hour without end is a failure."""

    @functools.wraps(test)
    def run(*args: P.args, **kwargs: P.kwargs) -> None:
        async def bounded() -> None:
            async with asyncio.timeout(30 * 86400):
                await test(*args, **kwargs)

        with asyncio.Runner(loop_factory=_SkippingLoop) as runner:
            runner.run(bounded())

    return run


def now_s() -> float:
    """Of the loop's clock."""
    return asyncio.get_running_loop().time()

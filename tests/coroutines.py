"""Tests that are coroutines, each on an event loop of its own, with an end to it."""

import asyncio
import functools
from collections.abc import Callable, Coroutine
from typing import Any, ParamSpec

P = ParamSpec("P")
WHOLE_S = 100.0


def on_a_loop(test: Callable[P, Coroutine[Any, Any, None]]) -> Callable[P, None]:
    """Fixtures and parameters as they are."""

    @functools.wraps(test)
    def run(*args: P.args, **kwargs: P.kwargs) -> None:
        async def bounded() -> None:
            async with asyncio.timeout(WHOLE_S):
                await test(*args, **kwargs)

        asyncio.run(bounded())

    return run

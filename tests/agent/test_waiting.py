"""Who asks something of the turns waits until it holds, and no longer."""

from __future__ import annotations

import asyncio
from unittest.mock import Mock

from agent.waiting import Waiting, release


def test_what_is_asked_is_taken_in_order_and_waited_for() -> None:
    async def run() -> None:
        wake = Mock()
        waiting: Waiting[str] = Waiting(wake)
        asking = [asyncio.create_task(waiting.ask(word)) for word in "abc"]
        await asyncio.sleep(0)
        assert wake.call_count == len(waiting) == 3
        taken = waiting.take(2)
        assert ([word for word, _ in taken], len(waiting)) == (["a", "b"], 1)
        asking[1].cancel()
        await asyncio.sleep(0)
        release(done for _, done in taken)
        await asking[0]
        assert asking[1].cancelled()
        assert not asking[2].done()
        waiting.stop()
        await asking[2]
        await waiting.ask("too late")

    asyncio.run(run())

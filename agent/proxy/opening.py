"""Listeners that Envoy has taken, until they listen: its workers begin to soon afterwards, on a busy machine some time
afterwards."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable, Mapping

from agent import log as logs
from l7proxy.listening import listener_name

AGAIN_S, LATER_S = 0.002, 0.1
LATE_S = 2.0
"""What takes longer is said, and asked for less often."""

log = logs.get("envoy")


class Opening:
    """`opened` is called once for each that listens. Make it inside the loop."""

    def __init__(self, opened: Callable[[int], None]) -> None:
        self._opened = opened
        self._awaited: dict[int, asyncio.Task[None]] = {}

    def expect(self, ports: Mapping[int, int]) -> None:
        """These alone, from now on: number → port of loopback."""
        for number in self._awaited.keys() - ports.keys():
            self._awaited.pop(number).cancel()
        for number in ports.keys() - self._awaited.keys():
            self._awaited[number] = asyncio.create_task(self._await(number, ports[number]))

    async def _await(self, number: int, port: int) -> None:
        began, is_late = time.monotonic(), False
        while not await _listens(port):
            if not is_late and time.monotonic() - began > LATE_S:
                is_late = True
                log.error("Envoy has taken a listener and does not listen yet", listener=listener_name(number))
            await asyncio.sleep(LATER_S if is_late else AGAIN_S)
        del self._awaited[number]
        self._opened(number)


async def _listens(port: int) -> bool:
    """A connection that only says so ends at once: the listener passes nothing on to loopback."""
    try:
        _, writer = await asyncio.open_connection("127.0.0.1", port)
    except OSError:
        return False
    writer.close()
    return True

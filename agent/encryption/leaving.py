"""A WireGuard device that is not wanted any more: the others send by it until they have heard, and that is taken."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable

import msgspec

from agent.encryption.device import name_of
from agent.encryption.link import NodeLink
from agent.endpoints.netlink import NetlinkError
from agent.instance import Instance

QUIET_S = 5.0
"""For so long nothing has come, and the others could know: nobody sends there any more."""
LOOK_S = 0.5


class Quiet(msgspec.Struct):
    """Times in seconds of one clock."""

    received: int = -1
    since_s: float = 0.0

    def look(self, received: int, told: bool, now_s: float) -> bool:
        """Whether it is over. `received`: packets until now; `told`: whether the others can know."""
        if received != self.received or not told:
            self.received, self.since_s = received, now_s
        return now_s - self.since_s >= QUIET_S


def find(instance: Instance) -> int:
    """The interface index of the instance's device, whoever left it; 0: there is none that is up. In the calling
    thread's network namespace; blocks."""
    with NodeLink(name_of(instance.short_name)) as link:
        found = link.find()
        return found.ifindex if found and found.up else 0


async def unused(instance: Instance, told: Callable[[], bool]) -> None:
    """Until nobody sends by the device any more, or it is gone."""
    quiet = Quiet()
    while True:
        received = await asyncio.to_thread(_received, name_of(instance.short_name))
        if received is None or quiet.look(received, told(), time.monotonic()):
            return
        await asyncio.sleep(LOOK_S)


def _received(name: str) -> int | None:
    """None: there is no such device."""
    with NodeLink(name) as link:
        try:
            return link.received()
        except NetlinkError:
            return None

"""Flows that must end, told to the flows process (agent.flows): those whose backend is gone, as agent.plan.serving
finds them, and those of addresses that are free again."""

from __future__ import annotations

import asyncio
import time
from collections import defaultdict
from collections.abc import Iterable
from contextlib import aclosing, suppress
from itertools import islice
from pathlib import Path
from typing import Any

import msgspec

from agent import log as logs
from agent.api import aio
from agent.api.protocol import ApiError, UnreachableError
from agent.plan.serving import Pair, Serving
from agent.world.world import World
from policies.address import format_address, parse_address
from policies.model import ObjectRef, Protocol

LEARNED_AT_ONCE = 16
"""Services looked at before others get their turn: half a millisecond."""
PAUSE_S = 0.001
"""A change that comes meanwhile takes several turns of the loop: not in each of them are services looked at."""
PAIRS_AT_ONCE = 2048
"""In one request: some 100 KB."""
ASK_S = 60.0
RETRY_S = 0.5

log = logs.get("retirement")


class Used(msgspec.Struct):
    """A frontend in use, as the flows process tells of it."""

    ip: str
    port: int
    protocol: str
    backends: list[tuple[str, int]]

    def pairs(self) -> Iterable[Pair]:
        address, protocol = parse_address(self.ip), Protocol.BY_NAME[self.protocol]
        return [(address, self.port, protocol, parse_address(ip), port) for ip, port in self.backends]


class Retirement:
    """What the flows process has not heard of lost backends is said until it has: a flow that is in use has no time-out
    to wait for."""

    def __init__(self, world: World, serving: Serving, flows_socket: Path) -> None:
        self._world = world
        self._serving = serving
        self._socket = flows_socket
        self._wake = asyncio.Event()
        self._forgetting: set[asyncio.Task[None]] = set()

    def start(self) -> None:
        """The plan is in force for the first time: what was lost while there was no agent is looked for."""
        self._serving.start(self._world.served())
        self._wake.set()

    def changed(self, services: Iterable[ObjectRef]) -> None:
        """These may have lost backends: no new flow goes to them any more."""
        if self._serving.update(self._world, services):
            self._wake.set()

    def forget(self, addresses: set[bytes]) -> None:
        """Nobody is known by these any more: who gets one next is to inherit no flow."""
        task = asyncio.create_task(self._forget(addresses))
        self._forgetting.add(task)
        task.add_done_callback(self._forgetting.discard)

    async def _forget(self, addresses: set[bytes]) -> None:
        with suppress(ApiError):  # without the flows process they end by their time-outs, judged by policy as ever
            await aio.call(self._socket, "forget", ips=[format_address(address) for address in sorted(addresses)])

    async def run(self) -> None:
        while True:
            await self._wake.wait()
            self._wake.clear()
            try:
                await self._end_all()
            except (ApiError, TimeoutError) as error:
                known_to_pass = isinstance(error, UnreachableError)  # it is being started
                say = log.debug if known_to_pass else log.warning
                say("flows to backends that are gone go on for now", reason=str(error) or "no answer")
                self._wake.set()
                await asyncio.sleep(RETRY_S)

    async def _end_all(self) -> None:
        serving = self._serving
        while serving.learn(self._world, LEARNED_AT_ONCE):
            await asyncio.sleep(PAUSE_S)
        if serving.asks:
            serving.asks = False
            try:
                serving.check(await self._used())
            except (ApiError, TimeoutError):
                serving.asks = True
                raise
        while serving.lost:
            some = dict(islice(serving.lost.items(), PAIRS_AT_ONCE))
            # By now no new flow goes to these: one that is younger when the request is read, they serve again.
            arguments = {
                "frontends": _frontends(some),
                "until_ns": time.monotonic_ns(),
                "namespaces": self._namespaces(),
            }
            ended = await aio.call(self._socket, "retire", timeout_s=ASK_S, **arguments)
            serving.done(some)
            log.info("flows of backends that are gone have ended", pairs=len(some), **ended)

    async def _used(self) -> list[Pair]:
        found: list[Pair] = []
        async with asyncio.timeout(ASK_S), aclosing(aio.stream(self._socket, "backends")) as values:
            async for value in values:
                if value is not None:
                    found += msgspec.convert(value, Used).pairs()
        return found

    def _namespaces(self) -> list[str]:
        """Where the sockets of this node's pods are."""
        return [state.interface.netns for state in self._world.pods if state.interface is not None]


def _frontends(pairs: Iterable[Pair]) -> list[dict[str, Any]]:
    backends: defaultdict[tuple[bytes, int, int], list[tuple[str, int]]] = defaultdict(list)
    for address, port, protocol, backend, backend_port in pairs:
        backends[address, port, protocol].append((format_address(backend), backend_port))
    return [
        {"ip": format_address(address), "port": port, "protocol": Protocol.BY_NUMBER[protocol], "backends": some}
        for (address, port, protocol), some in backends.items()
    ]

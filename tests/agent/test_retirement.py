"""Flows of backends that are gone, told to a flows process that is there or not."""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncGenerator
from pathlib import Path
from typing import Any

import pytest
from worlds import CONFIG, ORIGIN

from agent import retirement
from agent.api.protocol import ApiError, Batch
from agent.api.server import serve
from agent.objects import Change, EndpointSlice, Interface, Pod, Service, ServicePort, SliceEndpoint, SlicePort
from agent.plan.serving import Serving
from agent.retirement import Retirement
from agent.world.world import World
from policies.address import parse_address
from policies.model import ObjectRef

DNS, WEB = ObjectRef("Service", "ns", "dns"), ObjectRef("Pod", "ns", "web")
OLD, NEW = "10.1.0.7", "10.1.0.8"
FRONTEND = {"ip": "10.96.0.5", "port": 53, "protocol": "UDP"}


class FlowsProcess:
    """What the agent sees of one. `used` is what it says is in use; requests are queued as they come."""

    def __init__(self, path: Path, *used: dict[str, Any]) -> None:
        self._path = path
        self._used = list(used)
        self.requests: asyncio.Queue[dict[str, Any]] = asyncio.Queue()
        self.fails = 0

    async def backends(self, _arguments: dict[str, Any]) -> AsyncGenerator[Batch, None]:
        yield Batch(self._used)

    async def retire(self, arguments: dict[str, Any]) -> dict[str, int]:
        if self.fails:
            self.fails -= 1
            raise ApiError("not now")
        await self.requests.put(arguments)
        return {"entries": 2, "sockets": 0}

    async def run(self) -> None:
        async with await serve(self._path, {"backends": self.backends, "retire": self.retire}):
            await asyncio.Event().wait()

    async def next(self) -> dict[str, Any]:
        async with asyncio.timeout(60):
            return await self.requests.get()


class Bench:
    """A service whose endpoints change, and what tells of it."""

    def __init__(self, folder: Path, *used: dict[str, Any]) -> None:
        self.world, self.serving = World(CONFIG), Serving()
        self.flows = FlowsProcess(folder / "flows.sock", *used)
        self.retirement = Retirement(self.world, self.serving, folder / "flows.sock")
        self._tasks: list[asyncio.Task[None]] = []
        port = ServicePort("dns", 17, 53, 5353)
        service = Service(DNS, ORIGIN, "ClusterIP", None, (parse_address("10.96.0.5"),), headless=False, ports=(port,))
        pod = Pod(WEB, ORIGIN, {}, addresses=(parse_address("10.1.0.9"),))
        self.world.apply(Change(DNS, service))
        self.world.apply(Change(WEB, pod))
        self.world.set_interface(WEB, Interface(7, "gh7", b"\x02" * 6, b"\x04" * 6, "/run/netns/web"))
        self.change(OLD)

    def change(self, *backends: str) -> None:
        """As agent.turns does."""
        members = tuple(SliceEndpoint((parse_address(ip),)) for ip in backends)
        ref = ObjectRef("EndpointSlice", "ns", "dns-1")
        given = EndpointSlice(ref, ORIGIN, "dns", (SlicePort("dns", 17, 5353),), members)
        self.world.apply(Change(ref, given))
        self.retirement.changed(self.world.take_dirty().services)

    async def __aenter__(self) -> Bench:
        self._tasks.append(asyncio.create_task(self.retirement.run()))
        return self

    def begin(self) -> None:
        """The flows process starts."""
        self._tasks.append(asyncio.create_task(self.flows.run()))

    async def __aexit__(self, *_: object) -> None:
        for task in self._tasks:
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)


def said(request: dict[str, Any]) -> list[str]:
    """Backends whose flows are to end."""
    (frontend,) = request["frontends"]
    assert {name: frontend[name] for name in FRONTEND} == FRONTEND
    return sorted(ip for ip, port in frontend["backends"] if port == 5353)


@pytest.fixture(autouse=True)
def impatient(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(retirement, "RETRY_S", 0.01)


def test_what_is_lost_is_said_with_where_sockets_may_be(tmp_path: Path) -> None:
    async def run() -> None:
        async with Bench(tmp_path) as bench:
            bench.begin()
            before_ns = time.monotonic_ns()
            bench.change(NEW)
            request = await bench.flows.next()
            assert (said(request), request["namespaces"]) == ([OLD], ["/run/netns/web"])
            assert before_ns < request["until_ns"] < time.monotonic_ns(), "flows of before may be with it"
            bench.change(OLD)
            assert said(await bench.flows.next()) == [NEW]

    asyncio.run(run())


def test_it_is_said_until_it_is_heard(tmp_path: Path) -> None:
    async def run() -> None:
        async with Bench(tmp_path) as bench:
            bench.flows.fails = 2
            bench.change()
            await asyncio.sleep(0)  # it finds nobody
            bench.begin()
            assert said(await bench.flows.next()) == [OLD]
            assert bench.flows.fails == 0
            async with asyncio.timeout(60):
                while bench.serving.lost:  # the answer is on its way
                    await asyncio.sleep(0.001)
            assert bench.flows.requests.empty()

    asyncio.run(run())


def test_at_the_start_it_asks_first(tmp_path: Path) -> None:
    async def run() -> None:
        used = FRONTEND | {"backends": [["10.1.0.66", 5353], [OLD, 5353]]}
        async with Bench(tmp_path, used) as bench:
            bench.retirement.start()
            bench.begin()
            assert said(await bench.flows.next()) == ["10.1.0.66"]
            assert not bench.serving.asks
            assert bench.flows.requests.empty()

    asyncio.run(run())


def test_many_are_said_in_parts(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(retirement, "PAIRS_AT_ONCE", 3)

    async def run() -> None:
        backends = [f"10.1.1.{number}" for number in range(8)]
        async with Bench(tmp_path) as bench:
            bench.change(OLD, *backends)
            bench.begin()
            bench.change(OLD)
            parts = [said(await bench.flows.next()) for _ in range(3)]
            assert [len(part) for part in parts] == [3, 3, 2]
            assert sorted(ip for part in parts for ip in part) == backends

    asyncio.run(run())

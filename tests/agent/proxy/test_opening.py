"""Listeners that Envoy has taken: they are used from when they listen, however late that is."""

from __future__ import annotations

import asyncio
import socket
from collections.abc import Coroutine

import pytest

from agent.proxy import opening
from agent.proxy.opening import Opening

ENOUGH_S = 30.0


def run(test: Coroutine[None, None, None]) -> None:
    async def bounded() -> None:
        async with asyncio.timeout(ENOUGH_S):
            await test

    asyncio.run(bounded())


class Listener:
    """A port that nobody else takes; it is `open`ed later."""

    def __init__(self) -> None:
        self._socket = socket.socket()
        self._socket.bind(("127.0.0.1", 0))
        self.port: int = self._socket.getsockname()[1]

    def __enter__(self) -> Listener:
        return self

    def __exit__(self, *_: object) -> None:
        self._socket.close()

    def open(self) -> None:
        self._socket.listen()


def test_one_that_listens_late_is_used_all_the_same(monkeypatch: pytest.MonkeyPatch) -> None:
    """A machine that stood still left such a listener unused, and its flows denied, until its rules changed."""
    monkeypatch.setattr(opening, "LATE_S", 0.0)
    monkeypatch.setattr(opening, "LATER_S", 0.001)

    async def test() -> None:
        late, said = asyncio.Event(), asyncio.Queue[int]()
        monkeypatch.setattr(opening.log, "error", lambda *_, **__: late.set())
        with Listener() as listener:
            opened = Opening(said.put_nowait)
            opened.expect({7: listener.port})
            await late.wait()
            assert said.empty()
            listener.open()
            assert await said.get() == 7

    run(test())


def test_one_that_is_not_wanted_any_more_is_not_waited_for() -> None:
    async def test() -> None:
        said = asyncio.Queue[int]()
        with Listener() as gone, Listener() as wanted:
            opening = Opening(said.put_nowait)
            opening.expect({1: gone.port, 2: wanted.port})
            opening.expect({2: wanted.port})
            gone.open()
            wanted.open()
            assert await said.get() == 2
            assert asyncio.all_tasks() == {asyncio.current_task()}
            assert said.empty()

    run(test())


def test_it_is_asked_for_again_under_the_same_number() -> None:
    """Envoy was started again."""

    async def test() -> None:
        said = asyncio.Queue[int]()
        with Listener() as listener:
            opening = Opening(said.put_nowait)
            listener.open()
            for _ in range(2):
                opening.expect({1: listener.port})
                assert await said.get() == 1
                opening.expect({})

    run(test())

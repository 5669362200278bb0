"""A process beside the agent: started, adopted, replaced, started again, stopped."""

from __future__ import annotations

import asyncio
import os
import signal
import subprocess
import sys
from collections.abc import AsyncIterator, Callable, Coroutine
from contextlib import asynccontextmanager, suppress
from pathlib import Path
from typing import Any

import pytest

from agent.supervisor import Supervisor, listener_pid

LISTENS = """
import socket, sys, time
s = socket.socket(socket.AF_UNIX); s.bind(sys.argv[1]); s.listen()
sys.stdin.close()
time.sleep(60)
"""


def command(path: Path, *more: str) -> list[str]:
    return [sys.executable, "-c", LISTENS, str(path), *more]


async def listening(path: Path, other_than: int = 0) -> int:
    async with asyncio.timeout(60):
        while (pid := listener_pid(path)) in (0, other_than):
            await asyncio.sleep(0.01)
    return pid


@asynccontextmanager
async def running(supervised: Supervisor) -> AsyncIterator[None]:
    task = asyncio.create_task(supervised.run())
    try:
        yield
    finally:
        task.cancel()
        with suppress(asyncio.CancelledError):
            await task


def supervise(path: Path, *more: str) -> Supervisor:
    return Supervisor("test", command(path, *more), path, path.with_suffix(".log"))


def scenario(run: Callable[[Path], Coroutine[Any, Any, None]]) -> Callable[[Path], None]:
    def test(tmp_path: Path) -> None:
        asyncio.run(run(tmp_path / "p.sock"))

    return test


@scenario
async def test_one_that_runs_is_adopted(path: Path) -> None:
    with subprocess.Popen(command(path)) as earlier:
        await listening(path)
        supervised = supervise(path)
        async with running(supervised):
            async with asyncio.timeout(60):
                while supervised.view().state != "running":
                    await asyncio.sleep(0.01)
            assert supervised.view().pid == earlier.pid
        assert earlier.poll() is None  # it outlives its supervisor
        await supervised.stop()
        assert earlier.wait() == -signal.SIGTERM
        assert supervised.view().restarts == 0


@scenario
async def test_another_command_replaces_it(path: Path) -> None:
    with subprocess.Popen(command(path)) as earlier:
        await listening(path)
        supervised = supervise(path, "--other")
        async with asyncio.timeout(60):
            await supervised._adopt()
        assert supervised.view().state == "stopped"
        assert earlier.wait() == -signal.SIGTERM


@scenario
async def test_it_is_started_again_after_a_kill(path: Path) -> None:
    supervised = supervise(path)
    async with running(supervised):
        first = await listening(path)
        path.unlink()
        os.kill(first, signal.SIGKILL)
        second = await listening(path, other_than=first)
        assert second != first
        assert supervised.view().restarts == 1
        assert "status -9" in supervised.view().problem
    await supervised.stop()


def test_one_that_cannot_run_is_tried_at_growing_intervals(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    delays: list[float] = []
    sleep = asyncio.sleep

    async def note(delay: float) -> None:
        delays.append(delay)
        if len(delays) == 4:
            raise asyncio.CancelledError
        await sleep(0)

    async def run() -> None:
        failing = Supervisor("test", [sys.executable, "-c", "raise SystemExit(3)"], tmp_path / "s", tmp_path / "log")
        monkeypatch.setattr(asyncio, "sleep", note)
        with pytest.raises(asyncio.CancelledError):
            await failing.run()
        assert failing.view().state == "restarting"
        assert "status 3" in failing.view().problem

    asyncio.run(run())
    assert delays == [0.2, 0.4, 0.8, 1.6]

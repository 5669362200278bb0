"""Flows processes that tests run, and who gives them names."""

from __future__ import annotations

import asyncio
import struct
import subprocess
import sys
import threading
import time
from collections.abc import AsyncGenerator, Callable
from pathlib import Path
from typing import Any

from agent.api import client
from agent.api.server import serve
from agent.datapath import bpf
from agent.datapath.maps import Maps, possible_cpus

HOUR = 3600 * 10**9


class Process:
    """A running flows process, known to be up by its log."""

    def __init__(self, state_dir: Path, pin_dir: Path, *options: str) -> None:
        self.socket = state_dir / "flows.sock"
        command = [
            sys.executable,
            "-m",
            "agent.flows.process",
            "--state-dir",
            str(state_dir),
            "--pin-dir",
            str(pin_dir),
        ]
        self.child = subprocess.Popen([*command, "--node", "n1", *options], stderr=subprocess.PIPE, text=True)
        self.log: list[str] = []
        self._grown = threading.Condition()
        self._reader = threading.Thread(target=self._read)
        self._reader.start()

    def _read(self) -> None:
        assert self.child.stderr is not None
        for text in self.child.stderr:
            with self._grown:
                self.log.append(text)
                self._grown.notify_all()
        with self._grown:
            self.log.append("(end of log)")
            self._grown.notify_all()

    def logged(self, text: str, times: int = 1) -> None:
        """Wait until the log has had `text` so many times."""
        with self._grown:
            found = self._grown.wait_for(lambda: sum(text in entry for entry in self.log) >= times, timeout=30)
        assert found, f"{text!r} not in the log:\n{''.join(self.log)}"

    def ask(self, op: str, **arguments: Any) -> Any:
        return client.call(self.socket, op, **arguments)

    def observe(self, **arguments: Any) -> list[dict[str, Any]]:
        return list(client.stream(self.socket, "observe", timeout_s=30, **arguments))

    def ended(self) -> int:
        status = self.child.wait(30)
        self._reader.join()
        return status

    def close(self) -> None:
        self.child.kill()
        self.ended()
        assert self.child.stderr is not None
        self.child.stderr.close()


Starter = Callable[..., Process]


def taken(stats: dict[str, Any]) -> int:
    """Events that came out of the ring or did not get into it."""
    return int(stats["events_seen"] + stats["events_lost"])


class FakeAgent:
    """What the agent does for flows: names, from a socket of its own, in a thread of its own."""

    def __init__(self, state_dir: Path, lines: list[dict[str, Any]]) -> None:
        self._path = state_dir / "agent.sock"
        self._lines = lines
        self._more: asyncio.Queue[dict[str, Any]] = asyncio.Queue()
        self._loop = asyncio.new_event_loop()
        self._stop = asyncio.Event()
        self._up = threading.Event()
        self._thread = threading.Thread(target=self._loop.run_until_complete, args=(self._run(),))

    async def _run(self) -> None:
        async with await serve(self._path, {"names": self._names}):
            self._up.set()
            await self._stop.wait()

    async def _names(self, _arguments: dict[str, Any]) -> AsyncGenerator[dict[str, Any], None]:
        for line in self._lines:
            yield line
        while True:
            yield await self._more.get()

    def say(self, line: dict[str, Any]) -> None:
        self._loop.call_soon_threadsafe(self._more.put_nowait, line)

    def __enter__(self) -> FakeAgent:
        self._thread.start()
        assert self._up.wait(30)
        return self

    def __exit__(self, *_: object) -> None:
        self._loop.call_soon_threadsafe(self._stop.set)
        self._thread.join()
        self._loop.close()


def eventually(condition: Callable[[], bool], what: str) -> None:
    """For state that only asking shows."""
    deadline = time.monotonic() + 30
    while not condition():
        assert time.monotonic() < deadline, what
        time.sleep(0.01)


def raise_tally(maps: Maps, tally: int, value: int) -> None:
    """As if the datapath had counted that."""
    cells = struct.pack("=Q", value) + bytes(8 * (possible_cpus() - 1))
    bpf.map_update(maps["tallies"].fd, struct.pack("=I", tally), cells)

"""One container of a directory-mode pod: a command that is running, waits to be started again, or has ended."""

from __future__ import annotations

import asyncio
import os
import signal
import time
from collections.abc import Callable, Coroutine
from pathlib import Path
from typing import Any, Protocol

import msgspec

from agent import log as logs
from agent.endpoints import launch
from agent.endpoints.command import Command
from policies.model import ObjectRef

log = logs.get("processes")


class Backoff(msgspec.Struct, frozen=True):
    """Delays before a container is started again: none, then `initial_s`, doubling up to `maximum_s`; forgotten once it
    has run for `reset_s`. The shape is the kubelet's, the numbers those of KEP-4603."""

    initial_s: float = 1.0
    maximum_s: float = 60.0
    reset_s: float = 600.0

    def delay_s(self, restarts: int) -> float:
        """Before the restart that follows `restarts` others."""
        return min(self.initial_s * 2.0 ** min(restarts - 1, 32), self.maximum_s) if restarts else 0.0


class ContainerState(msgspec.Struct, frozen=True):
    """`state`: running, waiting (for its next start) or ended. `exit_status` is of its last run, None where unknown."""

    name: str
    state: str
    pid: int
    restarts: int
    exit_status: int | None


class Surroundings(Protocol):
    """What a container needs of agent.endpoints.processes.Processes."""

    backoff: Backoff

    def folder_of(self, pod: ObjectRef) -> Path: ...
    def launch(self, pod: ObjectRef, command: Command, netns: int, pid_file: Path, log: Path) -> int: ...
    async def end_session(self, leader: int) -> None: ...
    async def in_thread(self, function: Callable[..., int], *args: Any) -> int: ...
    def in_background(self, work: Coroutine[Any, Any, None]) -> asyncio.Task[None]: ...


class RunningContainer:
    """Keeps to the event loop's thread; only the launch itself is done in another."""

    def __init__(self, owner: Surroundings, pod: ObjectRef, name: str) -> None:
        self.name = name
        folder = owner.folder_of(pod)
        self.pid_file, self.log = folder / f"{name}.pid", folder / f"{name}.log"
        self._owner = owner
        self._pod = pod
        self._command: Command | None = None
        self._netns = -1
        self._restart = False
        self._digest = ""  # of the command that runs, or ran last
        self._pid, self._pidfd = 0, -1
        self._started = 0.0
        self._restarts = self._recent = 0  # recent ones count for the back-off
        self._exit_status: int | None = None
        self._timer: asyncio.TimerHandle | None = None
        self._end_asked = asyncio.Event()
        self._starting = asyncio.Lock()
        self._ended = asyncio.Event()
        self._ended.set()

    @property
    def is_running(self) -> bool:
        return not self._ended.is_set()

    def state(self) -> ContainerState:
        state = "running" if self.is_running else "waiting" if self._timer else "ended"
        return ContainerState(self.name, state, self._pid * self.is_running, self._restarts, self._exit_status)

    def adopt(self, process: launch.Running) -> None:
        """Take over the process an earlier agent started, or learn that it has ended."""
        self._digest = process.digest
        pidfd = launch.open_running(process)
        if pidfd is not None:
            self._watch(process.pid, pidfd)

    def fits(self, command: Command | None, netns: int) -> bool:
        """Whether what runs, or ran last, is that command in that network namespace."""
        if command is None or command.digest != self._digest:
            return False
        return not self.is_running or launch.netns_of(self._pid) in (0, os.fstat(netns).st_ino)

    def supply(self, command: Command, netns: int, restart: bool) -> None:
        """What to run, and in which network namespace (a descriptor that stays the caller's)."""
        self._command, self._netns, self._restart = command, netns, restart

    def is_due(self) -> bool:
        """Whether it has to be started: it does not run, nor waits to, nor has ended for good."""
        if self.is_running or self._timer or self._starting.locked():
            return False
        return self._restart or not self._digest

    async def start(self) -> None:
        """OSError where the process could not be made."""
        await asyncio.shield(self._owner.in_background(self._launch()))

    def terminate(self) -> None:
        """Ask it to end; from now on it is not started again."""
        self._cancel_restart()
        if self.is_running:
            launch.signal_group(self._pid, signal.SIGTERM)

    async def ended(self, timeout_s: float) -> None:
        """Wait until it has ended by itself, else make it."""
        async with self._starting:
            pass
        try:
            await asyncio.wait_for(self._ended.wait(), timeout_s)
        except TimeoutError:
            launch.signal_group(self._pid, signal.SIGKILL)
            await self._ended.wait()

    def let_go(self) -> None:
        """Stop watching; the process goes on."""
        self._cancel_restart()
        if self._pidfd >= 0:
            asyncio.get_running_loop().remove_reader(self._pidfd)
            os.close(self._pidfd)
            self._pidfd = -1

    def _cancel_restart(self) -> None:
        self._end_asked.set()
        if self._timer:
            self._timer.cancel()
            self._timer = None

    async def _launch(self) -> None:
        async with self._starting:
            if self._command is None or self._end_asked.is_set() or self.is_running:
                return
            pid = await self._owner.in_thread(
                self._owner.launch, self._pod, self._command, self._netns, self.pid_file, self.log
            )
            self._digest = self._command.digest
            self._watch(pid, os.pidfd_open(pid))
            if self._end_asked.is_set():
                launch.signal_group(pid, signal.SIGTERM)

    def _watch(self, pid: int, pidfd: int) -> None:
        self._pid, self._pidfd = pid, pidfd
        self._started = time.monotonic()
        self._ended.clear()
        asyncio.get_running_loop().add_reader(pidfd, self._on_end)

    def _on_end(self) -> None:
        asyncio.get_running_loop().remove_reader(self._pidfd)
        pidfd, self._pidfd = self._pidfd, -1
        self._owner.in_background(self._bury(pidfd))

    async def _bury(self, pidfd: int) -> None:
        """As in a container, nothing outlives its first process. It is reaped last: until then it keeps its number."""
        launch.signal_group(self._pid, signal.SIGKILL)
        try:
            await self._owner.end_session(self._pid)
        except TimeoutError as error:
            log.error("processes left", container=self.name, error=str(error))
        self._exit_status = launch.reap(pidfd)
        os.close(pidfd)
        self._ended.set()
        if self._restart and not self._end_asked.is_set():
            self._schedule(f"it ended with {'unknown status' if self._exit_status is None else self._exit_status}")

    def _schedule(self, reason: str) -> None:
        backoff = self._owner.backoff
        if time.monotonic() - self._started >= backoff.reset_s:
            self._recent = 0
        delay_s = backoff.delay_s(self._recent)
        self._recent += 1
        self._restarts += 1
        pod = f"{self._pod.namespace}/{self._pod.name}"
        log.warning(
            "container restarts", pod=pod, container=self.name, reason=reason, in_s=delay_s, output=str(self.log)
        )
        self._timer = asyncio.get_running_loop().call_later(delay_s, self._on_due)

    def _on_due(self) -> None:
        self._timer = None
        self._owner.in_background(self._start_again())

    async def _start_again(self) -> None:
        try:
            await self._launch()
        except OSError as error:
            self._schedule(f"it could not be started: {error}")

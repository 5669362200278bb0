"""A process beside the agent that outlives it: adopted if it runs already, started if not, started again if it ends."""

from __future__ import annotations

import asyncio
import os
import select
import signal
import socket
import struct
import subprocess
import time
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager, suppress
from pathlib import Path
from typing import Protocol

from agent import log as logs
from agent.api.address import socket_address
from agent.status import ProcessView

BACKOFF_S = (0.2, 10.0)
STEADY_S = 30.0
"""A process that ran for this long starts anew without delay."""
STOP_S = 5.0
SOON_S = 0.01
UNSEEN = -1

log = logs.get("supervisor")


class Kept(Protocol):
    """A process that is kept running, by the agent or by somebody else."""

    name: str

    def view(self) -> ProcessView:
        """How it is."""

    async def run(self) -> None:
        """Until cancelled; the process then goes on."""

    async def stop(self) -> None:
        """End it. Once `run` has been cancelled."""

    def leave(self) -> bool:
        """At the agent's start: end one of an earlier agent; whether there was one."""


class Supervisor:
    """Keeps one process running, which listens at `path`. It is known by who listens there, not by a pid file.

    A process that runs with another command line (other maps, another version's arguments) is replaced. `launcher`:
    words before the command, of a program that becomes it. `folder`: where it is started.
    """

    def __init__(
        self,
        name: str,
        command: Sequence[str],
        path: Path,
        log_path: Path,
        launcher: Sequence[str] = (),
        folder: Path | None = None,
    ) -> None:
        self.name = name
        self._command = tuple(command)
        self._launcher = tuple(launcher)
        self._folder = folder
        self._path = path
        self._log_path = log_path
        self._pidfd = -1
        self._child: subprocess.Popen[bytes] | None = None
        self._pid = 0
        self._restarts = 0
        self._problem = ""

    def view(self) -> ProcessView:
        state = "running" if self._pidfd >= 0 else ("restarting" if self._problem else "stopped")
        return ProcessView(
            state=state, pid=self._pid if state == "running" else 0, restarts=self._restarts, problem=self._problem
        )

    async def run(self) -> None:
        """Until cancelled; the process then goes on. `stop` ends it."""
        delay = BACKOFF_S[0]
        await self._adopt()
        while True:
            started = time.monotonic()
            if self._pidfd < 0:
                self._start()
            status = await self._ended()
            if time.monotonic() - started > STEADY_S:
                delay = BACKOFF_S[0]
            self._restarts += 1
            self._problem = f"it ended ({status}), see {self._log_path}; started again after {delay:g} s"
            log.warning("process ended", process=self.name, status=status, again_in_s=delay)
            await asyncio.sleep(delay)
            delay = min(delay * 2, BACKOFF_S[1])

    async def stop(self) -> None:
        """End the process, politely first. Once `run` has been cancelled."""
        if self._pidfd < 0:
            await self._adopt()
        if self._pidfd >= 0:
            await self._terminate()

    def leave(self) -> bool:
        """End one that an earlier agent started; whether there was one."""
        return end_listener(self._path)

    async def _adopt(self) -> None:
        await self._alone()
        pid = listener_pid(self._path)
        if not pid:
            return
        try:
            self._pidfd = os.pidfd_open(pid)
            running = tuple(os.fsdecode(Path(f"/proc/{pid}/cmdline").read_bytes()).split("\0")[:-1])
        except OSError:
            self._forget()
            return
        self._pid = pid
        if running == self._command:
            log.info("process adopted", process=self.name, pid=pid)
        else:
            log.info("process replaced: it was started with another command", process=self.name, pid=pid)
            await self._terminate()

    async def _alone(self) -> None:
        """Until nobody listens who cannot be seen from here."""
        with suppress(OSError):
            while listener_pid(self._path) == UNSEEN:
                if not self._problem:
                    self._problem = f"a process of another container listens at {self._path}: stop that one"
                    log.warning("waiting", process=self.name, problem=self._problem)
                async with connected(self._path) as reader:
                    await reader.read()
                await asyncio.sleep(BACKOFF_S[0])
        self._problem = ""

    def _start(self) -> None:
        with self._log_path.open("ab") as output:
            self._child = subprocess.Popen(
                [*self._launcher, *self._command],
                stdin=subprocess.DEVNULL,
                stdout=output,
                stderr=output,
                start_new_session=True,
                cwd=self._folder,
            )
        self._pid = self._child.pid
        self._pidfd = os.pidfd_open(self._pid)
        log.info("process started", process=self.name, pid=self._pid)

    async def _ended(self) -> str:
        """Wait for the end; how it ended, as far as a process that is no child of ours can be asked."""
        loop = asyncio.get_running_loop()
        done = asyncio.Event()
        descriptor = self._pidfd
        loop.add_reader(descriptor, done.set)
        try:
            await done.wait()
        finally:
            loop.remove_reader(descriptor)
        status = f"status {self._child.wait()}" if self._child else "status unknown"
        self._forget()
        return status

    async def _terminate(self) -> None:
        for number in (signal.SIGTERM, signal.SIGKILL):
            with suppress(ProcessLookupError):
                signal.pidfd_send_signal(self._pidfd, number)
            with suppress(TimeoutError):
                async with asyncio.timeout(STOP_S):
                    await self._ended()
                return

    def _forget(self) -> None:
        if self._pidfd >= 0:
            os.close(self._pidfd)
        self._pidfd, self._pid, self._child = -1, 0, None


@asynccontextmanager
async def connected(path: Path) -> AsyncIterator[asyncio.StreamReader]:
    """A connection to whoever listens at a UNIX socket, which ends with it. Raises OSError where nobody does."""
    with socket_address(path) as address:
        reader, writer = await asyncio.open_unix_connection(address)
    try:
        yield reader
    finally:
        writer.close()


def listener_pid(path: Path) -> int:
    """The process that listens at a UNIX socket; 0 where none does, UNSEEN where it has no number in this PID
    namespace: it runs in another container."""
    with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as probe:
        try:
            with socket_address(path) as address:
                probe.connect(address)
        except OSError:
            return 0
        credentials = probe.getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, struct.calcsize("3i"))
        return int(struct.unpack("3i", credentials)[0]) or UNSEEN


def is_left(path: Path, within_s: float) -> bool:
    """Whether nobody listens at a UNIX socket, or not any more within that time. Blocks."""
    deadline = time.monotonic() + within_s
    while (left_s := deadline - time.monotonic()) > 0:
        with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as probe:
            probe.settimeout(left_s)
            try:
                with socket_address(path) as address:
                    probe.connect(address)
                while probe.recv(4096):
                    pass
            except TimeoutError:
                return False
            except OSError:
                return True
        time.sleep(SOON_S)  # whoever listens may close what only listens, too
    return False


def end_listener(path: Path) -> bool:
    """End the process that listens at a UNIX socket, and wait until it has ended; whether there was one to be seen."""
    pid = listener_pid(path)
    try:
        descriptor = os.pidfd_open(pid) if pid > 0 else -1
    except ProcessLookupError:
        return False
    if descriptor < 0:
        return False
    ended = select.poll()
    ended.register(descriptor, select.POLLIN)
    try:
        for number in (signal.SIGTERM, signal.SIGKILL):
            signal.pidfd_send_signal(descriptor, number)
            if ended.poll(STOP_S * 1000):
                break
    finally:
        os.close(descriptor)
    return True

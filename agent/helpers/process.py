"""A helper's container: `python -m agent.helpers.process NAME STATE_DIR`.

Runs what the agent's order says, as soon as there is one and all it needs; runs something else when it changes, and
nothing when it goes. It ends with what it runs, for the kubelet to start it again, or when it is told to. Whoever else
listens at the helper's socket and can be seen from here is an earlier one, and is ended. A socket of what has ended is
removed: the next pod may not have its folder.
"""

from __future__ import annotations

import os
import select
import signal
import subprocess
import sys
from contextlib import suppress
from pathlib import Path

from agent import log as logs
from agent import privileges
from agent.helpers import order as orders
from agent.helpers.names import Name
from agent.helpers.order import Order
from agent.instance import Instance
from agent.sources.inotify import CLOSE_WRITE, CREATE, DELETE, MOVED_FROM, MOVED_TO, ONLY_DIRECTORIES, Inotify
from agent.supervisor import STOP_S, UNSEEN, end_listener, listener_pid

WATCHED = CLOSE_WRITE | CREATE | DELETE | MOVED_FROM | MOVED_TO | ONLY_DIRECTORIES
AGAIN_S = 1.0
"""How often to look whether a path that is needed is there, or another container has left the socket."""

log = logs.get("helper")


class Helper:
    def __init__(self, name: Name, path: Path) -> None:
        self._name = name
        self._path = path
        self._inotify = Inotify()
        self._running: Order | None = None
        self._child: subprocess.Popen[bytes] | None = None
        self._said = ""
        self._is_hindered = False
        self._told, self._wake = os.pipe2(os.O_CLOEXEC | os.O_NONBLOCK)

    def run(self) -> int:
        """The exit status, once it was told to end (0) or what it ran has ended."""
        for number in (signal.SIGTERM, signal.SIGINT):
            signal.signal(number, lambda *_: os.write(self._wake, b"!"))
        while True:
            self._watch()
            try:
                self._keep_to(self._wanted())
            except PermissionError as error:
                log.warning("cannot be ended: the container has to start again", helper=self._name, reason=str(error))
                return 1
            why = self._wait()
            if why == "told":
                with suppress(PermissionError):
                    self._end()
                return 0
            if why == "ended":
                assert self._child is not None
                status = self._child.wait()
                log.warning("it ended", helper=self._name, status=status)
                self._tidy()
                return status if status > 0 else 1

    def _wanted(self) -> Order | None:
        """What is to run now."""
        try:
            order = orders.read(self._path)
        except ValueError as error:
            self._say("waiting", str(error))
            return None
        self._is_hindered = True
        if order is None:
            self._say("waiting", f"for the agent to write {self._path}")
            self._is_hindered = False
        elif lacking := orders.missing(order.needs):
            self._say("waiting", f"for {lacking}")
            return None
        elif self._child is None and listener_pid(Path(order.socket)) == UNSEEN:
            self._say("waiting", f"for a process of another container to leave {order.socket}")
            return None
        return order

    def _keep_to(self, order: Order | None) -> None:
        if order == self._running:
            return
        self._end()
        if order is None:
            return
        if end_listener(Path(order.socket)):
            log.info("an earlier one was ended", helper=self._name)
        words = [*launcher(order), *order.command]
        self._child = subprocess.Popen(words, stdin=subprocess.DEVNULL, cwd=order.folder)
        self._running = order
        self._say("running", str(self._child.pid))

    def _wait(self) -> str:
        """ "told" or "ended"; "": something else may be wanted now."""
        poll = select.poll()
        poll.register(self._told, select.POLLIN)
        poll.register(self._inotify.fileno(), select.POLLIN)
        descriptor = os.pidfd_open(self._child.pid) if self._child else -1
        try:
            if descriptor >= 0:
                poll.register(descriptor, select.POLLIN)
            ready = {fd for fd, _ in poll.poll(None if self._child or not self._is_hindered else AGAIN_S * 1000)}
        finally:
            if descriptor >= 0:
                os.close(descriptor)
        for _ in self._inotify.read():
            pass
        if self._told in ready:
            return "told"
        return "ended" if descriptor in ready else ""

    def _watch(self) -> None:
        """The order's folder, or where its nearest folder that is there may get it."""
        wanted = folder = self._path.parent
        while True:
            try:
                self._inotify.add(folder, WATCHED)
            except (FileNotFoundError, NotADirectoryError):
                folder = folder.parent
                continue
            if folder == wanted or not _below(folder, wanted).exists():
                return
            folder = wanted  # it came meanwhile, and nobody will tell

    def _end(self) -> None:
        """Raises PermissionError where it has become another user's, whom this container may not end (CAP_KILL): it
        goes with the container."""
        child, self._child = self._child, None
        if child is None:
            return
        child.terminate()
        try:
            child.wait(STOP_S)
        except subprocess.TimeoutExpired:
            child.kill()
            child.wait()
        log.info("ended", helper=self._name)
        self._tidy()

    def _tidy(self) -> None:
        """Once it has ended."""
        order, self._running = self._running, None
        if order and not listener_pid(Path(order.socket)):
            with suppress(OSError):  # its folder may be its user's alone
                Path(order.socket).unlink(missing_ok=True)

    def _say(self, state: str, what: str) -> None:
        if (said := f"{state} {what}") != self._said:
            self._said = said
            log.info(state, helper=self._name, what=what)


def launcher(order: Order) -> list[str]:
    """Words before the command that leave it only what it needs. A container may have left it no more already."""
    if not order.reduced or os.geteuid() != privileges.ROOT:
        return []
    if not _has_more():
        return []
    return privileges.reduced(order.user)


def _has_more() -> bool:
    held = privileges.capabilities()["CapEff"]
    return bool(held & ~(1 << privileges.NET_RAW))


def _below(folder: Path, wanted: Path) -> Path:
    """What is to come in a folder, on the way to the one that is wanted."""
    return folder / wanted.relative_to(folder).parts[0]


def main() -> None:
    name, state_dir = sys.argv[1:]
    logs.configure("text", "info")
    sys.exit(Helper(Name(name), Instance(Path(state_dir)).order(name)).run())


if __name__ == "__main__":
    main()

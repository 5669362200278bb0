"""state.json: the numbers and addresses that were given out, so that a restarted agent gives the same ones.

When is a number on disk? Before it can matter to anyone who survives what we do not:

* SIGKILL of the agent. Pods, maps and connections go on with their numbers, and so does the page cache. `save` replaces
  the file (write aside, rename) before the transition that uses a new number is applied: the next agent reads it.
* A crash of the machine. Everything that knew a number (maps, pods, connections) is gone with it, so no save waits for
  the disk; fsync would only slow a pod's start. `flush` brings the file to the disk soon after, off the hot path.
  A file that the crash left empty or torn does not parse, and is handled as below.
* A file that cannot be read (torn, edited, of a newer version) is put aside under a name that says so, and reported.
  Numbers are hashes of their keys, probed on conflict, so a fresh start gives nearly all of them again; addresses of
  pods that are still running are read back from their namespaces by agent.loop.
"""

from __future__ import annotations

import os
import time
from pathlib import Path

import msgspec

VERSION = 1


class State(msgspec.Struct, forbid_unknown_fields=True):
    """`allocations`: pool name → key → number, as agent.identity.allocator gives them."""

    allocations: dict[str, dict[str, int]] = {}
    version: int = VERSION


class _Version(msgspec.Struct):
    version: int


class Damaged(Exception):
    """state.json could not be used and was put aside; the message is for people."""


class StateFile:
    def __init__(self, path: Path) -> None:
        self._path = path
        self._written = b""
        self._unflushed = False

    def load(self) -> State:
        """The saved state, a new one where there is none. Raises Damaged, after which load gives a new one."""
        try:
            content = self._path.read_bytes()
        except FileNotFoundError:
            return State()
        try:
            version = msgspec.json.decode(content, type=_Version).version
            if version != VERSION:
                raise ValueError(f"it is of version {version}, this agent writes version {VERSION}")
            state = msgspec.json.decode(content, type=State)
        except (ValueError, msgspec.MsgspecError) as error:
            aside = self._path.with_name(f"{self._path.name}.unusable-{time.time_ns()}")
            self._path.rename(aside)
            raise Damaged(
                f"{self._path} cannot be used ({error}); it was put aside as {aside.name} and numbers are given afresh"
            ) from None
        self._written = content
        return state

    def save(self, state: State) -> bool:
        """Replace the file if the state differs from what was written; whether it did. Does not wait for the disk."""
        content = msgspec.json.encode(state)
        if content == self._written:
            return False
        fresh = self._path.with_name(f".{self._path.name}.new")
        fresh.write_bytes(content)
        fresh.rename(self._path)
        self._written = content
        self._unflushed = True
        return True

    def flush(self) -> None:
        """Bring the last save to the disk. May take as long as the disk takes: not for the event loop's thread."""
        if not self._unflushed:
            return
        self._unflushed = False
        for path in (self._path, self._path.parent):
            descriptor = os.open(path, os.O_RDONLY)
            try:
                os.fsync(descriptor)
            finally:
                os.close(descriptor)

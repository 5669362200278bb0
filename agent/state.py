"""state.json: the numbers and addresses that were given out, so that a restarted agent gives the same ones.

When is a number on disk? Before it can matter to anyone who survives what we do not:

* SIGKILL of the agent. Pods, maps and connections go on with their numbers, and so does the page cache. Before the
  transition that uses a new number is applied, `append` adds a line to a journal beside the file: the next agent reads
  both. (Replacing the file takes milliseconds, as the file system then sees to its content; a line takes none.)
* A crash of the machine. Everything that knew a number (maps, pods, connections) is gone with it, so no save waits for
  the disk; fsync would only slow a pod's start. `flush` brings the files to the disk soon after, off the hot path.
  A file that the crash left empty or torn does not parse, and is handled as below.
* A file that cannot be read (torn, edited, of a newer version) is put aside under a name that says so, and reported.
  Numbers are hashes of their keys, probed on conflict, so a fresh start gives nearly all of them again; addresses of
  pods that are still running are read back from their namespaces (agent.numbers).

The journal holds what changed since state.json was written: to apply it again changes nothing. Its last line may be
torn; it then never took effect.
"""

from __future__ import annotations

import os
import time
from collections.abc import Mapping
from pathlib import Path

import msgspec

VERSION = 1
JOURNAL_BYTES = 1 << 20
"""A journal longer than this is taken up into state.json."""

Changes = Mapping[str, Mapping[str, int | None]]
"""Pool name → key → number; None: given up."""


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
        self._journal = path.with_name(f"{path.name}.journal")
        self._length = 0  # of the journal
        self._unflushed = False

    def load(self) -> State:
        """The saved state, a new one where there is none. Raises Damaged, after which load gives what can be read."""
        state = self._load_file()
        try:
            content = self._journal.read_bytes()
        except FileNotFoundError:
            return state
        whole = content[: content.rfind(b"\n") + 1]
        if whole != content:
            os.truncate(self._journal, len(whole))
        self._length = len(whole)
        try:
            for line in whole.splitlines():
                _apply(state, msgspec.json.decode(line, type=dict[str, dict[str, int | None]]))
        except (ValueError, msgspec.MsgspecError) as error:
            self._length = 0
            raise _put_aside(self._journal, error) from None
        return state

    def save(self, state: State) -> None:
        """Replace the file, and begin a new journal. Does not wait for the disk."""
        fresh = self._path.with_name(f".{self._path.name}.new")
        fresh.write_bytes(msgspec.json.encode(state))
        fresh.rename(self._path)
        self._journal.unlink(missing_ok=True)
        self._length = 0
        self._unflushed = True

    def append(self, changes: Changes) -> bool:
        """Add to what was saved. False where the journal is long: then it is time for `save`."""
        if not changes:
            return True
        line = msgspec.json.encode(changes) + b"\n"
        with self._journal.open("ab", buffering=0) as journal:
            journal.write(line)
        self._length += len(line)
        self._unflushed = True
        return self._length <= JOURNAL_BYTES

    def flush(self) -> None:
        """Bring what was saved to the disk. May take as long as the disk takes: not for the event loop's thread."""
        if not self._unflushed:
            return
        self._unflushed = False
        for path in (self._path, self._journal, self._path.parent):
            try:
                descriptor = os.open(path, os.O_RDONLY)
            except FileNotFoundError:
                continue
            try:
                os.fsync(descriptor)
            finally:
                os.close(descriptor)

    def _load_file(self) -> State:
        try:
            content = self._path.read_bytes()
        except FileNotFoundError:
            return State()
        try:
            version = msgspec.json.decode(content, type=_Version).version
            if version != VERSION:
                raise ValueError(f"it is of version {version}, this agent writes version {VERSION}")
            return msgspec.json.decode(content, type=State)
        except (ValueError, msgspec.MsgspecError) as error:
            damaged = _put_aside(self._path, error)
            if self._journal.exists():  # it says nothing without the file
                _put_aside(self._journal, error)
            raise damaged from None


def _apply(state: State, changes: Changes) -> None:
    for pool, numbers in changes.items():
        held = state.allocations.setdefault(pool, {})
        for key, number in numbers.items():
            held.pop(key, None)
            if number is not None:
                held[key] = number


def _put_aside(path: Path, error: Exception) -> Damaged:
    aside = path.with_name(f"{path.name}.unusable-{time.time_ns()}")
    path.rename(aside)
    return Damaged(f"{path} cannot be used ({error}); it was put aside as {aside.name} and numbers are given afresh")

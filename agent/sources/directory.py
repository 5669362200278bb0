"""A directory tree of manifests, watched with inotify: batches of changes, as soon as files are written.

Read are files named *.yaml, *.yml and *.json at any depth, symbolic links to files included; hidden files, hidden
directories and editors' temporary files are not. Files are named in Origins and Problems by their path in the tree.
"""

from __future__ import annotations

import asyncio
import os
import select
import stat
import time
from collections.abc import AsyncIterator, Iterable
from concurrent.futures import ThreadPoolExecutor
from errno import EISDIR
from pathlib import Path

from agent.objects import Object, Problem
from agent.sources.lastgood import LastGood, Update
from agent.sources.manifest import parse, unreadable
from agent.sources.source import Batch
from agent.sources.tree import Tree
from agent.sources.watches import Watches
from policies.model import ObjectRef

MAX_FILE_BYTES = 64 << 20


class DirectorySource:
    """Call `initial`, then iterate over `watch`, on one event loop; `close` at the end."""

    def __init__(self, path: Path, last_good_dir: Path) -> None:
        self._path = path
        self._tree = Tree()
        self._last_good = LastGood(last_good_dir)
        self._watches = Watches(path)
        self._writer = ThreadPoolExecutor(max_workers=1, thread_name_prefix="last-good")
        self._unsaved: list[Update] = []
        self._unwritten: list[Update] = []
        self._save_problem: list[Problem] = []
        self._shown: list[Problem] = []

    async def initial(self) -> Batch:
        """Everything there is now. Raises NotADirectoryError where there is no directory."""
        received_ns = time.monotonic_ns()
        if not self._path.is_dir():
            raise NotADirectoryError(f"{self._path} is not a directory: name the directory that holds the manifests")
        files = self._watches.scan()
        self._refresh(files)
        try:
            self._recall()
        except OSError as error:
            self._save_problem = [_about_last_good("read", error)]
        batch = self._settle(received_ns)
        self._shown = batch.problems
        self._save(prune=True)
        return batch

    async def watch(self) -> AsyncIterator[Batch]:
        """A batch for each burst of events that changes something.

        What was read is written to the last-good directory once its batch is done with, that is when the next one is
        asked for.
        """
        while True:
            self._save()
            await _readable(self._watches.fileno())
            received_ns = time.monotonic_ns()
            self._refresh(self._watches.changed())
            batch = self._settle(received_ns)
            if batch.changes or batch.problems != self._shown:
                self._shown = batch.problems
                yield batch

    def unread(self) -> bool:
        """Whether files may have changed that were not read yet."""
        waiting = select.poll()
        waiting.register(self._watches.fileno(), select.POLLIN)
        return bool(waiting.poll(0))

    async def saved(self) -> None:
        """Returns when all that was handed on is in the last-good directory."""
        self._save()
        await asyncio.wrap_future(self._writer.submit(lambda: None))

    def close(self) -> None:
        self._save()
        self._writer.shutdown()
        self._watches.close()

    # ---- reading

    def _refresh(self, files: Iterable[str]) -> None:
        for file in sorted(files):
            name = _shown_name(file)
            found = self._read(file)
            if found is None:
                self._watches.forget(file)
                self._tree.remove(name)
                self._unsaved.append(Update(name, None))
            elif isinstance(found, str):
                self._tree.put(unreadable(name, found))
            else:
                before = self._tree.manifests.get(name)
                manifest = parse(found, name, before)
                if manifest is not before:
                    self._tree.put(manifest)
                    self._unsaved.append(Update(name, found))

    def _read(self, file: str) -> bytes | str | None:
        """The content, why it cannot be had, or None where the file is gone."""
        if _shown_name(file) != file:
            return "the file's name is not printable UTF-8: rename it"
        path = self._path / file
        try:
            descriptor = os.open(path, os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC)
            try:
                return _content(descriptor)
            finally:
                os.close(descriptor)
        except (FileNotFoundError, NotADirectoryError):
            return "a symbolic link to a file that is not there" if path.is_symlink() else None
        except IsADirectoryError:
            return "a symbolic link to a directory" if path.is_symlink() else None
        except OSError as error:
            return f"cannot be read: {error.strerror}"

    def _settle(self, received_ns: int) -> Batch:
        changes = self._tree.settle()
        others = [*self._watches.problems, *self._save_problem]
        problems = sorted([*self._tree.problems, *others]) if others else self._tree.problems
        self._unsaved = [
            u if u.text is None else Update(u.file, u.text, self._tree.kept(u.file)) for u in self._unsaved
        ]
        return Batch(changes, problems, received_ns)

    # ---- last good versions

    def _recall(self) -> None:
        """What broken files held, and broken objects were, before this process started."""
        orphans: dict[ObjectRef, Object] | None = None
        for file, manifest in list(self._tree.manifests.items()):
            broken = {item.ref for item in manifest.items if item.object is None and item.ref is not None}
            whole = any(item.unidentified for item in manifest.items)
            if not broken and not whole:
                continue
            recalled = {r: o for r, o in self._last_good.objects(file).items() if whole or r in broken}
            if broken - recalled.keys():
                orphans = self._last_good.orphans(self._tree.manifests) if orphans is None else orphans
                recalled.update((r, o) for r, o in orphans.items() if r in broken and r not in recalled)
            self._tree.recall(manifest, recalled)

    def _save(self, *, prune: bool = False) -> None:
        if self._unsaved or prune:
            updates, self._unsaved = self._unsaved, []
            files = frozenset(self._tree.manifests) if prune else None
            self._writer.submit(self._write, updates, files)

    def _write(self, updates: list[Update], files: frozenset[str] | None) -> None:
        """In the writer's thread. What could not be written is tried again with what comes next."""
        self._unwritten += updates
        try:
            self._last_good.write(self._unwritten)
            if files is not None:
                self._last_good.prune(files)
        except OSError as error:
            self._save_problem = [_about_last_good("kept", error)]
        else:
            self._save_problem = []
            self._unwritten = []


def _about_last_good(what: str, error: OSError) -> Problem:
    return Problem(str(error.filename), 0, f"last good versions cannot be {what}: {error.strerror}")


def _content(descriptor: int) -> bytes | str:
    """What a file holds, or why that is no manifest. Raises OSError."""
    status = os.fstat(descriptor)
    if stat.S_ISDIR(status.st_mode):
        raise IsADirectoryError(EISDIR, os.strerror(EISDIR))
    if not stat.S_ISREG(status.st_mode):
        return "not a regular file"
    if status.st_size > MAX_FILE_BYTES:
        return f"larger than {MAX_FILE_BYTES >> 20} MiB: split it"
    with os.fdopen(descriptor, "rb", closefd=False) as opened:
        return opened.read()


async def _readable(descriptor: int) -> None:
    """Waits without leaving a reader behind, which would spin while a batch is being worked on."""
    loop = asyncio.get_running_loop()
    ready = loop.create_future()

    def wake() -> None:
        if not ready.done():
            ready.set_result(None)

    loop.add_reader(descriptor, wake)
    try:
        await ready
    finally:
        loop.remove_reader(descriptor)


def _shown_name(file: str) -> str:
    """The path as it can be printed."""
    return file if file.isprintable() else file.encode("utf-8", "surrogateescape").decode("utf-8", "backslashreplace")

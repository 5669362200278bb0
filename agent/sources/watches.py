"""Which manifest files of a tree may have changed: watches on its directories and on what symbolic links lead to."""

from __future__ import annotations

import os
import stat
from contextlib import suppress
from errno import ENOSPC
from pathlib import Path, PurePosixPath

from agent.objects import Problem
from agent.sources import inotify
from agent.sources.inotify import Event, Inotify

SUFFIXES = (".yaml", ".yml", ".json")

_GONE = (FileNotFoundError, NotADirectoryError)
_ARRIVED = inotify.CREATE | inotify.MOVED_TO
_MASK = (
    inotify.CLOSE_WRITE | inotify.MOVED_FROM | inotify.DELETE | _ARRIVED
    | inotify.DELETE_SELF | inotify.MOVE_SELF | inotify.ONLY_DIRECTORIES
)  # fmt: skip


def is_hidden(name: str) -> bool:
    """Hidden, or an editor's temporary file."""
    return name.startswith((".", "#")) or name.endswith("~")


class Watches:
    """Files and directories are named by their path below the root; the root itself is ""."""

    def __init__(self, root: Path) -> None:
        self._root = root
        self._inotify = Inotify()
        self._directories: dict[int, str] = {}  # by watch
        self._watches: dict[str, int] = {}  # by directory
        self._targets: dict[int, dict[str, set[str]]] = {}  # by watch, name in it: the links that lead there
        self._links: dict[str, tuple[int, str]] = {}  # link: where it leads, as keys of _targets
        self._files: set[str] = set()
        self._ancestor = -1  # watch on what is there of the root's parents while the root is not
        self._problems: dict[str, str] = {}

    def fileno(self) -> int:
        """Readable when `changed` has something to do."""
        return self._inotify.fileno()

    def close(self) -> None:
        self._inotify.close()

    @property
    def problems(self) -> list[Problem]:
        return [Problem(file or ".", 0, message) for file, message in sorted(self._problems.items())]

    def scan(self) -> set[str]:
        """Watch all directories there are now; the files there are, and those there were."""
        found = set(self._files)
        before = set(self._watches)
        self._problems.clear()
        if self._ancestor >= 0:
            watch, self._ancestor = self._ancestor, -1
            self._release(watch)
        visited: set[str] = set()
        self._scan("", visited, found)
        for directory in before - visited:
            self._unwatch(directory)
        if "" not in visited:
            self._problems[""] = "the directory of manifests is not there"
            if self._await_root():
                return found | self.scan()
        return self._look(found)

    def changed(self) -> set[str]:
        """The files that events say may have changed, appeared or gone."""
        found: set[str] = set()
        everything = False
        for event in self._inotify.read():
            everything |= self._take(event, found)
        return found | self.scan() if everything else self._look(found)

    def forget(self, file: str) -> None:
        """The file was found to be gone."""
        self._files.discard(file)
        self._unlink(file)

    # ---- events

    def _take(self, event: Event, found: set[str]) -> bool:
        """Add the files an event is about; True where only a scan can tell."""
        if event.mask & inotify.OVERFLOW:
            return True
        if event.watch == self._ancestor:
            return True
        directory = self._directories.get(event.watch)
        lost = event.mask & (inotify.DELETE_SELF | inotify.MOVE_SELF | inotify.IGNORED)
        for name, links in self._targets.get(event.watch, {}).items():
            if lost or name == event.name:
                found |= links
        if event.mask & inotify.IGNORED:
            self._targets.pop(event.watch, None)
            self._directories.pop(event.watch, None)
            if directory is not None and self._watches.get(directory) == event.watch:
                del self._watches[directory]
        if directory is None:
            return False
        if event.name:
            self._entry(directory, event, found)
        return directory == "" and bool(lost)

    def _entry(self, directory: str, event: Event, found: set[str]) -> None:
        path = f"{directory}/{event.name}" if directory else event.name
        if is_hidden(event.name):
            # A ConfigMap volume is changed by replacing the hidden link that its files lead through.
            found.update(link for link in self._links if _parent(link) == directory)
        elif event.mask & inotify.IS_DIRECTORY:
            if event.mask & _ARRIVED:
                self._scan(path, set(), found)
            else:
                self._left(path, found)
        elif event.name.endswith(SUFFIXES):
            if not event.mask & inotify.CREATE or self._is_whole(path):
                found.add(path)
        else:
            self._check_directory_link(path)

    def _left(self, directory: str, found: set[str]) -> None:
        """A directory is gone, and all below it."""
        below = directory + "/"
        found.update(file for file in self._files if file.startswith(below))
        for path in [d for d in self._watches if d == directory or d.startswith(below)]:
            self._unwatch(path)
        for path in [p for p in self._problems if p == directory or p.startswith(below)]:
            del self._problems[path]

    def _is_whole(self, file: str) -> bool:
        """Whether a file that was just created is a link to content, rather than one that is still to be written."""
        try:
            status = (self._root / file).lstat()
        except _GONE:
            return False
        return status.st_nlink > 1 or stat.S_ISLNK(status.st_mode)

    # ---- directories

    def _scan(self, top: str, visited: set[str], found: set[str]) -> None:
        """Watch a directory and those below it, each before it is listed, so that nothing comes between."""
        pending = [top]
        while pending:
            directory = pending.pop()
            try:
                self._watch(directory)
                visited.add(directory)
                pending += self._list(directory, found)
            except _GONE:
                continue
            except OSError as error:
                hint = ": raise the sysctl fs.inotify.max_user_watches" if error.errno == ENOSPC else ""
                self._problems[directory] = f"the directory cannot be watched: {error.strerror}{hint}"
                visited.add(directory)

    def _list(self, directory: str, found: set[str]) -> list[str]:
        """Add the manifests in a directory; the directories in it."""
        inner: list[str] = []
        with os.scandir(self._root / directory) as entries:
            for entry in entries:
                path = f"{directory}/{entry.name}" if directory else entry.name
                if is_hidden(entry.name):
                    continue
                if entry.is_dir(follow_symlinks=False):
                    inner.append(path)
                elif entry.name.endswith(SUFFIXES):
                    found.add(path)
                elif entry.is_symlink():
                    self._check_directory_link(path)
        return inner

    def _watch(self, directory: str) -> None:
        watch = self._inotify.add(self._root / directory, _MASK)
        if self._watches.get(directory, watch) != watch:
            self._unwatch(directory)  # another directory had this name
        moved_from = self._directories.get(watch, directory)
        if moved_from != directory:
            del self._watches[moved_from]
        self._directories[watch] = directory
        self._watches[directory] = watch

    def _unwatch(self, directory: str) -> None:
        watch = self._watches.pop(directory, None)
        if watch is not None and self._directories.get(watch) == directory:
            del self._directories[watch]
            self._release(watch)

    def _release(self, watch: int) -> None:
        """One directory has one watch, whatever for."""
        if watch not in self._directories and watch not in self._targets and watch != self._ancestor:
            self._inotify.remove(watch)

    def _await_root(self) -> bool:
        """Watch the nearest directory above the root that is there; True where the root has come back meanwhile."""
        for parent in self._root.absolute().parents:
            with suppress(FileNotFoundError, NotADirectoryError):
                self._ancestor = self._inotify.add(parent, _MASK)
                break
        return self._root.is_dir()

    # ---- symbolic links

    def _check_directory_link(self, path: str) -> None:
        full = self._root / path
        if full.is_symlink() and full.is_dir():
            self._problems[path] = "a symbolic link to a directory is not followed: manifests in it are not read"
        else:
            self._problems.pop(path, None)

    def _look(self, files: set[str]) -> set[str]:
        """Note where files that are links lead, so that a change there is noticed."""
        self._files |= files
        for file in files:
            full = self._root / file
            if full.is_symlink():
                self._link(file, PurePosixPath(os.path.realpath(full)))
            elif file in self._links:
                self._unlink(file)
        return files

    def _link(self, file: str, target: PurePosixPath) -> None:
        try:
            watch = self._inotify.add(Path(target.parent), _MASK)
        except OSError:
            self._unlink(file)
            return
        if self._links.get(file) != (watch, target.name):
            self._unlink(file)
            self._links[file] = (watch, target.name)
            self._targets.setdefault(watch, {}).setdefault(target.name, set()).add(file)

    def _unlink(self, file: str) -> None:
        watch, name = self._links.pop(file, (-1, ""))
        names = self._targets.get(watch, {})
        names.get(name, set()).discard(file)
        if name in names and not names[name]:
            del names[name]
        if watch in self._targets and not names:
            del self._targets[watch]
            self._release(watch)


def _parent(path: str) -> str:
    return path.rpartition("/")[0]

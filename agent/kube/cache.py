"""What was last seen of the API server's objects, on disk, so that a node can start without it.

An SQLite file, written behind by a thread of its own. It is of use only as a whole: a policy that it lacks would let
through what the policy denies. So where it cannot be written it is given up, and begun anew.
"""

from __future__ import annotations

import asyncio
import os
import sqlite3
from collections.abc import Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import closing, suppress
from pathlib import Path

import msgspec

VERSION = 1
"""Of the tables, and of what is kept of an object."""
OTHERS = 0o077
"""Permission bits of all but the owner: it may hold Secrets."""

_TABLES = """
CREATE TABLE IF NOT EXISTS object (
  file TEXT PRIMARY KEY, resource TEXT NOT NULL, version TEXT NOT NULL, generation INTEGER NOT NULL,
  uid TEXT NOT NULL,  good BLOB, broken BLOB
) WITHOUT ROWID;
CREATE TABLE IF NOT EXISTS whole (resource TEXT PRIMARY KEY) WITHOUT ROWID;
CREATE TABLE IF NOT EXISTS about (identity TEXT PRIMARY KEY) WITHOUT ROWID;
"""
_PUT = """
INSERT INTO object VALUES (:file, :resource, :version, :generation, :uid, :good, :broken)
ON CONFLICT (file) DO UPDATE SET resource = excluded.resource, version = excluded.version,
  generation = excluded.generation, uid = excluded.uid, good = coalesce(excluded.good, good), broken = excluded.broken
"""
_FORGET = ("DELETE FROM object", "DELETE FROM whole", "DELETE FROM about")
_ROWS = "SELECT file, resource, version, generation, uid, good, broken FROM object"


class Row(msgspec.Struct, frozen=True):
    """`resource`: its key. `good`: the text, where it is valid; else that of the last version that was (None: there was
    none), and the present one is `broken`. To put a broken text leaves the good one that is there."""

    file: str
    resource: str
    version: str
    generation: int
    uid: str
    good: bytes | None
    broken: bytes | None = None


class Cache:
    """`identity`: what the objects depend on besides the cluster. With another one those on disk are forgotten.

    `problem`: why it is not written; it is then empty, and after `renew` must be told of everything again.
    """

    def __init__(self, path: Path, identity: str) -> None:
        self.problem = ""
        self.put_aside: Path | None = None
        """Where a damaged file is now."""
        self._path = path
        self._identity = f"{VERSION} {identity}"
        self._pending: list[Row | str] = []  # or the file that is gone
        self._whole: frozenset[str] | None = None
        self._database: sqlite3.Connection | None = None
        self._thread = ThreadPoolExecutor(max_workers=1, thread_name_prefix="objects-db")
        self.problem = self._open()

    def close(self) -> None:
        """Once all is written."""
        self.commit()
        self._thread.shutdown()
        if self._database is not None:
            self._database.close()

    # ---- reading, before anything is written

    def complete(self) -> frozenset[str]:
        """Keys of the resources that are there as a whole."""
        if self._database is None:
            return frozenset()
        return frozenset(key for (key,) in self._database.execute("SELECT resource FROM whole"))

    def rows(self) -> Iterator[Row]:
        """Where it turns out to be damaged they end early: there is then a `problem`."""
        if self._database is None:
            return
        try:
            with closing(self._database.execute(_ROWS)) as found:
                for row in found:
                    yield Row(*row)
        except sqlite3.Error as error:
            self.problem = self._discard(str(error))

    # ---- writing: in effect after `commit`

    def put(self, row: Row) -> None:
        self._pending.append(row)

    def remove(self, file: str) -> None:
        self._pending.append(file)

    def whole(self, resources: Iterable[str]) -> None:
        """All objects of these resources, and of no others, are here."""
        self._whole = frozenset(resources)

    def commit(self) -> Future[None] | None:
        """The thread is to write it down: done when it has, or has found a `problem`. None: there is nothing."""
        if not self._pending and self._whole is None:
            return None
        pending, self._pending = self._pending, []
        whole, self._whole = self._whole, None
        return self._thread.submit(self._write, pending, whole)

    async def written(self) -> None:
        """Returns when all that was committed is."""
        await asyncio.wrap_future(self._thread.submit(lambda: None))

    async def renew(self) -> bool:
        """Begin anew; whether that worked. What comes after this is written to the new file, and nothing else."""
        self.problem = await asyncio.wrap_future(self._thread.submit(self._open))
        return not self.problem

    # ---- in the thread

    def _write(self, pending: list[Row | str], whole: frozenset[str] | None) -> None:
        if self._database is None:
            return
        try:
            with self._database:  # one transaction
                self._database.execute("BEGIN")
                for entry in pending:
                    if isinstance(entry, str):
                        self._database.execute("DELETE FROM object WHERE file = ?", (entry,))
                    else:
                        self._database.execute(_PUT, msgspec.structs.asdict(entry))
                if whole is not None:
                    self._database.execute("DELETE FROM whole")
                    self._database.executemany("INSERT INTO whole VALUES (?)", [(key,) for key in sorted(whole)])
        except sqlite3.Error as error:
            self.problem = self._discard(str(error), keep=False)

    # ---- the file

    def _open(self) -> str:
        """What is wrong: "" where nothing is."""
        try:
            self._connect()
        except sqlite3.DatabaseError as error:
            self._discard(str(error))
        except OSError as error:
            return self._discard(str(error))
        else:
            return ""
        try:  # what was there is out of the way
            self._connect()
        except (sqlite3.Error, OSError) as error:
            return self._discard(str(error))
        return ""

    def _connect(self) -> None:
        """Raises OSError, sqlite3.Error."""
        self._path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
        descriptor = os.open(self._path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
        try:
            if os.fstat(descriptor).st_mode & OTHERS:
                os.fchmod(descriptor, 0o600)
        finally:
            os.close(descriptor)
        self._database = database = sqlite3.connect(self._path, isolation_level=None, check_same_thread=False)
        database.execute("PRAGMA journal_mode = WAL")
        database.execute("PRAGMA synchronous = NORMAL")  # a power cut may lose what came last, and breaks nothing
        if (found := database.execute("PRAGMA quick_check(1)").fetchone()) != ("ok",):
            raise sqlite3.DatabaseError(str(found[0]))
        database.executescript(_TABLES)
        if database.execute("SELECT identity FROM about").fetchall() != [(self._identity,)]:
            with database:
                database.execute("BEGIN")
                for forget in _FORGET:
                    database.execute(forget)
                database.execute("INSERT INTO about VALUES (?)", (self._identity,))

    def _discard(self, why: str, *, keep: bool = True) -> str:
        """What is on disk is not what is known: nobody is to start from it. `keep` it for those who look into it."""
        if self._database is not None:
            with suppress(sqlite3.Error):
                self._database.close()
            self._database = None
        aside = self._path.with_name(self._path.name + ".damaged")
        with suppress(OSError):
            if keep:
                self._path.replace(aside)
                self.put_aside = aside
            else:
                self._path.unlink()
        for suffix in ("-wal", "-shm"):
            with suppress(OSError):
                self._path.with_name(self._path.name + suffix).unlink()
        return why

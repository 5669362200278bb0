"""names.json: the table, so that a restarted proxy knows what pods were told.

The file is replaced whole; beside it a journal has a line for each change since. A line that takes effect is written
before the answer it is about reaches a pod, without waiting for the disk: it outlives the process, and what a crash of
the machine loses no connection outlives either. A file that cannot be read is put aside: names are then learned anew.
"""

from __future__ import annotations

import time
from collections.abc import Iterable
from pathlib import Path
from typing import IO

import msgspec

from l7proxy.dns.table import Table
from policies.address import format_address, parse_address

JOURNAL_BYTES = 4 << 20
"""A journal longer than this is taken up into the file."""

_encoder = msgspec.json.Encoder()


class _Saved(msgspec.Struct, forbid_unknown_fields=True):
    version: int
    names: dict[str, dict[str, float]]


class _Line(msgspec.Struct, omit_defaults=True):
    """`ends`: name → address → when it ends; `gone`: pairs that were forgotten."""

    ends: dict[str, dict[str, float]] = {}
    gone: list[tuple[str, str]] = []


_VERSION = 1


class Store:
    def __init__(self, path: Path) -> None:
        self._path = path
        self._journal_path = _journal_of(path)
        self._journal: IO[bytes] | None = None
        self._length = 0

    def load(self, table: Table, now_s: float) -> str:
        """Fill an empty table; all lives for the shortest TTL once more, as its last ends may not have been written.
        What is wrong with the files, for people; "" where nothing is."""
        names, damaged = _read(self._path, self._journal_path)
        problem = "; ".join(_put_aside(path, error) for path, error in damaged.items())
        for name, held in names.items():
            for address, end in held.items():
                table.restore(name, address, max(end, table.end(0, now_s)))
        self.save(table)
        return problem

    def save(self, table: Table) -> None:
        """Replace the file, and begin a new journal."""
        names = {name: {format_address(a): end for a, end in held.items()} for name, held in table.items()}
        fresh = self._path.with_name(f".{self._path.name}.new")
        fresh.write_bytes(_encoder.encode(_Saved(_VERSION, names)))
        fresh.rename(self._path)
        self.close()
        self._journal = self._journal_path.open("wb", buffering=0)
        self._length = 0

    def note(self, ends: dict[str, dict[bytes, float]], gone: Iterable[tuple[str, bytes]]) -> bool:
        """Add to what was saved. False where the journal is long: then it is time for `save`. Raises OSError."""
        assert self._journal is not None, "load comes first"
        texts = {name: {format_address(a): end for a, end in held.items()} for name, held in ends.items()}
        line = _encoder.encode(_Line(texts, [(name, format_address(a)) for name, a in gone])) + b"\n"
        self._journal.write(line)
        self._length += len(line)
        return self._length <= JOURNAL_BYTES

    def close(self) -> None:
        if self._journal is not None:
            self._journal.close()
            self._journal = None


def read(path: Path) -> dict[str, dict[bytes, float]]:
    """Name → address → when it ends, as a proxy that runs or ran has written it; what cannot be read is left out."""
    return _read(path, _journal_of(path))[0]


def _read(path: Path, journal: Path) -> tuple[dict[str, dict[bytes, float]], dict[Path, Exception]]:
    """And which file cannot be used, and why."""
    names: dict[str, dict[bytes, float]] = {}
    damaged: dict[Path, Exception] = {}
    try:
        saved = msgspec.json.decode(path.read_bytes(), type=_Saved)
        if saved.version != _VERSION:
            raise ValueError(f"it is of version {saved.version}, this is version {_VERSION}")
        names = _parsed(saved.names)
    except FileNotFoundError:
        pass
    except (ValueError, msgspec.MsgspecError) as error:
        damaged[path] = error
    try:
        for line in journal.read_bytes().split(b"\n")[:-1]:  # the last may be torn
            change = msgspec.json.decode(line, type=_Line)
            for name, ends in _parsed(change.ends).items():
                names.setdefault(name, {}).update(ends)
            for name, text in change.gone:
                names.get(name, {}).pop(parse_address(text), None)
    except FileNotFoundError:
        pass
    except (ValueError, msgspec.MsgspecError) as error:
        damaged[journal] = error
    return names, damaged


def _put_aside(path: Path, error: Exception) -> str:
    aside = path.with_name(f"{path.name}.unusable-{time.time_ns()}")
    path.rename(aside)
    return f"{path} cannot be used ({error}); it was put aside as {aside.name} and names are learned anew"


def _journal_of(path: Path) -> Path:
    return path.with_name(f"{path.name}.journal")


def _parsed(names: dict[str, dict[str, float]]) -> dict[str, dict[bytes, float]]:
    return {name: {parse_address(text): end for text, end in held.items()} for name, held in names.items()}

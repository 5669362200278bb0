"""The last good text of each manifest file, on disk, so that it is known after a restart.

One record a file: the file's text as it was last read, and before it, cut out of earlier texts, the documents of
objects that this text only breaks. Records are replaced by renaming; they are not flushed, so a power cut may lose
the newest. They may hold Secrets: nobody but their owner can read them.
"""

from __future__ import annotations

import os
from collections.abc import Collection, Iterator, Mapping
from hashlib import blake2b
from pathlib import Path

import msgspec

from agent.objects import Object
from agent.sources.documents import split
from agent.sources.manifest import parse
from agent.sources.yaml_reader import BadYaml
from policies.model import ObjectRef

_SUFFIX = ".msgpack"
OTHERS = 0o077
"""Permission bits of all but the owner."""


class Part(msgspec.Struct, frozen=True):
    """Text with `before` lines before it in its file. `refs`: the objects meant; None: all that are valid."""

    text: bytes
    before: int = 0
    refs: tuple[ObjectRef, ...] | None = None


class Record(msgspec.Struct, frozen=True):
    file: str
    parts: tuple[Part, ...]


class Update(msgspec.Struct, frozen=True):
    """A file's text now, None where it is gone, and the objects it breaks, with the file their good text was in."""

    file: str
    text: bytes | None
    kept: Mapping[ObjectRef, str] = {}


class LastGood:
    """A directory of records. Nothing else is to be in it."""

    def __init__(self, path: Path) -> None:
        self._path = path

    def objects(self, file: str) -> dict[ObjectRef, Object]:
        record = self._read(self._where(file))
        return _objects(record) if record is not None and record.file == file else {}

    def orphans(self, files: Collection[str]) -> dict[ObjectRef, Object]:
        """Objects of the files that are no longer there."""
        found: dict[ObjectRef, Object] = {}
        for record in self._records():
            if record.file not in files:
                found.update(_objects(record))
        return found

    def write(self, updates: list[Update]) -> None:
        """Raises OSError."""
        self._path.mkdir(mode=0o700, parents=True, exist_ok=True)
        for update in updates:
            if update.text is not None:
                kept = self._cut(update)
                self._replace(Record(update.file, (*kept, Part(update.text))))
        for update in updates:
            if update.text is None:
                self._where(update.file).unlink(missing_ok=True)

    def prune(self, files: Collection[str]) -> None:
        """Forget the files that are no longer there."""
        keep = {self._where(file).name for file in files}
        for path in self._path.glob("*"):
            if path.name not in keep:
                path.unlink(missing_ok=True)

    def _cut(self, update: Update) -> tuple[Part, ...]:
        """The documents that hold the good text of the objects kept."""
        parts: list[Part] = []
        wanted = set(update.kept)
        for file in dict.fromkeys((update.file, *update.kept.values())):
            record = self._read(self._where(file)) if wanted else None
            for part in record.parts if record is not None else ():
                for piece in _pieces(part, file):
                    refs = tuple(sorted(wanted.intersection(_valid(piece, file))))
                    wanted.difference_update(refs)
                    if refs:
                        parts.append(Part(piece.text, piece.before, refs))
        return tuple(parts)

    def _where(self, file: str) -> Path:
        return self._path / (blake2b(file.encode(), digest_size=16).hexdigest() + _SUFFIX)

    def _records(self) -> Iterator[Record]:
        for path in sorted(self._path.glob("*" + _SUFFIX)):
            record = self._read(path)
            if record is not None:
                yield record

    def _read(self, path: Path) -> Record | None:
        """None where there is none, or one that a power cut left incomplete."""
        try:
            return _DECODER.decode(path.read_bytes())
        except (FileNotFoundError, msgspec.DecodeError):
            return None

    def _replace(self, record: Record) -> None:
        path = self._where(record.file)
        data = msgspec.msgpack.encode(record)
        try:
            status = path.stat()
            if status.st_size == len(data) and not status.st_mode & OTHERS and path.read_bytes() == data:
                return
        except FileNotFoundError:
            pass
        new = path.with_suffix(".new")
        new.unlink(missing_ok=True)
        with os.fdopen(os.open(new, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o600), "wb") as file:
            file.write(data)
        new.replace(path)


_DECODER = msgspec.msgpack.Decoder(Record)


def _objects(record: Record) -> dict[ObjectRef, Object]:
    found: dict[ObjectRef, Object] = {}
    for part in record.parts:
        for ref, value in _valid(part, record.file).items():
            found.setdefault(ref, value)
    return found


def _valid(part: Part, file: str) -> dict[ObjectRef, Object]:
    """The first valid object of each reference that is meant."""
    found: dict[ObjectRef, Object] = {}
    for item in parse(part.text, file).items:
        if item.object is not None and (part.refs is None or item.object.ref in part.refs):
            value = item.moved(part.before).object
            assert value is not None
            found.setdefault(value.ref, value)
    return found


def _pieces(part: Part, file: str) -> Iterator[Part]:
    """One part for each document."""
    try:
        for chunk in split(part.text, file):
            yield Part(chunk.text, part.before + chunk.before, part.refs)
    except BadYaml:
        return

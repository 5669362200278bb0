"""The documents of a manifest file: where each begins, and its values whether it is written in YAML or JSON."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from itertools import pairwise
from typing import Any, TypeVar

import msgspec

from agent.sources import schema, yaml_reader
from agent.sources.yaml_reader import BadYaml, Fault

T = TypeVar("T")

# At the start of a line these end a document whatever they stand in: YAML 1.1 allows neither inside a scalar.
_MARKER = re.compile(rb"^(?:---|\.\.\.)(?=[ \t\r\n]|\Z)", re.M)
_NOTHING = re.compile(rb"(?:[ \t]*(?:(?:#|%|\.\.\.)[^\n]*)?\r?(?:\n|\Z))*\Z")
_BLANKS = b" \t\r\n"
_BYTE_OFFSET = re.compile(r"\(byte (\d+)\)")


class Chunk(msgspec.Struct, gc=False):
    """The text of one document, and how many lines stand before it."""

    text: bytes
    before: int


def split(text: bytes, file: str) -> Iterator[Chunk]:
    """The documents of a file, whose name tells the language: .json, or else YAML. Raises BadYaml."""
    try:
        text.decode()
    except UnicodeDecodeError as error:
        line = text[: error.start].count(b"\n")
        raise BadYaml([Fault(line, "not UTF-8 text: save the file as UTF-8")], None) from None
    plain = text.removeprefix(b"\xef\xbb\xbf")
    return _split_json(plain) if file.endswith(".json") else _split_yaml(plain)


def _split_yaml(text: bytes) -> Iterator[Chunk]:
    """By the lines that mark the start or end of a document. What holds only comments is left out."""
    starts = [0, *(m.start() for m in _MARKER.finditer(text)), len(text)]
    line = 0
    for start, end in pairwise(starts):
        chunk = text[start:end]
        body = chunk[3:] if chunk.startswith((b"---", b"...")) else chunk
        if not _NOTHING.match(body):
            # The marker gives way to blanks, so that columns and lines stay what they are.
            yield Chunk(chunk if chunk.startswith(b"---") else b"   " * (body is not chunk) + body, line)
        line += chunk.count(b"\n")


def _split_json(text: bytes) -> Iterator[Chunk]:
    """The items of a list one by one, or the whole text. Raises BadYaml where it is not JSON."""
    try:
        file = _JSON_FILE.decode(text)
    except msgspec.ValidationError:
        file = schema.JsonFile()
    except msgspec.DecodeError as error:
        raise _bad_json(text, error) from None
    except RecursionError:
        raise BadYaml([Fault(0, "nested too deeply")], None) from None
    if file.items is None or not (file.kind or "").endswith("List"):
        yield Chunk(text, 0)
        return
    position = max(0, text.find(b"[", max(0, text.find(b'"items"'))))
    line = text.count(b"\n", 0, position)
    for item in file.items:
        body = bytes(item)
        start = max(position, text.find(body[:1], position))  # between items are only blanks and a comma
        line += text.count(b"\n", position, start)
        yield Chunk(body, line)
        position = start + len(body)
        line += body.count(b"\n")


def _bad_json(text: bytes, error: msgspec.DecodeError) -> BadYaml:
    offset = _BYTE_OFFSET.search(str(error))
    line = text[: int(offset[1])].count(b"\n") if offset else text.rstrip().count(b"\n")
    message = f"not valid JSON: {_BYTE_OFFSET.sub('', str(error)).removeprefix('JSON is malformed: ').strip()}"
    try:
        document = yaml_reader.read(text)
    except BadYaml as bad:
        return BadYaml([Fault(line, message)], bad.partial)
    return BadYaml([Fault(line, message)], document.value if document else None)


_JSON_FILE = msgspec.json.Decoder(schema.JsonFile)


_DECODERS: dict[type, msgspec.json.Decoder[Any]] = {}


def _decoder(kind: type[T]) -> msgspec.json.Decoder[T]:
    decoder = _DECODERS.get(kind)
    if decoder is None:
        decoder = _DECODERS[kind] = msgspec.json.Decoder(kind)
    return decoder


class YamlSource:
    """The values of one object in a YAML document. `prefix` is where it stands in it: "" or "items[3]."."""

    __slots__ = ("_prefix", "_text", "_value")

    def __init__(self, value: Any, text: bytes, prefix: str = "") -> None:
        self._value = value
        self._text = text
        self._prefix = prefix

    def convert(self, kind: type[T]) -> T:
        """Raises msgspec.ValidationError."""
        return msgspec.convert(self._value, kind)

    def value(self) -> Any:
        return self._value

    def lines(self, paths: list[str]) -> list[int]:
        """Of each field the line in the document, from 0; of an absent one that of what encloses it."""
        return _lines(self._text, [self._prefix + path for path in paths])


class JsonSource:
    """The values of one object in JSON text."""

    __slots__ = ("_text",)

    def __init__(self, text: bytes) -> None:
        self._text = text

    def convert(self, kind: type[T]) -> T:
        """Raises msgspec.ValidationError."""
        return _decoder(kind).decode(self._text)

    def value(self) -> Any:
        return msgspec.json.decode(self._text)

    def lines(self, paths: list[str]) -> list[int]:
        return _lines(self._text, paths)


def check_json(text: bytes) -> None:
    """Raises BadYaml where an object in valid JSON text has one key twice, which JSON readers let pass."""
    try:
        # What comes out again as it went in has lost no member. Blanks inside strings do not matter here.
        if msgspec.json.encode(msgspec.json.decode(text)).translate(None, _BLANKS) == text.translate(None, _BLANKS):
            return
        repeated = _repeats(text)
    except RecursionError:
        raise BadYaml([Fault(0, "nested too deeply")], None) from None
    except ValueError as error:
        raise BadYaml([Fault(0, f"not valid JSON: {error}")], None) from None
    if repeated:
        yaml_reader.read(text)
        raise BadYaml([Fault(0, "the same key twice in one object")], None)


def _repeats(text: bytes) -> bool:
    repeated: list[bool] = []

    def pairs(members: list[tuple[str, Any]]) -> None:
        repeated.append(len(dict(members)) != len(members))

    json.loads(text, object_pairs_hook=pairs)
    return any(repeated)


def _lines(text: bytes, paths: list[str]) -> list[int]:
    """JSON is read as the YAML it nearly is; where that fails every field is said to be at the start."""
    try:
        document = yaml_reader.read(text, places=True)
    except BadYaml:
        document = None
    return [document.place(path).line if document else 0 for path in paths]

"""A manifest file → the objects written in it, and what is wrong with them. Pure.

A file has documents; a document is an object, a list of objects, or broken. A document whose text was seen in the
version of the file read before is not read again.
"""

from __future__ import annotations

from array import array
from collections.abc import Iterator
from hashlib import blake2b

import msgspec

from agent.objects import Problem
from agent.sources import yaml_reader
from agent.sources.documents import JsonSource, YamlSource, check_json, split
from agent.sources.items import Item, Written, broken, item
from agent.sources.yaml_reader import BadYaml
from policies.model import Origin

DIGEST = 16


class Documents(msgspec.Struct, frozen=True, gc=False):
    """What the documents of a file were, packed, as there may be very many. In their order: of each the hash of its
    text, and as native u32 the lines before it and the number of its items."""

    digests: bytes = b""
    lines: bytes = b""
    counts: bytes = b""


class Known(msgspec.Struct, frozen=True, gc=False):
    """What a document was: lines before it, and its items."""

    before: int
    items: tuple[Item, ...]


class Manifest(msgspec.Struct, frozen=True):
    """`documents` is empty where there is but one: then it is known by the file's own digest."""

    file: str
    digest: bytes  # of the whole text
    items: tuple[Item, ...]
    documents: Documents = Documents()

    def known(self) -> dict[bytes, Known]:
        """Its documents by the hash of their text."""
        found: dict[bytes, Known] = {}
        at = 0
        numbers = zip(array("I", self.documents.lines), array("I", self.documents.counts), strict=True)
        for index, (before, count) in enumerate(numbers):
            digest = self.documents.digests[index * DIGEST : (index + 1) * DIGEST]
            found[digest] = Known(before, self.items[at : at + count])
            at += count
        return found


def parse(text: bytes, file: str, before: Manifest | None = None) -> Manifest:
    """Read a file; its name tells the language (.json, or else YAML). Never raises: what is wrong is in the items."""
    digest = blake2b(text, digest_size=DIGEST).digest()
    if before is not None and before.file == file and before.digest == digest:
        return before
    known = before.known() if before is not None and before.file == file else {}
    items: list[Item] = []
    digests, lines, counts = bytearray(), array("I"), array("I")
    read = _read_json if file.endswith(".json") else _read_yaml
    try:
        for chunk in split(text, file):
            key = blake2b(chunk.text, digest_size=DIGEST).digest()
            found = known.get(key)
            if found is None:
                members = list(read(chunk.text, file, chunk.before))
            elif found.before != chunk.before:
                members = [one.moved(chunk.before - found.before) for one in found.items]
            else:
                members = list(found.items)
            digests += key
            lines.append(chunk.before)
            counts.append(len(members))
            items += members
    except BadYaml as bad:
        items.append(broken(bad, file, 0))
    documents = Documents(bytes(digests), lines.tobytes(), counts.tobytes()) if len(lines) > 1 else Documents()
    return Manifest(file, digest, tuple(items), documents)


def unreadable(file: str, message: str) -> Manifest:
    """A file whose content could not be had."""
    return Manifest(file, b"", (Item(Origin(file, 0), problems=(Problem(file, 0, message),), unidentified=True),))


def _read_yaml(text: bytes, file: str, before: int) -> Iterator[Item]:
    try:
        document = yaml_reader.read(text)
    except BadYaml as bad:
        yield broken(bad, file, before)
        return
    if document is None or document.value is None:
        return
    value = document.value
    members = value.get("items") if isinstance(value, dict) else None
    if not isinstance(members, list) or not str(value.get("kind")).endswith("List"):
        yield item(Written(YamlSource(value, text), Origin(file, document.line + before + 1), before))
        return
    lines = document.items if len(document.items) == len(members) else [document.line] * len(members)
    for index, (member, line) in enumerate(zip(members, lines, strict=True)):
        source = YamlSource(member, text, f"items[{index}].")
        yield item(Written(source, Origin(file, line + before + 1), before))


def _read_json(text: bytes, file: str, before: int) -> Iterator[Item]:
    try:
        check_json(text)
    except BadYaml as bad:
        yield broken(bad, file, before)
        return
    blank = text[: len(text) - len(text.lstrip())].count(b"\n")
    yield item(Written(JsonSource(text), Origin(file, blank + before + 1), before))

"""A manifest file → the objects written in it, and what is wrong with them. Pure.

A file has documents; a document is an object, a list of objects, or broken. A document whose text was seen in the
version of the file read before is not read again.
"""

from __future__ import annotations

from collections.abc import Iterator
from hashlib import blake2b

import msgspec

from agent.objects import Problem
from agent.sources import yaml_reader
from agent.sources.documents import JsonSource, YamlSource, check_json, split
from agent.sources.items import Item, Written, broken, item
from agent.sources.yaml_reader import BadYaml
from policies.model import Origin

Documents = dict[bytes, tuple[int, tuple[Item, ...]]]


class Manifest(msgspec.Struct, frozen=True):
    """`documents`: by a hash of its text, how many lines stand before a document, and its items."""

    file: str
    digest: bytes  # of the whole text
    items: tuple[Item, ...]
    documents: Documents


def parse(text: bytes, file: str, before: Manifest | None = None) -> Manifest:
    """Read a file; its name tells the language (.json, or else YAML). Never raises: what is wrong is in the items."""
    digest = blake2b(text, digest_size=16).digest()
    if before is not None and before.file == file and before.digest == digest:
        return before
    known = before.documents if before is not None and before.file == file else {}
    items: list[Item] = []
    documents: Documents = {}
    read = _read_json if file.endswith(".json") else _read_yaml
    try:
        for chunk in split(text, file):
            key = blake2b(chunk.text, digest_size=16).digest()
            found = known.get(key) or documents.get(key)
            if found is None:
                found = (chunk.before, tuple(read(chunk.text, file, chunk.before)))
            elif found[0] != chunk.before:
                found = (chunk.before, tuple(one.moved(chunk.before - found[0]) for one in found[1]))
            documents[key] = found
            items += found[1]
    except BadYaml as bad:
        items.append(broken(bad, file, 0))
    return Manifest(file, digest, tuple(items), documents if len(documents) > 1 else {})


def unreadable(file: str, message: str) -> Manifest:
    """A file whose content could not be had."""
    return Manifest(file, b"", (Item(Origin(file, 0), problems=(Problem(file, 0, message),), unidentified=True),), {})


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

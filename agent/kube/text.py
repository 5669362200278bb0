"""The text of objects and events as the API server sends it (JSON, an object in one line), and what is kept of it."""

from __future__ import annotations

from typing import Any

import msgspec

from agent.kube.resources import Drops, Resource
from agent.sources.documents import JsonSource
from agent.sources.items import Item, Written, item
from policies.model import Origin


class _Metadata(msgspec.Struct, rename="camel", gc=False):
    name: str
    namespace: str = ""
    resource_version: str = ""
    generation: int = 0
    uid: str = ""


class Head(msgspec.Struct, gc=False):
    """What tells versions of objects apart. `kind` is left out in lists of built-in kinds."""

    metadata: _Metadata
    kind: str = ""


class Event(msgspec.Struct):
    """`type`: ADDED, MODIFIED, DELETED, BOOKMARK or ERROR, whose object is a Status."""

    type: str
    object: msgspec.Raw


class _BookmarkMetadata(msgspec.Struct, rename="camel"):
    resource_version: str


class _Bookmark(msgspec.Struct):
    metadata: _BookmarkMetadata


class ObjectText(JsonSource):
    """It has no lines to be told."""

    __slots__ = ()

    def lines(self, paths: list[str]) -> list[int]:
        return [0] * len(paths)


Text = bytes | msgspec.Raw
UNREADABLE = (msgspec.DecodeError, UnicodeDecodeError, RecursionError)
"""What reading text raises that is no JSON, no UTF-8, or nested too deeply."""
_HEAD = msgspec.json.Decoder(Head)
_EVENT = msgspec.json.Decoder(Event)
_BOOKMARK = msgspec.json.Decoder(_Bookmark)
_MEMBERS = msgspec.json.Decoder(dict[str, msgspec.Raw])
_ELEMENTS = msgspec.json.Decoder(list[msgspec.Raw])


def head(text: Text) -> Head:
    """Raises UNREADABLE."""
    return _HEAD.decode(text)


def event(line: bytes) -> Event:
    """Raises UNREADABLE."""
    return _EVENT.decode(line)


def bookmark(text: Text) -> str:
    """The resourceVersion. Raises UNREADABLE."""
    return _BOOKMARK.decode(text).metadata.resource_version


def older(one: str, other: str) -> bool:
    """Whether a resourceVersion is certainly older than another of the same resource: they are decimal numbers
    (KEP-5504). Of servers that have others nothing is certain."""
    if not (one.isdecimal() and other.isdecimal()):
        return False
    return (len(one), one) < (len(other), other)


def kept(text: Text, resource: Resource, version: str) -> bytes:
    """The object without what nobody reads, but with apiVersion and kind. Raises UNREADABLE."""
    members = _MEMBERS.decode(text)
    members.setdefault("apiVersion", msgspec.Raw(msgspec.json.encode(resource.api_version(version))))
    members.setdefault("kind", msgspec.Raw(msgspec.json.encode(resource.kind)))
    return msgspec.json.encode(_without(members, resource.drops))


def _without(members: dict[str, msgspec.Raw], drops: Drops) -> dict[str, Any]:
    found: dict[str, Any] = dict(members)
    for name, inner in drops.items():
        if name not in members:
            continue
        if inner is None:
            del found[name]
        else:
            found[name] = _thinned(members[name], inner)
    return found


def _thinned(text: msgspec.Raw, drops: Drops) -> Any:
    """What is not of the shape it should be is left for the reader to refuse."""
    try:
        if "*" in drops:
            each = drops["*"]
            return [_thinned(element, each or {}) for element in _ELEMENTS.decode(text)]
        return _without(_MEMBERS.decode(text), drops)
    except msgspec.ValidationError:
        return text


def read(text: bytes, file: str) -> Item:
    """The object as every source's objects are read, or what is wrong with it."""
    return item(Written(ObjectText(text), Origin(file, 0), -1))

"""Objects as bytes, under one resourceVersion counter, with the window of changes that watches start from."""

from __future__ import annotations

import bisect
import threading
from collections.abc import Callable, Iterable
from operator import attrgetter
from typing import Any

import msgspec

from apiserver.errors import too_large, too_old
from apiserver.resources import Resource

FIRST_VERSION = 100
"""An older one is gone, as with a server that came up over an old store."""
WINDOW = 20_000
"""Changes of a collection that are kept."""

_EMPTY: tuple[Any, ...] = ({}, [], "", None)

_encode = msgspec.json.Encoder().encode
_decode = msgspec.json.Decoder().decode


class Entry(msgspec.Struct, frozen=True, gc=False):
    """An object at one version. `rest`: its JSON from behind the opening brace, without apiVersion and kind."""

    key: str
    namespace: str
    name: str
    node: str  # spec.nodeName
    labels: dict[str, str]
    version: int
    rest: bytes

    def read(self) -> dict[str, Any]:
        """A copy of the object, without apiVersion and kind."""
        read: dict[str, Any] = _decode(b"{" + self.rest)
        return read


class Event(msgspec.Struct, frozen=True):
    version: int
    type: str  # ADDED | MODIFIED | DELETED
    entry: Entry  # DELETED: as it was, with the version of its deletion
    old: Entry | None


def entry(namespace: str, name: str, obj: dict[str, Any], version: int) -> Entry:
    """Sets metadata.resourceVersion in `obj`, and leaves out of its metadata what is empty."""
    metadata = obj["metadata"] = tidy(obj["metadata"])
    metadata["resourceVersion"] = str(version)
    rest = _encode({key: value for key, value in obj.items() if key not in ("apiVersion", "kind")})[1:]
    node = (obj.get("spec") or {}).get("nodeName") or ""
    key = f"{namespace}/{name}" if namespace else name
    return Entry(key, namespace, name, node, metadata.get("labels") or {}, version, rest)


def tidy(metadata: dict[str, Any]) -> dict[str, Any]:
    """Without what is empty."""
    return {key: value for key, value in metadata.items() if value not in _EMPTY}


class Collection:
    """All objects of a resource. Every method is called with the store's lock held."""

    def __init__(self, resource: Resource, oldest: int) -> None:
        self.resource = resource
        self.entries: dict[str, Entry] = {}
        self.events: list[Event] = []
        self.oldest = oldest  # watches may start from here on
        self.window = WINDOW
        self.wakes: set[Callable[[], None]] = set()  # called after every change
        self._states: dict[int, list[Entry]] = {}  # all entries by key, as of a version

    def since(self, version: int) -> list[Event]:
        """Changes after `version`, oldest first. Raises Refused (410)."""
        if version < self.oldest:
            raise too_old(version, self.oldest)
        return self.events[bisect.bisect_right(self.events, version, key=attrgetter("version")) :]

    def at(self, version: int) -> list[Entry]:
        """Everything as it was at `version`, by key. Raises Refused (410)."""
        undone = self.since(version)
        applied = len(self.events) - len(undone)
        base = self.events[applied - 1].version if applied else self.oldest
        if base in self._states:
            return self._states[base]
        entries = dict(self.entries)
        for event in reversed(undone):
            entries.pop(event.entry.key, None)
            if event.old is not None:
                entries[event.entry.key] = event.old
        state = sorted(entries.values(), key=attrgetter("key"))
        self._states[base] = state
        while len(self._states) > 4:  # several clients page at a time
            del self._states[next(iter(self._states))]
        return state

    def compact(self, version: int) -> None:
        kept = self.events[bisect.bisect_right(self.events, version, key=attrgetter("version")) :]
        self.oldest = max(self.oldest, version)
        self.events = kept

    def record(self, event: Event) -> None:
        self.events.append(event)
        if len(self.events) > 2 * self.window:
            self.compact(self.events[-self.window - 1].version)
        for wake in tuple(self.wakes):  # watches come and go in the thread of the server
            wake()


class Store:
    """`lock` (re-entrant) is held around every look and every change."""

    def __init__(self, resources: Iterable[Resource]) -> None:
        self.lock = threading.RLock()
        self.version = FIRST_VERSION
        self._collections = {(r.group, r.plural): Collection(r, FIRST_VERSION) for r in resources}

    def collections(self) -> list[Collection]:
        return list(self._collections.values())

    def find(self, group: str, version: str, plural: str) -> Collection | None:
        collection = self._collections.get((group, plural))
        return collection if collection is not None and version in collection.resource.versions else None

    def of_kind(self, api_version: str, kind: str) -> Collection:
        """Raises KeyError."""
        group, _, version = api_version.rpartition("/")
        for collection in self._collections.values():
            resource = collection.resource
            if resource.kind == kind and resource.group == group and version in resource.versions:
                return collection
        raise KeyError(f"no resource for {api_version} {kind}")

    def install(self, resource: Resource) -> None:
        with self.lock:
            self._collections[resource.group, resource.plural] = Collection(resource, self.version)

    def uninstall(self, collection: Collection) -> None:
        """With everything in it."""
        with self.lock:
            del self._collections[collection.resource.group, collection.resource.plural]

    def put(self, collection: Collection, namespace: str, name: str, obj: dict[str, Any]) -> Entry:
        with self.lock:
            self.version += 1
            new = entry(namespace, name, obj, self.version)
            old = collection.entries.get(new.key)
            collection.entries[new.key] = new
            collection.record(Event(self.version, "MODIFIED" if old else "ADDED", new, old))
            return new

    def remove(self, collection: Collection, old: Entry) -> Entry:
        """What was there, with the version of the deletion."""
        with self.lock:
            self.version += 1
            last = entry(old.namespace, old.name, old.read(), self.version)
            del collection.entries[old.key]
            collection.record(Event(self.version, "DELETED", last, old))
            return last

    def compact(self) -> None:
        """No watch and no page can go on from any version before the present one."""
        with self.lock:
            self.version += 1
            for collection in self._collections.values():
                collection.compact(self.version)

    def not_before(self, version: int) -> None:
        """Raises Refused (504) if that state is still to come."""
        if version > self.version:
            raise too_large(version, self.version)

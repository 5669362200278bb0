"""Which versions of the objects of one resource are known, and what a list or an event changes. Pure.

Known versions come from watches, from lists, from the cache on disk, and from this agent's own writes, whose answers
may overtake the watch.
"""

from __future__ import annotations

from collections.abc import Callable

import msgspec

from agent.kube.resources import Resource
from agent.kube.text import Head, Text, older

BURIED = 4096
"""How many deleted objects are remembered, so that an event that comes late does not bring one back."""


class Seen(msgspec.Struct, frozen=True, gc=False):
    version: str  # metadata.resourceVersion
    generation: int  # metadata.generation
    uid: str  # metadata.uid


class Update(msgspec.Struct, frozen=True):
    """An object is now thus, or (None) gone. `urgent`: it has just happened, rather than being found by a list.

    `version`: of the resource's group, in which the text is. `anew`: what had this name before is gone.
    """

    file: str
    resource: Resource
    text: Text | None
    seen: Seen | None
    version: str
    urgent: bool
    anew: bool = False


class Replica:
    """`version`: of the group, in which objects are being read."""

    def __init__(self, resource: Resource, emit: Callable[[Update], None]) -> None:
        self.resource = resource
        self.version = resource.versions[0]
        self.seen: dict[str, Seen] = {}
        self._emit = emit
        self._buried: dict[str, str] = {}
        self._listed: set[str] | None = None  # not None: a list is being read
        self._retell = False
        self._observed: set[str] = set()  # while it is

    def file(self, head: Head) -> str:
        return self.resource.file(head.metadata.namespace, head.metadata.name)

    # ---- events

    def put(self, head: Head, text: Text) -> None:
        """The object was created or changed."""
        file, version = self.file(head), head.metadata.resource_version
        known = self.seen.get(file)
        if known is not None and (known.version == version or older(version, known.version)):
            return
        if older(version, self._buried.get(file, "")):
            return
        self._take(file, head, text, urgent=True)

    def remove(self, head: Head) -> None:
        """The object was deleted."""
        file, version = self.file(head), head.metadata.resource_version
        known = self.seen.get(file)
        if known is None or not older(version, known.version):
            self._drop(file, version, urgent=True)

    def observe(self, head: Head, text: Text) -> None:
        """The answer to a write of this agent's: it may be newer than the list that is being read."""
        self.put(head, text)
        if self._listed is not None:
            self._observed.add(self.file(head))

    # ---- lists

    def begin(self, *, retell: bool = False) -> None:
        """A list is going to be read, from its start. `retell`: tell of what is known, too."""
        self._listed = set()
        self._retell = retell
        self._observed.clear()

    def item(self, head: Head, text: Text) -> None:
        """An object in the list. It counts even if it is older than the known one: a server that was restored from a
        backup begins again further back. By its uid an object of another cluster is told from one on disk."""
        assert self._listed is not None
        file, version = self.file(head), head.metadata.resource_version
        self._listed.add(file)
        known = self.seen.get(file)
        if known is not None and file in self._observed and older(version, known.version):
            return
        seen = _seen(head)
        if known is None or self._retell or (known.version, known.uid) != (seen.version, seen.uid):
            self._take(file, head, text, urgent=False)

    def end(self, version: str) -> None:
        """The list is whole, and of this resourceVersion: what it does not hold is gone, unless it came later."""
        assert self._listed is not None
        for file in [file for file in self.seen if file not in self._listed]:
            if not (file in self._observed and older(version, self.seen[file].version)):
                self._drop(file, version, urgent=False)
        self.abandon()

    def abandon(self) -> None:
        """The list will not be whole: what was known stays, and so does what is newer."""
        self._listed = None
        self._observed.clear()

    # ----

    def _take(self, file: str, head: Head, text: Text, *, urgent: bool) -> None:
        known, seen = self.seen.get(file), _seen(head)
        self.seen[file] = seen
        self._buried.pop(file, None)
        anew = known is not None and known.uid != seen.uid
        self._emit(Update(file, self.resource, text, seen, self.version, urgent, anew))

    def _drop(self, file: str, version: str, *, urgent: bool) -> None:
        self._buried.pop(file, None)
        self._buried[file] = version
        if len(self._buried) > BURIED:
            del self._buried[next(iter(self._buried))]
        if self.seen.pop(file, None) is not None:
            self._emit(Update(file, self.resource, None, None, self.version, urgent))


def _seen(head: Head) -> Seen:
    metadata = head.metadata
    return Seen(metadata.resource_version, metadata.generation, metadata.uid)

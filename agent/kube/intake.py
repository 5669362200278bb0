"""What the API server tells, into the tree of what is in force and onto the disk."""

from __future__ import annotations

from hashlib import blake2b

import msgspec

from agent.kube import text
from agent.kube.cache import Cache, Row
from agent.kube.replica import Seen, Update
from agent.kube.resources import OWN_ENDPOINTS, Resource
from agent.objects import Change, Object, Problem
from agent.sources.manifest import DIGEST, Manifest, unreadable
from agent.sources.tree import Tree
from policies.model import ObjectRef


class Intake:
    """`own`: the file of this node's NodeEndpoints. `rewriting`: the cache lacks what the tree has, so all that comes
    is written, whether it is otherwise or not."""

    def __init__(self, cache: Cache, own: str) -> None:
        self.rewriting = False
        self._cache = cache
        self._own = own
        self._tree = Tree()
        self._gone: list[Change] = []

    def recall(self, row: Row) -> Seen:
        """An object as it stands on disk; which version of it that is."""
        manifest = _manifest(row.file, row.broken or row.good or b"")
        self._tree.put(manifest)
        if row.broken and row.good:
            self._tree.recall(manifest, _objects(_manifest(row.file, row.good)))
        return Seen(row.version, row.generation, row.uid)

    def take(self, update: Update) -> None:
        """It is in force with the next `settle`."""
        if update.text is None or update.anew:
            self._tree.remove(update.file)
            self._cache.remove(update.file)
        if update.text is None or update.seen is None:
            return
        if update.anew:
            self._gone += self._tree.settle()  # nothing of it lives on in what has its name now
        resource = update.resource
        if update.file == self._own:
            resource = msgspec.structs.replace(resource, drops=OWN_ENDPOINTS)
        body = _kept(update.text, resource, update.version)
        before = self._tree.manifests.get(update.file)
        changed = before is None or before.digest != _digest(body)
        valid = not changed and before is not None and before.items[0].object is not None
        if changed:
            manifest = _manifest(update.file, body)
            valid = manifest.items[0].object is not None
            self._tree.put(manifest)
            if not valid and before is not None:
                self._tree.recall(manifest, _objects(before))  # at the start none of them is in force yet
        if changed or self.rewriting:
            self._write(update, update.seen, body, valid)

    def settle(self) -> list[Change]:
        """What is otherwise in force since the last time."""
        changes, self._gone = [*self._gone, *self._tree.settle()], []
        return changes

    @property
    def problems(self) -> list[Problem]:
        """As of the last `settle`."""
        return self._tree.problems

    def _write(self, update: Update, seen: Seen, body: bytes, valid: bool) -> None:
        good, broken = (body, None) if valid else (None, body)
        self._cache.put(Row(update.file, update.resource.key, seen.version, seen.generation, seen.uid, good, broken))


def _digest(body: bytes) -> bytes:
    return blake2b(body, digest_size=DIGEST).digest()


def _manifest(file: str, body: bytes) -> Manifest:
    try:
        return Manifest(file, _digest(body), (text.read(body, file),))
    except text.UNREADABLE as error:
        return msgspec.structs.replace(unreadable(file, f"cannot be read: {error}"), digest=_digest(body))


def _kept(given: text.Text, resource: Resource, version: str) -> bytes:
    try:
        return text.kept(given, resource, version)
    except text.UNREADABLE:
        return bytes(given)  # it will be refused


def _objects(manifest: Manifest) -> dict[ObjectRef, Object]:
    return {item.object.ref: item.object for item in manifest.items if item.object is not None}

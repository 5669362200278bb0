"""Create, update, patch and delete as the API machinery has them (metadata, preconditions, subresources)."""

from __future__ import annotations

import re
import secrets
import string
import uuid
from collections.abc import Mapping
from datetime import UTC, datetime, timedelta
from typing import Any

import msgspec

from apiserver import patches
from apiserver.defaults import fill
from apiserver.errors import Refused, already_exists, bad_request, conflict, invalid, not_found
from apiserver.resources import Resource
from apiserver.schemas import check
from apiserver.store import Collection, Entry, Store, tidy

_NAME = re.compile(r"[a-z0-9]([-a-z0-9.]{0,251}[a-z0-9])?")
_KEPT = ("uid", "creationTimestamp", "generation", "deletionTimestamp", "deletionGracePeriodSeconds", "managedFields")
_OWN_STATUS = ("nodes",)  # their status may come with them: a kubelet registers its node thus

Object = dict[str, Any]


class Target(msgspec.Struct, frozen=True):
    """What a request is about. `manager`: who writes. `name` "" for the collection."""

    collection: Collection
    version: str
    namespace: str = ""
    name: str = ""
    subresource: str = ""
    manager: str = "unknown"

    @property
    def resource(self) -> Resource:
        return self.collection.resource

    @property
    def key(self) -> str:
        return f"{self.namespace}/{self.name}" if self.namespace else self.name

    def named(self, name: str) -> Target:
        return msgspec.structs.replace(self, name=name)

    def whole(self, entry: Entry) -> bytes:
        """The object's JSON, in this version of the API."""
        return head(self.resource, self.version) + entry.rest


def head(resource: Resource, version: str) -> bytes:
    return f'{{"apiVersion":"{resource.api_version(version)}","kind":"{resource.kind}",'.encode()


def timestamp(after_s: float = 0) -> str:
    return (datetime.now(UTC) + timedelta(seconds=after_s)).strftime("%Y-%m-%dT%H:%M:%SZ")


def present(target: Target) -> Entry:
    """Raises Refused (404)."""
    entry = target.collection.entries.get(target.key)
    if entry is None:
        raise not_found(target.resource, target.name)
    return entry


def create(store: Store, target: Target, obj: Object, applied: Object | None = None) -> Entry:
    """Raises Refused (400, 404, 409, 422)."""
    resource, metadata = target.resource, _metadata(target, obj)
    if metadata.get("resourceVersion"):
        raise Refused(500, "", "resourceVersion should not be set on objects to be created")
    generated = metadata.get("generateName", "")
    name = metadata.get("name") or (generated and generated + _random())
    if not name or not _NAME.fullmatch(name):
        raise invalid(resource, name or "", "metadata.name", f"{name!r} is not a DNS subdomain")
    metadata["name"] = name
    if resource.namespaced:
        _require_namespace(store, target.namespace)
        metadata["namespace"] = target.namespace
    target = target.named(name)
    if target.key in target.collection.entries:
        raise already_exists(resource, name)
    if resource.status and resource.plural not in _OWN_STATUS:
        obj.pop("status", None)
    for key in _KEPT:
        metadata.pop(key, None)
    fresh(resource, obj)
    check(resource, target.version, obj, None)
    _manage(metadata, target, applied)
    return store.put(target.collection, target.namespace, name, obj)


def fresh(resource: Resource, obj: Object) -> None:
    """What a new object gets, where it is not there."""
    metadata = obj["metadata"]
    metadata.setdefault("uid", str(uuid.uuid4()))
    metadata.setdefault("creationTimestamp", timestamp())
    if resource.generation:
        metadata.setdefault("generation", 1)
    fill(resource.plural, obj)


def update(store: Store, target: Target, obj: Object, applied: Object | None = None) -> Entry:
    """The whole object, or its status alone with target.subresource. Raises Refused (400, 404, 409, 422)."""
    old = present(target)
    resource, was, metadata = target.resource, old.read(), _metadata(target, obj)
    if metadata.get("name") != target.name:
        raise bad_request(f"the name in the body is {metadata.get('name')!r}, in the path {target.name!r}")
    _expect(target, was, metadata)
    if target.subresource:
        obj = was | {"status": obj["status"]} if "status" in obj else was
        obj["metadata"] = dict(was["metadata"])
    else:
        _carry(resource, was, obj)
        fill(resource.plural, obj)
    check(resource, target.version, obj, was)
    if _without_managers(obj) == _without_managers(was):
        return old
    ignored = {"metadata", "apiVersion", "kind"} | ({"status"} if resource.status else set())
    if resource.generation and _without(obj, ignored) != _without(was, ignored):
        obj["metadata"]["generation"] = was["metadata"].get("generation", 0) + 1
    _manage(obj["metadata"], target, applied)
    finished = was["metadata"].get("finalizers") and not obj["metadata"].get("finalizers")
    if was["metadata"].get("deletionTimestamp") and finished:
        return store.remove(target.collection, old)
    return store.put(target.collection, target.namespace, target.name, obj)


def patch(store: Store, target: Target, content_type: str, body: bytes) -> tuple[Entry, bool]:
    """The object, and whether it is new. Raises Refused (400, 404, 409, 415, 422)."""
    applied = _applied(target, body) if content_type.startswith(patches.APPLY) else None
    custom = target.resource.custom
    if applied is not None and not target.subresource and target.key not in target.collection.entries:
        return create(store, target, patches.apply(content_type, body, {}, custom), applied), True
    old = present(target)
    was = {"apiVersion": target.resource.api_version(target.version), "kind": target.resource.kind} | old.read()
    if applied is not None:
        was = _left_out(target, was, applied)
    made = patches.apply(content_type, body, was, custom)
    made.setdefault("metadata", {}).setdefault("resourceVersion", str(old.version))
    return update(store, target, made, applied), False


def _applied(target: Target, body: bytes) -> Object:
    if not target.manager:
        raise invalid(target.resource, target.name, "fieldManager", "is required for apply patch")
    read = patches.read(body)
    if not isinstance(read, dict) or _metadata(target, read).get("name") != target.name:
        raise bad_request(f"the name in the body must be {target.name!r}")
    return read


def delete(store: Store, target: Target, options: Mapping[str, Any]) -> tuple[Entry, bool]:
    """The object as it was last, and whether it is gone by now: an object with finalizers, and a pod of a node until
    its kubelet has stopped it, only get a deletionTimestamp. Raises Refused (404, 409)."""
    old = present(target)
    obj = old.read()
    metadata = obj["metadata"]
    for field, wanted in (options.get("preconditions") or {}).items():
        if wanted is not None and metadata.get(field) != wanted:
            raise conflict(target.resource, target.name, f"{field} is {metadata.get(field)}, not {wanted}")
    grace = options.get("gracePeriodSeconds")
    graceful = target.resource.plural == "pods" and old.node and grace != 0
    if not graceful and not metadata.get("finalizers"):
        return store.remove(target.collection, old), True
    if metadata.get("deletionTimestamp"):
        return old, False
    seconds = (30 if grace is None else grace) if graceful else 0
    metadata["deletionTimestamp"] = timestamp(seconds)
    metadata["deletionGracePeriodSeconds"] = seconds
    if target.resource.generation:
        metadata["generation"] = metadata.get("generation", 0) + 1
    return store.put(target.collection, target.namespace, target.name, obj), False


def _metadata(target: Target, obj: Object) -> Object:
    expected = (target.resource.api_version(target.version), target.resource.kind)
    unsaid = ("", "") if target.resource.custom else expected
    if (found := (obj.get("apiVersion", unsaid[0]), obj.get("kind", unsaid[1]))) != expected:
        raise bad_request(f"the body is of {found[0]} {found[1]}, the path of {expected[0]} {expected[1]}")
    metadata = obj.setdefault("metadata", {})
    if not isinstance(metadata, dict):
        raise bad_request("metadata is no object")
    if (metadata.get("namespace") or target.namespace) != target.namespace:
        raise bad_request("the namespace of the body is not that of the path")
    return metadata


def _require_namespace(store: Store, namespace: str) -> None:
    namespaces = store.find("", "v1", "namespaces")
    if namespaces is not None and namespace not in namespaces.entries:
        raise not_found(namespaces.resource, namespace)


def _expect(target: Target, was: Object, metadata: Object) -> None:
    """Raises Refused if the body speaks of another version, or of another object of this name."""
    if not metadata.get("resourceVersion"):
        if not target.resource.unconditional:
            raise invalid(target.resource, target.name, "metadata.resourceVersion", "must be specified for an update")
    elif metadata["resourceVersion"] != was["metadata"]["resourceVersion"]:
        raise conflict(target.resource, target.name, "it has been modified; read it again and change what is there now")
    if metadata.get("uid") not in (None, "", was["metadata"]["uid"]):
        raise conflict(target.resource, target.name, "uid in the body is that of another object")


def _carry(resource: Resource, was: Object, obj: Object) -> None:
    """What the writer cannot change stays."""
    metadata = obj["metadata"]
    for key in (*_KEPT, "resourceVersion"):
        metadata.pop(key, None)
        if key in was["metadata"]:
            metadata[key] = was["metadata"][key]
    if resource.namespaced:
        metadata["namespace"] = was["metadata"]["namespace"]
    if resource.status:
        obj.pop("status", None)
        if "status" in was:
            obj["status"] = was["status"]


def _manage(metadata: Object, target: Target, applied: Object | None) -> None:
    """Writes who wrote, and (with `applied`) the fields of an apply."""
    operation = "Update" if applied is None else "Apply"
    others = [
        field
        for field in metadata.get("managedFields") or []
        if (field["manager"], field["operation"]) != (target.manager, operation)
    ]
    mine = {
        "manager": target.manager,
        "operation": operation,
        "apiVersion": target.resource.api_version(target.version),
        "time": timestamp(),
        "fieldsType": "FieldsV1",
        "fieldsV1": {} if applied is None else _owned(applied),
    }
    metadata["managedFields"] = [*others, mine | ({"subresource": target.subresource} if target.subresource else {})]


def _without(obj: Object, keys: set[str]) -> Object:
    return {key: value for key, value in obj.items() if key not in keys}


def _without_managers(obj: Object) -> Object:
    return _without(obj, {"apiVersion", "kind"}) | {"metadata": tidy(_without(obj["metadata"], {"managedFields"}))}


def _left_out(target: Target, was: Object, applied: Object) -> Object:
    """Without what this manager applied before and now leaves out."""
    for field in was["metadata"].get("managedFields", ()):
        if (field["manager"], field["operation"]) == (target.manager, "Apply"):
            return patches.disown(was, field["fieldsV1"], _owned(applied))
    return was


def _owned(obj: Object) -> Object:
    return patches.owned(
        _without(obj, {"apiVersion", "kind", "metadata"})
        | {"metadata": {key: obj["metadata"][key] for key in ("labels", "annotations") if key in obj["metadata"]}}
    )


def _random() -> str:
    return "".join(secrets.choice(string.ascii_lowercase + string.digits) for _ in range(5))

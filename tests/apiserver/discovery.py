"""What the server says that it serves."""

from __future__ import annotations

from typing import Any

from apiserver.resources import Resource
from apiserver.store import Store

_VERBS = ["create", "delete", "deletecollection", "get", "list", "patch", "update", "watch"]
VERSION = {
    "major": "1",
    "minor": "36",
    "gitVersion": "v1.36.0",
    "gitCommit": "",
    "gitTreeState": "clean",
    "buildDate": "1970-01-01T00:00:00Z",
    "goVersion": "",
    "compiler": "",
    "platform": "linux/amd64",
}


def answer(store: Store, path: str) -> dict[str, Any] | None:
    """None where nothing is discovered."""
    with store.lock:
        resources = [collection.resource for collection in store.collections()]
    parts = path.strip("/").split("/")
    if parts == ["version"]:
        return VERSION
    if parts == ["api"]:
        return {"kind": "APIVersions", "versions": ["v1"]}
    if parts == ["apis"]:
        groups = list(dict.fromkeys(resource.group for resource in resources if resource.group))
        return {"kind": "APIGroupList", "apiVersion": "v1", "groups": [_group(resources, name) for name in groups]}
    if parts[0] == "apis" and len(parts) == 2 and any(resource.group == parts[1] for resource in resources):
        return {"kind": "APIGroup", "apiVersion": "v1"} | _group(resources, parts[1])
    if (parts[0] == "apis" and len(parts) == 3) or (parts[0] == "api" and len(parts) == 2):
        group, version = (parts[1] if parts[0] == "apis" else ""), parts[-1]
        served = [resource for resource in resources if resource.group == group and version in resource.versions]
        if served:
            return _resources(served, version)
    return None


def _group(resources: list[Resource], name: str) -> dict[str, Any]:
    versions = list(dict.fromkeys(version for r in resources if r.group == name for version in r.versions))
    named = [{"groupVersion": f"{name}/{version}", "version": version} for version in versions]
    return {"name": name, "versions": named, "preferredVersion": named[0]}


def _resources(served: list[Resource], version: str) -> dict[str, Any]:
    listed: list[dict[str, Any]] = []
    for resource in served:
        about = {"singularName": resource.kind.lower(), "namespaced": resource.namespaced, "kind": resource.kind}
        listed.append({"name": resource.plural} | about | {"verbs": _VERBS})
        if resource.status:
            listed.append({"name": f"{resource.plural}/status"} | about | {"verbs": ["get", "patch", "update"]})
    group_version = served[0].api_version(version)
    return {"kind": "APIResourceList", "apiVersion": "v1", "groupVersion": group_version, "resources": listed}

"""Whether objects are as the Kubernetes API has them: unknown fields, wrong types, what is missing.

The models of the kubernetes package are made from the API's OpenAPI schema. To import them takes a second.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

from kubernetes import client
from pydantic import BaseModel, ValidationError

Object = Mapping[str, Any]

_VERSIONS = ("v1", "apps/v1", "rbac.authorization.k8s.io/v1", "apiextensions.k8s.io/v1")


def problems(written: Object) -> list[str]:
    """One sentence each; none: the API server would take it."""
    kind, version = written.get("kind"), written.get("apiVersion")
    if version not in _VERSIONS or not hasattr(client, name := f"V1{kind}"):
        return [f"there is no schema of {version} {kind}"]
    model: type[BaseModel] = getattr(client, name)
    try:
        read = model.model_validate(written)
    except ValidationError as error:
        return [f"{_path(one['loc'])}: {one['msg']}" for one in error.errors()]
    return list(_misspelt(read, written, ""))


def _misspelt(read: Any, written: Any, path: str) -> Iterator[str]:
    """The models take their own names (host_network) beside the API's (hostNetwork)."""
    if isinstance(read, BaseModel) and isinstance(written, Mapping):
        names: dict[str, str] = type(read).attribute_map  # type: ignore[attr-defined]
        for own, name in names.items():
            if own in written and own != name:
                yield f"{path}{own}: the API calls it {name}"
            elif name in written:
                yield from _misspelt(getattr(read, own), written[name], f"{path}{name}.")
    elif isinstance(read, list) and isinstance(written, list):
        for index, (inner, text) in enumerate(zip(read, written, strict=True)):
            yield from _misspelt(inner, text, f"{path}{index}.")
    elif isinstance(read, dict) and isinstance(written, Mapping):
        for key, inner in read.items():
            yield from _misspelt(inner, written[key], f"{path}{key}.")


def _path(parts: tuple[int | str, ...]) -> str:
    return ".".join(map(str, parts))

"""What the chart's CustomResourceDefinitions ask of objects: structural schemas (apiextensions.k8s.io/v1), pruning of
unknown fields, and their CEL rules, each of which is known here by its text."""

from __future__ import annotations

import functools
import re
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import yaml

from apiserver.errors import invalid
from apiserver.resources import Resource

CHART = Path(__file__).resolve().parents[2] / "charts/gatehouse/crds"

Schema = dict[str, Any]
Rule = Callable[[Any, Any], bool]

_KEPT = ("apiVersion", "kind", "metadata")
_TYPES: dict[str, Any] = {
    "object": (dict,),
    "array": (list,),
    "string": (str,),
    "integer": (int,),
    "number": (int, float),
    "boolean": (bool,),
}
_LIMITS: dict[str, Callable[[Any, Any], bool]] = {
    "minimum": lambda value, limit: value >= limit,
    "maximum": lambda value, limit: value <= limit,
    "minLength": lambda value, limit: len(value) >= limit,
    "maxLength": lambda value, limit: len(value) <= limit,
    "minItems": lambda value, limit: len(value) >= limit,
    "maxItems": lambda value, limit: len(value) <= limit,
    "maxProperties": lambda value, limit: len(value) <= limit,
    "pattern": lambda value, pattern: re.search(pattern, value) is not None,
    "enum": lambda value, listed: value in listed,
    "required": lambda value, fields: all(field in value for field in fields),
}
_RULES: dict[str, Rule] = {  # of an object, and of what it was (None: it is new)
    "self == oldSelf": lambda new, old: old is None or new == old,
    "self.size() < 2 || self[0].contains(':') != self[1].contains(':')": lambda new, old: (
        len(new) < 2 or (":" in new[0]) != (":" in new[1])
    ),
    "self.metadata.name.matches('^[1-9][0-9]{2,4}$') && int(self.metadata.name) >= 256"
    " && int(self.metadata.name) <= 65535": lambda new, old: (
        re.fullmatch("[1-9][0-9]{2,4}", new["metadata"]["name"]) is not None
        and 256 <= int(new["metadata"]["name"]) <= 65535
    ),
    "self.metadata.name == self.spec.cidr.replace('.', '-').replace(':', '-').replace('/', '-')": lambda new, old: (
        new["metadata"]["name"] == re.sub("[.:/]", "-", new["spec"]["cidr"])
    ),
}


def check(resource: Resource, version: str, obj: dict[str, Any], was: dict[str, Any] | None) -> None:
    """Prunes `obj`. Raises Refused (422). Resources that the chart does not define pass as they are."""
    schema = _schemas().get((resource.group, version, resource.plural))
    if schema is None:
        return
    for field, why in _problems(schema, obj, was, ""):
        raise invalid(resource, obj["metadata"]["name"], field, why)


@functools.cache
def _schemas() -> dict[tuple[str, str, str], Schema]:
    found = {}
    for file in sorted(CHART.glob("*.yaml")):
        spec = yaml.load(file.read_text(), yaml.CSafeLoader)["spec"]
        for version in spec["versions"]:
            schema = version["schema"]["openAPIV3Schema"]
            found[spec["group"], version["name"], spec["names"]["plural"]] = schema
    return found


def _problems(schema: Schema, value: Any, was: Any, path: str) -> Iterator[tuple[str, str]]:
    """(field, what is wrong), the type of a value before all else in it."""
    kind = schema["type"]
    if not isinstance(value, _TYPES[kind]) or (kind != "boolean" and isinstance(value, bool)):
        yield path, f"must be of type {kind}"
        return
    for limit, holds in _LIMITS.items():
        if limit in schema and not holds(value, schema[limit]):
            yield path, f"{limit} is {schema[limit]}"
    if kind == "object":
        yield from _fields(schema, value, was if isinstance(was, dict) else {}, path)
    elif kind == "array":
        for index, each in enumerate(value):
            yield from _problems(schema["items"], each, None, f"{path}[{index}]")
        keys = schema.get("x-kubernetes-list-map-keys", ())
        if keys and len({tuple(each[key] for key in keys) for each in value}) != len(value):
            yield path, f"two items have one {', '.join(keys)}"
    for rule in schema.get("x-kubernetes-validations", ()):
        if not _RULES[" ".join(rule["rule"].split())](value, was):
            yield path, rule["message"]


def _fields(schema: Schema, value: dict[str, Any], was: dict[str, Any], path: str) -> Iterator[tuple[str, str]]:
    known, others = schema.get("properties", {}), schema.get("additionalProperties")
    for name in list(value):
        if not path and name in _KEPT:
            continue
        if (inner := known.get(name, others)) is None:
            del value[name]
        else:
            yield from _problems(inner, value[name], was.get(name), f"{path}.{name}".lstrip("."))

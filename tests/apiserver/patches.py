"""The ways a PATCH is written: RFC 7386 (merge), RFC 6902 (JSON patch), server-side apply with maps as its units."""

from __future__ import annotations

import copy
from typing import Any

import msgspec
import yaml

from apiserver.errors import Refused, bad_request, unsupported

MERGE = "application/merge-patch+json"
STRATEGIC = "application/strategic-merge-patch+json"
JSON_PATCH = "application/json-patch+json"
APPLY = "application/apply-patch+yaml"


def apply(content_type: str, body: bytes, target: dict[str, Any], custom: bool) -> dict[str, Any]:
    """What becomes of `target`. A strategic merge replaces lists here. Raises Refused (400, 415, 422)."""
    kind = content_type.partition(";")[0].strip()
    if kind in (MERGE, APPLY) or (kind == STRATEGIC and not custom):
        patch = read(body)
        return _object(merge(target, patch))
    if kind == JSON_PATCH:
        operations = read(body)
        if not isinstance(operations, list):
            raise bad_request("a JSON patch is a list of operations")
        made: Any = copy.deepcopy(target)
        for operation in operations:
            made = _operate(made, operation)
        return _object(made)
    raise unsupported(content_type)


def read(body: bytes) -> Any:
    try:
        return msgspec.json.decode(body)
    except msgspec.DecodeError:
        try:
            return yaml.load(body, yaml.CSafeLoader)
        except yaml.YAMLError as error:
            raise bad_request(f"the body is neither JSON nor YAML: {error}") from error


def owned(applied: Any) -> dict[str, Any]:
    """The fields that an apply sets, as metadata.managedFields[].fieldsV1 names them; lists are one field."""
    if not isinstance(applied, dict):
        return {}
    return {f"f:{key}": owned(value) for key, value in applied.items()}


def disown(target: dict[str, Any], former: dict[str, Any], now: dict[str, Any]) -> dict[str, Any]:
    """`target` without the fields that a manager applied before and now leaves out."""
    made = dict(target)
    for field, inner in former.items():
        key = field.removeprefix("f:")
        if key not in made:
            continue
        if field not in now and not (inner and isinstance(made[key], dict)):
            del made[key]
        elif isinstance(made[key], dict):
            made[key] = disown(made[key], inner, now.get(field, {}))
            if field not in now and not made[key]:
                del made[key]
    return made


def merge(target: Any, patch: Any) -> Any:
    if not isinstance(patch, dict):
        return patch
    made = dict(target) if isinstance(target, dict) else {}
    for key, value in patch.items():
        if value is None:
            made.pop(key, None)
        else:
            made[key] = merge(made.get(key), value)
    return made


def _object(made: Any) -> dict[str, Any]:
    if not isinstance(made, dict):
        raise bad_request("the patch leaves no object")
    return made


def _operate(document: Any, operation: dict[str, Any]) -> Any:
    op, path = operation.get("op"), _pointer(operation.get("path"))
    if op in ("copy", "move"):
        source = _pointer(operation.get("from"))
        value = copy.deepcopy(_get(document, source))
        if op == "move":
            document = _remove(document, source)
        return _add(document, path, value)
    if op == "test":
        if _get(document, path) != operation.get("value"):
            raise _failed(f"testing value {operation.get('path')} failed")
        return document
    if op == "add":
        return _add(document, path, operation.get("value"))
    if op == "remove":
        return _remove(document, path)
    if op == "replace":
        _get(document, path)
        return _add(_remove(document, path) if path else document, path, operation.get("value"))
    raise _failed(f"unknown operation {op!r}")


def _pointer(text: Any) -> list[str]:
    if not isinstance(text, str) or (text and not text.startswith("/")):
        raise bad_request(f"no JSON pointer: {text!r}")
    return [part.replace("~1", "/").replace("~0", "~") for part in text.split("/")[1:]]


def _failed(message: str) -> Refused:
    return Refused(422, "Invalid", message)


def _index(part: str, end: int) -> int:
    if not part.isdecimal() or int(part) >= end:
        raise _failed(f"no such element: {part}")
    return int(part)


def _get(document: Any, path: list[str]) -> Any:
    for part in path:
        if isinstance(document, list):
            document = document[_index(part, len(document))]
        elif isinstance(document, dict) and part in document:
            document = document[part]
        else:
            raise _failed(f"no such field: {part}")
    return document


def _add(document: Any, path: list[str], value: Any) -> Any:
    if not path:
        return value
    parent, last = _get(document, path[:-1]), path[-1]
    if isinstance(parent, list):
        parent.insert(len(parent) if last == "-" else _index(last, len(parent) + 1), value)
    elif isinstance(parent, dict):
        parent[last] = value
    else:
        raise _failed(f"nothing can be added at {last}")
    return document


def _remove(document: Any, path: list[str]) -> Any:
    _get(document, path)
    parent = _get(document, path[:-1])
    del parent[int(path[-1]) if isinstance(parent, list) else path[-1]]
    return document

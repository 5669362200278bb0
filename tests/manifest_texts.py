"""Texts of manifests, and the objects that are read from them."""

from __future__ import annotations

from typing import Any

from agent.objects import Object
from agent.sources.manifest import parse


def items(text: str, file: str = "m.yaml") -> list[Any]:
    return list(parse(text.encode(), file).items)


def only(text: str, file: str = "m.yaml") -> Object:
    (item,) = items(text, file)
    assert item.problems == ()
    found: Object = item.object
    assert found is not None
    return found

"""What may be said in values: documented, typed, read; and what cannot work is refused with a sentence."""

from __future__ import annotations

import json
import re
from typing import Any

import pytest
from chart_values import CHANGES, CHART, INSTALLATIONS, ONE_CHOICE, REFUSED, changed, defaults, leaves
from helm_process import Helm, HelmRefuses

from agent.config import settings

SCHEMA: dict[str, Any] = json.loads((CHART / "values.schema.json").read_text())
PATHS = {".".join(path): path for path, _ in leaves(defaults())}


@pytest.mark.parametrize("name", INSTALLATIONS)
def test_lint(helm: Helm, name: str) -> None:
    found = helm.lint(INSTALLATIONS[name])
    assert [one for one in found if "icon is recommended" not in one["error"]] == []


@pytest.mark.parametrize(("values", "sentence"), [row[1:] for row in REFUSED], ids=[row[0] for row in REFUSED])
def test_what_cannot_work_is_refused(helm: Helm, values: dict[str, Any], sentence: str) -> None:
    with pytest.raises(HelmRefuses) as refused:
        helm.objects(values)
    assert sentence in re.sub(r"\s+", " ", str(refused.value))


def test_changes_are_of_every_value() -> None:
    assert sorted((*CHANGES, *ONE_CHOICE)) == sorted(PATHS)


@pytest.mark.parametrize("name", CHANGES)
def test_each_value_is_read(helm: Helm, name: str) -> None:
    """Another one makes another manifest, or is refused by a sentence of the chart's own."""
    value, others = CHANGES[name]
    before = _outcome(helm, changed(others, PATHS[name], _at(PATHS[name])))
    assert _outcome(helm, changed(others, PATHS[name], value)) != before


@pytest.mark.parametrize("name", PATHS)
def test_each_value_has_a_type(name: str) -> None:
    """Not only what is nested in an open map."""
    at = SCHEMA
    for part in PATHS[name]:
        at = _resolved(at)
        at = at["properties"][part] if part in at.get("properties", {}) else at["additionalProperties"]
    assert _resolved(at).keys() & {"type", "enum", "allOf"}


def test_nothing_in_the_schema_is_without_a_default() -> None:
    """But Helm's own, and parts of maps that are handed on."""
    known = {path[: depth + 1] for path in PATHS.values() for depth in range(len(path))}
    for path in _properties(SCHEMA):
        assert path in known or path[0] in ("global", "extraConfig") or {"limits", "seLinuxOptions"} & {*path}, path


def test_maps_are_closed() -> None:
    open_maps = {"global", "affinity", "labels", "tolerations"}
    for path, one in _objects(SCHEMA):
        assert "additionalProperties" in one or open_maps & {*path}, path


def test_each_value_is_explained() -> None:
    """By a comment in its paragraph."""
    paragraphs = (CHART / "values.yaml").read_text().split("\n\n")
    for name in defaults():
        (own,) = (one for one in paragraphs if re.search(rf"^{name}:", one, re.MULTILINE))
        assert "#" in own or name in UNEXPLAINED, name


UNEXPLAINED = {"serviceAccount"}
"""What says itself, as every chart has it."""


def test_extra_settings_are_the_agents() -> None:
    known = {one.field: one for one in settings()}
    for field, schema in SCHEMA["properties"]["extraConfig"]["properties"].items():
        kind = {"array": "list", "object": "pairs", "number": "text"}[schema["type"]]
        assert known[field].shape == kind, field


def _outcome(helm: Helm, values: dict[str, Any]) -> Any:
    try:
        return helm.objects(values)
    except HelmRefuses as refused:
        # A refusal by the schema would say nothing of whether a template reads the value.
        assert "execution error" in str(refused), refused
        return str(refused)


def _at(path: tuple[str, ...]) -> Any:
    found: Any = defaults()
    for part in path:
        found = found[part]
    return found


def _resolved(schema: dict[str, Any]) -> dict[str, Any]:
    while "$ref" in schema:
        schema = SCHEMA["$defs"][schema["$ref"].rpartition("/")[2]]
    return schema


def _properties(schema: dict[str, Any], above: tuple[str, ...] = ()) -> list[tuple[str, ...]]:
    found = []
    for name, inner in _resolved(schema).get("properties", {}).items():
        found += [(*above, name), *_properties(inner, (*above, name))]
    return found


def _objects(schema: dict[str, Any], path: tuple[str, ...] = ()) -> list[tuple[tuple[str, ...], dict[str, Any]]]:
    found = [(path, schema)] if schema.get("type") == "object" else []
    for key, inner in schema.items():
        if isinstance(inner, dict):
            found += _objects(inner, (*path, key))
    return found

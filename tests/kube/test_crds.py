"""The custom resource definitions of the chart: structural, bounded where CEL looks, and in step with the agent."""

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import yaml

CRDS = Path(__file__).resolve().parents[2] / "charts/gatehouse/crds"
KINDS = {"SecurityIdentity", "NodeEndpoints", "NodeStatus", "NodeBlock"}


def definitions() -> list[dict[str, Any]]:
    return [yaml.safe_load(path.read_text()) for path in sorted(CRDS.glob("*.yaml"))]


def nodes(schema: dict[str, Any], path: str = "") -> Iterator[tuple[str, dict[str, Any]]]:
    yield path, schema
    for name, inner in schema.get("properties", {}).items():
        yield from nodes(inner, f"{path}.{name}")
    for key in ("items", "additionalProperties"):
        if key in schema:
            yield from nodes(schema[key], f"{path}[]")


def root(definition: dict[str, Any]) -> dict[str, Any]:
    (version,) = definition["spec"]["versions"]
    schema: dict[str, Any] = version["schema"]["openAPIV3Schema"]
    return schema


def test_each_kind_is_defined_once_and_is_of_the_cluster() -> None:
    found = definitions()
    assert {one["spec"]["names"]["kind"] for one in found} == KINDS and len(found) == len(KINDS)
    short = [name for one in found for name in one["spec"]["names"]["shortNames"]]
    assert len(set(short)) == len(short)
    for one in found:
        names = one["spec"]["names"]
        assert one["metadata"]["name"] == f"{names['plural']}.gatehouse.io"
        assert (one["spec"]["scope"], names["categories"]) == ("Cluster", ["gatehouse"])
        assert names["listKind"] == names["kind"] + "List" and names["singular"] == names["kind"].lower()
        (version,) = one["spec"]["versions"]
        assert (version["name"], version["served"], version["storage"]) == ("v1alpha1", True, True)


@pytest.mark.parametrize("definition", definitions(), ids=lambda one: one["spec"]["names"]["kind"])
class TestSchema:
    def test_is_structural(self, definition: dict[str, Any]) -> None:
        for path, node in nodes(root(definition)):
            assert "type" in node, path
            assert not {"properties", "additionalProperties"} <= node.keys(), path
            for required in node.get("required", ()):
                assert required in node["properties"], f"{path}.{required}"

    def test_everything_but_metadata_is_bounded(self, definition: dict[str, Any]) -> None:
        """The cost of a CEL rule is estimated from bounds; without them any rule is too dear."""
        for path, node in nodes(root(definition)):
            if path in {"", ".apiVersion", ".kind", ".metadata"}:
                continue
            if node["type"] == "string":
                assert "maxLength" in node or "enum" in node, path
            if node["type"] == "array":
                assert "maxItems" in node and "x-kubernetes-list-type" in node, path
            if "additionalProperties" in node:
                assert "maxProperties" in node, path

    def test_keys_of_map_lists_are_required(self, definition: dict[str, Any]) -> None:
        for path, node in nodes(root(definition)):
            for key in node.get("x-kubernetes-list-map-keys", ()):
                assert key in node["items"]["required"], path

    def test_rules_have_words_for_people(self, definition: dict[str, Any]) -> None:
        rules = [rule for _, node in nodes(root(definition)) for rule in node.get("x-kubernetes-validations", ())]
        assert all(rule["message"] for rule in rules)

    def test_columns_name_fields_that_are_there(self, definition: dict[str, Any]) -> None:
        known = {path.replace("[]", "[*]") for path, _ in nodes(root(definition))}
        for column in definition["spec"]["versions"][0]["additionalPrinterColumns"]:
            path = column["jsonPath"]
            assert path.startswith(".metadata.") or path in known, path

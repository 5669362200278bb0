"""Files of manifests: their documents and lines, and text that is none."""

from __future__ import annotations

import json
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from manifest_texts import items

from agent.sources.items import VERSIONS
from agent.sources.manifest import parse

NS = "apiVersion: v1\nkind: Namespace\nmetadata: {name: %s}\n"


@pytest.mark.parametrize(
    ("text", "lines"),
    [
        (NS % "a" + "---\n" + NS % "b", [1, 5]),
        ("# x\n---\n# y\n\n" + NS % "a" + "---\n---\n...\n# z\n---\n" + NS % "b", [5, 13]),
        ("--- # first\n" + NS % "a" + "--- {apiVersion: v1, kind: Namespace, metadata: {name: b}}\n", [2, 5]),
        ("%YAML 1.1\n---\n" + NS % "a" + "...\n" + NS % "b", [3, 7]),
        (("\ufeff" + NS % "a" + "---\n" + NS % "b").replace("\n", "\r\n"), [1, 5]),
        ("kind: List\napiVersion: v1\nitems:\n- {apiVersion: v1, kind: Namespace, metadata: {name: a}}\n\n"
         "- apiVersion: v1\n  kind: Namespace\n  metadata: {name: b}\n", [4, 6]),
        (NS % "a" + "data: |\n  ---\n  text\n---\n" + NS % "b", [1, 8]),
    ],
)  # fmt: skip
def test_lines_of_documents(text: str, lines: list[int]) -> None:
    found = items(text)
    assert [item.ref.name for item in found] == ["a", "b"]
    assert [item.object.origin.line for item in found] == lines


@pytest.mark.parametrize("text", ["", "\n", "# nothing\n", "---\n---\n", "null\n", "--- ~\n...\n", "\ufeff", " \n\t\n"])
def test_nothing(text: str) -> None:
    assert items(text) == []


def test_json_and_yaml_agree() -> None:
    documents: list[Any] = [
        {"apiVersion": "v1", "kind": "Namespace", "metadata": {"name": "a", "labels": {"x": "y"}}},
        {"apiVersion": "v1", "kind": "Service", "metadata": {"name": "s"}, "spec": {"ports": [{"port": 80}]}},
        {"apiVersion": "networking.k8s.io/v1", "kind": "NetworkPolicy", "metadata": {"name": "p"}, "spec": {}},
    ]
    text = json.dumps({"apiVersion": "v1", "kind": "List", "items": documents}, indent=1)
    as_json, as_yaml = items(text, "m.json"), items(text, "m.yaml")
    assert [item.object for item in as_json if not item.problems] != []
    for one, other in zip(as_json, as_yaml, strict=True):
        assert (one.ref, one.origin.line, one.problems == ()) == (other.ref, other.origin.line, other.problems == ())


JSON = [
    ('{"kind":', 1, "", "not valid JSON"),
    ('{"kind": "Pod",\n"kind": "Pod"}', 2, "kind", "the same key twice"),
    ('{"apiVersion": "v1", "kind": "Namespace",\n "metadata": {"name":\n  7}}', 2, "metadata.name", "must be a string"),
    ('{"kind": "List", "items": [\n{"apiVersion": "v1", "kind": "Namespace",\n"metadata": {"name": "A"}}]}', 3,
     "metadata.name", "'A' must be"),
    ("[" * 100_000, 1, "", "nested too deeply"),
    ('{"a": ' * 2000 + "1" + "}" * 2000, 1, "", "nested too deeply"),
    ('\n{"a": tru}', 2, "", "not valid JSON"),
    ("[1]", 1, "", "must be an object, not a list"),
]  # fmt: skip


@pytest.mark.parametrize(("text", "line", "path", "message"), JSON, ids=range(len(JSON)))
def test_bad_json(text: str, line: int, path: str, message: str) -> None:
    (item,) = items(text, "m.json")
    (problem,) = item.problems
    assert (problem.line, problem.path) == (line, path)
    assert problem.message.startswith(message)
    assert item.object is None


def test_one_bad_document_leaves_the_others() -> None:
    found = items(NS % "a" + "---\nkind: [\n---\n" + NS % "b" + '---\nkind: "\n---\n' + NS % "c")
    assert [item.ref.name if item.ref else None for item in found] == ["a", None, "b", None, "c"]
    assert [item.problems[0].line for item in found if item.problems] == [5, 11]


def test_only_changed_documents_are_read_again() -> None:
    text = "---\n".join(NS % name for name in "abc")
    before = parse(text.encode(), "m.yaml")
    after = parse(text.replace("name: b", "name: x").encode(), "m.yaml", before)
    assert after.items[0] is before.items[0]
    assert after.items[2] is before.items[2]
    moved = parse(b"# one more line\n" + text.encode(), "m.yaml", before)
    assert [item.object.origin.line for item in moved.items if item.object] == [2, 6, 10]
    assert moved.items == parse(b"# one more line\n" + text.encode(), "m.yaml").items


PIECES = st.sampled_from([
    *"abk :-[]{}#&*!|>'\"%@`,?~\t\n\r\0", "\ufeff", "\x85", "\u2028",
    "---\n", "...\n", "<<: ", "- ", ": ", "*a ", "&a ", "!!int ",
    "kind: ", "metadata: {name: a}\n", "spec:\n", "  podSelector: {}\n", "NetworkPolicy\n",
    "Pod\n", "List\n", "items:\n",
    "apiVersion: v1\n", "apiVersion: networking.k8s.io/v1\n", "0x_", "0b_", "._",
    "1" * 5000, "-.inf", "1e999", "yes", "null",
])  # fmt: skip

FIELDS = (
    "kind", "apiVersion", "metadata", "name", "namespace", "labels", "spec",
    "items", "ports", "port", "containers", "status",
    "podIPs", "endpoints", "addresses", "conditions",
    "addressType", "selector", "clusterIPs", "podSelector", "ingress", "from",
)  # fmt: skip

JSON_VALUES = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=4),
    lambda inner: (
        st.lists(inner, max_size=3) | st.dictionaries(st.sampled_from(FIELDS) | st.text(max_size=3), inner, max_size=5)
    ),
    max_leaves=20,
)


@given(text=st.lists(PIECES, max_size=30).map("".join))
def test_no_text_stops_the_reader(text: str) -> None:
    for item in items(text):
        assert item.object is not None or item.problems


@given(value=JSON_VALUES, kind=st.sampled_from([*VERSIONS, "List"]), cut=st.integers(0, 3))
def test_no_value_stops_the_reader(value: Any, kind: str, cut: int) -> None:
    if isinstance(value, dict):
        value |= {"kind": kind, "apiVersion": VERSIONS.get(kind, ("v1",))[0]}
    text = json.dumps(value)
    for file in ("m.json", "m.yaml"):
        for item in items(text[: len(text) - cut], file):
            assert item.object is not None or item.problems


@given(data=st.binary(max_size=40))
def test_no_bytes_stop_the_reader(data: bytes) -> None:
    for file in ("m.json", "m.yaml"):
        parse(data, file)


@pytest.mark.parametrize(
    "text", ['{"a": %s}' % ("1" * 5000), '{"a": 1e999, "a": 1}', '{"a": "\\ud800", "a": 2}', '{"a": NaN}']
)
def test_odd_json(text: str) -> None:
    (item,) = items(text, "m.json")
    assert item.object is None
    assert item.problems

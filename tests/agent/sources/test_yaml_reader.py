"""YAML values as Kubernetes understands them, and what of a broken text is certain."""

from __future__ import annotations

from typing import Any

import pytest

from agent.sources.yaml_reader import BadYaml, read

VALUES: list[tuple[str, Any]] = [
    ("a", "a"), ("'1'", "1"), ('"yes"', "yes"), ("!!str 1", "1"), ("! 1", "1"), ("!!int '1'", 1),
    ("1", 1), ("-7", -7), ("+7", 7), ("0", 0), ("010", 8), ("0o10", 8), ("0x1F", 31), ("0b11", 3), ("1_000", 1000),
    ("08", "08"), ("0x", "0x"), ("0b2", "0b2"), ("1__", 1), ("12:30", "12:30"), ("10.0.0.1", "10.0.0.1"),
    ("1.5", 1.5), (".5", 0.5), ("1.", 1.0), ("1.5e3", 1500.0), ("-.inf", float("-inf")),
    ("1e3", "1e3"), (".", "."), ("._", "._"),
    ("2024-01-01", "2024-01-01"), ("2024-01-01T00:00:00Z", "2024-01-01T00:00:00Z"),
    ("yes", True), ("On", True), ("FALSE", False), ("no", False), ("y", "y"), ("n", "n"), ("yEs", "yEs"),
    ("~", None), ("null", None), ("", None), ("'null'", "null"), ("=", "="), ("9" * 100, "9" * 100),
    ("|\n  two\n  lines\n", "two\nlines\n"), (">-\n  one\n  line\n", "one line"),
    ("[1, [a], {b: c}]", [1, ["a"], {"b": "c"}]), ("[]", []), ("{}", {}), ("\n- 1\n-\n- a: b\n", [1, None, {"a": "b"}]),
    ("&x [1]\nl: *x", [1]),
]  # fmt: skip


@pytest.mark.parametrize(("text", "value"), VALUES)
def test_values(text: str, value: Any) -> None:
    document = read(f"k: {text}".encode())
    assert document is not None
    assert document.value["k"] == value
    assert type(document.value["k"]) is type(value)


def test_merged_keys_give_way_to_those_written_out() -> None:
    document = read(b"a: &a {x: 1, y: 1}\nb: &b {y: 2, z: 2}\nc: {<<: [*a, *b], x: 3}\nd: {x: 4, <<: *b}\n")
    assert document is not None
    assert document.value["c"] == {"x": 3, "y": 1, "z": 2}
    assert document.value["d"] == {"x": 4, "y": 2, "z": 2}


def test_places() -> None:
    document = read(b"# comment\na:\n  b/c.d: x\n  l:\n  - 1\n  - k: v\n    m:\n      n: o\n", places=True)
    assert document is not None
    paths = ("", "a", "a[b/c.d]", "a.l", "a.l[0]", "a.l[1]", "a.l[1].k", "a.l[1].m.n", "a.l[7]", "a.x.y", "z")
    assert [document.place(path).line for path in paths] == [1, 1, 2, 3, 4, 5, 5, 7, 3, 1, 1]


PARTS: list[tuple[str, Any]] = [
    (
        "kind: A\nmetadata: {name: n}\nspec:\n  x: {y: 1}\n  z: [",
        {"kind": "A", "metadata": {"name": "n"}, "spec": {"x": {"y": 1}}},
    ),
    ("kind: A\nmetadata:\n  name: n\n  labels: {", {"kind": "A"}),
    ("spec: {a: {b: 1, c: [", {"spec": {}}),
    ("kind: A\nkind: B\nspec: {a: 1, a: 2}\n", {"kind": "A", "spec": {"a": 1}}),
    ("kind: A\non: B\n", {"kind": "A", "on": "B"}),
    ("[a, {", ["a"]),
    ("a: 'x", {}),
]


@pytest.mark.parametrize(("text", "partial"), PARTS)
def test_what_was_complete_before_the_fault(text: str, partial: Any) -> None:
    with pytest.raises(BadYaml) as caught:
        read(text.encode())
    assert caught.value.partial == partial

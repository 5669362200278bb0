"""Secrets: what they hold is read, kept where only its owner reads it, and never shown."""

from __future__ import annotations

import stat
from pathlib import Path

import pytest

from agent.objects import Change, Problem, Secret
from agent.sources.lastgood import OTHERS, LastGood, Update
from agent.sources.manifest import parse
from policies.model import ObjectRef

HEAD = "apiVersion: v1\nkind: Secret\nmetadata: {name: keys, namespace: shop}\ntype: kubernetes.io/tls\n"
REF = ObjectRef("Secret", "shop", "keys")
HIDDEN = "open-sesame"


def read(rest: str) -> tuple[Secret | None, tuple[Problem, ...]]:
    (item,) = parse((HEAD + rest).encode(), "m.yaml").items
    assert item.object is None or isinstance(item.object, Secret)
    return item.object, item.problems


def test_data_and_string_data() -> None:
    data = 'data: {tls.crt: b3BlbiA=, tls.pem: "b3Bl\\nbiA=", ca.crt: ""}\n'
    found, problems = read(data + "stringData: {tls.key: plain, ca.crt: text}\n")
    assert not problems
    assert found is not None
    assert (found.ref, found.data) == (REF, {
        "tls.crt": b"open ", "tls.pem": b"open ", "tls.key": b"plain", "ca.crt": b"text",
    })  # fmt: skip


@pytest.mark.parametrize(
    ("rest", "path"),
    [
        (f"data: {{tls.key: {HIDDEN}}}\n", "data[tls.key]"),
        (f"data: {{tls.key: [{HIDDEN}]}}\n", "data"),
        (f"data: {HIDDEN}\n", "data"),
        (f"stringData: {{'..': {HIDDEN}}}\n", "data"),
        (f"stringData: {{'a b': {HIDDEN}}}\n", "data"),
        (f"stringData: {{a: {HIDDEN}{'x' * (1 << 20)}}}\n", "data"),
        (f"stringData:\n  a: {HIDDEN}\n  a: {HIDDEN}\n", "stringData.a"),
        (f'stringData:\n  a: "{HIDDEN}\n', ""),
        (f"stringData:\n  a: {HIDDEN}\n b: {HIDDEN}\n", ""),
        (f"stringData: {{a: {HIDDEN}}} {HIDDEN}\n", ""),
    ],
)
def test_what_is_wrong_is_said_without_what_it_holds(rest: str, path: str) -> None:
    found, problems = read(rest)
    assert found is None
    assert [problem.path.partition("[")[0] for problem in problems] == [path.partition("[")[0]]
    assert HIDDEN not in repr(problems)


def test_it_is_not_shown() -> None:
    found, _ = read(f"stringData: {{tls.key: {HIDDEN}}}\n")
    assert found is not None
    for text in (repr(found), str(found), repr(Change(REF, found)), f"{found}"):
        assert HIDDEN not in text
        assert "tls.key" in text


def test_last_good_versions_are_their_owners_alone(tmp_path: Path) -> None:
    """Also where files were left by a version that did not care."""
    kept = LastGood(tmp_path / "last-good")
    text = (HEAD + f"stringData: {{tls.key: {HIDDEN}}}\n").encode()
    for before in (None, 0o644):
        if before is not None:
            for file in (tmp_path / "last-good").iterdir():
                file.chmod(before)
        kept.write([Update("m.yaml", text)])
        files = list((tmp_path / "last-good").iterdir())
        assert len(files) == 1
        assert not any(stat.S_IMODE(path.stat().st_mode) & OTHERS for path in (tmp_path / "last-good", *files))
    assert kept.objects("m.yaml")[REF] == read(f"stringData: {{tls.key: {HIDDEN}}}\n")[0]

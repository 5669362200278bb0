"""Expansion of commands and environments, against what core/v1 says of Container.command and EnvVar.value."""

from __future__ import annotations

from typing import Any

import pytest

from agent.endpoints.command import DEFAULT_PATH, command, expand
from agent.objects import Container, Pod
from policies.model import ObjectRef, Origin

VALUES = {"A": "a", "B": "$(A)", "EMPTY": "", "weird.name-1": "w"}

EXPANSIONS = [
    ("plain", "plain"),
    ("$(A)", "a"),
    ("x$(A)y$(A)", "xaya"),
    ("$(B)", "$(A)"),  # once, not again
    ("$(EMPTY)", ""),
    ("$(weird.name-1)", "w"),
    ("$(UNKNOWN)", "$(UNKNOWN)"),
    ("$$(A)", "$(A)"),
    ("$$$(A)", "$a"),
    ("$$$$", "$$"),
    ("$A", "$A"),
    ("${A}", "${A}"),
    ("$(A", "$(A"),
    ("$()", "$()"),
    ("$", "$"),
    ("$(A $(A)", "$(A $(A)"),  # a name ends at the first closing parenthesis
    ("$(A)$(A $(A)", "a$(A $(A)"),
    ("`date` $HOME ; rm", "`date` $HOME ; rm"),
]


@pytest.mark.parametrize(("text", "expected"), EXPANSIONS)
def test_expansion(text: str, expected: str) -> None:
    assert expand(text, VALUES) == expected


def make(**container: object) -> tuple[Pod, Container]:
    made = Container("c", **container)  # type: ignore[arg-type]
    return Pod(ObjectRef("Pod", "shop", "web-0"), Origin("f", 1), {}, containers=(made,)), made


def test_variables_see_those_above_them_and_the_command_sees_all() -> None:
    env = {"A": "1", "B": "$(A)2$(C)", "C": "$(B)", "LATE": "l"}
    ready = command(*make(command=("run", "$(C)", "$(LATE)"), env=env))
    assert ready.env == {
        "PATH": DEFAULT_PATH, "HOSTNAME": "web-0", "A": "1", "B": "12$(C)", "C": "12$(C)", "LATE": "l",
    }  # fmt: skip
    assert ready.argv == ("run", "12$(C)", "l")


def test_what_the_runtime_sets_can_be_overridden_but_not_referred_to() -> None:
    ready = command(*make(command=("$(PATH)", "$(HOSTNAME)"), env={"PATH": "/opt"}))
    assert ready.argv == ("/opt", "$(HOSTNAME)")
    assert ready.env["PATH"] == "/opt"


def test_working_directory_is_the_root_unless_given() -> None:
    assert command(*make(command=("x",))).working_dir == "/"
    assert command(*make(command=("x",), working_dir="/tmp")).working_dir == "/tmp"


def test_the_digest_tells_commands_apart() -> None:
    ways: list[dict[str, Any]] = [
        {"command": ("a", "b")},
        {"command": ("a b",)},
        {"command": ("a", "b"), "env": {"X": "1"}},
        {"command": ("a", "b"), "working_dir": "/tmp"},
    ]
    digests = [command(*make(**way)).digest for way in ways]
    assert len(set(digests)) == len(ways)
    assert digests == [command(*make(**way)).digest for way in ways]

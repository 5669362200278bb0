"""Commands run inside a pod's namespace, as `gatehouse exec` does."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
import rig

from agent.endpoints import enter, namespaces

RUN = "import sys; from agent.endpoints import enter\ntry: enter.execute(sys.argv[1], sys.argv[2:])\n"
RUN += "except enter.CannotEnter as error: print(error, file=sys.stderr); sys.exit(error.status)"


@pytest.fixture
def inside(root: None) -> Iterator[rig.Netns]:
    with rig.Netns("pod") as netns:
        yield netns


def execute(path: str, *argv: str, stdin: str = "") -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-c", RUN, path, *argv]
    return subprocess.run(command, input=stdin, capture_output=True, text=True, timeout=200, check=False)


def test_the_command_is_inside_with_our_streams_and_its_exit_status(inside: rig.Netns) -> None:
    result = execute(inside.path, "sh", "-c", "readlink /proc/self/ns/net; cat; echo err >&2; exit 7", stdin="hello\n")
    inode = Path(inside.path).stat().st_ino
    assert (result.returncode, result.stdout, result.stderr) == (7, f"net:[{inode}]\nhello\n", "err\n")


def test_arguments_are_passed_as_they_are(inside: rig.Netns) -> None:
    words = ["a b", "$HOME", "", "'", "-x", "*"]
    assert execute(inside.path, "printf", "[%s]", *words).stdout == "".join(f"[{word}]" for word in words)


CANNOT = [
    ("/run/netns/no-such-pod", "true", 126, "no network namespace"),
    ("/dev/null", "true", 126, "not a network namespace"),
    (None, "no-such-command", 127, "no such command"),
    (None, "/etc/passwd", 126, "Permission denied"),
]


@pytest.mark.parametrize(("path", "program", "status", "words"), CANNOT)
def test_why_not_and_with_which_status(
    inside: rig.Netns, path: str | None, program: str, status: int, words: str
) -> None:
    result = execute(path or inside.path, program)
    assert (result.returncode, result.stdout) == (status, "")
    assert words in result.stderr and len(result.stderr.splitlines()) == 1


def test_our_own_namespace_is_left_alone_where_it_fails() -> None:
    before = Path(namespaces.CURRENT).stat().st_ino
    with pytest.raises(enter.CannotEnter):
        enter.execute("/dev/null", ["true"])
    assert Path(namespaces.CURRENT).stat().st_ino == before

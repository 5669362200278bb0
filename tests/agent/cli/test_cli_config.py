"""gatehouse config: what is in force, and where from."""

from __future__ import annotations

import asyncio
import json
import os
import subprocess
import sys
import threading
from pathlib import Path

import pytest
from agents import environment
from command_line import gatehouse

from agent.api.server import serve
from agent.cli.settings import written
from agent.config import Given, handover, merge
from agent.config.handover import HIDDEN, shown

SEED = "a-secret-of-this-cluster"


def config(*arguments: str, **variables: str) -> subprocess.CompletedProcess[str]:
    return gatehouse("config", *arguments, **variables)


@pytest.fixture
def file(tmp_path: Path) -> Path:
    path = tmp_path / "agent.yaml"
    path.write_text(f"manifests: m\nmtu: 1400\nzone: f\nnode: f\nmaglev_seed: {SEED}\n")
    return path


def test_each_value_and_where_it_is_from(file: Path) -> None:
    found = config("--config", str(file), "--node", "n", "-o", "json", GATEHOUSE_ZONE="v", GATEHOUSE_NODE="v")
    assert found.returncode == 0, found.stderr
    settings = json.loads(found.stdout)
    assert settings["mtu"] == {"value": 1400, "origin": f"{file}:2"}
    assert settings["zone"] == {"value": "v", "origin": "GATEHOUSE_ZONE"}
    assert settings["node"] == {"value": "n", "origin": "--node"}
    assert settings["routing"] == {"value": "native", "origin": "default"}
    assert settings["manifests"]["value"] == str(file.parent / "m")
    assert settings["maglev_seed"]["value"] == HIDDEN


def test_the_file_may_be_named_by_the_environment(file: Path) -> None:
    found = config("--changed", "--state-dir", str(file.parent), GATEHOUSE_CONFIG=str(file))
    lines = [line.split() for line in found.stdout.splitlines()]
    assert ["mtu", "1400", f"{file}:2"] in lines
    assert "routing" not in found.stdout
    assert SEED not in found.stdout
    assert "started here" in found.stderr


def test_settings_that_cannot_be_are_shown_and_refused(tmp_path: Path) -> None:
    found = config("--state-dir", str(tmp_path))
    assert found.returncode == 2
    assert "ipam" in found.stdout
    assert "--manifests is missing" in found.stderr


def test_a_file_that_cannot_be_read_is_refused(file: Path) -> None:
    file.write_text("manifests: m\nmtuu: 1\n")
    found = config("--config", str(file))
    assert (found.returncode, found.stdout) == (2, "")
    assert f"{file}:2: mtuu is not a setting of Gatehouse; did you mean mtu?" in found.stderr
    agent = [sys.executable, "-m", "agent.cli.main", "agent", "--config", str(file)]
    refused = subprocess.run(agent, check=False, capture_output=True, text=True, timeout=200, env=environment())
    assert (refused.returncode, refused.stderr.count("\n")) == (2, 1)
    assert f"{file}:2: mtuu" in refused.stderr


def test_a_running_agent_is_asked(tmp_path: Path) -> None:
    mine = shown(merge({"mtu": Given("1300", "/etc/a.yaml:7"), "maglev_seed": Given(SEED, "--maglev-seed")}))

    async def answer(_arguments: object) -> object:
        return mine

    async def run() -> None:
        async with await serve(tmp_path / "agent.sock", {"config": answer}):
            ready.set()
            await asyncio.get_running_loop().run_in_executor(None, done.wait)

    ready, done = threading.Event(), threading.Event()
    thread = threading.Thread(target=asyncio.run, args=(run(),))
    thread.start()
    try:
        assert ready.wait(60)
        asked = config("--state-dir", str(tmp_path), "-o", "json", GATEHOUSE_MTU="1350")
        other = config("--state-dir", str(tmp_path), "--zone", "z", "--manifests", "m", "-o", "json")
    finally:
        done.set()
        thread.join()
    assert json.loads(asked.stdout)["mtu"] == {"value": 1300, "origin": "/etc/a.yaml:7"}
    assert "the agent that runs" in asked.stderr
    assert SEED not in asked.stdout
    assert json.loads(other.stdout)["mtu"]["origin"] == "default"


def test_settings_are_handed_over_to_a_process_that_is_become() -> None:
    resolved = merge({"mtu": Given("1300", "--mtu"), "maglev_seed": Given(SEED, "--maglev-seed")})
    word = handover.give(resolved)
    assert os.get_inheritable(int(word))
    assert SEED not in word
    assert handover.take(word) == resolved
    with pytest.raises(OSError, match="Bad file descriptor"):
        handover.take(word)


@pytest.mark.parametrize(
    ("value", "text"),
    [(True, "true"), (("a", "b"), "a,b"), ([24, 64], "24,64"), ({"tcp": 1.5}, "tcp=1.5"), (1500, "1500"), ("", "")],
)
def test_values_are_shown_as_flags_have_them(value: object, text: str) -> None:
    assert written(value) == text

"""What must hold before an agent starts, and what is said where it does not."""

from __future__ import annotations

import importlib.util
import os
from pathlib import Path

import pytest

from agent import preflight
from agent.preflight import CannotStart


def test_not_root(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(os, "geteuid", lambda: 1000)
    with pytest.raises(CannotStart, match="run it as root"):
        preflight.check_root()


@pytest.mark.parametrize("release", ["5.10.0-30-amd64", "6.0.12", "4.19.0"])
def test_old_kernel(release: str) -> None:
    with pytest.raises(CannotStart, match=f"kernel {release} is too old: boot 6.1 or newer"):
        preflight.check_kernel(release)


@pytest.mark.parametrize("release", ["6.1.0-18-amd64", "6.12.4", "7.0.0", "10.1"])
def test_new_enough_kernel(release: str) -> None:
    preflight.check_kernel(release)


@pytest.mark.parametrize(("module", "says"), [("bcc", "apt-get install python3-bpfcc"), ("pyroute2", "make setup")])
def test_missing_package(monkeypatch: pytest.MonkeyPatch, module: str, says: str) -> None:
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None if name == module else object())
    with pytest.raises(CannotStart, match=says):
        preflight.check_packages()


def test_one_agent_a_state_directory(tmp_path: Path) -> None:
    held = preflight.lock(tmp_path / "state")
    with pytest.raises(CannotStart, match=rf"an agent \(pid {os.getpid()}\) already runs on"):
        preflight.lock(tmp_path / "state")
    os.close(held)
    os.close(preflight.lock(tmp_path / "state"))

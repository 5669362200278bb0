"""One agent a state directory."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

from agent.lock import Taken, lock


def test_second_agent_is_told_who_has_it(tmp_path: Path) -> None:
    held = lock(tmp_path / "state")
    with pytest.raises(Taken, match=rf"an agent \(pid {os.getpid()}\) runs on .*: stop it, or choose another"):
        lock(tmp_path / "state")
    os.close(held)
    os.close(lock(tmp_path / "state"))


def test_lock_goes_with_its_process_and_not_to_children(tmp_path: Path) -> None:
    held = lock(tmp_path)
    ask = [sys.executable, "-c", "print(flush=True); input()"]
    with subprocess.Popen(ask, stdin=subprocess.PIPE, stdout=subprocess.PIPE, close_fds=False) as child:
        assert child.stdout is not None
        child.stdout.readline()  # until then the kernel may not have closed for it what it does not inherit
        os.close(held)
        os.close(lock(tmp_path))
        child.communicate(b"\n")

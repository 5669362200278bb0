"""The `gatehouse` command called in this process: Python and what a command needs take half a second to load.
What is about the process itself (its user, what runs on, completion) starts one."""

from __future__ import annotations

import os
import subprocess
import sys
from contextlib import redirect_stderr, redirect_stdout
from io import StringIO

import pytest
from agents import environment

from agent.cli.main import main


def gatehouse(*arguments: str, **variables: str) -> subprocess.CompletedProcess[str]:
    """With `variables` in its environment. What it raises is a failure: people would see a traceback."""
    stdout, stderr = StringIO(), StringIO()
    with pytest.MonkeyPatch.context() as patch, redirect_stdout(stdout), redirect_stderr(stderr):
        patch.setattr(sys, "argv", ["gatehouse", *arguments])
        for name in os.environ.keys() - environment().keys():
            patch.delenv(name)
        for name, value in variables.items():
            patch.setenv(name, value)
        try:
            main()
            status = 0
        except SystemExit as end:
            assert end.code is None or isinstance(end.code, int), end.code
            status = end.code or 0
    return subprocess.CompletedProcess(list(arguments), status, stdout.getvalue(), stderr.getvalue())

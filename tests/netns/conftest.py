"""Agents for tests end to end."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest
import rig
from agents import RunningAgent


@pytest.fixture
def agent(node: rig.Node, tmp_path: Path) -> Iterator[RunningAgent]:
    """Not started yet. Everything of it is gone afterwards, or the test fails."""
    with RunningAgent(node, tmp_path) as agent:
        yield agent

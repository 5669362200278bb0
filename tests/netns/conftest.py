"""Agents for tests end to end."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest
import rig
from agents import RunningAgent
from traffic import Cluster


@pytest.fixture
def agent(node: rig.Node, tmp_path: Path) -> Iterator[RunningAgent]:
    """Not started yet. Everything of it is gone afterwards, or the test fails."""
    with RunningAgent(node, tmp_path) as agent:
        yield agent


@pytest.fixture(scope="session")
def cluster(root: None, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Cluster]:
    """One agent for all test_traffic_*: each module puts its own manifests in force, and takes them back."""
    with Cluster(tmp_path_factory.mktemp("cluster")) as cluster:
        yield cluster

"""Agents for tests end to end."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest
import rig
from agents import RunningAgent
from north_south import NorthSouth
from traffic import Cluster

from agent.datapath.mounts import ensure_cgroup2


@pytest.fixture
def agent(node: rig.Node, tmp_path: Path) -> Iterator[RunningAgent]:
    """Not started yet. Everything of it is gone afterwards, or the test fails."""
    with RunningAgent(node, tmp_path) as agent:
        yield agent


@pytest.fixture
def other_cgroup(agent: RunningAgent) -> Iterator[Path]:
    """Asked after `agent`, it is removed before the agent is cleaned up after: then it must be free of programs."""
    folder = ensure_cgroup2() / f"gatehouse-{agent.instance.name}"
    folder.mkdir()
    yield folder
    folder.rmdir()


@pytest.fixture(scope="session")
def cluster(root: None, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Cluster]:
    """One agent for all test_traffic_*: each module puts its own manifests in force, and takes them back."""
    with Cluster(tmp_path_factory.mktemp("cluster")) as cluster:
        yield cluster


@pytest.fixture(scope="session")
def north_south(datapath_host: None, tmp_path_factory: pytest.TempPathFactory) -> Iterator[NorthSouth]:
    """One cluster for all test_north_south*, which run it as they need it and number their addresses apart."""
    with NorthSouth(tmp_path_factory.mktemp("north-south")) as cluster:
        yield cluster

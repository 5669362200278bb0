"""Fixtures for tests on real network namespaces. They need root; without, the tests that ask for them are skipped."""

from __future__ import annotations

import os
from collections.abc import Iterator

import pytest
import rig


@pytest.fixture(scope="session")
def root() -> None:
    if os.geteuid() != 0:
        pytest.skip("needs root to make network namespaces")
    rig.sweep()


@pytest.fixture
def node(root: None) -> Iterator[rig.Node]:
    """A namespace that plays the node; forwarding is off, as on a fresh machine."""
    with rig.Node() as node:
        yield node


@pytest.fixture
def outside(node: rig.Node) -> Iterator[rig.Outside]:
    """A namespace outside the node, connected to it."""
    with rig.Outside(node) as outside:
        yield outside


@pytest.fixture
def instance(root: None) -> Iterator[str]:
    """An agent instance of this test's own; the pod namespaces it leaves are removed."""
    instance = rig.new_instance()
    yield instance
    rig.sweep_instance(instance)

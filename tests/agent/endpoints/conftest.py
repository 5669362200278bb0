"""A scratch node to run endpoints around."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest
import rig
from pods_at import Site


@pytest.fixture
def site(node: rig.Node, instance: str, tmp_path: Path) -> Iterator[Site]:
    made = Site(node, instance, tmp_path)
    yield made
    left = rig.sweep_instance(instance)
    for pid_file in tmp_path.glob("pods/*/*/*.pid"):
        left.append(str(pid_file))
    assert left == [], "the test left pods behind"

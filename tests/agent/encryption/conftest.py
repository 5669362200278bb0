"""Nodes with WireGuard devices; see wireguard_nodes.py."""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path

import pytest
from wireguard_backends import BACKENDS, need
from wireguard_nodes import EncryptedNode, Wire


@pytest.fixture
def wire(tmp_path: Path) -> Iterator[Wire]:
    if os.geteuid() != 0:
        pytest.skip("needs root to make network namespaces")
    with Wire(tmp_path) as wire:
        yield wire


@pytest.fixture(params=BACKENDS)
def backend(request: pytest.FixtureRequest) -> str:
    need(request.param)
    return str(request.param)


@pytest.fixture
def pair(wire: Wire, backend: str) -> Iterator[tuple[EncryptedNode, EncryptedNode]]:
    """Two nodes that reach each other."""
    with wire.node(1, backend) as one, wire.node(2, backend) as two:
        wire.start(one, two)
        yield one, two

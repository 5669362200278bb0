"""One load of the programs for all tests of a worker; every test starts with the same content of its maps."""

from __future__ import annotations

import os
from collections.abc import Iterator

import pytest
from frames import FAMILIES, Family
from kernel import Kernel, load_kernel
from network_node import load_node, reset
from socket_site import Site, load_site


@pytest.fixture(scope="session")
def loaded(datapath_host: None) -> Iterator[Kernel]:
    with load_kernel(f"test-bpf-{os.getpid()}") as kernel:
        yield kernel


@pytest.fixture(params=FAMILIES, ids=["v4", "v6"])
def kernel(loaded: Kernel, request: pytest.FixtureRequest) -> Kernel:
    """Fresh content, once for each address family."""
    family: Family = request.param
    loaded.reset(family)
    return loaded


@pytest.fixture(scope="session")
def loaded_node(datapath_host: None) -> Iterator[Kernel]:
    with load_node(f"test-bpf-node-{os.getpid()}") as kernel:
        yield kernel


@pytest.fixture(params=FAMILIES, ids=["v4", "v6"])
def node(loaded_node: Kernel, request: pytest.FixtureRequest) -> Kernel:
    """The programs of the node's devices, with fresh content, once for each address family."""
    reset(loaded_node, request.param)
    return loaded_node


@pytest.fixture(scope="session")
def loaded_site(datapath_host: None) -> Iterator[Site]:
    with load_site(f"test-socket-{os.getpid()}") as site:
        yield site

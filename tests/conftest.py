"""Fixtures for tests on real network namespaces. They need root; without, the tests that ask for them are skipped."""

from __future__ import annotations

import itertools
import os
from collections.abc import Iterator
from pathlib import Path

import hypothesis
import pytest
import rig
from pods_at import Site

from agent.datapath.mounts import check_kernel, require_host
from agent.datapath.pins import Pins
from agent.endpoints import namespaces

hypothesis.settings.register_profile(
    "gatehouse", deadline=None, print_blob=True, suppress_health_check=[hypothesis.HealthCheck.too_slow]
)
hypothesis.settings.load_profile("gatehouse")  # how long something took is no failure

_counter = itertools.count(1)
_HOME = Path(namespaces.CURRENT).readlink()


@pytest.hookimpl(wrapper=True)
def pytest_runtest_teardown(item: pytest.Item, nextitem: pytest.Item | None) -> Iterator[None]:
    """What a file's tests share may be in another network namespace; tests of other files need not expect that."""
    yield
    if nextitem is None or nextitem.path != item.path:
        assert Path(namespaces.CURRENT).readlink() == _HOME, "this thread is left in another network namespace"


@pytest.fixture(scope="session")
def root() -> None:
    if os.geteuid() != 0:
        pytest.skip("needs root to make network namespaces")
    rig.sweep()


@pytest.fixture(scope="session")
def datapath_host(root: None) -> None:
    """Skipped on a kernel that is too old. What set-up installs is missing: that is an error, not a reason to skip."""
    if too_old := check_kernel():
        pytest.skip(too_old)
    require_host()


@pytest.fixture
def pins(datapath_host: None) -> Iterator[Pins]:
    """Pins of an instance that only this test has."""
    pins = Pins.of(f"test-{os.getpid()}-{next(_counter)}")
    yield pins
    pins.remove()


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


@pytest.fixture
def site(node: rig.Node, instance: str, tmp_path: Path) -> Iterator[Site]:
    """A scratch node to run endpoints around; the test may leave no pod behind."""
    made = Site(node, instance, tmp_path)
    yield made
    left = rig.sweep_instance(instance)
    for pid_file in tmp_path.glob("pods/*/*/*.pid"):
        left.append(str(pid_file))
    assert left == [], "the test left pods behind"


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption(
        "--judgements",
        type=int,
        default=20_000,
        help="how many flow judgements the random tests of tests/bpf compare",
    )

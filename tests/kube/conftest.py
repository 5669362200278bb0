"""An API server per test; and a real one per worker, where there are binaries of one."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
from apiserver import ApiServer
from apiserver.client import Client
from apiserver.real import RealServer, missing


@pytest.fixture
def api() -> Iterator[ApiServer]:
    """Empty but for the first namespaces; takes any token or none. tests/apiserver says what it can do."""
    with ApiServer() as api:
        yield api


@pytest.fixture(scope="session")
def real_api(tmp_path_factory: pytest.TempPathFactory) -> Iterator[RealServer]:
    """A kube-apiserver that the tests of a worker share: each has names of its own in it."""
    if why := missing():
        pytest.skip(why)
    server = RealServer(tmp_path_factory.mktemp("apiserver"))
    yield server
    server.close()


@pytest.fixture(params=["in-test"] if missing() else ["in-test", "real"])
def either_api(request: pytest.FixtureRequest) -> Iterator[ApiServer | RealServer]:
    """The one, then the other (test_apiserver_real says when there is none); both have url, token, client(),
    kubeconfig(path), stop() and start()."""
    if request.param == "real":
        yield request.getfixturevalue("real_api")
        return
    with ApiServer() as server:
        yield server


@pytest.fixture
def either(either_api: ApiServer | RealServer) -> Iterator[Client]:
    """A client of the one, then of the other."""
    with either_api.client() as client:
        yield client

"""Over which API server a cluster is, and by whose WireGuard its nodes encrypt."""

from __future__ import annotations

import pytest
from apiserver.real import missing
from kube_cluster import EitherCluster, KubeCluster, RealCluster
from wireguard_backends import CLUSTERS, need_all


@pytest.fixture(
    scope="session",
    params=[
        pytest.param(KubeCluster, id="in-test"),
        pytest.param(RealCluster, id="real", marks=pytest.mark.skipif(bool(missing()), reason=missing())),
    ],
)
def over(request: pytest.FixtureRequest) -> type[EitherCluster]:
    """What makes a cluster over the in-test API server; then, where there are binaries, over a real one."""
    made: type[EitherCluster] = request.param
    return made


@pytest.fixture(scope="module", params=CLUSTERS)
def backends(request: pytest.FixtureRequest, datapath_host: None) -> str:
    """Whose WireGuard nodes have (see wireguard_backends)."""
    need_all(request.param)
    return str(request.param)

"""Over which API server a cluster is."""

from __future__ import annotations

import pytest
from apiserver.real import missing
from kube_cluster import EitherCluster, KubeCluster, RealCluster


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

"""What Kubernetes itself says of the manifests, where there is one to ask: its validation, not its schema alone."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import pytest
from apiserver.client import Client
from apiserver.real import RealServer, missing
from helm_process import NAMESPACE, Helm

STRICTLY = "?dryRun=All&fieldValidation=Strict"
COLLECTIONS = {
    "ClusterRole": "/apis/rbac.authorization.k8s.io/v1/clusterroles",
    "ClusterRoleBinding": "/apis/rbac.authorization.k8s.io/v1/clusterrolebindings",
    "ConfigMap": "/api/v1/namespaces/{namespace}/configmaps",
    "DaemonSet": "/apis/apps/v1/namespaces/{namespace}/daemonsets",
    "Role": "/apis/rbac.authorization.k8s.io/v1/namespaces/{namespace}/roles",
    "RoleBinding": "/apis/rbac.authorization.k8s.io/v1/namespaces/{namespace}/rolebindings",
    "Secret": "/api/v1/namespaces/{namespace}/secrets",
    "Service": "/api/v1/namespaces/{namespace}/services",
    "ServiceAccount": "/api/v1/namespaces/{namespace}/serviceaccounts",
}
NAMESPACES = (NAMESPACE, "shop", "web")

pytestmark = pytest.mark.skipif(bool(missing()), reason=missing())


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Client]:
    with RealServer(tmp_path_factory.mktemp("real")) as server, server.client() as client:
        for name in NAMESPACES:
            assert client.ask("POST", "/api/v1/namespaces", {"metadata": {"name": name}}).code in (201, 409)
        yield client


def test_it_takes_all_of_them(server: Client, objects: list[dict[str, Any]]) -> None:
    """Without a warning."""
    posted = set()
    for one in objects:
        if one["kind"] == "ServiceMonitor":
            continue  # of an operator that is not there
        path = COLLECTIONS[one["kind"]].format(namespace=one["metadata"].get("namespace"))
        answer = server.ask("POST", path + STRICTLY, one, expect=201)
        assert "warning" not in answer.headers, answer.headers["warning"]
        posted.add(one["kind"])
    assert {"ClusterRole", "ConfigMap", "DaemonSet"} <= posted


def test_it_would_not_take_just_anything(server: Client, helm: Helm) -> None:
    (daemonset,) = (one for one in helm.objects({}) if one["kind"] == "DaemonSet")
    path = COLLECTIONS["DaemonSet"].format(namespace=NAMESPACE) + STRICTLY
    spec = daemonset["spec"]["template"]["spec"]
    spec["hostNetwrk"] = True
    server.ask("POST", path, daemonset, expect=400)
    del spec["hostNetwrk"]
    spec["containers"][0]["volumeMounts"] = [{"name": "none", "mountPath": "/none"}]
    server.ask("POST", path, daemonset, expect=422)

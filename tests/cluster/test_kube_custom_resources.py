"""What agents write at the API server, end to end: identities, endpoints, what became of policies."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import pytest
import rig
from agents import START_S, Document
from kube_cluster import EitherCluster

from agent.identity.labels import identity_key, key_digest
from agent.kube import lease

REPORT_S = 60.0
"""Nodes report what they enforce some ten seconds after it changes."""


@pytest.fixture(scope="module")
def cluster(
    datapath_host: None, over: type[EitherCluster], tmp_path_factory: pytest.TempPathFactory
) -> Iterator[EitherCluster]:
    with over(tmp_path_factory.mktemp("kube"), "n1", "n2") as cluster:
        cluster.start()
        yield cluster


def spec(cluster: EitherCluster, plural: str, name: str) -> Document:
    found = cluster.api.get(plural, name)
    assert found is not None
    return dict(found["spec"])


def test_replicas_share_a_number_over_nodes(cluster: EitherCluster) -> None:
    pods = [cluster.add(f"{node}/shop/web-{node}", app="web") for node in ("n1", "n2")]
    told = {node: spec(cluster, "nodeendpoints", node)["endpoints"] for node in ("n1", "n2")}
    (number,) = {
        one["identity"] for endpoints in told.values() for one in endpoints if one["pod"].startswith("shop/web")
    }
    assert spec(cluster, "securityidentities", str(number)) == {
        "namespace": "shop", "serviceAccount": "default", "labels": {"app": "web"},
    }  # fmt: skip
    digest = key_digest(identity_key("shop", {"app": "web"}, "default"))
    assert [told[node] for node in ("n1", "n2")] == [
        [{"pod": pod.name, "ips": pod.ips, "identity": number, "digest": digest}] for pod in pods
    ]


def test_a_pod_that_ends_is_told_to_nobody_any_more(cluster: EitherCluster) -> None:
    cluster.add("n1/shop/brief", app="brief")
    assert "shop/brief" in str(spec(cluster, "nodeendpoints", "n1"))
    cluster.remove("n1/shop/brief")
    rig.wait_until(lambda: "shop/brief" not in str(spec(cluster, "nodeendpoints", "n1")), START_S, "it is taken back")


def test_what_somebody_deletes_is_told_again(cluster: EitherCluster) -> None:
    cluster.add("n1/shop/stays", app="stays")
    before = cluster.api.get("nodeendpoints", "n1")
    cluster.api.delete("nodeendpoints", "n1")
    assert before is not None
    rig.wait_until(lambda: cluster.api.get("nodeendpoints", "n1") is not None, START_S, "it is made again")
    assert spec(cluster, "nodeendpoints", "n1") == before["spec"]


def test_one_agent_has_the_lease(cluster: EitherCluster) -> None:
    def leaders() -> list[str]:
        return [name for name, agent in cluster.agents.items() if agent.status()["cluster"]["leader"]]

    rig.wait_until(lambda: len(leaders()) == 1, START_S, "one agent has the Lease")
    (held,) = (one for one in cluster.api.objects("leases") if one["metadata"]["name"] == lease.NAME)
    assert held["spec"]["holderIdentity"].startswith(leaders()[0])


def test_author_of_a_policy_learns_what_became_of_it(cluster: EitherCluster) -> None:
    cluster.apply(
        cnp("good", {"endpointSelector": {"matchLabels": {"app": "web"}}, "ingress": [{}]}),
        cnp("bad", {"endpointSelector": {}, "ingress": [{"fromEndpoints": [{"matchLabels": {"no spaces": "x"}}]}]}),
    )

    def conditions(name: str) -> dict[str, Any]:
        found = cluster.api.get("ciliumnetworkpolicies", name, "shop")
        assert found is not None
        return {one["type"]: one for one in found.get("status", {}).get("conditions", ())}

    rig.wait_until(lambda: conditions("good").get("Enforced", {}).get("status") == "True", REPORT_S, "it is enforced")
    assert conditions("good")["Enforced"]["message"] == "in force on all nodes"
    rig.wait_until(lambda: conditions("bad").get("Valid", {}).get("status") == "False", REPORT_S, "it is refused")
    assert "no spaces" in conditions("bad")["Valid"]["message"]


def cnp(name: str, spec: Document) -> Document:
    metadata = {"name": name, "namespace": "shop"}
    return {"apiVersion": "cilium.io/v2", "kind": "CiliumNetworkPolicy", "metadata": metadata, "spec": spec}

"""Rights: exactly what the agent reads and writes, and of a cluster of real agents every request is one of them."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest
import rig
import yaml
from agents import START_S, allow_from, policy
from chart_rbac import Grant, granted
from chart_values import CHART, INSTALLATIONS
from helm_process import NAMESPACE, RELEASE, Helm
from kube_cluster import KubeCluster

from agent.kube.policystatus import NODE_STATUS
from agent.kube.resources import watched
from policies.kinds import KINDS

ACCOUNT = (NAMESPACE, RELEASE)
OWN = "gatehouse.io"
READING = ("list", "watch")

WRITTEN: dict[tuple[str, str], tuple[str, ...]] = {
    (OWN, "securityidentities"): ("get", "create", "patch", "delete"),  # kube/identities.py; kube/collector.py
    (OWN, "nodeendpoints"): ("get", "create", "update", "delete"),  # kube/membership.py; kube/collector.py
    (OWN, "nodestatuses"): ("get", "create", "delete"),  # kube/nodestatus.py; kube/collector.py
    (OWN, "nodestatuses/status"): ("update",),  # kube/nodestatus.py
    (OWN, "nodeblocks"): ("list", "delete"),  # kube/collector.py
    ("", "nodes"): ("get",),  # kube/ownobject.py, for ownerReferences
    ("cilium.io", "ciliumnetworkpolicies/status"): ("patch",),  # kube/policystatus.py
    ("cilium.io", "ciliumclusterwidenetworkpolicies/status"): ("patch",),
}
POOL = {Grant(verb, OWN, "nodeblocks") for verb in ("get", "create")}  # kube/blocks.py
LEASE = {
    Grant("create", "coordination.k8s.io", "leases", NAMESPACE),  # kube/lease.py
    Grant("get", "coordination.k8s.io", "leases", NAMESPACE, "gatehouse"),
    Grant("update", "coordination.k8s.io", "leases", NAMESPACE, "gatehouse"),
}


def needed(*secret_namespaces: str) -> set[Grant]:
    read = (*watched("n1", secret_namespaces), NODE_STATUS)
    return (
        {Grant(verb, one.group, one.plural, one.namespace) for one in read for verb in READING}
        | {Grant(verb, *resource) for resource, verbs in WRITTEN.items() for verb in verbs}
        | LEASE
    )


def test_what_is_granted_is_what_is_needed(helm: Helm) -> None:
    found = granted(helm.objects({}), ACCOUNT)
    assert sorted(found) == sorted(needed())


def test_blocks_of_a_pool(helm: Helm) -> None:
    found = granted(helm.objects(INSTALLATIONS["vxlan-pool"]), ACCOUNT)
    assert sorted(found) == sorted(needed() | POOL)


def test_secrets_only_of_namespaces_that_are_named(helm: Helm) -> None:
    found = granted(helm.objects({"tlsSecretNamespaces": ["shop", "web"]}), ACCOUNT)
    assert sorted(found) == sorted(needed("shop", "web"))
    assert {grant.namespace for grant in found if grant.resource == "secrets"} == {"shop", "web"}


def test_nobody_else_is_granted_anything(helm: Helm) -> None:
    objects = helm.objects(INSTALLATIONS["private-registry"])
    bindings = [one for one in objects if one["kind"].endswith("Binding")]
    subjects = {tuple(sorted(subject.items())) for one in bindings for subject in one["subjects"]}
    assert subjects == {(("kind", "ServiceAccount"), ("name", RELEASE), ("namespace", NAMESPACE))}
    assert "*" not in {part for grant in granted(objects, ACCOUNT) for part in grant}


def test_every_custom_resource_and_kind_of_policy_can_be_read(helm: Helm) -> None:
    found = {(grant.group, grant.resource) for grant in granted(helm.objects({}), ACCOUNT) if grant.verb == "list"}
    for path in (CHART / "crds").iterdir():
        spec = yaml.safe_load(path.read_text())["spec"]
        assert (spec["group"], spec["names"]["plural"]) in found
    assert {policy.group for policy in KINDS.values()} <= {group for group, _ in found}


@pytest.fixture
def cluster(datapath_host: None, tmp_path: Path) -> Iterator[KubeCluster]:
    with KubeCluster(tmp_path, "n1", "n2", flags=("--namespace", NAMESPACE)) as cluster:
        yield cluster


def test_agents_ask_for_nothing_else(helm: Helm, cluster: KubeCluster) -> None:
    """And for what they write in ordinary life."""
    cluster.start()
    cluster.apply(policy("shop/web", {"app": "web"}, ingress=allow_from(app="client")), cilium_policy())
    cluster.add("n1/shop/client", app="client")
    cluster.add("n2/shop/web", app="web")
    rig.wait_until(lambda: conditions(cluster), START_S, "the author of the policy is told of both nodes")
    cluster.remove("n1/shop/client")

    grants = granted(helm.objects({}), ACCOUNT)
    asked = {
        Grant(one.verb, one.group, one.resource, one.namespace, one.name) for one in cluster.api.requests if one.verb
    }
    beyond = [one for one in asked if not any(grant.covers(one) for grant in grants)]
    assert beyond == []
    used = {grant for grant in grants if any(grant.covers(one) for one in asked)}
    rarely = {  # what goes with nodes, and what takes another agent or hours
        *(Grant("delete", OWN, f"node{what}") for what in ("blocks", "endpoints", "statuses")),
        *(Grant(verb, OWN, "securityidentities") for verb in ("get", "patch", "delete")),
        Grant("patch", "cilium.io", "ciliumclusterwidenetworkpolicies/status"),
    }
    policies = {kind.group for kind in KINDS.values()} - {"networking.k8s.io"}
    unused = {grant for grant in set(grants) - used - rarely if grant.group not in policies or grant.verb == "patch"}
    assert unused == set()


def cilium_policy() -> dict[str, object]:
    return {
        "apiVersion": "cilium.io/v2",
        "kind": "CiliumNetworkPolicy",
        "metadata": {"name": "web", "namespace": "shop"},
        "spec": {"endpointSelector": {"matchLabels": {"app": "web"}}, "ingress": [{}]},
    }


def conditions(cluster: KubeCluster) -> bool:
    found = cluster.api.get("ciliumnetworkpolicies", "web", "shop")
    return found is not None and bool(found.get("status", {}).get("conditions"))

"""CiliumNetworkPolicy, row by row: whom it selects, what it isolates, what it says of itself."""

from __future__ import annotations

import pytest
from cilium_rules import (
    ALL,
    HERE,
    IN,
    NAME,
    OUT,
    labels,
    manifest,
    one,
    pods,
    required,
)

from policies.cilium.policy import CLUSTERWIDE, HOST_POLICY, NAMESPACED, NO_POD, parse, spec_paths
from policies.model import (
    Direction,
    LabelSelector,
    Operator,
    PodSelector,
)

ISOLATES: list[tuple[str, set[Direction]]] = [
    ("ingress: [{}]", {IN}),
    ("ingressDeny: [{}]", {IN}),
    ("egress: [{}]", {OUT}),
    ("egressDeny: [{toEntities: [world]}]", {OUT}),
    ("ingress: [{}], egress: [{}]", {IN, OUT}),
    ("ingress: [], egress: [{}]", {OUT}),
    ("ingress: [{}], egress: [{}], enableDefaultDeny: {egress: false}", {IN}),
    ("ingress: [{}], enableDefaultDeny: {ingress: false}", set()),
    ("ingress: [{}], enableDefaultDeny: {egress: true}", {IN, OUT}),
    ("enableDefaultDeny: {ingress: true}", {IN}),
    ("ingress: [{}], enableDefaultDeny: {}", {IN}),
]


@pytest.mark.parametrize(("rules", "directions"), ISOLATES)
def test_what_isolates(rules: str, directions: set[Direction]) -> None:
    assert one(rules).isolates == directions


@pytest.mark.parametrize("rules", ["ingress: [{}]", "egress: [{}]", "ingressDeny: [{}]", "egressDeny: [{}]"])
def test_a_rule_that_says_nothing_matches_nothing(rules: str) -> None:
    """It isolates: cilium.io/v2's way to say that all is denied."""
    (rule,) = one(rules).rules
    assert (rule.peers, rule.ports) == ((), None)


SUBJECTS = [
    (NAMESPACED, "{}", PodSelector(ALL, namespace="shop")),
    (NAMESPACED, "{matchLabels: {'k8s:app': web}}", pods(app="web")),
    (NAMESPACED, "{matchLabels: {io.kubernetes.pod.namespace: shop, app: web}}", pods(app="web")),
    (
        NAMESPACED,
        "{matchLabels: {io.cilium.k8s.namespace.labels.team: a}}",
        PodSelector(ALL, namespaces=LabelSelector(frozenset({required("team", "a"), required(NAME, "shop")}))),
    ),
    (NAMESPACED, "{matchExpressions: [{key: 'reserved:init', operator: DoesNotExist}]}", pods()),
    (CLUSTERWIDE, "{matchLabels: {app: web}}", PodSelector(labels(app="web"), namespaces=ALL)),
    (
        CLUSTERWIDE,
        "{matchExpressions: [{key: io.kubernetes.pod.namespace, operator: NotIn, values: [kube-system]}]}",
        PodSelector(
            ALL, namespaces=LabelSelector(frozenset({required(NAME, "kube-system", operator=Operator.NOT_IN)}))
        ),
    ),
]  # fmt: skip


@pytest.mark.parametrize(("kind", "selector", "subject"), SUBJECTS)
def test_subjects(kind: str, selector: str, subject: PodSelector) -> None:
    (policy,) = parse(manifest(f"{{endpointSelector: {selector}, ingress: [{{}}]}}", kind), HERE)
    assert policy.subject == subject
    assert not policy.problem


NO_PODS = "spec.endpointSelector: selects what is no pod"

UNENFORCED = [
    ("{nodeSelector: {}, ingress: [{fromEntities: [cluster]}]}", f"spec.nodeSelector: {HOST_POLICY}"),
    (
        "{endpointSelector: {matchLabels: {'reserved:health': ''}}, ingress: [{}]}",
        NO_PODS,
    ),
    (
        "{endpointSelector: {matchExpressions: [{key: 'reserved:host', operator: In, values: [x]}]}, ingress: [{}]}",
        NO_PODS,
    ),
]


@pytest.mark.parametrize(("spec", "status"), UNENFORCED)
def test_what_is_not_about_pods_is_said_not_to_be_enforced(spec: str, status: str) -> None:
    (policy,) = parse(manifest(spec, CLUSTERWIDE), HERE)
    assert policy.problem.startswith(status)
    assert (policy.subject, policy.isolates, policy.rules) == (NO_POD, frozenset(), ())
    assert not NO_POD.pods.matches({})


def test_several_specs_are_several_policies() -> None:
    spec = "[{endpointSelector: {}, ingress: [{}]}, {endpointSelector: {}, egressDeny: [{toEntities: [world]}]}]"
    first, second = parse(manifest(spec), HERE)
    assert (str(first.ref), str(second.ref)) == (f"{NAMESPACED} shop/p", f"{NAMESPACED} shop/p:specs[1]")
    assert [str(rule.ref) for policy in (first, second) for rule in policy.rules] == [
        f"{NAMESPACED} shop/p specs[0].ingress[0]",
        f"{NAMESPACED} shop/p:specs[1] specs[1].egressDeny[0]",
    ]
    both = manifest(spec) | {"spec": {"endpointSelector": {}, "ingress": [{}]}}
    assert [policy.ref.name for policy in parse(both, HERE)] == ["p", "p:specs[0]", "p:specs[1]"]
    assert spec_paths(both) == ["spec", "specs[0]", "specs[1]"]


def test_fields_that_only_describe_are_taken() -> None:
    rules = "ingress: [{}], labels: [{key: a, value: b, source: k8s}], description: why, log: {value: x}"
    assert one(rules) == one("ingress: [{}]")

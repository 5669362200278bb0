"""Likely slips in valid policies of cilium.io/v2, and what `policy check` makes of every kind."""

from __future__ import annotations

from typing import Any

import pytest
import yaml

from policies.check import check
from policies.cilium.policy import API_VERSION, CLUSTERWIDE, NAMESPACED
from policies.facts import PodFacts
from policies.model import ContainerPort, Origin
from policies.slips import Surroundings

HERE = Origin("shop.yaml", 3)
WEB = PodFacts("shop", "web", {"app": "web"}, frozenset({ContainerPort("http", 6, 8080)}))
AROUND = Surroundings([WEB], {"shop": {"team": "a"}})


def manifest(spec: str, kind: str = NAMESPACED, name: str = "p") -> dict[str, Any]:
    value = yaml.safe_load(spec)
    metadata = {"name": name} | ({"namespace": "shop"} if kind == NAMESPACED else {})
    head = {"apiVersion": API_VERSION, "kind": kind, "metadata": metadata}
    return head | {"specs" if isinstance(value, list) else "spec": value}


def http(rule: str) -> str:
    port = "{port: '80', protocol: TCP}"
    return f"{{endpointSelector: {{}}, ingress: [{{toPorts: [{{ports: [{port}], rules: {{http: [{rule}]}}}}]}}]}}"


DNS = "{toPorts: [{ports: [{port: '53', protocol: UDP}], rules: {dns: [{matchPattern: '*'}]}}]}"

# spec → path and a piece of the message of each warning
SLIPS: list[tuple[str, list[tuple[str, str]]]] = [
    ("{endpointSelector: {matchLabels: {app: web}}, ingress: [{fromEndpoints: [{}]}]}", []),
    ("{endpointSelector: {matchLabels: {app: wbe}}, ingress: [{}]}", [("spec.endpointSelector", "there are no pods")]),
    ("{endpointSelector: {}, ingress: [], egress: [{}]}", [("spec.ingress", "has no effect")]),
    ("{endpointSelector: {}, ingressDeny: [{}]}", [("spec.ingressDeny[0]", "denies nothing by itself")]),
    ("{endpointSelector: {}, ingress: [{fromEndpoints: []}]}", [("spec.ingress[0].fromEndpoints", "matches nothing")]),
    (
        "{endpointSelector: {}, ingress: [{fromEndpoints: [{matchLabels: {io.kubernetes.pod.namespaces: shop}}]}]}",
        [
            (
                "spec.ingress[0].fromEndpoints[0].matchLabels[io.kubernetes.pod.namespaces]",
                "did you mean io.kubernetes.pod.namespace?",
            ),
            ("spec.ingress[0]", "there are no pods with io.kubernetes.pod.namespaces=shop"),
        ],
    ),
    (
        "{endpointSelector: {matchExpressions: [{key: 'k8s:kubernetes.io/metadata.name', operator: DoesNotExist}]},"
        " ingress: [{}]}",
        [("spec.endpointSelector.matchExpressions[0].key", "did you mean io.kubernetes.pod.namespace?")],
    ),
    (
        "[{endpointSelector: {}, ingress: [{}]}, {endpointSelector: {}, egress: [{toEndpoints: [{matchLabels: {a: b}}],"
        " toPorts: [{ports: [{port: '1'}]}]}]}]",
        [("specs[1].egress[0]", "there are no pods with a=b")],
    ),
    ("{endpointSelector: {}, ingress: [{fromCIDR: [10.1.2.3/8]}]}", [("spec.ingress[0].fromCIDR[0]", "10.0.0.0/8")]),
    (
        "{endpointSelector: {}, egress: [{toCIDRSet: [{cidr: 10.0.0.0/8, except: [10.1.2.3/16]}]}]}",
        [("spec.egress[0].toCIDRSet[0].except[0]", "10.1.0.0/16")],
    ),
    (http("{path: public/.*, method: get}"), [
        ("spec.ingress[0].toPorts[0].rules.http[0].path", "begins with '/'"),
        ("spec.ingress[0].toPorts[0].rules.http[0].method", "upper-case"),
    ]),
    (http("{path: /public/.*, method: GET|HEAD}"), []),
    ("{endpointSelector: {}, ingress: [{toPorts: [{ports: [{port: http}]}]}]}", []),
    (
        "{endpointSelector: {}, ingress: [{toPorts: [{ports: [{port: htpt}]}]}]}",
        [("spec.ingress[0]", "no pod has a port named htpt")],
    ),
    (
        "{endpointSelector: {}, egress: [{toFQDNs: [{matchName: a.org}]}]}",
        [("", "nobody learns the addresses of a.org")],
    ),
    (f"{{endpointSelector: {{}}, egress: [{{toFQDNs: [{{matchName: a.org}}]}}, {DNS}]}}", []),
]  # fmt: skip


@pytest.mark.parametrize(("spec", "expected"), SLIPS)
def test_slips(spec: str, expected: list[tuple[str, str]]) -> None:
    report = check([(manifest(spec), HERE)], AROUND)
    assert (report.policies, report.errors) == (1, 0)
    assert [finding.path for finding in report.findings] == [path for path, _ in expected]
    for finding, (_, piece) in zip(report.findings, expected, strict=True):
        assert piece in finding.message
        assert (finding.severity, finding.file, finding.line) == ("warning", "shop.yaml", 3)


def test_another_policy_may_have_the_dns_rule() -> None:
    names = (manifest("{endpointSelector: {}, egress: [{toFQDNs: [{matchName: a.org}]}]}"), HERE)
    rule = f"{{endpointSelector: {{}}, egress: [{DNS}]}}"
    for kind in (NAMESPACED, CLUSTERWIDE):
        assert check([names, (manifest(rule, kind, "dns"), HERE)]).warnings == 0


def test_every_kind_is_looked_at() -> None:
    admin = {"apiVersion": "policy.networking.k8s.io/v1alpha1", "kind": "AdminNetworkPolicy", "metadata": {"name": "a"}}
    documents = [
        (manifest("{endpointSelector: {}, ingress: [{from: []}]}"), HERE),
        (manifest("{endpointSelector: {}, ingress: [{fromGroups: []}]}", CLUSTERWIDE), HERE),
        (admin | {"spec": {"subject": {"namespaces": {}}}}, HERE),
        (manifest("{endpointSelector: {}, ingress: [{}]}", CLUSTERWIDE, "twice"), HERE),
        (manifest("{endpointSelector: {}, egress: [{}]}", CLUSTERWIDE, "twice"), Origin("more.yaml", 9)),
        (admin | {"apiVersion": "example.org/v1"}, HERE),
    ]
    report = check(documents)
    assert (report.policies, report.errors) == (5, 4)
    assert [f"{f.policy}: {f.path}" for f in report.findings if f.severity == "error"] == [
        "CiliumNetworkPolicy shop/p: spec.ingress[0].from",
        "CiliumClusterwideNetworkPolicy p: spec.ingress[0].fromGroups",
        "AdminNetworkPolicy a: spec.priority",
        "CiliumClusterwideNetworkPolicy twice: metadata.name",
    ]

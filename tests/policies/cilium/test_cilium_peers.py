"""Whom a rule of a CiliumNetworkPolicy is about."""

from __future__ import annotations

import pytest
from cilium_rules import (
    ALL,
    IN,
    INGRESS_PEERS,
    OUT,
    labels,
    one,
)

from policies.cilium.policy import CLUSTERWIDE, NAMESPACED
from policies.l7 import NamePattern
from policies.model import (
    Action,
    ObjectRef,
    Peer,
    PodSelector,
    Rule,
    RuleRef,
    ServicePeer,
)


@pytest.mark.parametrize(("rule", "peers"), INGRESS_PEERS)
def test_peers_of_ingress(rule: str, peers: tuple[Peer, ...] | None) -> None:
    ref = RuleRef(ObjectRef(NAMESPACED, "shop", "p"), IN, 0)
    assert one(f"ingress: [{{{rule}}}]").rules == (Rule(ref, peers, None),)
    denied = one(f"ingressDeny: [{{{rule}}}]").rules
    assert denied == (Rule(RuleRef(ref.policy, IN, 0, "ingressDeny"), peers, None, Action.DENY),)


@pytest.mark.parametrize(
    ("rule", "peers"),
    [
        (rule.replace("from", "to"), peers) for rule, peers in INGRESS_PEERS
    ] + [
        ("toFQDNs: [{matchName: API.Example.com.}]", (NamePattern(exact="api.example.com"),)),
        ("toFQDNs: [{matchPattern: '*.Example.com'}]", (NamePattern(pattern="*.example.com"),)),
        ("toFQDNs: [{matchPattern: '***.a.com'}]", (NamePattern(pattern="**.a.com"),)),
        ("toFQDNs: [{matchPattern: 'a**b.**.com'}]", (NamePattern(pattern="a*b.*.com"),)),
        ("toFQDNs: [{matchPattern: '**'}]", (NamePattern(pattern="*"),)),
        ("toFQDNs: [{matchPattern: plain.com, matchName: ''}]", (NamePattern(exact="plain.com"),)),
        ("toFQDNs: []", ()),
        ("toServices: []", ()),
        ("toServices: [{k8sService: {serviceName: db}}]", (ServicePeer("shop", "db"),)),
        ("toServices: [{k8sService: {serviceName: db, namespace: data}}]", (ServicePeer("data", "db"),)),
        (
            "toServices: [{k8sServiceSelector: {selector: {matchLabels: {'k8s:app': db}}}}]",
            (ServicePeer("", selector=labels(app="db")),),
        ),
        (
            "toServices: [{k8sServiceSelector: {selector: {}, namespace: data}}]",
            (ServicePeer("data", selector=ALL),),
        ),
    ],
)  # fmt: skip
def test_peers_of_egress(rule: str, peers: tuple[Peer, ...] | None) -> None:
    ref = RuleRef(ObjectRef(NAMESPACED, "shop", "p"), OUT, 0)
    assert one(f"egress: [{{{rule}}}]").rules == (Rule(ref, peers, None),)


@pytest.mark.parametrize(
    ("rule", "peers"),
    [
        ("fromEndpoints: [{}]", (PodSelector(ALL, namespaces=ALL),)),
        ("fromEndpoints: [{matchLabels: {app: web}}]", (PodSelector(labels(app="web"), namespaces=ALL),)),
        (
            "fromEndpoints: [{matchLabels: {app: web, io.kubernetes.pod.namespace: pay}}]",
            (PodSelector(labels(app="web"), namespace="pay"),),
        ),
    ],
)
def test_peers_of_a_clusterwide_policy_are_of_every_namespace(rule: str, peers: tuple[Peer, ...]) -> None:
    policy = one(f"ingress: [{{{rule}}}]", CLUSTERWIDE)
    assert (policy.ref, policy.subject) == (ObjectRef(CLUSTERWIDE, "", "p"), PodSelector(ALL, namespaces=ALL))
    assert [rule.peers for rule in policy.rules] == [peers]

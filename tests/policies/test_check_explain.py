"""What people are told: findings of `policy check`, steps of `policy explain`."""

from __future__ import annotations

from typing import Any

import drawn_policies
import msgspec
import pytest
import strategies
import yaml
from hypothesis import given, settings
from hypothesis import strategies as st

from policies.address import parse_address
from policies.check import check
from policies.evaluate import evaluate
from policies.explain import explain, lines
from policies.facts import HOST, Flow, Party, PodFacts
from policies.fields import InvalidPolicy
from policies.model import Action, ContainerPort, Origin, Policy, Verdict
from policies.networkpolicy import parse, salvage
from policies.slips import Surroundings

HERE = Origin("shop.yaml", 3)


def manifest(spec: str, name: str = "p") -> Any:
    metadata = {"name": name, "namespace": "shop"}
    return {
        "apiVersion": "networking.k8s.io/v1",
        "kind": "NetworkPolicy",
        "metadata": metadata,
        "spec": yaml.safe_load(spec),
    }


WEB = PodFacts("shop", "web", {"app": "web"}, frozenset({ContainerPort("http", 6, 8080)}))
CLIENT = PodFacts("shop", "client", {"app": "client", "tier": "b"})
AROUND = Surroundings([WEB, CLIENT], {"shop": {"team": "a"}})

# spec → path and a piece of the message of each warning
SLIPS: list[tuple[str, list[tuple[str, str]]]] = [
    ("{podSelector: {matchLabels: {app: web}}}", []),
    ("{podSelector: {matchLabels: {app: wbe}}}", [("spec.podSelector", "there are no pods with app=wbe")]),
    ("{podSelector: {}, policyTypes: [Egress], ingress: [{}]}", [("spec.ingress", "does not list Ingress")]),
    ("{podSelector: {}, policyTypes: [Ingress], egress: [{}]}", [("spec.egress", "does not list Egress")]),
    ("{podSelector: {}, policyTypes: [Ingress], egress: []}", []),
    (
        "{podSelector: {}, ingress: [{from: [{ipBlock: {cidr: 10.0.0.7/8, except: [10.1.0.0/16, 10.2.0.1/16]}}]}]}",
        [
            ("spec.ingress[0].from[0].ipBlock.cidr", "read as 10.0.0.0/8"),
            ("spec.ingress[0].from[0].ipBlock.except[1]", "read as 10.2.0.0/16"),
        ],
    ),
    (
        "{podSelector: {}, ingress: [{}, {from: [{namespaceSelector: {}}, {podSelector: {}}]}]}",
        [("spec.ingress[1].from[1]", "a peer of its own")],
    ),
    ("{podSelector: {}, ingress: [{from: [{namespaceSelector: {}, podSelector: {}}]}]}", []),
    (
        "{podSelector: {}, ingress: [{from: [{namespaceSelector: {matchLabels: {team: b}}}]}]}",
        [("spec.ingress[0].from[0]", "no pods in namespaces with team=b")],
    ),
    ("{podSelector: {}, ingress: [{ports: [{port: http}]}]}", []),
    (
        "{podSelector: {}, ingress: [{ports: [{port: 80}, {port: http, protocol: UDP}]}]}",
        [("spec.ingress[0].ports[1]", "no pod has a UDP port named http")],
    ),
]


@pytest.mark.parametrize(("spec", "warnings"), SLIPS)
def test_slips(spec: str, warnings: list[tuple[str, str]]) -> None:
    report = check([(manifest(spec), HERE)], AROUND)
    assert (report.policies, report.errors, report.warnings) == (1, 0, len(warnings))
    for finding, (path, message) in zip(report.findings, warnings, strict=True):
        assert finding.path == path
        assert message in finding.message
        assert (finding.severity, finding.file, finding.line) == ("warning", "shop.yaml", 3)


def test_errors_come_with_file_line_and_field() -> None:
    documents = [
        (manifest("{podSelector: {}, ingress: [{ports: [{port: 0}, {protocol: tcp}]}]}"), HERE),
        (manifest("{podSelector: {}}", "twice"), HERE),
        (manifest("{podSelector: {}}", "twice"), Origin("more.yaml", 9)),
        ({"kind": "NetworkPolicy", "apiVersion": "crd.projectcalico.org/v1"}, HERE),
        ({"kind": "NetworkPolicy", "metadata": 5}, HERE),
        ({"kind": "Pod"}, HERE),
        (None, HERE),
    ]
    report = check(documents)
    assert (report.policies, report.errors, report.warnings) == (4, 6, 0)
    assert [str(f) for f in report.findings[:3]] == [
        "shop.yaml:3: error: NetworkPolicy shop/p: spec.ingress[0].ports[0].port: must be 1–65535, not 0",
        "shop.yaml:3: error: NetworkPolicy shop/p: "
        "spec.ingress[0].ports[1].protocol: must be TCP, UDP or SCTP, not 'tcp'",
        "more.yaml:9: error: NetworkPolicy shop/twice: metadata.name: given already at shop.yaml:3",
    ]


def test_unknown_surroundings_give_no_warnings_about_them() -> None:
    spec = "{podSelector: {matchLabels: {app: nobody}}, ingress: [{ports: [{port: nothing}]}]}"
    assert check([(manifest(spec), HERE)]).findings == ()


@given(strategies.clusters(max_policies=3))
@settings(max_examples=50)
def test_valid_policies_have_warnings_at_most(cluster: strategies.Cluster) -> None:
    around = Surroundings([pod.facts for pod in cluster.pods], cluster.namespaces)
    assert check([(raw, HERE) for raw in cluster.policies], around).errors == 0


# ---- explain

SPEC = """
podSelector: {matchLabels: {app: web}}
ingress:
- from:
  - podSelector: {matchLabels: {app: other}}
  - namespaceSelector: {matchLabels: {team: b}}
  - ipBlock: {cidr: 10.0.0.0/8, except: [10.0.0.3/32]}
- from: [{podSelector: {}}]
  ports: [{port: http}, {port: 80, endPort: 90, protocol: UDP}]
"""
FLOW = Flow(Party(parse_address("10.0.0.3"), CLIENT), Party(parse_address("10.0.0.2"), WEB), 6, 8080)
NAMESPACES = {"shop": {"team": "a"}}


def test_explanation_reads() -> None:
    policies = [parse(manifest(SPEC), HERE), parse(manifest("{podSelector: {matchLabels: {app: db}}}", "db"), HERE)]
    assert list(lines(explain(policies, NAMESPACES, FLOW))) == [
        "pod shop/client (10.0.0.3) → pod shop/web (10.0.0.2), TCP 8080: allow",
        "egress of pod shop/client (10.0.0.3): allow, not-isolated",
        "  NetworkPolicy shop/db (shop.yaml:3): does not select the pod: it is not app=db (it has app=client)",
        "  NetworkPolicy shop/p (shop.yaml:3): does not select the pod: it is not app=web (it has app=client)",
        "ingress of pod shop/web (10.0.0.2): allow, by NetworkPolicy shop/p ingress[1]",
        "  NetworkPolicy shop/db (shop.yaml:3): does not select the pod: it is not app=db (it has app=web)",
        "  NetworkPolicy shop/p (shop.yaml:3): isolates the pod: it is one of pods with app=web in namespace shop",
        "    spec.ingress[0] does not allow it",
        "      - pods with app=other in namespace shop: it is not app=other (it has app=client)",
        "      - all pods in namespaces with team=b: namespace shop is not team=b (it has team=a)",
        "      - addresses in 10.0.0.0/8 except 10.0.0.3/32: 10.0.0.3 is in except 10.0.0.3/32",
        "    spec.ingress[1] allows it",
        "      + all pods in namespace shop: pod shop/client is one of them",
        "      + TCP http: http is 8080 in pod shop/web; the flow is to TCP 8080",
        "      - UDP 80–90: the flow is to TCP 8080",
    ]


def test_explanation_has_stable_fields() -> None:
    value = msgspec.to_builtins(explain([parse(manifest(SPEC), HERE)], NAMESPACES, FLOW))
    assert set(value) == {"source", "destination", "protocol", "port", "verdict", "egress", "ingress"}
    side = value["ingress"]
    assert set(side) == {"direction", "subject", "verdict", "judged", "decided_by", "policies", "asks"}
    (policy,) = side["policies"]
    named = {"kind", "namespace", "name", "file", "line", "tier", "priority"}
    assert set(policy) == {*named, "isolates", "reason", "rules"}
    assert set(policy["rules"][0]) == {"rule", "action", "matches", "allows", "asks", "peers", "ports"}
    assert set(policy["rules"][0]["peers"][0]) == {"what", "matched", "reason"}


def explained(policies: list[Policy], source: Party, destination: Party, port: int = 80) -> str:
    return "\n".join(lines(explain(policies, NAMESPACES, Flow(source, destination, 6, port))))


def test_other_reasons() -> None:
    bad = manifest("{podSelector: {}, ingress: [{ports: [{port: 0}]}]}")
    with pytest.raises(InvalidPolicy):
        parse(bad, HERE)
    saved = salvage(bad, HERE)
    assert saved is not None
    assert "could not be understood (spec.ingress[0].ports[0].port: must be" in explained(
        [saved], FLOW.source, FLOW.destination
    )
    assert (
        "egress of pod shop/client (10.0.0.3): allow, not-isolated\n  NetworkPolicy shop/p (shop.yaml:3): selects the"
        in (explained([saved], FLOW.source, FLOW.destination))
    )
    node, world = Party(parse_address("10.0.0.1"), entity=HOST), Party(parse_address("192.0.2.7"))
    assert "ingress of pod shop/web (10.0.0.2): allow, node" in explained([saved], node, FLOW.destination)
    assert "egress of world (192.0.2.7): allow, it is no pod" in explained([saved], world, FLOW.destination)
    egress = parse(manifest("{podSelector: {}, egress: [{to: [{podSelector: {}}], ports: [{port: http}]}]}"), HERE)
    text = explained([egress], FLOW.source, world)
    assert "- all pods in namespace shop: world (192.0.2.7) is no pod" in text
    assert "- TCP http: world (192.0.2.7) is no pod, so it names no ports" in text
    text = explained([egress], FLOW.destination, FLOW.source)
    assert "- TCP http: pod shop/client has no TCP port named http" in text


@given(cluster=strategies.clusters(), seed=st.integers(0, 2**32))
@settings(max_examples=60)
def test_steps_agree_with_the_oracle(cluster: strategies.Cluster, seed: int) -> None:
    policies = [strategies.parsed(raw) for raw in cluster.policies]
    for flow in strategies.flows_of(cluster, seed, 10):
        decision = evaluate(policies, cluster.namespaces, flow)
        told = explain(policies, cluster.namespaces, flow)
        assert told.verdict is decision.verdict
        for side, step in ((decision.egress, told.egress), (decision.ingress, told.ingress)):
            assert step.verdict is side.verdict
            if not side.judged or any(rule.index < 0 for rule in side.allowed_by):
                continue
            assert [p.name for p in step.policies if p.isolates] == [ref.name for ref in side.isolated_by]
            rules = [rule for p in step.policies for rule in p.rules]
            assert sum(rule.allows for rule in rules) == len(side.allowed_by)
            for rule in rules:
                asked = [any(m.matched for m in group) or not group for group in (rule.peers, rule.ports)]
                assert rule.allows is all(asked)
            assert (step.verdict is Verdict.ALLOW) is any(rule.allows for rule in rules)


@given(cluster=drawn_policies.clusters(), seed=st.integers(0, 2**32))
@settings(max_examples=60)
def test_steps_of_every_kind_agree_with_the_oracle(cluster: strategies.Cluster, seed: int) -> None:
    """Who decided is among the steps, with what it did; and every reason can be said."""
    policies = strategies.policies_of(cluster)
    for flow in strategies.flows_of(cluster, seed, 10):
        decision = evaluate(policies, cluster.namespaces, flow)
        told = explain(policies, cluster.namespaces, flow)
        assert told.verdict is decision.verdict
        assert list(lines(told))
        for side, step in ((decision.egress, told.egress), (decision.ingress, told.ingress)):
            assert step.verdict is side.verdict
            assert bool(step.asks) is (side.verdict is Verdict.REDIRECT)
            rules = {
                (p.kind, p.name, rule.rule, rule.action) for p in step.policies for rule in p.rules if rule.matches
            }
            for refs, action in ((side.allowed_by, Action.ALLOW), (side.denied_by, Action.DENY)):
                for ref in refs:
                    where = f"spec.{ref.section or ref.direction}[{ref.index}]"
                    assert ref.index < 0 or (ref.policy.kind, ref.policy.name, where, action) in rules
            decided = (*side.denied_by, *side.allowed_by)[:1]
            assert not decided or decided[0].policy.name in step.decided_by

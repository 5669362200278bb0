"""The oracle by hand: one policy, one flow, one verdict a row."""

from __future__ import annotations

import pytest
import strategies

from policies.address import parse_address
from policies.evaluate import HOST, Flow, Party, PodFacts, evaluate
from policies.model import NODE, NOT_ISOLATED, SELF, ContainerPort, Policy, Verdict

WEB = PodFacts("shop", "web", {"app": "web"}, frozenset({ContainerPort("http", 6, 8080), ContainerPort("dns", 17, 53)}))
CLIENT = PodFacts("shop", "client", {"app": "client"})
OTHER = PodFacts("other", "client", {"app": "client"}, frozenset({ContainerPort("http", 6, 9090)}))
PARTIES = {
    "web": Party(parse_address("10.0.0.2"), WEB),
    "web6": Party(parse_address("fd00::2"), WEB),
    "client": Party(parse_address("10.0.0.3"), CLIENT),
    "other": Party(parse_address("10.0.1.4"), OTHER),
    "node": Party(parse_address("10.0.0.1"), entity=HOST),
    "far-node": Party(parse_address("10.9.0.1"), entity="remote-node"),
    "world": Party(parse_address("192.0.2.7")),
    "world6": Party(parse_address("2001:db8::7")),
}
LABELS = {"shop": {"team": "a"}, "other": {"team": "b"}}


def spec(**fields: object) -> Policy:
    metadata = {"name": "p", "namespace": "shop"}
    manifest = {"apiVersion": "networking.k8s.io/v1", "kind": "NetworkPolicy", "metadata": metadata, "spec": fields}
    return strategies.parsed(manifest)


def expression(key: str, operator: str, values: list[str] | None = None) -> dict[str, object]:
    return {"matchExpressions": [{"key": key, "operator": operator, "values": values}]}


WEB_PODS = {"matchLabels": {"app": "web"}}


def ingress(*rules: dict[str, object]) -> Policy:
    return spec(podSelector=WEB_PODS, ingress=list(rules))


def egress(*rules: dict[str, object]) -> Policy:
    return spec(podSelector={"matchLabels": {"app": "client"}}, policyTypes=["Egress"], egress=list(rules))


BLOCK = {"cidr": "10.0.0.0/8", "except": ["10.0.1.0/24"]}
# policy, from, to, protocol, port → allowed
JUDGED: list[tuple[Policy, str, str, int, int, bool]] = [
    (ingress(), "client", "web", 6, 80, False),
    (ingress(), "web", "client", 6, 80, True),  # client is not isolated, and web's egress is not
    (ingress(), "node", "web", 6, 80, True),  # the node reaches its pods
    (ingress(), "far-node", "web", 6, 80, False),
    (ingress(), "web", "web", 6, 80, True),  # a pod reaches itself
    (ingress(), "web", "web6", 6, 80, True),
    (ingress({}), "world", "web", 6, 80, True),
    (ingress({}), "world6", "web6", 58, 0, True),
    (ingress({"ports": [{}]}), "world", "web", 6, 1, True),
    (ingress({"ports": [{}]}), "world", "web", 17, 1, False),
    (ingress({"ports": [{}]}), "world", "web", 1, 0, False),  # ICMP: by rules without ports alone
    (ingress({"ports": [{"protocol": "UDP"}]}), "client", "web", 6, 80, False),  # isolates TCP too
    (ingress({"ports": [{"port": "http"}]}), "client", "web", 6, 8080, True),
    (ingress({"ports": [{"port": "http"}]}), "client", "web", 6, 80, False),
    (ingress({"ports": [{"port": "http"}]}), "client", "web", 17, 8080, False),
    (ingress({"ports": [{"port": "dns"}]}), "client", "web", 6, 53, False),  # the name is for UDP
    (ingress({"from": [{"podSelector": {}}]}), "client", "web", 6, 80, True),
    (ingress({"from": [{"podSelector": {}}]}), "other", "web", 6, 80, False),
    (ingress({"from": [{"podSelector": expression("tier", "NotIn", ["b"])}]}), "client", "web", 6, 80, True),  # no tier
    (ingress({"from": [{"podSelector": expression("app", "NotIn", ["client"])}]}), "client", "web", 6, 80, False),
    (ingress({"from": [{"podSelector": expression("app", "In", ["client", "x"])}]}), "client", "web", 6, 80, True),
    (ingress({"from": [{"podSelector": expression("app", "Exists")}]}), "client", "web", 6, 80, True),
    (ingress({"from": [{"podSelector": expression("tier", "Exists")}]}), "client", "web", 6, 80, False),
    (ingress({"from": [{"podSelector": expression("tier", "DoesNotExist")}]}), "client", "web", 6, 80, True),
    (ingress({"from": [{"namespaceSelector": {}}]}), "other", "web", 6, 80, True),
    (ingress({"from": [{"namespaceSelector": {}}]}), "world", "web", 6, 80, False),
    (ingress({"from": [{"namespaceSelector": {"matchLabels": {"team": "b"}}}]}), "other", "web", 6, 80, True),
    (
        ingress({"from": [{"namespaceSelector": {"matchLabels": {"team": "b"}}, "podSelector": WEB_PODS}]}),
        "other", "web", 6, 80, False,
    ),
    (ingress({"from": [{"ipBlock": BLOCK}]}), "client", "web", 6, 80, True),  # an ipBlock matches pods
    (ingress({"from": [{"ipBlock": BLOCK}]}), "other", "web", 6, 80, False),
    (ingress({"from": [{"ipBlock": BLOCK}, {"ipBlock": {"cidr": "10.0.1.4/32"}}]}), "other", "web", 6, 80, True),
    (ingress({"from": [{"ipBlock": {"cidr": "0.0.0.0/0"}}]}), "world6", "web6", 6, 80, False),
    (ingress({"from": [{"ipBlock": {"cidr": "::/0"}}]}), "client", "web", 6, 80, False),
    (egress(), "client", "world", 6, 80, False),
    (egress(), "client", "node", 6, 80, False),  # a pod does not reach the node for free
    (egress({"to": [{"ipBlock": {"cidr": "10.0.0.1/32"}}]}), "client", "node", 6, 80, True),
    (egress({"ports": [{"port": "http"}]}), "client", "web", 6, 8080, True),
    (egress({"ports": [{"port": "http"}]}), "client", "other", 6, 9090, True),
    (egress({"ports": [{"port": "http"}]}), "client", "other", 6, 8080, False),
    (egress({"ports": [{"port": "http"}]}), "client", "world", 6, 8080, False),  # no pod, no names
    (egress({"ports": [{"port": 80, "endPort": 90}]}), "client", "world", 6, 90, True),
    (egress({"ports": [{"port": 80, "endPort": 90}]}), "client", "world", 6, 91, False),
]  # fmt: skip


@pytest.mark.parametrize(("policy", "source", "destination", "protocol", "port", "allowed"), JUDGED)
def test_oracle(policy: Policy, source: str, destination: str, protocol: int, port: int, allowed: bool) -> None:
    decision = evaluate([policy], LABELS, Flow(PARTIES[source], PARTIES[destination], protocol, port))
    assert (decision.verdict is Verdict.ALLOW) is allowed


def test_oracle_names_what_decided() -> None:
    policies = [ingress({"ports": [{"port": 81}]}, {"ports": [{"port": 80}]}, {})]
    decision = evaluate(policies, LABELS, Flow(PARTIES["client"], PARTIES["web"], 6, 80))
    assert decision.ingress.isolated_by == (policies[0].ref,)
    assert [rule.index for rule in decision.ingress.allowed_by] == [1, 2]
    assert decision.egress.allowed_by == (NOT_ISOLATED,)
    assert evaluate(policies, {}, Flow(PARTIES["node"], PARTIES["web"], 6, 80)).ingress.allowed_by == (NODE,)
    assert evaluate(policies, {}, Flow(PARTIES["web"], PARTIES["web"], 6, 80)).egress.allowed_by == (SELF,)
    assert not evaluate(policies, {}, Flow(PARTIES["world"], PARTIES["web"], 6, 80)).egress.judged

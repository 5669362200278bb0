"""The oracle by hand: one policy, one flow, one verdict a row."""

from __future__ import annotations

import msgspec
import pytest
import strategies

from policies.address import Prefix, parse_address
from policies.evaluate import evaluate
from policies.facts import HOST, Flow, Party, PodFacts, ServiceFacts
from policies.l7 import L7, HttpRule, NamePattern
from policies.model import (
    NODE,
    NOT_ISOLATED,
    SELF,
    Action,
    CidrBlock,
    ContainerPort,
    Direction,
    Entity,
    EntityPeer,
    LabelSelector,
    NodePeer,
    ObjectRef,
    Operator,
    Origin,
    Peer,
    PodSelector,
    Policy,
    PortRange,
    Requirement,
    Rule,
    RuleRef,
    ServicePeer,
    Tier,
    Verdict,
)

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


HTTP = L7(http=frozenset({HttpRule(path="/a")}))
DNS = L7(dns=frozenset({NamePattern("a.example")}))
EVERY_NAME = L7(dns=frozenset({NamePattern(pattern="*")}))
A, D, P = Action
EVERYONE = PodSelector(LabelSelector(), namespaces=LabelSelector())


def kinds(
    *rules: tuple[tuple[Peer, ...] | None, tuple[PortRange, ...] | None, Action, L7 | None],
    tier: Tier = Tier.NAMESPACED,
    isolates: bool = True,
    priority: int = 0,
    name: str = "k",
) -> Policy:
    """Of the client's egress."""
    ref = ObjectRef("CiliumNetworkPolicy", "", name)
    written = [Rule(RuleRef(ref, Direction.EGRESS, n), *rule) for n, rule in enumerate(rules)]
    directions = frozenset({Direction.EGRESS}) if isolates and tier is Tier.NAMESPACED else frozenset[Direction]()
    return Policy(ref, Origin("f", 1), EVERYONE, directions, tuple(written), tier=tier, priority=priority)


def to(*peers: Peer) -> Policy:
    return kinds((peers, None, A, None))


WORLD, WORLD4, CLUSTER, HOSTS, REMOTE = (
    EntityPeer(entity) for entity in (Entity.WORLD, Entity.WORLD_IPV4, Entity.CLUSTER, Entity.HOST, Entity.REMOTE_NODE)
)
OUTSIDE = CidrBlock(Prefix.parse("0.0.0.0/0"), (Prefix.parse("192.0.2.64/26"),), inside=False)
ZONE = LabelSelector(frozenset({Requirement("zone", Operator.IN, frozenset({"z1"}))}))
WEB_PORT, DNS_PORT = (PortRange(6, 80, 80),), (PortRange(17, 53, 53), PortRange(6, 53, 53))
# policies, to whom, protocol, port → verdict, what is asked, index of the rule that decided (None: none, or built in)
BY_KIND: list[tuple[list[Policy], str, int, int, Verdict, set[L7], int | None]] = [
    ([to(WORLD)], "world", 6, 80, Verdict.ALLOW, set(), 0),
    ([to(WORLD)], "web", 6, 80, Verdict.DENY, set(), None),
    ([to(WORLD4)], "world6", 6, 80, Verdict.DENY, set(), None),
    ([to(CLUSTER)], "web", 6, 80, Verdict.ALLOW, set(), 0),
    ([to(CLUSTER)], "far-node", 6, 80, Verdict.ALLOW, set(), 0),
    ([to(CLUSTER)], "world", 6, 80, Verdict.DENY, set(), None),
    ([to(HOSTS)], "far-node", 6, 80, Verdict.DENY, set(), None),
    ([to(REMOTE)], "far-node", 6, 80, Verdict.ALLOW, set(), 0),
    ([to(EntityPeer(Entity.NONE))], "world", 6, 80, Verdict.DENY, set(), None),
    ([to(OUTSIDE)], "world", 6, 80, Verdict.ALLOW, set(), 0),
    ([to(OUTSIDE)], "web", 6, 80, Verdict.DENY, set(), None),  # a CIDR of CiliumNetworkPolicy is no pod's
    ([to(OUTSIDE)], "far-node", 6, 80, Verdict.DENY, set(), None),
    ([to(NodePeer(ZONE))], "far-node", 6, 80, Verdict.ALLOW, set(), 0),
    ([to(NodePeer(ZONE))], "node", 6, 80, Verdict.DENY, set(), None),
    ([to(NamePattern(pattern="*.example"))], "named", 6, 80, Verdict.ALLOW, set(), 0),
    ([to(NamePattern(pattern="*.example"))], "world", 6, 80, Verdict.DENY, set(), None),
    ([to(ServicePeer("shop", "api"))], "named", 6, 80, Verdict.ALLOW, set(), 0),
    ([to(ServicePeer("other", "api"))], "named", 6, 80, Verdict.DENY, set(), None),
    ([to(ServicePeer("", selector=ZONE))], "named", 6, 80, Verdict.ALLOW, set(), 0),
    ([to()], "world", 6, 80, Verdict.DENY, set(), None),  # no peer is nobody
    ([kinds((None, (), A, None))], "world", 6, 80, Verdict.DENY, set(), None),  # and no port none
    ([kinds((None, None, A, None), ((WORLD,), None, D, None))], "world", 6, 80, Verdict.DENY, set(), 1),
    ([kinds((None, WEB_PORT, A, HTTP))], "world", 6, 80, Verdict.REDIRECT, {HTTP}, 0),
    ([kinds((None, None, A, HTTP))], "world", 17, 80, Verdict.DENY, set(), None),  # there is no HTTP in UDP
    ([kinds((None, None, A, DNS))], "world", 17, 53, Verdict.REDIRECT, {DNS}, 0),
    ([kinds((None, WEB_PORT, A, HTTP), (None, None, A, DNS))], "world", 6, 80, Verdict.REDIRECT, {HTTP, DNS}, 0),
    ([kinds((None, WEB_PORT, A, HTTP), (None, None, A, None))], "world", 6, 80, Verdict.ALLOW, set(), 1),
    ([kinds((None, (PortRange(1, 8, 8),), A, None))], "world", 1, 8, Verdict.ALLOW, set(), 0),
    ([kinds((None, (PortRange(1, 8, 8),), A, None))], "world", 1, 0, Verdict.DENY, set(), None),
    # enableDefaultDeny: false
    ([kinds((None, WEB_PORT, A, HTTP), isolates=False)], "world", 6, 80, Verdict.ALLOW, set(), None),
    ([kinds((None, WEB_PORT, D, None), isolates=False)], "world", 6, 80, Verdict.DENY, set(), 0),
    ([kinds((None, DNS_PORT, A, DNS), isolates=False)], "world", 17, 53, Verdict.REDIRECT, {EVERY_NAME}, 0),
    ([kinds((None, DNS_PORT, A, DNS), isolates=False)], "world", 17, 54, Verdict.ALLOW, set(), None),
    # tiers
    ([kinds((None, None, D, None), tier=Tier.ADMIN), to(WORLD)], "world", 6, 80, Verdict.DENY, set(), 0),
    ([kinds((None, None, A, None), tier=Tier.ADMIN), kinds((None, None, D, None))], "world", 6, 80, Verdict.ALLOW,
     set(), 0),
    ([kinds((None, None, P, None), tier=Tier.ADMIN), kinds()], "world", 6, 80, Verdict.DENY, set(), None),
    ([kinds((None, None, P, None), (None, None, D, None), tier=Tier.ADMIN)], "world", 6, 80, Verdict.ALLOW, set(),
     None),
    ([kinds((None, None, D, None), tier=Tier.BASELINE), to(WORLD)], "world", 6, 80, Verdict.ALLOW, set(), 0),
    ([kinds((None, None, D, None), tier=Tier.BASELINE), kinds()], "world", 6, 80, Verdict.DENY, set(), None),
    ([kinds((None, WEB_PORT, A, None), (None, None, D, None), tier=Tier.BASELINE)], "world", 6, 81, Verdict.DENY,
     set(), 1),
    ([kinds((None, None, D, None), tier=Tier.ADMIN, priority=2, name="a"),
      kinds((None, WEB_PORT, P, None), (None, WEB_PORT, A, None), tier=Tier.ADMIN, priority=1, name="b")],
     "world", 6, 80, Verdict.ALLOW, set(), None),
    ([kinds((None, None, D, None), tier=Tier.ADMIN, name="b"), kinds((None, None, A, None), tier=Tier.ADMIN, name="a")],
     "world", 6, 80, Verdict.ALLOW, set(), 0),
]  # fmt: skip


@pytest.mark.parametrize(("policies", "destination", "protocol", "port", "verdict", "asked", "decided"), BY_KIND)
def test_oracle_of_every_kind(
    policies: list[Policy],
    destination: str,
    protocol: int,
    port: int,
    verdict: Verdict,
    asked: set[L7],
    decided: int | None,
) -> None:
    parties = {
        **PARTIES,
        "far-node": msgspec.structs.replace(PARTIES["far-node"], node={"zone": "z1"}),
        "node": msgspec.structs.replace(PARTIES["node"], node={}),
        "named": Party(
            parse_address("192.0.2.70"),
            names=frozenset({"a.example"}),
            services=(ServiceFacts("shop", "api", {"zone": "z1"}),),
        ),
    }
    decision = evaluate(policies, LABELS, Flow(parties["client"], parties[destination], protocol, port))
    assert decision.verdict is verdict
    assert (decision.egress.demands or set()) == asked
    rules = decision.egress.denied_by or decision.egress.allowed_by
    assert (rules[0].index if rules and rules[0].index >= 0 else None) == decided


def test_oracle_names_what_decided() -> None:
    policies = [ingress({"ports": [{"port": 81}]}, {"ports": [{"port": 80}]}, {})]
    decision = evaluate(policies, LABELS, Flow(PARTIES["client"], PARTIES["web"], 6, 80))
    assert decision.ingress.isolated_by == (policies[0].ref,)
    assert [rule.index for rule in decision.ingress.allowed_by] == [1, 2]
    assert decision.egress.allowed_by == (NOT_ISOLATED,)
    assert evaluate(policies, {}, Flow(PARTIES["node"], PARTIES["web"], 6, 80)).ingress.allowed_by == (NODE,)
    assert evaluate(policies, {}, Flow(PARTIES["web"], PARTIES["web"], 6, 80)).egress.allowed_by == (SELF,)
    assert not evaluate(policies, {}, Flow(PARTIES["world"], PARTIES["web"], 6, 80)).egress.judged


def test_where_every_pod_is_isolated_what_no_rule_allows_is_denied() -> None:
    """--policy-enforcement always. The node still reaches its pods, and a pod itself."""
    flow = Flow(PARTIES["client"], PARTIES["web"], 6, 80)
    assert evaluate([], LABELS, flow).verdict is Verdict.ALLOW
    decision = evaluate([], LABELS, flow, enforce_always=True)
    assert (decision.egress.verdict, decision.ingress.verdict) == (Verdict.DENY, Verdict.DENY)
    assert not (decision.egress.denied_by or decision.egress.isolated_by)
    opened = evaluate([ingress({"ports": [{"port": 80}]})], LABELS, flow, enforce_always=True)
    assert (opened.egress.verdict, opened.ingress.verdict) == (Verdict.DENY, Verdict.ALLOW)
    for source in ("node", "web"):
        own = Flow(PARTIES[source], PARTIES["web"], 6, 80)
        assert evaluate([], LABELS, own, enforce_always=True).verdict is Verdict.ALLOW

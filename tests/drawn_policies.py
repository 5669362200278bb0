"""Random policies as values of the model: all tiers, actions, peers and demands, whatever language could write them.

From the same small sets of values as tests/strategies.py, whose clusters they join.
"""

from __future__ import annotations

from functools import cache

import msgspec
import strategies
from hypothesis import strategies as st
from strategies import BLOCKS, KEYS, NAMESPACES, PORT_NAMES, PORTS, VALUES, Cluster, Facts

from policies.address import Prefix
from policies.facts import ServiceFacts
from policies.l7 import L7, HttpRule, NamePattern
from policies.model import (
    Action,
    CidrBlock,
    Direction,
    Entity,
    EntityPeer,
    LabelSelector,
    Mark,
    NamedPort,
    NodePeer,
    ObjectRef,
    Operator,
    Origin,
    Peer,
    PodSelector,
    Policy,
    Port,
    PortRange,
    Requirement,
    Rule,
    RuleRef,
    ServicePeer,
    Tier,
)

NAMES = ("a.example", "b.example", "x.a.example")
PATTERNS = (
    NamePattern("a.example"),
    NamePattern(pattern="*.example"),
    NamePattern(pattern="**.example"),
    NamePattern(pattern="*"),
)
SERVICES = ("s0", "s1")
ICMP_TYPES = (0, 8, 128, 129)
L7S = (
    L7(http=frozenset({HttpRule(path="/a")})),
    L7(http=frozenset({HttpRule(path="/a"), HttpRule(method="GET")})),
    L7(http=frozenset()),
    L7(dns=frozenset({NamePattern("a.example")})),
    L7(dns=frozenset()),
    L7(server_names=frozenset({NamePattern(pattern="*.example")})),
)
KINDS = {
    Tier.ADMIN: ("ClusterNetworkPolicy", "AdminNetworkPolicy"),
    Tier.NAMESPACED: ("CiliumNetworkPolicy", "CiliumClusterwideNetworkPolicy"),
    Tier.BASELINE: ("ClusterNetworkPolicy", "BaselineAdminNetworkPolicy"),
}


# ---- selectors, peers, ports


@cache
def requirements() -> st.SearchStrategy[Requirement]:
    keys = st.sampled_from(KEYS)
    values = st.frozensets(st.sampled_from(VALUES), min_size=1, max_size=2)
    return st.one_of(
        st.builds(Requirement, keys, st.sampled_from((Operator.IN, Operator.IN, Operator.NOT_IN)), values),
        st.builds(Requirement, keys, st.sampled_from((Operator.EXISTS, Operator.DOES_NOT_EXIST))),
    )


@cache
def selectors() -> st.SearchStrategy[LabelSelector]:
    return st.builds(LabelSelector, st.just(frozenset()) | st.frozensets(requirements(), max_size=2))


@cache
def pod_selectors() -> st.SearchStrategy[PodSelector]:
    return st.one_of(
        st.builds(PodSelector, selectors(), namespace=st.sampled_from(NAMESPACES)),
        st.builds(PodSelector, selectors(), namespaces=selectors()),
    )


@cache
@st.composite
def blocks(draw: st.DrawFn) -> CidrBlock:
    block = draw(st.sampled_from(sorted(BLOCKS)))
    excepts = draw(st.lists(st.sampled_from(BLOCKS[block]), max_size=2, unique=True))
    return CidrBlock(Prefix.parse(block), tuple(map(Prefix.parse, excepts)), inside=draw(st.booleans()))


@cache
def marks() -> st.SearchStrategy[Mark]:
    namespaces = st.sampled_from(("", *NAMESPACES))
    return st.one_of(
        st.sampled_from(PATTERNS),
        st.builds(NodePeer, selectors()),
        st.builds(ServicePeer, st.sampled_from(NAMESPACES), st.sampled_from(SERVICES)),
        st.builds(ServicePeer, namespaces, selector=selectors()),
    )


@cache
def peers() -> st.SearchStrategy[Peer]:
    return st.one_of(
        pod_selectors(), pod_selectors(), blocks(), marks(), st.builds(EntityPeer, st.sampled_from(Entity))
    )


@cache
@st.composite
def ports(draw: st.DrawFn) -> Port:
    protocol = draw(st.sampled_from((6, 6, 17, 132, 1, 58)))
    if protocol in (1, 58):
        first, last = sorted((draw(st.sampled_from(ICMP_TYPES)), draw(st.sampled_from(ICMP_TYPES))))
        return PortRange(protocol, first, draw(st.sampled_from((first, last))))
    kind = draw(st.sampled_from(("number", "range", "name", "any")))
    if kind == "name":
        return NamedPort(protocol, draw(st.sampled_from(PORT_NAMES)))
    if kind == "any":
        return PortRange(protocol, 0, 65535)
    first, last = sorted((draw(st.sampled_from(PORTS)), draw(st.sampled_from(PORTS))))
    return PortRange(protocol, first, last if kind == "range" else first)


# ---- rules, policies


@cache
@st.composite
def rules(draw: st.DrawFn, ref: RuleRef, tier: Tier) -> Rule:
    actions = (Action.ALLOW, Action.ALLOW, Action.DENY)
    action = draw(st.sampled_from(actions if tier is Tier.NAMESPACED else (*actions, Action.PASS)))
    asks = tier is Tier.NAMESPACED or draw(st.sampled_from((False, False, False, True)))
    l7 = draw(st.none() | st.sampled_from(L7S)) if action is Action.ALLOW and asks else None
    some_peers = draw(st.none() | st.lists(peers(), max_size=3) | st.lists(peers(), min_size=1, max_size=3))
    some_ports = draw(st.none() | st.lists(ports(), min_size=1, max_size=3))
    if action is Action.DENY:
        ref = msgspec.structs.replace(ref, section=f"{ref.direction}Deny")
    return Rule(
        ref,
        None if some_peers is None else tuple(some_peers),
        None if some_ports is None else tuple(some_ports),
        action,
        l7,
    )


@cache
@st.composite
def policies(draw: st.DrawFn, name: str) -> Policy:
    tier = draw(st.sampled_from((Tier.NAMESPACED, Tier.NAMESPACED, Tier.ADMIN, Tier.BASELINE)))
    kind = draw(st.sampled_from(KINDS[tier]))
    ref = ObjectRef(kind, draw(st.sampled_from(NAMESPACES)) if kind == "CiliumNetworkPolicy" else "", name)
    drawn: list[Rule] = []
    for direction in Direction:
        for index in range(draw(st.sampled_from((0, 1, 1, 2, 3)))):
            # Now and then two rules of one ref, as the ports of one rule may ask different things.
            count = draw(st.sampled_from((1, 1, 1, 2)))
            drawn += [draw(rules(RuleRef(ref, direction, index), tier)) for _ in range(count)]
    # Of the other tiers only what could not be read isolates.
    isolating = tier is Tier.NAMESPACED or draw(st.sampled_from((False, False, False, True)))
    return Policy(
        ref,
        Origin("drawn", 0),
        draw(st.just(PodSelector(LabelSelector(), namespaces=LabelSelector())) | pod_selectors()),
        draw(st.frozensets(st.sampled_from(Direction))) if isolating else frozenset(),
        tuple(drawn),
        tier=tier,
        priority=draw(st.integers(0, 2)),
    )


# ---- clusters


@cache
def facts(entity: str) -> st.SearchStrategy[Facts]:
    service = st.builds(ServiceFacts, st.sampled_from(NAMESPACES), st.sampled_from(SERVICES), strategies.label_maps())
    return st.builds(
        Facts,
        st.just(entity),
        node=strategies.label_maps() if entity in ("host", "remote-node") else st.none(),
        names=st.lists(st.sampled_from(NAMES), max_size=2, unique=True).map(tuple),
        services=st.just(()) | st.lists(service, max_size=2).map(tuple),
    )


@st.composite
def clusters(draw: st.DrawFn, max_values: int = 5) -> Cluster:
    """With policies of every kind, addresses of every entity, and what is known of them."""
    cluster = draw(strategies.clusters(max_policies=2))
    values = tuple(draw(policies(f"v{n}")) for n in range(draw(st.sampled_from(range(max_values, 0, -1)))))
    known = {address: draw(facts(entity)) for address, entity in strategies.ENTITIES.items()}
    known |= {address: draw(facts("")) for pod in cluster.pods for address in pod.addresses if draw(st.booleans())}
    return msgspec.structs.replace(cluster, values=values, facts=known)

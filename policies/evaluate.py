"""The slow oracle: may this packet open a flow? Straight from the texts of the APIs, one flow at a time.

It shares no code with the index and the compiler, which are tested against it; the standard library reads the blocks,
and what patterns of names mean is tested by itself (policies.names).
What a proxy makes of requests is judged elsewhere: here a flow is left to it (REDIRECT), with what it is to ask.
"""

from __future__ import annotations

import ipaddress
from collections.abc import Iterable, Mapping

import msgspec

from policies.address import Prefix, format_address
from policies.l7 import L7, Demands, NamePattern
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
    Mark,
    NamedPort,
    NodePeer,
    ObjectRef,
    Operator,
    Peer,
    PodSelector,
    Policy,
    Port,
    Rule,
    RuleRef,
    ServicePeer,
    Tier,
    Verdict,
)
from policies.names import matches

Namespaces = Mapping[str, Mapping[str, str]]
"""Labels of each known namespace, kubernetes.io/metadata.name included."""

HOST = "host"
"""The entity of the node itself, and of its hostNetwork pods."""


class PodFacts(msgspec.Struct, frozen=True):
    namespace: str
    name: str
    labels: Mapping[str, str]
    ports: frozenset[ContainerPort] = frozenset()


class ServiceFacts(msgspec.Struct, frozen=True):
    """A service of which an address is an endpoint."""

    namespace: str
    name: str
    labels: Mapping[str, str]


class Party(msgspec.Struct, frozen=True):
    """One end of a flow. `entity` says what an address is that is no pod's (policies.model.Entity).

    `node`: labels of the Node that has the address. `names`: DNS names it was the answer to. `services`: those it is an
    endpoint of.
    """

    address: bytes
    pod: PodFacts | None = None
    entity: str = "world"
    node: Mapping[str, str] | None = None
    names: frozenset[str] = frozenset()
    services: tuple[ServiceFacts, ...] = ()

    def __str__(self) -> str:
        who = f"pod {self.pod.namespace}/{self.pod.name}" if self.pod is not None else self.entity
        return f"{who} ({format_address(self.address)})"


class SideDecision(msgspec.Struct, frozen=True):
    """What one end's policies say. `judged` False: that end is no pod, so nothing restricts it.

    `allowed_by`: every rule that allows it or, of a REDIRECT, leaves it to a proxy, which is to ask the `demands`; or a
    built-in one. `denied_by`: rules that deny it; none where it is denied because no rule allows it. `tier`: of the
    rules that decided. The first of each is the one that flows name.
    """

    verdict: Verdict
    judged: bool = True
    isolated_by: tuple[ObjectRef, ...] = ()
    allowed_by: tuple[RuleRef, ...] = ()
    denied_by: tuple[RuleRef, ...] = ()
    demands: Demands | None = None
    tier: Tier | None = None


class Decision(msgspec.Struct, frozen=True):
    verdict: Verdict
    egress: SideDecision
    ingress: SideDecision


class Flow(msgspec.Struct, frozen=True):
    """`port` is the destination's; 0 for protocols without ports, such as ICMP."""

    source: Party
    destination: Party
    protocol: int
    port: int = 0


def evaluate(
    policies: Iterable[Policy], namespaces: Namespaces, flow: Flow, *, enforce_always: bool = False
) -> Decision:
    """Allowed if the source's egress and the destination's ingress both allow it, or leave it to a proxy.
    `enforce_always`: every pod is isolated, whatever selects it."""
    policies = list(policies)
    egress = evaluate_side(policies, namespaces, flow, Direction.EGRESS, enforce_always=enforce_always)
    ingress = evaluate_side(policies, namespaces, flow, Direction.INGRESS, enforce_always=enforce_always)
    return Decision(together(egress.verdict, ingress.verdict), egress, ingress)


def together(one: Verdict, other: Verdict) -> Verdict:
    """Of both ends."""
    return next((v for v in (Verdict.DENY, Verdict.REDIRECT) if v in (one, other)), Verdict.ALLOW)


def evaluate_side(
    policies: Iterable[Policy],
    namespaces: Namespaces,
    flow: Flow,
    direction: Direction,
    *,
    enforce_always: bool = False,
) -> SideDecision:
    subject, remote = ends(flow, direction)
    if subject.pod is None:
        return SideDecision(Verdict.ALLOW, judged=False)
    if (exemption := exempt(flow, direction)) is not None:
        return SideDecision(Verdict.ALLOW, allowed_by=(exemption,))
    selecting = [p for p in policies if selects(p.subject, subject.pod, namespaces)]
    isolating = tuple(sorted(p.ref for p in selecting if direction in p.isolates))
    isolated = enforce_always or bool(isolating)
    matching = [
        (policy, place, rule)
        for policy in selecting
        for place, rule in enumerate(policy.rules)
        if rule.ref.direction is direction and rule_matches(rule, remote, namespaces, flow)
    ]
    decision = (
        _decided_in_order(matching, Tier.ADMIN)
        or _decided_by_namespaced(matching, isolated=isolated)
        or _decided_in_order(matching, Tier.BASELINE)
        or SideDecision(Verdict.ALLOW, allowed_by=(NOT_ISOLATED,))
    )
    if not isolated and decision.verdict is Verdict.ALLOW and decision.tier is not Tier.ADMIN:
        decision = _looked_at(matching) or decision
    return msgspec.structs.replace(decision, isolated_by=isolating)


Matching = list[tuple[Policy, int, Rule]]
"""Rules that match a flow, with their policies and their places in them."""


def _decided_in_order(matching: Matching, tier: Tier) -> SideDecision | None:
    """policy.networking.k8s.io: the first rule that matches decides; Pass leaves it to the next tier."""
    ordered = sorted(
        (m for m in matching if m[0].tier is tier), key=lambda m: (m[0].priority, m[0].ref.name, m[0].ref, m[1])
    )
    if not ordered or ordered[0][2].action is Action.PASS:
        return None
    rule = ordered[0][2]
    if rule.action is Action.DENY:
        return SideDecision(Verdict.DENY, denied_by=(rule.ref,), tier=tier)
    return _allowed([rule], tier)


def _decided_by_namespaced(matching: Matching, isolated: bool) -> SideDecision | None:
    """Any rule that denies, denies; else any that allows, allows, by itself or as far as a proxy finds; the rest is
    denied if the pod is isolated. If it is not, rules that allow change nothing."""
    tier = Tier.NAMESPACED
    rules = sorted((rule for policy, _, rule in matching if policy.tier is tier), key=lambda rule: rule.ref)
    denying = [rule for rule in rules if rule.action is Action.DENY]
    if denying:
        return SideDecision(Verdict.DENY, denied_by=_refs(denying), tier=tier)
    if not isolated:
        return None
    allowing = [rule for rule in rules if rule.action is Action.ALLOW]
    by_itself = [rule for rule in allowing if rule.l7 is None]
    if by_itself and (looked_at := _looked_at(matching)) is not None:
        return msgspec.structs.replace(looked_at, allowed_by=_refs(by_itself))
    return _allowed(by_itself or allowing, tier) if allowing else SideDecision(Verdict.DENY, tier=tier)


def _looked_at(matching: Matching) -> SideDecision | None:
    """What is allowed anyhow still goes by the DNS proxy, so that names are learned."""
    looking = [
        rule
        for policy, _, rule in matching
        if policy.tier is Tier.NAMESPACED
        and rule.action is Action.ALLOW
        and rule.l7 is not None
        and rule.l7.dns is not None
    ]
    if not looking:
        return None
    every_name = frozenset({L7(dns=frozenset({NamePattern(pattern="*")}))})
    refs = _refs(sorted(looking, key=lambda rule: rule.ref))
    return SideDecision(Verdict.REDIRECT, allowed_by=refs, demands=every_name, tier=Tier.NAMESPACED)


def _allowed(rules: list[Rule], tier: Tier) -> SideDecision:
    """By rules all of which ask a proxy, or none of which does."""
    demands = frozenset(rule.l7 for rule in rules if rule.l7 is not None)
    verdict = Verdict.REDIRECT if demands else Verdict.ALLOW
    return SideDecision(verdict, allowed_by=_refs(rules), demands=demands or None, tier=tier)


def _refs(rules: list[Rule]) -> tuple[RuleRef, ...]:
    """Several rules may have one ref."""
    return tuple(dict.fromkeys(rule.ref for rule in rules))


def ends(flow: Flow, direction: Direction) -> tuple[Party, Party]:
    """The subject whose policies are asked in a direction, and the remote."""
    if direction is Direction.EGRESS:
        return flow.source, flow.destination
    return flow.destination, flow.source


def exempt(flow: Flow, direction: Direction) -> RuleRef | None:
    """The built-in rule that allows a flow whatever policies say: a pod to itself, the node to its pods."""
    source, destination = flow.source, flow.destination
    if source.pod is not None and destination.pod is not None:
        same_name = (source.pod.namespace, source.pod.name) == (destination.pod.namespace, destination.pod.name)
        if same_name or source.address == destination.address:
            return SELF
    if direction is Direction.INGRESS and source.pod is None and source.entity == HOST:
        return NODE
    return None


def rule_matches(rule: Rule, remote: Party, namespaces: Namespaces, flow: Flow) -> bool:
    """A rule that leaves it to a proxy matches no protocol that the proxy cannot read."""
    if rule.action is Action.ALLOW and rule.l7 is not None and not _readable(rule.l7, flow.protocol):
        return False
    peer_matches = rule.peers is None or any(peer_selects(peer, remote, namespaces) for peer in rule.peers)
    port_matches = rule.ports is None or any(port_selects(port, flow) for port in rule.ports)
    return peer_matches and port_matches


def _readable(l7: L7, protocol: int) -> bool:
    """DNS is asked over UDP and TCP; HTTP and TLS are read from TCP."""
    if protocol == 17:
        return l7.dns is not None and (l7.http, l7.server_names, l7.terminating, l7.originating) == (None,) * 4
    return protocol == 6


def peer_selects(peer: Peer, remote: Party, namespaces: Namespaces) -> bool:
    """A block asks for the address, an ipBlock also for a pod's; a pod selector asks for a pod."""
    if isinstance(peer, PodSelector):
        return remote.pod is not None and selects(peer, remote.pod, namespaces)
    if isinstance(peer, CidrBlock):
        if not peer.inside and not entity_selects(Entity.WORLD, remote):
            return False
        return _inside(remote.address, peer.block) and not any(_inside(remote.address, e) for e in peer.excepts)
    return _has(peer, remote)


def _has(peer: EntityPeer | Mark, remote: Party) -> bool:
    if isinstance(peer, EntityPeer):
        return entity_selects(peer.entity, remote)
    if isinstance(peer, NodePeer):
        return remote.node is not None and labels_match(peer.nodes, remote.node)
    if isinstance(peer, ServicePeer):
        return any(service_selects(peer, service) for service in remote.services)
    return entity_selects(Entity.WORLD, remote) and any(matches(peer, name) for name in remote.names)


def entity_selects(entity: Entity, remote: Party) -> bool:
    """A pod is of the cluster and of no other entity. The API server, where it is no node, is also of the world."""
    if remote.pod is not None:
        return entity is Entity.CLUSTER
    v4 = ipaddress.ip_address(format_address(remote.address)).version == 4
    outside = (Entity.WORLD, Entity.WORLD_IPV4 if v4 else Entity.WORLD_IPV6)
    is_one_of = {
        Entity.WORLD: outside,
        Entity.KUBE_APISERVER: (Entity.KUBE_APISERVER, Entity.CLUSTER, *outside),
        Entity.NONE: (),
    }
    return entity in is_one_of.get(Entity(remote.entity), (remote.entity, Entity.CLUSTER))


def service_selects(peer: ServicePeer, service: ServiceFacts) -> bool:
    if peer.namespace not in ("", service.namespace):
        return False
    if peer.selector is not None:
        return labels_match(peer.selector, service.labels)
    return peer.name == service.name


def port_selects(port: Port, flow: Flow) -> bool:
    """A name counts if the destination pod declares it, for this protocol, with this number."""
    if port.protocol != flow.protocol:
        return False
    if isinstance(port, NamedPort):
        pod = flow.destination.pod
        return pod is not None and ContainerPort(port.name, port.protocol, flow.port) in pod.ports
    return port.first <= flow.port <= port.last


def selects(selector: PodSelector, pod: PodFacts, namespaces: Namespaces) -> bool:
    if selector.namespace is not None:
        if pod.namespace != selector.namespace:
            return False
    else:
        assert selector.namespaces is not None
        if pod.namespace not in namespaces or not labels_match(selector.namespaces, namespaces[pod.namespace]):
            return False
    return labels_match(selector.pods, pod.labels)


def labels_match(selector: LabelSelector, labels: Mapping[str, str]) -> bool:
    for requirement in selector.requirements:
        value = labels.get(requirement.key)
        holds = {
            Operator.IN: value is not None and value in requirement.values,
            Operator.NOT_IN: value is None or value not in requirement.values,
            Operator.EXISTS: value is not None,
            Operator.DOES_NOT_EXIST: value is None,
        }[requirement.operator]
        if not holds:
            return False
    return True


def _inside(address: bytes, block: Prefix) -> bool:
    return ipaddress.ip_address(format_address(address)) in ipaddress.ip_network(str(block))

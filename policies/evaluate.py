"""The slow oracle: may this packet open a flow? Straight from the NetworkPolicy API text, one flow at a time.

It shares no code with the index and the compiler, which are tested against it; the standard library reads the blocks.
"""

from __future__ import annotations

import ipaddress
from collections.abc import Iterable, Mapping

import msgspec

from policies.address import Prefix, format_address
from policies.model import (
    NODE,
    NOT_ISOLATED,
    SELF,
    CidrBlock,
    ContainerPort,
    Direction,
    LabelSelector,
    NamedPort,
    ObjectRef,
    Operator,
    Peer,
    PodSelector,
    Policy,
    Port,
    Rule,
    RuleRef,
    Verdict,
)

Namespaces = Mapping[str, Mapping[str, str]]
"""Labels of each known namespace, kubernetes.io/metadata.name included."""

HOST = "host"
"""The entity of the node itself, and of its hostNetwork pods."""


class PodFacts(msgspec.Struct, frozen=True):
    namespace: str
    name: str
    labels: Mapping[str, str]
    ports: frozenset[ContainerPort] = frozenset()


class Party(msgspec.Struct, frozen=True):
    """One end of a flow. `entity` says what an address is that is no pod's: host, remote-node, unmanaged, world."""

    address: bytes
    pod: PodFacts | None = None
    entity: str = "world"

    def __str__(self) -> str:
        who = f"pod {self.pod.namespace}/{self.pod.name}" if self.pod is not None else self.entity
        return f"{who} ({format_address(self.address)})"


class SideDecision(msgspec.Struct, frozen=True):
    """What one end's policies say. `judged` False: that end is no pod, so nothing restricts it.

    `allowed_by` has every rule that allows it, or a built-in one.
    """

    verdict: Verdict
    judged: bool = True
    isolated_by: tuple[ObjectRef, ...] = ()
    allowed_by: tuple[RuleRef, ...] = ()


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


def evaluate(policies: Iterable[Policy], namespaces: Namespaces, flow: Flow) -> Decision:
    """Allowed if the source's egress and the destination's ingress both allow it."""
    policies = list(policies)
    egress = evaluate_side(policies, namespaces, flow, Direction.EGRESS)
    ingress = evaluate_side(policies, namespaces, flow, Direction.INGRESS)
    allowed = egress.verdict is Verdict.ALLOW and ingress.verdict is Verdict.ALLOW
    return Decision(Verdict.ALLOW if allowed else Verdict.DENY, egress, ingress)


def evaluate_side(policies: Iterable[Policy], namespaces: Namespaces, flow: Flow, direction: Direction) -> SideDecision:
    subject, remote = ends(flow, direction)
    if subject.pod is None:
        return SideDecision(Verdict.ALLOW, judged=False)
    if (exemption := exempt(flow, direction)) is not None:
        return SideDecision(Verdict.ALLOW, allowed_by=(exemption,))
    isolating = sorted(
        (p for p in policies if direction in p.isolates and selects(p.subject, subject.pod, namespaces)),
        key=lambda p: p.ref,
    )
    if not isolating:
        return SideDecision(Verdict.ALLOW, allowed_by=(NOT_ISOLATED,))
    allowing = tuple(
        rule.ref
        for policy in isolating
        for rule in sorted(policy.rules, key=lambda r: r.ref)
        if rule.ref.direction is direction and rule_allows(rule, remote, namespaces, flow)
    )
    verdict = Verdict.ALLOW if allowing else Verdict.DENY
    return SideDecision(verdict, isolated_by=tuple(p.ref for p in isolating), allowed_by=allowing)


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


def rule_allows(rule: Rule, remote: Party, namespaces: Namespaces, flow: Flow) -> bool:
    peer_matches = rule.peers is None or any(peer_selects(peer, remote, namespaces) for peer in rule.peers)
    port_matches = rule.ports is None or any(port_selects(port, flow) for port in rule.ports)
    return peer_matches and port_matches


def peer_selects(peer: Peer, remote: Party, namespaces: Namespaces) -> bool:
    """An ipBlock asks for the address, pod or not; a selector asks for a pod."""
    if isinstance(peer, CidrBlock):
        return _inside(remote.address, peer.block) and not any(_inside(remote.address, e) for e in peer.excepts)
    return remote.pod is not None and selects(peer, remote.pod, namespaces)


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

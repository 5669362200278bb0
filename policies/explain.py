"""Why a flow is allowed or denied: every policy and rule that was asked, with the reason it matched or did not.

The decision is the oracle's; the steps say how it came about. All structs serialise with msgspec;
field names are stable.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping

import msgspec

from policies.address import format_address
from policies.describe import peer_text, pods_text, port_text, protocol_text, requirement_text
from policies.evaluate import (
    Flow,
    Namespaces,
    Party,
    PodFacts,
    ends,
    evaluate_side,
    labels_match,
    peer_selects,
    port_selects,
    rule_allows,
    selects,
)
from policies.model import (
    CidrBlock,
    Direction,
    LabelSelector,
    NamedPort,
    Peer,
    PodSelector,
    Policy,
    Port,
    Rule,
    Verdict,
)


class Match(msgspec.Struct, frozen=True):
    """One peer or port of a rule."""

    what: str
    matched: bool
    reason: str


class RuleStep(msgspec.Struct, frozen=True):
    """`peers` or `ports` empty: the rule has none, so any matches."""

    rule: str  # spec.ingress[0]
    allows: bool
    peers: tuple[Match, ...]
    ports: tuple[Match, ...]


class PolicyStep(msgspec.Struct, frozen=True):
    """A policy of the subject's namespace. `rules` are those of this direction, if it isolates the subject."""

    kind: str
    namespace: str
    name: str
    file: str
    line: int
    isolates: bool
    reason: str
    rules: tuple[RuleStep, ...] = ()


class SideStep(msgspec.Struct, frozen=True):
    """One end. `decided_by`: the rule that people are shown; every one that allows is in `policies`."""

    direction: Direction
    subject: str
    verdict: Verdict
    judged: bool
    decided_by: str
    policies: tuple[PolicyStep, ...] = ()


class Explanation(msgspec.Struct, frozen=True):
    source: str
    destination: str
    protocol: str
    port: int
    verdict: Verdict
    egress: SideStep
    ingress: SideStep


def explain(policies: Iterable[Policy], namespaces: Namespaces, flow: Flow) -> Explanation:
    policies = sorted(policies, key=lambda p: p.ref)
    egress, ingress = (_side(policies, namespaces, flow, d) for d in (Direction.EGRESS, Direction.INGRESS))
    allowed = egress.verdict is Verdict.ALLOW and ingress.verdict is Verdict.ALLOW
    return Explanation(
        source=str(flow.source),
        destination=str(flow.destination),
        protocol=protocol_text(flow.protocol),
        port=flow.port,
        verdict=Verdict.ALLOW if allowed else Verdict.DENY,
        egress=egress,
        ingress=ingress,
    )


def lines(explanation: Explanation) -> Iterator[str]:
    """The explanation as text for a terminal."""
    port = f" {explanation.port}" if explanation.port else ""
    yield f"{explanation.source} → {explanation.destination}, {explanation.protocol}{port}: {explanation.verdict}"
    for side in (explanation.egress, explanation.ingress):
        yield f"{side.direction} of {side.subject}: {side.verdict}, {side.decided_by}"
        for policy in side.policies:
            where = f" ({policy.file}:{policy.line})" if policy.file else ""
            yield f"  {policy.kind} {policy.namespace}/{policy.name}{where}: {policy.reason}"
            for rule in policy.rules:
                yield f"    {rule.rule} {'allows it' if rule.allows else 'does not allow it'}"
                for match in (*rule.peers, *rule.ports):
                    yield f"      {'+' if match.matched else '-'} {match.what}: {match.reason}"


def _side(policies: list[Policy], namespaces: Namespaces, flow: Flow, direction: Direction) -> SideStep:
    decision = evaluate_side(policies, namespaces, flow, direction)
    subject, remote = ends(flow, direction)
    if subject.pod is None:
        return SideStep(direction, str(subject), decision.verdict, False, "it is no pod: no policy restricts it")
    decided_by = "no rule allows it"
    if decision.allowed_by:
        rule = decision.allowed_by[0]
        decided_by = rule.policy.name if rule.index < 0 else f"by {rule}"
    steps = [_policy(p, subject.pod, remote, namespaces, flow, direction) for p in policies]
    considered = tuple(s for s in steps if s.isolates or s.namespace == subject.pod.namespace)
    return SideStep(direction, str(subject), decision.verdict, True, decided_by, considered)


def _policy(
    policy: Policy, pod: PodFacts, remote: Party, namespaces: Namespaces, flow: Flow, direction: Direction
) -> PolicyStep:
    selected = selects(policy.subject, pod, namespaces)
    isolates = selected and direction in policy.isolates
    if not selected:
        reason = f"does not select the pod: {_why_not_selected(policy.subject, pod, namespaces)}"
    elif not isolates:
        reason = f"selects the pod, but says nothing about {direction}"
    elif policy.problem:
        reason = f"isolates the pod and allows nothing: it could not be understood ({policy.problem})"
    else:
        reason = f"isolates the pod: it is one of {pods_text(policy.subject)}"
    rules = [r for r in sorted(policy.rules, key=lambda r: r.ref) if isolates and r.ref.direction is direction]
    return PolicyStep(
        policy.ref.kind,
        policy.ref.namespace,
        policy.ref.name,
        policy.origin.file,
        policy.origin.line,
        isolates,
        reason,
        tuple(_rule(rule, remote, namespaces, flow) for rule in rules),
    )


def _rule(rule: Rule, remote: Party, namespaces: Namespaces, flow: Flow) -> RuleStep:
    peers = tuple(
        Match(peer_text(p), peer_selects(p, remote, namespaces), _peer_reason(p, remote, namespaces))
        for p in rule.peers or ()
    )
    ports = tuple(Match(port_text(p), port_selects(p, flow), _port_reason(p, flow)) for p in rule.ports or ())
    name = f"spec.{rule.ref.direction}[{rule.ref.index}]"
    return RuleStep(name, rule_allows(rule, remote, namespaces, flow), peers, ports)


def _peer_reason(peer: Peer, remote: Party, namespaces: Namespaces) -> str:
    if isinstance(peer, CidrBlock):
        return _block_reason(peer, remote.address)
    if remote.pod is None:
        return f"{remote} is no pod"
    if selects(peer, remote.pod, namespaces):
        return f"pod {remote.pod.namespace}/{remote.pod.name} is one of them"
    return _why_not_selected(peer, remote.pod, namespaces)


def _block_reason(peer: CidrBlock, address: bytes) -> str:
    text = format_address(address)
    if not peer.block.contains(address):
        return f"{text} is not in {peer.block}"
    excluding = next((e for e in peer.excepts if e.contains(address)), None)
    return f"{text} is in {peer.block}" if excluding is None else f"{text} is in except {excluding}"


def _why_not_selected(selector: PodSelector, pod: PodFacts, namespaces: Namespaces) -> str:
    if selector.namespace is not None and selector.namespace != pod.namespace:
        return f"it is in namespace {pod.namespace}, not {selector.namespace}"
    if selector.namespaces is not None:
        labels = namespaces.get(pod.namespace)
        if labels is None:
            return f"namespace {pod.namespace} is not known"
        if not labels_match(selector.namespaces, labels):
            return f"namespace {pod.namespace} is not {_unmet(selector.namespaces, labels)}"
    return f"it is not {_unmet(selector.pods, pod.labels)}"


def _unmet(selector: LabelSelector, labels: Mapping[str, str]) -> str:
    """The requirements that do not hold, and what there is instead."""
    unmet = sorted(
        (r for r in selector.requirements if not labels_match(LabelSelector(frozenset({r})), labels)),
        key=requirement_text,
    )
    has = [f"{r.key}={labels[r.key]}" for r in unmet if r.key in labels]
    instead = f" (it has {','.join(has)})" if has else ""
    return f"{','.join(map(requirement_text, unmet))}{instead}"


def _port_reason(port: Port, flow: Flow) -> str:
    asked = f"the flow is to {protocol_text(flow.protocol)}{f' {flow.port}' if flow.port else ''}"
    if not isinstance(port, NamedPort) or port.protocol != flow.protocol:
        return asked
    pod = flow.destination.pod
    if pod is None:
        return f"{flow.destination} is no pod, so it names no ports"
    numbers = sorted(p.number for p in pod.ports if (p.name, p.protocol) == (port.name, port.protocol))
    if not numbers:
        return f"pod {pod.namespace}/{pod.name} has no {protocol_text(port.protocol)} port named {port.name}"
    return f"{port.name} is {', '.join(map(str, numbers))} in pod {pod.namespace}/{pod.name}; {asked}"

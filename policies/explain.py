"""Why a flow is allowed or denied: every policy and rule that was asked, with the reason it matched or did not.

The decision is the oracle's; the steps say how it came about. All structs serialise with msgspec;
field names are stable.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator

import msgspec

from policies.describe import demands_text, peer_text, pods_text, port_text, protocol_text
from policies.evaluate import SideDecision, evaluate_side, together
from policies.facts import Flow, Namespaces, Party, PodFacts, ends
from policies.matching import peer_selects, port_selects, rule_matches, selects
from policies.model import (
    Action,
    Direction,
    Policy,
    Rule,
    RuleRef,
    Tier,
    Verdict,
)
from policies.reasons import _why_not_selected, peer_reason, port_reason


class Match(msgspec.Struct, frozen=True):
    """One peer or port of a rule."""

    what: str
    matched: bool
    reason: str


class RuleStep(msgspec.Struct, frozen=True):
    """`peers` or `ports` empty: the rule has none, so any matches. `allows`: it matches, and allows what it matches.
    `asks`: of requests, where a proxy is to judge them."""

    rule: str  # spec.ingress[0]
    allows: bool
    peers: tuple[Match, ...]
    ports: tuple[Match, ...]
    action: Action = Action.ALLOW
    matches: bool = False
    asks: str = ""


class PolicyStep(msgspec.Struct, frozen=True):
    """A policy that selects the subject, or is of its namespace. `rules`: those of this direction, if it selects it."""

    kind: str
    namespace: str
    name: str
    file: str
    line: int
    isolates: bool
    reason: str
    rules: tuple[RuleStep, ...] = ()
    tier: str = "namespaced"
    priority: int = 0


class SideStep(msgspec.Struct, frozen=True):
    """One end. `decided_by`: the rule that people are shown; every one that was asked is in `policies`.
    `asks`: of requests, of a REDIRECT."""

    direction: Direction
    subject: str
    verdict: Verdict
    judged: bool
    decided_by: str
    policies: tuple[PolicyStep, ...] = ()
    asks: str = ""


class Explanation(msgspec.Struct, frozen=True):
    source: str
    destination: str
    protocol: str
    port: int
    verdict: Verdict
    egress: SideStep
    ingress: SideStep


def explain(
    policies: Iterable[Policy], namespaces: Namespaces, flow: Flow, *, enforce_always: bool = False
) -> Explanation:
    """`enforce_always`: every pod is isolated, whatever selects it."""
    policies = sorted(policies, key=lambda p: p.ref)
    egress, ingress = (
        _side(policies, namespaces, flow, direction, enforce_always)
        for direction in (Direction.EGRESS, Direction.INGRESS)
    )
    return Explanation(
        source=str(flow.source),
        destination=str(flow.destination),
        protocol=protocol_text(flow.protocol),
        port=flow.port,
        verdict=together(egress.verdict, ingress.verdict),
        egress=egress,
        ingress=ingress,
    )


def lines(explanation: Explanation) -> Iterator[str]:
    """The explanation as text for a terminal."""
    what = " type" if explanation.protocol.startswith("ICMP") else ""
    port = f"{what} {explanation.port}" if explanation.port else ""
    yield f"{explanation.source} → {explanation.destination}, {explanation.protocol}{port}: {explanation.verdict}"
    for side in (explanation.egress, explanation.ingress):
        asks = f", which asks for {side.asks}" if side.asks else ""
        yield f"{side.direction} of {side.subject}: {side.verdict}, {side.decided_by}{asks}"
        for policy in side.policies:
            where = f" ({policy.file}:{policy.line})" if policy.file else ""
            name = f"{policy.namespace}/{policy.name}" if policy.namespace else policy.name
            yield f"  {policy.kind} {name}{where}: {policy.reason}"
            for rule in policy.rules:
                yield f"    {rule.rule} {_said(rule)}"
                for match in (*rule.peers, *rule.ports):
                    yield f"      {'+' if match.matched else '-'} {match.what}: {match.reason}"


_SAID = {
    (Action.ALLOW, True): "allows it",
    (Action.ALLOW, False): "does not allow it",
    (Action.DENY, True): "denies it",
    (Action.DENY, False): "does not deny it",
    (Action.PASS, True): "leaves it to the next tier",
    (Action.PASS, False): "does not match it",
}


def _said(rule: RuleStep) -> str:
    asks = f", as far as a proxy finds by {rule.asks}" if rule.allows and rule.asks else ""
    return f"{_SAID[rule.action, rule.matches]}{asks}"


def _side(
    policies: list[Policy], namespaces: Namespaces, flow: Flow, direction: Direction, enforce_always: bool
) -> SideStep:
    decision = evaluate_side(policies, namespaces, flow, direction, enforce_always=enforce_always)
    subject, remote = ends(flow, direction)
    if subject.pod is None:
        return SideStep(direction, str(subject), decision.verdict, False, "it is no pod: no policy restricts it")
    steps = [_policy(p, subject.pod, remote, namespaces, flow, direction) for p in policies]
    considered = tuple(s for s, selected in steps if selected or s.namespace == subject.pod.namespace)
    asks = demands_text(decision.demands) if decision.demands else ""
    return SideStep(direction, str(subject), decision.verdict, True, _decided_by(decision), considered, asks)


def _decided_by(decision: SideDecision) -> str:
    for rule in (*decision.denied_by, *decision.allowed_by):
        return rule.policy.name if rule.index < 0 else f"by {rule}"
    return "no rule allows it"


def _policy(
    policy: Policy, pod: PodFacts, remote: Party, namespaces: Namespaces, flow: Flow, direction: Direction
) -> tuple[PolicyStep, bool]:
    """And whether it selects the pod and says something about the direction."""
    rules = [r for r in policy.rules if r.ref.direction is direction]
    if policy.tier is Tier.NAMESPACED:
        rules.sort(key=lambda r: r.ref)
    selects_it = selects(policy.subject, pod, namespaces)
    isolates = selects_it and direction in policy.isolates
    concerned = isolates or (selects_it and bool(rules))
    step = PolicyStep(
        policy.ref.kind,
        policy.ref.namespace,
        policy.ref.name,
        policy.origin.file,
        policy.origin.line,
        isolates,
        _reason(policy, pod, namespaces, direction, concerned),
        tuple(_rule(rule, remote, namespaces, flow) for rule in rules) if concerned else (),
        policy.tier.name.lower(),
        policy.priority,
    )
    return step, concerned


def _reason(policy: Policy, pod: PodFacts, namespaces: Namespaces, direction: Direction, concerned: bool) -> str:
    if not selects(policy.subject, pod, namespaces):
        return f"does not select the pod: {_why_not_selected(policy.subject, pod, namespaces)}"
    if not concerned:
        return f"selects the pod, but says nothing about {direction}"
    if policy.problem and direction not in policy.isolates:
        return f"selects the pod, but could not be understood ({policy.problem}): what could not be read denies"
    if policy.problem:
        return f"isolates the pod and allows nothing: it could not be understood ({policy.problem})"
    if direction in policy.isolates:
        return f"isolates the pod: it is one of {pods_text(policy.subject)}"
    order = "" if policy.tier is Tier.NAMESPACED else f" ({policy.tier.name.lower()} tier, priority {policy.priority})"
    return f"selects the pod without isolating it{order}: it is one of {pods_text(policy.subject)}"


def _rule(rule: Rule, remote: Party, namespaces: Namespaces, flow: Flow) -> RuleStep:
    peers = tuple(
        Match(peer_text(p), peer_selects(p, remote, namespaces), peer_reason(p, remote, namespaces))
        for p in rule.peers or ()
    )
    ports = tuple(Match(port_text(p), port_selects(p, flow), port_reason(p, flow)) for p in rule.ports or ())
    matches = rule_matches(rule, remote, namespaces, flow)
    asks = demands_text(frozenset({rule.l7})) if rule.l7 is not None else ""
    allows = matches and rule.action is Action.ALLOW
    return RuleStep(_rule_name(rule.ref), allows, peers, ports, rule.action, matches, asks)


def _rule_name(ref: RuleRef) -> str:
    """Where it stands in the manifest: spec.ingressDeny[0], specs[1].egress[2]."""
    section = ref.section or ref.direction
    return f"{section if section.startswith('specs[') else f'spec.{section}'}[{ref.index}]"

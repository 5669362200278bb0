"""The slow oracle: may this packet open a flow? Straight from the texts of the APIs, one flow at a time.

It shares no code with the index and the compiler, which are tested against it; nor do policies.matching and
policies.facts, which are part of it.
What a proxy makes of requests is judged elsewhere: here a flow is left to it (REDIRECT), with what it is to ask.
"""

from __future__ import annotations

from collections.abc import Iterable

import msgspec

from policies.facts import HOST, Flow, Namespaces, ends
from policies.l7 import L7, Demands, NamePattern
from policies.matching import rule_matches, selects
from policies.model import (
    NODE,
    NOT_ISOLATED,
    SELF,
    Action,
    Direction,
    ObjectRef,
    Policy,
    Rule,
    RuleRef,
    Tier,
    Verdict,
)


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

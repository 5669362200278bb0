"""ClusterNetworkPolicy (policy.networking.k8s.io) → Policy, and its older spelling, AdminNetworkPolicy and
BaselineAdminNetworkPolicy (v1alpha1). Validated as the API server validates them by their CRDs.

The tiers ADMIN and BASELINE decide by the first rule that matches: these policies isolate nobody. Among policies of one
priority the smaller name goes first, where the API leaves the order open. BaselineAdminNetworkPolicy goes after every
ClusterNetworkPolicy of its tier.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

import msgspec

from policies.adminpeers import DIALECTS, Dialect, parse_peers, parse_pods, parse_ports
from policies.fields import Field, FieldProblem, InvalidPolicy
from policies.labelselector import parse_selector
from policies.metadata import check_kind, parse_metadata
from policies.model import (
    Action,
    Direction,
    LabelSelector,
    ObjectRef,
    Origin,
    PodSelector,
    Policy,
    Rule,
    RuleRef,
    Tier,
)

KINDS = tuple(DIALECTS)
"""ClusterNetworkPolicy, AdminNetworkPolicy, BaselineAdminNetworkPolicy."""
API_VERSIONS: Mapping[str, tuple[str, ...]] = {kind: dialect.versions for kind, dialect in DIALECTS.items()}

_ROOT = ("apiVersion", "kind", "metadata", "spec", "status")
_TIERS = {"Admin": Tier.ADMIN, "Baseline": Tier.BASELINE}
_PEERS = {Direction.INGRESS: "from", Direction.EGRESS: "to"}
_LOWEST_PRIORITY = 1000
_LONGEST_RULE_NAME = 100


class _Reading(msgspec.Struct):
    """A document as far as it can be read. `policy` is the author's where no problem was noted. A rule that has one is
    closed: it is left out where it clearly accepts, and denies everything otherwise."""

    policy: Policy
    problems: list[FieldProblem]
    directions: frozenset[Direction]
    """In which the policy may have rules."""


def parse(raw: Any, origin: Origin) -> Policy:
    """Raises InvalidPolicy with every problem there is. `raw` may be of any of KINDS."""
    reading = _read(raw, origin)
    if reading.problems:
        raise InvalidPolicy(reading.problems)
    return reading.policy


def salvage(raw: Any, origin: Origin) -> Policy | None:
    """What is certain of an invalid policy; None where its name or its subject is not clear, or where it is valid.

    An admin's policy that cannot be read must open nothing, and what it was to deny stays denied. As the API asks of
    who meets a rule it does not know: an Accept matches nothing, a Deny, Pass or unclear action denies everything, in
    the place of the rule. Where it is more than single rules that is wrong (tier, priority, an unknown field), the
    policy denies its subject everything, before any other of its tier; an Accept or a Pass in the wrong place could
    open what others deny.
    """
    reading = _read(raw, origin)
    problems, policy = reading.problems, reading.policy
    unclear = ("kind", "apiVersion", "spec.subject", "metadata.name")
    if not problems or not policy.ref.name or any(p.path.startswith(unclear) for p in problems):
        return None
    if any(p.path in ("", "spec", "metadata") for p in problems):
        return None
    more = f" (and {len(problems) - 1} more)" if len(problems) > 1 else ""
    policy = msgspec.structs.replace(policy, problem=f"{problems[0]}{more}")
    if all(p.path.startswith(("metadata", "spec.ingress[", "spec.egress[")) for p in problems):
        return policy
    if any(p.path == "spec.tier" for p in problems):
        policy = msgspec.structs.replace(policy, tier=Tier.ADMIN)
    rules = tuple(
        Rule(RuleRef(policy.ref, direction, -1), None, None, Action.DENY) for direction in sorted(reading.directions)
    )
    return msgspec.structs.replace(policy, priority=0, rules=rules)


# ---- inside


def _read(raw: Any, origin: Origin) -> _Reading:
    problems: list[FieldProblem] = []
    root = Field(raw, "", problems)
    root.expect_object(_ROOT)
    kind = root.get("kind")
    dialect = DIALECTS.get(kind.value if isinstance(kind.value, str) else "")
    if dialect is None:
        kind.problem(f"must be {', '.join(KINDS[:-1])} or {KINDS[-1]}")
        dialect = DIALECTS[KINDS[0]]
    else:
        check_kind(root, dialect.versions, dialect.kind)
    ref = parse_metadata(root.get("metadata"), dialect.kind, namespaced=False)
    if dialect.only_name and ref.name not in ("", dialect.only_name):
        root.get("metadata").get("name").problem(f"must be {dialect.only_name!r}: a cluster has one {dialect.kind}")
    spec = root.get("spec")
    if not spec.given:
        spec.problem("must be given")
    known = spec.expect_object(dialect.spec) and not any(_is_unknown(p) for p in problems)
    directions = (d for d in Direction if not known or spec.get(d).value)
    policy = Policy(
        ref,
        origin,
        _subject(spec.get("subject"), dialect),
        isolates=frozenset(),
        rules=tuple(rule for direction in Direction for rule in _rules(spec.get(direction), direction, ref, dialect)),
        tier=_tier(spec.get("tier")) if dialect.tier is None else dialect.tier,
        priority=_priority(spec.get("priority")) if dialect.priority is None else dialect.priority,
    )
    return _Reading(policy, problems, frozenset(directions))


def _is_unknown(problem: FieldProblem) -> bool:
    """A field of the document or its spec that may be a misspelt one."""
    return problem.message.startswith("unknown field") and problem.path.rpartition(".")[0] in ("", "spec")


def _tier(field: Field) -> Tier:
    name = field.string()
    if name in _TIERS:
        return _TIERS[name]
    if name is not None or not field.given:
        field.problem("must be Admin or Baseline")
    return Tier.ADMIN


def _priority(field: Field) -> int:
    number = field.integer()
    if not field.given:
        field.problem(f"must be given: 0–{_LOWEST_PRIORITY}, the lower goes first")
    elif number is not None and not 0 <= number <= _LOWEST_PRIORITY:
        field.problem(f"must be 0–{_LOWEST_PRIORITY}, not {number}")
    return number or 0


def _subject(field: Field, dialect: Dialect) -> PodSelector:
    """hostNetwork pods are never among them."""
    if not field.given:
        field.problem("must be given")
    field.expect_object(("namespaces", "pods"))
    namespaces, pods = field.get("namespaces"), field.get("pods")
    if field.given and namespaces.given is pods.given:
        field.problem("must have one of namespaces and pods")
    if pods.given:
        return parse_pods(pods, dialect)
    return PodSelector(LabelSelector(), namespaces=parse_selector(namespaces))


def _rules(section: Field, direction: Direction, ref: ObjectRef, dialect: Dialect) -> Iterator[Rule]:
    if isinstance(section.value, list) and len(section.value) > dialect.most_rules:
        section.problem(f"must have at most {dialect.most_rules} rules")
    for index, field in enumerate(section.items()):
        before = len(field.problems)
        rule = _rule(field, RuleRef(ref, direction, index), dialect)
        if len(field.problems) == before:
            yield rule
        elif dialect.actions.get(_text(field.get("action"))) is not Action.ALLOW:
            yield Rule(rule.ref, None, None, Action.DENY)


def _rule(field: Field, ref: RuleRef, dialect: Dialect) -> Rule:
    if not field.given:
        field.problem("must be an object, not null")
    peers = field.get(_PEERS[ref.direction])
    field.expect_object(("name", "action", peers.path.rpartition(".")[2], dialect.ports))
    name, action = field.get("name").string(), field.get("action")
    if name is not None and len(name) > _LONGEST_RULE_NAME:
        field.get("name").problem(f"must have at most {_LONGEST_RULE_NAME} characters")
    meant = dialect.actions.get(_text(action))
    if meant is None and (action.string() is not None or not action.given):
        *others, last = dialect.actions
        action.problem(f"must be {', '.join(others)} or {last}")
    ports = parse_ports(field.get(dialect.ports), dialect)
    return Rule(ref, parse_peers(peers, ref.direction, meant, ports, dialect), ports, meant or Action.DENY)


def _text(field: Field) -> str:
    return field.value if isinstance(field.value, str) else ""

"""CiliumNetworkPolicy and CiliumClusterwideNetworkPolicy → policies, one for each spec."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import msgspec

from policies.cilium.peers import Section, known, parse_peers
from policies.cilium.ports import FIELDS, parse_port_rules
from policies.cilium.selectors import parse_plain, parse_subject
from policies.fields import Field, FieldProblem, InvalidPolicy
from policies.labelselector import requirement, selector
from policies.metadata import check_kind, parse_metadata
from policies.model import Action, Direction, ObjectRef, Operator, Origin, PodSelector, Policy, Rule, RuleRef

API_VERSION = "cilium.io/v2"
NAMESPACED = "CiliumNetworkPolicy"
CLUSTERWIDE = "CiliumClusterwideNetworkPolicy"
KINDS = (NAMESPACED, CLUSTERWIDE)

_SPEC = ("endpointSelector", "nodeSelector", "enableDefaultDeny", "labels", "description", "log")
_SECTIONS: Mapping[str, tuple[Direction, Action]] = {
    "ingress": (Direction.INGRESS, Action.ALLOW),
    "ingressDeny": (Direction.INGRESS, Action.DENY),
    "egress": (Direction.EGRESS, Action.ALLOW),
    "egressDeny": (Direction.EGRESS, Action.DENY),
}
_AUTHENTICATION_OFF = "disabled"
NO_POD = PodSelector(selector(frozenset((requirement("gatehouse.io/none", Operator.IN, ()),))), namespace="")
"""The subject of a policy that is not enforced: it matches nothing."""

HOST_POLICY = "policies for nodes are not enforced"
OTHER_SUBJECT = "selects what is no pod: that is not enforced"


def parse(raw: Any, origin: Origin) -> tuple[Policy, ...]:
    """Raises InvalidPolicy with every problem there is. A policy that is valid and not enforced says so in its
    `problem` (field path, colon, sentence), and does nothing."""
    problems: list[FieldProblem] = []
    policies = _read(raw, origin, problems)
    if problems:
        raise InvalidPolicy(problems)
    return tuple(policies)


def salvage(raw: Any, origin: Origin) -> tuple[Policy, ...]:
    """What is certain of an invalid object: which pods its specs isolate, and deny rules in which nothing is wrong.

    Both directions are isolated where it is unclear which. Left out are specs whose endpointSelector is not clear; none
    is left where the object is valid.
    """
    problems: list[FieldProblem] = []
    policies = _read(raw, origin, problems)
    unclear = ("kind", "apiVersion", "metadata.namespace")
    if not problems or any(p.path in ("", "metadata") or p.path.startswith(unclear) for p in problems):
        return ()
    if not policies or not policies[0].ref.name:
        return ()
    more = f" (and {len(problems) - 1} more)" if len(problems) > 1 else ""
    salvaged = []
    for (path, spec), policy in zip(_specs(Field(raw, "", [])), policies, strict=True):
        if policy.problem or not spec.get("endpointSelector").given or _is_wrong(problems, f"{path}.endpointSelector"):
            continue
        own = [p for p in problems if p.path == path or p.path.startswith(f"{path}.")]
        salvaged.append(
            msgspec.structs.replace(
                policy,
                isolates=policy.isolates if _directions_clear(own, path) else frozenset(Direction),
                rules=tuple(rule for rule in policy.rules if rule.action is Action.DENY and _is_clear(own, path, rule)),
                problem=f"{problems[0]}{more}",
            )
        )
    return tuple(salvaged)


def spec_paths(raw: Any) -> list[str]:
    """The field path of each of the policies that `parse` makes."""
    return [path for path, _ in _specs(Field(raw, "", []))]


def _is_wrong(problems: list[FieldProblem], path: str) -> bool:
    return any(p.path.startswith(path) for p in problems)


def _directions_clear(problems: list[FieldProblem], path: str) -> bool:
    """Whether nothing is wrong with the spec itself, or with a list of rules as such."""
    sections = {f"{path}.{name}" for name in _SECTIONS}
    return not any(
        p.path == path or p.path in sections or (p.path.count(".") == path.count(".") + 1 and "[" not in _last(p.path))
        for p in problems
    ) and not _is_wrong(problems, f"{path}.enableDefaultDeny")


def _last(path: str) -> str:
    return path.rpartition(".")[2]


def _is_clear(problems: list[FieldProblem], path: str, rule: Rule) -> bool:
    section = _last(rule.ref.section or rule.ref.direction)
    return not _is_wrong(problems, f"{path}.{section}[{rule.ref.index}]")


# ---- the object


def _read(raw: Any, origin: Origin, problems: list[FieldProblem]) -> list[Policy]:
    """The policies as far as they can be read; only right if no problem was noted."""
    root = Field(raw, "", problems)
    root.expect_object(("apiVersion", "kind", "metadata", "spec", "specs", "status"))
    kind = root.get("kind").value
    kind = kind if kind in KINDS else NAMESPACED
    check_kind(root, (API_VERSION,), kind)
    ref = parse_metadata(root.get("metadata"), kind, namespaced=kind == NAMESPACED)
    specs = _specs(root)
    if not specs and isinstance(raw, Mapping):
        root.get("spec").problem("must be given")
    return [_policy(spec, path, origin, ref, first=not at) for at, (path, spec) in enumerate(specs)]


def _specs(root: Field) -> list[tuple[str, Field]]:
    """Each spec with its path."""
    found = [root.get("spec")] if root.get("spec").given else []
    return [(field.path, field) for field in (*found, *root.get("specs").items())]


def _policy(spec: Field, path: str, origin: Origin, ref: ObjectRef, *, first: bool) -> Policy:
    if not spec.given:
        spec.problem("must be an object, not null")
    spec.expect_object((*_SPEC, *_SECTIONS))
    own = ref if first else ObjectRef(ref.kind, ref.namespace, f"{ref.name}:{path}")
    subject, problem = _subject(spec, ref)
    for item in spec.get("labels").items():
        item.expect_object(("key", "value", "source"))
    spec.get("description").string()
    spec.get("log").expect_object(("value",))
    rules = tuple(rule for name in _SECTIONS for rule in _rules(spec.get(name), name, own, path))
    isolates = _isolates(spec)
    if problem:
        return Policy(own, origin, NO_POD, frozenset(), (), problem)
    return Policy(own, origin, subject, isolates, rules)


def _subject(spec: Field, ref: ObjectRef) -> tuple[PodSelector, str]:
    """The pods it is about, or why there are none."""
    endpoints, nodes = spec.get("endpointSelector"), spec.get("nodeSelector")
    if not endpoints.given and not nodes.given:
        endpoints.problem("must be given ({} selects every pod)")
    if nodes.given:
        parse_plain(nodes, "node")
        if endpoints.given:
            nodes.problem("must not be given with endpointSelector")
        elif ref.kind == NAMESPACED:
            nodes.problem(f"is for a {CLUSTERWIDE} alone")
        return NO_POD, str(FieldProblem(nodes.path, HOST_POLICY))
    found = parse_subject(endpoints, ref.namespace)
    return (NO_POD, str(FieldProblem(endpoints.path, OTHER_SUBJECT))) if found is None else (found, "")


def _isolates(spec: Field) -> frozenset[Direction]:
    """A direction that has rules, of allow or deny, unless enableDefaultDeny says otherwise."""
    field = spec.get("enableDefaultDeny")
    field.expect_object(tuple(Direction))
    has_rules = {_SECTIONS[name][0] for name in _SECTIONS if spec.get(name).value}
    out = set()
    for direction in Direction:
        asked = field.get(direction).boolean()
        if asked or (asked is None and direction in has_rules):
            out.add(direction)
    if not has_rules and not out:
        spec.problem("must have a rule in ingress, ingressDeny, egress or egressDeny ([{}] denies everything)")
    return frozenset(out)


def _rules(section: Field, name: str, policy: ObjectRef, path: str) -> list[Rule]:
    direction, action = _SECTIONS[name]
    about = Section(direction, deny=action is Action.DENY, home=policy.namespace)
    prefix = "" if path == "spec" else f"{path}."
    shown = f"{prefix}{name}"
    label = "" if shown == direction else shown
    found: list[Rule] = []
    for index, field in enumerate(section.items()):
        found += _rule(field, about, RuleRef(policy, direction, index, label), action)
    return found


def _rule(field: Field, section: Section, ref: RuleRef, action: Action) -> list[Rule]:
    """A rule that says neither who nor where matches nothing: it is there to isolate."""
    if not field.given:
        field.problem("must be an object, not null (write {} to isolate)")
    field.expect_object((*known(section), *FIELDS, *(() if section.deny else ("authentication",))))
    authentication = field.get("authentication")
    authentication.expect_object(("mode",))
    mode = authentication.get("mode")
    if mode.string() not in (None, "", _AUTHENTICATION_OFF):
        mode.problem(f"{mode.value!r} is not supported: connections are not authenticated")
    peers, ports = parse_peers(field, section), parse_port_rules(field, section)
    if ports is None:
        says_who = peers is not None or any(field.get(name).given for name in known(section))
        return [Rule(ref, peers if says_who else (), None, action)]
    return [Rule(ref, peers, where, action, l7) for where, l7 in ports]

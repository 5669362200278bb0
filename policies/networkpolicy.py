"""NetworkPolicy (networking.k8s.io/v1) → Policy, validated as the API server validates it.

Two deliberate differences, both on the closed side: a null element in a list of rules, peers or ports is refused (the
API server takes a lone `-` for an empty rule, which allows everything), and so is an IPv4-mapped IPv6 block.
"""

from __future__ import annotations

from sys import intern
from typing import Any

from policies.fields import Field, FieldProblem, InvalidPolicy
from policies.labelselector import parse_selector
from policies.metadata import check_kind, parse_metadata
from policies.model import (
    CidrBlock,
    Direction,
    NamedPort,
    Origin,
    Peer,
    PodSelector,
    Policy,
    Port,
    PortRange,
    Protocol,
    Rule,
    RuleRef,
)
from policies.syntax import parse_cidr, port_name_problem, read_cidr

API_VERSION = "networking.k8s.io/v1"
KIND = "NetworkPolicy"

_ROOT = ("apiVersion", "kind", "metadata", "spec", "status")
_SPEC = ("podSelector", "policyTypes", "ingress", "egress")
_TYPES = {"Ingress": Direction.INGRESS, "Egress": Direction.EGRESS}
_PEERS = {Direction.INGRESS: "from", Direction.EGRESS: "to"}


def parse(raw: Any, origin: Origin) -> Policy:
    """Raises InvalidPolicy with every problem there is."""
    problems: list[FieldProblem] = []
    policy = _policy(Field(raw, "", problems), origin)
    if problems:
        raise InvalidPolicy(problems)
    return policy


def salvage(raw: Any, origin: Origin) -> Policy | None:
    """What is certain of an invalid policy: that it isolates the pods it selects. It gets no rules.

    It isolates the directions its policyTypes give, or both where they cannot be told. None where namespace, name or
    podSelector are not clear, or where the policy is valid.
    """
    problems: list[FieldProblem] = []
    root = Field(raw, "", problems)
    policy = _policy(root, origin)
    spec = root.get("spec")
    known = not any(p.message.startswith("unknown field") and _parent(p.path) in ("", "spec") for p in problems)
    unclear = ("kind", "apiVersion", "metadata.namespace", "spec.podSelector")
    if (
        not problems
        or not policy.ref.name
        or any(p.path in ("", "metadata", "spec") or p.path.startswith(unclear) for p in problems)
        or not (known or spec.get("podSelector").given)
    ):
        return None
    certain = known and not any(p.path.startswith("spec.policyTypes") or p.path == "spec.egress" for p in problems)
    more = f" (and {len(problems) - 1} more)" if len(problems) > 1 else ""
    return Policy(
        policy.ref,
        origin,
        policy.subject,
        isolates=policy.isolates if certain else frozenset(Direction),
        rules=(),
        problem=f"{problems[0]}{more}",
    )


def _parent(path: str) -> str:
    return path.rpartition(".")[0]


def _policy(root: Field, origin: Origin) -> Policy:
    """The policy as far as it can be read; only right if no problem was noted."""
    root.expect_object(_ROOT)
    check_kind(root, (API_VERSION,), KIND)
    ref = parse_metadata(root.get("metadata"), KIND)
    spec = root.get("spec")
    spec.expect_object(_SPEC)
    subject = PodSelector(parse_selector(spec.get("podSelector")), namespace=ref.namespace)
    rules = {
        direction: [_rule(field, RuleRef(ref, direction, i)) for i, field in enumerate(spec.get(direction).items())]
        for direction in (Direction.INGRESS, Direction.EGRESS)
    }
    isolates = _isolates(spec.get("policyTypes"), has_egress=bool(rules[Direction.EGRESS]))
    in_force = tuple(rule for direction in rules if direction in isolates for rule in rules[direction])
    return Policy(ref, origin, subject, isolates, in_force)


_DIRECTIONS = {one: one for one in (frozenset(Direction), *(frozenset((d,)) for d in Direction))}
"""One set of each kind, shared by all policies."""


def _isolates(field: Field, *, has_egress: bool) -> frozenset[Direction]:
    """Defaults as networking/v1 SetDefaults_NetworkPolicy: Ingress, and Egress if there is an egress rule."""
    out: set[Direction] = set()
    for item in field.items():
        name = item.string()
        if name in _TYPES:
            out.add(_TYPES[name])
        elif name is not None or not item.given:
            item.problem("must be Ingress or Egress")
    if isinstance(field.value, list) and len(field.value) > 2:
        field.problem("must not list more than two policy types")
    if not out:
        out = {Direction.INGRESS, Direction.EGRESS} if has_egress else {Direction.INGRESS}
    return _DIRECTIONS[frozenset(out)]


# ---- rules


def _rule(field: Field, ref: RuleRef) -> Rule:
    name = _PEERS[ref.direction]
    if not field.given:
        field.problem("must be an object, not null (write {} to allow everything)")
    field.expect_object((name, "ports"))
    peers = tuple(_peer(item, ref.policy.namespace) for item in field.get(name).items())
    ports = tuple(_port(item) for item in field.get("ports").items())
    return Rule(ref, peers or None, ports or None)


def _peer(field: Field, namespace: str) -> Peer:
    field.expect_object(("podSelector", "namespaceSelector", "ipBlock"))
    pods, namespaces, block = field.get("podSelector"), field.get("namespaceSelector"), field.get("ipBlock")
    if block.given:
        if pods.given or namespaces.given:
            field.problem("must not have both ipBlock and a selector")
        parse_selector(pods)
        parse_selector(namespaces)
        return _block(block)
    if not (pods.given or namespaces.given):
        field.problem("must have a podSelector, a namespaceSelector or an ipBlock")
    if namespaces.given:
        return PodSelector(parse_selector(pods), namespaces=parse_selector(namespaces))
    return PodSelector(parse_selector(pods), namespace=namespace)


_NOWHERE = parse_cidr("::/128")


def _block(field: Field) -> CidrBlock:
    field.expect_object(("cidr", "except"))
    cidr = field.get("cidr")
    if not cidr.value and not isinstance(cidr.value, bool | int | float):
        cidr.problem("must be given")
        block = None
    else:
        block = read_cidr(cidr, cidr.string())
    excepts = []
    for item in field.get("except").items():
        if not item.given:
            item.problem("must be a CIDR block, not null")
            continue
        inner = read_cidr(item, item.string())
        if inner is None:
            continue
        if block is not None and (inner.bits <= block.bits or not block.covers(inner)):
            item.problem(f"{item.value} must lie within cidr {cidr.value} and be smaller")
        excepts.append(inner)
    return CidrBlock(block or _NOWHERE, tuple(excepts))


def _port(field: Field) -> Port:
    if not field.given:
        field.problem("must be an object, not null (write {} for every TCP port)")
    field.expect_object(("protocol", "port", "endPort"))
    protocol = _protocol(field.get("protocol"))
    port, end = field.get("port"), field.get("endPort")
    last = end.integer()
    if last is not None and not 1 <= last <= 65535:
        end.problem(f"must be 1–65535, not {last}")
    if isinstance(port.value, str):
        quoted = "a port number must not be in quotes" if port.value.isdigit() else None
        port.check(quoted or port_name_problem(port.value))
        if end.given:
            end.problem("must not be given with a port name")
        return NamedPort(protocol, intern(port.value))
    if not port.given:
        if end.given:
            end.problem("must not be given without port")
        return PortRange(protocol, 0, 65535)
    first = port.value
    if isinstance(first, bool) or not isinstance(first, int):
        port.problem("must be a port number or a port name")
        return PortRange(protocol, 0, 0)
    if not 1 <= first <= 65535:
        port.problem(f"must be 1–65535, not {first}")
    elif last is not None and last < first:
        end.problem(f"must not be below port {first}")
    return PortRange(protocol, first, first if last is None else last)


def _protocol(field: Field) -> int:
    name = field.string()
    if name is None:
        return Protocol.BY_NAME["TCP"]
    if name not in Protocol.BY_NAME:
        field.problem(f"must be TCP, UDP or SCTP, not {name!r}")
    return Protocol.BY_NAME.get(name, 0)

"""Peers and ports of policy.networking.k8s.io: what its kinds have in common, and where their spellings differ."""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from sys import intern

import msgspec

from policies.address import Prefix
from policies.fields import Field
from policies.l7 import NamePattern
from policies.labelselector import parse_selector
from policies.model import (
    Action,
    CidrBlock,
    Direction,
    LabelSelector,
    NamedPort,
    NodePeer,
    Peer,
    PodSelector,
    Port,
    PortRange,
    Protocol,
    Tier,
)
from policies.syntax import parse_cidr, port_name_problem

GROUP = "policy.networking.k8s.io"

_INSIDE = ("namespaces", "pods")
_OUTSIDE = ("nodes", "networks", "domainNames")
_DOMAIN = re.compile(r"(\*\.)?([a-zA-Z0-9]([-a-zA-Z0-9_]*[a-zA-Z0-9])?\.)+[a-zA-Z0-9]([-a-zA-Z0-9_]*[a-zA-Z0-9])?\.?")

_LONGEST_DOMAIN = 253


class Dialect(msgspec.Struct, frozen=True):
    """One kind. `tier`, `priority`: where no field says so. `ports`: the field's name."""

    kind: str
    versions: tuple[str, ...]
    spec: tuple[str, ...]
    actions: Mapping[str, Action]
    ports: str
    most_rules: int
    most_items: int
    """Of peers, ports, networks and names."""
    tier: Tier | None = None
    priority: int | None = None
    only_name: str = ""
    egress_peers: tuple[str, ...] = (*_INSIDE, *_OUTSIDE)
    namespaces_optional: bool = False
    """pods.namespaceSelector may be left out: pods of all namespaces."""


_ALLOW_DENY = {"Allow": Action.ALLOW, "Deny": Action.DENY}
_V1ALPHA1 = (f"{GROUP}/v1alpha1",)

DIALECTS: Mapping[str, Dialect] = {
    dialect.kind: dialect
    for dialect in (
        Dialect(
            "ClusterNetworkPolicy",
            (f"{GROUP}/v1alpha2", f"{GROUP}/v1beta1"),
            ("tier", "priority", "subject", "ingress", "egress"),
            {"Accept": Action.ALLOW, "Deny": Action.DENY, "Pass": Action.PASS},
            "protocols",
            most_rules=25,
            most_items=25,
            namespaces_optional=True,
        ),
        Dialect(
            "AdminNetworkPolicy",
            _V1ALPHA1,
            ("priority", "subject", "ingress", "egress"),
            {**_ALLOW_DENY, "Pass": Action.PASS},
            "ports",
            most_rules=100,
            most_items=100,
            tier=Tier.ADMIN,
        ),
        Dialect(
            "BaselineAdminNetworkPolicy",
            _V1ALPHA1,
            ("subject", "ingress", "egress"),
            _ALLOW_DENY,
            "ports",
            most_rules=100,
            most_items=100,
            tier=Tier.BASELINE,
            priority=1001,
            only_name="default",
            egress_peers=(*_INSIDE, "nodes", "networks"),
        ),
    )
}


# ---- peers


def parse_pods(field: Field, dialect: Dialect) -> PodSelector:
    """{namespaceSelector, podSelector}; an empty one selects all."""
    field.expect_object(("namespaceSelector", "podSelector"))
    namespaces, pods = field.get("namespaceSelector"), field.get("podSelector")
    for selector in (pods,) if dialect.namespaces_optional else (namespaces, pods):
        if not selector.given:
            selector.problem("must be given (write {} for all)")
    return PodSelector(parse_selector(pods), namespaces=parse_selector(namespaces))


def parse_peers(
    field: Field, direction: Direction, action: Action | None, ports: tuple[Port, ...] | None, dialect: Dialect
) -> tuple[Peer, ...]:
    """At least one. What has no container ports (nodes, networks, names) does not go with a rule that names one."""
    named = any(isinstance(port, NamedPort) for port in ports or ())
    found: list[Peer] = []
    for item in _listed(field, dialect, "peer"):
        found += _peer(item, direction, dialect)
        for name in _OUTSIDE:
            if named and item.get(name).given:
                item.get(name).problem("must not be given where the rule has a port name: these have none")
        names = item.get("domainNames")
        if names.given and action not in (Action.ALLOW, None):
            names.problem("only a rule that accepts may have names: who answers for others cannot be told")
    return tuple(dict.fromkeys(found))


def _peer(field: Field, direction: Direction, dialect: Dialect) -> Iterator[Peer]:
    fields = dialect.egress_peers if direction is Direction.EGRESS else _INSIDE
    field.expect_object(fields)
    given = [name for name in fields if field.get(name).given]
    if field.given and len(given) != 1:
        field.problem(f"must have one of {', '.join(fields[:-1])} and {fields[-1]}")
    for name in given:
        one = field.get(name)
        if name == "namespaces":
            yield PodSelector(LabelSelector(), namespaces=parse_selector(one))
        elif name == "pods":
            yield parse_pods(one, dialect)
        elif name == "nodes":
            yield NodePeer(parse_selector(one))
        elif name == "networks":
            yield from (CidrBlock(_block(item)) for item in _listed(one, dialect, "block"))
        else:
            yield from map(_domain, _listed(one, dialect, "name"))


_NOWHERE = parse_cidr("::/128")


def _block(field: Field) -> Prefix:
    text = field.string()
    try:
        return parse_cidr(text or "")
    except ValueError as error:
        if text is not None or not field.given:
            field.problem(str(error))
        return _NOWHERE


def _domain(field: Field) -> NamePattern:
    """`*.` at the start stands for one or more labels; so the pattern begins with `**.`."""
    text = field.string() or ""
    if (isinstance(field.value, str) or not field.given) and (
        len(text) > _LONGEST_DOMAIN or not _DOMAIN.fullmatch(text)
    ):
        field.problem(f"{text!r} must be a domain name such as example.com or *.example.com")
    name = intern(text.lower().removesuffix("."))
    return NamePattern(pattern=f"*{name}") if name.startswith("*.") else NamePattern(exact=name)


# ---- ports


def parse_ports(field: Field, dialect: Dialect) -> tuple[Port, ...] | None:
    """None where the field is not given: every protocol and port."""
    if not field.given:
        return None
    read = _protocol if dialect.ports == "protocols" else _port
    return tuple(dict.fromkeys(port for item in _listed(field, dialect, "port") for port in read(item)))


_PROTOCOLS = {name.lower(): number for name, number in Protocol.BY_NAME.items()}


def _protocol(field: Field) -> Iterator[Port]:
    """{tcp: {destinationPort: {number: 80}}}, {destinationNamedPort: http}."""
    field.expect_object((*_PROTOCOLS, "destinationNamedPort"))
    named = field.get("destinationNamedPort")
    given = [name for name in _PROTOCOLS if field.get(name).given]
    if len(given) + named.given != 1:
        field.problem("must have one of tcp, udp, sctp and destinationNamedPort")
    if named.given:
        yield from _named(named)
    for name in given:
        protocol = field.get(name)
        protocol.expect_object(("destinationPort",))
        port = protocol.get("destinationPort")
        if not port.given:
            port.problem("must be given (range 1 to 65535 for every port)")
        port.expect_object(("number", "range"))
        number, between = port.get("number"), port.get("range")
        if port.given and number.given is between.given:
            port.problem("must have one of number and range")
        between.expect_object(("start", "end"))
        yield _range(_PROTOCOLS[name], between) if between.given else _single(_PROTOCOLS[name], number)


def _port(field: Field) -> Iterator[Port]:
    """{portNumber: {protocol: TCP, port: 80}}, {portRange: {start: 1, end: 9}}, {namedPort: http}."""
    forms = ("portNumber", "portRange", "namedPort")
    field.expect_object(forms)
    number, between, named = map(field.get, forms)
    if number.given + between.given + named.given != 1:
        field.problem("must have one of portNumber, portRange and namedPort")
    if named.given:
        yield from _named(named)
    if number.given:
        number.expect_object(("protocol", "port"))
        port = number.get("port")
        if not port.given:
            port.problem("must be given")
        yield _single(_protocol_number(number.get("protocol")), port)
    if between.given:
        between.expect_object(("protocol", "start", "end"))
        yield _range(_protocol_number(between.get("protocol")), between)


def _named(field: Field) -> Iterator[Port]:
    """The protocol is that of the container's port."""
    name = field.string()
    if name is not None and field.check(port_name_problem(name)):
        yield from (NamedPort(protocol, intern(name)) for protocol in _PROTOCOLS.values())


def _single(protocol: int, field: Field) -> PortRange:
    number = _port_number(field)
    return PortRange(protocol, number, number)


def _range(protocol: int, field: Field) -> PortRange:
    start, end = field.get("start"), field.get("end")
    for one in (start, end):
        if not one.given:
            one.problem("must be given")
    first, last = _port_number(start), _port_number(end)
    if first and last and first >= last:
        end.problem(f"must be above start, {first}")
    return PortRange(protocol, first, last)


def _port_number(field: Field) -> int:
    """0 where it is none."""
    number = field.integer()
    if number is not None and not 1 <= number <= 65535:
        field.problem(f"must be 1–65535, not {number}")
        return 0
    return number or 0


def _protocol_number(field: Field) -> int:
    """TCP where it is not given."""
    name = field.string()
    if name is not None and name not in Protocol.BY_NAME:
        field.problem(f"must be TCP, UDP or SCTP, not {name!r}")
    return Protocol.BY_NAME.get(name or "TCP", 0)


def _listed(field: Field, dialect: Dialect, what: str) -> Iterator[Field]:
    """Elements of a list that must have some; null is none of them."""
    if not field.value and not isinstance(field.value, bool | int | float | str | Mapping):
        field.problem(f"must have at least one {what}")
    if isinstance(field.value, list) and len(field.value) > dialect.most_items:
        field.problem(f"must have at most {dialect.most_items} {what}s")
    for item in field.items():
        if not item.given:
            item.problem("must not be null")
        yield item

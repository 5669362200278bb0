"""With whom: the members of an ingress or egress rule that name remotes. A rule has one of them, as Cilium wants it."""

from __future__ import annotations

from collections.abc import Callable, Mapping

import msgspec

from policies.cilium.blocks import parse_block, parse_block_with_excepts
from policies.cilium.names import parse_name
from policies.cilium.selectors import parse_peer, parse_plain
from policies.fields import Field
from policies.model import KUBERNETES, Direction, Entity, EntityPeer, NodePeer, Peer, ServicePeer
from policies.syntax import dns_label_problem

ALL = "all"
_ENTITIES = (*sorted(Entity), ALL)


class Section(msgspec.Struct, frozen=True):
    """What a list of rules is for. `home`: the policy's namespace, "" for none."""

    direction: Direction
    deny: bool
    home: str


def _entity(field: Field, _home: str) -> Peer | None:
    """None is any remote."""
    name = field.string()
    if name is None or name not in _ENTITIES:
        if name is not None or not field.given:
            field.problem(f"must be one of {', '.join(_ENTITIES)}" + (f", not {name!r}" if name else ""))
        return EntityPeer(Entity.NONE)
    return None if name == ALL else EntityPeer(Entity(name))


def _service(field: Field, home: str) -> Peer:
    """By name in a namespace, the policy's own where none is given; or by labels, in all where none is given."""
    field.expect_object(("k8sService", "k8sServiceSelector"))
    named, selected = field.get("k8sService"), field.get("k8sServiceSelector")
    if named.given is selected.given:
        field.problem("must have either k8sService or k8sServiceSelector")
    if selected.given:
        selected.expect_object(("selector", "namespace"))
        return ServicePeer(_namespace(selected.get("namespace")), selector=parse_plain(selected.get("selector")))
    named.expect_object(("serviceName", "namespace"))
    name, namespace = named.get("serviceName"), named.get("namespace")
    if named.given and not name.value:
        name.problem("must be given")
    where = _namespace(namespace) or home
    if named.given and not where:
        namespace.problem("must be given: the policy is in no namespace")
    return ServicePeer(where, name=name.string() or "")


def _namespace(field: Field) -> str:
    name = field.string() or ""
    if name:
        field.check(dns_label_problem(name))
    return name


Parse = Callable[[Field, str], Peer | None]
_COMMON: Mapping[str, Parse] = {
    "Endpoints": parse_peer,
    "CIDR": lambda field, _: parse_block(field),
    "CIDRSet": lambda field, _: parse_block_with_excepts(field),
    "Entities": _entity,
    "Nodes": lambda field, _: NodePeer(parse_plain(field, "node")),
}
_EGRESS: Mapping[str, Parse] = {**_COMMON, "Services": _service}
_REFUSED = {
    "Requires": "is not supported (Cilium has given it up): write its labels into the selectors of the rule",
    "Groups": "is not supported: list the addresses",
}


def _members(section: Section) -> dict[str, Parse]:
    if section.direction is Direction.INGRESS:
        return {f"from{name}": parse for name, parse in _COMMON.items()}
    members: dict[str, Parse] = {f"to{name}": parse for name, parse in _EGRESS.items()}
    if not section.deny:
        members["toFQDNs"] = lambda field, _: parse_name(field)
    return members


def known(section: Section) -> tuple[str, ...]:
    """Fields of a rule that are read here."""
    word = "from" if section.direction is Direction.INGRESS else "to"
    return (*_members(section), *(word + name for name in _REFUSED))


def parse_peers(rule: Field, section: Section) -> tuple[Peer, ...] | None:
    """Who a rule is about: None where it does not say, or says everyone. A list that is there and empty is nobody."""
    word = "from" if section.direction is Direction.INGRESS else "to"
    for name, why in _REFUSED.items():
        rule.get(word + name).refuse(why)
    members = {name: parse for name, parse in _members(section).items() if rule.get(name).given}
    filled = [name for name in members if rule.get(name).value != []]
    if len(filled) > 1:
        rule.problem(f"must not have both {filled[0]} and {filled[1]}: write a rule for each")
    found = [parse(item, section.home) for name, parse in members.items() for item in rule.get(name).items()]
    if any(rule.get(name).value == [] for name in members):
        return ()
    if not members or None in found:
        return None
    return tuple(dict.fromkeys(peer for one in found if one is not None for peer in _with_apiserver(one)))


def _with_apiserver(peer: Peer) -> tuple[Peer, ...]:
    """The API server is also found by its Service: where it runs on a node, or outside, its address says no more."""
    of_apiserver = peer in (EntityPeer(Entity.KUBE_APISERVER), EntityPeer(Entity.CLUSTER))
    return (peer, KUBERNETES) if of_apiserver else (peer,)

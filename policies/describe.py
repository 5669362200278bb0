"""Selectors, peers and ports in words, as kubectl would write them."""

from __future__ import annotations

from policies.model import CidrBlock, LabelSelector, NamedPort, Operator, Peer, PodSelector, Port, Protocol, Requirement


def requirement_text(requirement: Requirement) -> str:
    key, values = requirement.key, sorted(requirement.values)
    if requirement.operator is Operator.IN:
        return f"{key}={values[0]}" if len(values) == 1 else f"{key} in ({','.join(values)})"
    if requirement.operator is Operator.NOT_IN:
        return f"{key}!={values[0]}" if len(values) == 1 else f"{key} notin ({','.join(values)})"
    return key if requirement.operator is Operator.EXISTS else f"!{key}"


def selector_text(selector: LabelSelector) -> str:
    """Empty for the selector that matches everything."""
    return ",".join(sorted(requirement_text(r) for r in selector.requirements))


def peer_text(peer: Peer) -> str:
    if isinstance(peer, CidrBlock):
        excepts = f" except {', '.join(map(str, peer.excepts))}" if peer.excepts else ""
        return f"addresses in {peer.block}{excepts}"
    return pods_text(peer)


def pods_text(selector: PodSelector) -> str:
    labels = selector_text(selector.pods)
    pods = f"pods with {labels}" if labels else "all pods"
    if selector.namespaces is None:
        return f"{pods} in namespace {selector.namespace}"
    labels = selector_text(selector.namespaces)
    return f"{pods} in namespaces with {labels}" if labels else f"{pods} in all namespaces"


def port_text(port: Port) -> str:
    protocol = protocol_text(port.protocol)
    if isinstance(port, NamedPort):
        return f"{protocol} {port.name}"
    if (port.first, port.last) == (0, 65535):
        return f"every {protocol} port"
    return f"{protocol} {port.first}" if port.first == port.last else f"{protocol} {port.first}–{port.last}"


def protocol_text(number: int) -> str:
    return Protocol.BY_NUMBER.get(number, f"protocol {number}")

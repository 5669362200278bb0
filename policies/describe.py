"""Selectors, peers and ports in words, as kubectl would write them."""

from __future__ import annotations

from collections.abc import Iterator

from policies.l7 import L7, Demands, NamePattern
from policies.model import (
    CidrBlock,
    EntityPeer,
    LabelSelector,
    NamedPort,
    NodePeer,
    Operator,
    Peer,
    PodSelector,
    Port,
    Protocol,
    Requirement,
    ServicePeer,
)

ICMP = (1, 58)
"""Protocols whose ports are types."""


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
        return f"addresses in {peer.block}{excepts}{'' if peer.inside else ', outside the cluster'}"
    if isinstance(peer, EntityPeer):
        return f"entity {peer.entity}"
    if isinstance(peer, NamePattern):
        return f"addresses of {peer}"
    if isinstance(peer, NodePeer):
        labels = selector_text(peer.nodes)
        return f"nodes with {labels}" if labels else "all nodes"
    if isinstance(peer, ServicePeer):
        return services_text(peer)
    return pods_text(peer)


def services_text(peer: ServicePeer) -> str:
    where = f" in namespace {peer.namespace}" if peer.namespace else ""
    if peer.selector is None:
        return f"endpoints of service {peer.name}{where}"
    labels = selector_text(peer.selector)
    return f"endpoints of {f'services with {labels}' if labels else 'all services'}{where}"


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
    what = "type" if port.protocol in ICMP else "port"
    if (port.first, port.last) == (0, 65535):
        return f"every {protocol} {what}"
    numbers = str(port.first) if port.first == port.last else f"{port.first}–{port.last}"
    return f"{protocol} {what} {numbers}" if port.protocol in ICMP else f"{protocol} {numbers}"


def demands_text(demands: Demands) -> str:
    """What a proxy asks, without what the rules spell out: names of headers and hosts may be long, or private."""
    return ", ".join(sorted({text for l7 in demands for text in _kinds(l7)}))


def _kinds(l7: L7) -> Iterator[str]:
    if l7.http is not None:
        yield "HTTP"
    if l7.dns is not None:
        yield "DNS names"
    if l7.server_names is not None:
        yield "TLS server names"
    if l7.terminating is not None or l7.originating is not None:
        yield "TLS"


def protocol_text(number: int) -> str:
    return Protocol.BY_NUMBER.get(number, f"protocol {number}")

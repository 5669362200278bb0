"""Why a peer or a port of a rule matches a flow, or does not: one sentence."""

from __future__ import annotations

from collections.abc import Mapping

from policies.address import format_address
from policies.describe import ICMP, protocol_text, requirement_text
from policies.facts import Flow, Namespaces, Party, PodFacts
from policies.l7 import NamePattern
from policies.matching import labels_match, peer_selects, selects
from policies.model import (
    CidrBlock,
    EntityPeer,
    LabelSelector,
    NamedPort,
    NodePeer,
    Peer,
    PodSelector,
    Port,
    ServicePeer,
)


def peer_reason(peer: Peer, remote: Party, namespaces: Namespaces) -> str:
    if isinstance(peer, PodSelector):
        if remote.pod is None:
            return f"{remote} is no pod"
        if selects(peer, remote.pod, namespaces):
            return f"pod {remote.pod.namespace}/{remote.pod.name} is one of them"
        return _why_not_selected(peer, remote.pod, namespaces)
    if isinstance(peer, CidrBlock):
        return _block_reason(peer, remote, namespaces)
    return _fact_reason(peer, remote)


def _fact_reason(peer: EntityPeer | NamePattern | NodePeer | ServicePeer, remote: Party) -> str:
    if isinstance(peer, EntityPeer):
        return f"it is {remote}"
    if isinstance(peer, NodePeer):
        return f"{remote} is no node" if remote.node is None else f"node with {_labels(remote.node)}"
    if isinstance(peer, ServicePeer):
        names = ", ".join(sorted(f"{service.namespace}/{service.name}" for service in remote.services))
        return f"{remote} is an endpoint of {names or 'no service'}"
    return f"{format_address(remote.address)} is an address of {', '.join(sorted(remote.names)) or 'no known name'}"


def _labels(labels: Mapping[str, str]) -> str:
    return ",".join(f"{key}={value}" for key, value in sorted(labels.items())) or "no labels"


def _block_reason(peer: CidrBlock, remote: Party, namespaces: Namespaces) -> str:
    address, text = remote.address, format_address(remote.address)
    if not peer.block.contains(address):
        return f"{text} is not in {peer.block}"
    excluding = next((e for e in peer.excepts if e.contains(address)), None)
    if excluding is not None:
        return f"{text} is in except {excluding}"
    if not peer_selects(peer, remote, namespaces):
        return f"{remote} is not outside the cluster"
    return f"{text} is in {peer.block}"


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


def port_reason(port: Port, flow: Flow) -> str:
    number = f"{' type' if flow.protocol in ICMP else ''} {flow.port}" if flow.port else ""
    asked = f"the flow is to {protocol_text(flow.protocol)}{number}"
    if not isinstance(port, NamedPort) or port.protocol != flow.protocol:
        return asked
    pod = flow.destination.pod
    if pod is None:
        return f"{flow.destination} is no pod, so it names no ports"
    numbers = sorted(p.number for p in pod.ports if (p.name, p.protocol) == (port.name, port.protocol))
    if not numbers:
        return f"pod {pod.namespace}/{pod.name} has no {protocol_text(port.protocol)} port named {port.name}"
    return f"{port.name} is {', '.join(map(str, numbers))} in pod {pod.namespace}/{pod.name}; {asked}"

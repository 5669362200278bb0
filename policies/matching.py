"""What rules, peers, ports and selectors match: the part of the slow oracle (policies.evaluate) that reads them.

Straight from the texts of the APIs, one flow at a time. The standard library reads the blocks, and what patterns of
names mean is tested by itself (policies.names).
"""

from __future__ import annotations

import ipaddress
from collections.abc import Mapping

from policies.address import Prefix, format_address
from policies.facts import Flow, Namespaces, Party, PodFacts, ServiceFacts
from policies.l7 import L7
from policies.model import (
    Action,
    CidrBlock,
    ContainerPort,
    Entity,
    EntityPeer,
    LabelSelector,
    Mark,
    NamedPort,
    NodePeer,
    Operator,
    Peer,
    PodSelector,
    Port,
    Rule,
    ServicePeer,
)
from policies.names import matches


def rule_matches(rule: Rule, remote: Party, namespaces: Namespaces, flow: Flow) -> bool:
    """A rule that leaves it to a proxy matches no protocol that the proxy cannot read."""
    if rule.action is Action.ALLOW and rule.l7 is not None and not _readable(rule.l7, flow.protocol):
        return False
    peer_matches = rule.peers is None or any(peer_selects(peer, remote, namespaces) for peer in rule.peers)
    port_matches = rule.ports is None or any(port_selects(port, flow) for port in rule.ports)
    return peer_matches and port_matches


def _readable(l7: L7, protocol: int) -> bool:
    """DNS is asked over UDP and TCP; HTTP and TLS are read from TCP."""
    if protocol == 17:
        return l7.dns is not None and (l7.http, l7.server_names, l7.terminating, l7.originating) == (None,) * 4
    return protocol == 6


def peer_selects(peer: Peer, remote: Party, namespaces: Namespaces) -> bool:
    """A block asks for the address, an ipBlock also for a pod's; a pod selector asks for a pod."""
    if isinstance(peer, PodSelector):
        return remote.pod is not None and selects(peer, remote.pod, namespaces)
    if isinstance(peer, CidrBlock):
        if not peer.inside and not entity_selects(Entity.WORLD, remote):
            return False
        return _inside(remote.address, peer.block) and not any(_inside(remote.address, e) for e in peer.excepts)
    return _has(peer, remote)


def _has(peer: EntityPeer | Mark, remote: Party) -> bool:
    if isinstance(peer, EntityPeer):
        return entity_selects(peer.entity, remote)
    if isinstance(peer, NodePeer):
        return remote.node is not None and labels_match(peer.nodes, remote.node)
    if isinstance(peer, ServicePeer):
        return any(service_selects(peer, service) for service in remote.services)
    return entity_selects(Entity.WORLD, remote) and any(matches(peer, name) for name in remote.names)


def entity_selects(entity: Entity, remote: Party) -> bool:
    """A pod is of the cluster and of no other entity. The API server, where it is no node, is also of the world."""
    if remote.pod is not None:
        return entity is Entity.CLUSTER
    v4 = ipaddress.ip_address(format_address(remote.address)).version == 4
    outside = (Entity.WORLD, Entity.WORLD_IPV4 if v4 else Entity.WORLD_IPV6)
    is_one_of = {
        Entity.WORLD: outside,
        Entity.KUBE_APISERVER: (Entity.KUBE_APISERVER, Entity.CLUSTER, *outside),
        Entity.NONE: (),
    }
    return entity in is_one_of.get(Entity(remote.entity), (remote.entity, Entity.CLUSTER))


def service_selects(peer: ServicePeer, service: ServiceFacts) -> bool:
    if peer.namespace not in ("", service.namespace):
        return False
    if peer.selector is not None:
        return labels_match(peer.selector, service.labels)
    return peer.name == service.name


def port_selects(port: Port, flow: Flow) -> bool:
    """A name counts if the destination pod declares it, for this protocol, with this number."""
    if port.protocol != flow.protocol:
        return False
    if isinstance(port, NamedPort):
        pod = flow.destination.pod
        return pod is not None and ContainerPort(port.name, port.protocol, flow.port) in pod.ports
    return port.first <= flow.port <= port.last


def selects(selector: PodSelector, pod: PodFacts, namespaces: Namespaces) -> bool:
    if selector.namespace is not None:
        if pod.namespace != selector.namespace:
            return False
    else:
        assert selector.namespaces is not None
        if pod.namespace not in namespaces or not labels_match(selector.namespaces, namespaces[pod.namespace]):
            return False
    return labels_match(selector.pods, pod.labels)


def labels_match(selector: LabelSelector, labels: Mapping[str, str]) -> bool:
    for requirement in selector.requirements:
        value = labels.get(requirement.key)
        holds = {
            Operator.IN: value is not None and value in requirement.values,
            Operator.NOT_IN: value is None or value not in requirement.values,
            Operator.EXISTS: value is not None,
            Operator.DOES_NOT_EXIST: value is None,
        }[requirement.operator]
        if not holds:
            return False
    return True


def _inside(address: bytes, block: Prefix) -> bool:
    return ipaddress.ip_address(format_address(address)) in ipaddress.ip_network(str(block))

"""The frontends of a service on this node, and who serves them. Pure.

Traffic policies: internalTrafficPolicy concerns the cluster addresses, externalTrafficPolicy all others, and there only
clients outside; clients in the cluster use all endpoints (Service API, "Traffic policies"; kube-proxy does the same).
"""

from __future__ import annotations

from collections.abc import Iterable

from agent.objects import EndpointSlice, Pod, Service, ServicePort
from agent.services.endpoints import HOST_PORT, REFUSED, Candidates, candidates
from agent.services.maglev import most_backends
from agent.services.model import Frontend, Kind, Target
from agent.services.node import Node
from agent.services.places import FrontendKey, NodePorts, host_port_places, is_served, places
from policies.address import Prefix, is_v4
from policies.model import Protocol

TCP = Protocol.BY_NAME["TCP"]

NOBODY = Prefix.host(bytes(16))
"""A source no packet has. Stands for ranges of which none is of the frontend's family."""

EXTERNAL = (Kind.NODE_PORT, Kind.EXTERNAL_IP, Kind.LOAD_BALANCER, Kind.LOOPBACK)
DSR_KINDS = (Kind.NODE_PORT, Kind.EXTERNAL_IP, Kind.LOAD_BALANCER)


def frontends(
    service: Service,
    addresses: tuple[bytes, ...],
    node_ports: NodePorts,
    slices: Iterable[EndpointSlice],
    node: Node,
) -> tuple[Frontend, ...]:
    """One for each of `frontend_keys`. Of two ports that are one the first holds."""
    if not is_served(service):
        return ()
    slices = tuple(slices)
    found: dict[FrontendKey, Frontend] = {}
    for port in service.ports:
        sites = places(service, port, addresses, node_ports, node)
        if not sites:
            continue
        maker = _Maker(service, port, candidates(slices, port), node)
        for address, number, kind in sites:
            key = (address, port.protocol, number)
            if key not in found:
                found[key] = maker.frontend(address, number, kind)
    return tuple(found.values())


def host_ports(pod: Pod, node: Node) -> tuple[Frontend, ...]:
    """Frontends of a local pod's hostPorts: each has the pod alone behind it, ready or not."""
    found: dict[FrontendKey, Frontend] = {}
    for port in pod.ports:
        for address, number, kind in host_port_places(port, pod, node):
            own = next((a for a in pod.addresses if is_v4(a) == is_v4(address)), None)
            target = Target(((own, port.number),), False, HOST_PORT) if own else REFUSED
            made = Frontend(address, number, port.protocol, kind, port.name, target, target)
            found.setdefault((address, port.protocol, number), made)
    return tuple(found.values())


def wants_maglev(service: Service, node: Node) -> bool:
    """Whether any of its frontends may go by Maglev."""
    return is_served(service) and (service.exposure.algorithm or node.services.algorithm) == "maglev"


class _Maker:
    """Frontends of one service port; who serves is found out once a family."""

    def __init__(self, service: Service, port: ServicePort, found: dict[bool, Candidates], node: Node) -> None:
        self._exposure = service.exposure
        self._annotated = service.exposure.algorithm
        self._port = port
        self._candidates = found
        self._node = node
        self._cluster: dict[bool, Target] = {}
        self._local: dict[bool, Target] = {}

    def frontend(self, address: bytes, number: int, kind: Kind) -> Frontend:
        exposure, port = self._exposure, self._port
        v4, local = is_v4(address), False
        if kind is Kind.CLUSTER_IP:
            inside = outside = self._target(v4, exposure.internal_local)
        else:
            inside = outside = self._target(v4, False)
            if local := exposure.external_local and kind is not Kind.LOOPBACK:
                outside = self._target(v4, True)
        ranges = _ranges(exposure.source_ranges, v4) if kind is Kind.LOAD_BALANCER else ()
        return Frontend(
            address,
            number,
            port.protocol,
            kind,
            port.name,
            inside,
            outside,
            local,
            exposure.affinity_timeout_s,
            ranges,
            not ranges or any(block.contains(own) for own in self._node.addresses for block in ranges),
            self._maglev(kind, inside, outside),
            kind in DSR_KINDS and self._dsr(),
        )

    def _target(self, v4: bool, local: bool) -> Target:
        known = self._local if local else self._cluster
        if (target := known.get(v4)) is None:
            target = known[v4] = self._chosen(self._candidates.get(v4), local)
        return target

    def _chosen(self, found: Candidates | None, local: bool) -> Target:
        if found is None:
            return REFUSED
        return found.local(self._node) if local else found.cluster(self._node)

    def _maglev(self, kind: Kind, inside: Target, outside: Target) -> bool:
        """By the service's annotation, or where traffic comes from outside by the node's setting: within the cluster
        no other node will ever be asked for the same flow."""
        algorithm = self._annotated or (self._node.services.algorithm if kind in EXTERNAL else "random")
        if algorithm != "maglev":
            return False
        most = most_backends(self._node.services.maglev_size)
        return len(inside.backends) <= most and len(outside.backends) <= most

    def _dsr(self) -> bool:
        forwarding = self._exposure.forwarding or self._node.services.forwarding
        return forwarding == "dsr" or (forwarding == "hybrid" and self._port.protocol == TCP)


def _ranges(given: tuple[Prefix, ...], v4: bool) -> tuple[Prefix, ...]:
    """Of this family. Ranges that are all of the other one let nobody in."""
    if not given:
        return ()
    return tuple(sorted({block for block in given if block.is_v4 == v4})) or (NOBODY,)

"""Where a service is reached: addresses and what kind of frontend each makes. Pure."""

from __future__ import annotations

from collections.abc import Iterable, Mapping

from agent.objects import DeclaredPort, Pod, Service, ServicePort
from agent.services.model import Kind
from agent.services.node import Node
from policies.address import Prefix, is_v4, parse_address

FrontendKey = tuple[bytes, int, int]
"""Address, protocol, port."""
NodePorts = Mapping[tuple[int, int], int]
"""(protocol, port) → node port."""

ANY_ADDRESS = (parse_address("0.0.0.0"), parse_address("::"))  # noqa: S104  # nothing is bound
LOOPBACKS = (parse_address("127.0.0.1"), parse_address("::1"))
FAMILIES = {"IPv4": True, "IPv6": False}
NODE_PORT_TYPES = ("NodePort", "LoadBalancer")


def places(
    service: Service, port: ServicePort, addresses: tuple[bytes, ...], node_ports: NodePorts, node: Node
) -> list[tuple[bytes, int, Kind]]:
    """(address, port, kind) of every frontend of a service port. Where several kinds want one address and port the
    first here holds: of an address that is the load balancer's, too, the source ranges are kept."""
    found = [(address, port.port, Kind.CLUSTER_IP) for address in addresses]
    exposure = service.exposure
    if service.type == "ClusterIP" and not exposure.external_ips:
        return found
    families = _families(service, addresses)
    if service.type == "LoadBalancer":
        found += [(a, port.port, Kind.LOAD_BALANCER) for a in exposure.balancer_ips if is_v4(a) in families]
    if node.services.external_ips:
        found += [(a, port.port, Kind.EXTERNAL_IP) for a in exposure.external_ips if is_v4(a) in families]
    node_port = node_ports.get((port.protocol, port.port), 0) if service.type in NODE_PORT_TYPES else 0
    if node_port:
        found += [(a, node_port, kind) for a, kind in _of_node(node) if is_v4(a) in families]
    return found


def is_served(service: Service) -> bool:
    """Headless services have no frontends, an ExternalName is DNS's, and some are another proxy's
    (service.kubernetes.io/service-proxy-name)."""
    return service.proxied and not service.headless and service.type != "ExternalName"


def host_port_places(port: DeclaredPort, pod: Pod, node: Node) -> list[tuple[bytes, int, Kind]]:
    """As `places`, of a pod's hostPort: at hostIP or, without one (or 0.0.0.0, ::), at every address of the node."""
    if not port.host_port or pod.host_network:
        return []
    families = {is_v4(address) for address in pod.addresses}
    given = port.host_address
    if given in ANY_ADDRESS:
        families &= {is_v4(given)}
    wanted = (*node.addresses, *LOOPBACKS) if not given or given in ANY_ADDRESS else (given,)
    return [
        (address, port.host_port, Kind.LOOPBACK if is_loopback(address) else Kind.HOST_PORT)
        for address in wanted
        if is_v4(address) in families
    ]


def _of_node(node: Node) -> list[tuple[bytes, Kind]]:
    """Addresses at which this node's ports are open. Its loopback addresses are like any other (kube-proxy's
    --nodeport-addresses): open where no blocks are given, or one covers them."""
    blocks = node.services.node_port_addresses
    everywhere = [(a, Kind.NODE_PORT) for a in node.addresses] + [(a, Kind.LOOPBACK) for a in LOOPBACKS]
    return [(a, kind) for a, kind in everywhere if not blocks or _within(a, blocks)]


def _within(address: bytes, blocks: Iterable[Prefix]) -> bool:
    return any(block.contains(address) for block in blocks)


def _families(service: Service, addresses: tuple[bytes, ...]) -> set[bool]:
    """Whether IPv4 and IPv6: those of its cluster addresses, or, as long as it has none, those it asks for."""
    return {is_v4(address) for address in addresses} or {FAMILIES[family] for family in service.families}


def is_loopback(address: bytes) -> bool:
    return address == LOOPBACKS[1] or (is_v4(address) and address[12] == 127)

"""The frontends of a service on this node. Pure."""

from __future__ import annotations

from agent.objects import Service
from agent.services.node import Node
from agent.services.places import FrontendKey, NodePorts, is_served, places


def frontend_keys(
    service: Service, addresses: tuple[bytes, ...], node_ports: NodePorts, node: Node
) -> list[FrontendKey]:
    """Every (address, protocol, port) the service asks for, once each; none of a service that is not ours to serve."""
    if not is_served(service):
        return []
    return list(
        dict.fromkeys(
            (address, port.protocol, number)
            for port in service.ports
            for address, number, _ in places(service, port, addresses, node_ports, node)
        )
    )

"""A packet to a service traced through a World: see agent.services.trace. Pure."""

from __future__ import annotations

from agent.services import endpoints
from agent.services.model import Backend, Frontend, Kind, Target
from agent.services.node import Node
from agent.services.places import is_loopback
from agent.services.trace import Place
from agent.world.world import World
from policies.address import is_v4
from policies.model import ObjectRef


class WorldView:
    """What a trace asks, answered from a World."""

    def __init__(self, world: World) -> None:
        self._world = world

    @property
    def node(self) -> Node:
        return self._world.config

    def frontend(self, address: bytes, port: int, protocol: int) -> tuple[ObjectRef, Frontend] | None:
        ref = self._world.frontend_owner(address, protocol, port)
        if ref is None:
            return None
        wanted = (address, port, protocol)
        return next(((ref, f) for f in self._world.frontends(ref) if (f.address, f.port, f.protocol) == wanted), None)

    def place(self, address: bytes) -> Place:
        if address in self._world.config.addresses or is_loopback(address):
            return Place.NODE
        if self._world.addresses.remote(address) is not None:
            return Place.REMOTE_POD
        owner = self._world.addresses.owner(address)
        state = self._world.pods.get(owner) if owner is not None else None
        if owner is None or state is None or state.pod.host_network:
            return Place.OUTSIDE
        return Place.LOCAL_POD if self._world.is_local(owner) else Place.REMOTE_POD

    def left_out(self, ref: ObjectRef, frontend: Frontend, target: Target) -> dict[Backend, str]:
        service = self._world.services.get(ref)
        if service is None or frontend.kind is Kind.HOST_PORT:
            return {}
        port = next(p for p in service.ports if (p.name, p.protocol) == (frontend.port_name, frontend.protocol))
        slices = self._world.slices(service)
        return endpoints.left_out(slices, port, is_v4(frontend.address), target, self.node)

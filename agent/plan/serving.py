"""Which backends may keep the UDP flows they have. Pure.

A TCP connection ends with its server; a UDP client sends on to a backend that is gone for ever, as no one tells it. So
its flows are forgotten once the backend is neither ready nor terminating in order (EndpointSlice conditions: ready,
serving), and the next datagram goes to another.
"""

from __future__ import annotations

from collections.abc import Iterable

from agent.world.services import serves
from agent.world.world import World
from policies.model import ObjectRef, Protocol

UDP = Protocol.BY_NAME["UDP"]

Frontend = tuple[bytes, int]
Backend = tuple[bytes, int]
Keep = dict[Frontend, frozenset[Backend]]
"""UDP address and port of a service → backends whose flows go on. Addresses are 16 bytes."""


class Serving:
    """Remembers what served, to tell what no longer does."""

    def __init__(self) -> None:
        self._known: dict[ObjectRef, Keep] = {}

    def start(self, world: World) -> Keep:
        """Of all services: which flows an earlier agent left is not known."""
        self.update(world, [service.ref for service in world.services])
        return self._all()

    def now(self, frontends: Iterable[Frontend]) -> Keep:
        """As things stand."""
        known = self._all()
        return {frontend: known.get(frontend, frozenset()) for frontend in frontends}

    def _all(self) -> Keep:
        return {frontend: backends for keep in self._known.values() for frontend, backends in keep.items()}

    def update(self, world: World, refs: Iterable[ObjectRef]) -> Keep:
        """Of these services, the frontends that a backend has left."""
        before: list[Keep] = []
        now: Keep = {}
        for ref in refs:
            before.append(self._known.pop(ref, {}))
            if keep := _serving(world, ref):
                self._known[ref] = keep
                now |= keep
        return {
            frontend: now.get(frontend, frozenset())
            for keep in before
            for frontend, backends in keep.items()
            if not backends <= now.get(frontend, frozenset())
        }


def _serving(world: World, ref: ObjectRef) -> Keep:
    service = world.services.get(ref)
    if service is None:
        return {}
    keep: Keep = {}
    for port in service.ports:
        if port.protocol != UDP:
            continue
        backends = {
            (address, target.port)
            for one in world.slices(service)
            for target in one.ports
            if (target.name, target.protocol) == (port.name, port.protocol)
            for member in one.endpoints
            if member.ready or member.serving
            for address in member.addresses
        }
        for address in world.services.addresses(ref):
            if world.services.owns(service, address, port):
                keep[address, port.port] = frozenset(b for b in backends if serves(address, b[0]))
    return keep

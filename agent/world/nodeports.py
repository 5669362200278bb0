"""Node ports and health check ports of services: those their manifests give, and those given out from the range.

A cluster's API server does the same (NodePort, LoadBalancer), so there nothing is left to give out. TCP and UDP of one
service port have the same number unless a manifest says otherwise.
"""

from __future__ import annotations

import msgspec

from agent.identity.allocator import Allocator, ExhaustedError
from agent.objects import Service
from agent.services.places import NODE_PORT_TYPES, is_served
from policies.model import ObjectRef, Protocol

TCP = Protocol.BY_NAME["TCP"]

# Of two services that want one number, the one to which it was given out has the better claim.
ALLOCATED, GIVEN = 0, 1


class Held(msgspec.Struct):
    """What one service has. `ports`: (protocol, service port) → node port. `given`: numbers its manifest names.

    `keys`: under which the allocator has given out the others.
    """

    ports: dict[tuple[int, int], int]
    health: int = 0
    given: tuple[int, ...] = ()
    keys: tuple[str, ...] = ()

    def claims(self) -> list[tuple[int, int, int]]:
        """(protocol, node port, ALLOCATED or GIVEN) of each number, once."""
        taken = {(protocol, number) for (protocol, _), number in self.ports.items()}
        if self.health:
            taken.add((TCP, self.health))
        return [(protocol, number, GIVEN if number in self.given else ALLOCATED) for protocol, number in sorted(taken)]


NOTHING = Held({})


class NodePorts:
    def __init__(self, numbers: Allocator, in_range: tuple[int, int]) -> None:
        self._numbers = numbers
        self._first, self._last = in_range
        self._held: dict[ObjectRef, Held] = {}

    def __contains__(self, number: int) -> bool:
        """Whether a number is in the range of node ports."""
        return self._first <= number <= self._last

    @property
    def freed(self) -> int:
        return self._numbers.freed

    def of(self, ref: ObjectRef) -> Held:
        return self._held.get(ref, NOTHING)

    def put(self, service: Service) -> str:
        """Give a service what it calls for, and keep what it had of that. Returns what was short, or ""."""
        old = self._held.pop(service.ref, NOTHING)
        published = service.type in NODE_PORT_TYPES and is_served(service)
        if not published and old is NOTHING:
            return ""
        held = self._given(service) if published else Held({})
        for number in held.given:
            self._numbers.avoid(number)
        for number in old.given:
            self._numbers.unavoid(number)
        failure = self._allocate(service, held) if published else ""
        for key in old.keys:
            if key not in held.keys:
                self._numbers.release(key)
        if published:
            self._held[service.ref] = held
        return failure

    def reserve(self, service: Service) -> tuple[int, ...]:
        """Give out none of the numbers its manifest names, until they are given back by `unreserve`."""
        published = service.type in NODE_PORT_TYPES and is_served(service)
        numbers = self._given(service).given if published else ()
        for number in numbers:
            self._numbers.avoid(number)
        return numbers

    def unreserve(self, numbers: tuple[int, ...]) -> None:
        for number in numbers:
            self._numbers.unavoid(number)

    def take(self, ref: ObjectRef) -> None:
        old = self._held.pop(ref, NOTHING)
        for number in old.given:
            self._numbers.unavoid(number)
        for key in old.keys:
            self._numbers.release(key)

    def out_of_range(self, service: Service) -> list[int]:
        """Numbers its manifest names that are no node ports of this cluster."""
        if service.type not in NODE_PORT_TYPES:
            return []
        named = [port.node_port for port in service.ports] + [service.exposure.health_node_port]
        return sorted({number for number in named if number and number not in self})

    def release_restored(self) -> None:
        """Give up numbers of an earlier run that no service of this one has."""
        wanted = {key for held in self._held.values() for key in held.keys}
        for key in self._numbers.held():
            if key not in wanted:
                self._numbers.release(key)

    def _given(self, service: Service) -> Held:
        """What the manifest names. A number of one protocol is also that of the others of the same service port."""
        ports = {(port.protocol, port.port): port.node_port for port in service.ports if port.node_port in self}
        health = service.exposure.health_node_port
        held = Held(ports, health if health in self else 0, tuple({*ports.values(), health} - {0}))
        taken = {(protocol, number) for (protocol, _), number in ports.items()}
        by_port = {port: number for (_, port), number in reversed(ports.items())}
        for port in service.ports:
            number = by_port.get(port.port)
            if not port.node_port and number is not None and (port.protocol, number) not in taken:
                ports[port.protocol, port.port] = number
        return held

    def _allocate(self, service: Service, held: Held) -> str:
        """What the manifest leaves open."""
        open_ports: dict[str, list[tuple[int, int]]] = {}
        if service.type == "NodePort" or service.exposure.allocates_node_ports:
            for port in service.ports:
                if not port.node_port and (port.protocol, port.port) not in held.ports:
                    open_ports.setdefault(str(port.port), []).append((port.protocol, port.port))
        failures: list[str] = []
        for name, ports in open_ports.items():
            number = self._allocate_one(service.ref, name, held, failures)
            if number:
                held.ports.update(dict.fromkeys(ports, number))
        if service.exposure.external_local and service.type == "LoadBalancer" and not service.exposure.health_node_port:
            held.health = self._allocate_one(service.ref, "health", held, failures)
        return "; ".join(failures)

    def _allocate_one(self, ref: ObjectRef, name: str, held: Held, failures: list[str]) -> int:
        """The number given out under a name that is the service's own; 0 where none is left."""
        key = f"{ref.namespace}/{ref.name}:{name}"
        if self._numbers.get(key) in held.given:  # the manifest has begun to use it for something else
            self._numbers.release(key)
        try:
            number = self._numbers.allocate(key)
        except ExhaustedError as error:
            failures.append(str(error))
            return 0
        held.keys = (*held.keys, key)
        return number

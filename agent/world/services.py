"""Services: their addresses and node ports, which frontends each owns, and their endpoints, given or derived."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager

from agent.identity.allocator import ExhaustedError
from agent.objects import EndpointSlice, Pod, Service
from agent.services.model import Kind
from agent.services.places import FAMILIES, is_served, places
from agent.world.allocations import Allocations, key_of
from agent.world.config import NodeConfig
from agent.world.frontends import (
    CLUSTER_IP_ALLOCATED,
    CLUSTER_IP_GIVEN,
    NODE_PORT_ALLOCATED,
    NODE_PORT_GIVEN,
    RANKS,
    FrontendClaims,
    Key,
    Lost,
)
from agent.world.nodeports import GIVEN, TCP, NodePorts
from policies.address import is_v4
from policies.model import ObjectRef
from policies.multimap import MultiMap

Derive = Callable[[Service, Sequence[Pod], Mapping[str, str]], Iterable[EndpointSlice]]
"""Slices of a service that selects these pods, as the endpoint slice controller of a cluster would write them. The last
argument: node → zone."""


class ServiceBook:
    def __init__(self, allocations: Allocations, claims: FrontendClaims, config: NodeConfig) -> None:
        self._pools = allocations.service_pools
        self._numbers = NodePorts(allocations.node_ports, config.services.node_ports)
        self._claims = claims
        self._config = config
        self._services: dict[ObjectRef, Service] = {}
        self._allocated: dict[ObjectRef, tuple[bytes, ...]] = {}  # cluster addresses, where none were given
        self._failures: dict[ObjectRef, str] = {}
        self._by_selector: MultiMap[tuple[str, str, str], ObjectRef] = MultiMap()  # namespace and one required label
        self._slices: dict[ObjectRef, EndpointSlice] = {}
        self._slices_of: dict[ObjectRef, tuple[EndpointSlice, ...]] = {}
        self._unserved: dict[ObjectRef, EndpointSlice] = {}  # another proxy's, or nobody's
        self._unserved_of: MultiMap[ObjectRef, ObjectRef] = MultiMap()

    def __iter__(self) -> Iterator[Service]:
        return iter(self._services.values())

    def get(self, ref: ObjectRef) -> Service | None:
        return self._services.get(ref)

    def addresses(self, ref: ObjectRef) -> tuple[bytes, ...]:
        """Its cluster addresses: those given, or those allocated."""
        service = self._services.get(ref)
        if service is None or not has_addresses(service):
            return ()
        return service.addresses or self._allocated.get(ref, ())

    def node_ports(self, ref: ObjectRef) -> Mapping[tuple[int, int], int]:
        """(protocol, service port) → node port, given or allocated, but for those that another service has."""
        ports = self._numbers.of(ref).ports
        return {port: number for port, number in ports.items() if self._claims.owner(b"", port[0], number) == ref}

    def health_port(self, ref: ObjectRef) -> int:
        """Its healthCheckNodePort, given or allocated; 0 where it has none, or another service has it."""
        number = self._numbers.of(ref).health
        return number if number and self._claims.owner(b"", TCP, number) == ref else 0

    # ---- changes. Each returns the services whose frontends or backends may differ now.

    @contextmanager
    def reserved(self, services: Sequence[Service]) -> Iterator[None]:
        """Nobody is given an address or a port that one of these names, though it be put later."""
        numbers = [self._numbers.reserve(service) for service in services]
        addresses = [address for service in services for address in service.addresses]
        for pool in self._pools:
            for address in addresses:
                pool.avoid(address)
        yield
        for pool in self._pools:
            for address in addresses:
                pool.unavoid(address)
        for reserved in numbers:
            self._numbers.unreserve(reserved)

    def put(self, service: Service) -> set[ObjectRef]:
        """What there is none left of (addresses, node ports) it goes without, until there is: see `failures`."""
        freed = self._freed()
        touched = self._put(service)
        return touched | self._retry() if self._failures and self._freed() != freed else touched

    def take(self, ref: ObjectRef) -> set[ObjectRef]:
        """Remove a service, if it is there."""
        freed = self._freed()
        touched = self._remove(ref)
        if touched:
            self._numbers.take(ref)
            self._release_addresses(ref)
        return touched | self._retry() if self._failures and self._freed() != freed else touched

    def put_slice(self, given: EndpointSlice) -> set[ObjectRef]:
        """One that is another proxy's to serve, or nobody's, only tells whose endpoints addresses are."""
        touched = self.take_slice(given.ref)
        owner = _owner(given)
        if not given.proxied:
            self._unserved[given.ref] = given
            self._unserved_of.put(owner, given.ref)
            return touched | {owner}
        if (service := self._services.get(owner)) is not None:
            owner = service.ref  # an equal one that is there already
        self._slices[given.ref] = given
        self._slices_of[owner] = tuple(sorted((*self._slices_of.get(owner, ()), given), key=_by_ref))
        return touched | {owner}

    def take_slice(self, ref: ObjectRef) -> set[ObjectRef]:
        if (unserved := self._unserved.pop(ref, None)) is not None:
            self._unserved_of.take(_owner(unserved), ref)
            return {_owner(unserved)}
        old = self._slices.pop(ref, None)
        if old is None:
            return set()
        owner = _owner(old)
        left = tuple(s for s in self._slices_of[owner] if s is not old)
        if left:
            self._slices_of[owner] = left
        else:
            del self._slices_of[owner]
        return {owner}

    # ---- questions

    def slices(self, ref: ObjectRef) -> tuple[EndpointSlice, ...]:
        """Slices given for a service; where there is one, nothing is derived."""
        return self._slices_of.get(ref, ())

    def unserved_slices(self, ref: ObjectRef) -> list[EndpointSlice]:
        """Slices given for a service that are another proxy's, or nobody's (headless), to serve."""
        return [self._unserved[one] for one in self._unserved_of.get(ref, ())]

    def selecting(self, namespace: str, labels: Mapping[str, str]) -> Iterator[ObjectRef]:
        """Services that select a pod with these labels."""
        for key, value in labels.items():
            for ref in self._by_selector.get((namespace, key, value), ()):
                selector = self._services[ref].selector or {}
                if all(labels.get(k) == v for k, v in selector.items()):
                    yield ref

    def strays(self) -> Iterator[EndpointSlice]:
        """Slices of services that are not there."""
        for owner, slices in self._slices_of.items():
            if owner not in self._services:
                yield from slices

    def lost(self) -> Iterator[Lost]:
        """What a service wants and another has: frontends, and node ports and health check ports (address empty)."""
        return self._claims.lost()

    def failures(self) -> Mapping[ObjectRef, str]:
        """Services that did not get all they call for, and what there is none left of."""
        return self._failures

    def missing_families(self, service: Service) -> list[str]:
        """Families the service asks for, for which this cluster has no service CIDR."""
        if service.addresses or not has_addresses(service):
            return []
        have = {pool.block.is_v4 for pool in self._pools}
        return [family for family in service.families if FAMILIES[family] not in have]

    def out_of_range(self, service: Service) -> list[int]:
        """Node ports its manifest names that are none of this cluster's."""
        return self._numbers.out_of_range(service)

    def release_restored(self) -> None:
        """Give up node ports of an earlier run that no service of this one has."""
        self._numbers.release_restored()

    # ---- inside

    def _put(self, service: Service) -> set[ObjectRef]:
        ref = service.ref
        touched = self._remove(ref)
        self._services[ref] = service
        if (label := _filed_under(service)) is not None:
            self._by_selector.put(label, ref)
        wrong = [*self._allocate(service), self._numbers.put(service)]
        if failure := "; ".join(filter(None, wrong)):
            self._failures[ref] = failure
        return touched | {ref} | self._claims.add(ref, self._wanted(service))

    def _remove(self, ref: ObjectRef) -> set[ObjectRef]:
        """What was allocated stays allocated."""
        service = self._services.get(ref)
        if service is None:
            return set()
        touched = {ref} | self._claims.remove(ref, self._wanted(service))
        del self._services[ref]
        self._failures.pop(ref, None)
        for address in service.addresses:
            for pool in self._pools:
                pool.unavoid(address)
        if (label := _filed_under(service)) is not None:
            self._by_selector.take(label, ref)
        return touched

    def _retry(self) -> set[ObjectRef]:
        touched: set[ObjectRef] = set()
        for ref in sorted(self._failures):
            touched |= self._put(self._services[ref])
        return touched

    def _freed(self) -> int:
        return sum(pool.freed for pool in self._pools) + self._numbers.freed

    def _allocate(self, service: Service) -> Iterator[str]:
        """Cluster addresses, one a family; yields what there is none left of."""
        ref = service.ref
        for address in service.addresses:
            for pool in self._pools:
                pool.avoid(address)
        if service.addresses or not has_addresses(service):
            self._release_addresses(ref)
            return
        wanted = {FAMILIES[family] for family in service.families} or {True, False}
        found: list[bytes] = []
        for pool in self._pools:
            if pool.block.is_v4 not in wanted:
                pool.release(key_of(ref))
                continue
            try:
                found.append(pool.allocate(key_of(ref)))
            except ExhaustedError as error:
                yield str(error)
        self._allocated[ref] = tuple(found)

    def _release_addresses(self, ref: ObjectRef) -> None:
        self._allocated.pop(ref, None)
        for pool in self._pools:
            pool.release(key_of(ref))

    def _wanted(self, service: Service) -> dict[Key, int]:
        """Every address and port it asks for, and by what rank. Of two reasons the better one counts."""
        if not is_served(service):
            return {}
        held = self._numbers.of(service.ref)
        addresses = self.addresses(service.ref)
        wanted: dict[Key, int] = {}
        for protocol, number, how in held.claims():
            wanted[b"", protocol, number] = NODE_PORT_GIVEN if how == GIVEN else NODE_PORT_ALLOCATED
        for port in service.ports:
            for address, number, kind in places(service, port, addresses, held.ports, self._config):
                key = (address, port.protocol, number)
                rank = _rank(kind, service, wanted.get((b"", port.protocol, number), NODE_PORT_GIVEN))
                wanted[key] = min(rank, wanted.get(key, rank))
        return wanted


def _rank(kind: Kind, service: Service, of_node_port: int) -> int:
    if kind is Kind.CLUSTER_IP:
        return CLUSTER_IP_GIVEN if service.addresses else CLUSTER_IP_ALLOCATED
    return of_node_port if kind in (Kind.NODE_PORT, Kind.LOOPBACK) else RANKS[kind]


def has_addresses(service: Service) -> bool:
    """Whether it is to have cluster addresses."""
    return not service.headless and service.type != "ExternalName"


def serves(address: bytes, backend: bytes) -> bool:
    """A frontend forwards to backends of its own family."""
    return is_v4(address) == is_v4(backend)


def _owner(given: EndpointSlice) -> ObjectRef:
    return ObjectRef("Service", given.ref.namespace, given.service)


def _by_ref(given: EndpointSlice) -> ObjectRef:
    return given.ref


def _filed_under(service: Service) -> tuple[str, str, str] | None:
    """One label that a pod must have for the service to select it."""
    if not service.selector:
        return None
    key = min(service.selector)
    return service.ref.namespace, key, service.selector[key]

"""Services: their addresses, which of them owns a frontend, and their endpoints, given or derived."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence

from agent.identity.allocator import AddressPool
from agent.objects import EndpointSlice, Pod, Service, ServicePort
from agent.world.claims import Claims
from policies.address import is_v4
from policies.model import ObjectRef
from policies.multimap import MultiMap

Derive = Callable[[Service, Sequence[Pod]], Iterable[EndpointSlice]]
"""Slices of a service that selects these pods, as the endpoint slice controller of a cluster would write them."""

FAMILIES = {"IPv4": True, "IPv6": False}

# Where two services want one frontend, the one whose address was allocated wins over one that names it.
ALLOCATED, GIVEN = 0, 1


class ServiceBook:
    def __init__(self, pools: Sequence[AddressPool]) -> None:
        self._pools = pools
        self._services: dict[ObjectRef, Service] = {}
        self._addresses: dict[ObjectRef, tuple[bytes, ...]] = {}
        self._frontends = Claims()
        self._by_selector: MultiMap[tuple[str, str, str], ObjectRef] = MultiMap()  # namespace and one required label
        self._slices: dict[ObjectRef, EndpointSlice] = {}
        self._slices_of: dict[ObjectRef, tuple[EndpointSlice, ...]] = {}

    def __iter__(self) -> Iterator[Service]:
        return iter(self._services.values())

    def get(self, ref: ObjectRef) -> Service | None:
        return self._services.get(ref)

    def addresses(self, ref: ObjectRef) -> tuple[bytes, ...]:
        """Its cluster addresses: those given, or those allocated."""
        return self._addresses.get(ref, ())

    def owns(self, service: Service, address: bytes, port: ServicePort) -> bool:
        """Whether no other service has the better claim to this frontend."""
        return self._frontends.winner(_frontend(address, port.protocol, port.port)) == service.ref

    # ---- changes. Each returns the services whose frontends or backends may differ now.

    def put(self, service: Service) -> set[ObjectRef]:
        """Raises ExhaustedError where no address is left; the service then has those it got."""
        touched = self.take(service.ref, keep_addresses=True)
        ref = service.ref
        self._services[ref] = service
        if (label := _filed_under(service)) is not None:
            self._by_selector.put(label, ref)
        touched.add(ref)
        try:
            self._allocate(service)
        finally:
            for key in self._keys(service):
                if (owner := self._frontends.winner(key)) is not None:
                    touched.add(owner)
                self._frontends.add(key, GIVEN if service.addresses else ALLOCATED, ref)
        return touched

    def take(self, ref: ObjectRef, keep_addresses: bool = False) -> set[ObjectRef]:
        """Remove a service, if it is there. Allocated addresses stay allocated where they are to be kept."""
        service = self._services.pop(ref, None)
        if service is None:
            return set()
        touched = {ref}
        for key in self._keys(service):
            self._frontends.remove(key, GIVEN if service.addresses else ALLOCATED, ref)
            if (heir := self._frontends.winner(key)) is not None:
                touched.add(heir)
        for address in service.addresses:
            for pool in self._pools:
                pool.unavoid(address)
        self._addresses.pop(ref, None)
        if not keep_addresses:
            self._release(service)
        if (label := _filed_under(service)) is not None:
            self._by_selector.take(label, ref)
        return touched

    def put_slice(self, given: EndpointSlice) -> set[ObjectRef]:
        touched = self.take_slice(given.ref)
        owner = _owner(given)
        self._slices[given.ref] = given
        self._slices_of[owner] = tuple(sorted((*self._slices_of.get(owner, ()), given), key=_by_ref))
        return touched | {owner}

    def take_slice(self, ref: ObjectRef) -> set[ObjectRef]:
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

    def selecting(self, namespace: str, labels: Mapping[str, str]) -> Iterator[ObjectRef]:
        """Services that select a pod with these labels."""
        for key, value in labels.items():
            for ref in self._by_selector.get((namespace, key, value), ()):
                selector = self._services[ref].selector or {}
                if all(labels.get(k) == v for k, v in selector.items()):
                    yield ref

    def lost(self) -> Iterator[tuple[Service, bytes, int, int, ObjectRef]]:
        """(service, address, protocol, port, winner) of every frontend that another service has."""
        for key, loser, winner in self._frontends.lost():
            yield self._services[loser], key[:16], key[16], int.from_bytes(key[17:], "big"), winner

    # ---- inside

    def _allocate(self, service: Service) -> None:
        ref = service.ref
        self._addresses[ref] = service.addresses if _has_frontends(service) else ()
        for address in service.addresses:
            for pool in self._pools:
                pool.avoid(address)
        if service.addresses or not _has_frontends(service):
            self._release(service)
            return
        wanted = {FAMILIES[f] for f in service.families} or {True, False}
        for pool in self._pools:
            if pool.block.is_v4 in wanted:
                self._addresses[ref] = (*self._addresses[ref], pool.allocate(_key(ref)))
            else:
                pool.release(_key(ref))

    def _release(self, service: Service) -> None:
        for pool in self._pools:
            pool.release(_key(service.ref))

    def _keys(self, service: Service) -> list[bytes]:
        ports = {(port.protocol, port.port) for port in service.ports}
        return [_frontend(a, protocol, port) for a in self._addresses.get(service.ref, ()) for protocol, port in ports]

    def missing_families(self, service: Service) -> list[str]:
        """Families the service asks for, for which this cluster has no service CIDR."""
        if service.addresses or not _has_frontends(service):
            return []
        have = {pool.block.is_v4 for pool in self._pools}
        return [family for family in service.families if FAMILIES[family] not in have]


def _has_frontends(service: Service) -> bool:
    return not service.headless and service.type != "ExternalName"


def serves(address: bytes, backend: bytes) -> bool:
    """A frontend forwards to backends of its own family."""
    return is_v4(address) == is_v4(backend)


def _frontend(address: bytes, protocol: int, port: int) -> bytes:
    return address + bytes((protocol,)) + port.to_bytes(2, "big")


def _owner(given: EndpointSlice) -> ObjectRef:
    return ObjectRef("Service", given.ref.namespace, given.service)


def _key(ref: ObjectRef) -> str:
    return f"{ref.namespace}/{ref.name}"


def _by_ref(given: EndpointSlice) -> ObjectRef:
    return given.ref


def _filed_under(service: Service) -> tuple[str, str, str] | None:
    """One label that a pod must have for the service to select it."""
    if not service.selector:
        return None
    key = min(service.selector)
    return service.ref.namespace, key, service.selector[key]

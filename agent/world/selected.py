"""Services that rules select (toServices), and the addresses of their endpoints."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Set

from agent.objects import EndpointSlice, Service
from policies.model import ObjectRef, ServicePeer
from policies.multimap import MultiMap

Slices = Callable[[Service], Iterable[EndpointSlice]]
"""All slices of a service, given or derived."""

Peers = frozenset[ServicePeer]
NOBODY: Peers = frozenset()
NOWHERE: frozenset[bytes] = frozenset()


class SelectedServices:
    """Of services that no peer in use selects nothing is kept: there may be 50,000.

    Every endpoint counts, ready or not: whether it serves is no question of who it is.
    """

    def __init__(self) -> None:
        self._named: MultiMap[str, ServicePeer] = MultiMap()
        self._labelled: set[ServicePeer] = set()
        self._held: dict[ObjectRef, tuple[Peers, frozenset[bytes]]] = {}
        self._at: MultiMap[bytes, ObjectRef] = MultiMap()

    def matching(self, address: bytes) -> Peers:
        """Peers that select a service of which this is an endpoint's address."""
        owners = self._at.get(address)
        return NOBODY.union(*(self._held[ref][0] for ref in owners)) if owners else NOBODY

    def addresses(self) -> Iterator[bytes]:
        return iter(self._at)

    def use(self, changed: Set[ServicePeer], in_use: Set[ServicePeer], services: Iterable[Service]) -> set[ObjectRef]:
        """These peers came into use or went out of it. Returns the services to `settle`, out of all there are."""
        if not changed:
            return set()
        for peer in changed:
            if peer.selector is None:
                (self._named.put if peer in in_use else self._named.take)(peer.name, peer)
            elif peer in in_use:
                self._labelled.add(peer)
            else:
                self._labelled.discard(peer)
        return {service.ref for service in services if any(selects(peer, service) for peer in changed)}

    def settle(self, ref: ObjectRef, service: Service | None, slices: Slices) -> Set[bytes]:
        """A service or its endpoints may be otherwise now. Returns the addresses that other peers may match."""
        peers = NOBODY if service is None else self._selecting(service)
        new = NOWHERE
        if peers and service is not None:
            new = frozenset(address for one in slices(service) for address, _ in one.addressed())
        old_peers, old = self._held.pop(ref, (NOBODY, NOWHERE))
        if peers:
            self._held[ref] = peers, new
        for address in new - old:
            self._at.put(address, ref)
        for address in old - new:
            self._at.take(address, ref)
        return old ^ new if peers == old_peers else old | new

    def _selecting(self, service: Service) -> Peers:
        named = self._named.get(service.ref.name, ())
        if not named and not self._labelled:
            return NOBODY
        return frozenset(peer for peer in (*named, *self._labelled) if selects(peer, service))


def selects(peer: ServicePeer, service: Service) -> bool:
    if peer.namespace not in ("", service.ref.namespace):
        return False
    return peer.name == service.ref.name if peer.selector is None else peer.selector.matches(service.labels)

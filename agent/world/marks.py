"""Marks: what rules ask about an address that neither its identity nor a prefix tells. Who has them."""

from __future__ import annotations

from collections.abc import Iterable, Set

from agent.objects import Service
from agent.world.names import NameBook
from agent.world.nodes import NodeBook
from agent.world.selected import SelectedServices, Slices
from policies.l7 import NamePattern
from policies.model import KUBERNETES, Mark, NodePeer, ObjectRef, ServicePeer

NO_NODES: frozenset[NodePeer] = frozenset()


class MarkBook:
    def __init__(self, nodes: NodeBook) -> None:
        self._nodes = nodes
        self.names = NameBook()
        self.services = SelectedServices()
        self._apiserver = SelectedServices()
        self._apiserver.use({KUBERNETES}, {KUBERNETES}, ())
        self._node_peers = NO_NODES

    # ---- questions

    def of_node(self, name: str) -> frozenset[NodePeer]:
        if not self._node_peers:
            return NO_NODES
        labels = self._nodes.labels(name)
        return frozenset(peer for peer in self._node_peers if peer.nodes.matches(labels))

    def is_apiserver(self, address: bytes) -> bool:
        """Whether it is an endpoint's address of Service default/kubernetes."""
        return bool(self._apiserver.matching(address))

    def known_by_service(self) -> set[bytes]:
        """Addresses that are an endpoint's of a service which rules select, and those of the API server."""
        return {*self.services.addresses(), *self._apiserver.addresses()}

    # ---- changes

    def use(
        self, changed: Set[Mark], in_use: Set[Mark], services: Iterable[Service]
    ) -> tuple[set[bytes], set[ObjectRef]]:
        """These marks came into use or went out of it: addresses that may have others now, and services to settle."""
        if not changed:
            return set(), set()
        patterns = {mark for mark in changed if isinstance(mark, NamePattern)}
        touched = set(self.names.use(patterns, {p for p in patterns if p in in_use}))
        if nodes := frozenset(mark for mark in changed if isinstance(mark, NodePeer)):
            self._node_peers = (self._node_peers - nodes) | {mark for mark in nodes if mark in in_use}
            touched.update(self._nodes.addresses())
        peers = {mark for mark in changed if isinstance(mark, ServicePeer)}
        return touched, self.services.use(peers, {peer for peer in peers if peer in in_use}, services)

    def settle_service(self, ref: ObjectRef, service: Service | None, slices: Slices) -> Set[bytes]:
        """A service or its endpoints may be otherwise now."""
        found = self.services.settle(ref, service, slices)
        return found | self._apiserver.settle(ref, service, slices)

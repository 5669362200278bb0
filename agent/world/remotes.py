"""Pods of other nodes, as their nodes tell of them (NodeEndpoints)."""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterable, Iterator, Set

import msgspec

from agent.objects import NodeEndpoint, NodeEndpoints
from agent.world.pods import Ports, named_ports
from policies.model import ContainerPort, ObjectRef
from policies.multimap import MultiMap
from policies.terms import PortName

Has = Callable[[str, bytes], bool]
"""Whether a node's pods may have an address."""
StandsFor = Callable[[int, str], bool]
"""Whether a number means what a digest says it does."""


class RemotePod:
    """A pod of another node. `addresses`: those its node may give it."""

    __slots__ = ("addresses", "endpoint", "node")

    def __init__(self, node: str, endpoint: NodeEndpoint, addresses: tuple[bytes, ...]) -> None:
        self.node = node
        self.endpoint = endpoint
        self.addresses = addresses

    @property
    def ref(self) -> ObjectRef:
        return self.endpoint.pod

    @property
    def ports(self) -> frozenset[ContainerPort]:
        return named_ports(self.endpoint.ports)


class Moves(msgspec.Struct):
    """What follows from news: addresses that pods have now, or have no more, and those whose pod is otherwise."""

    came: list[tuple[bytes, ObjectRef]]
    went: list[tuple[bytes, ObjectRef]]
    touched: set[bytes]


class RemoteBook:
    """Two nodes may tell of one pod while it moves from one to the other: each has it at addresses of its own."""

    def __init__(self, has: Has, stands_for: StandsFor) -> None:
        self._has = has
        self._stands_for = stands_for
        self._nodes: dict[str, dict[ObjectRef, RemotePod]] = {}
        self._at: dict[bytes, RemotePod] = {}
        self._rivals: MultiMap[bytes, RemotePod] = MultiMap()  # where several have an address, all of them
        self._numbered: MultiMap[int, RemotePod] = MultiMap()
        self._naming: MultiMap[Ports, RemotePod] = MultiMap()
        self._refused: dict[str, set[RemotePod]] = {}

    def __iter__(self) -> Iterator[RemotePod]:
        for pods in self._nodes.values():
            yield from pods.values()

    def __len__(self) -> int:
        return sum(map(len, self._nodes.values()))

    def identity(self, pod: RemotePod) -> int:
        """What its number means to its node must be what it means here: else it has none, 0."""
        told = pod.endpoint
        return told.identity if self._stands_for(told.identity, told.digest) else 0

    def nodes(self) -> list[str]:
        """Those that have pods."""
        return list(self._nodes)

    def of(self, node: str) -> Collection[RemotePod]:
        return self._nodes.get(node, {}).values()

    def at(self, address: bytes) -> RemotePod | None:
        """Whose an address is; of several the first by name, then by node."""
        rivals = self._rivals.get(address)
        return min(rivals, key=_precedence) if rivals else self._at.get(address)

    def claiming(self, address: bytes) -> Iterable[RemotePod]:
        """All that have an address, as their nodes tell."""
        known = self._at.get(address)
        return self._rivals.get(address) or (() if known is None else (known,))

    def get(self, ref: ObjectRef) -> RemotePod | None:
        """A pod by its name; of several the first by node. Looks through all nodes."""
        found = (pods[ref] for _, pods in sorted(self._nodes.items()) if ref in pods)
        return next(found, None)

    def numbered(self, identity: int) -> Set[RemotePod]:
        """Pods that have an identity, as their nodes say."""
        return self._numbered.get(identity, set())

    def naming(self, names: Set[PortName]) -> Iterator[RemotePod]:
        """Pods with ports of these names."""
        for ports, pods in self._naming.items():
            if any((port.protocol, port.name) in names for port in ports):
                yield from pods

    def refused(self) -> Iterator[tuple[RemotePod, bytes]]:
        """Pods and addresses that their nodes cannot give them."""
        for pods in self._refused.values():
            for pod in pods:
                for address in pod.endpoint.addresses:
                    if address not in pod.addresses:
                        yield pod, address

    # ---- changes

    def put(self, node: str, said: NodeEndpoints | None) -> Moves:
        """What a node tells is now thus, or (None) it is gone."""
        moves = Moves([], [], set())
        old = self._nodes.get(node, {})
        new = {one.pod: one for one in said.endpoints} if said is not None else {}
        for ref in [ref for ref in old if ref not in new]:
            self._take(old.pop(ref), moves)
        for ref, endpoint in new.items():
            known = old.get(ref)
            if known is None:
                old[ref] = self._put(RemotePod(node, endpoint, self._given(node, endpoint)), moves)
            elif known.endpoint != endpoint:
                self._change(known, endpoint, moves)
        if old:
            self._nodes[node] = old
        else:
            self._nodes.pop(node, None)
        return moves

    def settle(self, nodes: Iterable[str]) -> Moves:
        """Their blocks, or those of others, may be others now; and whoever was refused an address is asked again."""
        moves = Moves([], [], set())
        for node in {*nodes, *self._refused}:
            for pod in self._nodes.get(node, {}).values():
                if self._given(node, pod.endpoint) != pod.addresses:
                    self._change(pod, pod.endpoint, moves)
        return moves

    # ---- inside

    def _given(self, node: str, endpoint: NodeEndpoint) -> tuple[bytes, ...]:
        addresses = endpoint.addresses
        given = tuple(address for address in addresses if self._has(node, address))
        return addresses if len(given) == len(addresses) else given

    def _change(self, pod: RemotePod, endpoint: NodeEndpoint, moves: Moves) -> None:
        """In place: an address that it keeps is not given up in between."""
        before = set(pod.addresses)
        self._unfile(pod)
        pod.endpoint, pod.addresses = endpoint, self._given(pod.node, endpoint)
        self._file(pod)
        after = set(pod.addresses)
        moves.touched |= after & before
        for address in before - after:
            self._leave(address, pod, moves)
        for address in after - before:
            self._enter(address, pod, moves)

    def _put(self, pod: RemotePod, moves: Moves) -> RemotePod:
        self._file(pod)
        for address in pod.addresses:
            self._enter(address, pod, moves)
        return pod

    def _take(self, pod: RemotePod, moves: Moves) -> None:
        self._unfile(pod)
        for address in pod.addresses:
            self._leave(address, pod, moves)

    def _file(self, pod: RemotePod) -> None:
        self._numbered.put(pod.endpoint.identity, pod)
        if pod.endpoint.ports:
            self._naming.put(pod.endpoint.ports, pod)
        if len(pod.addresses) < len(pod.endpoint.addresses):
            self._refused.setdefault(pod.node, set()).add(pod)

    def _unfile(self, pod: RemotePod) -> None:
        self._numbered.take(pod.endpoint.identity, pod)
        self._naming.take(pod.endpoint.ports, pod)
        if (refused := self._refused.get(pod.node)) is not None:
            refused.discard(pod)
            if not refused:
                del self._refused[pod.node]

    def _enter(self, address: bytes, pod: RemotePod, moves: Moves) -> None:
        moves.came.append((address, pod.ref))
        known = self._at.setdefault(address, pod)
        if known is not pod:
            self._rivals.put(address, known)
            self._rivals.put(address, pod)

    def _leave(self, address: bytes, pod: RemotePod, moves: Moves) -> None:
        moves.went.append((address, pod.ref))
        if (rivals := self._rivals.get(address)) is None:
            del self._at[address]
            return
        rivals.discard(pod)
        self._at[address] = next(iter(rivals))
        if len(rivals) == 1:
            del self._rivals[address]


def _precedence(pod: RemotePod) -> tuple[ObjectRef, str]:
    return pod.ref, pod.node

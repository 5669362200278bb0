"""The nodes of the cluster: as Node objects tell of them, and as they tell of themselves."""

from __future__ import annotations

from collections import Counter
from collections.abc import Collection, Iterator, Mapping

import msgspec

from agent.objects import Node, NodeEndpoints
from agent.world.blocks import GIVEN, OWN, SAID, BlockBook, Claim
from agent.world.config import NodeConfig
from agent.world.prefixes import PrefixSet, SortedPrefixes
from policies.address import Prefix
from policies.multimap import MultiMap

NO_LABELS: Mapping[str, str] = {}
NODE_KIND = "Node"


class Peer(msgspec.Struct, frozen=True):
    """Another node, as this one reaches its pods. `addresses`: the preferred first. `pod_cidrs`: blocks that are its
    pods' and nobody else's. `public_key`: of WireGuard, 32 bytes; empty where it does not encrypt. `next_public_key`:
    the one that will follow it, during a rotation."""

    name: str
    addresses: tuple[bytes, ...]
    pod_cidrs: tuple[Prefix, ...]
    public_key: bytes = b""
    next_public_key: bytes = b""


class Moved(msgspec.Struct):
    """What follows from news of a node. `nodes`: those whose pods may have other addresses now; `blocks`: these are
    another node's now, or nobody's; `came`, `went`: addresses of nodes."""

    nodes: set[str]
    blocks: set[Prefix]
    came: list[tuple[bytes, str]]
    went: list[tuple[bytes, str]]


class NodeBook:
    """A block is one node's (`blocks`), and what a node says of itself counts as far as its blocks allow: none has an
    address out of another one's block. Without an API server manifests of nodes count whatever they name."""

    def __init__(self, config: NodeConfig) -> None:
        self._cluster = config.cluster
        self._own, self._own_zone, self._own_addresses = config.name, config.zone, config.addresses
        self._nodes: dict[str, Node] = {}
        self._said: dict[str, NodeEndpoints] = {}
        self._zones: dict[str, str] = {}
        self._addresses: dict[str, tuple[bytes, ...]] = {}  # of other nodes, those that count
        self._refused: dict[str, tuple[bytes, ...]] = {}
        self._at: MultiMap[bytes, str] = MultiMap()
        self._sorted = SortedPrefixes()  # of these addresses
        self._blockless: set[str] = set()  # who says it is a node, and of whom no block is known
        self._given: dict[Claim, tuple[Prefix, ...]] = {}  # what manifests name, where there is no cluster
        self._counts: Counter[Prefix] = Counter()  # of what speaks for a block
        self._peers: dict[str, Peer] = {}
        self._places: frozenset[Prefix] | None = None  # until something changes
        self.blocks = BlockBook()
        self.pod_blocks = PrefixSet()
        """Where pods of any node have their addresses."""
        self._set_zone(config.name, "")
        self._claim(OWN, config.name, config.pod_cidrs)

    def __iter__(self) -> Iterator[Node]:
        return iter(self._nodes.values())

    def get(self, name: str) -> Node | None:
        return self._nodes.get(name)

    def said(self, name: str) -> NodeEndpoints | None:
        """What a node tells of itself."""
        return self._said.get(name)

    def labels(self, name: str) -> Mapping[str, str]:
        """Those of a node without a manifest are none."""
        node = self._nodes.get(name)
        return NO_LABELS if node is None else node.labels

    def addresses(self) -> Iterator[bytes]:
        """Of this node and all others."""
        yield from self._own_addresses
        yield from self._at

    def places(self) -> frozenset[Prefix]:
        """Blocks of pods, and addresses of all nodes."""
        if self._places is None:
            self._places = frozenset((*self.pod_blocks, *map(Prefix.host, self.addresses())))
        return self._places

    def addresses_of(self, name: str) -> tuple[bytes, ...]:
        """Of another node, those that count."""
        return self._addresses.get(name, ())

    def at(self, address: bytes) -> str | None:
        """Which other node has an address; of several the first by name."""
        return min(self._at.get(address, ()), default=None)

    @property
    def zones(self) -> Mapping[str, str]:
        """Node → zone, where it is known. What the settings say of this node goes before its manifest."""
        return self._zones

    def peers(self) -> Mapping[str, Peer]:
        """All other nodes by name. Blocks in use are what a node says of itself; where it says none, its Node's."""
        return self._peers

    def has(self, name: str, address: bytes) -> bool:
        """Whether a node's pod may have an address. Of a node that no block is known of: any that is in no other's."""
        owner = self.blocks.owner(address)
        return owner == name or (owner is None and not self.blocks.has_claims(name))

    def refused_addresses(self) -> Iterator[tuple[str, bytes]]:
        """Nodes and addresses they say they have, which lie in another node's block."""
        for name, addresses in self._refused.items():
            for address in addresses:
                yield name, address

    # ---- changes

    def put(self, name: str, node: Node | None) -> Moved:
        """A Node object is now thus, or (None) is gone."""
        if node is None:
            self._nodes.pop(name, None)
        else:
            self._nodes[name] = node
        self._set_zone(name, node.zone if node is not None else "")
        return self._settle(name, self._claim(GIVEN, name, node.pod_cidrs if node is not None else ()))

    def put_said(self, name: str, said: NodeEndpoints | None) -> Moved:
        """What a node tells of itself is now thus, or (None) is gone."""
        if said is None:
            self._said.pop(name, None)
        else:
            self._said[name] = said
        return self._settle(name, self._claim(SAID, name, said.pod_cidrs if said is not None else ()))

    def put_own(self, blocks: tuple[Prefix, ...]) -> Moved:
        """Blocks that this node has for its pods now."""
        return self._settle(self._own, self._claim(OWN, self._own, blocks))

    # ---- inside

    def _claim(self, rank: int, name: str, blocks: tuple[Prefix, ...]) -> Moved:
        """All that a node claims by one rank."""
        had = self.blocks.has_claims(name)
        changed = self.blocks.claim(rank, name, blocks)
        steps = [(block, 1) for block, (before, _) in changed.items() if before is None]
        steps += [(block, -1) for block, (_, after) in changed.items() if after is None]
        if not self._cluster and rank != SAID:  # manifests of nodes are not doubted: all they name are blocks of pods
            old = self._given.pop((rank, name), ())
            self._given[rank, name] = blocks
            steps += [*((block, 1) for block in blocks), *((block, -1) for block in old)]
        self._count(steps)
        moved = Moved(
            {node for change in changed.values() for node in change if node is not None},
            {*changed, *(block for block, _ in steps)},
            [],
            [],
        )
        if self.blocks.has_claims(name) is not had:
            moved.nodes.add(name)
        return moved

    def _count(self, steps: Collection[tuple[Prefix, int]]) -> None:
        """A block that one thing speaks for is one of pods."""
        before = {block: self._counts[block] for block, _ in steps}
        for block, step in steps:
            self._counts[block] += step
        for block, count in before.items():
            if not count and self._counts[block]:
                self.pod_blocks.add(block)
            elif count and not self._counts[block]:
                self.pod_blocks.remove(block)
            if not self._counts[block]:
                del self._counts[block]

    def _settle(self, name: str, moved: Moved) -> Moved:
        if name in self._said and not self.blocks.has_claims(name):
            self._blockless.add(name)
        else:
            self._blockless.discard(name)
        if moved.blocks:
            # Who was refused an address may have it now; who has one in a block that is another's now, loses it.
            moved.nodes |= self._refused.keys() | self._blockless
            for block in moved.blocks:
                for prefix in self._sorted.inside(block):
                    moved.nodes |= self._at[prefix.network]
        for node in {name, *moved.nodes} - {self._own}:
            self._settle_addresses(node, moved)
            self._settle_peer(node)
        if moved.blocks or moved.came or moved.went:
            self._places = None
        return moved

    def _settle_addresses(self, name: str, moved: Moved) -> None:
        node, said = self._nodes.get(name), self._said.get(name)
        given = node.addresses if node is not None else ()
        own = dict.fromkeys(said.addresses if said is not None else ())
        refused = tuple(a for a in own if a not in given and self.blocks.owner(a) not in (None, name))
        _set(self._refused, name, refused)
        new = tuple(dict.fromkeys((*(a for a in own if a not in refused), *given)))
        old = self._addresses.get(name, ())
        _set(self._addresses, name, new)
        if old == new:
            return
        for address in set(old) - set(new):
            self._at.take(address, name)
            if address not in self._at:
                self._sorted.remove(Prefix.host(address))
            moved.went.append((address, name))
        for address in set(new) - set(old):
            if address not in self._at:
                self._sorted.add(Prefix.host(address))
            self._at.put(address, name)
            moved.came.append((address, name))

    def _settle_peer(self, name: str) -> None:
        said = self._said.get(name)
        if said is None and name not in self._nodes:
            self._peers.pop(name, None)
            return
        node = self._nodes.get(name)
        given = self.blocks.of(name, (GIVEN,)) if self._cluster or node is None else node.pod_cidrs
        blocks = self.blocks.of(name, (SAID,)) or given
        keys = (said.public_key, said.next_public_key) if said is not None else (b"", b"")
        peer = Peer(name, self._addresses.get(name, ()), blocks, *keys)
        if self._peers.get(name) != peer:
            self._peers[name] = peer

    def _set_zone(self, name: str, zone: str) -> None:
        zone = self._own_zone or zone if name == self._own else zone
        if zone:
            self._zones[name] = zone
        else:
            self._zones.pop(name, None)


def _set(index: dict[str, tuple[bytes, ...]], name: str, addresses: tuple[bytes, ...]) -> None:
    if addresses:
        index[name] = addresses
    else:
        index.pop(name, None)

"""The nodes of the cluster, as manifests tell of them."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Mapping

from agent.objects import Node
from agent.world.config import NodeConfig
from agent.world.prefixes import PrefixSet
from policies.address import Prefix
from policies.multimap import MultiMap

NO_LABELS: Mapping[str, str] = {}


class NodeBook:
    def __init__(self, config: NodeConfig) -> None:
        self._own, self._own_zone, self._own_addresses = config.name, config.zone, config.addresses
        self._nodes: dict[str, Node] = {}
        self._zones: dict[str, str] = {}
        self._at: MultiMap[bytes, str] = MultiMap()  # addresses of other nodes
        self._blocks: Counter[Prefix] = Counter()
        self.pod_blocks = PrefixSet()
        """Where pods of any node have their addresses."""
        self._set_zone(config.name, "")
        self._count_blocks(config.pod_cidrs, 1)

    def __iter__(self) -> Iterator[Node]:
        return iter(self._nodes.values())

    def get(self, name: str) -> Node | None:
        return self._nodes.get(name)

    def labels(self, name: str) -> Mapping[str, str]:
        """Those of a node without a manifest are none."""
        node = self._nodes.get(name)
        return NO_LABELS if node is None else node.labels

    def addresses(self) -> Iterator[bytes]:
        """Of this node and all others."""
        yield from self._own_addresses
        yield from self._at

    def at(self, address: bytes) -> str | None:
        """Which other node has an address; of several the first by name."""
        return min(self._at.get(address, ()), default=None)

    @property
    def zones(self) -> Mapping[str, str]:
        """Node → zone, where it is known. What the settings say of this node goes before its manifest."""
        return self._zones

    def put(self, name: str, node: Node | None) -> None:
        """A node is now thus, or (None) is gone."""
        if (old := self._nodes.pop(name, None)) is not None:
            self._count_blocks(old.pod_cidrs, -1)
            if name != self._own:
                for address in old.addresses:
                    self._at.take(address, name)
        if node is not None:
            self._nodes[name] = node
            self._count_blocks(node.pod_cidrs, 1)
            if name != self._own:
                for address in node.addresses:
                    self._at.put(address, name)
        self._set_zone(name, node.zone if node is not None else "")

    def _count_blocks(self, blocks: tuple[Prefix, ...], step: int) -> None:
        for block in blocks:
            before = self._blocks[block]
            self._blocks[block] += step
            if not before:
                self.pod_blocks.add(block)
            elif not self._blocks[block]:
                self.pod_blocks.remove(block)

    def _set_zone(self, name: str, zone: str) -> None:
        zone = self._own_zone or zone if name == self._own else zone
        if zone:
            self._zones[name] = zone
        else:
            self._zones.pop(name, None)

"""The nodes of the cluster, as manifests tell of them."""

from __future__ import annotations

from collections.abc import Iterator, Mapping

from agent.objects import Node
from agent.world.config import NodeConfig


class NodeBook:
    def __init__(self, config: NodeConfig) -> None:
        self._own, self._own_zone = config.name, config.zone
        self._nodes: dict[str, Node] = {}
        self._zones: dict[str, str] = {}
        self._set_zone(config.name, "")

    def __iter__(self) -> Iterator[Node]:
        return iter(self._nodes.values())

    def get(self, name: str) -> Node | None:
        return self._nodes.get(name)

    @property
    def zones(self) -> Mapping[str, str]:
        """Node → zone, where it is known. What the settings say of this node goes before its manifest."""
        return self._zones

    def put(self, name: str, node: Node | None) -> None:
        """A node is now thus, or (None) is gone."""
        if node is None:
            self._nodes.pop(name, None)
        else:
            self._nodes[name] = node
        self._set_zone(name, node.zone if node is not None else "")

    def _set_zone(self, name: str, zone: str) -> None:
        zone = self._own_zone or zone if name == self._own else zone
        if zone:
            self._zones[name] = zone
        else:
            self._zones.pop(name, None)

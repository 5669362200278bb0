"""Namespaces, declared or only used, and the labels they have for policies."""

from __future__ import annotations

from agent.objects import Namespace
from agent.world.config import NodeConfig
from agent.world.pods import PodBook
from policies.index import PolicyIndex

METADATA_NAME = "kubernetes.io/metadata.name"


class NamespaceBook:
    """`declared`: those that have a manifest, by name."""

    def __init__(self, config: NodeConfig, index: PolicyIndex, pods: PodBook) -> None:
        self._implicit = config.implicit_namespaces
        self._index = index
        self._pods = pods
        self.declared: dict[str, Namespace] = {}

    def put(self, name: str, namespace: Namespace | None) -> None:
        """One is now thus, or (None) is not declared any more."""
        if namespace is None:
            self.declared.pop(name, None)
        else:
            self.declared[name] = namespace
        self.settle(name)

    def settle(self, name: str) -> None:
        """It, or whether pods use it, has changed."""
        declared = self.declared.get(name)
        labels: dict[str, str] | None = None
        if declared is not None:
            labels = {METADATA_NAME: name, **declared.labels}
        elif self._implicit and self._pods.namespace_used(name):
            labels = {METADATA_NAME: name}
        self._index.set_namespace(name, labels)

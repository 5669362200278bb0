"""On which node a pod runs, and which addresses it has there."""

from __future__ import annotations

import msgspec

from agent.identity.allocator import ExhaustedError
from agent.objects import Pod
from agent.world.addresses import ALLOCATED, HOST_NETWORK, LOCAL, REMOTE
from agent.world.allocations import Allocations
from agent.world.config import NodeConfig
from agent.world.pods import PodState


class Placing:
    def __init__(self, config: NodeConfig, allocations: Allocations) -> None:
        self._node = config.name
        self._allocations = allocations

    def is_here(self, pod: Pod) -> bool:
        return pod.node in ("", self._node)

    def place(self, pod: Pod) -> tuple[Pod, str]:
        """With the name of the node it runs on, and the addresses this node gives it; and why it got none, if so."""
        pod = pod if pod.node else msgspec.structs.replace(pod, node=self._node)
        if pod.addresses or pod.host_network or not self.is_here(pod):
            return pod, ""
        try:
            return msgspec.structs.replace(pod, addresses=self._allocations.pod_addresses(pod.ref)), ""
        except ExhaustedError as error:
            return pod, str(error)

    def rank(self, state: PodState) -> int:
        """How good its claim to its addresses is."""
        if state.pod.host_network:
            return HOST_NETWORK
        if not self.is_here(state.pod):
            return REMOTE
        return ALLOCATED if state.own_addresses else LOCAL

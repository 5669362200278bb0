"""On which node a pod runs, and which addresses it has there."""

from __future__ import annotations

import msgspec

from agent.identity.allocator import ExhaustedError
from agent.objects import Interface, Pod
from agent.world.addresses import ALLOCATED, HOST_NETWORK, LOCAL, REMOTE
from agent.world.allocations import Allocations
from agent.world.attachments import AttachmentBook
from agent.world.config import NodeConfig
from agent.world.pods import PodState


class Placing:
    def __init__(self, config: NodeConfig, allocations: Allocations, attachments: AttachmentBook) -> None:
        self._node = config.name
        self._own_addresses = frozenset(config.addresses)
        self._attached = config.attached
        self._allocations = allocations
        self._attachments = attachments

    def is_here(self, pod: Pod) -> bool:
        return pod.node in ("", self._node)

    def is_attached(self, pod: Pod) -> bool:
        """Whether its network comes from a runtime."""
        return self._attached and self.is_here(pod) and not pod.host_network

    def interface(self, pod: Pod, known: Interface | None) -> Interface | None:
        """Where it hangs off this node; `known`: as far as is known of a pod that no runtime attaches."""
        if not self.is_attached(pod):
            return known
        held = self._attachments.of(pod)
        return None if held is None else held.interface

    def place(self, pod: Pod) -> tuple[Pod, str]:
        """With the name of the node it runs on, and the addresses this node gives it; and why it got none, if so."""
        pod = pod if pod.node else msgspec.structs.replace(pod, node=self._node)
        if self.is_attached(pod):
            held = self._attachments.of(pod)
            addresses = held.addresses if held is not None else ()
            return (pod if pod.addresses == addresses else msgspec.structs.replace(pod, addresses=addresses)), ""
        if self._attached and pod.host_network and not self._own_addresses.issuperset(pod.addresses):
            own = tuple(address for address in pod.addresses if address in self._own_addresses)
            return msgspec.structs.replace(pod, addresses=own), ""
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
        return ALLOCATED if state.own_addresses or self.is_attached(state.pod) else LOCAL

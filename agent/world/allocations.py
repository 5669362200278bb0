"""Everything a node gives out, in one bag that can be saved and restored."""

from __future__ import annotations

from collections.abc import Mapping, Set

from agent.datapath import abi
from agent.identity.allocator import AddressPool, Allocator
from agent.world.config import NodeConfig
from policies.model import ObjectRef

_NUMBERS = abi.load().constants
IDENTITY_MIN = _NUMBERS.IDENTITY_CLUSTER_MIN
IDENTITY_MAX = _NUMBERS.IDENTITY_CLUSTER_MAX
CIDR_IDENTITY_MIN = _NUMBERS.IDENTITY_LOCAL_MIN
CIDR_IDENTITY_SPAN = (1 << 24) - 1
ENDPOINT_IDS = 65535


def key_of(ref: ObjectRef) -> str:
    return f"{ref.namespace}/{ref.name}"


def ref_of(kind: str, key: str) -> ObjectRef:
    namespace, _, name = key.partition("/")
    return ObjectRef(kind, namespace, name)


class Allocations:
    """Keys: identities by their canonical labels, one a line; CIDR identities by prefix; all else by namespace/name,
    of a service's node ports with :port or :health; proxy ports by the listener's name."""

    def __init__(self, config: NodeConfig) -> None:
        self.identities = Allocator("identity", IDENTITY_MIN, IDENTITY_MAX - IDENTITY_MIN + 1)
        self.cidr_identities = Allocator("CIDR identity", CIDR_IDENTITY_MIN, CIDR_IDENTITY_SPAN)
        self.endpoints = Allocator("endpoint id", 1, ENDPOINT_IDS)
        self.pod_pools = tuple(AddressPool("pod address", cidr, config.addresses) for cidr in config.pod_cidrs)
        first, last = config.services.node_ports
        self.node_ports = Allocator("node port", first, last - first + 1)
        first, last = config.proxy_ports
        self.proxy_ports = Allocator("proxy port", first, last - first + 1)
        self.service_pools = tuple(AddressPool("service address", cidr) for cidr in config.service_cidrs)

    def pod_addresses(self, ref: ObjectRef) -> tuple[bytes, ...]:
        """One address a family for a pod of this node; the same at every call. Raises ExhaustedError."""
        return tuple(pool.allocate(key_of(ref)) for pool in self.pod_pools)

    def release_pod(self, ref: ObjectRef) -> None:
        for pool in self.pod_pools:
            pool.release(key_of(ref))
        self.endpoints.release(key_of(ref))

    def keep_only(self, pods: Set[str], services: Set[str]) -> None:
        """Give up what pods and services hold that are none of these."""
        given: list[Allocator | AddressPool] = [*self.pod_pools, self.endpoints]
        for key in {key for allocator in given for key in allocator.held()} - pods:
            self.release_pod(ref_of("Pod", key))
        for pool in self.service_pools:
            for key in set(pool.held()) - services:
                pool.release(key)

    def snapshot(self) -> dict[str, dict[str, int]]:
        """Plain data for state.json: {allocator: {key: number}}."""
        return {name: allocator.snapshot() for name, allocator in self._all().items()}

    def take_changes(self) -> dict[str, dict[str, int | None]]:
        """What is otherwise in the snapshot since the last call; a number that is None was given up."""
        changes = {name: allocator.take_changes() for name, allocator in self._all().items()}
        return {name: changed for name, changed in changes.items() if changed}

    def restore(self, saved: Mapping[str, Mapping[str, int]]) -> None:
        """What `snapshot` gave. Allocators it does not name, such as those of another pod CIDR, stay as they are."""
        for name, allocator in self._all().items():
            allocator.restore(saved.get(name, {}))

    def _all(self) -> dict[str, Allocator | AddressPool]:
        return {
            "identities": self.identities,
            "cidr_identities": self.cidr_identities,
            "endpoints": self.endpoints,
            "node ports": self.node_ports,
            "proxy ports": self.proxy_ports,
            **{f"pods {pool.block}": pool for pool in self.pod_pools},
            **{f"services {pool.block}": pool for pool in self.service_pools},
        }

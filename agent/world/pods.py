"""The pods a node knows of, its own and others', and how to find them."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from functools import lru_cache

from agent.objects import DeclaredPort, Interface, Pod
from policies.model import ContainerPort, ObjectRef
from policies.multimap import MultiMap

Ports = tuple[DeclaredPort, ...]


class PodState:
    """A pod, and what follows from it: `identity` 0 until one is given; `interface` once its namespace stands."""

    __slots__ = ("identity", "interface", "key", "own_addresses", "pod", "ports")

    def __init__(self, pod: Pod, own_addresses: bool) -> None:
        self.pod = pod
        self.own_addresses = own_addresses  # given by this node's IPAM
        self.key: tuple[str, ...] = ()
        self.identity = 0
        self.interface: Interface | None = None
        self.ports = named_ports(pod.ports)


class PodBook:
    def __init__(self) -> None:
        self._pods: dict[ObjectRef, PodState] = {}
        self._in_namespace: MultiMap[str, ObjectRef] = MultiMap()
        self._labelled: MultiMap[tuple[str, str, str], ObjectRef] = MultiMap()  # namespace, label key, value

    def __iter__(self) -> Iterator[PodState]:
        return iter(self._pods.values())

    def get(self, ref: ObjectRef) -> PodState | None:
        return self._pods.get(ref)

    def put(self, state: PodState) -> None:
        pod = state.pod
        self.take(pod.ref)
        self._pods[pod.ref] = state
        self._in_namespace.put(pod.ref.namespace, pod.ref)
        for key, value in pod.labels.items():
            self._labelled.put((pod.ref.namespace, key, value), pod.ref)

    def take(self, ref: ObjectRef) -> PodState | None:
        """Remove a pod; None where there was none."""
        state = self._pods.pop(ref, None)
        if state is not None:
            self._in_namespace.take(ref.namespace, ref)
            for key, value in state.pod.labels.items():
                self._labelled.take((ref.namespace, key, value), ref)
        return state

    def namespace_used(self, name: str) -> bool:
        return name in self._in_namespace

    def selected(self, namespace: str, selector: Mapping[str, str]) -> list[Pod]:
        """Pods of a namespace with all these labels, by name. An empty selector selects nothing (core/v1 Service)."""
        sets = [self._labelled.get((namespace, key, value), set()) for key, value in selector.items()]
        if not sets:
            return []
        return [self._pods[ref].pod for ref in sorted(set.intersection(*sets))]


@lru_cache(maxsize=4096)
def named_ports(ports: Ports) -> frozenset[ContainerPort]:
    """Many pods declare the same ports."""
    return frozenset(ContainerPort(port.name, port.protocol, port.number) for port in ports if port.name)

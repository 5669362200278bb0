"""Which pods share an identity number, and what that number stands for."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections import Counter
from collections.abc import Collection, Iterator, Mapping

import msgspec

from agent.identity.allocator import Allocator, ExhaustedError
from agent.identity.labels import LabelFilter, identity_key
from agent.world.pods import PodBook, PodState
from policies.index import PolicyIndex
from policies.model import SERVICE_ACCOUNT, ObjectRef, PodSelector, Policy, Workload

Key = tuple[str, ...]


class Identity(msgspec.Struct):
    """An identity that is known. `labels`: its canonical form."""

    number: int
    labels: Key
    workload: Workload
    digest: str = ""  # of `labels`, once somebody asked


class IdentityBook(ABC):
    """Pods, keys and numbers. Where the numbers come from is up to the kind of book."""

    def __init__(self, index: PolicyIndex, relevant: LabelFilter) -> None:
        self._index = index
        self._filter = relevant
        self._by_number: dict[int, Identity] = {}
        # Keys the filter leaves out although a policy selects by them: they count as long as one does.
        self._named: Counter[str] = Counter()
        self._named_by: dict[ObjectRef, frozenset[str]] = {}

    def __iter__(self) -> Iterator[Identity]:
        return iter(self._by_number.values())

    def get(self, number: int) -> Identity | None:
        return self._by_number.get(number)

    def set_policy(self, ref: ObjectRef, policy: Policy | None, pods: PodBook) -> set[ObjectRef]:
        """Keep count of the label keys that selectors use; returns pods whose identity may be another now."""
        old = self._named_by.pop(ref, frozenset())
        keys = () if policy is None else _selected_by(policy)
        new = frozenset(key for key in keys if not self._filter.relevant(key))
        if new:
            self._named_by[ref] = new
        if old == new:
            return set()
        before = set(self._named)
        self._named.subtract(old)
        self._named.update(new)
        self._named = +self._named
        flipped = before ^ set(self._named)
        return {state.pod.ref for state in pods if not flipped.isdisjoint(state.pod.labels)} if flipped else set()

    @abstractmethod
    def settle(self, state: PodState) -> bool:
        """Give a pod the identity its labels call for; whether it is another one now. Raises ExhaustedError."""

    @abstractmethod
    def forget(self, state: PodState) -> None:
        """A pod no longer has its identity. The number is kept until `release_idle`."""

    @abstractmethod
    def release_idle(self) -> None:
        """Give up numbers no pod has. Not before classes and subjects have let go of them."""

    @abstractmethod
    def release_restored(self) -> None:
        """Give up numbers of an earlier run that no pod of this one has."""

    @abstractmethod
    def wanted(self) -> Mapping[Key, Workload]:
        """Keys of this node's pods for which somebody is to obtain a number."""

    @abstractmethod
    def numbers(self, key: Key) -> Collection[int]:
        """All that stand for a key."""

    def meaning(self, number: int) -> Key | None:
        """What a number stands for."""
        identity = self._by_number.get(number)
        return None if identity is None else identity.labels

    @abstractmethod
    def pods_of(self, number: int) -> int:
        """How many pods have a number; in a cluster, of this node's."""

    def _key_of(self, state: PodState) -> tuple[Key, Workload]:
        pod = state.pod
        own = {name: value for name, value in pod.labels.items() if name != SERVICE_ACCOUNT}
        labels = self._filter.select(own, self._named)
        key = identity_key(pod.ref.namespace, labels, pod.service_account)
        labels[SERVICE_ACCOUNT] = pod.service_account  # whatever the pod itself says (CVE-2023-39347)
        return key, Workload(pod.ref.namespace, labels)


class LocalIdentities(IdentityBook):
    """Numbers are given out here, and mean something on this node alone."""

    def __init__(self, numbers: Allocator, index: PolicyIndex, relevant: LabelFilter) -> None:
        super().__init__(index, relevant)
        self._numbers = numbers
        self._used: dict[Key, Identity] = {}
        self._pods: Counter[int] = Counter()
        self._idle: set[Key] = set()

    def settle(self, state: PodState) -> bool:
        key: Key = ()
        if state.pod.addresses and not state.pod.host_network:
            key, workload = self._key_of(state)
        if key == state.key:
            return False
        self.forget(state)
        if key:
            state.identity = self._acquire(key, workload)
            state.key = key
        return True

    def forget(self, state: PodState) -> None:
        if state.key:
            self._pods[state.identity] -= 1
            if not self._pods[state.identity]:
                self._idle.add(state.key)
        state.key, state.identity = (), 0

    def release_idle(self) -> None:
        for key in self._idle:
            identity = self._used[key]
            if not self._pods[identity.number]:
                del self._pods[identity.number]
                del self._used[key], self._by_number[identity.number]
                self._index.set_identity(identity.number, None)
                self._numbers.release("\n".join(key))
        self._idle.clear()

    def release_restored(self) -> None:
        wanted = {"\n".join(key) for key in self._used}
        for key in self._numbers.held():
            if key not in wanted:
                self._numbers.release(key)

    def wanted(self) -> Mapping[Key, Workload]:
        return {}

    def numbers(self, key: Key) -> Collection[int]:
        identity = self._used.get(key)
        return () if identity is None else (identity.number,)

    def pods_of(self, number: int) -> int:
        return self._pods[number]

    def _acquire(self, key: Key, workload: Workload) -> int:
        identity = self._used.get(key)
        if identity is None:
            identity = Identity(self._allocate("\n".join(key)), key, workload)
            self._used[key] = self._by_number[identity.number] = identity
            self._index.set_identity(identity.number, workload)
        self._pods[identity.number] += 1
        return identity.number

    def _allocate(self, key: str) -> int:
        try:
            return self._numbers.allocate(key)
        except ExhaustedError:
            self.release_restored()
            return self._numbers.allocate(key)


def _selected_by(policy: Policy) -> Iterator[str]:
    """Label keys by which a policy tells pods apart."""
    selectors = [policy.subject, *(p for r in policy.rules for p in r.peers or () if isinstance(p, PodSelector))]
    return (requirement.key for selector in selectors for requirement in selector.pods.requirements)

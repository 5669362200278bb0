"""Which pods share an identity number, and what that number stands for."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator

import msgspec

from agent.identity.allocator import Allocator, ExhaustedError
from agent.identity.labels import LabelFilter, identity_key
from agent.world.pods import PodBook, PodState
from policies.index import PolicyIndex
from policies.model import SERVICE_ACCOUNT, ObjectRef, PodSelector, Policy, Workload

Key = tuple[str, ...]


class Identity(msgspec.Struct):
    """An identity in use. `labels`: its canonical form; `pods`: how many have it."""

    number: int
    labels: Key
    workload: Workload
    pods: int = 0


class IdentityBook:
    def __init__(self, numbers: Allocator, index: PolicyIndex, relevant: LabelFilter) -> None:
        self._numbers = numbers
        self._index = index
        self._filter = relevant
        self._used: dict[Key, Identity] = {}
        self._by_number: dict[int, Identity] = {}
        self._idle: set[Key] = set()
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
        before = set(self._named)
        self._named.subtract(old)
        self._named.update(new)
        self._named = +self._named
        flipped = before ^ set(self._named)
        return {state.pod.ref for state in pods if not flipped.isdisjoint(state.pod.labels)} if flipped else set()

    def settle(self, state: PodState) -> bool:
        """Give a pod the identity its labels call for; whether it is another one now. Raises ExhaustedError."""
        pod = state.pod
        labels: dict[str, str] = {}
        key: Key = ()
        if pod.addresses and not pod.host_network:
            own = {name: value for name, value in pod.labels.items() if name != SERVICE_ACCOUNT}
            labels = self._filter.select(own, self._named)
            key = identity_key(pod.ref.namespace, labels, pod.service_account)
        if key == state.key:
            return False
        self.forget(state)
        if key:
            labels[SERVICE_ACCOUNT] = pod.service_account  # whatever the pod itself says (CVE-2023-39347)
            state.identity = self._acquire(key, Workload(pod.ref.namespace, labels))
            state.key = key
        return True

    def forget(self, state: PodState) -> None:
        """A pod no longer has its identity. The number is kept until `release_idle`."""
        if state.key:
            identity = self._used[state.key]
            identity.pods -= 1
            if not identity.pods:
                self._idle.add(state.key)
        state.key, state.identity = (), 0

    def release_idle(self) -> None:
        """Give up numbers no pod has. Not before classes and subjects have let go of them."""
        for key in self._idle:
            identity = self._used[key]
            if not identity.pods:
                del self._used[key], self._by_number[identity.number]
                self._index.set_identity(identity.number, None)
                self._numbers.release("\n".join(key))
        self._idle.clear()

    def release_restored(self) -> None:
        """Give up numbers of an earlier run that no pod of this one has."""
        wanted = {"\n".join(key) for key in self._used}
        for key in self._numbers.held():
            if key not in wanted:
                self._numbers.release(key)

    def _acquire(self, key: Key, workload: Workload) -> int:
        identity = self._used.get(key)
        if identity is None:
            identity = Identity(self._allocate("\n".join(key)), key, workload)
            self._used[key] = self._by_number[identity.number] = identity
            self._index.set_identity(identity.number, workload)
        identity.pods += 1
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

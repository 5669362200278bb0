"""Identities of a cluster: a number stands for what the SecurityIdentity of that name says."""

from __future__ import annotations

from collections.abc import Collection, Mapping

from agent.identity.labels import LabelFilter, identity_key, key_digest
from agent.objects import SecurityIdentity
from agent.world.identities import Identity, IdentityBook, Key
from agent.world.pods import PodState
from policies.index import PolicyIndex
from policies.model import SERVICE_ACCOUNT, ObjectRef, Workload
from policies.multimap import MultiMap


class ClusterIdentities(IdentityBook):
    """No number is invented here. Of several for one key a pod has the smallest that is not marked (about to be
    collected), and keeps it while it is fit for use.

    While there is none for what a pod is now, it keeps what it had; unless that number means something else by now:
    then it has none, and is denied everything.
    """

    def __init__(self, index: PolicyIndex, relevant: LabelFilter) -> None:
        super().__init__(index, relevant)
        self._declared: dict[Key, tuple[int, ...]] = {}  # sorted
        self._stands: dict[int, Key] = {}
        self._marked: set[int] = set()
        self._asked: dict[ObjectRef, Key] = {}  # of local pods
        self._asking: MultiMap[Key, ObjectRef] = MultiMap()
        self._workloads: dict[Key, Workload] = {}  # of keys that are asked for
        self._having: MultiMap[int, ObjectRef] = MultiMap()  # local pods by their number
        self._idle: set[int] = set()

    # ---- questions

    def wanted(self) -> Mapping[Key, Workload]:
        """Those that only marked numbers stand for are among them: they are to be unmarked."""
        return {key: workload for key, workload in self._workloads.items() if not self._fit(key)}

    def numbers(self, key: Key) -> Collection[int]:
        """Marked ones included."""
        return self._declared.get(key, ())

    def meaning(self, number: int) -> Key | None:
        return self._stands.get(number)

    def pods_of(self, number: int) -> int:
        return len(self._having.get(number, ()))

    def stands_for(self, number: int, digest: str) -> bool:
        """Whether a number means what this is the digest of."""
        key = self._stands.get(number)
        if key is None:
            return False
        identity = self._by_number[number]
        if not identity.digest:
            identity.digest = key_digest(key)
        return identity.digest == digest

    # ---- changes

    def put(self, number: int, declared: SecurityIdentity | None) -> set[ObjectRef]:
        """What stands under a number now; None: nothing. Returns local pods whose identity may be another now."""
        old, key = self._stands.get(number), None
        if declared is not None:
            key = identity_key(declared.namespace, declared.labels, declared.service_account)
        touched = {ref for asked in (old, key) if asked is not None for ref in self._asking.get(asked, ())}
        touched |= self._having.get(number, set())
        if declared is not None and declared.unused_since:
            self._marked.add(number)
        else:
            self._marked.discard(number)
        if key == old:
            return touched
        if old is not None:
            self._undeclare(number, old)
        if declared is not None and key is not None:
            self._declare(declared, key)
        else:
            self._idle.add(number)
        return touched

    def settle(self, state: PodState) -> bool:
        """One whose addresses are still to come has its identity already: it will start the sooner."""
        ref, pod = state.pod.ref, state.pod
        if pod.host_network or (pod.finished and not pod.addresses):
            before = state.identity
            self.forget(state)
            return bool(before)
        key, workload = self._key_of(state)
        self._ask(ref, key, workload)
        fit = self._fit(key)
        if fit:
            number = state.identity if state.key == key and state.identity in fit else fit[0]
        else:
            number = state.identity if self._holds(state) else 0
            key = state.key if number else ()
        if (key, number) == (state.key, state.identity):
            return False
        changed = number != state.identity
        self._leave(state)
        if number:
            self._having.put(number, ref)
            state.key, state.identity = key, number
        return changed

    def forget(self, state: PodState) -> None:
        self._leave(state)
        asked = self._asked.pop(state.pod.ref, None)
        if asked is not None:
            self._unask(asked, state.pod.ref)

    def release_idle(self) -> None:
        for number in self._idle:
            if number in self._by_number and number not in self._stands and number not in self._having:
                del self._by_number[number]
                self._index.set_identity(number, None)
        self._idle.clear()

    def release_restored(self) -> None:
        """Nothing was given out here."""

    # ---- inside

    def _declare(self, declared: SecurityIdentity, key: Key) -> None:
        number = declared.number
        self._stands[number] = key
        self._declared[key] = tuple(sorted((*self._declared.get(key, ()), number)))
        identity = self._by_number.get(number)
        if identity is None or identity.labels != key:
            workload = Workload(declared.namespace, {**declared.labels, SERVICE_ACCOUNT: declared.service_account})
            self._by_number[number] = Identity(number, key, workload)
            self._index.set_identity(number, workload)

    def _undeclare(self, number: int, key: Key) -> None:
        """What it means to pods that have it stays, until it is declared to mean something else."""
        del self._stands[number]
        rest = tuple(other for other in self._declared[key] if other != number)
        if rest:
            self._declared[key] = rest
        else:
            del self._declared[key]

    def _fit(self, key: Key) -> tuple[int, ...]:
        numbers = self._declared.get(key, ())
        return numbers if self._marked.isdisjoint(numbers) else tuple(n for n in numbers if n not in self._marked)

    def _holds(self, state: PodState) -> bool:
        identity = self._by_number.get(state.identity)
        return identity is not None and identity.labels == state.key

    def _leave(self, state: PodState) -> None:
        if state.identity:
            self._having.take(state.identity, state.pod.ref)
            self._idle.add(state.identity)
        state.key, state.identity = (), 0

    def _ask(self, ref: ObjectRef, key: Key, workload: Workload) -> None:
        old = self._asked.get(ref)
        if old == key:
            return
        if old is not None:
            self._unask(old, ref)
        self._asked[ref] = key
        self._asking.put(key, ref)
        self._workloads[key] = workload

    def _unask(self, key: Key, ref: ObjectRef) -> None:
        self._asking.take(key, ref)
        if key not in self._asking:
            del self._workloads[key]

"""Policies by the object that holds them: of some kinds an object is several."""

from __future__ import annotations

from agent.objects import PolicySet
from agent.world.identities import IdentityBook
from agent.world.pods import PodBook
from policies.index import PolicyIndex
from policies.model import ObjectRef, Policy


class PolicyBook:
    def __init__(self, index: PolicyIndex, identities: IdentityBook, pods: PodBook) -> None:
        self._index = index
        self._identities = identities
        self._pods = pods
        self._held: dict[ObjectRef, tuple[ObjectRef, ...]] = {}  # of objects that are not one policy of their own ref

    def put(self, ref: ObjectRef, new: Policy | PolicySet | None) -> set[ObjectRef]:
        """An object is now thus, or (None) is gone. Returns pods whose identity may be another now."""
        policies = new.policies if isinstance(new, PolicySet) else () if new is None else (new,)
        refs = tuple(policy.ref for policy in policies)
        old = self._held.pop(ref, (ref,))
        if refs != (ref,) and new is not None:
            self._held[ref] = refs
        touched: set[ObjectRef] = set()
        for gone in old:
            if gone not in refs:
                touched |= self._set(gone, None)
        for policy in policies:
            touched |= self._set(policy.ref, policy)
        return touched

    def _set(self, ref: ObjectRef, policy: Policy | None) -> set[ObjectRef]:
        touched = self._identities.set_policy(ref, policy, self._pods)
        self._index.set_policy(ref, policy)
        return touched

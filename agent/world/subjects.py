"""Which subject each endpoint is, and how many endpoints are one."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING

from policies.index import PolicyIndex
from policies.model import ObjectRef, Subject

if TYPE_CHECKING:
    from agent.world.world import World


class SubjectBook:
    def __init__(self, index: PolicyIndex) -> None:
        self._index = index
        self._subjects: dict[ObjectRef, Subject] = {}
        self._uses: dict[Subject, int] = {}

    def of(self, ref: ObjectRef) -> Subject | None:
        return self._subjects.get(ref)

    @property
    def uses(self) -> Mapping[Subject, int]:
        """Subjects in use, and by how many endpoints."""
        return self._uses

    def put(self, ref: ObjectRef, new: Subject | None) -> Subject | None:
        """Give an endpoint its subject; returns the one it had, where that is another."""
        old = self._subjects.get(ref)
        if old == new:
            return None
        if new is None:
            del self._subjects[ref]
        else:
            self._subjects[ref] = new
            self._uses[new] = self._uses.get(new, 0) + 1
            if self._uses[new] == 1:
                self._index.add_subject(new)
        if old is not None:
            self._uses[old] -= 1
            if not self._uses[old]:
                del self._uses[old]
                self._index.drop_subject(old)
        return old


def subject_of(world: World, ref: ObjectRef) -> Subject | None:
    """What a pod is to be by what is known of it; None where it cannot be an endpoint."""
    state = world.pods.get(ref)
    if state is None or not state.identity or state.interface is None:
        return None
    if not world.is_local(ref) or not world.own_addresses(ref):
        return None
    names = world.index.ingress_port_names()
    return Subject(state.identity, frozenset(p for p in state.ports if (p.protocol, p.name) in names))

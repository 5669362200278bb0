"""Which policies apply to which local subjects, kept as policies, subjects and what selectors match come and go."""

from __future__ import annotations

from collections.abc import Collection, Iterable, Iterator, Set
from itertools import chain

from policies.model import ObjectRef, PodSelector, Subject
from policies.multimap import MultiMap
from policies.selectors import SelectorIndex


class Applying:
    """Selectors must be in use in the SelectorIndex as long as they are here."""

    def __init__(self, selectors: SelectorIndex) -> None:
        self._selectors = selectors
        self._policies: MultiMap[PodSelector, ObjectRef] = MultiMap()  # that select their subjects by it
        self._subjects: MultiMap[int, Subject] = MultiMap()  # local ones by identity
        self._identities: MultiMap[PodSelector, int] = MultiMap()  # of local subjects, that it matches
        self._matching: MultiMap[int, PodSelector] = MultiMap()  # the reverse
        self._active: set[ObjectRef] = set()

    # ---- changes

    def enter(self, ref: ObjectRef, selector: PodSelector) -> None:
        """A policy selects its subjects by this."""
        new = selector not in self._policies
        self._policies.put(selector, ref)
        if new:
            for identity in self._subjects:
                if self._selectors.matches(selector, identity):
                    self._link(selector, identity)
        if selector in self._identities:
            self._active.add(ref)

    def leave(self, ref: ObjectRef, selector: PodSelector, successor: PodSelector | None) -> None:
        """A policy selects no more by this, but (None: by nothing) by that, which has entered already."""
        if successor != selector:
            self._policies.take(selector, ref)
        if selector not in self._policies:
            for identity in tuple(self._identities.get(selector, ())):
                self._unlink(selector, identity)
        if successor is None or successor not in self._identities:
            self._active.discard(ref)

    def add(self, subject: Subject) -> bool:
        """A local subject came; False where it is here already."""
        if subject in self:
            return False
        if subject.identity not in self._subjects:
            for selector in self._selectors.matching(subject.identity):
                if selector in self._policies:
                    self._link(selector, subject.identity)
        self._subjects.put(subject.identity, subject)
        return True

    def drop(self, subject: Subject) -> bool:
        """A local subject went; False where it was not here."""
        if subject not in self:
            return False
        self._subjects.take(subject.identity, subject)
        if subject.identity not in self._subjects:
            for selector in tuple(self._matching.get(subject.identity, ())):
                self._unlink(selector, subject.identity)
        return True

    def toggle(self, selector: PodSelector, identity: int) -> bool:
        """A selector matches an identity now, or does so no more: whether other policies apply to local subjects."""
        if selector not in self._policies or identity not in self._subjects:
            return False
        if self._selectors.matches(selector, identity):
            self._link(selector, identity)
        else:
            self._unlink(selector, identity)
        return True

    # ---- questions

    def __contains__(self, subject: Subject) -> bool:
        return subject in self._subjects.get(subject.identity, ())

    @property
    def active(self) -> Set[ObjectRef]:
        """Policies that select local subjects: few of a large cluster's. A live view."""
        return self._active

    def is_active(self, selector: PodSelector) -> bool:
        """Whether it selects any local subject."""
        return selector in self._identities

    def of_identity(self, identity: int) -> Collection[Subject]:
        """Local subjects."""
        return self._subjects.get(identity, ())

    def selected(self, selector: PodSelector) -> Iterator[Subject]:
        """Local subjects that policies with this selector apply to."""
        for identity in self._identities.get(selector, ()):
            yield from self._subjects[identity]

    def policies(self, identity: int) -> Iterator[ObjectRef]:
        """Those that apply to an identity, local or not."""
        selectors: Iterable[PodSelector] = self._matching.get(identity, ())
        if identity not in self._subjects:
            selectors = (s for s in self._selectors.matching(identity) if s in self._policies)
        return chain.from_iterable(self._policies[selector] for selector in selectors)

    # ---- inside

    def _link(self, selector: PodSelector, identity: int) -> None:
        if selector not in self._identities:
            self._active |= self._policies[selector]
        self._identities.put(selector, identity)
        self._matching.put(identity, selector)

    def _unlink(self, selector: PodSelector, identity: int) -> None:
        self._identities.take(selector, identity)
        self._matching.take(identity, selector)
        if selector not in self._identities:
            self._active -= self._policies.get(selector, set())

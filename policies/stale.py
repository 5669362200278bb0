"""Subjects whose rows may have changed, and in which classes."""

from __future__ import annotations

from collections.abc import Iterable, Set

from policies.model import RemoteClass, Subject

NO_CLASSES: frozenset[RemoteClass] = frozenset()

MANY_CLASSES = 256
"""From so many dirty classes on, compiling the whole subject is cheaper."""


class Stale:
    def __init__(self) -> None:
        self._dirty: dict[Subject, Set[RemoteClass] | None] = {}

    def whole(self, subject: Subject) -> None:
        self._dirty[subject] = None

    def in_all(self, subject: Subject, classes: frozenset[RemoteClass]) -> None:
        """The same set may be given for many subjects: it is not copied."""
        if subject not in self._dirty:
            self._dirty[subject] = classes
        else:
            self.add(subject, classes)

    def add(self, subject: Subject, classes: Iterable[RemoteClass]) -> None:
        known = self._dirty.get(subject, NO_CLASSES)
        if known is None:
            return
        if not isinstance(known, set):
            known = self._dirty[subject] = set(known)
        known.update(classes)

    def forget(self, subject: Subject) -> None:
        self._dirty.pop(subject, None)

    def take(self) -> dict[Subject, Set[RemoteClass] | None]:
        """All of them; None: in any class."""
        dirty = {s: None if c is not None and len(c) >= MANY_CLASSES else c for s, c in self._dirty.items()}
        self._dirty = {}
        return dirty

"""Which identities each selector matches, kept as identities, namespaces and selectors come and go.

A selector is filed under its scope (a namespace's name, or the namespaces a label selector picks) and under one label
that it requires. So an identity meets only the selectors of its scopes that require a label it has, or none.
"""

from __future__ import annotations

from array import array
from bisect import bisect_left
from collections.abc import Collection, Iterator, Mapping, Sequence, Set

from policies.model import LabelSelector, Operator, PodSelector, Requirement, Workload
from policies.multimap import MultiMap

Scope = str | LabelSelector
Label = tuple[str, str]


class _Entry:
    """A selector in use: how often, by which requirement and under which labels it is filed, and the sorted identities
    it matches, once somebody asked: most selectors of a large cluster are about pods of other nodes."""

    __slots__ = ("anchor", "filed", "matched", "uses")

    def __init__(self, anchor: Requirement | None, filed: tuple[Label | None, ...]) -> None:
        self.uses = 1
        self.anchor = anchor
        self.filed = filed
        self.matched: array[int] | None = None

    def toggle(self, identity: int) -> None:
        if self.matched is None:
            return
        at = bisect_left(self.matched, identity)
        if at < len(self.matched) and self.matched[at] == identity:
            del self.matched[at]
        else:
            self.matched.insert(at, identity)


class SelectorIndex:
    def __init__(self) -> None:
        self._namespaces: dict[str, Mapping[str, str]] = {}
        self._workloads: dict[int, Workload] = {}
        self._members: MultiMap[str, int] = MultiMap()  # namespace → identities in it
        self._labelled: MultiMap[Label, int] = MultiMap()  # label → identities that carry it
        self._entries: dict[PodSelector, _Entry] = {}
        self._filed: dict[Scope, dict[Label | None, tuple[PodSelector, ...]]] = {}
        self._covered: dict[LabelSelector, set[str]] = {}  # namespace selector → namespaces it picks
        self._scopes: MultiMap[str, LabelSelector] = MultiMap()  # namespace → namespace selectors that pick it
        self._answers: dict[int, frozenset[PodSelector]] = {}  # of `matching`, until something changes

    # ---- questions

    def workload(self, identity: int) -> Workload | None:
        return self._workloads.get(identity)

    def matched(self, selector: PodSelector) -> Sequence[int]:
        """Identities a selector in use matches, sorted. Do not change it."""
        entry = self._entries[selector]
        if entry.matched is None:
            entry.matched = array("I", sorted(self._find(selector, entry.anchor, entry.filed)))
        return entry.matched

    def matches(self, selector: PodSelector, identity: int) -> bool:
        """Of a selector in use."""
        workload = self._workloads.get(identity)
        if workload is None:
            return False
        if selector.namespace is not None:
            inside = selector.namespace == workload.namespace
        else:
            inside = selector.namespaces is not None and workload.namespace in self._covered[selector.namespaces]
        return inside and selector.pods.matches(workload.labels)

    def matching(self, identity: int) -> frozenset[PodSelector]:
        """Selectors in use that match an identity; none where its workload is not known."""
        if (answer := self._answers.get(identity)) is None:
            workload = self._workloads.get(identity)
            answer = frozenset() if workload is None else frozenset(self._matching(workload))
            self._answers[identity] = answer
        return answer

    # ---- changes. Each returns what it toggled.

    def set_namespace(self, name: str, labels: Mapping[str, str] | None) -> list[tuple[PodSelector, int]]:
        """Labels None: the namespace is unknown, no label selector picks it (not even an empty one)."""
        if self._namespaces.get(name) == labels:
            return []
        self._answers.clear()
        if labels is None:
            del self._namespaces[name]
        else:
            self._namespaces[name] = labels
        before = self._scopes.get(name, set())
        after = set() if labels is None else {scope for scope in self._covered if scope.matches(labels)}
        toggled = [
            (selector, identity)
            for scope in before ^ after
            for selector in {s for filed in self._filed[scope].values() for s in filed}
            for identity in self._members.get(name, ())
            if selector.pods.matches(self._workloads[identity].labels)
        ]
        for selector, identity in toggled:
            self._entries[selector].toggle(identity)
        for scope in before - after:
            self._uncover(scope, name)
        for scope in after - before:
            self._cover(scope, name)
        return toggled

    def set_identity(self, identity: int, workload: Workload | None) -> list[PodSelector]:
        old = self._workloads.get(identity)
        if old == workload:
            return []
        self._answers.clear()
        before = set(self._matching(old)) if old is not None else set()
        after = set(self._matching(workload)) if workload is not None else set()
        if old is not None:
            self._forget(identity, old)
        if workload is not None:
            self._workloads[identity] = workload
            self._members.put(workload.namespace, identity)
            for label in workload.labels.items():
                self._labelled.put(label, identity)
        toggled = list(before ^ after)
        for selector in toggled:
            self._entries[selector].toggle(identity)
        return toggled

    def add(self, selector: PodSelector) -> None:
        """Use a selector; each use must be ended by `drop`."""
        if (entry := self._entries.get(selector)) is not None:
            entry.uses += 1
            return
        self._answers.clear()
        scope = _scope(selector)
        if isinstance(scope, LabelSelector) and scope not in self._covered:
            self._covered[scope] = set()
            for name, labels in self._namespaces.items():
                if scope.matches(labels):
                    self._cover(scope, name)
        anchor = self._anchor(selector.pods)
        filed: tuple[Label | None, ...] = (None,)
        if anchor is not None:
            filed = tuple((anchor.key, value) for value in sorted(anchor.values))
        self._entries[selector] = _Entry(anchor, filed)
        folder = self._filed.setdefault(scope, {})
        for label in filed:
            folder[label] = (*folder.get(label, ()), selector)

    def drop(self, selector: PodSelector) -> bool:
        """End one use. Whether it was the last: from now on nobody hears what the selector matches."""
        entry = self._entries[selector]
        entry.uses -= 1
        if entry.uses:
            return False
        self._answers.clear()
        del self._entries[selector]
        scope = _scope(selector)
        folder = self._filed[scope]
        for label in entry.filed:
            rest = tuple(s for s in folder[label] if s != selector)
            if rest:
                folder[label] = rest
            else:
                del folder[label]
        if not folder:
            self._close(scope)
        return True

    # ---- inside

    def _matching(self, workload: Workload) -> Iterator[PodSelector]:
        labels = workload.labels
        for scope in (workload.namespace, *self._scopes.get(workload.namespace, ())):
            folder = self._filed.get(scope)
            if folder is None:
                continue
            for label in (None, *labels.items()):
                for selector in folder.get(label, ()):
                    if selector.pods.matches(labels):
                        yield selector

    def _find(
        self, selector: PodSelector, anchor: Requirement | None, filed: tuple[Label | None, ...]
    ) -> Iterator[int]:
        """Identities that match, found through its namespaces or its anchor label, whichever are fewer."""
        scope = _scope(selector)
        namespaces: Collection[str] = (scope,) if isinstance(scope, str) else self._covered[scope]
        by_namespace: list[Set[int]] = [self._members.get(name, set()) for name in namespaces]
        candidates, rest = by_namespace, selector.pods.requirements
        if anchor is not None:
            by_label: list[Set[int]] = [self._labelled.get(label, set()) for label in filed if label is not None]
            if sum(map(len, by_label)) < sum(map(len, by_namespace)):
                candidates, rest = by_label, rest - {anchor}
        workloads = self._workloads
        for identities in candidates:
            for identity in identities:
                workload = workloads[identity]
                if (candidates is by_namespace or workload.namespace in namespaces) and all(
                    r.matches(workload.labels) for r in rest
                ):
                    yield identity

    def _close(self, scope: Scope) -> None:
        """The last selector of a scope is gone."""
        del self._filed[scope]
        if isinstance(scope, LabelSelector):
            for name in tuple(self._covered[scope]):
                self._uncover(scope, name)
            del self._covered[scope]

    def _anchor(self, pods: LabelSelector) -> Requirement | None:
        """The In requirement that fewest identities meet at present."""
        return min(
            (r for r in pods.requirements if r.operator is Operator.IN),
            key=lambda r: (sum(len(self._labelled.get((r.key, v), ())) for v in r.values), len(r.values), r.key),
            default=None,
        )

    def _forget(self, identity: int, workload: Workload) -> None:
        del self._workloads[identity]
        self._members.take(workload.namespace, identity)
        for label in workload.labels.items():
            self._labelled.take(label, identity)

    def _cover(self, scope: LabelSelector, namespace: str) -> None:
        self._covered[scope].add(namespace)
        self._scopes.put(namespace, scope)

    def _uncover(self, scope: LabelSelector, namespace: str) -> None:
        self._covered[scope].discard(namespace)
        self._scopes.take(namespace, scope)


def _scope(selector: PodSelector) -> Scope:
    if selector.namespace is not None:
        return selector.namespace
    assert selector.namespaces is not None, "a PodSelector has a namespace or a namespace selector"
    return selector.namespaces

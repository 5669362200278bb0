"""The policy state of a node, kept incrementally: the rows of its subjects, and which must be compiled again."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Set
from itertools import chain

from policies.address import Prefix
from policies.applying import Applying
from policies.classes import ClassIndex, named_ports
from policies.compile import Side, named_by
from policies.differences import Trait, differing, force, traits_of
from policies.entities import entities_of
from policies.model import (
    Direction,
    Mark,
    ObjectRef,
    PodSelector,
    Policy,
    RemoteClass,
    Row,
    Subject,
    Workload,
)
from policies.multimap import MultiMap
from policies.selectors import SelectorIndex
from policies.stale import MANY_CLASSES, NO_CLASSES, Stale
from policies.terms import PortName, TermCount, Terms


class PolicyIndex:
    """Namespaces, identities, policies, the remote classes in use and the local subjects.

    Order of calls does not matter; `take_dirty` tells what changed in the result. A subject whose identity has no
    known workload is denied everything: nobody can say which policies isolate it.
    `enforce_always`: every subject is isolated in both directions, whatever selects it.
    """

    def __init__(self, *, enforce_always: bool = False) -> None:
        self._enforce_always = enforce_always
        self._selectors = SelectorIndex()
        self._classes = ClassIndex(self._selectors)
        self._terms = TermCount()
        self._policies: dict[ObjectRef, Policy] = {}
        self._applying = Applying(self._selectors)
        self._asking: MultiMap[Trait, ObjectRef] = MultiMap()  # trait → policies with a rule that asks for it
        self._sides: dict[tuple[Subject, Direction], Side] = {}
        self._stale = Stale()

    # ---- changes

    def set_namespace(self, name: str, labels: Mapping[str, str] | None) -> None:
        """Labels with kubernetes.io/metadata.name; None where the namespace is gone."""
        toggled = self._selectors.set_namespace(name, labels)
        if toggled:
            self._classes.forget_answers()
        for selector, identity in toggled:
            self._toggled(selector, identity)

    def set_identity(self, identity: int, workload: Workload | None) -> None:
        known = self._selectors.workload(identity) is not None
        toggled = self._selectors.set_identity(identity, workload)
        if toggled:
            self._classes.forget_answers()
        for selector in toggled:
            self._toggled(selector, identity)
        if known is not (workload is not None):
            self._dirty_whole(identity)

    def set_policy(self, ref: ObjectRef, policy: Policy | None) -> None:
        old = self._policies.get(ref)
        if policy is None:
            self._policies.pop(ref, None)
        else:
            self._policies[ref] = policy
        if force(old) == force(policy):
            return
        self._terms.replace(old, policy)
        if policy is not None:
            self._enter(policy)
        concerned = any(one is not None and self._applying.is_active(one.subject) for one in (old, policy))
        touched = self._touched(old, policy) if concerned else NO_CLASSES
        if old is not None:
            self._dirty_selected(old, policy, touched)
            self._leave(old, policy)
        if policy is not None:
            self._dirty_selected(policy, old, touched)

    def add_class(self, remote: RemoteClass) -> None:
        """An address has this class now. Counting the addresses is up to the caller."""
        if self._classes.add(remote):
            self._dirty_class(remote)

    def drop_class(self, remote: RemoteClass) -> None:
        if self._classes.drop(remote):
            self._dirty_class(remote)

    def add_subject(self, subject: Subject) -> None:
        """A local pod is this subject now. Counting the pods is up to the caller."""
        if self._applying.add(subject):
            self._spoil(subject)

    def drop_subject(self, subject: Subject) -> None:
        """No local pod is this subject any more; its entries are the caller's to delete."""
        if self._applying.drop(subject):
            self._forget_sides(subject, Direction)
            self._stale.forget(subject)

    # ---- what changed

    def take_dirty(self) -> dict[Subject, Set[RemoteClass] | None]:
        """Subjects in use whose rows may have changed since the last call: in these classes, or (None) in any.

        Classes may be ones that were dropped meanwhile: their entries are to be deleted.
        """
        return self._stale.take()

    def take_changed_terms(self) -> Terms:
        """Prefixes, port names and marks that came into use or went out of it since the last call.

        Addresses under these prefixes or with these marks, and pods with ports of these names, may have another class
        or subject now.
        """
        return self._terms.take_changed()

    # ---- what is in force

    def prefixes(self) -> Set[Prefix]:
        """Blocks and excepts of CIDR peers: those covering an address belong into its RemoteClass. A live view."""
        return self._terms.prefixes()

    def egress_port_names(self) -> Set[PortName]:
        """Names that egress rules use: such ports of a remote pod belong into its RemoteClass. A live view."""
        return self._terms.egress_ports()

    def ingress_port_names(self) -> Set[PortName]:
        """Names that ingress rules use: such ports of a local pod belong into its Subject. A live view."""
        return self._terms.ingress_ports()

    def marks(self) -> Set[Mark]:
        """What rules ask the World about an address: those it has belong into its RemoteClass. A live view."""
        return self._terms.marks()

    def rows(
        self, subject: Subject, classes: Set[RemoteClass] | None = None
    ) -> Iterator[tuple[Direction, Row, Iterable[RemoteClass] | None]]:
        """Every row of a subject with the classes that have it, or None: that of any other remote.

        A class's own row holds all that applies to it, rules for any remote included. No entry at all is a deny.
        With `classes`: the rows of these alone; one that has none falls to the row of any remote.
        """
        if self._selectors.workload(subject.identity) is None:
            return
        for direction in Direction:
            for row, remotes in self._side(subject, direction).rows(self._classes, classes):
                yield direction, row, remotes

    def compile(
        self, subject: Subject, classes: Set[RemoteClass] | None = None
    ) -> dict[tuple[Direction, RemoteClass | None], Row]:
        """The same as one entry for each class."""
        found: dict[tuple[Direction, RemoteClass | None], Row] = {}
        for direction, row, remotes in self.rows(subject, classes):
            found.update(dict.fromkeys([(direction, remote) for remote in remotes or (None,)], row))
        return found

    def policies(self) -> Iterable[Policy]:
        return self._policies.values()

    def policy(self, ref: ObjectRef) -> Policy | None:
        return self._policies.get(ref)

    def policies_of(self, subject: Subject) -> list[Policy]:
        """Policies that select a subject, by name."""
        return [self._policies[ref] for ref in sorted(self._applying.policies(subject.identity))]

    def subjects_of(self, ref: ObjectRef) -> set[Subject]:
        """Local subjects that a policy selects."""
        policy = self._policies.get(ref)
        return set() if policy is None else set(self._applying.selected(policy.subject))

    def problems(self) -> list[Policy]:
        """Policies that could not be understood, and only isolate."""
        return sorted((p for p in self._policies.values() if p.problem), key=lambda p: p.ref)

    # ---- inside: policies

    def _enter(self, policy: Policy) -> None:
        self._selectors.add(policy.subject)
        self._applying.enter(policy.ref, policy.subject)
        for trait in traits_of(policy):
            if isinstance(trait, PodSelector):
                self._selectors.add(trait)
            self._asking.put(trait, policy.ref)

    def _leave(self, old: Policy, successor: Policy | None) -> None:
        """`successor` has entered already, under the same ref: what both ask for stays."""
        kept = set() if successor is None else traits_of(successor)
        for trait in traits_of(old):
            if isinstance(trait, PodSelector):
                self._drop_selector(trait)
            if trait not in kept:
                self._asking.take(trait, old.ref)
        self._applying.leave(old.ref, old.subject, None if successor is None else successor.subject)
        self._drop_selector(old.subject)

    def _drop_selector(self, selector: PodSelector) -> None:
        if self._selectors.drop(selector):
            self._classes.forget_answer(selector)

    def _side(self, subject: Subject, direction: Direction) -> Side:
        key = (subject, direction)
        side = self._sides.get(key)
        if side is None:
            side = Side(subject, direction, self.policies_of(subject), isolated=self._enforce_always)
            if subject in self._applying:
                self._sides[key] = side
        return side

    # ---- inside: what is dirty

    def _toggled(self, selector: PodSelector, identity: int) -> None:
        """A selector matches an identity now, or does so no more."""
        if self._applying.toggle(selector, identity):
            self._dirty_whole(identity)
        classes = self._classes.of_identity(identity)
        if classes and selector in self._asking:
            self._dirty_classes(selector, classes)

    def _touched(self, old: Policy | None, new: Policy | None) -> frozenset[RemoteClass] | None:
        """Classes of which some rule came or went. None: rules about any remote, or too many to go through."""
        touched: set[RemoteClass] = set()
        for rule in differing(old, new):
            if rule.peers is None or (rule.ref.direction is Direction.EGRESS and named_by((rule,))):
                return None
            for peer in rule.peers:
                touched |= self._classes.matched(peer)
        return frozenset(touched) if len(touched) < MANY_CLASSES else None

    def _dirty_selected(self, policy: Policy, other: Policy | None, touched: frozenset[RemoteClass] | None) -> None:
        """`other` is what the policy was, or is now; between them the rows of `touched` classes differ."""
        same_subject = other is not None and other.subject == policy.subject
        changed = policy.isolates ^ other.isolates if other is not None and same_subject else policy.isolates
        directions = changed | {rule.ref.direction for rule in differing(policy, other)}
        for subject in self._applying.selected(policy.subject):
            if touched is None or (other is not None and not same_subject):
                self._spoil(subject)
            elif all(self._isolated_besides(subject, direction, policy.ref) for direction in changed):
                self._stale.in_all(subject, touched)  # rules came or went, but what any remote may is as before
                self._forget_sides(subject, directions)
            else:
                self._spoil(subject)

    def _isolated_besides(self, subject: Subject, direction: Direction, ref: ObjectRef) -> bool:
        """Whether another policy isolates a subject, too, or it is isolated anyhow."""
        if self._enforce_always:
            return True
        others = (other for other in self._applying.policies(subject.identity) if other != ref)
        return any(direction in self._policies[other].isolates for other in others)

    def _dirty_whole(self, identity: int) -> None:
        for subject in self._applying.of_identity(identity):
            self._spoil(subject)

    def _spoil(self, subject: Subject) -> None:
        self._stale.whole(subject)
        self._forget_sides(subject, Direction)

    def _forget_sides(self, subject: Subject, directions: Iterable[Direction]) -> None:
        """What was compiled of a subject so far."""
        for direction in directions:
            self._sides.pop((subject, direction), None)

    def _dirty_class(self, remote: RemoteClass) -> None:
        """A class came into use or went out of it: subjects with rules that may tell it apart."""
        traits: Iterator[Trait] = chain(
            self._selectors.matching(remote.identity),
            remote.prefixes,
            named_ports(remote),
            entities_of(remote),
            remote.marks,
        )
        for trait in traits:
            if trait in self._asking:
                self._dirty_classes(trait, (remote,))

    def _dirty_classes(self, trait: Trait, classes: Iterable[RemoteClass]) -> None:
        for ref in self._asking[trait] & self._applying.active:
            for subject in self._applying.selected(self._policies[ref].subject):
                self._stale.add(subject, classes)

"""An index that followed changes equals one built anew, and what it did not report dirty did not change."""

from __future__ import annotations

from collections.abc import Callable
from random import Random

import strategies
from hypothesis import given, settings
from hypothesis import strategies as st

from policies.address import Prefix
from policies.index import PolicyIndex
from policies.model import ContainerPort, Direction, ObjectRef, Policy, RemoteClass, Row, Subject, Workload

Entries = dict[tuple[Direction, RemoteClass | None], Row]

NUMBERS = range(300, 306)
PORTS = [ContainerPort(name, 6, number) for name in strategies.PORT_NAMES for number in (80, 81)]
PREFIXES = [Prefix.parse(text) for text in strategies.BLOCKS] + [Prefix.parse("10.1.0.0/24"), Prefix.parse("fd00::/8")]


class Model:
    """What is in force, and the entries a plan would hold that follows take_dirty."""

    def __init__(self) -> None:
        self.index = PolicyIndex()
        self.namespaces: dict[str, dict[str, str]] = {}
        self.workloads: dict[int, Workload] = {}
        self.policies: dict[ObjectRef, Policy] = {}
        self.classes: set[RemoteClass] = set()
        self.subjects: set[Subject] = set()
        self.entries: dict[Subject, Entries] = {}

    def follow(self) -> None:
        for subject, classes in self.index.take_dirty().items():
            if classes is None:
                self.entries[subject] = self.index.compile(subject)
                continue
            entries = self.entries[subject]
            for remote in classes:
                for direction in Direction:
                    entries.pop((direction, remote), None)
                entries.update(self.index.compile_class(subject, remote))
        self.entries = {s: e for s, e in self.entries.items() if s in self.subjects}

    def rebuilt(self, random: Random) -> PolicyIndex:
        """The same state, entered in another order."""
        index = PolicyIndex()
        steps: list[Callable[[], None]] = []
        steps += [lambda n=n, v=v: index.set_namespace(n, v) for n, v in self.namespaces.items()]  # type: ignore[misc]
        steps += [lambda n=n, v=v: index.set_identity(n, v) for n, v in self.workloads.items()]  # type: ignore[misc]
        steps += [lambda r=r, p=p: index.set_policy(r, p) for r, p in self.policies.items()]  # type: ignore[misc]
        steps += [lambda c=c: index.add_class(c) for c in self.classes]  # type: ignore[misc]
        steps += [lambda s=s: index.add_subject(s) for s in self.subjects]  # type: ignore[misc]
        random.shuffle(steps)
        for step in steps:
            step()
        return index


Event = Callable[[Model], None]


def set_namespace(name: str, labels: dict[str, str] | None) -> Event:
    def apply(model: Model) -> None:
        model.namespaces.pop(name, None)
        if labels is not None:
            model.namespaces[name] = labels
        model.index.set_namespace(name, labels)

    return apply


def set_identity(number: int, workload: Workload | None) -> Event:
    def apply(model: Model) -> None:
        model.workloads.pop(number, None)
        if workload is not None:
            model.workloads[number] = workload
        model.index.set_identity(number, workload)

    return apply


def set_policy(raw: strategies.Raw, present: bool) -> Event:
    def apply(model: Model) -> None:
        ref = strategies.policy_ref(raw)
        policy = strategies.parsed(raw) if present else None
        model.policies.pop(ref, None)
        if policy is not None:
            model.policies[ref] = policy
        model.index.set_policy(ref, policy)

    return apply


def set_class(remote: RemoteClass, present: bool) -> Event:
    def apply(model: Model) -> None:
        (model.classes.add if present else model.classes.discard)(remote)
        (model.index.add_class if present else model.index.drop_class)(remote)

    return apply


def set_subject(subject: Subject, present: bool) -> Event:
    def apply(model: Model) -> None:
        (model.subjects.add if present else model.subjects.discard)(subject)
        (model.index.add_subject if present else model.index.drop_subject)(subject)

    return apply


def events() -> st.SearchStrategy[Event]:
    numbers = st.sampled_from(NUMBERS)
    names = st.sampled_from(strategies.NAMESPACES)
    ports = st.frozensets(st.sampled_from(PORTS), max_size=2)
    workloads = st.builds(Workload, names, strategies.label_maps())
    classes = st.builds(RemoteClass, st.one_of(numbers, st.just(2)), st.frozensets(st.sampled_from(PREFIXES)), ports)
    policies = st.sampled_from(("p", "q", "r")).flatmap(lambda name: strategies.policies(name=name))
    mostly = st.sampled_from((True, True, True, False))
    return st.one_of(
        st.builds(set_namespace, names, st.one_of(strategies.label_maps(), st.none())),
        st.builds(set_identity, numbers, st.one_of(workloads, workloads, st.none())),
        st.builds(set_policy, policies, mostly),
        st.builds(set_class, classes, mostly),
        st.builds(set_subject, st.builds(Subject, numbers, ports), mostly),
    )


@given(batches=st.lists(st.lists(events(), min_size=1, max_size=6), min_size=1, max_size=8), seed=st.integers(0, 99))
@settings(max_examples=200, deadline=None, print_blob=True)
def test_follows_random_events(batches: list[list[Event]], seed: int) -> None:
    model = Model()
    for batch in batches:
        for event in batch:
            event(model)
        model.follow()
        rebuilt = model.rebuilt(Random(seed))
        assert set(model.entries) == model.subjects
        for subject in model.subjects:
            assert model.entries[subject] == rebuilt.compile(subject)
            assert model.index.policies_of(subject) == rebuilt.policies_of(subject)
        assert model.index.prefixes() == rebuilt.prefixes()
        assert model.index.egress_port_names() == rebuilt.egress_port_names()
        assert model.index.ingress_port_names() == rebuilt.ingress_port_names()

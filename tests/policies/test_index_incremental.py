"""An index that followed changes equals one built anew, and what it did not report dirty did not change."""

from __future__ import annotations

import os
from collections.abc import Callable
from random import Random
from typing import TypeVar

import drawn_policies
import msgspec
import strategies
from hypothesis import given, settings
from hypothesis import strategies as st

from policies.address import Prefix
from policies.entities import LOCAL_MIN
from policies.index import PolicyIndex
from policies.model import Action, ContainerPort, Direction, ObjectRef, Policy, RemoteClass, Row, Subject, Workload

Entries = dict[tuple[Direction, RemoteClass | None], Row]

EXAMPLES = int(os.environ.get("GATEHOUSE_EXAMPLES", "100"))
NUMBERS = range(300, 305)
POLICY_NAMES = ("p", "q", "r")
PORTS = [ContainerPort(name, 6, number) for name in strategies.PORT_NAMES for number in (80, 81)]
PREFIXES = [Prefix.parse(text) for text in strategies.BLOCKS] + [Prefix.parse("10.1.0.0/24"), Prefix.parse("fd00::/8")]


class Model:
    """What is in force, and the entries a plan would hold that follows take_dirty."""

    def __init__(self, *, enforce_always: bool = False) -> None:
        self.enforce_always = enforce_always
        self.index = PolicyIndex(enforce_always=enforce_always)
        self.namespaces: dict[str, dict[str, str]] = {}
        self.workloads: dict[int, Workload] = {}
        self.policies: dict[ObjectRef, Policy] = {}
        self.manifests: dict[ObjectRef, strategies.Raw] = {}
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
            entries.update(self.index.compile(subject, classes))
        self.entries = {s: e for s, e in self.entries.items() if s in self.subjects}

    def rebuilt(self, random: Random) -> PolicyIndex:
        """The same state, entered in another order."""
        index = PolicyIndex(enforce_always=self.enforce_always)
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


class SetNamespace(msgspec.Struct):
    name: str
    labels: dict[str, str] | None

    def apply(self, model: Model) -> None:
        put(model.namespaces, self.name, self.labels)
        model.index.set_namespace(self.name, self.labels)


class SetIdentity(msgspec.Struct):
    number: int
    workload: Workload | None

    def apply(self, model: Model) -> None:
        put(model.workloads, self.number, self.workload)
        model.index.set_identity(self.number, self.workload)


class SetPolicy(msgspec.Struct):
    raw: strategies.Raw
    present: bool = True

    def apply(self, model: Model) -> None:
        ref = strategies.policy_ref(self.raw)
        policy = strategies.parsed(self.raw) if self.present else None
        put(model.policies, ref, policy)
        put(model.manifests, ref, self.raw if self.present else None)
        model.index.set_policy(ref, policy)


class AppendRule(msgspec.Struct):
    """To a policy that is there, which keeps all its other rules: the new version shares most with the old."""

    position: int
    section: str
    rule: strategies.Raw

    def apply(self, model: Model) -> None:
        if not model.manifests:
            return
        raw = model.manifests[sorted(model.manifests)[self.position % len(model.manifests)]]
        rules = [*raw["spec"].get(self.section, ()), self.rule]
        SetPolicy({**raw, "spec": {**raw["spec"], self.section: rules}}).apply(model)


class SetValue(msgspec.Struct):
    """A policy of any kind."""

    policy: Policy
    present: bool = True

    def apply(self, model: Model) -> None:
        policy = self.policy if self.present else None
        put(model.policies, self.policy.ref, policy)
        model.index.set_policy(self.policy.ref, policy)


class ChangeValue(msgspec.Struct):
    """A policy that is there becomes another in one respect, or takes rules of another."""

    position: int
    how: str
    other: Policy

    def apply(self, model: Model) -> None:
        values = sorted(ref for ref in model.policies if ref not in model.manifests)
        if not values:
            return
        old = model.policies[values[self.position % len(values)]]
        rules = {
            "reversed": old.rules[::-1],
            "fewer": old.rules[1:],
            "more": (*old.rules, *self.other.rules),
            "plain": tuple(msgspec.structs.replace(rule, l7=None) for rule in old.rules),
            "denying": tuple(msgspec.structs.replace(rule, action=Action.DENY, l7=None) for rule in old.rules),
        }.get(self.how, old.rules)
        new = msgspec.structs.replace(old, rules=rules)
        if self.how in ("isolates", "priority", "tier"):
            new = msgspec.structs.replace(old, **{self.how: getattr(self.other, self.how)})
        SetValue(new).apply(model)


class SetClass(msgspec.Struct):
    remote: RemoteClass
    present: bool = True

    def apply(self, model: Model) -> None:
        (model.classes.add if self.present else model.classes.discard)(self.remote)
        (model.index.add_class if self.present else model.index.drop_class)(self.remote)


class SetSubject(msgspec.Struct):
    subject: Subject
    present: bool = True

    def apply(self, model: Model) -> None:
        (model.subjects.add if self.present else model.subjects.discard)(self.subject)
        (model.index.add_subject if self.present else model.index.drop_subject)(self.subject)


Event = SetNamespace | SetIdentity | SetPolicy | AppendRule | SetValue | ChangeValue | SetClass | SetSubject

K = TypeVar("K")
V = TypeVar("V")


def put(known: dict[K, V], key: K, value: V | None) -> None:
    known.pop(key, None)
    if value is not None:
        known[key] = value


NAMES = st.sampled_from(strategies.NAMESPACES)
PORT_SETS = st.frozensets(st.sampled_from(PORTS), max_size=2)
WORKLOADS = st.builds(Workload, NAMES, strategies.label_maps())
SUBJECTS = st.builds(Subject, st.sampled_from(NUMBERS), PORT_SETS)
CLASSES = st.builds(
    RemoteClass,
    st.sampled_from((*NUMBERS, 1, 2, 3, 6, 9, 10, LOCAL_MIN)),
    st.frozensets(st.sampled_from(PREFIXES), max_size=3),
    PORT_SETS,
    st.frozensets(st.sampled_from(drawn_policies.PATTERNS) | drawn_policies.marks(), max_size=2),
)
VALUE_NAMES = ("v", "w")
CHANGES = ("reversed", "fewer", "more", "plain", "denying", "isolates", "priority", "tier")
VALUES = st.sampled_from(VALUE_NAMES).flatmap(drawn_policies.policies)


def events() -> st.SearchStrategy[Event]:
    policies = st.sampled_from(POLICY_NAMES).flatmap(lambda name: strategies.policies(name=name))
    mostly = st.sampled_from((True, True, True, False))
    return st.one_of(
        st.builds(SetNamespace, NAMES, strategies.label_maps() | st.none()),
        st.builds(SetIdentity, st.sampled_from(NUMBERS), WORKLOADS | WORKLOADS | st.none()),
        st.builds(SetPolicy, policies, mostly),
        st.builds(AppendRule, st.integers(0, 2), st.just("ingress"), strategies.rules("from")),
        st.builds(AppendRule, st.integers(0, 2), st.just("egress"), strategies.rules("to")),
        st.builds(SetValue, VALUES, mostly),
        st.builds(ChangeValue, st.integers(0, 2), st.sampled_from(CHANGES), VALUES),
        st.builds(ChangeValue, st.integers(0, 2), st.sampled_from(CHANGES), VALUES),
        st.builds(SetClass, CLASSES, mostly),
        st.builds(SetSubject, SUBJECTS, mostly),
    )


@st.composite
def beginnings(draw: st.DrawFn) -> list[Event]:
    """Something of everything, so that the events which follow meet it."""
    return [
        *(SetNamespace(name, draw(strategies.label_maps())) for name in strategies.NAMESPACES),
        *(SetIdentity(number, draw(WORKLOADS)) for number in NUMBERS),
        *(SetPolicy(draw(strategies.policies(name=name))) for name in POLICY_NAMES),
        *(SetValue(draw(drawn_policies.policies(name))) for name in VALUE_NAMES),
        *(SetClass(RemoteClass(number)) for number in NUMBERS),
        *(SetClass(remote) for remote in draw(st.lists(CLASSES, min_size=2, max_size=4))),
        *(SetSubject(Subject(number)) for number in NUMBERS),
        *(SetSubject(subject) for subject in draw(st.lists(SUBJECTS, max_size=2))),
    ]


@given(
    beginning=beginnings(),
    batches=st.lists(st.lists(events(), min_size=1, max_size=3), min_size=4, max_size=8),
    seed=st.integers(0, 99),
)
@settings(max_examples=EXAMPLES)
def test_follows_random_events(beginning: list[Event], batches: list[list[Event]], seed: int) -> None:
    model = Model()
    for batch in (beginning, *batches):
        for event in batch:
            event.apply(model)
        model.follow()
        assert_is_as_rebuilt(model, seed)


def assert_is_as_rebuilt(model: Model, seed: int) -> None:
    rebuilt = model.rebuilt(Random(seed))
    assert set(model.entries) == model.subjects
    for subject in model.subjects:
        assert model.entries[subject] == rebuilt.compile(subject)
        assert model.index.policies_of(subject) == rebuilt.policies_of(subject)
    assert model.index.prefixes() == rebuilt.prefixes()
    assert model.index.marks() == rebuilt.marks()
    assert model.index.egress_port_names() == rebuilt.egress_port_names()
    assert model.index.ingress_port_names() == rebuilt.ingress_port_names()


@st.composite
def few_things(draw: st.DrawFn) -> list[list[Event]]:
    """A few things, each in two states: as it is, and gone or another."""
    labels = st.sampled_from(({}, {"app": "a"}, {"app": "b"}))
    both: list[list[Event]] = [
        [SetNamespace(n, draw(labels)), SetNamespace(n, draw(labels | st.none()))] for n in strategies.NAMESPACES
    ]
    both += [[SetIdentity(n, draw(WORKLOADS)), SetIdentity(n, draw(WORKLOADS | st.none()))] for n in NUMBERS[:3]]
    shared = draw(strategies.policies(name="of"))["spec"]["podSelector"]
    for name in POLICY_NAMES[:2]:  # in one namespace, with one selector now and then
        raw, other = draw(strategies.policies(name=name)), draw(strategies.policies(name=name))
        if draw(st.booleans()):
            raw = {**raw, "metadata": {**raw["metadata"], "namespace": "blue"}}
            raw["spec"] = {**raw["spec"], "podSelector": shared}
        other = {**other, "metadata": raw["metadata"]}  # another version of the same policy
        both.append([SetPolicy(raw), SetPolicy(other, draw(st.booleans()))])
    for name in VALUE_NAMES:
        value = draw(drawn_policies.policies(name))
        both.append([SetValue(value), SetValue(value, False)])
    both += [
        [SetClass(c), SetClass(c, False)]
        for c in dict.fromkeys((RemoteClass(300), RemoteClass(301), *draw(st.lists(CLASSES, max_size=3))))
    ]
    both += [
        [SetSubject(s), SetSubject(s, False)]
        for s in dict.fromkeys((Subject(300), Subject(301), *draw(st.lists(SUBJECTS, max_size=1))))
    ]
    return both


@given(
    things=few_things(),
    batches=st.lists(st.lists(st.integers(0, 99), min_size=1, max_size=6), min_size=10, max_size=40),
    enforce_always=st.booleans(),
    seed=st.integers(0, 99),
)
@settings(max_examples=EXAMPLES)
def test_what_goes_may_come_back(
    things: list[list[Event]], batches: list[list[int]], enforce_always: bool, seed: int
) -> None:
    """Few things that come and go again and again, several between two looks: a subject that is back, a policy that
    selects somebody once more, a class that was in use before."""
    model = Model(enforce_always=enforce_always)
    for batch in batches:
        for number in batch:
            things[number % len(things)].append(things[number % len(things)].pop(0))
            things[number % len(things)][-1].apply(model)
        model.follow()
        assert_is_as_rebuilt(model, seed)

"""The selector index against matching every selector with every identity, after every step of random events."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping

import msgspec
import pytest
import strategies
from hypothesis import given, settings
from hypothesis import strategies as st

from policies.facts import PodFacts
from policies.fields import Field
from policies.labelselector import parse_selector
from policies.matching import selects
from policies.model import LabelSelector, Operator, PodSelector, Requirement, Workload
from policies.selectors import SelectorIndex


class Model:
    def __init__(self) -> None:
        self.index = SelectorIndex()
        self.namespaces: dict[str, dict[str, str]] = {}
        self.workloads: dict[int, Workload] = {}
        self.uses: Counter[PodSelector] = Counter()

    def expected(self) -> dict[PodSelector, list[int]]:
        facts = {n: PodFacts(w.namespace, "", w.labels) for n, w in sorted(self.workloads.items())}
        return {s: [n for n, pod in facts.items() if selects(s, pod, self.namespaces)] for s in self.uses}


Toggled = set[tuple[PodSelector, int]] | None
"""What the index said was toggled; None where selectors themselves came or went."""


class SetNamespace(msgspec.Struct):
    name: str
    labels: dict[str, str] | None

    def apply(self, model: Model) -> Toggled:
        model.namespaces.pop(self.name, None)
        if self.labels is not None:
            model.namespaces[self.name] = self.labels
        return set(model.index.set_namespace(self.name, self.labels))


class SetIdentity(msgspec.Struct):
    number: int
    workload: Workload | None

    def apply(self, model: Model) -> Toggled:
        model.workloads.pop(self.number, None)
        if self.workload is not None:
            model.workloads[self.number] = self.workload
        return {(selector, self.number) for selector in model.index.set_identity(self.number, self.workload)}


class Use(msgspec.Struct):
    selector: PodSelector

    def apply(self, model: Model) -> Toggled:
        model.uses[self.selector] += 1
        model.index.add(self.selector)
        return None


class EndUse(msgspec.Struct):
    position: int

    def apply(self, model: Model) -> Toggled:
        used = list(model.uses)
        if used:
            selector = used[self.position % len(used)]
            model.uses[selector] -= 1
            model.uses += Counter()
            model.index.drop(selector)
        return None


Event = SetNamespace | SetIdentity | Use | EndUse


def label_selectors() -> st.SearchStrategy[LabelSelector]:
    return strategies.selectors().map(lambda raw: parse_selector(Field(raw, "", [])))


def events() -> st.SearchStrategy[Event]:
    names = st.sampled_from((*strategies.NAMESPACES, "red"))
    labels = strategies.label_maps()
    pod_selectors = st.one_of(
        st.builds(PodSelector, label_selectors(), namespace=names),
        st.builds(PodSelector, label_selectors(), namespaces=label_selectors()),
    )
    return st.one_of(
        st.builds(SetNamespace, names, labels | st.none()),
        st.builds(SetIdentity, st.integers(300, 307), st.builds(Workload, names, labels) | st.none()),
        st.builds(SetIdentity, st.integers(300, 307), st.builds(Workload, names, labels)),
        st.builds(Use, pod_selectors),
        st.builds(Use, pod_selectors),
        st.builds(EndUse, st.integers(0, 9)),
    )


@given(st.lists(events(), min_size=1, max_size=25))
@settings(max_examples=300)
def test_follows_random_events(drawn: list[Event]) -> None:
    model = Model()
    before: set[tuple[PodSelector, int]] = set()
    for event in drawn:
        toggled = event.apply(model)
        expected = model.expected()
        after = {(s, n) for s, numbers in expected.items() for n in numbers}
        assert {s: list(model.index.matched(s)) for s in model.uses} == expected
        assert toggled is None or toggled == before ^ after
        before = after
        for number in (*model.workloads, 999):
            assert model.index.matching(number) == {s for s, n in after if n == number}
            assert all(model.index.matches(s, number) is ((s, number) in after) for s in model.uses)


def counted(patch: pytest.MonkeyPatch) -> Counter[str]:
    """Counts how often a label selector is compared with labels: the work that indexes are there to avoid."""
    calls: Counter[str] = Counter()
    matches = Requirement.matches

    def counting(self: Requirement, labels: Mapping[str, str]) -> bool:
        calls["matches"] += 1
        return matches(self, labels)

    patch.setattr(Requirement, "matches", counting)
    return calls


def test_ten_thousand_selectors_cost_an_identity_only_those_near_it(monkeypatch: pytest.MonkeyPatch) -> None:
    index = SelectorIndex()
    for n in range(100):
        index.set_namespace(f"ns-{n}", {"team": f"team-{n % 10}"})
    for n in range(5000):
        app = LabelSelector(frozenset({Requirement("app", Operator.IN, frozenset({f"app-{n % 50}"}))}))
        team = LabelSelector(frozenset({Requirement("team", Operator.IN, frozenset({f"team-{n % 10}"}))}))
        index.add(PodSelector(app, namespace=f"ns-{n % 100}"))
        index.add(PodSelector(app, namespaces=team))
    calls = counted(monkeypatch)
    index.set_identity(300, Workload("ns-7", {"app": "app-7", "env": "prod"}))
    assert len(index.matching(300)) == 2
    assert calls["matches"] <= 10


def test_ten_thousand_identities_cost_a_selector_only_those_near_it(monkeypatch: pytest.MonkeyPatch) -> None:
    index = SelectorIndex()
    for n in range(10_000):
        index.set_identity(300 + n, Workload(f"ns-{n % 100}", {"app": f"app-{n // 100}", "env": "prod"}))
    calls = counted(monkeypatch)
    app = Requirement("app", Operator.IN, frozenset({"app-7"}))
    env = Requirement("env", Operator.EXISTS)
    selector = PodSelector(LabelSelector(frozenset({app, env})), namespace="ns-7")
    index.add(selector)
    assert list(index.matched(selector)) == [300 + 707]
    assert calls["matches"] <= 250

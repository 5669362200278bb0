"""The selector index against matching every selector with every identity, after every step of random events."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable

import strategies
from hypothesis import given, settings
from hypothesis import strategies as st

from policies.evaluate import PodFacts, selects
from policies.fields import Field
from policies.labelselector import parse_selector
from policies.model import LabelSelector, PodSelector, Workload
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


Event = Callable[[Model], set[tuple[PodSelector, int]] | None]
"""Applies itself and gives what the index said was toggled; None where selectors themselves came or went."""


def set_namespace(name: str, labels: dict[str, str] | None) -> Event:
    def apply(model: Model) -> set[tuple[PodSelector, int]]:
        model.namespaces.pop(name, None)
        if labels is not None:
            model.namespaces[name] = labels
        return set(model.index.set_namespace(name, labels))

    return apply


def set_identity(number: int, workload: Workload | None) -> Event:
    def apply(model: Model) -> set[tuple[PodSelector, int]]:
        model.workloads.pop(number, None)
        if workload is not None:
            model.workloads[number] = workload
        return {(selector, number) for selector in model.index.set_identity(number, workload)}

    return apply


def use(selector: PodSelector) -> Event:
    def apply(model: Model) -> None:
        model.uses[selector] += 1
        model.index.add(selector)

    return apply


def end_use(position: int) -> Event:
    def apply(model: Model) -> None:
        used = list(model.uses)
        if used:
            selector = used[position % len(used)]
            model.uses[selector] -= 1
            model.uses += Counter()
            model.index.drop(selector)

    return apply


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
        st.builds(set_namespace, names, labels | st.none()),
        st.builds(set_identity, st.integers(300, 307), st.builds(Workload, names, labels) | st.none()),
        st.builds(set_identity, st.integers(300, 307), st.builds(Workload, names, labels)),
        st.builds(use, pod_selectors),
        st.builds(use, pod_selectors),
        st.builds(end_use, st.integers(0, 9)),
    )


@given(st.lists(events(), min_size=1, max_size=25))
@settings(max_examples=300, deadline=None, print_blob=True)
def test_follows_random_events(drawn: list[Event]) -> None:
    model = Model()
    for event in drawn:
        before = {(s, n) for s, numbers in model.expected().items() for n in numbers}
        toggled = event(model)
        expected = model.expected()
        after = {(s, n) for s, numbers in expected.items() for n in numbers}
        assert {s: list(model.index.matched(s)) for s in model.uses} == expected
        assert toggled is None or toggled == before ^ after
        for number in (*model.workloads, 999):
            assert model.index.matching(number) == {s for s, n in after if n == number}
            assert all(model.index.matches(s, number) is ((s, number) in after) for s in model.uses)

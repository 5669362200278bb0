"""When flows that live are looked for again, whatever comes while they are."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Mapping
from typing import Any

import pytest

from agent.plan.ids import Asked
from agent.plan.live import LiveFlow, Otherwise
from agent.plan.plan import Plan
from agent.proxy import rules
from agent.proxy.rules import LiveRules
from policies.l7 import L7
from policies.model import Direction

ONE, OTHER = bytes(15) + b"\1", bytes(15) + b"\2"
ASKED = Asked(Direction.EGRESS, frozenset({L7(http=frozenset())}))
WAIT_S = 30.0


class Side:
    def __init__(self) -> None:
        self.lingering: dict[int, Asked] = {}
        self.told_of: list[tuple[set[int], frozenset[int]]] = []

    def judge_otherwise(self, overrides: Mapping[int, tuple[Otherwise, ...]], alive: frozenset[int]) -> None:
        self.told_of.append((set(overrides), alive))

    async def told(self) -> None:
        pass


class Bench:
    """`otherwise`: listeners of which a flow is judged otherwise. `meanwhile` is called once while flows are read."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.looked: list[frozenset[int]] = []
        self.otherwise: set[int] = set()
        self.meanwhile: Callable[[], None] = lambda: None
        self.side = Side()
        monkeypatch.setattr(rules, "live_flows", self._live_flows)
        monkeypatch.setattr(rules, "judged_otherwise", self._judged)
        monkeypatch.setattr(rules, "AGAIN_S", (0.001, 0.001))
        self.rules = LiveRules(Plan(), None, self.side)  # type: ignore[arg-type]

    async def _live_flows(self, _: Any, wanted: frozenset[int]) -> list[LiveFlow]:
        self.looked.append(frozenset(wanted))
        await asyncio.sleep(0)
        self.meanwhile()
        self.meanwhile = lambda: None
        return [LiveFlow(b"", listener, ONE, OTHER, 6, 80) for listener in wanted]

    def _judged(self, flows: list[LiveFlow], *_: Any) -> dict[int, tuple[Otherwise, ...]]:
        found = {flow.listener for flow in flows} & self.otherwise
        return {listener: (Otherwise(ONE, OTHER, 80, None),) for listener in found}

    async def settled(self) -> None:
        async with asyncio.timeout(WAIT_S):
            await self.rules.settled()

    def run(self, story: Callable[[], Any]) -> None:
        async def work() -> None:
            running = asyncio.create_task(self.rules.run())
            try:
                await story()
            finally:
                running.cancel()
                await asyncio.gather(running, return_exceptions=True)

        asyncio.run(work())


@pytest.fixture
def bench(monkeypatch: pytest.MonkeyPatch) -> Bench:
    return Bench(monkeypatch)


def test_without_change_nothing_is_looked_for(bench: Bench) -> None:
    async def story() -> None:
        bench.rules.changed(frozenset())
        await bench.settled()

    bench.run(story)
    assert bench.looked == []


def test_what_changes_while_flows_are_read_is_looked_for_in_turn(bench: Bench) -> None:
    bench.meanwhile = lambda: bench.rules.changed(frozenset({2}))

    async def story() -> None:
        bench.rules.changed(frozenset({1}))
        await bench.settled()

    bench.run(story)
    assert bench.looked[0] == {1}
    assert bench.looked[1] == {1, 2}, "the first once more, too: some of its flows had not been seen yet"


def test_what_is_judged_otherwise_is_watched_at_every_change(bench: Bench) -> None:
    """A flow that is denied has no row that redirects: what changes next does not name its listener."""
    bench.otherwise = {1}

    async def story() -> None:
        bench.rules.changed(frozenset({1}))
        await bench.settled()
        before = len(bench.looked)
        bench.rules.changed(frozenset())
        await bench.settled()
        assert len(bench.looked) > before
        assert 1 in bench.looked[-1]

    bench.run(story)


def test_what_begins_to_linger_while_flows_are_read_is_not_said_to_be_dead(bench: Bench) -> None:
    bench.meanwhile = lambda: bench.side.lingering.update({3: ASKED})

    async def story() -> None:
        bench.rules.changed(frozenset({1}))
        await bench.settled()

    bench.run(story)
    assert bench.side.told_of[0][1] == {1, 3}

"""No answer before its addresses are in the kernel; a recorded agent, a clock that stands."""

from __future__ import annotations

import asyncio
import errno
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator
from contextlib import asynccontextmanager
from pathlib import Path

import pytest

from l7proxy.dns import learning
from l7proxy.dns.answer import Answer
from l7proxy.dns.learning import Learning, News
from l7proxy.dns.store import Store, read
from l7proxy.dns.table import Limits, Table
from policies.address import parse_address
from policies.l7 import NamePattern

A, B = parse_address("198.51.100.1"), parse_address("198.51.100.2")
POD = parse_address("10.0.0.1")
OURS = NamePattern(pattern="*.ours")


class Bench:
    """Learning with a clock, an absent agent that settles what it is told to, and what was released."""

    def __init__(self, path: Path, limits: Limits | None = None) -> None:
        self.now_s = 1000.0
        self.may_settle: set[bytes] = set()
        self.asked_absent: list[tuple[bytes, frozenset[str]]] = []
        self.released: list[tuple[str, bool]] = []
        self.store = Store(path)
        table = Table(limits)
        self.store.load(table, self.now_s)
        self.learning = Learning(table, self.store, self, clock=lambda: self.now_s, monotonic=lambda: self.now_s)
        self.learning.need([OURS])

    def settle(self, address: bytes, names: frozenset[str]) -> bool:
        self.asked_absent.append((address, names))
        return address in self.may_settle

    def answer(self, name: str, *addresses: bytes, ttl_s: int = 60, label: str = "") -> None:
        found = Answer(addresses, (), ttl_s)
        self.learning.learn(name, found, POD, lambda fine: self.released.append((label or name, fine)))

    def take(self) -> list[tuple[str, bool]]:
        taken, self.released = self.released, []
        return taken


@pytest.fixture
def bench(tmp_path: Path) -> Iterator[Bench]:
    made = Bench(tmp_path / "names.json")
    yield made
    made.store.close()


@asynccontextmanager
async def agent(bench: Bench) -> AsyncIterator[Callable[[], Awaitable[News]]]:
    stream = bench.learning.subscribe()
    try:

        async def heard() -> News:
            async with asyncio.timeout(30):
                return await anext(stream)

        yield heard
    finally:
        await stream.aclose()


def test_an_answer_waits_for_the_kernel(bench: Bench) -> None:
    async def run() -> None:
        async with agent(bench) as heard:
            first = await heard()
            assert (first.full, first.learned) == (True, {})
            bench.answer("a.ours", A, B)
            bench.answer("a.ours", A, label="again")
            assert bench.take() == []
            news = await heard()
            assert (news.full, news.learned, news.gone) == (False, {"a.ours": [A, B]}, [])
            bench.learning.settled(first.number)
            assert bench.take() == []
            bench.learning.settled(news.number)
            assert sorted(bench.take()) == [("a.ours", True), ("again", True)]
            bench.answer("a.ours", B, label="known")
            assert bench.take() == [("known", True)]
        assert bench.asked_absent == []

    asyncio.run(run())


def test_what_no_rule_needs_is_told_but_not_waited_for(bench: Bench) -> None:
    async def run() -> None:
        async with agent(bench) as heard:
            await heard()
            bench.answer("theirs", A)
            assert bench.take() == [("theirs", True)]
            assert (await heard()).learned == {"theirs": [A]}
            bench.answer("a.ours")
            assert bench.take() == [("a.ours", True)]

    asyncio.run(run())


def test_an_answer_that_waits_in_vain_is_given_up(bench: Bench) -> None:
    async def run() -> None:
        async with agent(bench) as heard:
            await heard()
            bench.answer("a.ours", A)
            bench.now_s += learning.WAIT_S / 2
            bench.learning.expire()
            assert bench.take() == []
            bench.now_s += learning.WAIT_S
            bench.learning.expire()
            assert bench.take() == [("a.ours", False)]
            assert bench.learning.counters.given_up == 1
            news = await heard()
            bench.learning.settled(news.number)  # late: the next query has it at once
            bench.answer("a.ours", A)
            assert bench.take() == [("a.ours", True)]

    asyncio.run(run())


def test_too_many_that_wait_are_given_up_at_once(bench: Bench, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(learning, "WAITING", 2)

    async def run() -> None:
        async with agent(bench) as heard:
            await heard()
            for label in ("one", "two", "three"):
                bench.answer("a.ours", A, label=label)
            assert bench.take() == [("three", False)]

    asyncio.run(run())


def test_while_the_agent_is_away_what_can_be_is_settled(bench: Bench) -> None:
    async def run() -> None:
        bench.may_settle = {A}
        bench.answer("a.ours", A)
        assert bench.take() == [("a.ours", True)]
        assert bench.asked_absent == [(A, frozenset({"a.ours"}))]
        bench.answer("b.ours", B)
        assert bench.take() == []  # held back
        async with agent(bench) as heard:
            first = await heard()
            assert first.learned == {"a.ours": [A], "b.ours": [B]}  # it hears of both
            assert bench.take() == []
            bench.learning.settled(first.number)
            assert bench.take() == [("b.ours", True)]

    asyncio.run(run())


def test_what_the_agent_took_along_is_settled_without_it(bench: Bench) -> None:
    async def run() -> None:
        async with agent(bench) as heard:
            await heard()
            bench.answer("a.ours", A)
            bench.answer("b.ours", B)
            await heard()
            bench.may_settle = {A}
        assert bench.take() == [("a.ours", True)]

    asyncio.run(run())


def test_a_name_of_a_settled_address_waits_for_itself(bench: Bench) -> None:
    async def run() -> None:
        async with agent(bench) as heard:
            bench.learning.settled((await heard()).number)
            bench.answer("a.ours", A)
            bench.learning.settled((await heard()).number)
            bench.answer("b.ours", A, label="b")
            assert bench.take() == [("a.ours", True)]
            bench.learning.settled((await heard()).number)
            assert bench.take() == [("b", True)]

    asyncio.run(run())


def test_forgotten_and_learned_again_waits_again(bench: Bench) -> None:
    async def run() -> None:
        async with agent(bench) as heard:
            bench.learning.settled((await heard()).number)
            bench.answer("a.ours", A)
            learned = await heard()
            bench.now_s += 1000
            assert bench.learning.due() == [("a.ours", A)]
            bench.learning.forget([("a.ours", A)])
            gone = await heard()
            assert (gone.learned, gone.gone) == ({}, [("a.ours", A)])
            bench.answer("a.ours", A, label="again")
            bench.learning.settled(learned.number)  # of what it was before
            bench.learning.settled(gone.number)
            assert bench.take() == []
            again = await heard()
            bench.learning.settled(again.number)
            assert sorted(bench.take()) == [("a.ours", True), ("again", True)]

    asyncio.run(run())


def test_a_new_agent_must_say_so_itself(bench: Bench) -> None:
    async def run() -> None:
        async with agent(bench) as heard:
            await heard()
            bench.answer("a.ours", A)
            bench.learning.settled((await heard()).number)
            assert bench.take() == [("a.ours", True)]
        async with agent(bench) as heard:
            first = await heard()
            bench.answer("a.ours", A)
            assert bench.take() == []
            bench.learning.settled(first.number)
            assert bench.take() == [("a.ours", True)]

    asyncio.run(run())


def test_a_second_subscriber_ends_the_first(bench: Bench) -> None:
    async def run() -> None:
        async with agent(bench) as old:
            await old()
            waiting = asyncio.ensure_future(old())
            await asyncio.sleep(0)
            async with agent(bench) as new:
                assert (await new()).full
                with pytest.raises(StopAsyncIteration):
                    await waiting
                assert bench.learning.subscribed
                bench.answer("a.ours", A)
                assert (await new()).learned == {"a.ours": [A]}

    asyncio.run(run())


def test_a_name_that_rotates_through_200_addresses(bench: Bench) -> None:
    """Every address is with the agent before its answer is out, and stays while it is in use."""

    async def run() -> None:
        told: set[bytes] = set()
        async with agent(bench) as heard:
            bench.learning.settled((await heard()).number)
            for number in range(600):
                address = parse_address(f"203.0.113.{number % 200}")
                bench.answer("rotates.ours", address, ttl_s=1)
                if address not in told:
                    assert bench.take() == []
                    news = await heard()
                    told |= set(news.learned["rotates.ours"])
                    bench.learning.settled(news.number)
                assert bench.take() == [("rotates.ours", True)]
                bench.now_s += 0.1
                live = told  # somebody is connected to each
                bench.learning.forget(pair for pair in bench.learning.due() if pair[1] not in live)
            assert len(told) == 200
            assert len(bench.learning.table) == 200
            bench.now_s += 1000
            bench.learning.forget(bench.learning.due())
            assert len((await heard()).gone) == 200

    asyncio.run(run())


def test_answers_are_on_disk_before_they_are_out(bench: Bench, tmp_path: Path) -> None:
    bench.may_settle = {A, B}
    bench.answer("a.ours", A)
    assert read(tmp_path / "names.json") == {"a.ours": {A: 1060.0}}
    bench.now_s += 10
    bench.answer("a.ours", A, B)
    assert read(tmp_path / "names.json") == {"a.ours": {A: 1060.0, B: 1070.0}}
    bench.learning.save()
    assert read(tmp_path / "names.json") == {"a.ours": {A: 1070.0, B: 1070.0}}


def test_a_full_table_holds_no_answer_back(tmp_path: Path) -> None:
    bench = Bench(tmp_path / "names.json", Limits(max_pairs=4))
    bench.may_settle = {A, B}
    bench.answer("a.ours", A)
    bench.answer("b.ours", B)
    assert bench.take() == [("a.ours", True), ("b.ours", True)]
    assert bench.asked_absent == [(A, frozenset({"a.ours"}))]  # the pod's quarter is used up: B stays denied
    assert bench.learning.counters.no_room == 1
    bench.store.close()


def test_a_full_disk_holds_no_answer_back(bench: Bench, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    bench.may_settle = {A, B}
    with monkeypatch.context() as patch:

        def full(*_: object) -> bool:
            raise OSError(errno.ENOSPC, "No space left on device")

        patch.setattr(bench.store, "note", full)
        patch.setattr(bench.store, "save", full)
        bench.answer("a.ours", A)
        assert bench.take() == [("a.ours", True)]
        assert bench.learning.counters.unwritten == 1
        bench.learning.save()
    assert read(tmp_path / "names.json") == {}
    bench.answer("b.ours", B)  # there is room again: all is written
    assert read(tmp_path / "names.json") == {"a.ours": {A: 1060.0}, "b.ours": {B: 1060.0}}

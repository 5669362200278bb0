"""The store, and observers that read it: nothing is shown twice, and what is not shown is counted."""

from __future__ import annotations

import asyncio
import random
import sys
from collections import Counter
from collections.abc import AsyncGenerator
from contextlib import aclosing

import pytest
from flow_events import ABI, EVENT, C, drop, event, known_names

from agent.api.protocol import Batch
from agent.flows.clock import WallClock
from agent.flows.filters import Filter, parse
from agent.flows.flow import Flow, Lost
from agent.flows.observe import CHUNK, Observer
from agent.flows.record import Recorder
from agent.flows.store import Store

ONE_SIDED = {"egress_judged": 0, "rule_egress": 0}


def numbered(first: int, count: int) -> bytes:
    """Events told apart by `packets`; every third is a drop."""
    return b"".join(
        EVENT.pack(**(drop(packets=n) if n % 3 == 0 else event(packets=n, type=C.EVENT_END, **ONE_SIDED)))
        for n in range(first, first + count)
    )


def held(store: Store) -> list[int]:
    return [e.packets for e in EVENT.records(store.read(store.first, store.capacity))]


@pytest.mark.parametrize("capacity", [1, 7, 16, 100])
def test_the_store_holds_the_newest_and_counts_the_rest(capacity: int) -> None:
    seed = random.randrange(2**32)
    sys.stdout.write(f"seed {seed}\n")
    chance = random.Random(seed)
    store = Store(ABI, capacity)
    appended = 0
    while appended < 500:
        count = chance.choice([0, 1, 2, 5, 16, 40])
        store.append(numbered(appended, count))
        appended += count
        assert (store.first, store.next) == (max(0, appended - capacity), appended)
        assert held(store) == list(range(store.first, store.next))
        drops = (C.EVENT_DROP, C.DROP_POLICY_INGRESS)
        assert store.totals[drops] == (appended + 2) // 3
        assert store.forgotten[drops] == (store.first + 2) // 3
        assert store.totals.total() == appended
        assert store.forgotten.total() == store.first
    assert store.newest_ns == 5


def observer(store: Store, wanted: Filter) -> Observer:
    clock = WallClock(0, 0)
    return Observer(ABI, store, Recorder(ABI, known_names(), clock), clock, wanted)


def observe(store: Store, last: int | None = None, wanted: Filter = Filter()) -> list[int]:  # noqa: B008
    """Numbers of the records of one pass over what is held."""

    async def run() -> list[int]:
        return [item.seq async for batch in observer(store, wanted).run(last, follow=False) for item in batch]

    return asyncio.run(run())


DROPS = parse({"verdict": ["DROPPED"]}, 0, ABI)
LASTS: list[tuple[int | None, Filter, list[int]]] = [
    (None, Filter(), list(range(100, 1100))),
    (0, Filter(), []),
    (1, Filter(), [1099]),
    (300, Filter(), list(range(800, 1100))),
    (5000, Filter(), list(range(100, 1100))),
    (3, DROPS, [1092, 1095, 1098]),
    (None, DROPS, [n for n in range(100, 1100) if n % 3 == 0]),
]


@pytest.mark.parametrize(("last", "wanted", "expected"), LASTS, ids=range(len(LASTS)))
def test_the_newest_records_come_oldest_first(last: int | None, wanted: Filter, expected: list[int]) -> None:
    store = Store(ABI, 1000)
    store.append(numbered(0, 1100))
    assert observe(store, last, wanted) == expected


def test_last_counts_records_not_events() -> None:
    store = Store(ABI, 10)
    store.append(b"".join(EVENT.pack(**event()) for _ in range(3)))  # two records each
    assert observe(store, 3) == [1, 2, 2]


def test_an_empty_store_shows_nothing() -> None:
    assert observe(Store(ABI, 10)) == observe(Store(ABI, 10), 5) == []


async def take(values: AsyncGenerator[Batch, None], count: int) -> list[Flow | Lost]:
    found: list[Flow | Lost] = []
    async with asyncio.timeout(60):
        while len(found) < count:
            found += await anext(values)
    return found


def test_following_shows_what_comes_once() -> None:
    async def run() -> None:
        store = Store(ABI, 100)
        store.append(numbered(0, 10))
        async with aclosing(observer(store, Filter()).run(2, follow=True)) as values:
            assert [item.seq for item in await take(values, 2) if isinstance(item, Flow)] == [8, 9]
            waiting = asyncio.create_task(take(values, 3))
            await asyncio.sleep(0)
            store.append(numbered(10, 2))
            await asyncio.sleep(0)
            store.append(numbered(12, 1))
            assert [item.seq for item in await waiting if isinstance(item, Flow)] == [10, 11, 12]

    asyncio.run(run())


@pytest.mark.parametrize("last", [None, 0, 20])
def test_a_slow_observer_is_told_exactly_what_it_missed(last: int | None) -> None:
    """Whatever the pace: records shown and records summarised are together all that was appended."""
    seed = random.randrange(2**32)
    sys.stdout.write(f"seed {seed}\n")
    chance = random.Random(seed)

    async def run() -> None:
        store = Store(ABI, 2 * CHUNK)
        store.append(numbered(0, 3 * CHUNK))
        before = {None: 2 * CHUNK, 0: 0, 20: 20}[last]  # what there is to show of what was
        appended = 3 * CHUNK
        slow = observer(store, Filter())
        shown: list[int] = []
        missed: Counter[str] = Counter()
        async with aclosing(slow.run(last, follow=True)) as values:
            waiting = asyncio.ensure_future(anext(values))
            for _ in range(60):
                await asyncio.sleep(0)
                for _ in range(chance.randrange(4)):
                    count = chance.randrange(CHUNK)
                    store.append(numbered(appended, count))
                    appended += count
                if waiting.done():
                    collect(waiting.result(), shown, missed)
                    waiting = asyncio.ensure_future(anext(values))
            while waiting.done() or len(shown) + missed.total() < appended - 3 * CHUNK + before:
                collect(await waiting, shown, missed)
                waiting = asyncio.ensure_future(anext(values))
                await asyncio.sleep(0)
            waiting.cancel()
            await asyncio.wait([waiting])
        assert shown == sorted(set(shown))
        assert len(shown) + missed.total() == appended - 3 * CHUNK + before
        assert slow.missed == missed.total() > 0
        first = 3 * CHUNK - before
        unseen = set(range(first, appended)) - set(shown)
        assert missed["drop POLICY_INGRESS"] == sum(n % 3 == 0 for n in unseen)
        assert missed["end"] == sum(n % 3 != 0 for n in unseen)

    asyncio.run(run())


def collect(batch: Batch, shown: list[int], missed: Counter[str]) -> None:
    for item in batch:
        if isinstance(item, Lost):
            assert item.where == "observer"
            assert item.count == sum(item.summary.values())
            missed.update(item.summary)
        else:
            shown.append(item.seq)


def test_kernel_losses_stand_where_they_happened() -> None:
    async def run() -> None:
        store = Store(ABI, 100)
        store.append(numbered(0, 5))
        store.lose(7, time_ns=10**9)
        store.append(numbered(5, 5))
        items = [item async for batch in observer(store, Filter()).run(None, follow=False) for item in batch]
        assert [item.count if isinstance(item, Lost) else item.seq for item in items] == [*range(10), 7]
        async with aclosing(observer(store, Filter()).run(0, follow=True)) as values:
            waiting = asyncio.create_task(take(values, 1))
            await asyncio.sleep(0)
            store.lose(9, time_ns=2 * 10**9)
            (lost,) = await waiting
            assert lost == Lost("1970-01-01T00:00:02.000000000Z", "kernel", 9)

    asyncio.run(run())

"""The Lease: one holder at a time, whatever clocks and answers do; given back; taken over."""

import asyncio
import random
from collections.abc import Callable
from datetime import UTC, datetime
from typing import Any

import pytest
from coroutines import in_no_time, now_s
from object_store import Hook, ObjectStore

from agent.kube.lease import Lease, LeaseSpec, Observer, Times, claim
from agent.kube.writes import Away

TIMES = Times(duration_s=15, renew_s=10.0, retry_s=2.0, look_s=2.0)
KEY = "gatehouse-system/gatehouse"


class TestObserver:
    def test_nobodys_is_free(self) -> None:
        observer = Observer()
        observer.see(LeaseSpec("", 1, "t", "t", 3), 0.0)
        assert observer.is_free(0.0)

    def test_somebodys_is_free_once_it_has_not_changed_for_its_duration(self) -> None:
        observer = Observer()
        observer.see(LeaseSpec("a", 15, "t", "t0", 3), 100.0)
        observer.see(LeaseSpec("a", 15, "t", "t0", 3), 114.0)
        assert not observer.is_free(114.9) and observer.is_free(115.0)
        observer.see(LeaseSpec("a", 15, "t", "t1", 3), 115.0)
        assert not observer.is_free(129.9) and observer.is_free(130.0)

    def test_times_written_in_it_mean_nothing(self) -> None:
        observer = Observer()
        observer.see(LeaseSpec("a", 15, "1970-01-01T00:00:00.000000Z", "1970-01-01T00:00:00.000000Z", 3), 100.0)
        assert not observer.is_free(101.0)


NOW = datetime(2026, 3, 1, 12, 0, 0, 5, tzinfo=UTC)
STAMP = "2026-03-01T12:00:00.000005Z"


@pytest.mark.parametrize(("old", "new"), [
    (LeaseSpec(), LeaseSpec("me", 15, STAMP, STAMP, 1)),
    (LeaseSpec("me", 15, "then", "then", 4), LeaseSpec("me", 15, "then", STAMP, 4)),
    (LeaseSpec("you", 30, "then", "then", 4), LeaseSpec("me", 15, STAMP, STAMP, 5)),
])  # fmt: skip
def test_what_a_holder_writes(old: LeaseSpec, new: LeaseSpec) -> None:
    assert claim(old, "me", TIMES, NOW) == new


class Agent:
    """Says when it works."""

    def __init__(
        self, store: ObjectStore, name: str, clock_s: Callable[[], float] | None = None, times: Times = TIMES
    ) -> None:
        self.name = name
        self.works = asyncio.Event()
        self.started_at: list[float] = []
        self.lease = Lease(store, "gatehouse-system", name, times=times, clock_s=clock_s or now_s)
        self.task = asyncio.create_task(self.lease.run(self.work))

    async def work(self) -> None:
        self.started_at.append(now_s())
        self.works.set()
        try:
            await asyncio.Event().wait()
        finally:
            self.works.clear()

    async def stop(self) -> None:
        self.task.cancel()
        await asyncio.gather(self.task, return_exceptions=True)


def holder(store: ObjectStore) -> Any:
    return store.objects[KEY]["spec"]["holderIdentity"]


@in_no_time
async def test_the_first_works_and_the_second_takes_over_at_once_when_it_is_given_back() -> None:
    store = ObjectStore()
    first = Agent(store, "first")
    await first.works.wait()
    second = Agent(store, "second")
    await asyncio.sleep(300)
    assert first.works.is_set() and not second.works.is_set() and holder(store) == "first"
    assert first.lease.held and not second.lease.held
    before = now_s()
    await first.stop()
    await second.works.wait()
    assert now_s() - before < 3 * TIMES.retry_s and not first.works.is_set()
    assert store.objects[KEY]["spec"]["leaseTransitions"] == 2
    await second.stop()
    assert holder(store) == ""


@in_no_time
async def test_one_that_vanished_is_followed_after_its_time() -> None:
    store = ObjectStore()
    first = Agent(store, "first")
    await first.works.wait()
    partition = {"first"}

    async def cut(request: str, name: str) -> None:
        task = asyncio.current_task()
        if partition and task is first.task:
            raise Away("no route to host")

    second = Agent(store, "second")
    await asyncio.sleep(20)
    store.before = cut
    cut_at = now_s()
    while first.works.is_set():
        await asyncio.sleep(0.1)
    let_go = now_s()
    await second.works.wait()
    assert let_go - cut_at <= TIMES.renew_s + 0.2 and let_go < second.started_at[0]
    assert second.started_at[0] - cut_at >= TIMES.duration_s - TIMES.retry_s
    partition.clear()
    await asyncio.sleep(60)
    assert not first.works.is_set() and second.works.is_set()
    await first.stop()
    await second.stop()


@in_no_time
async def test_those_who_have_it_not_look_seldom_and_find_out_all_the_same() -> None:
    looks = 0

    async def count(request: str, name: str) -> None:
        nonlocal looks
        looks += asyncio.current_task() is not first.task

    store = ObjectStore(before=count)
    times = Times()
    first = Agent(store, "first", times=times)
    await first.works.wait()
    others = [Agent(store, f"other-{i}", times=times) for i in range(20)]
    await asyncio.sleep(3600)
    assert looks <= 20 * 3600 / (times.look_s * 0.8) + 40
    first.task.cancel()
    store.before = cut_off(first)
    await asyncio.gather(first.task, return_exceptions=True)
    stopped_s = now_s()
    while not any(other.works.is_set() for other in others):
        await asyncio.sleep(1)
    assert now_s() - stopped_s < 2 * times.look_s
    for other in others:
        await other.stop()


def cut_off(first: Agent) -> Hook:
    """It cannot give the Lease back."""

    async def fail(request: str, name: str) -> None:
        if asyncio.current_task() is first.task:
            raise Away("no route to host")

    return fail


@in_no_time
async def test_work_that_ends_by_itself_is_an_error() -> None:
    async def work() -> None:
        return

    store = ObjectStore()
    with pytest.raises(RuntimeError, match="ended by itself"):
        await Lease(store, "gatehouse-system", "a", times=TIMES, clock_s=now_s).run(work)
    assert holder(store) == ""


@in_no_time
async def test_a_suspended_holder_knows_at_once_that_its_time_is_over() -> None:
    jumped_s = 0.0
    store = ObjectStore()
    first = Agent(store, "first", lambda: now_s() + jumped_s)
    await first.works.wait()
    jumped_s = 3600.0
    assert not first.lease.held
    await first.stop()


@in_no_time
async def test_never_two_holders() -> None:
    """Slow, lost and refused requests; clocks that are hours apart; agents that come, go and are cut off."""
    seed = random.randrange(1 << 32)
    print("seed", seed)
    draw = random.Random(seed)
    cut: set[asyncio.Task[None]] = set()

    async def trouble(request: str, name: str) -> None:
        await asyncio.sleep(draw.choice((0.0, 0.01, 0.1, 1.0, 6.0)))
        if asyncio.current_task() in cut or draw.random() < 0.1:
            raise Away("connection reset")

    store = ObjectStore(before=trouble, after=trouble)
    agents: list[Agent] = []
    worked: set[str] = set()
    for step in range(3000):
        await asyncio.sleep(draw.uniform(0.1, 2.0))
        working = [agent.name for agent in agents if agent.works.is_set()]
        assert len(working) <= 1, working
        assert sum(agent.lease.held for agent in agents) <= 1
        worked.update(working)
        cut = {task for task in cut if draw.random() < 0.98}
        if draw.random() < 0.02 and agents:
            cut.add(draw.choice(agents).task)
        if draw.random() < 0.02 and len(agents) < 5:
            offset = draw.uniform(-1e5, 1e5)
            agents.append(Agent(store, f"agent-{step}", lambda offset=offset: now_s() + offset))  # type: ignore[misc]
        if draw.random() < 0.01 and agents:
            await agents.pop(draw.randrange(len(agents))).stop()
    for agent in agents:
        await agent.stop()
    assert len(worked) > 5

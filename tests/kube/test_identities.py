"""Numbers for identities: which is tried next, and many agents that try at once."""

import asyncio
import random
from collections.abc import Collection, Iterable, Mapping
from itertools import pairwise
from typing import Any

import msgspec
import pytest
from coroutines import on_a_loop
from object_store import ObjectStore

from agent.identity.allocator import first_choice
from agent.identity.labels import identity_key, key_digest
from agent.kube import bodies, identities
from agent.kube.backoff import Backoff
from agent.kube.bodies import IdentityHead, Key
from agent.kube.identities import SPAN, IdentityAllocator, NoneLeft, next_number
from agent.kube.pace import Pace
from agent.kube.writes import Away, Refused
from agent.sources.clusterstate import UNUSED_SINCE
from agent.world.config import FIRST_IDENTITY as FIRST
from policies.model import SERVICE_ACCOUNT, Workload

WAIT_S = 90.0


def workload(name: str, namespace: str = "shop", account: str = "default") -> Workload:
    return Workload(namespace, {"app": name, SERVICE_ACCOUNT: account})


def key_of(given: Workload) -> Key:
    labels = {key: value for key, value in given.labels.items() if key != SERVICE_ACCOUNT}
    return identity_key(given.namespace, labels, given.labels[SERVICE_ACCOUNT])


class Known:
    """What a World would know, of objects it was told of, and want."""

    def __init__(self, wanted: Iterable[Workload] = ()) -> None:
        self.asked = {key_of(one): one for one in wanted}
        self.meant: dict[int, Key] = {}
        self.own: dict[Key, set[int]] = {}
        self.settled = asyncio.Event()

    def know(self, number: int, key: Key) -> None:
        self.meant[number] = key
        self.own.setdefault(key, set()).add(number)

    def observe(self, raw: bytes) -> None:
        head = msgspec.json.decode(raw, type=IdentityHead)
        self.know(int(head.metadata.name), head.key)
        if not head.metadata.unused_since:
            self.asked.pop(head.key, None)
        if not self.asked:
            self.settled.set()

    def wanted(self) -> Mapping[Key, Workload]:
        return self.asked

    def numbers(self, key: Key) -> Collection[int]:
        return self.own.get(key, ())

    def meaning(self, number: int) -> Key | None:
        return self.meant.get(number)


def quick() -> Pace:
    return Pace(Backoff(first_s=0.001, most_s=0.01))


def first(one: Workload) -> int:
    return FIRST + first_choice("\n".join(key_of(one)), SPAN)


def existing(store: ObjectStore, number: int, one: Workload, since: str = "") -> None:
    body = bodies.security_identity(number, one)
    if since:
        body["metadata"]["annotations"] = {UNUSED_SINCE: since}
    store.put(body)


async def settle(store: ObjectStore, known: Known, pace: Pace | None = None) -> None:
    """Run an allocator until nothing is wanted."""
    allocator = IdentityAllocator(store, known, known.observe, pace or quick())
    running = asyncio.create_task(allocator.run())
    allocator.wake()
    try:
        await asyncio.wait_for(known.settled.wait(), WAIT_S)
    finally:
        running.cancel()
        await asyncio.gather(running, return_exceptions=True)


def meanings(store: ObjectStore) -> dict[int, Key]:
    heads = (msgspec.convert(one, IdentityHead) for one in store.objects.values())
    return {int(head.metadata.name): head.key for head in heads}


class TestNextNumber:
    WEB, DB = workload("web"), workload("db")

    def test_is_the_hash_where_nothing_is_known(self) -> None:
        assert next_number(key_of(self.WEB), Known(), ()) == first(self.WEB)

    def test_passes_over_what_is_known_or_found_to_be_anothers(self) -> None:
        known = Known()
        known.meant[first(self.WEB)] = key_of(self.DB)
        after = FIRST + (first(self.WEB) - FIRST + 1) % SPAN
        assert next_number(key_of(self.WEB), known, ()) == after
        assert next_number(key_of(self.WEB), known, {after}) == FIRST + (after - FIRST + 1) % SPAN

    def test_is_the_smallest_of_its_own(self) -> None:
        known = Known()
        for number, one in ((400, self.WEB), (300, self.WEB), (299, self.DB)):
            known.know(number, key_of(one))
        assert next_number(key_of(self.WEB), known, ()) == 300
        assert next_number(key_of(self.WEB), known, {300}) == 400

    def test_wraps_around_within_the_range(self) -> None:
        known = Known()
        known.meant = dict.fromkeys(range(FIRST, FIRST + SPAN), key_of(self.DB))
        del known.meant[FIRST]
        assert next_number(key_of(self.WEB), known, ()) == FIRST

    def test_says_what_to_do_when_none_is_left(self) -> None:
        known = Known()
        known.meant = dict.fromkeys(range(FIRST, FIRST + SPAN), key_of(self.DB))
        with pytest.raises(NoneLeft, match="--labels-exclude"):
            next_number(key_of(self.WEB), known, ())


class TestAllocator:
    WEB, DB = workload("web"), workload("db")

    @on_a_loop
    async def test_creates_what_is_wanted(self) -> None:
        store, known = ObjectStore(), Known([self.WEB, self.DB])
        await settle(store, known)
        assert meanings(store) == {first(self.WEB): key_of(self.WEB), first(self.DB): key_of(self.DB)}
        assert store.objects[str(first(self.WEB))]["spec"] == {
            "namespace": "shop",
            "serviceAccount": "default",
            "labels": {"app": "web"},
        }

    @on_a_loop
    async def test_takes_one_that_means_the_same(self) -> None:
        store, known = ObjectStore(), Known([self.WEB])
        existing(store, first(self.WEB), self.WEB)
        await settle(store, known)
        assert store.requests == [("create", str(first(self.WEB))), ("get", str(first(self.WEB)))]

    @on_a_loop
    async def test_goes_on_from_one_that_means_something_else(self) -> None:
        store, known = ObjectStore(), Known([self.WEB])
        number = FIRST + (first(self.WEB) - FIRST + 1) % SPAN
        existing(store, first(self.WEB), self.DB)
        await settle(store, known)
        assert meanings(store)[number] == key_of(self.WEB)

    @on_a_loop
    async def test_takes_the_mark_off_before_use(self) -> None:
        store, known = ObjectStore(), Known([self.WEB])
        existing(store, 7777, self.WEB, since="2026-01-01T00:00:00Z")
        known.observe(msgspec.json.encode(store.objects["7777"]))
        known.settled.clear()
        await settle(store, known)
        assert UNUSED_SINCE not in store.objects["7777"]["metadata"]["annotations"]
        assert list(store.objects) == ["7777"]

    @on_a_loop
    async def test_one_marked_again_meanwhile_is_unmarked_again(self) -> None:
        store, known = ObjectStore(), Known([self.WEB])
        number = str(first(self.WEB))
        existing(store, int(number), self.WEB, since="2026-01-01T00:00:00Z")

        async def marked_first(request: str, name: str) -> None:
            if request == "merge" and store.requests.count(("merge", number)) == 1:
                existing(store, int(number), self.WEB, since="2026-01-02T00:00:00Z")

        store.before = marked_first
        await settle(store, known)
        assert store.requests.count(("merge", number)) == 2
        assert UNUSED_SINCE not in store.objects[number]["metadata"]["annotations"]

    @on_a_loop
    async def test_one_collected_meanwhile_is_made_anew(self) -> None:
        store, known = ObjectStore(), Known([self.WEB])
        number = str(first(self.WEB))
        existing(store, int(number), self.WEB)

        async def deleted_first(request: str, name: str) -> None:
            if request == "get":
                store.objects.pop(number, None)

        store.before = deleted_first
        await settle(store, known)
        assert meanings(store) == {int(number): key_of(self.WEB)}

    @on_a_loop
    async def test_while_the_server_is_away_one_request_at_a_time_is_tried(self) -> None:
        flying, most, refused = 0, 0, 0

        async def away(request: str, name: str) -> None:
            nonlocal flying, most, refused
            flying += 1
            if refused > 16:
                most = max(most, flying)
            await asyncio.sleep(0)
            flying -= 1
            refused += 1
            if refused < 60:
                raise Away("connection refused")

        store, known = ObjectStore(before=away), Known([workload(f"w{i}") for i in range(200)])
        pace = quick()
        allocator = IdentityAllocator(store, known, known.observe, pace)
        running = asyncio.create_task(allocator.run())
        allocator.wake()
        while refused < 58:
            await asyncio.sleep(0.001)
            assert refused <= 16 or most <= 1
        await asyncio.wait_for(known.settled.wait(), WAIT_S)
        assert most <= identities.AT_ONCE and not pace.away and len(store.objects) == 200
        running.cancel()
        await asyncio.gather(running, return_exceptions=True)

    @on_a_loop
    async def test_a_refusal_is_told_and_tried_again(self, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr(identities, "AGAIN_S", 0.01)
        refusals = 3
        told: list[Any] = []

        async def refuse(request: str, name: str) -> None:
            nonlocal refusals
            told.extend(allocator.problems())
            refusals -= 1
            if refusals >= 0:
                raise Refused("POST securityidentities: 403: give the agent's service account this right")

        store, known = ObjectStore(before=refuse), Known([self.WEB])
        allocator = IdentityAllocator(store, known, known.observe, quick())
        running = asyncio.create_task(allocator.run())
        allocator.wake()
        await asyncio.wait_for(known.settled.wait(), WAIT_S)
        assert told and "this right" in str(told[0]) and "app=web" in told[0].subject
        running.cancel()
        await asyncio.gather(running, return_exceptions=True)
        assert allocator.problems() == []

    @on_a_loop
    async def test_a_pod_that_is_gone_needs_no_number(self) -> None:
        store, known = ObjectStore(), Known([self.WEB])
        tried = asyncio.Event()

        async def away(request: str, name: str) -> None:
            tried.set()
            if known.asked:
                raise Away("connection refused")

        store.before = away
        allocator = IdentityAllocator(store, known, known.observe, quick())
        running = asyncio.create_task(allocator.run())
        allocator.wake()
        await asyncio.wait_for(tried.wait(), WAIT_S)
        (job,) = allocator._jobs.values()
        while not allocator.problems():
            await asyncio.sleep(0.001)
        assert "does not answer" in str(allocator.problems()[0])
        known.asked.clear()
        await asyncio.wait_for(job, WAIT_S)
        assert not store.objects
        running.cancel()
        await asyncio.gather(running, return_exceptions=True)


class TestConfirm:
    WEB, DB = workload("web"), workload("db")

    @pytest.mark.parametrize(("there", "since", "confirmed"), [
        (None, "", False), (WEB, "", True), (WEB, "2026-01-01T00:00:00Z", True), (DB, "", False),
    ])  # fmt: skip
    @on_a_loop
    async def test_only_what_is_there_and_means_the_same(
        self, there: Workload | None, since: str, confirmed: bool
    ) -> None:
        store = ObjectStore()
        if there is not None:
            existing(store, 300, there, since)
        allocator = IdentityAllocator(store, Known(), lambda _: None, quick())
        assert await allocator.confirm(300, key_digest(key_of(self.WEB))) is confirmed
        if there is self.WEB:
            assert UNUSED_SINCE not in store.objects["300"]["metadata"]["annotations"]


@on_a_loop
async def test_ten_agents_race_for_a_thousand_identities() -> None:
    """Every agent wants all of them and knows only what it finds out itself: the worst case."""
    seed = random.randrange(1 << 32)
    print("seed", seed)
    draw = random.Random(seed)
    everything = [workload(f"app-{i}", namespace=f"ns-{i % 40}", account=f"sa-{i % 3}") for i in range(1000)]

    async def jitter(request: str, name: str) -> None:
        for _ in range(draw.randrange(3)):
            await asyncio.sleep(0)
        if draw.random() < 0.01:
            raise Away("connection reset", retry_after_s=0.0)

    store = ObjectStore(before=jitter, after=jitter)  # an answer that is lost is one that took effect
    agents = [Known(draw.sample(everything, len(everything))) for _ in range(10)]
    await asyncio.gather(*(settle(store, agent) for agent in agents))
    given = meanings(store)
    twice = [key for key, other in pairwise(sorted(given.values())) if key == other]
    print("label sets with two numbers:", len(twice), "requests:", len(store.requests))
    assert set(given.values()) == {key_of(one) for one in everything} and len(twice) <= 5
    for agent in agents:
        assert all(given[number] == key for number, key in agent.meant.items())


@on_a_loop
async def test_an_object_that_cannot_be_read_is_told_and_waited_for(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(identities, "AGAIN_S", 0.01)
    store, known = ObjectStore(), Known([workload("web")])
    store.put({"kind": "SecurityIdentity", "metadata": {"name": str(first(workload("web")))}, "spec": {"namespace": 7}})
    allocator = IdentityAllocator(store, known, known.observe, quick())
    running = asyncio.create_task(allocator.run())
    allocator.wake()
    while not allocator.problems():
        await asyncio.sleep(0.001)
    assert "cannot be read" in allocator.problems()[0].message
    store.objects.clear()
    await asyncio.wait_for(known.settled.wait(), WAIT_S)
    running.cancel()
    await asyncio.gather(running, return_exceptions=True)

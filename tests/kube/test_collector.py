"""What is collected, what never is, and in which order."""

import asyncio
import random
from collections import deque
from collections.abc import Collection, Iterable, Mapping
from typing import Any

import msgspec
import pytest
from coroutines import in_no_time, now_s
from object_store import ObjectStore

from agent.identity.labels import identity_key, key_digest
from agent.kube import bodies
from agent.kube.bodies import Head, IdentityHead, Key, Metadata, NodeFacts
from agent.kube.collector import Collector, IdentitySweep, Kinds, Times
from agent.kube.identities import IdentityAllocator
from agent.kube.membership import Membership
from agent.kube.writes import Away
from agent.objects import NodeEndpoint
from agent.sources.clusterstate import UNUSED_SINCE
from policies.address import Prefix, parse_address
from policies.model import SERVICE_ACCOUNT, ObjectRef, Workload

TIMES = Times(period_s=60.0, idle_s=120.0, grace_s=900.0, node_s=600.0, block_s=3600.0)


def workload(name: str) -> Workload:
    return Workload("shop", {"app": name, SERVICE_ACCOUNT: "default"})


def key_of(name: str) -> Key:
    return identity_key("shop", {"app": name}, "default")


Row = tuple[float, Head, set[str], str]


class TestSweep:
    """Rows of (seconds, what it is named or marked) and what is done then."""

    @staticmethod
    def identity(version: str = "1", marked: bool = False, uid: str = "u") -> Head:
        return Head(
            Metadata("300", uid=uid, resource_version=version, annotations={UNUSED_SINCE: "x"} if marked else {})
        )

    def test_unused_for_a_while_is_marked_and_later_deleted(self) -> None:
        sweep = IdentitySweep(TIMES)
        rows: list[Row] = [
            (0, self.identity(), set(), ""), (60, self.identity(), set(), ""), (120, self.identity(), set(), "mark"),
            (180, self.identity("2", True), set(), ""), (1000, self.identity("2", True), set(), ""),
            (1080, self.identity("2", True), set(), "delete"),
        ]  # fmt: skip
        self.check(sweep, rows)

    def test_named_in_between_begins_anew(self) -> None:
        sweep = IdentitySweep(TIMES)
        rows: list[Row] = [
            (0, self.identity(), set(), ""), (60, self.identity(), {"300"}, ""), (120, self.identity(), set(), ""),
            (240, self.identity(), set(), "mark"), (300, self.identity("2", True), {"300"}, "unmark"),
            (360, self.identity("2", True), {"300"}, "unmark"), (420, self.identity("2", True), set(), ""),
            (1300, self.identity("2", True), set(), ""), (1320, self.identity("2", True), set(), "delete"),
        ]  # fmt: skip
        self.check(sweep, rows)

    def test_another_version_or_object_begins_anew(self) -> None:
        sweep = IdentitySweep(TIMES)
        rows: list[Row] = [
            (0, self.identity("2", True), set(), ""), (900, self.identity("4", True), set(), ""),
            (1799, self.identity("4", True), set(), ""), (1800, self.identity("4", True, "v"), set(), ""),
            (2700, self.identity("4", True, "v"), set(), "delete"),
        ]  # fmt: skip
        self.check(sweep, rows)

    def check(self, sweep: IdentitySweep, rows: Iterable[Row]) -> None:
        for at_s, head, named, expected in rows:
            steps = sweep.steps([head], named, at_s)
            done = [name for name in ("mark", "unmark", "delete") if getattr(steps, name)]
            assert done == ([expected] if expected else []), at_s


class Cluster:
    def __init__(self) -> None:
        self.identities, self.endpoints, self.statuses, self.blocks, self.nodes = (ObjectStore() for _ in range(5))
        self.kinds = Kinds(self.identities, self.endpoints, self.statuses, self.blocks, self.nodes)

    def collector(self, times: Times = TIMES) -> "asyncio.Task[None]":
        return asyncio.create_task(Collector(self.kinds, times, clock_s=now_s).run())


async def stopped(*tasks: "asyncio.Task[Any]") -> None:
    for task in tasks:
        task.cancel()
    await asyncio.gather(*tasks, return_exceptions=True)


@in_no_time
async def test_unused_numbers_go_and_named_ones_stay() -> None:
    cluster = Cluster()
    cluster.nodes.put({"metadata": {"name": "n1"}})
    for number in (300, 301):
        cluster.identities.put(bodies.security_identity(number, workload(str(number))))
    one = NodeEndpoint(ObjectRef("Pod", "shop", "a"), (parse_address("10.0.0.2"),), 300, key_digest(key_of("300")))
    cluster.endpoints.put(bodies.node_endpoints("n1", NodeFacts(), [one]))
    task = cluster.collector()
    await asyncio.sleep(300)
    assert UNUSED_SINCE in cluster.identities.objects["301"]["metadata"]["annotations"]
    await asyncio.sleep(3600)
    assert set(cluster.identities.objects) == {"300"}
    assert not cluster.identities.objects["300"]["metadata"]["annotations"]
    await stopped(task)


@in_no_time
async def test_what_gone_nodes_left_goes_and_a_block_last() -> None:
    cluster = Cluster()
    for name in ("n1", "n2"):
        cluster.nodes.put({"metadata": {"name": name}})
        cluster.endpoints.put(bodies.node_endpoints(name, NodeFacts(), []))
        cluster.statuses.put(bodies.node_status(name, "1", {}, []))
    for text, name in (("10.0.1.0/24", "n1"), ("10.0.2.0/24", "n2")):
        cluster.blocks.put(bodies.node_block(Prefix.parse(text), name))
    task = cluster.collector()
    await asyncio.sleep(7200)
    assert all(len(store.objects) == 2 for store in (cluster.endpoints, cluster.statuses, cluster.blocks))
    del cluster.nodes.objects["n2"]
    await asyncio.sleep(300)
    assert set(cluster.endpoints.objects) == {"n1", "n2"}
    await asyncio.sleep(600)
    assert set(cluster.endpoints.objects) == set(cluster.statuses.objects) == {"n1"}
    assert set(cluster.blocks.objects) == {"10-0-1-0-24", "10-0-2-0-24"}
    await asyncio.sleep(4000)
    assert set(cluster.blocks.objects) == {"10-0-1-0-24"}
    cluster.nodes.objects.clear()  # a server that knows no Node at all
    await asyncio.sleep(7200)
    assert set(cluster.blocks.objects) == {"10-0-1-0-24"}
    await stopped(task)


@in_no_time
async def test_a_block_stays_while_its_node_still_tells_of_its_pods() -> None:
    cluster = Cluster()
    cluster.nodes.put({"metadata": {"name": "n1"}})
    cluster.blocks.put(bodies.node_block(Prefix.parse("10.0.2.0/24"), "n2"))

    async def lives(request: str, name: str) -> None:
        if "n2" not in cluster.endpoints.objects:  # its agent makes it again
            cluster.endpoints.put(bodies.node_endpoints("n2", NodeFacts(), []))

    cluster.endpoints.before = lives
    task = cluster.collector()
    await asyncio.sleep(86400)
    assert cluster.blocks.objects and cluster.endpoints.gone
    await stopped(task)


@pytest.mark.parametrize(
    "broken", [{"metadata": {"name": "n1"}}, {"metadata": {"name": "n1"}, "spec": {"endpoints": [{}]}}]
)
@in_no_time
async def test_what_cannot_be_read_may_name_anything(broken: dict[str, Any]) -> None:
    cluster = Cluster()
    cluster.identities.put(bodies.security_identity(300, workload("a")))
    cluster.endpoints.put(broken)
    task = cluster.collector()
    await asyncio.sleep(86400)
    assert cluster.identities.objects and not task.done()
    await stopped(task)


@in_no_time
async def test_a_server_that_is_away_is_waited_for() -> None:
    cluster = Cluster()
    cluster.identities.put(bodies.security_identity(300, workload("a")))
    away = True

    async def fail(request: str, name: str) -> None:
        if away:
            raise Away("503", 1.0)

    cluster.identities.before = fail
    task = cluster.collector()
    await asyncio.sleep(3600)
    assert len(cluster.identities.requests) < 3600 / 40 and cluster.identities.objects
    away = False
    await asyncio.sleep(3600)
    assert not cluster.identities.objects
    await stopped(task)


class Agent:
    """Pods with label sets, a watch of SecurityIdentities that lags, and the real allocator and membership."""

    def __init__(self, cluster: Cluster, name: str, draw: random.Random, lag_s: float) -> None:
        self.cluster, self.name, self.draw, self.lag_s = cluster, name, draw, lag_s
        self.pods: dict[str, tuple[str, int]] = {}  # name → labels' name, number it has (0: none)
        self.numbers_of: dict[Key, dict[int, bool]] = {}  # to whether it is marked
        self.meant: dict[int, Key] = {}
        self.events: deque[tuple[str, bytes | None]] = deque()
        self.arrived = asyncio.Event()
        self.allocator = IdentityAllocator(cluster.identities, self, lambda raw: self.learn(None, raw))
        self.membership = Membership(
            cluster.endpoints, cluster.nodes, name, NodeFacts, self.endpoints, self.allocator.confirm
        )
        runs = (self.allocator.run(), self.membership.run(), self.watch())
        self.tasks = [asyncio.create_task(run) for run in runs]

    def learn(self, number: int | None, raw: bytes | None) -> None:
        head = msgspec.json.decode(raw, type=IdentityHead) if raw is not None else None
        number = int(head.metadata.name) if head else number
        assert number is not None
        old = self.meant.pop(number, None)
        if old is not None:
            self.numbers_of[old].pop(number, None)
        if head is not None:
            self.meant[number] = head.key
            self.numbers_of.setdefault(head.key, {})[number] = bool(head.metadata.unused_since)
        self.turn()

    def turn(self) -> None:
        for pod, (labels, number) in self.pods.items():
            known = self.numbers_of.get(key_of(labels), {})
            fit = [n for n, marked in known.items() if not marked]
            kept = number if number in fit else min(fit, default=number if number in known else 0)
            self.pods[pod] = (labels, kept)
        self.allocator.wake()
        self.membership.wake()

    def endpoints(self) -> list[NodeEndpoint]:
        return [
            NodeEndpoint(
                ObjectRef("Pod", "shop", pod), (parse_address("10.0.0.9"),), number, key_digest(key_of(labels))
            )
            for pod, (labels, number) in self.pods.items()
            if number
        ]

    def wanted(self) -> Mapping[Key, Workload]:
        labels = {one for one, _ in self.pods.values()}
        return {
            key_of(one): workload(one) for one in labels if all(self.numbers_of.get(key_of(one), {1: True}).values())
        }

    def numbers(self, key: Key) -> Collection[int]:
        return self.numbers_of.get(key, {})

    def meaning(self, number: int) -> Key | None:
        return self.meant.get(number)

    async def watch(self) -> None:
        while True:
            await self.arrived.wait()
            await asyncio.sleep(self.draw.uniform(0, self.lag_s))
            self.arrived.clear()
            while self.events:
                name, raw = self.events.popleft()
                self.learn(int(name), raw)

    def confirmed(self) -> set[tuple[int, str]]:
        return {(one.identity, one.digest) for one in self.membership._published.values()}


HASTY = Times(period_s=1.0, idle_s=1.0, grace_s=3.0)


@pytest.mark.parametrize(
    ("lag_s", "times", "strict"), [(30.0, TIMES, True), (100.0, HASTY, False)], ids=["lag", "hasty"]
)
@in_no_time
async def test_a_number_that_is_named_is_never_deleted(lag_s: float, times: Times, strict: bool) -> None:
    """Two collectors at once, four agents, requests that take their time and fail. With watches that lag less than the
    grace period no number is deleted that any NodeEndpoints names; with a grace period of nothing none that was
    confirmed after it was named, which is what a pod's start waits for."""
    seed = random.randrange(1 << 32)
    print("seed", seed)
    draw = random.Random(seed)
    cluster = Cluster()
    agents: list[Agent] = []
    deleted = 0

    async def slow(request: str, name: str) -> None:
        await asyncio.sleep(draw.choice((0.0, 0.01, 0.5, 5.0)))
        if draw.random() < 0.03:
            raise Away("connection reset")

    async def effect(request: str, name: str) -> None:
        nonlocal deleted
        if request in ("create", "merge", "delete"):
            there = cluster.identities.objects.get(name)
            for agent in agents:
                agent.events.append((name, msgspec.json.encode(there) if there else None))
                agent.arrived.set()
        if request == "delete":
            deleted += 1
            for one in agents:
                server = cluster.endpoints.objects.get(one.name, {"spec": {"endpoints": []}})
                named = {(e["identity"], e["digest"]) for e in server["spec"]["endpoints"]}
                last = (int(name), key_digest(msgspec.convert(cluster.identities.gone[-1], IdentityHead).key))
                assert last not in named & one.confirmed(), (name, one.name)
                assert not strict or last not in named, (name, one.name)
        await slow(request, name)

    for store in (cluster.identities, cluster.endpoints):
        store.before = slow
    cluster.identities.after, cluster.endpoints.after = effect, slow
    for i in range(4):
        cluster.nodes.put({"metadata": {"name": f"n{i}"}})
        agents.append(Agent(cluster, f"n{i}", draw, lag_s))
    collectors = [cluster.collector(times), cluster.collector(times)]
    published = 0
    for _ in range(1500 if strict else 4000):
        agent = draw.choice(agents)
        pod = f"pod-{draw.randrange(4)}"
        if draw.random() < (0.6 if strict else 0.75):
            agent.pods.pop(pod, None)
            agent.turn()
        else:
            agent.pods[pod] = (f"app-{draw.randrange(12 if strict else 6)}", 0)
            agent.turn()
            published += await agent.membership.published(ObjectRef("Pod", "shop", pod), 30.0)
        await asyncio.sleep(draw.choice((0.0, 1.0, 100.0, 400.0) if strict else (0.0, 2.0, 5.0, 15.0)))
        for task in collectors:
            assert not task.done(), task
    print("deleted", deleted, "published", published)
    assert deleted > 10 and published > 100
    await stopped(*collectors, *(task for agent in agents for task in agent.tasks))

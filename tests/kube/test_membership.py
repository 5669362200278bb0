"""What a node tells the others of its pods, and when it counts as told."""

import asyncio
import random
from collections.abc import AsyncIterator, Iterable
from contextlib import asynccontextmanager
from typing import Any

import pytest
from coroutines import in_no_time, now_s
from object_store import ObjectStore

from agent.kube.bodies import NodeFacts, RefusedPolicy
from agent.kube.membership import Membership
from agent.kube.nodestatus import LEAST_S, MOST_S, Report, StatusReporter
from agent.kube.writes import Away, Refused
from agent.objects import DeclaredPort, NodeEndpoint
from policies.address import Prefix, format_address, parse_address
from policies.model import ObjectRef

DIGEST = "00000000000000aa"
FACTS = NodeFacts((parse_address("192.0.2.7"),), (Prefix.parse("10.244.7.0/24"), Prefix.parse("fd00:7::/64")))


def endpoint(name: str, last: int, identity: int = 300, ports: tuple[DeclaredPort, ...] = ()) -> NodeEndpoint:
    return NodeEndpoint(ObjectRef("Pod", "shop", name), (parse_address(f"10.244.7.{last}"),), identity, DIGEST, ports)


WEB, DB = endpoint("web", 2), endpoint("db", 3, 301)


class Node:
    """A node's membership, the server it tells, and the numbers that are there."""

    def __init__(self) -> None:
        self.server, self.nodes = ObjectStore(), ObjectStore()
        self.nodes.put({"kind": "Node", "metadata": {"name": "n7"}})
        self.facts = FACTS
        self.endpoints: dict[ObjectRef, NodeEndpoint] = {}
        self.numbers = {300: DIGEST, 301: DIGEST}
        self.confirmed: list[int] = []
        self.seen_last: str | None = None
        self.blind = False  # its watch stands still
        self.tampered = False  # somebody else has written or deleted the object
        self.membership = Membership(
            self.server, self.nodes, "n7", lambda: self.facts, self.given, self.confirm, seen=self.seen
        )

    def given(self) -> Iterable[NodeEndpoint]:
        return self.endpoints.values()

    def seen(self) -> str | None:
        if not self.blind:
            self.seen_last = self.server.version("n7") if "n7" in self.server.objects else None
        return self.seen_last

    async def confirm(self, number: int, digest: str) -> bool:
        assert self.tampered or number in {one["identity"] for one in self.told()}  # it was published before
        self.confirmed.append(number)
        await asyncio.sleep(0)
        return self.numbers.get(number) == digest

    def told(self) -> list[dict[str, Any]]:
        told: list[dict[str, Any]] = self.server.objects["n7"]["spec"]["endpoints"]
        return told

    def has(self, *endpoints: NodeEndpoint) -> None:
        self.endpoints = {one.pod: one for one in endpoints}
        self.membership.wake()

    def writes(self) -> int:
        return sum(request in ("create", "replace") for request, _ in self.server.requests)

    @asynccontextmanager
    async def running(self) -> AsyncIterator[None]:
        task = asyncio.create_task(self.membership.run())
        try:
            yield
            assert not task.done(), task
        finally:
            task.cancel()
            await asyncio.gather(task, return_exceptions=True)


@in_no_time
async def test_what_is_told() -> None:
    node = Node()
    node.facts = NodeFacts(FACTS.addresses, FACTS.pod_cidrs, bytes(32), b"\xff" * 32)
    web = endpoint("web", 2, ports=(DeclaredPort("http", 6, 8080), DeclaredPort("dns", 17, 53)))
    node.has(web, DB)
    async with node.running():
        assert await node.membership.published(web.pod) and await node.membership.published(DB.pod)
    told = node.server.objects["n7"]
    assert (told["apiVersion"], told["kind"]) == ("gatehouse.io/v1alpha1", "NodeEndpoints")
    owner = {"apiVersion": "v1", "kind": "Node", "name": "n7", "uid": node.nodes.objects["n7"]["metadata"]["uid"]}
    assert told["metadata"]["ownerReferences"] == [owner]
    assert told["spec"] == {
        "addresses": ["192.0.2.7"],
        "podCIDRs": ["10.244.7.0/24", "fd00:7::/64"],
        "publicKey": "A" * 43 + "=",
        "nextPublicKey": "/" * 42 + "8=",
        "endpoints": [
            {"pod": "shop/db", "ips": ["10.244.7.3"], "identity": 301, "digest": DIGEST},
            {
                "pod": "shop/web",
                "ips": ["10.244.7.2"],
                "identity": 300,
                "digest": DIGEST,
                "ports": [
                    {"name": "http", "protocol": "TCP", "port": 8080},
                    {"name": "dns", "protocol": "UDP", "port": 53},
                ],
            },
        ],
    }


@in_no_time
async def test_what_has_not_changed_is_not_written_again() -> None:
    node = Node()
    node.has(WEB)
    async with node.running():
        assert await node.membership.published(WEB.pod)
        for _ in range(50):
            node.membership.wake()
            assert await node.membership.published(WEB.pod)
            await asyncio.sleep(0.01)
        await asyncio.sleep(3600)  # nor when it is looked at
    assert node.writes() == 1


@in_no_time
async def test_a_new_agent_writes_nothing_if_all_is_as_it_was() -> None:
    node = Node()
    node.has(WEB)
    async with node.running():
        assert await node.membership.published(WEB.pod)
    later = Node()
    later.server = node.server
    later.membership = Membership(node.server, node.nodes, "n7", lambda: FACTS, lambda: [WEB], later.confirm)
    later.membership.wake()
    async with later.running():
        assert await later.membership.published(WEB.pod)
    assert node.writes() == 1 and later.confirmed == [300]  # who knows what became of the number meanwhile


@in_no_time
async def test_one_write_in_flight_and_the_next_has_all_that_came_meanwhile() -> None:
    node = Node()
    flying = 0

    async def slow(request: str, name: str) -> None:
        nonlocal flying
        flying += 1
        assert flying == 1
        await asyncio.sleep(0.02)
        flying -= 1

    node.server.before = slow
    async with node.running():
        answers = []
        for i in range(100):
            one = endpoint(f"pod-{i}", i + 2)
            node.has(*node.endpoints.values(), one)
            answers.append(asyncio.create_task(node.membership.published(one.pod)))
            await asyncio.sleep(0.001)
        assert all(await asyncio.gather(*answers))
    assert len(node.told()) == 100 and node.writes() <= 100 * 0.001 / 0.02 + 3


@in_no_time
async def test_a_number_is_looked_up_once_while_it_stays_named() -> None:
    node = Node()
    async with node.running():
        for i in range(2, 12):
            one = endpoint(f"pod-{i}", i)
            node.has(*node.endpoints.values(), one)
            assert await node.membership.published(one.pod)
        assert node.confirmed == [300]
        node.has()
        await asyncio.sleep(1)
        node.has(WEB)
        assert await node.membership.published(WEB.pod)
        assert node.confirmed == [300, 300]


@in_no_time
async def test_a_pod_whose_number_is_gone_is_not_published_until_it_has_another() -> None:
    node = Node()
    del node.numbers[300]
    node.has(WEB, DB)
    async with node.running():
        assert await node.membership.published(DB.pod)
        waiting = asyncio.create_task(node.membership.published(WEB.pod))
        await asyncio.sleep(1.5)
        assert not waiting.done()
        node.numbers[777] = DIGEST
        node.has(endpoint("web", 2, 777), DB)
        assert await waiting
        started = now_s()
        node.has(endpoint("web", 2, 300), DB)
        assert not await node.membership.published(WEB.pod)
        assert now_s() - started < 6


@in_no_time
async def test_conflicts_are_read_again_and_what_others_wrote_beside_the_spec_stays() -> None:
    node = Node()
    node.has(WEB)
    async with node.running():
        assert await node.membership.published(WEB.pod)
        theirs = node.server.objects["n7"]
        theirs["metadata"]["annotations"] = {"example.com/note": "kept"}
        theirs["spec"] = {"endpoints": []}
        node.server.put(theirs)
        node.has(WEB, DB)
        assert await node.membership.published(DB.pod)
    assert len(node.told()) == 2
    metadata = node.server.objects["n7"]["metadata"]
    assert metadata["annotations"] == {"example.com/note": "kept"} and metadata["ownerReferences"]
    assert node.confirmed.count(300) == 2  # it was not named for a while


@pytest.mark.parametrize("told", [True, False], ids=["by the watch", "by looking"])
@in_no_time
async def test_one_that_is_deleted_is_made_again_for_the_node_of_today(told: bool) -> None:
    node = Node()
    node.has(WEB)
    async with node.running():
        assert await node.membership.published(WEB.pod)
        node.membership.wake()
        assert await node.membership.published(WEB.pod)  # its watch has been looked at by now
        node.server.objects.clear()
        node.nodes.objects.clear()
        node.nodes.put({"kind": "Node", "metadata": {"name": "n7"}})
        node.blind = not told
        if told:
            node.membership.notice()
        await asyncio.sleep(1 if told else 600)
    assert len(node.told()) == 1
    uid = node.nodes.objects["n7"]["metadata"]["uid"]
    assert node.server.objects["n7"]["metadata"]["ownerReferences"][0]["uid"] == uid


@in_no_time
async def test_a_server_that_is_away_is_known_soon_and_told_when_it_is_back() -> None:
    node = Node()
    away = True

    async def cut(request: str, name: str) -> None:
        if away:
            raise Away("connection refused")

    node.server.before = cut
    async with node.running():
        node.has(WEB)
        started = now_s()
        assert not await node.membership.published(WEB.pod)
        assert now_s() - started < 2
        await asyncio.sleep(3600)
        assert len(node.server.requests) < 3600 / 15 * 1.5
        (problem,) = node.membership.problems()
        assert "connection refused" in problem.message
        away = False
        await asyncio.sleep(60)
        assert node.told() and not node.membership.problems()


@in_no_time
async def test_a_server_that_hangs_holds_nobody_up_for_longer_than_agreed() -> None:
    node = Node()

    async def hang(request: str, name: str) -> None:
        await asyncio.sleep(3600)

    node.server.before = hang
    async with node.running():
        node.has(WEB)
        started = now_s()
        assert not await node.membership.published(WEB.pod, 3.0)
        assert now_s() - started == pytest.approx(3.0)


@in_no_time
async def test_a_refusal_is_told_and_tried_again() -> None:
    node = Node()
    refused = 2

    async def refuse(request: str, name: str) -> None:
        nonlocal refused
        if request == "create" and refused:
            refused -= 1
            raise Refused("403: give the agent's service account this right")

    node.server.before = refuse
    async with node.running():
        node.has(WEB)
        assert not await node.membership.published(WEB.pod)
        assert "this right" in str(node.membership.problems()[0])
        await asyncio.sleep(120)
        assert await node.membership.published(WEB.pod) and not node.membership.problems()


@in_no_time
async def test_whatever_happens_the_server_has_it_in_the_end() -> None:
    """Failures before and after requests took effect, foreign writes and deletions, pods that come and go."""
    seed = random.randrange(1 << 32)
    print("seed", seed)
    draw = random.Random(seed)
    trouble = True

    async def fail(request: str, name: str) -> None:
        await asyncio.sleep(draw.choice((0.0, 0.001, 0.1)))
        if trouble and draw.random() < 0.15:
            raise Away("connection reset", draw.choice((0.0, 1.0)))

    node = Node()
    node.server.before = node.server.after = fail
    node.tampered = True
    there: dict[ObjectRef, NodeEndpoint] = {}
    async with node.running():
        for _ in range(2000):
            one = endpoint(f"pod-{draw.randrange(20)}", draw.randrange(2, 250), draw.choice((300, 301)))
            if draw.random() < 0.4:
                there.pop(one.pod, None)
            else:
                there[one.pod] = one
            node.has(*there.values())
            if draw.random() < 0.04 and "n7" in node.server.objects:
                if draw.random() < 0.5:
                    node.server.put({**node.server.objects["n7"], "spec": {}})
                else:
                    del node.server.objects["n7"]
                node.blind = draw.random() < 0.5
            if draw.random() < 0.1:
                node.blind = False
            if one.pod in there and draw.random() < 0.3 and await node.membership.published(one.pod) and not node.blind:
                told = {(t["pod"], t["ips"][0], t["identity"]) for t in node.told()}
                assert (f"shop/{one.pod.name}", format_address(one.addresses[0]), one.identity) in told
            await asyncio.sleep(draw.choice((0.0, 0.01, 1.0)))
        trouble = False
        await asyncio.sleep(1000)
    assert {t["pod"] for t in node.told()} == {f"shop/{ref.name}" for ref in there}


class TestStatus:
    REFUSED = RefusedPolicy("CiliumNetworkPolicy/shop/odd", 2, "spec.ingress[0]: not understood " + "x" * 2000)

    @in_no_time
    async def test_is_written_seldom(self) -> None:
        server, nodes = ObjectStore(), ObjectStore()
        nodes.put({"kind": "Node", "metadata": {"name": "n7"}})
        report = Report("0.1.0", {"CiliumNetworkPolicy/shop/web": 1})
        reporter = StatusReporter(server, nodes, "n7", lambda: report)
        task = asyncio.create_task(reporter.run())
        for generation in range(2, 1002):
            report = Report("0.1.0", {"CiliumNetworkPolicy/shop/web": generation}, [self.REFUSED])
            reporter.wake()
            await asyncio.sleep(0.1)
        await asyncio.sleep(MOST_S)
        writes = [request for request, _ in server.requests if request.startswith("replace")]
        assert 100 / MOST_S - 1 <= len(writes) <= 100 / LEAST_S + 2 and set(writes) == {"replace-status"}
        status = server.objects["n7"]["status"]
        assert status["enforced"] == {"CiliumNetworkPolicy/shop/web": 1001} and status["version"] == "0.1.0"
        assert status["refused"][0]["generation"] == 2 and len(status["refused"][0]["message"]) == 1024
        reporter.wake()
        await asyncio.sleep(7200)
        assert len([1 for request, _ in server.requests if request.startswith("replace")]) == len(writes)
        task.cancel()
        await asyncio.gather(task, return_exceptions=True)

    @in_no_time
    async def test_survives_a_server_that_is_away_or_refuses(self) -> None:
        server, nodes = ObjectStore(), ObjectStore()
        faults: list[Exception] = [Away("reset"), Away("reset"), Refused("403"), Away("reset"), Refused("422")]

        async def fail(request: str, name: str) -> None:
            if faults:
                raise faults.pop()

        server.before = fail
        reporter = StatusReporter(server, nodes, "n7", lambda: Report("0.1.0", {}))
        task = asyncio.create_task(reporter.run())
        reporter.wake()
        await asyncio.sleep(3600)
        assert server.objects["n7"]["status"]["version"] == "0.1.0" and not task.done()
        assert "ownerReferences" not in server.objects["n7"]["metadata"]  # there is no such Node
        task.cancel()
        await asyncio.gather(task, return_exceptions=True)


@in_no_time
async def test_the_watch_wakes_where_somebody_else_wrote_and_not_for_what_was_written_here() -> None:
    node = Node()
    node.has(WEB)
    async with node.running():
        assert await node.membership.published(WEB.pod)
        await asyncio.sleep(1)
        requests = len(node.server.requests)
        node.membership.notice()
        await asyncio.sleep(1)
        assert len(node.server.requests) == requests
        theirs = node.server.objects["n7"]
        theirs["spec"] = {"endpoints": []}
        node.server.put(theirs)
        node.membership.notice()
        await asyncio.sleep(1)
        assert len(node.told()) == 1

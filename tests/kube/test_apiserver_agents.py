"""The parts of an agent that speak to the API server, over HTTP, with the in-test one and a real kube-apiserver."""

from __future__ import annotations

import asyncio
import random
from collections import Counter
from collections.abc import AsyncIterator, Callable, Collection, Coroutine, Iterator, Mapping
from contextlib import asynccontextmanager
from itertools import pairwise
from pathlib import Path
from typing import Any

import msgspec
import pytest
from apiserver import ApiServer
from apiserver.real import RealServer, missing
from coroutines import on_a_loop
from kube_source import NODE, PATIENT, QUICK, Follower, identity, made, pod, policy, stored

from agent.identity.labels import identity_key, key_digest
from agent.kube import bodies, nodestatus
from agent.kube import conditions as policytimes
from agent.kube.blocks import NodeBlocks, pool_blocks
from agent.kube.bodies import IdentityHead, Key, NodeFacts
from agent.kube.client import ApiClient
from agent.kube.identities import IdentityAllocator
from agent.kube.lease import Lease, Times
from agent.kube.membership import Membership
from agent.kube.nodestatus import Report, StatusReporter
from agent.kube.policystatus import PolicyStatus
from agent.kube.source import KubernetesSource
from agent.kube.writes import Collection as ObjectsOverHttp
from agent.objects import NodeEndpoint
from policies.address import Prefix, parse_address
from policies.model import SERVICE_ACCOUNT, ObjectRef, Workload

Api = ApiServer | RealServer
SHORT_S = 0.5
"""So long nothing must come where nothing is to come."""


@pytest.fixture(params=["in-test"] if missing() else ["in-test", "real"])
def own_api(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Api]:
    """The one, then the other, with nothing of other tests in it."""
    if request.param == "real":
        server = RealServer(tmp_path_factory.mktemp("own"))
        yield server
        server.close()
        return
    with ApiServer(token="own") as api:
        yield api


@asynccontextmanager
async def reaching(api: Api, directory: Path) -> AsyncIterator[ApiClient]:
    client = ApiClient(kubeconfig=str(api.kubeconfig(directory / "kubeconfig")), timeouts=PATIENT)
    try:
        yield client
    finally:
        await client.close()


@asynccontextmanager
async def running(*works: Coroutine[Any, Any, None]) -> AsyncIterator[None]:
    tasks = [asyncio.create_task(work) for work in works]
    try:
        yield
        assert not any(task.done() for task in tasks), tasks
    finally:
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)


async def comes(holds: Callable[[], bool]) -> None:
    async with asyncio.timeout(90):
        while not await asyncio.to_thread(holds):
            await asyncio.sleep(0.02)


@on_a_loop
async def test_a_source_over_changes_and_a_server_that_comes_back(own_api: Api, tmp_path: Path) -> None:
    api = own_api
    api.load([made("v1", "Node", NODE), policy("a", app="1"), policy("gone"), identity(300, app="web"), pod("mine")])
    async with reaching(api, tmp_path) as client:
        source = KubernetesSource(client, NODE, tmp_path, api_wait_s=30.0, timings=QUICK)
        follower = Follower(source)
        assert (await follower.start()).problems == [] and follower.world == stored(api)
        async with running(follower.run()):
            await asyncio.to_thread(api.put, policy("a", app="2"))
            await asyncio.to_thread(api.put, policy("b"))
            await asyncio.to_thread(api.delete, "networkpolicies", "gone", "shop")
            await follower.until(lambda: follower.names("NetworkPolicy") == {"a", "b"})
            await asyncio.to_thread(api.stop)
            await asyncio.to_thread(api.start)
            await asyncio.to_thread(api.put, policy("c"))
            await asyncio.to_thread(api.delete, "securityidentities", "300")
            await follower.until(
                lambda: {"c"} <= follower.names("NetworkPolicy") and not follower.names("SecurityIdentity")
            )
            assert follower.world == await asyncio.to_thread(stored, api)
            assert sorted(follower.told("NetworkPolicy")) == ["-gone", "a", "b", "c"], "nothing twice"
        source.close()


class Wanting:
    """What a World would want and know."""

    def __init__(self, wanted: Mapping[Key, Workload]) -> None:
        self.asked = dict(wanted)
        self.meant: dict[int, Key] = {}
        self.settled = asyncio.Event()

    def observe(self, raw: bytes) -> None:
        head = msgspec.json.decode(raw, type=IdentityHead)
        self.meant[int(head.metadata.name)] = head.key
        self.asked.pop(head.key, None)
        if not self.asked:
            self.settled.set()

    def wanted(self) -> Mapping[Key, Workload]:
        return self.asked

    def numbers(self, key: Key) -> Collection[int]:
        return [number for number, meant in self.meant.items() if meant == key]

    def meaning(self, number: int) -> Key | None:
        return self.meant.get(number)


@on_a_loop
async def test_ten_agents_race_for_numbers(own_api: Api, tmp_path: Path) -> None:
    """Each with a connection of its own wants them all, and knows only what it finds out itself."""
    seed = random.randrange(1 << 32)
    print("seed", seed)
    draw = random.Random(seed)
    workloads = [
        Workload(f"ns-{i % 7}", {"app": f"a{i}", SERVICE_ACCOUNT: "default"})
        for i in range(200 if isinstance(own_api, ApiServer) else 60)
    ]
    keys = {identity_key(one.namespace, {"app": one.labels["app"]}, "default"): one for one in workloads}
    agents = [Wanting(dict(draw.sample(sorted(keys.items()), len(keys)))) for _ in range(10)]

    async def allocate(agent: Wanting) -> None:
        async with reaching(own_api, tmp_path) as client:
            allocator = IdentityAllocator(
                ObjectsOverHttp(client, bodies.GROUP, "securityidentities"), agent, agent.observe
            )
            allocator.wake()
            async with running(allocator.run()):
                await agent.settled.wait()

    await asyncio.gather(*map(allocate, agents))
    heads = [msgspec.convert(one, IdentityHead) for one in own_api.objects("securityidentities")]
    given = {int(head.metadata.name): head.key for head in heads}
    twice = [key for key, other in pairwise(sorted(given.values())) if key == other]
    assert set(given.values()) == keys.keys() and len(twice) <= 5
    assert all(given[number] == key for agent in agents for number, key in agent.meant.items())


@on_a_loop
async def test_many_nodes_claim_blocks(own_api: Api, tmp_path: Path) -> None:
    pools = pool_blocks(["10.9.0.0/19", "fd00:9::/59"], [24, 64])

    async def claim(number: int) -> tuple[Prefix, ...]:
        state = tmp_path / f"n{number}"
        state.mkdir()
        async with reaching(own_api, state) as client:
            objects = ObjectsOverHttp(client, bodies.GROUP, "nodeblocks")
            return await NodeBlocks(objects, f"n{number}", pools, state).claim()

    claimed = [block for blocks in await asyncio.gather(*map(claim, range(20))) for block in blocks]
    assert len(claimed) == 40 and max(Counter(claimed).values()) == 1
    assert {one["spec"]["cidr"] for one in own_api.objects("nodeblocks")} == {str(block) for block in claimed}


@on_a_loop
async def test_a_node_tells_of_its_pods(own_api: Api, tmp_path: Path) -> None:
    api, web = own_api, ObjectRef("Pod", "shop", "web")
    node = api.put(made("v1", "Node", NODE))
    key = identity_key("shop", {"app": "web"}, "default")
    api.put(identity(300, app="web"))
    told = NodeEndpoint(web, (parse_address("10.9.0.2"), parse_address("fd00:9::2")), 300, key_digest(key))
    facts = NodeFacts((parse_address("192.0.2.1"),), (Prefix.parse("10.9.0.0/24"), Prefix.parse("fd00:9::/64")))
    endpoints: list[NodeEndpoint] = []

    async def confirm(number: int, digest: str) -> bool:
        return (number, digest) == (300, key_digest(key))

    async with reaching(api, tmp_path) as client:
        membership = Membership(
            ObjectsOverHttp(client, bodies.GROUP, "nodeendpoints"),
            ObjectsOverHttp(client, "api/v1", "nodes"),
            NODE,
            lambda: facts,
            lambda: endpoints,
            confirm,
        )
        async with running(membership.run()):
            membership.wake()
            endpoints.append(told)
            membership.wake()
            assert await membership.published(web)
            there = await asyncio.to_thread(api.get, "nodeendpoints", NODE)
            assert there is not None and there["spec"]["podCIDRs"] == ["10.9.0.0/24", "fd00:9::/64"]
            assert [one["pod"] for one in there["spec"]["endpoints"]] == ["shop/web"]
            assert [one["uid"] for one in there["metadata"]["ownerReferences"]] == [node["metadata"]["uid"]]
            endpoints.clear()
            membership.wake()
            await comes(lambda: not (api.get("nodeendpoints", NODE) or there)["spec"].get("endpoints"))
        assert membership.problems() == []


@on_a_loop
async def test_a_lease_has_one_holder_at_a_time(own_api: Api, tmp_path: Path) -> None:
    own_api.put(made("v1", "Namespace", "gatehouse-system"))
    times = Times(duration_s=600, renew_s=400.0, retry_s=0.1, look_s=0.1)
    working: list[str] = []
    async with reaching(own_api, tmp_path) as client:
        leases = ObjectsOverHttp(client, "apis/coordination.k8s.io/v1", "leases")

        def holding(name: str) -> Coroutine[Any, Any, None]:
            async def work() -> None:
                working.append(name)
                try:
                    await asyncio.Event().wait()
                finally:
                    working.remove(name)

            return Lease(leases, "gatehouse-system", name, times=times).run(work)

        async with running(holding("first")):
            await comes(lambda: working == ["first"])
            second = asyncio.create_task(holding("second"))
            await asyncio.sleep(SHORT_S)
            assert working == ["first"]
        await comes(lambda: working == ["second"])  # given back: it does not wait for the duration to end
        second.cancel()
        await asyncio.gather(second, return_exceptions=True)


@on_a_loop
async def test_what_nodes_enforce_becomes_conditions(
    own_api: Api, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """At once, where it is left time to settle otherwise."""
    for module, name in (
        (nodestatus, "LEAST_S"),
        (nodestatus, "MOST_S"),
        (policytimes, "FIRST_S"),
        (policytimes, "NEXT_S"),
    ):
        monkeypatch.setattr(module, name, 0.0)
    api = own_api
    api.load([made("v1", "Node", NODE), made("cilium.io/v2", "CiliumNetworkPolicy", "web", "shop", spec={"a": 1})])
    enforced = {"CiliumNetworkPolicy/shop/web": 1}

    def conditions() -> dict[str, str]:
        there = api.get("ciliumnetworkpolicies", "web", "shop")
        assert there is not None
        return {one["type"]: one["status"] for one in there.get("status", {}).get("conditions", [])}

    async with reaching(api, tmp_path) as client:
        objects = ObjectsOverHttp(client, bodies.GROUP, "nodestatuses")
        nodes = ObjectsOverHttp(client, "api/v1", "nodes")
        reporter = StatusReporter(objects, nodes, NODE, lambda: Report("0.1.0", enforced))
        async with running(reporter.run(), PolicyStatus(client, period_s=0.05).run()):
            reporter.wake()
            await comes(lambda: conditions() == {"Valid": "True", "Enforced": "True"})
            changed = made("cilium.io/v2", "CiliumNetworkPolicy", "web", "shop", spec={"a": 2})
            await asyncio.to_thread(api.put, changed)
            await comes(lambda: conditions().get("Enforced") == "False")
            enforced["CiliumNetworkPolicy/shop/web"] = 2
            reporter.wake()
            await comes(lambda: conditions() == {"Valid": "True", "Enforced": "True"})

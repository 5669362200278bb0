"""All that agents write, by HTTP: to the in-test API server, and to a real one where there is one."""

import asyncio
import random
import uuid
from collections.abc import AsyncIterator, Callable, Coroutine, Iterable
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import msgspec
import pytest
from apiserver import ApiServer
from apiserver.real import RealServer
from coroutines import on_a_loop

from agent.identity.labels import identity_key, key_digest
from agent.kube import bodies
from agent.kube.blocks import NodeBlocks, pool_blocks
from agent.kube.bodies import GROUP, IdentityHead, Key, NodeFacts, RefusedPolicy
from agent.kube.client import ApiClient
from agent.kube.collector import Collector, Kinds, Times
from agent.kube.identities import IdentityAllocator
from agent.kube.lease import GROUP as LEASES
from agent.kube.lease import Lease
from agent.kube.lease import Times as LeaseTimes
from agent.kube.membership import Membership
from agent.kube.nodestatus import Report, StatusReporter
from agent.kube.policystatus import PolicyStatus
from agent.kube.writes import Collection
from agent.objects import NodeEndpoint
from policies.address import Prefix, parse_address
from policies.model import SERVICE_ACCOUNT, ObjectRef, Workload

Api = ApiServer | RealServer
FACTS = NodeFacts((parse_address("192.0.2.7"),), (Prefix.parse("10.244.7.0/24"),))


class Site:
    """A node's client, and collections by it. Names are of this test alone: a real server is shared."""

    def __init__(self, api: Api, client: ApiClient) -> None:
        self.api, self.client = api, client
        self.unique = uuid.uuid4().hex[:8]
        self.node = f"n-{self.unique}"
        self.identities, self.endpoints, self.statuses, self.blocks = (
            Collection(client, GROUP, plural)
            for plural in ("securityidentities", "nodeendpoints", "nodestatuses", "nodeblocks")
        )
        self.nodes = Collection(client, "api/v1", "nodes")
        self.policies = Collection(client, "apis/cilium.io/v2", "ciliumnetworkpolicies")
        self.leases = Collection(client, LEASES, "leases")

    async def make_node(self) -> str:
        body = {"apiVersion": "v1", "kind": "Node", "metadata": {"name": self.node}}
        uid: str = read(await self.nodes.create(bodies.json_of(body)))["metadata"]["uid"]
        return uid


def read(raw: bytes) -> dict[str, Any]:
    found: dict[str, Any] = msgspec.json.decode(raw)
    return found


@asynccontextmanager
async def site_at(api: Api, path: Path) -> AsyncIterator[Site]:
    client = ApiClient(kubeconfig=str(api.kubeconfig(path / "kubeconfig")))
    try:
        yield Site(api, client)
    finally:
        await client.close()


@asynccontextmanager
async def running(*runs: Coroutine[Any, Any, None]) -> AsyncIterator[None]:
    tasks = [asyncio.create_task(run) for run in runs]
    try:
        yield
        assert not any(task.done() for task in tasks)
    finally:
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)


async def until(so: Callable[[], Coroutine[Any, Any, bool]]) -> None:
    async with asyncio.timeout(90):
        while not await so():
            await asyncio.sleep(0.01)


class Wants:
    """A World that wants numbers for these labels."""

    def __init__(self, namespace: str, apps: Iterable[str]) -> None:
        self.asked: dict[Key, Workload] = {}
        for app in apps:
            key = identity_key(namespace, {"app": app}, "default")
            self.asked[key] = Workload(namespace, {"app": app, SERVICE_ACCOUNT: "default"})
        self.meant: dict[int, Key] = {}
        self.settled = asyncio.Event()

    def observe(self, raw: bytes) -> None:
        head = msgspec.json.decode(raw, type=IdentityHead)
        self.meant[int(head.metadata.name)] = head.key
        self.asked.pop(head.key, None)
        if not self.asked:
            self.settled.set()

    def wanted(self) -> dict[Key, Workload]:
        return self.asked

    def numbers(self, key: Key) -> list[int]:
        return []

    def meaning(self, number: int) -> Key | None:
        return self.meant.get(number)


@on_a_loop
async def test_ten_agents_race_for_identities(either_api: Api, tmp_path: Path) -> None:
    """For 600 label sets (a real server: 60), each with a client of its own and for a third of them."""
    async with site_at(either_api, tmp_path) as site:
        apps = [f"app-{i}" for i in range(600 if isinstance(either_api, ApiServer) else 60)]
        worlds = [Wants(site.unique, random.sample(apps, len(apps) // 3)) for _ in range(10)]
        wanted = {key for world in worlds for key in world.asked}
        clients = [ApiClient(kubeconfig=str(either_api.kubeconfig(tmp_path / f"c{i}"))) for i in range(10)]
        allocators = [
            IdentityAllocator(Collection(client, GROUP, "securityidentities"), world, world.observe)
            for client, world in zip(clients, worlds, strict=True)
        ]
        async with running(*(one.run() for one in allocators)):
            for one in allocators:
                one.wake()
            await asyncio.gather(*(world.settled.wait() for world in worlds))
        for client in clients:
            await client.close()
        found: dict[Key, list[str]] = {}
        async for page in site.identities.pages():
            for raw in page:
                head = msgspec.json.decode(raw, type=IdentityHead)
                if head.spec.namespace == site.unique:
                    found.setdefault(head.key, []).append(head.metadata.name)
        twice = [key for key, numbers in found.items() if len(numbers) > 1]
        print("label sets with two numbers:", len(twice))
        assert found.keys() == wanted and len(twice) <= 5
        meant = {int(number): key for key, numbers in found.items() for number in numbers}
        assert all(meant[n] == key for world in worlds for n, key in world.meant.items() if n in meant)


@on_a_loop
async def test_a_node_tells_of_its_pods(either_api: Api, tmp_path: Path) -> None:
    async with site_at(either_api, tmp_path) as site:
        uid = await site.make_node()
        world = Wants(site.unique, ["web"])
        (key,) = world.asked
        allocator = IdentityAllocator(site.identities, world, world.observe)
        endpoints: list[NodeEndpoint] = []
        seen: list[str] = []  # by a watch
        membership = Membership(
            site.endpoints,
            site.nodes,
            site.node,
            lambda: FACTS,
            endpoints.copy,
            allocator.confirm,
            seen=lambda: next(iter(seen), None),
        )
        async with running(allocator.run(), membership.run()):
            allocator.wake()
            await world.settled.wait()
            (number,) = world.meant
            web = NodeEndpoint(ObjectRef("Pod", "shop", "web"), (parse_address("10.244.7.2"),), number, key_digest(key))
            endpoints.append(web)
            membership.wake()
            assert await membership.published(web.pod)
            there = read(await site.endpoints.get(site.node))
            assert there["spec"]["endpoints"][0]["identity"] == number
            assert there["metadata"]["ownerReferences"][0]["uid"] == uid
            endpoints.append(msgspec.structs.replace(web, pod=ObjectRef("Pod", "shop", "web-2")))
            membership.wake()
            assert await membership.published(endpoints[-1].pod)

            meta = read(await site.endpoints.get(site.node))["metadata"]
            seen.append(meta["resourceVersion"])
            membership.wake()
            assert await membership.published(web.pod)
            await site.endpoints.delete(site.node, meta["uid"], meta["resourceVersion"])
            seen.clear()
            membership.notice()
            assert await membership.published(web.pod)
            assert len(read(await site.endpoints.get(site.node))["spec"]["endpoints"]) == 2


@pytest.mark.parametrize("fault", ["half-open", "overloaded", "failing", "cut off", "down"])
@on_a_loop
async def test_a_server_in_trouble_is_found_out_and_told_later(api: ApiServer, tmp_path: Path, fault: str) -> None:
    async with site_at(api, tmp_path) as site:
        await site.make_node()
        endpoints: list[NodeEndpoint] = []

        async def confirm(number: int, digest: str) -> bool:
            return True

        told = Collection(site.client, GROUP, "nodeendpoints", request_s=0.5)
        membership = Membership(told, site.nodes, site.node, lambda: FACTS, endpoints.copy, confirm)
        web = NodeEndpoint(ObjectRef("Pod", "shop", "web"), (parse_address("10.244.7.2"),), 300, "0" * 16)
        async with running(membership.run()):
            endpoints.append(web)
            membership.wake()
            await until(lambda: membership.published(web.pod))  # a request that took too long is asked again
            later = msgspec.structs.replace(web, pod=ObjectRef("Pod", "shop", "later"))
            if fault == "half-open":
                api.faults.hang(resources=["nodeendpoints"])
            elif fault == "overloaded":
                api.faults.refuse(429, retry_after_s=1, resources=["nodeendpoints"])
            elif fault == "failing":
                api.faults.refuse(500, resources=["nodeendpoints"])
            elif fault == "cut off":
                api.faults.reset(after=10, resources=["nodeendpoints"])
            else:
                await asyncio.to_thread(api.stop)
            endpoints.append(later)
            membership.wake()
            async with asyncio.timeout(90):  # it ends
                assert not await membership.published(later.pod, 3.0)
            assert membership.problems()
            api.faults.clear()
            if fault == "down":
                await asyncio.to_thread(api.start)
            await until(lambda: membership.published(later.pod))
            assert not membership.problems()
            assert len(read(await site.endpoints.get(site.node))["spec"]["endpoints"]) == 2


@on_a_loop
async def test_a_policy_learns_what_became_of_it(
    either_api: Api, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """From a node's report to the policy's conditions."""
    monkeypatch.setattr("agent.kube.nodestatus.LEAST_S", 0.0)
    monkeypatch.setattr("agent.kube.nodestatus.MOST_S", 0.01)
    async with site_at(either_api, tmp_path) as site:
        await site.make_node()
        name = f"web-{site.unique}"
        policy = {
            "apiVersion": "cilium.io/v2",
            "kind": "CiliumNetworkPolicy",
            "metadata": {"name": name, "namespace": "default"},
            "spec": {"endpointSelector": {}},
        }
        await site.policies.create(bodies.json_of(policy), "default")
        refused = [RefusedPolicy(f"CiliumNetworkPolicy/default/{name}", 1, "spec: must have a rule")]
        reporter = StatusReporter(site.statuses, site.nodes, site.node, lambda: Report("0.1.0", {}, refused))
        reporter.wake()

        async def refusal() -> bool:
            status = read(await site.policies.get(name, "default")).get("status", {})
            return any("must have a rule" in one["message"] for one in status.get("conditions", ()))

        async with running(reporter.run(), PolicyStatus(site.client, period_s=0.05).run()):
            await until(refusal)
        for objects, namespace, one in ((site.policies, "default", name), (site.statuses, "", site.node)):
            meta = read(await objects.get(one, namespace))["metadata"]
            await objects.delete(one, meta["uid"], meta["resourceVersion"], namespace)


@on_a_loop
async def test_blocks_and_the_lease(either_api: Api, tmp_path: Path) -> None:
    async with site_at(either_api, tmp_path) as site:
        third = uuid.uuid4().int % 0xFFFF + 1
        pools = pool_blocks([f"fd01:{third:x}::/32"], [34])  # four blocks
        claims = []
        for i in range(4):
            (tmp_path / f"s{i}").mkdir()
            claims.append(NodeBlocks(site.blocks, f"{site.node}-{i}", pools, tmp_path / f"s{i}").claim())
        given = await asyncio.gather(*claims)
        assert len(set(given)) == 4

        worked = asyncio.Event()

        async def work() -> None:
            worked.set()
            await asyncio.Event().wait()

        times = LeaseTimes(duration_s=600, renew_s=400.0, retry_s=0.1, look_s=0.1)
        for holder in ("a", "b"):  # the second need not wait: it is given back
            worked.clear()
            async with running(Lease(site.leases, "default", holder, f"lease-{site.unique}", times).run(work)):
                await asyncio.wait_for(worked.wait(), 90)
        spec = read(await site.leases.get(f"lease-{site.unique}", "default"))["spec"]
        assert spec["leaseTransitions"] == 2 and not spec.get("holderIdentity")


@on_a_loop
async def test_what_is_unused_is_collected(api: ApiServer, tmp_path: Path) -> None:
    """At a server of its own: the collector looks at everything there is."""
    async with site_at(api, tmp_path) as site:
        await site.make_node()
        named = NodeEndpoint(ObjectRef("Pod", "shop", "a"), (parse_address("10.0.0.2"),), 300, "0" * 16)
        await site.endpoints.create(bodies.json_of(bodies.node_endpoints(site.node, FACTS, [named])))
        await site.endpoints.create(bodies.json_of(bodies.node_endpoints("gone", FACTS, [])))
        for number in (300, 301):
            one = bodies.security_identity(number, Workload("shop", {"app": str(number), SERVICE_ACCOUNT: "default"}))
            await site.identities.create(bodies.json_of(one))
        api.faults.refuse(503, verbs=["delete", "list"], times=3)
        api.faults.refuse(409, verbs=["patch"], times=2)
        kinds = Kinds(site.identities, site.endpoints, site.statuses, site.blocks, site.nodes)
        times = Times(period_s=0.05, idle_s=0.1, grace_s=0.2, node_s=0.1, block_s=0.1)

        async def collected() -> bool:
            names = {
                one["metadata"]["name"] for kind in ("securityidentities", "nodeendpoints") for one in api.objects(kind)
            }
            return names == {"300", site.node}

        async with running(Collector(kinds, times).run()):
            await until(collected)
            await asyncio.sleep(0.5)
            assert await collected()

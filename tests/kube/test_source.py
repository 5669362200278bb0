"""What the API server has, the source tells of; whatever happens on the way."""

from __future__ import annotations

import asyncio
import time
from collections import Counter
from pathlib import Path
from typing import Any

import msgspec
import pytest
from apiserver import TABLE, ApiServer
from kube_source import NODE, QUICK, Follower, following, identity, made, pod, policy, ref, stored

from agent.kube.replica import Replica
from agent.objects import Namespace, NodeEndpoints, PolicySet, SecurityIdentity
from policies.model import ObjectRef, Policy


def test_everything_is_there_at_once(api: ApiServer, tmp_path: Path) -> None:
    api.load(policy(f"p{i}", app=str(i)) for i in range(1234))
    api.load([identity(300, a="b"), pod("mine", app="x"), pod("other", "n2"), made("v1", "Node", "n2")])
    api.load([made("v1", "Secret", "s", "shop", data={}), made("v1", "Secret", "t", "private", data={})])

    async def run() -> None:
        async with following(api.url, tmp_path, secret_namespaces=["shop"]) as follower:
            assert follower.first is not None
            assert follower.first.problems == []
            secret = ObjectRef("Secret", "shop", "s")
            assert follower.world.pop(secret).ref == secret
            assert follower.world == stored(api)
            assert follower.names("Pod") == {"mine"}
            assert not follower.source.from_disk

    asyncio.run(run())
    lists = [seen for seen in api.requests if seen.verb == "list" and seen.resource == "networkpolicies"]
    assert len(lists) == 3, "pages of 500"
    secrets = {seen.namespace for seen in api.requests if seen.resource == "secrets"}
    assert secrets == {"shop"}, "others' are not read"


def test_changes_come_as_they_are_made(api: ApiServer, tmp_path: Path) -> None:
    async def run() -> None:
        async with following(api.url, tmp_path) as follower:
            api.put(policy("a", app="1"))
            await follower.until(lambda: "a" in follower.names("NetworkPolicy"))
            api.put(policy("a", app="2"))
            api.put(made("v1", "Namespace", "shop", metadata={"labels": {"team": "red"}}))
            await follower.until(lambda: follower.world == stored(api))
            api.delete("networkpolicies", "a", "shop")
            await follower.until(lambda: not follower.names("NetworkPolicy"))
            assert follower.told("NetworkPolicy") == ["a", "a", "-a"]
            namespace = follower.world[ObjectRef("Namespace", "", "shop")]
            assert isinstance(namespace, Namespace)
            assert namespace.labels["team"] == "red"
            assert follower.batches[0].received_ns <= time.monotonic_ns()

    asyncio.run(run())


def test_what_nobody_reads_is_no_change(api: ApiServer, tmp_path: Path) -> None:
    node = made("v1", "Node", "n2", status={"conditions": [{"type": "Ready", "status": "True"}]})
    api.put(node)

    async def run() -> None:
        async with following(api.url, tmp_path) as follower:
            api.put({**node, "status": {"conditions": [], "images": [{"names": ["x"]}]}})
            api.put(policy("a"))
            api.put({**policy("a"), "metadata": {**policy("a")["metadata"], "managedFields": [{"manager": "m"}]}})
            api.put(policy("last"))
            await follower.until(lambda: "last" in follower.names("NetworkPolicy"))
            assert follower.told("Node") == []
            assert sorted(follower.told("NetworkPolicy")) == ["a", "last"]

    asyncio.run(run())


def _endpoints(node: str, *ips: str) -> dict[str, Any]:
    endpoints = [{"pod": f"shop/p{ip}", "ips": [ip], "identity": 300, "digest": "0" * 16} for ip in ips]
    spec = {"podCIDRs": ["10.9.0.0/24"], "endpoints": endpoints}
    return made("gatehouse.io/v1alpha1", "NodeEndpoints", node, spec=spec)


def test_of_its_own_pods_a_node_knows_more_than_it_tells(api: ApiServer, tmp_path: Path) -> None:
    """That they were written is told, for it may have been somebody else; those of other nodes are read."""
    api.load([_endpoints(NODE, "10.9.0.2"), _endpoints("n2", "10.9.0.2")])

    async def run() -> None:
        async with following(api.url, tmp_path) as follower:
            notices: list[None] = []
            follower.source.own_told = lambda: notices.append(None)
            own, other = (follower.world[ObjectRef("NodeEndpoints", "", name)] for name in (NODE, "n2"))
            assert isinstance(own, NodeEndpoints) and isinstance(other, NodeEndpoints)
            assert (len(own.endpoints), len(other.endpoints)) == (0, 1) and own.pod_cidrs == other.pod_cidrs
            api.put(_endpoints(NODE, "10.9.0.3", "10.9.0.4"))
            api.put(_endpoints("n2", "10.9.0.3", "10.9.0.4"))
            await follower.until(lambda: follower.told("NodeEndpoints") == ["n2"])
            assert len(notices) == 1
            api.delete("nodeendpoints", NODE)
            await follower.until(lambda: follower.told("NodeEndpoints") == ["n2", f"-{NODE}"])
            assert len(notices) == 2

    asyncio.run(run())


def test_a_policy_that_is_not_valid(api: ApiServer, tmp_path: Path) -> None:
    """The last version that was stays in force; also over a restart, with and without the server."""
    bad = policy("a", app="2")
    bad["spec"]["ingress"] = [{"ports": [{"port": 99999}]}]
    api.put(policy("a", app="1"))
    wanted = stored(api)[ref(bad)]
    file = "api:networking.k8s.io/networkpolicies/shop/a"

    async def run() -> None:
        async with following(api.url, tmp_path) as follower:
            api.put(bad)
            await follower.until(lambda: bool(follower.batches))
            [problem] = follower.batches[-1].problems
            assert str(problem).startswith(f"{file}: NetworkPolicy shop/a: spec.ingress[0].ports[0].port: ")
            assert problem.effect == "the last good version stays in force"
            assert follower.world[ref(bad)] == wanted
        for wait_s in (10.0, 0.0):
            if not wait_s:
                api.stop()
            async with following(api.url, tmp_path, api_wait_s=wait_s) as follower:
                assert follower.source.from_disk == (not wait_s)
                assert follower.world[ref(bad)] == wanted
                assert follower.first is not None
                assert len(follower.first.problems) == 1

    asyncio.run(run())


def test_a_policy_that_became_invalid_while_the_agent_was_away(api: ApiServer, tmp_path: Path) -> None:
    api.put(policy("a", app="1"))
    wanted = stored(api)[ref(policy("a"))]

    async def run() -> None:
        async with following(api.url, tmp_path):
            pass
        bad = policy("a", app="2")
        bad["spec"]["ingress"] = [{"ports": [{"port": 99999}]}]
        api.put(bad)
        async with following(api.url, tmp_path, api_wait_s=10) as follower:
            assert follower.world[ref(bad)] == wanted

    asyncio.run(run())


def test_a_new_policy_that_is_not_valid_isolates(api: ApiServer, tmp_path: Path) -> None:
    bad = policy("a", app="2")
    bad["spec"]["ingress"] = [{"ports": [{"port": 99999}]}]
    api.put(bad)

    async def run() -> None:
        async with following(api.url, tmp_path) as follower:
            found = follower.world[ref(bad)]
            assert isinstance(found, Policy)
            assert found.problem

    asyncio.run(run())


def test_nothing_of_what_was_deleted_lives_on_in_what_has_its_name(api: ApiServer, tmp_path: Path) -> None:
    """Though both are learnt of at once."""
    bad = policy("a", app="2")
    bad["spec"]["ingress"] = [{"ports": [{"port": 99999}]}]
    api.load([policy("a", app="1"), pod("p")])

    async def run() -> None:
        async with following(api.url, tmp_path) as follower:
            api.stop()
            api.delete("networkpolicies", "a", "shop")
            api.delete("pods", "p", "shop")
            api.load([bad, pod("p")])
            api.compact()
            api.start()
            await follower.until(lambda: len(follower.told("NetworkPolicy")) + len(follower.told("Pod")) == 4)
            assert follower.told("NetworkPolicy") == ["-a", "a"]
            assert follower.told("Pod") == ["-p", "p"]
            found = follower.world[ref(bad)]
            assert isinstance(found, Policy)
            assert found.problem, "isolated, rather than as the deleted one was"

    asyncio.run(run())


def test_text_that_cannot_be_read(api: ApiServer, tmp_path: Path) -> None:
    """It is no end of anything: what was there stays, and people are told."""
    api.put(policy("a", app="1"))

    async def run() -> None:
        async with following(api.url, tmp_path) as follower:
            before = dict(follower.world)
            raw = msgspec.json.encode(policy("a", app="2") | api.put(policy("a", app="2")))
            api.faults.stall()
            follower.source.observe(
                raw.replace(b'"app":"2"', b'"app":"\xff"').replace(b'resourceVersion":"', b'resourceVersion":"9')
            )
            await follower.until(lambda: bool(follower.batches and follower.batches[-1].problems))
            [problem] = follower.batches[-1].problems
            assert problem.message.startswith("cannot be read: ")
            assert follower.world.keys() == before.keys()

    asyncio.run(run())


def test_a_reflector_that_fails_is_not_taken_for_peace(
    api: ApiServer, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    async def run() -> None:
        async with following(api.url, tmp_path, started=False) as follower:
            await follower.start()
            monkeypatch.setattr(Replica, "put", lambda *_: 1 / 0)
            api.put(policy("a"))
            with pytest.raises(ZeroDivisionError):
                await follower.run()

    asyncio.run(run())


# ---- without a server


def test_a_start_without_the_server_and_its_return(api: ApiServer, tmp_path: Path) -> None:
    api.load([policy("stays"), policy("goes"), policy("changes", app="1"), identity(300)])

    async def run() -> None:
        async with following(api.url, tmp_path) as follower:
            before = dict(follower.world)
        api.stop()
        api.delete("networkpolicies", "goes", "shop")
        api.load([policy("changes", app="2"), policy("comes")])
        async with following(api.url, tmp_path) as follower:
            assert follower.source.from_disk
            assert follower.world == before
            status = follower.source.status()
            assert status.unreachable_s is not None
            assert {one.synced_ago_s for one in status.resources} == {None}
            api.start()
            await follower.until(lambda: follower.world == stored(api))
            assert set(follower.told("NetworkPolicy")) == {"comes", "changes", "-goes"}, "one difference"
            assert follower.told("SecurityIdentity") == []
            assert follower.source.status().unreachable_s is None

    asyncio.run(run())


def test_nobody_starts_from_an_empty_world(tmp_path: Path) -> None:
    with ApiServer() as api:
        api.put(policy("a"))
        api.stop()

        async def run() -> None:
            async with following(api.url, tmp_path, api_wait_s=0.0, started=False) as follower:
                start = asyncio.create_task(follower.start())
                done, _ = await asyncio.wait([start], timeout=0.5)
                assert not done, "there is nothing on disk"
                api.start()
                await start
                assert follower.world == stored(api)
                assert not follower.source.from_disk

        asyncio.run(run())


def test_half_a_sync_is_nothing_to_start_from(api: ApiServer, tmp_path: Path) -> None:
    api.put(policy("a"))
    rule = api.faults.refuse(500, verbs=["list"], resources=["services"])

    async def run() -> None:
        async with following(api.url, tmp_path, started=False) as follower:
            start = asyncio.create_task(follower.start())
            done, _ = await asyncio.wait([start], timeout=0.5)
            assert not done
            start.cancel()
        api.stop()
        async with following(api.url, tmp_path, api_wait_s=0.0, started=False) as follower:
            start = asyncio.create_task(follower.start())
            done, _ = await asyncio.wait([start], timeout=0.3)
            assert not done, "services were never had"
            api.faults.remove(rule)
            api.start()
            await start
            assert follower.world == stored(api)

    asyncio.run(run())


def test_another_node_does_not_take_over_what_is_on_disk(api: ApiServer, tmp_path: Path) -> None:
    api.put(pod("mine"))

    async def run() -> None:
        async with following(api.url, tmp_path):
            pass
        async with following(api.url, tmp_path, node="n2", api_wait_s=10) as follower:
            assert follower.names("Pod") == set()

    asyncio.run(run())


def test_away_for_long(api: ApiServer, tmp_path: Path) -> None:
    """Many failures later it converges by lists alone, and nothing was forgotten meanwhile."""
    api.load(policy(f"p{i}") for i in range(20))

    async def run() -> None:
        async with following(api.url, tmp_path) as follower:
            api.stop()
            await follower_unreachable(follower)
            for i in range(10):
                api.delete("networkpolicies", f"p{i}", "shop")
            api.compact()
            assert len(follower.names("NetworkPolicy")) == 20
            api.forget_requests()
            api.start()
            await follower.until(lambda: follower.world == stored(api))
            lists = Counter(seen.resource for seen in api.requests if seen.verb == "list")
            assert set(lists.values()) == {1}, "no storm"
            assert sorted(follower.told("NetworkPolicy")) == sorted(f"-p{i}" for i in range(10))

    asyncio.run(run())


async def follower_unreachable(follower: Follower) -> None:
    while follower.source.status().unreachable_s is None or not all(
        one.error for one in follower.source.status().resources if "policy.networking" not in one.resource
    ):
        await asyncio.sleep(0.02)


# ---- what this agent writes itself


def test_what_was_observed_is_there_before_the_watch_tells(api: ApiServer, tmp_path: Path) -> None:
    async def run() -> None:
        async with following(api.url, tmp_path) as follower:
            api.faults.stall("securityidentities")
            created = identity(300, app="a") | api.put(identity(300, app="a"))
            follower.source.observe(msgspec.json.encode(created))
            await follower.until(lambda: follower.names("SecurityIdentity") == {"300"})
            seen = follower.source.seen(ObjectRef("SecurityIdentity", "", "300"))
            assert seen is not None
            assert seen.version == created["metadata"]["resourceVersion"]
            marked = identity(300, app="a")
            marked["metadata"]["annotations"] = {"gatehouse.io/unused-since": "2026-01-01T00:00:00Z"}
            follower.source.observe(msgspec.json.encode(marked | api.put(marked)))
            api.put(policy("in between"))
            await follower.until(lambda: follower.told("SecurityIdentity") == ["300", "300"])
            api.faults.flow()
            api.put(identity(301, app="b"))
            await follower.until(lambda: "301" in follower.names("SecurityIdentity"))
            assert follower.told("SecurityIdentity") == ["300", "300", "301"], "the older version undid nothing"
            found = follower.world[ObjectRef("SecurityIdentity", "", "300")]
            assert isinstance(found, SecurityIdentity)
            assert found.unused_since

    asyncio.run(run())


def test_what_is_observed_of_no_interest(api: ApiServer, tmp_path: Path) -> None:
    async def run() -> None:
        async with following(api.url, tmp_path) as follower:
            block = made("gatehouse.io/v1alpha1", "NodeBlock", "10-0-0-0-24", spec={"cidr": "10.0.0.0/24", "node": "x"})
            follower.source.observe(msgspec.json.encode(block))
            assert not follower.source.unread()
            with pytest.raises(msgspec.DecodeError):
                follower.source.observe(b"{")

    asyncio.run(run())


# ---- custom resources that come and go


def _admin(name: str) -> dict[str, Any]:
    spec = {
        "priority": 10,
        "subject": {"namespaces": {}},
        "ingress": [{"name": "d", "action": "Deny", "from": [{"namespaces": {}}]}],
    }
    return made("policy.networking.k8s.io/v1alpha1", "AdminNetworkPolicy", name, spec=spec)


def test_a_definition_that_is_installed_later(tmp_path: Path) -> None:
    with ApiServer(without=("policy.networking.k8s.io", "cilium.io")) as api:

        async def run() -> None:
            async with following(api.url, tmp_path) as follower:
                assert not follower.names("AdminNetworkPolicy")
                api.install(next(one for one in TABLE if one.kind == "AdminNetworkPolicy"))
                api.put(_admin("a"))
                await follower.until(lambda: follower.names("AdminNetworkPolicy") == {"a"})
                api.uninstall("adminnetworkpolicies")
                await follower.until(lambda: not follower.names("AdminNetworkPolicy"))

        asyncio.run(run())


def test_a_version_that_cannot_be_read_isolates(tmp_path: Path) -> None:
    """Of a group that has only versions newer than this agent."""
    with ApiServer(without=("adminnetworkpolicies",)) as api:
        resource = next(one for one in TABLE if one.kind == "AdminNetworkPolicy")
        api.install(msgspec.structs.replace(resource, versions=("v9",)))
        api.put({**_admin("a"), "apiVersion": "policy.networking.k8s.io/v9"})

        async def run() -> None:
            async with following(api.url, tmp_path) as follower:
                assert follower.first is not None
                [problem] = follower.first.problems
                assert "must be policy.networking.k8s.io/v1alpha1" in problem.message
                assert follower.names("AdminNetworkPolicy") == {"a"}

        asyncio.run(run())


def error(follower: Follower, resource: str) -> str:
    return next(one.error for one in follower.source.status().resources if one.resource == resource)


def test_the_agents_own_definitions_are_missing(tmp_path: Path) -> None:
    with ApiServer(without=("gatehouse.io",)) as api:

        async def run() -> None:
            async with following(api.url, tmp_path, started=False) as follower:
                start = asyncio.create_task(follower.start())
                while "404" not in error(follower, "securityidentities.gatehouse.io"):
                    await asyncio.sleep(0.01)
                assert not start.done()
                for resource in TABLE:
                    if resource.group == "gatehouse.io":
                        api.install(resource)
                await start

        asyncio.run(run())


def test_secrets_that_may_not_be_read_hold_nothing_up(api: ApiServer, tmp_path: Path) -> None:
    api.put(made("v1", "Secret", "s", "shop", data={}))
    rule = api.faults.refuse(403, resources=["secrets"])

    async def run() -> None:
        async with following(api.url, tmp_path, secret_namespaces=["shop"]) as follower:
            assert "give the agent's service account this right" in error(follower, "secrets/shop")
            api.faults.remove(rule)
            await follower.until(lambda: follower.names("Secret") == {"s"})

    asyncio.run(run())


def test_policies_of_several_kinds(api: ApiServer, tmp_path: Path) -> None:
    spec = {"endpointSelector": {"matchLabels": {"app": "a"}}, "ingress": [{}]}
    api.put(made("cilium.io/v2", "CiliumNetworkPolicy", "c", "shop", spec=spec, metadata={"generation": 3}))

    async def run() -> None:
        async with following(api.url, tmp_path) as follower:
            found = ObjectRef("CiliumNetworkPolicy", "shop", "c")
            assert isinstance(follower.world[found], PolicySet)
            seen = follower.source.seen(found)
            assert seen is not None
            assert seen.generation == api.objects("ciliumnetworkpolicies")[0]["metadata"]["generation"]
            assert follower.source.seen(ObjectRef("CiliumNetworkPolicy", "shop", "d")) is None

    asyncio.run(run())


# ---- a resync does not hold up what happens now


def test_a_resync_does_not_hold_up_a_policy(api: ApiServer, tmp_path: Path) -> None:
    api.load(policy(f"p{i}", app="1") for i in range(3000))

    async def run() -> None:
        async with following(api.url, tmp_path):
            pass
        api.stop()
        async with following(api.url, tmp_path, timings=QUICK) as follower:
            api.load(policy(f"p{i}", app="2") for i in range(3000))
            api.start()
            await follower.until(lambda: bool(follower.batches))
            api.put(made("v1", "Namespace", "urgent"))
            await follower.until(lambda: "urgent" in follower.names("Namespace"))
            await follower.until(lambda: not follower.source.from_disk)
            assert follower.world == stored(api)
            assert max(len(batch.changes) for batch in follower.batches) <= 500

    asyncio.run(run())

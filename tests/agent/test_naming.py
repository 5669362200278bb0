"""Names for flows: a snapshot, then what changes, and what is gone."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator
from contextlib import aclosing
from typing import Any

import msgspec

from agent.naming import SNAPSHOT_LINES, NameFeed
from agent.objects import Change, DeclaredPort, Interface, Pod, Service, ServicePort
from agent.plan.ids import rule_id
from agent.world.config import NodeConfig
from agent.world.world import World
from policies import networkpolicy
from policies.address import Prefix, parse_address
from policies.model import ObjectRef, Origin, Policy

HERE = Origin("m.yaml", 1)
CONFIG = NodeConfig(
    name="n1",
    pod_cidrs=(Prefix.parse("10.1.0.0/24"),),
    service_cidrs=(Prefix.parse("10.96.0.0/24"),),
    addresses=(parse_address("192.0.2.1"),),
)
WEB = ObjectRef("Pod", "shop", "web")
SERVICE = ObjectRef("Service", "shop", "web")
POLICY = ObjectRef("NetworkPolicy", "shop", "web")


def web(app: str = "web", name: str = "web") -> Pod:
    ref = ObjectRef("Pod", "shop", name)
    return Pod(ref, HERE, {"app": app}, addresses=(parse_address(f"10.1.0.{len(name)}"),))


def service() -> Service:
    port = ServicePort("", 6, 80, 8080)
    return Service(SERVICE, HERE, "ClusterIP", {"app": "web"}, (parse_address("10.96.0.9"),), False, (port,))


def policy(rules: int) -> Policy:
    spec = {"podSelector": {}, "ingress": [{"ports": [{"port": 80 + n}]} for n in range(rules)]}
    metadata = {"name": "web", "namespace": "shop"}
    kind = {"apiVersion": networkpolicy.API_VERSION, "kind": networkpolicy.KIND}
    return networkpolicy.parse({**kind, "metadata": metadata, "spec": spec}, HERE)


class Reader:
    """A world, and somebody who reads the names of what is in it."""

    def __init__(self, *objects: Pod | Service | Policy) -> None:
        self.world = World(CONFIG)
        self.feed = NameFeed(self.world, "n1")
        self.stream: AsyncGenerator[Any, None] = self.feed.stream({})
        self.change(*(Change(o.ref, o) for o in objects))

    def change(self, *changes: Change) -> None:
        """As agent.turns does."""
        self.feed.watch(c.ref for c in changes)
        for change in changes:
            self.world.apply(change)
        dirty = self.world.take_dirty()
        self.feed.publish({*(c.ref for c in changes), *dirty.endpoints, *dirty.services})

    async def next(self) -> list[dict[str, Any]]:
        async with asyncio.timeout(60):
            return list(await anext(self.stream))


def test_snapshot_has_everything_and_ends_with_synced() -> None:
    async def run() -> None:
        reader = Reader(web(), service(), policy(1))
        async with aclosing(reader.stream):
            lines = await reader.next()
        assert lines[0] == {"t": "node", "name": "n1"}
        assert lines[-1] == {"t": "synced"}
        assert {"t": "pod", "ip": "10.1.0.3", "namespace": "shop", "name": "web"} in lines
        (identity,) = (line for line in lines if line["t"] == "identity")
        assert identity["labels"] == ["app=web"]
        (named,) = (line for line in lines if line["t"] == "service")
        assert (named["address"], named["port"], named["protocol"]) == ("10.96.0.9", 80, "TCP")
        (rule,) = (line for line in lines if line["t"] == "rule")
        assert (rule["id"], rule["rule"]) == (rule_id(policy(1).rules[0].ref), "ingress[0]")

    asyncio.run(run())


def test_a_large_snapshot_comes_in_pieces_between_which_things_change() -> None:
    async def run() -> None:
        reader = Reader(*(web(f"app-{n}", f"{'w' * n}") for n in range(1, SNAPSHOT_LINES + 1)))
        known: dict[str, str] = {}
        async with aclosing(reader.stream):
            lines = await reader.next()
            assert {"t": "synced"} not in lines
            pods = [state.pod for state in reader.world.pods]
            last, first = pods[-1], pods[0]
            reader.change(Change(last.ref, None), Change(first.ref, None))
            taker = Pod(ObjectRef("Pod", "shop", "taker"), HERE, {"app": "taker"}, addresses=last.addresses)
            reader.change(Change(taker.ref, taker))
            while taker.ref.name not in known.values():
                lines += await reader.next()
                for line in lines:
                    if line["t"] == "pod" and line.get("gone"):
                        known.pop(line["ip"], None)
                    elif line["t"] == "pod":
                        known[line["ip"]] = line["name"]
                lines.clear()
        expected = {s.pod.addresses[0]: s.pod.ref.name for s in reader.world.pods}
        assert {parse_address(ip): name for ip, name in known.items()} == expected

    asyncio.run(run())


def test_deltas_are_what_changed() -> None:
    async def run() -> None:
        reader = Reader(web(), policy(2))
        async with aclosing(reader.stream):
            await reader.next()
            reader.change(Change(POLICY, policy(1)))
            (gone,) = await reader.next()
            assert (gone["t"], gone["rule"], gone["gone"]) == ("rule", "ingress[1]", True)
            reader.change(Change(WEB, web(app="other")))
            lines = await reader.next()
            assert [(line["t"], line.get("gone", False)) for line in lines] == [("identity", True), ("identity", False)]
            reader.change(Change(WEB, None))
            lines = await reader.next()
            assert {(line["t"], line["gone"]) for line in lines} == {("pod", True), ("identity", True)}

    asyncio.run(run())


def test_identity_stays_while_another_pod_has_it() -> None:
    async def run() -> None:
        reader = Reader(web(), web(name="web-2"))
        async with aclosing(reader.stream):
            await reader.next()
            reader.change(Change(WEB, None))
            assert [line["t"] for line in await reader.next()] == ["pod"]

    asyncio.run(run())


def test_nothing_is_kept_for_nobody() -> None:
    reader = Reader(web())
    reader.change(Change(WEB, web(app="other")))
    assert reader.feed._before == {}


def test_frontends_of_every_kind_are_named() -> None:
    async def run() -> None:
        reader = Reader(web())
        async with aclosing(reader.stream):
            await reader.next()
            port = ServicePort("http", 6, 80, 8080, node_port=30080)
            cluster_ips = (parse_address("10.96.0.9"),)
            exposed = Service(SERVICE, HERE, "NodePort", {"app": "web"}, cluster_ips, False, (port,))
            reader.change(Change(SERVICE, exposed))
            named = {line["address"]: line for line in await reader.next()}
            assert (named["10.96.0.9"]["port"], named["192.0.2.1"]["port"], named["127.0.0.1"]["port"]) == (
                80, 30080, 30080
            )  # fmt: skip
            assert {(line["namespace"], line["name"], line["port_name"]) for line in named.values()} == {
                ("shop", "web", "http")
            }
            reader.change(Change(SERVICE, service()))
            gone = {line["address"] for line in await reader.next() if line.get("gone")}
            assert gone == {"192.0.2.1", "127.0.0.1"}

    asyncio.run(run())


def test_a_host_port_has_its_pods_name() -> None:
    async def run() -> None:
        reader = Reader()
        async with aclosing(reader.stream):
            await reader.next()
            ports = (DeclaredPort("dns", 17, 5353, host_port=53),)
            reader.change(Change(WEB, msgspec.structs.replace(web(), ports=ports)))
            assert "service" not in {line["t"] for line in await reader.next()}, "nothing is behind it yet"
            reader.world.set_interface(WEB, Interface(7, "gh7", b"\x02" * 6, b"\x04" * 6, "/run/netns/web"))
            reader.change()
            (line,) = [found for found in await reader.next() if found.get("address") == "192.0.2.1"]
            assert (line["port"], line["protocol"], line["name"], line["port_name"]) == (53, "UDP", "web", "dns")
            reader.change(Change(WEB, None))
            gone = {found["address"] for found in await reader.next() if found["t"] == "service" and found["gone"]}
            assert "192.0.2.1" in gone

    asyncio.run(run())

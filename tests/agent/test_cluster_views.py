"""What people and flows are told of pods on other nodes."""

from __future__ import annotations

import asyncio
from contextlib import aclosing
from typing import Any
from unittest.mock import Mock

from cluster_scenes import CONFIG, ORIGIN

from agent.identity.labels import identity_key, key_digest
from agent.naming import NameFeed
from agent.objects import Change, NodeEndpoint, NodeEndpoints, Object, SecurityIdentity
from agent.plan.tracing import WorldView
from agent.services.trace import Place
from agent.views import Views
from agent.world.world import World
from policies.address import Prefix, parse_address
from policies.model import SERVICE_ACCOUNT, ObjectRef

LABELS = {"app": "web"}
DIGEST = key_digest(identity_key("shop", LABELS, "default"))
NUMBER_REF = ObjectRef("SecurityIdentity", "", "300")
NUMBER = SecurityIdentity(NUMBER_REF, ORIGIN, 300, "shop", "default", LABELS)


def endpoint(name: str, address: str, identity: int = 300) -> NodeEndpoint:
    return NodeEndpoint(ObjectRef("Pod", "shop", name), (parse_address(address),), identity, DIGEST)


def told(node: str, *endpoints: NodeEndpoint, block: str = "") -> NodeEndpoints:
    blocks = (Prefix.parse(block),) if block else ()
    return NodeEndpoints(
        ObjectRef("NodeEndpoints", "", node), ORIGIN, (parse_address("192.0.2.9"),), blocks, endpoints, b""
    )


def world_of(*objects: Object) -> World:
    world = World(CONFIG)
    world.apply_all([Change(one.ref, one) for one in objects])
    world.take_dirty()
    return world


def test_listings_show_pods_of_other_nodes() -> None:
    there = told("there", endpoint("a", "10.1.1.5"), endpoint("b", "10.1.1.6", 301), block="10.1.1.0/24")
    views = Views(world_of(NUMBER, there), Mock(), Mock())
    known, unknown = views.endpoints()
    assert (known.name, known.ips, known.identity, known.labels, known.node, known.state) == (
        "a", ("10.1.1.5",), 300, LABELS, "there", "remote",
    )  # fmt: skip
    assert (unknown.identity, unknown.labels) == (0, {})
    assert "identity 301" in unknown.problem
    assert views.endpoint_states() == {"remote": 2}
    (identity,) = (one for one in views.identities() if one.kind == "cluster")
    assert (identity.id, identity.endpoints) == (300, 1)
    assert identity.labels == {**LABELS, SERVICE_ACCOUNT: "default"}
    here, other = views.nodes()
    assert (here.name, here.local, here.pods) == ("here", True, 0)
    assert (other.name, other.addresses, other.pod_cidrs, other.pods) == (
        "there", ("192.0.2.9",), ("10.1.1.0/24",), 2,
    )  # fmt: skip


def test_packets_to_them_are_traced_to_other_nodes() -> None:
    view = WorldView(world_of(NUMBER, told("there", endpoint("a", "10.1.1.5"))))
    assert view.place(parse_address("10.1.1.5")) is Place.REMOTE_POD
    assert view.place(parse_address("10.1.1.6")) is Place.OUTSIDE


class Reader:
    """The names of addresses as a reader has them."""

    def __init__(self, world: World) -> None:
        self.world = world
        self.feed = NameFeed(world, "here")
        self.stream = self.feed.stream({})
        self.names: dict[str, str] = {}
        self.labels: dict[int, list[str]] = {}

    async def read(self) -> None:
        async with asyncio.timeout(60):
            for line in list(await anext(self.stream)):
                self._take(line)

    def _take(self, line: dict[str, Any]) -> None:
        if line["t"] == "pod" and line.get("gone"):
            del self.names[line["ip"]]
        elif line["t"] == "pod":
            self.names[line["ip"]] = line["name"]
        elif line["t"] == "identity" and line.get("gone"):
            del self.labels[line["id"]]
        elif line["t"] == "identity":
            self.labels[line["id"]] = line["labels"]

    async def change(self, ref: ObjectRef, new: Object | None) -> None:
        """As agent.turns does."""
        self.feed.watch([ref])
        self.world.apply_all([Change(ref, new)])
        dirty = self.world.take_dirty()
        self.feed.publish({ref, *dirty.endpoints, *dirty.services})
        await self.read()


def test_flows_are_told_their_names_and_labels() -> None:
    async def run() -> None:
        there = told("there", endpoint("a", "10.1.1.5"), endpoint("b", "10.1.1.6"))
        reader = Reader(world_of(NUMBER, there))
        async with aclosing(reader.stream):
            await reader.read()
            assert reader.names == {"10.1.1.5": "a", "10.1.1.6": "b"}
            assert reader.labels == {300: ["app=web"]}
            await reader.change(there.ref, told("there", endpoint("a", "10.1.1.5"), endpoint("c", "10.1.1.7")))
            assert reader.names == {"10.1.1.5": "a", "10.1.1.7": "c"}
            new = ObjectRef("SecurityIdentity", "", "301")
            await reader.change(new, SecurityIdentity(new, ORIGIN, 301, "shop", "default", {"app": "db"}))
            assert reader.labels == {300: ["app=web"], 301: ["app=db"]}
            await reader.change(new, None)
            assert reader.labels == {300: ["app=web"]}
            await reader.change(there.ref, None)
            assert reader.names == {}

    asyncio.run(run())


def test_an_address_that_another_node_s_pod_has_as_well_goes_by_its_name() -> None:
    async def run() -> None:
        first, second = told("n1", endpoint("a", "10.1.1.5")), told("n2", endpoint("b", "10.1.1.5"))
        reader = Reader(world_of(NUMBER, first, second))
        async with aclosing(reader.stream):
            await reader.read()
            assert reader.names == {"10.1.1.5": "a"}
            await reader.change(first.ref, None)
            assert reader.names == {"10.1.1.5": "b"}

    asyncio.run(run())

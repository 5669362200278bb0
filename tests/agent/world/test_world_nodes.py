"""What manifests of nodes change: who has an address, and which endpoints are near."""

from __future__ import annotations

import msgspec
import pytest
import small_worlds
from worlds import ORIGIN

from agent.objects import Change, Exposure, Node, NodeEndpoints, Object, Pod, Service, ServicePort
from agent.sources.slices import derive
from agent.world.config import NodeConfig
from agent.world.world import World
from policies.address import Prefix, format_address, parse_address
from policies.model import (
    CidrBlock,
    Direction,
    LabelSelector,
    ObjectRef,
    PodSelector,
    Policy,
    RemoteClass,
    Rule,
    RuleRef,
)

CONFIG = NodeConfig(name="here", pod_cidrs=(Prefix.parse("10.1.0.0/24"),), addresses=(parse_address("192.0.2.1"),))
HOST, REMOTE_NODE, WORLD = 1, 6, 9
PORT = ServicePort("", 6, 80, 8080)


def node(name: str, *addresses: str, zone: str = "") -> Node:
    return Node(ObjectRef("Node", "", name), ORIGIN, tuple(map(parse_address, addresses)), zone=zone)


def pod(name: str, *addresses: str, at: str = "", host_network: bool = False) -> Pod:
    given = tuple(map(parse_address, addresses))
    ref = ObjectRef("Pod", "shop", name)
    return Pod(ref, ORIGIN, {"app": "web"}, node=at, host_network=host_network, addresses=given)


def world_of(*objects: Object, config: NodeConfig = CONFIG) -> World:
    world = World(config, derive)
    put(world, *objects)
    return world


def put(world: World, *objects: Object) -> set[ObjectRef]:
    """Returns the services that are dirty then."""
    return small_worlds.put(world, *objects).services


def identity(world: World, address: str) -> int | None:
    found = world.addresses.remote_class(Prefix.host(parse_address(address)))
    return found.identity if found else None


def messages(world: World) -> list[str]:
    return [f"{problem.subject}: {problem.message}" for problem in world.problems()]


# ---- addresses


def test_other_nodes_are_known_by_their_addresses() -> None:
    world = world_of(node("here", "192.0.2.1"), node("there", "192.0.2.2", "2001:db8::2"))
    assert [identity(world, a) for a in ("192.0.2.1", "192.0.2.2", "2001:db8::2")] == [HOST, REMOTE_NODE, REMOTE_NODE]
    put(world, node("there", "192.0.2.3"))
    assert [identity(world, a) for a in ("192.0.2.2", "2001:db8::2", "192.0.2.3")] == [None, None, REMOTE_NODE]
    put(world, node("there"))
    assert identity(world, "192.0.2.3") is None
    assert world.problems() == []


def test_a_block_of_a_policy_still_covers_them() -> None:
    block, selected = Prefix.parse("192.0.2.0/24"), PodSelector(LabelSelector(), "shop")
    ref = ObjectRef("NetworkPolicy", "shop", "p")
    rule = Rule(RuleRef(ref, Direction.EGRESS, 0), (CidrBlock(block),), None)
    policy = Policy(ref, ORIGIN, selected, frozenset({Direction.EGRESS}), (rule,))
    world = world_of(policy, node("there", "192.0.2.2"), pod("a", "10.1.0.5"))
    found = world.addresses.remote_class(Prefix.host(parse_address("192.0.2.2")))
    assert found == RemoteClass(REMOTE_NODE, frozenset({block}))


@pytest.mark.parametrize("order", ((0, 1), (1, 0)))
def test_a_pod_never_has_an_address_of_another_node(order: tuple[int, ...]) -> None:
    objects = (node("there", "192.0.2.2"), pod("evil", "192.0.2.2"))
    world = world_of(*(objects[n] for n in order))
    assert identity(world, "192.0.2.2") == REMOTE_NODE
    assert world.subject(ObjectRef("Pod", "shop", "evil")) is None
    assert world.addresses.owner(parse_address("192.0.2.2")) is None
    assert messages(world) == ["Pod shop/evil: address 192.0.2.2 belongs to Node there: give it another one"]
    world.apply(Change(ObjectRef("Node", "", "there"), None))
    assert ObjectRef("Pod", "shop", "evil") in world.take_dirty().endpoints
    assert world.subject(ObjectRef("Pod", "shop", "evil")) is not None


def test_pods_in_a_nodes_network_have_its_addresses() -> None:
    pods = [pod(f"{n}-{at or 'here'}", ip, at=at, host_network=True) for n in "ab" for at, ip in PLACES]
    world = world_of(node("there", "192.0.2.2"), *pods)
    assert [identity(world, ip) for _, ip in PLACES] == [HOST, REMOTE_NODE]
    assert world.problems() == []


PLACES = (("", "192.0.2.1"), ("there", "192.0.2.2"))


def test_an_address_of_two_nodes() -> None:
    world = world_of(node("there", "192.0.2.2"), node("elsewhere", "192.0.2.2", "192.0.2.1"))
    assert messages(world) == [
        "Node elsewhere: address 192.0.2.1 belongs to node here: give it another one",
        "Node there: address 192.0.2.2 belongs to Node elsewhere: give it another one",
    ]
    assert [identity(world, a) for a in ("192.0.2.1", "192.0.2.2")] == [HOST, REMOTE_NODE]


# ---- zones


def near(world: World, service: Service) -> list[str]:
    (frontend,) = world.frontends(service.ref)
    return [format_address(address) for address, _ in frontend.inside.backends]


def service(distribution: str) -> Service:
    exposure, address = Exposure(distribution=distribution), parse_address("10.96.0.1")
    ref = ObjectRef("Service", "shop", "s")
    return Service(ref, ORIGIN, "ClusterIP", {"app": "web"}, (address,), False, (PORT,), exposure=exposure)


PODS = (pod("a", "10.2.0.1", at="n1"), pod("b", "10.2.0.2", at="n2"), pod("c", "10.2.0.3", at="n3"))
NODES = (node("n1", zone="z1"), node("n2", zone="z2"), node("n3", zone="z2"))
EVERYONE = ["10.2.0.1", "10.2.0.2", "10.2.0.3"]


@pytest.mark.parametrize("distribution", ("PreferSameZone", "PreferSameNode"))
def test_endpoints_of_the_zone_that_manifests_tell(distribution: str) -> None:
    wanted = service(distribution)
    world = world_of(wanted, *PODS)
    assert near(world, wanted) == EVERYONE
    put(world, *NODES)
    assert near(world, wanted) == EVERYONE, "this node's zone is not known"
    assert put(world, node("here", zone="z2")) == {wanted.ref}
    assert near(world, wanted) == EVERYONE[1:]
    assert put(world, node("n3", zone="z1")) == {wanted.ref}
    assert near(world, wanted) == EVERYONE[1:2]
    assert put(world, node("n3")) == {wanted.ref}
    assert near(world, wanted) == EVERYONE, "hints are obeyed only where all endpoints have them"


def test_the_zone_that_is_set_goes_before_the_manifests() -> None:
    wanted = service("PreferSameZone")
    world = world_of(wanted, *PODS, *NODES, config=msgspec.structs.replace(CONFIG, zone="z1"))
    assert put(world, node("here", zone="z2")) == set()
    assert world.config.zone == "z1"
    assert near(world, wanted) == EVERYONE[:1]


def test_without_a_distribution_zones_are_nothing_to_a_service() -> None:
    wanted = service("")
    world = world_of(wanted, *PODS, node("here", zone="z1"))
    assert put(world, *NODES) == set()
    assert near(world, wanted) == EVERYONE


# ---- what nodes tell of themselves, without an API server


def told(name: str, *blocks: str, addresses: tuple[str, ...] = (), key: bytes = b"") -> NodeEndpoints:
    return NodeEndpoints(
        ObjectRef("NodeEndpoints", "", name),
        ORIGIN,
        tuple(map(parse_address, addresses)),
        tuple(map(Prefix.parse, blocks)),
        (),
        key,
    )


def peer(world: World, name: str) -> tuple[list[str], list[str], bytes] | None:
    found = world.nodes.peers().get(name)
    if found is None:
        return None
    return [format_address(a) for a in found.addresses], [str(b) for b in found.pod_cidrs], found.public_key


def test_a_node_is_a_peer_by_what_it_tells() -> None:
    there = told("there", "10.1.1.0/24", addresses=("192.0.2.2",), key=bytes(32))
    world = world_of(told("here", "10.1.0.0/24", addresses=("192.0.2.1",)), there)
    assert peer(world, "there") == (["192.0.2.2"], ["10.1.1.0/24"], bytes(32))
    assert peer(world, "here") is None
    assert identity(world, "192.0.2.2") == REMOTE_NODE
    world.apply(Change(there.ref, None))
    world.take_dirty()
    assert peer(world, "there") is None
    assert identity(world, "192.0.2.2") is None
    assert world.problems() == []


MANIFESTS = [  # podCIDRs of its Node manifest, what it tells → what is its
    (("10.1.1.0/24",), ("10.1.1.0/24",), ["10.1.1.0/24"]),
    (("10.1.1.0/24",), (), ["10.1.1.0/24"]),
    ((), ("10.1.1.0/24", "fd00:1::/64"), ["10.1.1.0/24", "fd00:1::/64"]),
    (("10.1.1.0/24",), ("10.1.1.0/24", "fd00:1::/64"), ["10.1.1.0/24", "fd00:1::/64"]),
]


@pytest.mark.parametrize(("given", "says", "blocks"), MANIFESTS)
@pytest.mark.parametrize("first", ["Node", "NodeEndpoints"])
def test_a_manifest_of_the_node_beside(
    given: tuple[str, ...], says: tuple[str, ...], blocks: list[str], first: str
) -> None:
    manifest = msgspec.structs.replace(node("there", "192.0.2.2"), pod_cidrs=tuple(map(Prefix.parse, given)))
    objects: list[Object] = [manifest, told("there", *says, addresses=("192.0.2.2",), key=bytes(32))]
    world = world_of(*(objects if first == "Node" else objects[::-1]))
    assert peer(world, "there") == (["192.0.2.2"], blocks, bytes(32))
    assert world.problems() == []


@pytest.mark.parametrize("block", ["10.1.0.0/24", "10.1.0.0/16", "10.1.0.128/25", "10.1.2.0/24"])
def test_a_node_cannot_tell_that_it_has_blocks_of_another(block: str) -> None:
    manifest = msgspec.structs.replace(node("third", "192.0.2.3"), pod_cidrs=(Prefix.parse("10.1.2.0/24"),))
    world = world_of(manifest, told("there", "10.1.1.0/24", block, addresses=("192.0.2.2", "10.1.0.9", "10.1.2.9")))
    assert peer(world, "there") == (["192.0.2.2"], ["10.1.1.0/24"], b"")
    assert peer(world, "third") == (["192.0.2.3"], ["10.1.2.0/24"], b"")
    owner = "third" if block == "10.1.2.0/24" else "here"
    assert f"NodeEndpoints there: block {block} overlaps one of node {owner}: it is not taken" in messages(world)
    assert identity(world, "10.1.0.9") is None
    assert world.nodes.places() >= {Prefix.parse("10.1.1.0/24"), Prefix.parse("10.1.2.0/24")}
    put(world, told("there", "10.1.1.0/24", addresses=("192.0.2.2",)))
    assert world.problems() == []


def test_blocks_that_were_refused_are_taken_once_nobody_else_has_them() -> None:
    manifest = msgspec.structs.replace(node("third"), pod_cidrs=(Prefix.parse("10.1.2.0/24"),))
    world = world_of(manifest, told("there", "10.1.2.0/24", addresses=("10.1.2.9",)))
    assert peer(world, "there") == ([], [], b"")
    world.apply(Change(manifest.ref, None))
    assert peer(world, "there") == (["10.1.2.9"], ["10.1.2.0/24"], b"")
    assert Prefix.parse("10.1.2.0/24") in world.nodes.places()
    world.apply(Change(ObjectRef("NodeEndpoints", "", "there"), None))
    assert Prefix.parse("10.1.2.0/24") not in world.nodes.places()

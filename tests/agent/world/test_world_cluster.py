"""A node in a cluster: numbers come from SecurityIdentities, pods of other nodes from NodeEndpoints, networks from a
runtime."""

from __future__ import annotations

from collections.abc import Iterable

import msgspec
import pytest
from worlds import ORIGIN

from agent.identity.labels import identity_key, key_digest
from agent.objects import (
    Change,
    DeclaredPort,
    Interface,
    Node,
    NodeEndpoint,
    NodeEndpoints,
    Object,
    Pod,
    SecurityIdentity,
)
from agent.world.config import NodeConfig
from agent.world.dirty import Dirty
from agent.world.identities import Key
from agent.world.nodes import Peer
from agent.world.world import World
from policies.address import Prefix, parse_address
from policies.model import (
    SERVICE_ACCOUNT,
    ContainerPort,
    Direction,
    LabelSelector,
    NamedPort,
    ObjectRef,
    PodSelector,
    Policy,
    Rule,
    RuleRef,
    Workload,
)

CONFIG = NodeConfig(
    name="here",
    pod_cidrs=(Prefix.parse("10.1.0.0/24"),),
    addresses=(parse_address("192.0.2.1"),),
    cluster=True,
    attached=True,
    implicit_namespaces=False,
)
UNMANAGED, REMOTE_NODE = 3, 6


def world_of(*objects: Object, config: NodeConfig = CONFIG) -> World:
    world = World(config)
    put(world, *objects)
    return world


def put(world: World, *objects: Object) -> Dirty:
    world.apply_all([Change(one.ref, one) for one in objects])
    return world.take_dirty()


def remove(world: World, *refs: ObjectRef) -> Dirty:
    world.apply_all([Change(ref, None) for ref in refs])
    return world.take_dirty()


def pod_ref(name: str) -> ObjectRef:
    return ObjectRef("Pod", "shop", name)


def pod(name: str, *addresses: str, uid: str = "", host_network: bool = False, **labels: str) -> Pod:
    given = tuple(map(parse_address, addresses))
    ports = (DeclaredPort("http", 6, 8080, host_port=80), DeclaredPort("", 6, 9090))
    return Pod(
        pod_ref(name), ORIGIN, labels, node="here", host_network=host_network, addresses=given, ports=ports, uid=uid
    )


def attach(world: World, name: str, *addresses: str, uid: str = "") -> Dirty:
    index = 10 + sum(map(ord, name))
    world.attach(
        pod_ref(name), tuple(map(parse_address, addresses)), Interface(index, "v", bytes(6), bytes(6), ""), uid
    )
    return world.take_dirty()


def key_of(**labels: str) -> Key:
    return identity_key("shop", labels, "default")


def number(at: int, *, unused_since: str = "", **labels: str) -> SecurityIdentity:
    ref = ObjectRef("SecurityIdentity", "", str(at))
    return SecurityIdentity(ref, ORIGIN, at, "shop", "default", labels, unused_since)


def number_ref(at: int) -> ObjectRef:
    return ObjectRef("SecurityIdentity", "", str(at))


def endpoint(name: str, identity: int, *addresses: str, port: int = 0, **labels: str) -> NodeEndpoint:
    ports = (DeclaredPort("http", 6, port),) if port else ()
    given = tuple(map(parse_address, addresses))
    return NodeEndpoint(pod_ref(name), given, identity, key_digest(key_of(**labels)), ports)


def node_ref(name: str) -> ObjectRef:
    return ObjectRef("NodeEndpoints", "", name)


def told(
    node: str, *endpoints: NodeEndpoint, blocks: Iterable[str] = (), addresses: Iterable[str] = (), key: bytes = b""
) -> NodeEndpoints:
    return NodeEndpoints(
        node_ref(node),
        ORIGIN,
        tuple(map(parse_address, addresses)),
        tuple(map(Prefix.parse, blocks)),
        endpoints,
        key,
    )


def node(name: str, *blocks: str, addresses: Iterable[str] = ()) -> Node:
    return Node(
        ObjectRef("Node", "", name), ORIGIN, tuple(map(parse_address, addresses)), tuple(map(Prefix.parse, blocks))
    )


def identity(world: World, name: str) -> int:
    state = world.pods.get(pod_ref(name))
    assert state is not None
    return state.identity


def seen(world: World, address: str) -> int | None:
    """The identity an address has for others; None where that of the block around it holds."""
    found = world.addresses.remote_class(Prefix.host(parse_address(address)))
    return found.identity if found else None


def messages(world: World) -> list[str]:
    return [f"{problem.subject}: {problem.message}" for problem in world.problems()]


# ---- numbers of local pods


def test_no_number_is_invented() -> None:
    world = world_of(pod("a", app="web"))
    attach(world, "a", "10.1.0.5")
    assert (identity(world, "a"), seen(world, "10.1.0.5"), world.subject(pod_ref("a"))) == (0, UNMANAGED, None)
    assert world.identities.wanted() == {
        key_of(app="web"): Workload("shop", {"app": "web", SERVICE_ACCOUNT: "default"})
    }
    dirty = put(world, number(4711, app="web"))
    assert (identity(world, "a"), seen(world, "10.1.0.5")) == (4711, 4711)
    assert pod_ref("a") in dirty.endpoints
    assert world.subject(pod_ref("a")) is not None
    assert world.identities.wanted() == {}
    assert world.identities.in_use() == {4711: key_of(app="web")}


def test_a_pod_without_a_network_asks_for_its_number_already() -> None:
    world = world_of(pod("a", app="web"))
    assert list(world.identities.wanted()) == [key_of(app="web")]
    put(world, number(4711, app="web"))
    attach(world, "a", "10.1.0.5")
    assert world.subject(pod_ref("a")) is not None


def test_pods_that_are_over_or_the_node_s_ask_for_none() -> None:
    world = world_of(
        msgspec.structs.replace(pod("a", app="web"), finished=True), pod("b", "192.0.2.1", host_network=True, app="b")
    )
    assert world.identities.wanted() == {}


def test_of_several_numbers_the_smallest_is_taken_and_kept() -> None:
    world = world_of(number(300, app="web"), pod("a", app="web"))
    put(world, number(299, app="web"))
    put(world, pod("b", app="web"))
    assert (identity(world, "a"), identity(world, "b")) == (300, 299), "a pod keeps what it has"
    assert world.identities.numbers(key_of(app="web")) == (299, 300)
    remove(world, number_ref(300))
    assert identity(world, "a") == 299
    assert world.identities.in_use() == {299: key_of(app="web")}


def test_a_marked_number_is_not_used_before_it_is_unmarked() -> None:
    marked = number(300, app="web", unused_since="2026-01-01T00:00:00Z")
    world = world_of(marked, pod("a", app="web"))
    key = key_of(app="web")
    assert identity(world, "a") == 0
    assert list(world.identities.wanted()) == [key]
    assert world.identities.numbers(key) == (300,)
    assert world.identities.meaning(300) == key
    put(world, number(300, app="web"))
    assert identity(world, "a") == 300
    put(world, marked)
    assert identity(world, "a") == 300, "what it has it keeps"
    assert list(world.identities.wanted()) == [key], "until somebody unmarks it"
    put(world, number(301, app="web"))
    assert identity(world, "a") == 301


def test_a_relabelled_pod_keeps_its_number_until_the_new_one_is_there() -> None:
    world = world_of(number(300, app="web"), pod("a", app="web"))
    attach(world, "a", "10.1.0.5")
    put(world, pod("a", app="db"))
    assert (identity(world, "a"), seen(world, "10.1.0.5")) == (300, 300)
    assert list(world.identities.wanted()) == [key_of(app="db")]
    assert world.identities.in_use() == {300: key_of(app="web")}
    (told_now,) = world.local_endpoints()
    assert (told_now.identity, told_now.digest) == (300, key_digest(key_of(app="web")))
    put(world, number(301, app="db"))
    assert (identity(world, "a"), seen(world, "10.1.0.5")) == (301, 301)


def test_another_pod_of_the_same_name_inherits_nothing() -> None:
    world = world_of(number(300, app="web"), pod("a", uid="1", app="web"))
    attach(world, "a", "10.1.0.5", uid="1")
    assert world.subject(pod_ref("a")) is not None
    put(world, pod("a", uid="2", app="db"))
    assert identity(world, "a") == 0
    assert (seen(world, "10.1.0.5"), world.subject(pod_ref("a"))) == (None, None), "nor the network of the other"
    put(world, number(301, app="db"))
    attach(world, "a", "10.1.0.6", uid="2")
    assert seen(world, "10.1.0.6") == 301


def test_a_number_that_is_deleted_while_in_use_is_wanted_again() -> None:
    world = world_of(number(300, app="web"), pod("a", app="web"))
    attach(world, "a", "10.1.0.5")
    remove(world, number_ref(300))
    assert (identity(world, "a"), seen(world, "10.1.0.5")) == (300, 300)
    assert list(world.identities.wanted()) == [key_of(app="web")]
    put(world, pod("b", app="web"))
    assert identity(world, "b") == 0, "who has it may keep it, nobody gets it"
    put(world, number(301, app="web"))
    assert (identity(world, "a"), identity(world, "b")) == (301, 301)
    assert world.identities.get(300) is None


def test_a_number_that_means_something_else_now_is_nobody_s_here() -> None:
    world = world_of(number(300, app="web"), pod("a", app="web"))
    attach(world, "a", "10.1.0.5")
    put(world, number(300, app="db"))
    assert (identity(world, "a"), seen(world, "10.1.0.5"), world.subject(pod_ref("a"))) == (0, UNMANAGED, None)
    assert list(world.identities.wanted()) == [key_of(app="web")]
    put(world, number(300, app="x"), number(300, app="web"))
    assert identity(world, "a") == 300
    remove(world, number_ref(300))
    remove(world, pod_ref("a"))
    assert world.identities.get(300) is None


def test_labels_a_pod_gives_itself_are_no_service_account() -> None:
    """Lesson 7."""
    world = world_of(pod("a"))
    put(world, msgspec.structs.replace(pod("a"), labels={SERVICE_ACCOUNT: "admin"}))
    assert list(world.identities.wanted()) == [key_of()]


# ---- networks


def test_only_what_was_attached_counts() -> None:
    world = world_of(number(300), pod("a", "10.1.0.99"))
    assert (seen(world, "10.1.0.99"), world.allocations.snapshot()["pods 10.1.0.0/24"]) == (None, {})
    attach(world, "a", "10.1.0.5")
    assert (seen(world, "10.1.0.99"), seen(world, "10.1.0.5")) == (None, 300)
    put(world, pod("a", "10.1.0.99", app="x"))
    assert world.own_addresses(pod_ref("a")) == (parse_address("10.1.0.5"),)
    world.detach(pod_ref("a"))
    world.take_dirty()
    assert (seen(world, "10.1.0.5"), world.subject(pod_ref("a"))) == (None, None)
    assert world.local_endpoints() == ()


def test_a_pod_in_the_host_s_network_has_the_node_s_addresses_alone() -> None:
    world = world_of(pod("a", "192.0.2.1", "10.1.0.77", host_network=True))
    assert [seen(world, a) for a in ("192.0.2.1", "10.1.0.77")] == [1, None]


def test_a_network_waits_for_its_pod_and_outlives_it() -> None:
    world = world_of(number(300))
    attach(world, "a", "10.1.0.5")
    assert (seen(world, "10.1.0.5"), world.local_endpoints()) == (None, ())
    put(world, pod("a"))
    assert seen(world, "10.1.0.5") == 300
    assert world.subject(pod_ref("a")) is not None
    remove(world, pod_ref("a"))
    assert (seen(world, "10.1.0.5"), world.subject(pod_ref("a"))) == (None, None), "nobody's, in the pods' block"
    put(world, pod("a"))
    assert world.subject(pod_ref("a")) is not None


def test_an_interface_may_come_by_itself() -> None:
    world = world_of(number(300))
    link = Interface(9, "v", bytes(6), bytes(6), "")
    with pytest.raises(KeyError):
        world.set_interface(pod_ref("a"), link)
    world.attach(pod_ref("a"), (parse_address("10.1.0.5"),))
    world.set_interface(pod_ref("a"), link)
    put(world, pod("a"))
    assert world.subject(pod_ref("a")) is not None
    world.attach(pod_ref("a"), (parse_address("10.1.0.6"),))
    world.take_dirty()
    assert world.subject(pod_ref("a")) is None, "another network, of which nobody knows where it is"


def test_what_others_are_told() -> None:
    world = world_of(number(300, app="web"), pod("b", app="web"), pod("a", app="web"), pod("c", app="db"))
    for name, address in (("b", "10.1.0.6"), ("a", "10.1.0.5"), ("c", "10.1.0.7")):
        attach(world, name, address)
    put(world, pod("node", "192.0.2.1", host_network=True))
    digest, ports = key_digest(key_of(app="web")), (DeclaredPort("http", 6, 8080),)
    assert world.local_endpoints() == (
        NodeEndpoint(pod_ref("a"), (parse_address("10.1.0.5"),), 300, digest, ports),
        NodeEndpoint(pod_ref("b"), (parse_address("10.1.0.6"),), 300, digest, ports),
    )


# ---- pods of other nodes


def test_a_remote_pod_has_the_identity_its_node_tells() -> None:
    world = world_of(number(300, app="web"), told("there", endpoint("a", 300, "10.1.1.5", app="web")))
    assert seen(world, "10.1.1.5") == 300
    assert world.addresses.owner(parse_address("10.1.1.5")) == pod_ref("a")
    remote = world.addresses.remote(parse_address("10.1.1.5"))
    assert remote is not None
    assert (remote.node, remote.ref) == ("there", pod_ref("a"))
    remove(world, node_ref("there"))
    assert (seen(world, "10.1.1.5"), world.problems(), len(world.remotes)) == (None, [], 0)


@pytest.mark.parametrize("meant", [None, {"app": "db"}])
def test_a_number_that_means_another_thing_here_is_none(meant: dict[str, str] | None) -> None:
    world = world_of(told("there", endpoint("a", 300, "10.1.1.5", app="web")))
    if meant is not None:
        put(world, number(300, **meant))
    assert seen(world, "10.1.1.5") == UNMANAGED
    dirty = put(world, number(300, app="web"))
    assert seen(world, "10.1.1.5") == 300
    assert dirty.prefixes == {Prefix.host(parse_address("10.1.1.5"))}
    put(world, number(300, app="other"))
    assert seen(world, "10.1.1.5") == UNMANAGED
    remove(world, number_ref(300))
    assert seen(world, "10.1.1.5") == UNMANAGED


def test_a_number_local_pods_still_have_is_not_enough_for_others() -> None:
    world = world_of(number(300), pod("a"), told("there", endpoint("b", 300, "10.1.1.5")))
    attach(world, "a", "10.1.0.5")
    assert seen(world, "10.1.1.5") == 300
    remove(world, number_ref(300))
    assert (seen(world, "10.1.0.5"), seen(world, "10.1.1.5")) == (300, UNMANAGED)


def test_a_change_of_one_pod_touches_that_pod() -> None:
    pods = [endpoint(f"p{n}", 300, f"10.1.1.{n}") for n in range(2, 32)]
    world = world_of(number(300), number(301, app="x"), told("there", *pods, blocks=["10.1.1.0/24"]))
    pods[3] = endpoint("p5", 301, "10.1.1.5", app="x")
    assert put(world, told("there", *pods, blocks=["10.1.1.0/24"])).prefixes == {Prefix.parse("10.1.1.5/32")}
    pods[4] = endpoint("p6", 300, "10.1.1.99")
    assert put(world, told("there", *pods, blocks=["10.1.1.0/24"])).prefixes == {
        Prefix.parse("10.1.1.6/32"),
        Prefix.parse("10.1.1.99/32"),
    }
    assert not put(world, told("there", *reversed(pods), blocks=["10.1.1.0/24"]))


def test_pods_may_change_addresses_in_one_step() -> None:
    one, other = endpoint("a", 300, "10.1.1.5"), endpoint("b", 301, "10.1.1.6", app="x")
    world = world_of(number(300), number(301, app="x"), told("there", one, other))
    put(world, told("there", endpoint("a", 300, "10.1.1.6"), endpoint("b", 301, "10.1.1.5", app="x")))
    assert (seen(world, "10.1.1.5"), seen(world, "10.1.1.6"), world.problems()) == (301, 300, [])


def test_its_own_object_tells_a_node_nothing_of_its_pods() -> None:
    world = world_of(number(300), number(301, app="x"), pod("a"))
    attach(world, "a", "10.1.0.5")
    put(world, told("here", endpoint("a", 301, "10.1.0.5", app="x"), endpoint("z", 301, "10.1.0.9", app="x")))
    assert (seen(world, "10.1.0.5"), seen(world, "10.1.0.9")) == (300, None)


def test_a_pod_that_moves_between_nodes_is_known_at_both() -> None:
    """The other way round, too: whoever has the name here does not lend its identity to an address there."""
    world = world_of(number(300), number(301, app="x"), told("n1", endpoint("a", 300, "10.1.1.5")))
    put(world, told("n2", endpoint("a", 301, "10.1.2.5", app="x")))
    assert (seen(world, "10.1.1.5"), seen(world, "10.1.2.5")) == (300, 301)
    put(world, number(302, app="y"), pod("a", app="y"))
    attach(world, "a", "10.1.0.5")
    assert [seen(world, a) for a in ("10.1.0.5", "10.1.1.5", "10.1.2.5")] == [302, 300, 301]
    remove(world, node_ref("n1"), node_ref("n2"))
    assert [seen(world, a) for a in ("10.1.0.5", "10.1.1.5", "10.1.2.5")] == [302, None, None]


def test_nodes_that_tell_of_one_address() -> None:
    """Of no node a block is known: then the first by name has it, until it gives it up."""
    world = world_of(number(300), number(301, app="x"), told("n2", endpoint("b", 301, "10.1.1.5", app="x")))
    put(world, told("n1", endpoint("a", 300, "10.1.1.5")))
    assert seen(world, "10.1.1.5") == 300
    assert messages(world) == ["Pod shop/b: address 10.1.1.5 belongs to Pod shop/a: give it another one"]
    put(world, told("n0", endpoint("a", 301, "10.1.1.5", app="x")))
    assert seen(world, "10.1.1.5") == 301
    remove(world, node_ref("n0"), node_ref("n1"))
    assert (seen(world, "10.1.1.5"), messages(world)) == (301, [])


def test_named_ports_of_remote_pods() -> None:
    world = world_of(number(300), told("there", endpoint("a", 300, "10.1.1.5", port=8080)))
    found = world.addresses.remote_class(Prefix.parse("10.1.1.5/32"))
    assert found is not None
    assert not found.ports
    ref = ObjectRef("NetworkPolicy", "shop", "p")
    rule = Rule(RuleRef(ref, Direction.EGRESS, 0), None, (NamedPort(6, "http"),))
    policy = Policy(ref, ORIGIN, PodSelector(LabelSelector(), "shop"), frozenset({Direction.EGRESS}), (rule,))
    put(world, policy)
    found = world.addresses.remote_class(Prefix.parse("10.1.1.5/32"))
    assert found is not None
    assert found.ports == {ContainerPort("http", 6, 8080)}


# ---- whose addresses are whose


def test_a_pod_has_no_address_out_of_another_node_s_block() -> None:
    world = world_of(
        number(300),
        node("n1", "10.1.1.0/24"),
        node("n2", "10.1.2.0/24"),
        told("n1", endpoint("a", 300, "10.1.2.5"), endpoint("b", 300, "10.1.0.6"), endpoint("c", 300, "192.0.2.99")),
        told("n3", endpoint("d", 300, "10.1.1.7"), endpoint("e", 300, "198.51.100.7")),
    )
    assert [seen(world, a) for a in ("10.1.2.5", "10.1.0.6", "192.0.2.99", "10.1.1.7")] == [None] * 4
    assert seen(world, "198.51.100.7") == 300, "of n3 no block is known"
    assert seen_block(world, "10.1.2.0/24") == UNMANAGED
    assert messages(world) == [
        "NodeEndpoints n1: pod shop/a has address 10.1.2.5, which is in a block of node n2: it is not taken",
        "NodeEndpoints n1: pod shop/b has address 10.1.0.6, which is in a block of node here: it is not taken",
        "NodeEndpoints n1: pod shop/c has address 192.0.2.99, which is in no block of its node: it is not taken",
        "NodeEndpoints n3: pod shop/d has address 10.1.1.7, which is in a block of node n1: it is not taken",
    ]
    put(world, node("n1", "192.0.2.64/26"), node("n2"))
    assert [seen(world, a) for a in ("10.1.2.5", "192.0.2.99", "10.1.1.7")] == [None, 300, 300]


def seen_block(world: World, block: str) -> int | None:
    found = world.addresses.remote_class(Prefix.parse(block))
    return found.identity if found else None


def test_addresses_in_pods_blocks_that_nobody_told_of_are_unmanaged() -> None:
    world = world_of(told("there", blocks=["10.1.1.0/24"]))
    assert seen_block(world, "10.1.1.0/24") == UNMANAGED
    remove(world, node_ref("there"))
    assert seen_block(world, "10.1.1.0/24") is None


def test_a_block_that_overlaps_another_node_s_is_refused() -> None:
    world = world_of(
        number(300),
        told("n2", endpoint("b", 300, "10.1.1.9"), blocks=["10.1.1.0/24"]),
        told("n1", endpoint("a", 300, "10.1.1.5"), blocks=["10.1.0.0/16"]),
    )
    assert (seen(world, "10.1.1.9"), seen(world, "10.1.1.5")) == (300, None)
    assert seen_block(world, "10.1.0.0/16") is None
    assert messages(world) == [
        "NodeEndpoints n1: block 10.1.0.0/16 overlaps one of node here: it is not taken",
        "NodeEndpoints n1: pod shop/a has address 10.1.1.5, which is in a block of node n2: it is not taken",
    ]
    put(world, node("n1", "10.1.1.0/28"))
    assert (seen(world, "10.1.1.9"), seen(world, "10.1.1.5")) == (None, 300), "Node objects go first"
    put(world, node("n1"))
    assert (seen(world, "10.1.1.9"), seen(world, "10.1.1.5")) == (300, None)
    remove(world, node_ref("n2"))
    assert messages(world)[0].startswith("NodeEndpoints n1: block 10.1.0.0/16 overlaps one of node here")
    put(world, told("n1", endpoint("a", 300, "10.1.1.5"), blocks=["10.1.1.0/24"]))
    assert (seen(world, "10.1.1.5"), messages(world)) == (300, [])


def test_whoever_came_first_keeps_its_block() -> None:
    world = world_of(told("n2", blocks=["10.1.1.0/24"]), told("n1", blocks=["10.1.1.0/25"]))
    assert world.nodes.blocks.owner(parse_address("10.1.1.5")) == "n2"
    put(world, told("n2", blocks=["10.1.2.0/24", "10.1.1.0/24"]))
    assert world.nodes.blocks.owner(parse_address("10.1.1.5")) == "n2"
    put(world, told("n2", blocks=["10.1.2.0/24"]))
    assert world.nodes.blocks.owner(parse_address("10.1.1.5")) == "n1"


def test_a_node_does_not_become_another_s_pod() -> None:
    """What a node says are its addresses counts as far as they lie in no other's block."""
    world = world_of(
        number(300),
        told("n2", endpoint("b", 300, "10.1.2.5"), blocks=["10.1.2.0/24"]),
        told("n1", addresses=["10.1.2.5", "192.0.2.9", "10.1.0.7"], blocks=["10.1.1.0/24"]),
    )
    assert [seen(world, a) for a in ("10.1.2.5", "192.0.2.9", "10.1.0.7")] == [300, REMOTE_NODE, None]
    assert messages(world) == [
        "NodeEndpoints n1: address 10.1.0.7 is in a block of node here: it is not taken for this node's",
        "NodeEndpoints n1: address 10.1.2.5 is in a block of node n2: it is not taken for this node's",
    ]
    remove(world, node_ref("n2"))
    assert seen(world, "10.1.2.5") == REMOTE_NODE


def test_peers() -> None:
    world = world_of(
        node("n1", "10.1.1.0/24", addresses=["192.0.2.2"]),
        node("n2", "10.1.2.0/24", addresses=["192.0.2.3"]),
        node("here", "10.1.0.0/24", addresses=["192.0.2.1"]),
        told("here", blocks=["10.1.0.0/24"]),
        told("n1", addresses=["198.51.100.2", "192.0.2.2"], blocks=["10.9.1.0/24"], key=bytes(range(32))),
        told("n3", blocks=["10.1.2.0/25"]),
    )
    assert dict(world.nodes.peers()) == {
        "n1": Peer(
            "n1",
            (parse_address("198.51.100.2"), parse_address("192.0.2.2")),
            (Prefix.parse("10.9.1.0/24"),),
            bytes(range(32)),
        ),
        "n2": Peer("n2", (parse_address("192.0.2.3"),), (Prefix.parse("10.1.2.0/24"),)),
        "n3": Peer("n3", (), ()),
    }
    assert {seen_block(world, b) for b in ("10.1.1.0/24", "10.9.1.0/24", "10.1.0.0/24")} == {UNMANAGED}
    remove(world, ObjectRef("Node", "", "n2"), node_ref("n1"))
    assert world.nodes.peers()["n3"].pod_cidrs == (Prefix.parse("10.1.2.0/25"),)
    assert world.nodes.peers()["n1"] == Peer("n1", (parse_address("192.0.2.2"),), (Prefix.parse("10.1.1.0/24"),))
    assert "n2" not in world.nodes.peers()


def test_a_pool_s_blocks_come_and_go() -> None:
    world = world_of(number(300), told("there", endpoint("a", 300, "10.5.0.5")))
    assert seen(world, "10.5.0.5") == 300, "there has no block: its pods may have any address that is in no other's"
    world.set_pod_blocks((Prefix.parse("10.5.0.0/24"),))
    world.take_dirty()
    assert (seen(world, "10.5.0.5"), seen_block(world, "10.5.0.0/24")) == (None, UNMANAGED)
    assert seen_block(world, "10.1.0.0/24") is None
    world.set_pod_blocks(())
    world.take_dirty()
    assert (seen(world, "10.5.0.5"), seen_block(world, "10.5.0.0/24")) == (300, None)


def test_without_a_cluster_nothing_of_this_counts() -> None:
    config = msgspec.structs.replace(CONFIG, cluster=False, attached=False)
    world = world_of(
        number(300), pod("a"), told("there", endpoint("b", 300, "10.1.1.5"), blocks=["10.1.1.0/24"]), config=config
    )
    assert identity(world, "a") != 0
    assert (seen(world, "10.1.1.5"), seen_block(world, "10.1.1.0/24")) == (None, None)
    assert world.identities.wanted() == {}
    assert world.identities.numbers(key_of()) == (identity(world, "a"),)

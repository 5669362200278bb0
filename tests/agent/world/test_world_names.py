"""DNS names as marks, and the classes that stand before any address has one."""

from __future__ import annotations

import msgspec
from marked_worlds import (
    ANY,
    EXACT,
    WILD,
    WORLD_IPV4,
    WORLD_IPV6,
    class_of,
    marks_of,
    node,
    pod,
    policy,
    service,
    set_names,
    slice_of,
    world_of,
)
from small_worlds import put, remove

from agent.world.world import World
from policies.address import Prefix, parse_address
from policies.l7 import L7, NamePattern
from policies.model import (
    KUBERNETES,
    CidrBlock,
    Mark,
    ObjectRef,
    RemoteClass,
    ServicePeer,
)


def test_addresses_of_a_name_share_one_class_and_a_new_one_costs_one_prefix() -> None:
    world = world_of(policy(WILD), pod("a", "10.1.0.5"))
    addresses = tuple(f"198.51.100.{n}" for n in range(1, 201))
    set_names(world, a_example=addresses[:-1])
    assert {class_of(world, address) for address in addresses[:-1]} == {
        RemoteClass(WORLD_IPV4, marks=frozenset({WILD}))
    }
    world.set_names("a.example", frozenset(map(parse_address, addresses)))
    dirty = world.take_dirty()
    assert dirty.prefixes == {Prefix.parse(f"{addresses[-1]}/32")}
    assert not dirty.policies
    assert not dirty.endpoints
    set_names(world, a_example=())
    assert not any(class_of(world, address) for address in addresses)


def test_an_address_has_the_patterns_of_all_its_names() -> None:
    world = world_of(policy(EXACT, WILD, ANY))
    set_names(world, a_example=("198.51.100.1",), b_example=("198.51.100.1", "2001:db8::1"), else_org=("2001:db8::2",))
    assert marks_of(world, "198.51.100.1") == {EXACT, WILD, ANY}
    assert class_of(world, "2001:db8::1") == RemoteClass(WORLD_IPV6, marks=frozenset({WILD, ANY}))
    assert marks_of(world, "2001:db8::2") == {ANY}
    set_names(world, a_example=())
    assert marks_of(world, "198.51.100.1") == {WILD, ANY}
    put(world, policy(EXACT))
    assert class_of(world, "198.51.100.1") is None
    set_names(world, A_Example=("198.51.100.1",))
    assert marks_of(world, "198.51.100.1") == {EXACT}


def test_a_name_says_nothing_of_what_is_inside() -> None:
    """What a DNS server answers, a stranger may choose: it must not widen what pods and nodes may do."""
    world = world_of(
        policy(ANY),
        pod("a", "10.1.0.5"),
        pod("far", "203.0.113.5", node="there"),
        node("there", "192.0.2.2", blocks=("10.2.0.0/24",)),
        pod("on-node", "192.0.2.9", node="else", host_network=True),
    )
    inside = ("10.1.0.5", "10.1.0.77", "203.0.113.5", "192.0.2.1", "192.0.2.2", "192.0.2.9", "10.2.0.7", "10.96.0.3")
    set_names(world, evil_example=(*inside, "198.51.100.1"))
    assert {address: marks_of(world, address) for address in inside} == {key: set() for key in inside}
    assert marks_of(world, "198.51.100.1") == {ANY}
    remove(world, ObjectRef("Node", "", "there"), ObjectRef("Pod", "shop", "far"))
    assert marks_of(world, "10.2.0.7") == marks_of(world, "203.0.113.5") == {ANY}


def test_blocks_that_cover_a_named_address_count() -> None:
    block = CidrBlock(Prefix.parse("198.51.100.0/24"), inside=False)
    host = CidrBlock(Prefix.parse("198.51.100.1/32"), inside=False)
    world = world_of(policy(WILD), policy(block, host, name="q"))
    set_names(world, a_example=("198.51.100.1", "198.51.100.2"))
    assert class_of(world, "198.51.100.2") == RemoteClass(WORLD_IPV4, frozenset({block.block}), marks=frozenset({WILD}))
    both = frozenset({block.block, host.block})
    assert class_of(world, "198.51.100.1") == RemoteClass(WORLD_IPV4, both, marks=frozenset({WILD}))


def test_names_that_nobody_learns_are_reported() -> None:
    world = world_of(policy(EXACT), policy(KUBERNETES, name="q"))
    (problem,) = world.problems()
    assert problem.warning
    assert problem.subject == "CiliumNetworkPolicy shop/p"
    assert "rules.dns" in problem.message
    learning = policy(name="dns")
    asks = msgspec.structs.replace(learning.rules[0], l7=L7(dns=frozenset({ANY})))
    put(world, msgspec.structs.replace(learning, rules=(asks,)))
    assert not world.problems()


def standing(world: World) -> set[tuple[int, frozenset[Prefix], frozenset[Mark]]]:
    return {(one.identity, one.prefixes, one.marks) for one in world.name_classes().classes}


def both_families(*marks: NamePattern) -> set[tuple[int, frozenset[Prefix], frozenset[Mark]]]:
    return {(identity, frozenset(), frozenset(marks)) for identity in (WORLD_IPV4, WORLD_IPV6)}


def test_classes_of_patterns_are_there_before_the_first_answer() -> None:
    world = world_of(policy(EXACT, WILD), pod("a", "10.1.0.5"))
    assert standing(world) == both_families(EXACT, WILD) | both_families(WILD)
    subject = world.subject(ObjectRef("Pod", "shop", "a"))
    assert subject is not None
    rows = world.index.compile(subject)
    assert {remote.marks for direction, remote in rows if remote is not None} >= {frozenset({WILD})}
    put(world, policy(ANY, name="q"))
    assert standing(world) == both_families(EXACT, WILD, ANY) | both_families(WILD, ANY) | both_families(ANY)
    everywhere = Prefix.parse("0.0.0.0/0")
    put(world, policy(ANY, CidrBlock(everywhere, inside=False)))
    remove(world, policy(name="q").ref)
    assert standing(world) == {
        (WORLD_IPV4, frozenset({everywhere}), frozenset({ANY})),
        (WORLD_IPV6, frozenset(), frozenset({ANY})),
    }
    remove(world, policy().ref)
    assert standing(world) == set()


def test_classes_of_known_names_stay_while_they_are_known() -> None:
    deep = NamePattern(pattern="**.example")
    world = world_of(policy(WILD, deep))
    assert standing(world) == both_families(WILD) | both_families(deep)
    set_names(world, a_example=("10.1.0.77",))
    assert standing(world) == both_families(WILD) | both_families(deep) | both_families(WILD, deep)
    set_names(world, a_example=())
    assert standing(world) == both_families(WILD) | both_families(deep)


def test_what_the_dns_proxy_is_told() -> None:
    block, peer = Prefix.parse("198.51.100.0/24"), ServicePeer("shop", "web")
    world = world_of(
        policy(EXACT, CidrBlock(block, inside=False), peer),
        node("there", "192.0.2.2", blocks=("10.2.0.0/24",)),
        service("web"),
        slice_of("web", "203.0.113.9"),
        service("kubernetes", "default"),
        slice_of("kubernetes", "203.0.113.10", namespace="default"),
    )
    set_names(world, a_example=("198.51.100.1", "203.0.113.9"))
    told = world.name_classes()
    assert told.patterns == {EXACT}
    assert told.prefixes == {block}
    inside = ("10.1.0.0/24", "fd00:1::/64", "10.96.0.0/24", "10.2.0.0/24", "192.0.2.1/32", "192.0.2.2/32")
    assert told.inside == set(map(Prefix.parse, (*inside, "203.0.113.9/32", "203.0.113.10/32")))
    here = (WORLD_IPV4, frozenset({block}), frozenset({EXACT}))
    assert standing(world) == both_families(EXACT) | {here}
    assert marks_of(world, "203.0.113.9") == {EXACT, peer}

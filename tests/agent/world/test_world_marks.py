"""What rules ask of an address: nodes by label, endpoints of services, DNS names, the API server."""

from __future__ import annotations

import os

import msgspec
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from small_worlds import put, remove
from worlds import BACKENDS, CONFIGS, EVERY_KIND, NAMED, ORIGIN, Scene, change_world, histories

from agent.objects import (
    EndpointSlice,
    Node,
    Object,
    Pod,
    PolicySet,
    Secret,
    Service,
    ServicePort,
    SliceEndpoint,
    SlicePort,
)
from agent.sources.slices import derive
from agent.world.config import NodeConfig
from agent.world.serving import all_slices_of
from agent.world.world import World
from policies.address import Prefix, parse_address
from policies.facts import Party, PodFacts, ServiceFacts
from policies.l7 import L7, NamePattern
from policies.matching import peer_selects
from policies.model import (
    KUBERNETES,
    SERVICE_ACCOUNT,
    CidrBlock,
    Direction,
    LabelSelector,
    Mark,
    NodePeer,
    ObjectRef,
    Operator,
    Peer,
    PodSelector,
    Policy,
    RemoteClass,
    Requirement,
    Rule,
    RuleRef,
    ServicePeer,
    Subject,
    Tier,
)

EXAMPLES = int(os.environ.get("GATEHOUSE_EXAMPLES", "60"))
CONFIG = NodeConfig(
    name="here",
    pod_cidrs=(Prefix.parse("10.1.0.0/24"), Prefix.parse("fd00:1::/64")),
    service_cidrs=(Prefix.parse("10.96.0.0/24"),),
    addresses=(parse_address("192.0.2.1"),),
)
ALL = LabelSelector()
HOST, UNMANAGED, REMOTE_NODE, APISERVER, WORLD_IPV4, WORLD_IPV6 = 1, 3, 6, 7, 9, 10
EXACT, WILD, ANY = NamePattern("a.example"), NamePattern(pattern="*.example"), NamePattern(pattern="*")


def labels(**wanted: str) -> LabelSelector:
    return LabelSelector(frozenset(Requirement(k, Operator.IN, frozenset({v})) for k, v in wanted.items()))


def policy(*peers: Peer, name: str = "p", subject: LabelSelector = ALL) -> Policy:
    ref = ObjectRef("CiliumNetworkPolicy", "shop", name)
    rule = Rule(RuleRef(ref, Direction.EGRESS, 0), peers, None)
    return Policy(ref, ORIGIN, PodSelector(subject, namespace="shop"), frozenset({Direction.EGRESS}), (rule,))


def pod(
    name: str, address: str, node: str = "", host_network: bool = False, account: str = "default", **own: str
) -> Pod:
    ref = ObjectRef("Pod", "shop", name)
    return Pod(ref, ORIGIN, own, node, account, host_network, (parse_address(address),))


def node(name: str, *addresses: str, blocks: tuple[str, ...] = (), **own: str) -> Node:
    found = tuple(map(parse_address, addresses))
    return Node(ObjectRef("Node", "", name), ORIGIN, found, tuple(map(Prefix.parse, blocks)), "", own)


def service(name: str, namespace: str = "shop", selector: dict[str, str] | None = None, **own: str) -> Service:
    port = ServicePort("p", 6, 80, 8080)
    return Service(ObjectRef("Service", namespace, name), ORIGIN, "ClusterIP", selector, (), False, (port,), labels=own)


def slice_of(name: str, *addresses: str, namespace: str = "shop", proxied: bool = True) -> EndpointSlice:
    endpoints = tuple(SliceEndpoint((parse_address(address),)) for address in addresses)
    ref = ObjectRef("EndpointSlice", namespace, f"{name}-1")
    return EndpointSlice(ref, ORIGIN, name, (SlicePort("p", 6, 8080),), endpoints, proxied)


def world_of(*objects: Object, config: NodeConfig = CONFIG) -> World:
    world = World(config, derive)
    put(world, *objects)
    return world


def set_names(world: World, **names: tuple[str, ...]) -> None:
    """a_example is a.example."""
    for name, addresses in names.items():
        world.set_names(name.replace("_", "."), frozenset(map(parse_address, addresses)))
    world.take_dirty()


def class_of(world: World, address: str) -> RemoteClass | None:
    return world.addresses.remote_class(Prefix.host(parse_address(address)))


def marks_of(world: World, address: str) -> set[Mark]:
    remote = class_of(world, address)
    return set() if remote is None else set(remote.marks)


# ---- nodes


def test_nodes_are_known_by_their_labels() -> None:
    zone_a, every = NodePeer(labels(zone="a")), NodePeer(ALL)
    world = world_of(
        policy(zone_a, every),
        node("here", zone="a"),
        node("there", "192.0.2.2", "2001:db8::2", zone="a"),
        node("else", "192.0.2.3"),
        pod("agent", "192.0.2.2", node="there", host_network=True),
    )
    assert class_of(world, "192.0.2.1") == RemoteClass(HOST, marks=frozenset({zone_a, every}))
    for address in ("192.0.2.2", "2001:db8::2"):
        assert class_of(world, address) == RemoteClass(REMOTE_NODE, marks=frozenset({zone_a, every}))
    assert marks_of(world, "192.0.2.3") == {every}
    put(world, node("there", "192.0.2.2", zone="b"), node("here", zone="b"))
    assert marks_of(world, "192.0.2.1") == marks_of(world, "192.0.2.2") == {every}
    remove(world, policy().ref)
    assert class_of(world, "192.0.2.1") == RemoteClass(HOST)
    assert class_of(world, "192.0.2.2") == RemoteClass(REMOTE_NODE)


def test_a_node_without_a_manifest_has_no_labels() -> None:
    lacking = NodePeer(LabelSelector(frozenset({Requirement("zone", Operator.DOES_NOT_EXIST)})))
    world = world_of(policy(NodePeer(labels(zone="a")), lacking))
    assert marks_of(world, "192.0.2.1") == {lacking}


# ---- services


@pytest.mark.parametrize(
    "peer",
    [
        ServicePeer("shop", "web"),
        ServicePeer("shop", selector=labels(tier="front")),
        ServicePeer("", selector=labels(tier="front")),
        ServicePeer("", selector=ALL),
    ],
)
def test_endpoints_of_a_selected_service(peer: ServicePeer) -> None:
    """Those its selector gives and, where slices are given, those they name: of pods and outside."""
    world = world_of(
        policy(peer),
        pod("a", "10.1.0.5", app="web"),
        pod("b", "10.1.0.6", app="db"),
        service("web", selector={"app": "web"}, tier="front"),
    )
    assert marks_of(world, "10.1.0.5") == {peer}
    assert marks_of(world, "10.1.0.6") == set()
    put(world, pod("b", "10.1.0.6", app="web"))
    assert marks_of(world, "10.1.0.6") == {peer}
    put(world, slice_of("web", "198.51.100.9", "10.1.0.6", "10.1.0.77", "192.0.2.1"))
    assert marks_of(world, "10.1.0.5") == set()
    assert class_of(world, "198.51.100.9") == RemoteClass(WORLD_IPV4, marks=frozenset({peer}))
    assert class_of(world, "10.1.0.77") == RemoteClass(UNMANAGED, marks=frozenset({peer}))
    assert class_of(world, "192.0.2.1") == RemoteClass(HOST, marks=frozenset({peer}))
    assert marks_of(world, "10.1.0.6") == {peer}
    remove(world, ObjectRef("Service", "shop", "web"))
    assert class_of(world, "198.51.100.9") is None
    assert marks_of(world, "10.1.0.6") == set()


def test_other_services_do_not_count() -> None:
    world = world_of(
        policy(ServicePeer("shop", "web"), ServicePeer("shop", selector=labels(tier="front"))),
        service("web", "other"),
        slice_of("web", "198.51.100.9", namespace="other"),
        service("other", tier="back"),
        slice_of("other", "198.51.100.10"),
        slice_of("stray", "198.51.100.11"),
    )
    assert [class_of(world, f"198.51.100.{n}") for n in (9, 10, 11)] == [None] * 3


def test_a_headless_service_has_endpoints_too() -> None:
    peer = ServicePeer("shop", "db")
    headless = msgspec.structs.replace(service("db"), headless=True, proxied=False)
    world = world_of(headless, slice_of("db", "198.51.100.9", proxied=False), policy(peer))
    assert marks_of(world, "198.51.100.9") == {peer}
    remove(world, ObjectRef("EndpointSlice", "shop", "db-1"))
    assert class_of(world, "198.51.100.9") is None
    put(world, slice_of("db", "198.51.100.10", proxied=False))
    assert marks_of(world, "198.51.100.10") == {peer}


def test_a_service_that_is_relabelled_or_selected_once_more() -> None:
    front, back, any_of_them = (
        ServicePeer("", selector=one) for one in (labels(tier="front"), labels(tier="back"), ALL)
    )
    world = world_of(policy(front, back), service("web", tier="front"), slice_of("web", "198.51.100.9"))
    put(world, service("web", tier="back"))
    assert marks_of(world, "198.51.100.9") == {back}
    put(world, policy(any_of_them, name="q"))
    assert marks_of(world, "198.51.100.9") == {back, any_of_them}
    remove(world, policy().ref)
    assert marks_of(world, "198.51.100.9") == {any_of_them}


# ---- the API server


def test_the_api_server_is_known_by_its_service() -> None:
    world = world_of(
        node("there", "192.0.2.2"),
        service("kubernetes", "default"),
        slice_of("kubernetes", "198.51.100.9", "2001:db8::9", "192.0.2.2", namespace="default"),
    )
    v4, v6 = (Prefix.parse(block) for block in ("0.0.0.0/0", "::/0"))
    assert class_of(world, "198.51.100.9") == RemoteClass(APISERVER, frozenset({v4}))
    assert class_of(world, "2001:db8::9") == RemoteClass(APISERVER, frozenset({v6}))
    assert class_of(world, "192.0.2.2") == RemoteClass(REMOTE_NODE), "a node stays one"
    put(world, policy(KUBERNETES))
    assert class_of(world, "192.0.2.2") == RemoteClass(REMOTE_NODE, marks=frozenset({KUBERNETES}))
    remove(world, ObjectRef("EndpointSlice", "default", "kubernetes-1"))
    assert class_of(world, "198.51.100.9") is None
    assert class_of(world, "192.0.2.2") == RemoteClass(REMOTE_NODE)


# ---- names


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


# ---- what stands before any address does


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


# ---- identities, policies, secrets


def test_policies_select_by_service_account_and_no_label_passes_for_it() -> None:
    """CVE-2023-39347."""
    admin = labels(**{SERVICE_ACCOUNT: "admin"})
    world = world_of(
        pod("a", "10.1.0.5", account="admin"),
        msgspec.structs.replace(pod("b", "10.1.0.6"), labels={SERVICE_ACCOUNT: "admin"}),
        pod("c", "10.1.0.7"),
        policy(subject=admin),
    )
    states = [world.pods.get(ObjectRef("Pod", "shop", name)) for name in "abc"]
    numbers = [state.identity for state in states if state is not None]
    assert [len(world.index.policies_of(Subject(number))) for number in numbers] == [1, 0, 0]
    assert numbers[1] == numbers[2]


def test_an_object_of_several_policies() -> None:
    first, second = policy(name="p"), policy(name="p:specs[1]")
    whole = PolicySet(first.ref, ORIGIN, (first, second))
    world = world_of(whole)
    assert {one.ref for one in world.index.policies()} == {first.ref, second.ref}
    put(world, PolicySet(first.ref, ORIGIN, (second,)))
    assert {one.ref for one in world.index.policies()} == {second.ref}
    put(world, first)
    assert {one.ref for one in world.index.policies()} == {first.ref}
    put(world, whole)
    remove(world, first.ref)
    assert not list(world.index.policies())


def test_secrets_are_kept() -> None:
    secret = Secret(ObjectRef("Secret", "shop", "tls"), ORIGIN, {"tls.crt": b"x"})
    world = world_of(secret)
    assert world.secrets == {secret.ref: secret}
    remove(world, secret.ref)
    assert not world.secrets


# ---- the World against the oracle


def party(world: World, scene: Scene, address: bytes) -> Party:
    """What is known of an address, straight from the scene."""
    services = tuple(
        ServiceFacts(one.ref.namespace, one.ref.name, one.labels)
        for one in world.services
        if any(address == found for part in all_slices_of(world, one) for found, _ in part.addressed())
    )
    names = frozenset(name for name, addresses in scene.names.items() if address in addresses)
    known = [thing for thing in scene.services.values() if isinstance(thing, Node)]
    here = {thing.ref.name: thing.labels for thing in known}.get(world.config.name, {})
    having = sorted(
        (n for n in known if n.ref.name != world.config.name and address in n.addresses), key=lambda n: n.ref
    )
    if address in world.config.addresses:
        return Party(address, None, "host", here, names, services)
    if having:
        return Party(address, None, "remote-node", having[0].labels, names, services)
    if (owner := world.addresses.owner(address)) is not None:
        state = world.pods.get(owner)
        assert state is not None
        facts = PodFacts(owner.namespace, owner.name, state.pod.labels)
        return Party(address, facts, "world", None, names, services)
    blocks = (*world.config.pod_cidrs, *(block for n in known for block in n.pod_cidrs))
    inside = any(block.contains(address) for block in blocks)
    return Party(address, None, "unmanaged" if inside else "world", None, names, services)


@given(scenes=histories(steps=6, kinds=EVERY_KIND), config=st.sampled_from(CONFIGS))
@settings(max_examples=EXAMPLES, deadline=None, print_blob=True, suppress_health_check=list(HealthCheck))
def test_marks_are_what_the_oracle_says(scenes: list[Scene], config: NodeConfig) -> None:
    world = World(config, derive)
    before: Scene | None = None
    for scene in scenes:
        change_world(world, before, scene)
        world.take_dirty()
        before = scene
        for address in map(parse_address, {*BACKENDS, *NAMED}):
            remote = world.addresses.remote_class(Prefix.host(address))
            who = party(world, scene, address)
            wanted = {mark for mark in world.index.marks() if peer_selects(mark, who, {})}
            assert (set() if remote is None else set(remote.marks)) == wanted, who
        told = world.name_classes()
        assert {remote for remote in told.classes if not remote.marks <= told.patterns} == set()


def test_a_tier_is_no_hindrance() -> None:
    """Marks of an admin's rules count as those of any."""
    admin = msgspec.structs.replace(policy(WILD), tier=Tier.ADMIN, isolates=frozenset())
    world = world_of(admin)
    set_names(world, a_example=("198.51.100.1",))
    assert marks_of(world, "198.51.100.1") == {WILD}

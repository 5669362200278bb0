"""A World of one node, and objects that rules ask about by more than identity and prefix."""

from __future__ import annotations

from small_worlds import put
from worlds import ORIGIN

from agent.objects import (
    EndpointSlice,
    Node,
    Object,
    Pod,
    Service,
    ServicePort,
    SliceEndpoint,
    SlicePort,
)
from agent.sources.slices import derive
from agent.world.config import NodeConfig
from agent.world.world import World
from policies.address import Prefix, parse_address
from policies.l7 import NamePattern
from policies.model import (
    Direction,
    LabelSelector,
    Mark,
    ObjectRef,
    Operator,
    Peer,
    PodSelector,
    Policy,
    RemoteClass,
    Requirement,
    Rule,
    RuleRef,
)

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

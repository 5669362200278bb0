"""A World of a node in a cluster: numbers come from SecurityIdentities, pods of other nodes from NodeEndpoints,
networks from a runtime.
"""

from __future__ import annotations

from collections.abc import Iterable

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
from agent.world.world import World
from policies.address import Prefix, parse_address
from policies.model import (
    ObjectRef,
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

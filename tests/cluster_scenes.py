"""Random histories of a node in a cluster: pods and their networks, numbers, what other nodes tell, policies."""

from __future__ import annotations

from collections.abc import Callable, Mapping

import msgspec
import strategies as drawn
from hypothesis import strategies as st

from agent.identity.labels import identity_key, key_digest
from agent.objects import (
    Change,
    DeclaredPort,
    Interface,
    Namespace,
    Node,
    NodeEndpoint,
    NodeEndpoints,
    Object,
    Pod,
    SecurityIdentity,
)
from agent.world.config import NodeConfig
from agent.world.identities import Key
from agent.world.world import World
from policies.address import Prefix, parse_address
from policies.facts import HOST, Party, PodFacts
from policies.model import SERVICE_ACCOUNT, ContainerPort, ObjectRef, Origin

ORIGIN = Origin("drawn", 0)
CONFIG = NodeConfig(
    name="here",
    pod_cidrs=(Prefix.parse("10.1.0.0/24"), Prefix.parse("fd00:1::/96")),
    addresses=tuple(map(parse_address, drawn.HOST_ADDRESSES)),
    cluster=True,
    attached=True,
    implicit_namespaces=False,
)
CONFIGS = (
    CONFIG,
    msgspec.structs.replace(CONFIG, enforce_always=True),
    msgspec.structs.replace(CONFIG, labels_exclude=("env",)),
)
NUMBERS = range(300, 306)
OTHERS = ("n1", "n2")
SAID = {"n1": ("10.1.1.0/24", "fd00:1:0:1::/64"), "n2": ("10.1.2.0/24",), "here": ("10.1.0.0/24",)}
"""Blocks that nodes say they have: no two of them meet, so that it does not matter who came first."""
GIVEN = {"n1": ("10.1.1.0/24", "10.1.2.0/25"), "n2": ("10.1.2.128/25", "10.1.1.0/28", "10.1.0.0/25")}
"""Blocks of Node objects, which may be those another node says it has; of one node at a time, one of these."""
REMOTE_ADDRESSES = ("10.1.1.5", "10.1.1.20", "10.1.2.5", "10.1.2.200", "fd00:1:0:1::5", "10.1.0.77", "203.0.113.5")
LOCAL_ADDRESSES = ("10.1.0.5", "10.1.0.6", "10.1.0.7", "fd00:1::5")
NODE_ADDRESSES = ("192.0.2.11", "192.0.2.12", "10.1.2.5", "10.1.0.5", "10.1.1.5")
OUTSIDE = ("192.0.2.7", "10.9.9.9", "10.1.1.99", "10.1.0.99", "2001:db8::7", "192.0.2.11")


class Attached(msgspec.Struct, frozen=True):
    addresses: tuple[bytes, ...]
    interface: Interface
    uid: str


class Scene(msgspec.Struct, frozen=True):
    objects: dict[ObjectRef, Object]
    attached: dict[ObjectRef, Attached] = {}

    def numbers(self) -> dict[int, SecurityIdentity]:
        return {one.number: one for one in self.objects.values() if isinstance(one, SecurityIdentity)}

    def told(self) -> dict[str, NodeEndpoints]:
        return {one.ref.name: one for one in self.objects.values() if isinstance(one, NodeEndpoints)}


def key_of(one: SecurityIdentity) -> Key:
    return identity_key(one.namespace, one.labels, one.service_account)


# ---- what is drawn

_pod_refs = st.builds(
    ObjectRef, st.just("Pod"), st.sampled_from(drawn.NAMESPACES), st.sampled_from(("a", "b", "c", "d"))
)
_ports = st.lists(
    st.builds(DeclaredPort, st.sampled_from(drawn.PORT_NAMES), st.sampled_from((6, 17)), st.sampled_from(drawn.PORTS)),
    max_size=2,
).map(tuple)
_uids = st.sampled_from(("", "u1", "u2"))


@st.composite
def _numbers(draw: st.DrawFn) -> SecurityIdentity:
    number = draw(st.sampled_from(NUMBERS))
    return SecurityIdentity(
        ObjectRef("SecurityIdentity", "", str(number)),
        ORIGIN,
        number,
        draw(st.sampled_from(drawn.NAMESPACES)),
        draw(st.sampled_from(("default", "default", "robot"))),
        draw(drawn.label_maps()),
        draw(st.sampled_from(("", "", "", "2026-01-01T00:00:00Z"))),
    )


@st.composite
def _pods(draw: st.DrawFn, scene: Scene) -> Pod:
    """Often one that a number stands for."""
    ref, labels = draw(_pod_refs), draw(drawn.label_maps())
    meant = [one for one in scene.numbers().values() if one.namespace == ref.namespace]
    account = "default"
    if meant and draw(st.integers(0, 3)) > 0:
        chosen = draw(st.sampled_from(meant))
        labels, account = chosen.labels, chosen.service_account
    return Pod(
        ref,
        ORIGIN,
        labels,
        node="here",
        service_account=account,
        host_network=draw(st.integers(0, 7)) == 0,
        addresses=draw(st.sampled_from(((), (parse_address("10.1.0.99"),)))),
        ports=draw(_ports),
        uid=draw(_uids),
        finished=draw(st.integers(0, 7)) == 0,
    )


@st.composite
def _endpoints(draw: st.DrawFn, scene: Scene, address: str) -> NodeEndpoint:
    """With the digest of what the number stands for, mostly."""
    number, numbers = draw(st.sampled_from(NUMBERS)), scene.numbers()
    digest = key_digest(identity_key(draw(st.sampled_from(drawn.NAMESPACES)), draw(drawn.label_maps()), "default"))
    if number in numbers and draw(st.integers(0, 3)) > 0:
        digest = key_digest(key_of(numbers[number]))
    return NodeEndpoint(draw(_pod_refs), (parse_address(address),), number, digest, draw(_ports))


@st.composite
def _told(draw: st.DrawFn, scene: Scene) -> NodeEndpoints:
    name = draw(st.sampled_from((*OTHERS, *OTHERS, "here")))
    addresses = draw(st.lists(st.sampled_from(REMOTE_ADDRESSES), max_size=4, unique=True))
    endpoints = {(one := draw(_endpoints(scene, address))).pod: one for address in addresses}
    return NodeEndpoints(
        ObjectRef("NodeEndpoints", "", name),
        ORIGIN,
        tuple(map(parse_address, draw(st.lists(st.sampled_from(NODE_ADDRESSES), max_size=2, unique=True)))),
        tuple(map(Prefix.parse, draw(st.sampled_from(((), SAID[name], SAID[name][:1]))))),
        tuple(endpoints.values()),
    )


@st.composite
def _nodes(draw: st.DrawFn) -> Node:
    name = draw(st.sampled_from((*OTHERS, "here")))
    blocks = draw(st.sampled_from(((), *((block,) for block in GIVEN.get(name, ())))))
    addresses = draw(st.lists(st.sampled_from(NODE_ADDRESSES), max_size=2, unique=True))
    ref = ObjectRef("Node", "", name)
    return Node(ref, ORIGIN, tuple(map(parse_address, addresses)), tuple(map(Prefix.parse, blocks)))


@st.composite
def _attached(draw: st.DrawFn, scene: Scene) -> tuple[ObjectRef, Attached]:
    """To a pod that is there, mostly; on an address that no other has."""
    there = sorted(ref for ref in scene.objects if ref.kind == "Pod")
    ref = draw(st.sampled_from(there)) if there and draw(st.integers(0, 3)) > 0 else draw(_pod_refs)
    taken = {a for other, one in scene.attached.items() if other != ref for a in one.addresses}
    free = [a for a in map(parse_address, LOCAL_ADDRESSES) if a not in taken]
    addresses = tuple(sorted(draw(st.sets(st.sampled_from(free), min_size=1, max_size=2)))) if free else ()
    if len(addresses) == 2 and len({a[:12] == bytes(10) + b"\xff\xff" for a in addresses}) == 1:
        addresses = addresses[:1]
    known = scene.objects.get(ref)
    uid = known.uid if isinstance(known, Pod) and draw(st.integers(0, 3)) > 0 else draw(_uids)
    index = 100 + sorted(drawn.NAMESPACES).index(ref.namespace) * 10 + "abcd".index(ref.name)
    return ref, Attached(addresses, Interface(index, f"gh{index}", bytes(6), bytes(6), ""), uid)


FIRST_EDITS = 20
"""So much has happened before anybody looks."""
EVENTS = (
    "number",
    "number",
    "pod",
    "pod",
    "attach",
    "attach",
    "detach",
    "told",
    "told",
    "told",
    "node",
    "policy",
    "gone",
)


@st.composite
def _edits(draw: st.DrawFn, scene: Scene) -> Scene:
    kind = draw(st.sampled_from(EVENTS))
    objects, attached = dict(scene.objects), dict(scene.attached)
    if kind == "attach":
        ref, one = draw(_attached(scene))
        if one.addresses:
            attached[ref] = one
    elif kind == "detach":
        if attached:
            del attached[draw(st.sampled_from(sorted(attached)))]
    elif kind == "gone":
        if objects:
            del objects[draw(st.sampled_from(sorted(objects)))]
    elif kind == "policy":
        policy = drawn.parsed(draw(drawn.policies(name=f"p{draw(st.integers(0, 3))}")))
        objects[policy.ref] = policy
    else:
        made = {"number": _numbers(), "pod": _pods(scene), "told": _told(scene), "node": _nodes()}[kind]
        thing = draw(made)
        assert isinstance(thing, SecurityIdentity | Pod | NodeEndpoints | Node)
        objects[thing.ref] = thing
    return Scene(objects, attached)


@st.composite
def histories(draw: st.DrawFn, steps: int = 6, batch: int = 4) -> list[Scene]:
    refs = {name: ObjectRef("Namespace", "", name) for name in drawn.NAMESPACES}
    scene = Scene({ref: Namespace(ref, ORIGIN, draw(drawn.namespace_labels(name))) for name, ref in refs.items()})
    scenes: list[Scene] = []
    for step in range(steps):
        for _ in range(draw(st.integers(1, batch)) if step else FIRST_EDITS):
            scene = draw(_edits(scene))
        scenes.append(scene)
    return scenes


# ---- worlds


def change_world(world: World, old: Scene | None, new: Scene) -> None:
    before = old.objects if old is not None else {}
    gone = [Change(ref, None) for ref in before.keys() - new.objects.keys()]
    world.apply_all([*gone, *(Change(ref, one) for ref, one in new.objects.items() if before.get(ref) != one)])
    held = old.attached if old is not None else {}
    for ref in held.keys() - new.attached.keys():
        world.detach(ref)
    for ref, one in new.attached.items():
        if held.get(ref) != one:
            world.attach(ref, one.addresses, one.interface, one.uid)


def identities_in_use(world: World) -> dict[int, Key]:
    """Numbers that pods of this node have, and what they have them for."""
    book = world.identities
    return {identity.number: identity.labels for identity in book if book.pods_of(identity.number)}


def remember(fresh: World, world: World, settle: Callable[[], object]) -> list[ObjectRef]:
    """Have a new world know which numbers pods had: as it would be had it seen them get these, each label that may be
    left out counting. Returns what is to go again. `settle`: after each step."""
    every = drawn.parsed({
        "apiVersion": "networking.k8s.io/v1",
        "kind": "NetworkPolicy",
        "metadata": {"namespace": "blue", "name": "every-label"},
        "spec": {"podSelector": {"matchExpressions": [{"key": key, "operator": "Exists"} for key in drawn.KEYS]}},
    })  # fmt: skip
    fresh.apply(Change(every.ref, every))
    gone = [every.ref]
    for number in sorted(identities_in_use(world), reverse=True):  # of several for one key the last is the smallest
        identity = world.identities.get(number)
        assert identity is not None
        labels = {key: value for key, value in identity.workload.labels.items() if key != SERVICE_ACCOUNT}
        account, namespace = identity.workload.labels[SERVICE_ACCOUNT], identity.workload.namespace
        ref = ObjectRef("SecurityIdentity", "", str(number))
        fresh.apply(Change(ref, SecurityIdentity(ref, ORIGIN, number, namespace, account, labels)))
        gone.append(ref)
        for state in world.pods:
            if state.identity == number:
                pod = msgspec.structs.replace(state.pod, labels=labels, service_account=account, finished=False)
                fresh.apply(Change(pod.ref, pod))
                gone.append(pod.ref)
        settle()
    return gone


# ---- the oracle's view, straight from the scene


def blocks_of(scene: Scene, config: NodeConfig) -> dict[Prefix, str]:
    """Which node has which block: this one, then Node objects, then what nodes say."""
    found: dict[Prefix, str] = {}
    nodes = [one for one in scene.objects.values() if isinstance(one, Node)]
    claims = [(config.name, config.pod_cidrs)]
    claims += [(one.ref.name, one.pod_cidrs) for one in nodes]
    claims += [(one.ref.name, one.pod_cidrs) for one in scene.told().values()]
    for name, blocks in claims:
        for block in blocks:
            if all(owner == name or not (b.covers(block) or block.covers(b)) for b, owner in found.items()):
                found[block] = name
    return found


def parties(world: World, scene: Scene) -> list[Party]:
    """Every address, and who it is. Pods are what the number they have stands for."""
    blocks = blocks_of(scene, world.config)
    texts = (*drawn.HOST_ADDRESSES, *REMOTE_ADDRESSES, *LOCAL_ADDRESSES, *NODE_ADDRESSES, *OUTSIDE)
    return [_party(world, scene, blocks, parse_address(text)) for text in dict.fromkeys(texts)]


def _party(world: World, scene: Scene, blocks: Mapping[Prefix, str], address: bytes) -> Party:
    owner = next((name for block, name in blocks.items() if block.contains(address)), None)
    if address in world.config.addresses:
        return Party(address, entity=HOST)
    if _is_node(scene, world.config.name, owner, address):
        return Party(address, entity="remote-node")
    local = [ref for ref, one in scene.attached.items() if address in one.addresses and _is_for(scene, ref, one)]
    if local:
        state = world.pods.get(min(local))
        identity = world.identities.get(state.identity) if state is not None else None
        if state is None or identity is None:
            return Party(address, entity="unmanaged")
        ref = state.pod.ref
        return Party(address, PodFacts(ref.namespace, f"here:{ref.name}", identity.workload.labels, state.ports))
    remote = _remote(scene, world.config.name, blocks, address)
    if remote is not None:
        return _remote_party(scene, address, *remote)
    return Party(address, entity="world" if owner is None else "unmanaged")


def _is_for(scene: Scene, ref: ObjectRef, attached: Attached) -> bool:
    pod = scene.objects.get(ref)
    if not isinstance(pod, Pod) or pod.host_network:
        return False
    return not (pod.uid and attached.uid) or pod.uid == attached.uid


def _is_node(scene: Scene, own: str, owner: str | None, address: bytes) -> bool:
    for one in scene.objects.values():
        if isinstance(one, Node) and one.ref.name != own and address in one.addresses:
            return True
        told = isinstance(one, NodeEndpoints) and one.ref.name != own and address in one.addresses
        if told and owner in (None, one.ref.name):
            return True
    return False


def _remote(scene: Scene, own: str, blocks: Mapping[Prefix, str], address: bytes) -> tuple[str, NodeEndpoint] | None:
    owner = next((name for block, name in blocks.items() if block.contains(address)), None)
    claiming = {
        one.ref.name for one in scene.objects.values() if isinstance(one, Node | NodeEndpoints) and one.pod_cidrs
    }
    found = [
        (one.pod, name, one)
        for name, told in scene.told().items()
        for one in told.endpoints
        if name != own and address in one.addresses and (owner == name or (owner is None and name not in claiming))
    ]
    return min(found)[1:] if found else None


def _remote_party(scene: Scene, address: bytes, node: str, one: NodeEndpoint) -> Party:
    meant = scene.numbers().get(one.identity)
    if meant is None or key_digest(key_of(meant)) != one.digest:
        return Party(address, entity="unmanaged")
    ports = frozenset(ContainerPort(port.name, port.protocol, port.number) for port in one.ports)
    labels = {**meant.labels, SERVICE_ACCOUNT: meant.service_account}
    return Party(address, PodFacts(meant.namespace, f"{node}:{one.pod.name}", labels, ports))

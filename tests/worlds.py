"""Worlds made of the plain data of tests/strategies.py, with services, policies of every kind and DNS names, and the
edits that lead from one to the next."""

from __future__ import annotations

from collections.abc import Mapping

import drawn_policies
import msgspec
import strategies as drawn
from hypothesis import strategies as st
from planned import compile_dirty

from agent.objects import (
    Change,
    DeclaredPort,
    EndpointSlice,
    Exposure,
    Interface,
    Namespace,
    Node,
    Object,
    Pod,
    PolicySet,
    Service,
    ServicePort,
    SliceEndpoint,
    SlicePort,
)
from agent.plan.plan import Plan
from agent.sources.slices import derive
from agent.world.config import NodeConfig, ServiceConfig
from agent.world.world import World
from policies.address import Prefix, parse_address
from policies.model import ObjectRef, Origin, Policy

ORIGIN = Origin("drawn", 0)
CONFIG = NodeConfig(
    name="here",
    pod_cidrs=(Prefix.parse("10.1.0.0/22"), Prefix.parse("fd00:1::/96")),
    service_cidrs=(Prefix.parse("10.96.0.0/29"), Prefix.parse("fd00:96::/112")),
    addresses=tuple(parse_address(a) for a in drawn.HOST_ADDRESSES),
    zone="z1",
    services=ServiceConfig(node_ports=(30000, 30002), external_ips=True, maglev_size=251),
)
CONFIGS = (
    CONFIG,
    msgspec.structs.replace(
        CONFIG,
        labels_exclude=("env",),
        services=ServiceConfig(
            node_ports=(30000, 30002),
            node_port_addresses=(Prefix.parse("10.0.0.0/8"),),
            algorithm="maglev",
            maglev_size=251,
            forwarding="hybrid",
        ),
    ),
    msgspec.structs.replace(CONFIG, addresses=(), zone=""),
)
"""The second makes no identity of a label that policies may still select by; the third has neither addresses nor a
zone of its own."""

Objects = dict[ObjectRef, Object]


class Scene(msgspec.Struct, frozen=True):
    """`services`: these, and whatever else is an object; `names`: the addresses that DNS names have."""

    cluster: drawn.Cluster
    services: Objects = {}
    names: dict[str, frozenset[bytes]] = {}

    def objects(self) -> Objects:
        out: Objects = {}
        for name, labels in self.cluster.namespaces.items():
            ref = ObjectRef("Namespace", "", name)
            out[ref] = Namespace(ref, ORIGIN, labels)
        for pod in self.cluster.pods:
            out[pod_ref(pod)] = pod_object(pod)
        for raw in self.cluster.policies:
            out[drawn.policy_ref(raw)] = drawn.parsed(raw)
        out.update((policy.ref, policy) for policy in self.cluster.values)
        return out | self.services


# ---- pods


def number_of(pod: drawn.PodSpec) -> int:
    return int(pod.name.removeprefix("pod-"))


def is_remote(pod: drawn.PodSpec) -> bool:
    return number_of(pod) % 3 == 2


def pod_ref(pod: drawn.PodSpec) -> ObjectRef:
    return ObjectRef("Pod", pod.namespace, pod.name)


def pod_object(pod: drawn.PodSpec) -> Pod:
    return Pod(
        pod_ref(pod),
        ORIGIN,
        pod.labels,
        node="there" if is_remote(pod) else "",
        addresses=tuple(parse_address(a) for a in pod.addresses),
        ports=(
            *(DeclaredPort(p.name, p.protocol, p.number) for p in pod.ports),
            *(
                DeclaredPort("", kind, 8080, port, parse_address(ip) if ip else b"")
                for kind, port, ip in pod.host_ports
            ),
        ),
        ready=pod.ready,
        terminating=pod.terminating,
    )


def interface_of(pod: drawn.PodSpec) -> Interface:
    number = number_of(pod)
    mac = bytes((2, 0, 0, 0, 0, number))
    return Interface(100 + number, f"gh{number}", mac, mac[::-1], f"/run/netns/{pod.name}", 4000 + number)


def interfaces_of(*clusters: drawn.Cluster) -> dict[bytes, int]:
    """The interface of every local address in any of these clusters."""
    pods = [pod for cluster in clusters for pod in cluster.pods if not is_remote(pod)]
    return {parse_address(a): interface_of(pod).index for pod in pods for a in pod.addresses}


# ---- worlds


def change_world(world: World, old: Scene | None, new: Scene) -> None:
    """All at once: from one scene to another."""
    before, after = ({} if old is None else old.objects()), new.objects()
    gone = [Change(ref, None) for ref in before.keys() - after.keys()]
    world.apply_all([*gone, *(Change(ref, wanted) for ref, wanted in after.items() if before.get(ref) != wanted)])
    for pod in new.cluster.pods:
        if not is_remote(pod):
            world.set_interface(pod_ref(pod), interface_of(pod))
    for name in new.names.keys() | (old.names.keys() if old is not None else set()):
        world.set_names(name, new.names.get(name, frozenset()))


def built(scene: Scene, config: NodeConfig = CONFIG, saved: Mapping[str, Mapping[str, int]] | None = None) -> Plan:
    """The plan from scratch; `saved`: allocations to keep."""
    world, plan = World(config, derive), Plan()
    world.allocations.restore(saved or {})
    change_world(world, None, scene)
    compile_dirty(world, plan)
    return plan


# ---- services and edits

VIPS = ("10.96.9.1", "10.96.9.2", "10.1.0.1")
BACKENDS = ("10.1.0.1", "10.1.1.2", "fd00:1::1", "192.0.2.7", "192.0.2.77", "2001:db8::7", drawn.HOST_ADDRESSES[0])
"""Of pods, of a node, of this one, and outside."""
TYPES = ("ClusterIP", "ClusterIP", "NodePort", "NodePort", "LoadBalancer", "LoadBalancer", "ExternalName")
ZONES = ("z1", "z2")


def _addresses(*choices: str) -> st.SearchStrategy[tuple[bytes, ...]]:
    return st.just(()) | st.lists(st.sampled_from(choices).map(parse_address), max_size=2, unique=True).map(tuple)


@st.composite
def exposures(draw: st.DrawFn, kind: str) -> Exposure:
    balancer = kind == "LoadBalancer"
    external_ips = draw(_addresses("203.0.113.1", "10.0.0.1", "10.96.9.1", "2001:db8::1"))
    reachable = balancer or kind == "NodePort" or bool(external_ips)
    external_local = reachable and draw(st.booleans())
    ranges = st.lists(
        st.sampled_from(("192.0.2.0/24", "10.0.0.0/8", "::/0")).map(Prefix.parse), max_size=2, unique=True
    )
    return Exposure(
        external_ips=external_ips,
        balancer_ips=draw(_addresses("203.0.113.1", "203.0.113.2", "2001:db8::2")) if balancer else (),
        source_ranges=tuple(sorted(draw(ranges))) if balancer else (),
        internal_local=draw(st.sampled_from((False, False, True))),
        external_local=external_local,
        health_node_port=draw(st.sampled_from((0, 30002, 31000))) if balancer and external_local else 0,
        affinity_timeout_s=draw(st.sampled_from((0, 0, 10800))),
        distribution=draw(st.sampled_from(("", "", "PreferSameZone", "PreferSameNode"))),
        allocates_node_ports=not balancer or draw(st.booleans()),
        algorithm=draw(st.sampled_from(("", "", "random", "maglev"))),
        forwarding=draw(st.sampled_from(("", "", "snat", "dsr", "hybrid"))),
    )


@st.composite
def services(draw: st.DrawFn) -> Service:
    name = draw(st.sampled_from(("s0", "s1", "s2")))
    kind = draw(st.sampled_from(TYPES))
    address = draw(st.sampled_from((*VIPS, "", "", "10.96.0.3")))
    targets: tuple[int | str, ...] = (8080, "http", "dns")
    node_ports = (0, 0, 30001, 30002, 31000) if kind in ("NodePort", "LoadBalancer") else (0,)
    ports = [
        ServicePort(
            f"p{n}",
            protocol,
            draw(st.sampled_from((53, 80))),
            draw(st.sampled_from(targets)),
            draw(st.sampled_from(node_ports)),
        )
        for n, protocol in enumerate(draw(st.lists(st.sampled_from((6, 17, 132)), max_size=3)))
    ]
    headless = kind == "ClusterIP" and not address and draw(st.sampled_from((False, False, True)))
    return Service(
        ObjectRef("Service", draw(st.sampled_from(drawn.NAMESPACES)), name),
        ORIGIN,
        kind,
        draw(st.none() | drawn.label_maps()),
        (parse_address(address),) if address else (),
        headless,
        tuple(ports),
        families=draw(st.sampled_from(((), ("IPv6",), ("IPv4", "IPv6")))),
        publish_not_ready=draw(st.sampled_from((False, False, True))),
        exposure=draw(st.just(Exposure()) | exposures(kind)),
        proxied=draw(st.sampled_from((True,) * 7 + (False,))),
        labels=draw(drawn.label_maps()),
    )


@st.composite
def slices(draw: st.DrawFn) -> EndpointSlice:
    zones = st.sampled_from(((), ("z1",), ZONES))
    hinted = draw(st.booleans())  # hints count only where all endpoints have them
    endpoint = st.builds(
        SliceEndpoint,
        st.sampled_from(BACKENDS).map(lambda a: (parse_address(a),)),
        st.booleans(),
        st.booleans(),
        st.booleans(),
        st.sampled_from(("", "here", "there")),
        zones if hinted else st.just(()),
        st.sampled_from(((), ("here",), ("there",))) if hinted else st.just(()),
    )
    return EndpointSlice(
        ObjectRef("EndpointSlice", draw(st.sampled_from(drawn.NAMESPACES)), draw(st.sampled_from(("e0", "e1")))),
        ORIGIN,
        draw(st.sampled_from(("s0", "s1"))),
        (SlicePort("p0", draw(st.sampled_from((6, 17))), draw(st.sampled_from((8080, 9090)))),),
        tuple(draw(st.lists(endpoint, max_size=3))),
        draw(st.sampled_from((True,) * 7 + (False,))),
    )


@st.composite
def nodes(draw: st.DrawFn) -> Node:
    """Their addresses may be a pod's, this node's or one another's."""
    addresses = _addresses("192.0.2.77", "10.1.0.1", drawn.HOST_ADDRESSES[0], "2001:db8::77")
    ref = ObjectRef("Node", "", draw(st.sampled_from(("here", "there", "elsewhere"))))
    blocks = draw(st.sampled_from(((), (), (Prefix.parse("192.0.2.0/24"),))))
    return Node(ref, ORIGIN, draw(addresses), blocks, draw(st.sampled_from(("", *ZONES))), draw(drawn.label_maps()))


APISERVER = ObjectRef("Service", "default", "kubernetes")


@st.composite
def apiservers(draw: st.DrawFn) -> Service | EndpointSlice:
    """Service default/kubernetes, or its endpoints: of a node, or outside."""
    if draw(st.booleans()):
        return Service(APISERVER, ORIGIN, "ClusterIP", None, (), False, (ServicePort("https", 6, 443, 6443),))
    addresses = draw(st.lists(st.sampled_from(BACKENDS).map(parse_address), max_size=2, unique=True))
    return EndpointSlice(
        ObjectRef("EndpointSlice", "default", "kubernetes"),
        ORIGIN,
        "kubernetes",
        (SlicePort("https", 6, 6443),),
        tuple(SliceEndpoint((address,)) for address in addresses),
    )


@st.composite
def policy_values(draw: st.DrawFn) -> Policy | PolicySet:
    """Of every kind; now and then several in one object."""
    number = draw(st.integers(0, 4))
    if number:
        return draw(drawn_policies.policies(f"v{number}"))
    ref = ObjectRef("CiliumNetworkPolicy", "blue", "set")
    policies = draw(st.lists(drawn_policies.policies("set"), max_size=2))
    refs = [msgspec.structs.replace(ref, name=f"set:specs[{n}]" if n else "set") for n, _ in enumerate(policies)]
    renamed = [msgspec.structs.replace(policy, ref=new) for policy, new in zip(policies, refs, strict=True)]
    return PolicySet(ref, ORIGIN, tuple(renamed))


NAMED = ("192.0.2.7", "192.0.2.8", "2001:db8::7", "10.9.9.9", "192.0.2.77", "10.1.0.1", "10.1.0.99", "10.0.0.1")
"""Addresses that DNS may answer: outside, and a node's, a pod's, nobody's in the pods' block, this node's."""


@st.composite
def named(draw: st.DrawFn, names: dict[str, frozenset[bytes]]) -> dict[str, frozenset[bytes]]:
    name = draw(st.sampled_from(drawn_policies.NAMES))
    addresses = draw(st.frozensets(st.sampled_from(NAMED).map(parse_address), max_size=3))
    return {**names, name: addresses} if addresses else {k: v for k, v in names.items() if k != name}


KINDS = ("pod", "pod", "no pod", "policy", "policy", "no policy", "namespace", "service", "service", "slice")
EVERY_KIND = (*KINDS, "value", "value", "names", "names", "node", "apiserver")
ABOUT_SERVICES = ("service", "service", "service", "service", "slice", "pod", "no pod", "node")


THINGS = {"service": services, "slice": slices, "node": nodes, "apiserver": apiservers, "value": policy_values}


@st.composite
def edits(draw: st.DrawFn, scene: Scene, kinds: tuple[str, ...] = KINDS) -> Scene:
    """A scene after one change: a pod, policy, service, slice, node or name comes, changes or goes, or a namespace
    changes."""
    cluster, others = scene.cluster, scene.services
    kind = draw(st.sampled_from(kinds))
    if kind == "pod":
        pod = draw(drawn.live_pod_specs(draw(st.integers(0, 5))))
        pods = (*(p for p in cluster.pods if p.name != pod.name), pod)
        return msgspec.structs.replace(scene, cluster=msgspec.structs.replace(cluster, pods=pods))
    if kind == "no pod":
        return msgspec.structs.replace(scene, cluster=msgspec.structs.replace(cluster, pods=cluster.pods[1:]))
    if kind == "policy":
        raw = draw(drawn.policies(name=f"p{draw(st.integers(0, 4))}"))
        kept = (p for p in cluster.policies if drawn.policy_ref(p) != drawn.policy_ref(raw))
        return msgspec.structs.replace(scene, cluster=msgspec.structs.replace(cluster, policies=(*kept, raw)))
    if kind == "no policy":
        return msgspec.structs.replace(scene, cluster=msgspec.structs.replace(cluster, policies=cluster.policies[1:]))
    if kind == "namespace":
        name = draw(st.sampled_from(drawn.NAMESPACES))
        namespaces = {**cluster.namespaces, name: draw(drawn.namespace_labels(name))}
        return msgspec.structs.replace(scene, cluster=msgspec.structs.replace(cluster, namespaces=namespaces))
    if kind == "names":
        return msgspec.structs.replace(scene, names=draw(named(scene.names)))
    thing = draw(THINGS[kind]())
    assert isinstance(thing, Service | EndpointSlice | Node | Policy | PolicySet)
    without = {ref: known for ref, known in others.items() if ref != thing.ref}
    return msgspec.structs.replace(
        scene, services=without if draw(st.integers(0, 3)) == 0 else {**without, thing.ref: thing}
    )


@st.composite
def histories(draw: st.DrawFn, steps: int = 8, batch: int = 3, kinds: tuple[str, ...] = KINDS) -> list[Scene]:
    """Scenes, each a few edits after the one before."""
    small = "policy" not in kinds
    scenes = [Scene(draw(drawn.clusters(max_pods=3, max_policies=1) if small else drawn.clusters()))]
    for _ in range(steps):
        scene = scenes[-1]
        for _ in range(draw(st.integers(1, batch))):
            scene = draw(edits(scene, kinds))
        scenes.append(scene)
    return scenes

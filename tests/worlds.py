"""Worlds made of the plain data of tests/strategies.py."""

from __future__ import annotations

import strategies as drawn
from map_model import MapModel

from agent.objects import Change, DeclaredPort, Interface, Namespace, Object, Pod
from agent.plan.compile import compile_dirty
from agent.plan.plan import Plan
from agent.world.config import NodeConfig
from agent.world.world import World
from policies.address import Prefix, parse_address
from policies.model import ObjectRef, Origin

ORIGIN = Origin("drawn", 0)
CONFIG = NodeConfig(
    name="here",
    pod_cidrs=(Prefix.parse("10.1.0.0/22"), Prefix.parse("fd00:1::/96")),
    service_cidrs=(Prefix.parse("10.96.0.0/16"), Prefix.parse("fd00:96::/112")),
    addresses=tuple(parse_address(a) for a in drawn.HOST_ADDRESSES),
)


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
        ports=tuple(DeclaredPort(p.name, p.protocol, p.number) for p in pod.ports),
    )


def interface_of(pod: drawn.PodSpec) -> Interface:
    number = number_of(pod)
    mac = bytes((2, 0, 0, 0, 0, number))
    return Interface(100 + number, f"gh{number}", mac, mac[::-1], f"/run/netns/{pod.name}")


def objects_of(cluster: drawn.Cluster) -> dict[ObjectRef, Object]:
    out: dict[ObjectRef, Object] = {}
    for name, labels in cluster.namespaces.items():
        ref = ObjectRef("Namespace", "", name)
        out[ref] = Namespace(ref, ORIGIN, labels)
    for pod in cluster.pods:
        out[pod_ref(pod)] = pod_object(pod)
    for raw in cluster.policies:
        out[drawn.policy_ref(raw)] = drawn.parsed(raw)
    return out


def change_world(world: World, old: drawn.Cluster | None, new: drawn.Cluster) -> None:
    """All at once: from one cluster to another."""
    before, after = ({} if old is None else objects_of(old)), objects_of(new)
    for ref in before.keys() - after.keys():
        world.apply(Change(ref, None))
    for ref, wanted in after.items():
        if before.get(ref) != wanted:
            world.apply(Change(ref, wanted))
    for pod in new.pods:
        if not is_remote(pod) and (old is None or pod not in old.pods):
            world.set_interface(pod_ref(pod), interface_of(pod))


def interfaces_of(*clusters: drawn.Cluster) -> dict[bytes, int]:
    """The interface of every local address in any of these clusters."""
    pods = [pod for cluster in clusters for pod in cluster.pods if not is_remote(pod)]
    return {parse_address(a): interface_of(pod).index for pod in pods for a in pod.addresses}


def built(cluster: drawn.Cluster, saved: dict[str, dict[str, int]] | None = None) -> tuple[World, Plan]:
    """World and plan from scratch."""
    world, plan = World(CONFIG), Plan()
    world.allocations.restore(saved or {})
    change_world(world, None, cluster)
    compile_dirty(world, plan)
    return world, plan


def loaded(cluster: drawn.Cluster) -> tuple[World, Plan, MapModel]:
    world, plan = built(cluster)
    return world, plan, MapModel(plan.state.maps())

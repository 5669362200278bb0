"""No write opens what neither the old nor the new state allows, nor closes what both allow."""

from __future__ import annotations

import os
from itertools import pairwise

import msgspec
import strategies as drawn
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from map_model import MapModel
from worlds import CONFIG, CONFIGS, Scene, built, change_world, histories, interfaces_of, pod_ref

from agent.plan.compile import compile_dirty
from agent.plan.plan import Plan
from agent.plan.state import State
from agent.plan.step import Transition
from agent.plan.transition import reconcile
from agent.sources.slices import derive
from agent.world.config import NodeConfig
from agent.world.world import METADATA_NAME, World

FLOWS = 25
EXAMPLES = int(os.environ.get("GATEHOUSE_EXAMPLES", "30"))
CAREFUL = settings(max_examples=EXAMPLES, deadline=None, print_blob=True, suppress_health_check=list(HealthCheck))


def judge_every_write(
    maps: MapModel, transition: Transition, old: Scene, new: Scene, seed: int, lossless: bool
) -> None:
    """Walk through a transition write by write; `lossless`: what stays allowed is never denied."""
    interfaces = interfaces_of(old.cluster, new.cluster)
    flows = [*drawn.flows_of(old.cluster, seed, FLOWS), *drawn.flows_of(new.cluster, seed + 1, FLOWS)]
    asked = {(f.source.address, f.destination.address, f.protocol, f.port): f for f in flows}
    end = MapModel(maps.maps)
    end.apply(transition)
    before = {flow: maps.allows(*flow, interfaces) for flow in asked}
    after = {flow: end.allows(*flow, interfaces) for flow in asked}
    for number, _ in enumerate(maps.writes((*transition.steps, *transition.cleanup)), start=1):
        for flow, description in asked.items():
            allowed = maps.allows(*flow, interfaces)
            told = f"write {number}: {description.source} → {description.destination} {flow[2]}/{flow[3]}"
            assert not allowed or before[flow] or after[flow], told
            assert allowed or not (lossless and before[flow] and after[flow]), told


def judge_change(old: Scene, new: Scene, config: NodeConfig, seed: int, lossless: bool = False) -> Transition:
    world, plan = World(config, derive), Plan()
    change_world(world, None, old)
    compile_dirty(world, plan)
    maps = MapModel(plan.state.maps())
    change_world(world, old, new)
    transition = compile_dirty(world, plan)
    judge_every_write(maps, transition, old, new, seed, lossless)
    assert maps.maps == plan.state.maps()
    return transition


@given(old=drawn.clusters(), new=drawn.clusters(), config=st.sampled_from(CONFIGS), seed=st.integers(0, 999))
@CAREFUL
def test_anything_may_change_at_once(old: drawn.Cluster, new: drawn.Cluster, config: NodeConfig, seed: int) -> None:
    judge_change(Scene(old), Scene(new), config, seed)


@given(scenes=histories(steps=4, batch=2), seed=st.integers(0, 999))
@CAREFUL
def test_small_changes(scenes: list[Scene], seed: int) -> None:
    for old, new in pairwise(scenes):
        judge_change(old, new, CONFIG, seed)


@given(old=drawn.clusters(), other=drawn.clusters(), config=st.sampled_from(CONFIGS), seed=st.integers(0, 999))
@CAREFUL
def test_what_stays_allowed_is_never_denied(
    old: drawn.Cluster, other: drawn.Cluster, config: NodeConfig, seed: int
) -> None:
    """Policies and namespaces change, in any number; no pod does."""
    new = msgspec.structs.replace(old, policies=other.policies, namespaces=other.namespaces)
    judge_change(Scene(old), Scene(new), config, seed, lossless=True)


@given(cluster=drawn.clusters(), policy=drawn.policies(name="p0"), seed=st.integers(0, 999))
@CAREFUL
def test_one_policy_changes(cluster: drawn.Cluster, policy: drawn.Raw, seed: int) -> None:
    kept = [p for p in cluster.policies if drawn.policy_ref(p) != drawn.policy_ref(policy)]
    with_it = msgspec.structs.replace(cluster, policies=(*kept, policy))
    without = msgspec.structs.replace(cluster, policies=tuple(kept))
    judge_change(Scene(without), Scene(with_it), CONFIG, seed, lossless=True)
    judge_change(Scene(with_it), Scene(without), CONFIG, seed, lossless=True)


@given(cluster=drawn.clusters(), labels=drawn.label_maps(), pick=st.integers(0, 5), seed=st.integers(0, 999))
@CAREFUL
def test_one_pod_is_relabelled(cluster: drawn.Cluster, labels: dict[str, str], pick: int, seed: int) -> None:
    """One write for each key of the pod, and none for anyone else's."""
    pod = cluster.pods[pick % len(cluster.pods)]
    changed = msgspec.structs.replace(pod, labels=labels)
    pods = tuple(changed if p is pod else p for p in cluster.pods)
    transition = judge_change(
        Scene(cluster), Scene(msgspec.structs.replace(cluster, pods=pods)), CONFIG, seed, lossless=True
    )
    moved = [step for step in transition.steps if step.map in ("interfaces", "endpoints", "ipcache")]
    assert sum(len(step.updates) for step in moved) <= 5, f"{pod_ref(pod)} moves at once"


@given(old=drawn.clusters(), new=drawn.clusters(), seed=st.integers(0, 999))
@CAREFUL
def test_restart(old: drawn.Cluster, new: drawn.Cluster, seed: int) -> None:
    """Everything may have changed while the agent was away."""
    maps = MapModel(built(Scene(old)).state.maps())
    wanted = built(Scene(new))
    transition = reconcile(State.read(maps.maps), wanted.state, wanted.names)
    judge_every_write(maps, transition, Scene(old), Scene(new), seed, lossless=False)


def pod(number: int, namespace: str = "blue", **labels: str) -> drawn.PodSpec:
    return drawn.PodSpec(
        namespace, f"pod-{number}", labels, (), (f"10.1.{number % 2}.{number + 1}", f"fd00:1::{number + 1:x}")
    )


def cluster_of(*pods: drawn.PodSpec, **specs: drawn.Raw) -> drawn.Cluster:
    """Policies of namespace blue by name."""
    kind = {"apiVersion": "networking.k8s.io/v1", "kind": "NetworkPolicy"}
    raws = [{**kind, "metadata": {"namespace": "blue", "name": name}, "spec": spec} for name, spec in specs.items()]
    return drawn.Cluster({name: {METADATA_NAME: name} for name in drawn.NAMESPACES}, pods, tuple(raws))


def test_directions_that_change_places() -> None:
    """Egress opens as ingress closes: for no moment are both open."""
    old = cluster_of(pod(0), pod(1), p={"podSelector": {}, "policyTypes": ["Ingress", "Egress"], "ingress": [{}]})
    new = cluster_of(pod(0), pod(1), p={"podSelector": {}, "policyTypes": ["Ingress", "Egress"], "egress": [{}]})
    judge_change(Scene(old), Scene(new), CONFIG, 0)
    judge_change(Scene(new), Scene(old), CONFIG, 0)


def test_two_pods_that_exchange_labels() -> None:
    """Each may reach the other's kind before and after, never its own."""
    spec = {
        "podSelector": {"matchLabels": {"app": "a"}},
        "ingress": [{"from": [{"podSelector": {"matchLabels": {"app": "b"}}}]}],
    }
    old, new = (
        cluster_of(
            pod(0, app=one),
            pod(1, app=other),
            p=spec,
            q={**spec, "podSelector": {"matchLabels": {"app": "b"}}, "ingress": []},
        )
        for one, other in (("a", "b"), ("b", "a"))
    )
    judge_change(Scene(old), Scene(new), CONFIG, 3)


def test_pod_that_takes_the_place_of_another() -> None:
    """Same address and interface, other namespace, while its peer comes up too."""
    old = cluster_of(pod(0, "green"), p={"podSelector": {}, "policyTypes": ["Egress"]})
    new = cluster_of(pod(0), pod(3, "green"), p={"podSelector": {}})
    judge_change(Scene(old), Scene(new), CONFIG, 1)


def test_block_that_covers_pods_appears_in_both_directions() -> None:
    old = cluster_of(pod(0), pod(1), pod(2))
    block = {"ipBlock": {"cidr": "10.1.0.0/24"}}
    spec = {"podSelector": {}, "ingress": [{"from": [block]}], "egress": [{"to": [block]}]}
    new = cluster_of(pod(0), pod(1), pod(2), p=spec)
    judge_change(Scene(old), Scene(new), CONFIG, 5, lossless=True)
    judge_change(Scene(new), Scene(old), CONFIG, 5, lossless=True)

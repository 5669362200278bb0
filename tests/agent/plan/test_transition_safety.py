"""No write opens what neither the old nor the new state allows, nor closes what both allow."""

from __future__ import annotations

import os
from collections.abc import Mapping
from itertools import pairwise, permutations

import drawn_policies
import msgspec
import pytest
import strategies as drawn
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from map_model import Asks, MapModel
from planned import compile_dirty
from worlds import CONFIG, CONFIGS, EVERY_KIND, Scene, built, change_world, histories, interfaces_of, pod_ref

from agent.plan.ids import Names
from agent.plan.plan import Plan
from agent.plan.state import State
from agent.plan.step import Transition
from agent.plan.transition import reconcile
from agent.sources.slices import derive
from agent.world.config import NodeConfig
from agent.world.namespaces import METADATA_NAME
from agent.world.world import World
from policies.address import is_v4, parse_address
from policies.facts import Flow, Party
from policies.l7 import NamePattern
from policies.model import (
    Action,
    ContainerPort,
    Direction,
    LabelSelector,
    NamedPort,
    ObjectRef,
    Operator,
    Origin,
    PodSelector,
    Policy,
    PortRange,
    Requirement,
    Rule,
    RuleRef,
)

FLOWS = 25
EXAMPLES = int(os.environ.get("GATEHOUSE_EXAMPLES", "30"))
CLUSTERS = drawn.clusters() | drawn_policies.clusters()
CAREFUL = settings(max_examples=EXAMPLES, suppress_health_check=list(HealthCheck))


def sampled(old: Scene, new: Scene, seed: int) -> list[Flow]:
    clusters = [scene.cluster for scene in (old, new) if scene.cluster.pods]
    return [flow for cluster in clusters for flow in drawn.flows_of(cluster, seed, FLOWS)]


def every(old: Scene, new: Scene) -> list[Flow]:
    """Between any two addresses of either cluster, on two ports of two protocols."""
    everyone = {party.address: party for scene in (old, new) for party in drawn.parties(scene.cluster)}
    pairs = [(one, other) for one, other in permutations(everyone.values(), 2) if one.pod or other.pod]
    return [Flow(*pair, protocol, port) for pair in pairs for protocol in (6, 17) for port in (79, 80)]


def stricter(one: Asks, other: Asks, names: Names) -> bool:
    """Whether what passes by one passes by the other, too."""
    if one is None or other is None:
        return one is None
    by_one, by_other = ([names.listeners[number] for number in numbers] for numbers in (one, other))
    return all(any(a.direction is b.direction and a.demands <= b.demands for a in by_one) for b in by_other)


def judge_every_write(
    maps: MapModel,
    transition: Transition,
    interfaces: Mapping[bytes, int],
    flows: list[Flow],
    lossless: bool,
    names: Names,
) -> None:
    """Walk through a transition write by write; `lossless`: what stays allowed is never denied."""
    asked = {
        (f.source.address, f.destination.address, f.protocol, f.port): f
        for f in flows
        if is_v4(f.source.address) == is_v4(f.destination.address)
    }
    end = MapModel(maps.maps)
    end.apply(transition)
    before = {flow: maps.asks(*flow, interfaces) for flow in asked}
    after = {flow: end.asks(*flow, interfaces) for flow in asked}
    for number, _ in enumerate(maps.writes((*transition.steps, *transition.cleanup)), start=1):
        for flow, description in asked.items():
            now, old, new = maps.asks(*flow, interfaces), before[flow], after[flow]
            strict = now in (old, new) or stricter(now, old, names) or stricter(now, new, names)
            if not strict or (now is None and old is not None and lossless and old == new):
                told = f"write {number}: {description.source} → {description.destination} {flow[2]}/{flow[3]}"
                raise AssertionError(f"{told}: {now}, before {old}, after {new}")


def judge_change(
    old: Scene, new: Scene, flows: list[Flow], config: NodeConfig = CONFIG, lossless: bool = False
) -> Transition:
    world, plan = World(config, derive), Plan()
    change_world(world, None, old)
    compile_dirty(world, plan)
    maps = MapModel(plan.state.maps())
    change_world(world, old, new)
    transition = compile_dirty(world, plan)
    judge_every_write(maps, transition, interfaces_of(old.cluster, new.cluster), flows, lossless, plan.names)
    assert maps.maps == plan.state.maps()
    return transition


@given(old=CLUSTERS, new=CLUSTERS, config=st.sampled_from(CONFIGS), seed=st.integers(0, 999))
@CAREFUL
def test_anything_may_change_at_once(old: drawn.Cluster, new: drawn.Cluster, config: NodeConfig, seed: int) -> None:
    scenes = Scene(old), Scene(new)
    judge_change(*scenes, sampled(*scenes, seed), config)


@given(scenes=histories(steps=4, batch=2) | histories(steps=4, batch=2, kinds=EVERY_KIND), seed=st.integers(0, 999))
@CAREFUL
def test_small_changes(scenes: list[Scene], seed: int) -> None:
    for old, new in pairwise(scenes):
        judge_change(old, new, sampled(old, new, seed))


@given(old=CLUSTERS, other=CLUSTERS, config=st.sampled_from(CONFIGS), seed=st.integers(0, 999))
@CAREFUL
def test_what_stays_allowed_is_never_denied(
    old: drawn.Cluster, other: drawn.Cluster, config: NodeConfig, seed: int
) -> None:
    """Policies and namespaces change, in any number; no pod does."""
    new = msgspec.structs.replace(old, policies=other.policies, values=other.values, namespaces=other.namespaces)
    scenes = Scene(old), Scene(new)
    judge_change(*scenes, sampled(*scenes, seed), config, lossless=True)


@given(cluster=drawn.clusters(), policy=drawn.policies(name="p0"), seed=st.integers(0, 999))
@CAREFUL
def test_one_policy_changes(cluster: drawn.Cluster, policy: drawn.Raw, seed: int) -> None:
    kept = [p for p in cluster.policies if drawn.policy_ref(p) != drawn.policy_ref(policy)]
    with_it = Scene(msgspec.structs.replace(cluster, policies=(*kept, policy)))
    without = Scene(msgspec.structs.replace(cluster, policies=tuple(kept)))
    flows = sampled(with_it, without, seed)
    judge_change(without, with_it, flows, lossless=True)
    judge_change(with_it, without, flows, lossless=True)


@given(cluster=drawn_policies.clusters(), policy=drawn_policies.policies("v0"), seed=st.integers(0, 999))
@CAREFUL
def test_one_policy_of_any_kind_changes(cluster: drawn.Cluster, policy: Policy, seed: int) -> None:
    kept = tuple(known for known in cluster.values if known.ref.name != "v0")
    with_it = Scene(msgspec.structs.replace(cluster, values=(*kept, policy)))
    without = Scene(msgspec.structs.replace(cluster, values=kept))
    was = Scene(cluster)
    flows = sampled(with_it, without, seed)
    for old, new in ((without, with_it), (with_it, without), (was, with_it)):
        judge_change(old, new, flows, lossless=True)


@given(cluster=CLUSTERS, labels=drawn.label_maps(), pick=st.integers(0, 5), seed=st.integers(0, 999))
@CAREFUL
def test_one_pod_is_relabelled(cluster: drawn.Cluster, labels: dict[str, str], pick: int, seed: int) -> None:
    """One write for each key of the pod, and none for anyone else's."""
    pod = cluster.pods[pick % len(cluster.pods)]
    changed = msgspec.structs.replace(pod, labels=labels)
    pods = tuple(changed if p is pod else p for p in cluster.pods)
    scenes = Scene(cluster), Scene(msgspec.structs.replace(cluster, pods=pods))
    transition = judge_change(*scenes, sampled(*scenes, seed), lossless=True)
    moved = [step for step in transition.steps if step.map in ("interfaces", "endpoints", "ipcache")]
    assert sum(len(step.updates) for step in moved) <= 5, f"{pod_ref(pod)} moves at once"


@given(old=CLUSTERS, new=CLUSTERS, seed=st.integers(0, 999))
@CAREFUL
def test_restart(old: drawn.Cluster, new: drawn.Cluster, seed: int) -> None:
    """Everything may have changed while the agent was away."""
    before, wanted = built(Scene(old)), built(Scene(new))
    maps = MapModel(before.state.maps())
    transition = reconcile(State.read(maps.maps), wanted.state, wanted.names)
    flows = sampled(Scene(old), Scene(new), seed)
    wanted.names.listeners.update(before.names.listeners)
    judge_every_write(maps, transition, interfaces_of(old, new), flows, lossless=False, names=wanted.names)


def pod(number: int, namespace: str = "blue", **labels: str) -> drawn.PodSpec:
    return drawn.PodSpec(
        namespace, f"pod-{number}", labels, (), (f"10.1.{number % 2}.{number + 1}", f"fd00:1::{number + 1:x}")
    )


def serving(number: int, **labels: str) -> drawn.PodSpec:
    return msgspec.structs.replace(pod(number, **labels), ports=(ContainerPort("http", 6, 80),))


def cluster_of(*pods: drawn.PodSpec, **specs: drawn.Raw) -> drawn.Cluster:
    """Policies of namespace blue by name."""
    kind = {"apiVersion": "networking.k8s.io/v1", "kind": "NetworkPolicy"}
    raws = [{**kind, "metadata": {"namespace": "blue", "name": name}, "spec": spec} for name, spec in specs.items()]
    return drawn.Cluster({name: {METADATA_NAME: name} for name in drawn.NAMESPACES}, pods, tuple(raws))


EVERYONE: drawn.Raw = {"podSelector": {}, "policyTypes": ["Ingress", "Egress"]}
ISOLATED: drawn.Raw = {"podSelector": {"matchLabels": {"app": "a"}}, "policyTypes": ["Ingress", "Egress"]}
INGRESS_ONLY: drawn.Raw = {"podSelector": {"matchLabels": {"app": "a"}}}
FROM_B: drawn.Raw = {"from": [{"podSelector": {"matchLabels": {"app": "b"}}}]}
NOBODY: drawn.Raw = {"podSelector": {"matchLabels": {"app": "nobody"}}}


def block(cidr: str, *excepts: str) -> drawn.Raw:
    return {"ipBlock": {"cidr": cidr, "except": list(excepts)}}


# What happens, the cluster before and after. Each failed once, or does where a rule of transition.py is left out.
CHANGES = {
    "egress opens as ingress closes": (
        cluster_of(pod(0), pod(1), p={**EVERYONE, "ingress": [{}]}),
        cluster_of(pod(0), pod(1), p={**EVERYONE, "egress": [{}]}),
    ),
    "two pods exchange labels": (
        cluster_of(pod(0, app="a"), pod(1, app="b"), p={**INGRESS_ONLY, "ingress": [FROM_B]}),
        cluster_of(pod(0, app="b"), pod(1, app="a"), p={**INGRESS_ONLY, "ingress": [FROM_B]}),
    ),
    "a pod takes the address and interface of another as its peer comes up": (
        cluster_of(pod(0), q={"podSelector": {}, "policyTypes": ["Egress"]}),
        cluster_of(pod(0, "green"), pod(3), q={"podSelector": {}}),
    ),
    "a replica comes up as its kind is closed": (
        cluster_of(pod(0, app="b"), pod(1, app="a"), p={**ISOLATED, "egress": [{"to": FROM_B["from"]}]}),
        cluster_of(pod(0, app="b"), pod(1, app="a"), pod(3, app="b"), p=ISOLATED),
    ),
    "a block covers pods in both directions": (
        cluster_of(pod(0), pod(1), pod(2)),
        cluster_of(
            pod(0),
            pod(1),
            pod(2),
            p={**EVERYONE, "ingress": [{"from": [block("10.1.0.0/24")]}], "egress": [{"to": [block("10.1.0.0/24")]}]},
        ),
    ),
    "a block goes from ingress to egress": (
        cluster_of(pod(0), pod(1), p={**EVERYONE, "ingress": [{"from": [block("10.1.0.0/16")]}]}),
        cluster_of(pod(0), pod(1), p={**EVERYONE, "egress": [{"to": [block("10.1.0.0/23")]}]}),
    ),
    "a block with an exception appears": (
        cluster_of(pod(0), p=EVERYONE),
        cluster_of(pod(0), p={**EVERYONE, "egress": [{"to": [block("192.0.2.0/24", "192.0.2.0/29")]}]}),
    ),
    "isolation ends as a block gives the peer another class": (
        cluster_of(pod(0, app="a"), pod(1, app="b"), p={**INGRESS_ONLY, "ingress": [FROM_B]}),
        cluster_of(pod(0, app="a"), pod(1, app="b"), p={**NOBODY, "ingress": [{"from": [block("10.1.0.0/16")]}]}),
    ),
    "an address joins a class that is closed": (
        cluster_of(
            pod(0, app="a"),
            pod(1, app="b"),
            pod(3, app="b"),
            p={**INGRESS_ONLY, "ingress": [{"from": [block("10.1.0.0/16", "10.1.1.2/32")]}]},
            q={**NOBODY, "ingress": [{"from": [block("10.1.0.0/16")]}]},
        ),
        cluster_of(
            pod(0, app="a"),
            pod(1, app="b"),
            pod(3, app="b"),
            p={**INGRESS_ONLY, "ingress": []},
            q={**NOBODY, "ingress": [{"from": [block("10.1.0.0/16")]}]},
        ),
    ),
    "named port and block at once": (
        cluster_of(serving(0, app="a"), serving(1, app="a")),
        cluster_of(
            serving(0, app="a"),
            serving(1, app="a"),
            p={**INGRESS_ONLY, "ingress": [{"from": [block("10.1.0.0/16")], "ports": [{"port": "http"}]}]},
        ),
    ),
}


@pytest.mark.parametrize("back", (False, True), ids=("there", "back"))
@pytest.mark.parametrize("what", CHANGES)
def test_changes_that_once_failed(what: str, back: bool) -> None:
    old, new = reversed(CHANGES[what]) if back else CHANGES[what]
    same_pods = {p.name: p for p in old.pods} == {p.name: p for p in new.pods}
    scenes = Scene(old), Scene(new)
    judge_change(*scenes, every(*scenes), lossless=same_pods)


@pytest.mark.parametrize("back", (False, True), ids=("there", "back"))
def test_a_name_loses_its_address_as_a_pod_comes_under_rules_about_it(back: bool) -> None:
    """The name's class has rows, and for a while no address: what is deleted of a passing subject was written."""
    ref = ObjectRef("CiliumNetworkPolicy", "blue", "names")
    rule = Rule(RuleRef(ref, Direction.EGRESS, 0), (NamePattern("a.example"),), (PortRange(6, 80, 80),))
    subject = PodSelector(
        LabelSelector(frozenset({Requirement("app", Operator.IN, frozenset({"a"}))})), namespace="blue"
    )
    policy = Policy(ref, Origin("drawn", 0), subject, frozenset({Direction.EGRESS}), (rule,))
    outside = parse_address("192.0.2.7")
    scenes = [
        Scene(msgspec.structs.replace(cluster_of(pod(0)), values=(policy,)), names={"a.example": frozenset({outside})}),
        Scene(msgspec.structs.replace(cluster_of(pod(0, app="a")), values=(policy,))),
    ]
    old, new = reversed(scenes) if back else scenes
    client, server = drawn.parties(old.cluster)[0], Party(outside)
    judge_change(old, new, [*every(old, new), *(Flow(client, server, 6, port) for port in (79, 80))])


@pytest.mark.parametrize("back", (False, True), ids=("there", "back"))
def test_all_rules_go_that_allow_everybody_and_deny_some(back: bool) -> None:
    """Of a policy that isolates nobody, beside one that does: nobody falls to the row of everybody on the way."""
    ref = ObjectRef("CiliumNetworkPolicy", "blue", "v0")
    everyone = LabelSelector(frozenset())
    rules = (
        Rule(RuleRef(ref, Direction.INGRESS, 0), None, None),
        Rule(RuleRef(ref, Direction.INGRESS, 1, "ingressDeny"), (PodSelector(everyone, "blue"),), None, Action.DENY),
        Rule(RuleRef(ref, Direction.EGRESS, 0), None, (NamedPort(17, "dns"),)),
    )
    policy = Policy(ref, Origin("drawn", 0), PodSelector(everyone, None, everyone), frozenset(), rules)
    named = msgspec.structs.replace(pod(3, "green"), ports=(ContainerPort("dns", 17, 78),))
    cluster = cluster_of(pod(1), named, pod(4), p={"podSelector": {}, "ingress": []})
    scenes = [Scene(msgspec.structs.replace(cluster, values=values)) for values in ((policy,), ())]
    old, new = reversed(scenes) if back else scenes
    judge_change(old, new, every(old, new), lossless=True)

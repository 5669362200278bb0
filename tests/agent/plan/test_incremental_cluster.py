"""A node in a cluster, whatever happens in whatever order: its plan is the plan from scratch, and says what the oracle
says. A number whose meaning is in doubt never allows anything."""

from __future__ import annotations

import os
from itertools import product

from cluster_scenes import CONFIGS, Scene, change_world, histories, identities_in_use, key_of, parties, remember
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from map_model import MapModel
from planned import compile_dirty
from strategies import RESERVED

from agent.identity.labels import LabelFilter, identity_key
from agent.objects import Change, Namespace, Pod
from agent.plan.plan import Plan
from agent.plan.state import INTERFACES
from agent.world.config import NodeConfig
from agent.world.world import World
from policies.address import is_v4
from policies.evaluate import evaluate
from policies.facts import HOST, Flow, Party
from policies.model import SERVICE_ACCOUNT, Verdict

EXAMPLES = int(os.environ.get("GATEHOUSE_EXAMPLES", "30"))
PORTS = ((6, 78), (6, 80), (17, 82), (132, 80))


@given(scenes=histories(), config=st.sampled_from(CONFIGS))
@settings(max_examples=EXAMPLES, suppress_health_check=list(HealthCheck))
def test_a_cluster_s_plan_is_the_plan_from_scratch(scenes: list[Scene], config: NodeConfig) -> None:
    world, plan, maps = World(config), Plan(), MapModel()
    before: Scene | None = None
    for scene in scenes:
        change_world(world, before, scene)
        maps.apply(compile_dirty(world, plan))
        before = scene
        wanted = plan.state.maps()
        assert maps.maps == wanted
        fresh, anew = from_scratch(world, scene)
        assert anew.state.maps() == wanted
        assert fresh.problems() == world.problems()
        assert dict(fresh.nodes.peers()) == dict(world.nodes.peers())
        assert fresh.local_endpoints() == world.local_endpoints()
        assert fresh.identities.wanted() == world.identities.wanted()
        assert identities_in_use(fresh) == identities_in_use(world)
        assert {one.number: one.labels for one in fresh.identities} == {n.number: n.labels for n in world.identities}
    assert not compile_dirty(world, plan), "nothing has changed"


def from_scratch(world: World, scene: Scene) -> tuple[World, Plan]:
    fresh, plan = World(world.config), Plan()
    fresh.allocations.restore(world.allocations.snapshot())
    refs = remember(fresh, world, lambda: compile_dirty(fresh, plan))
    change_world(fresh, None, scene)
    fresh.apply_all([Change(ref, None) for ref in refs if ref not in scene.objects])
    compile_dirty(fresh, plan)
    return fresh, plan


@given(scenes=histories(steps=4), config=st.sampled_from(CONFIGS))
@settings(max_examples=EXAMPLES, suppress_health_check=list(HealthCheck))
def test_a_cluster_s_plan_agrees_with_the_oracle(scenes: list[Scene], config: NodeConfig) -> None:
    world, plan, maps = World(config), Plan(), MapModel()
    before: Scene | None = None
    for scene in scenes:
        change_world(world, before, scene)
        maps.apply(compile_dirty(world, plan))
        before = scene
        assert_numbers_are_right(world, scene)
        for party in parties(world, scene):
            assert_is_seen_as(world, party)
        assert_verdicts(world, scene, maps)


def assert_is_seen_as(world: World, party: Party) -> None:
    """Whatever policies there are: an address has the identity of who it is, and no other."""
    covering = sorted(
        (prefix for prefix in world.addresses if prefix.contains(party.address)), key=lambda prefix: prefix.bits
    )
    remote = world.addresses.remote_class(covering[-1])
    assert remote is not None
    meant = world.identities.get(remote.identity)
    if party.pod is not None:
        assert meant is not None, party
        assert (meant.workload.namespace, meant.workload.labels) == (party.pod.namespace, party.pod.labels), party
        return
    assert meant is None, party
    assert party.entity == entity_of(remote.identity), party


def entity_of(identity: int) -> str:
    """The kind of an address that is no pod's known here."""
    kinds = {number: name for name, number in RESERVED.items()}
    return kinds.get(identity, "world")


def assert_verdicts(world: World, scene: Scene, maps: MapModel) -> None:
    interfaces = {
        address: one.interface.index
        for ref, one in scene.attached.items()
        for address in one.addresses
        if world.subject(ref) is not None and world.addresses.owner(address) == ref
    }
    assert {int.from_bytes(key, "little") for key in maps.maps[INTERFACES]} == set(interfaces.values())
    policies = list(world.index.policies())
    names = {ref.name: one.labels for ref, one in scene.objects.items() if isinstance(one, Namespace)}
    everyone = parties(world, scene)
    for one, other in product(everyone, everyone):
        here = [party for party in (one, other) if party.address in interfaces]
        if not here or one is other or one.entity == HOST or is_v4(one.address) != is_v4(other.address):
            continue
        for protocol, port in PORTS:
            decision = evaluate(
                policies, names, Flow(one, other, protocol, port), enforce_always=world.config.enforce_always
            )
            ends = ((one, decision.egress), (other, decision.ingress))
            allowed = all(side.verdict is Verdict.ALLOW for end, side in ends if end.address in interfaces)
            found = maps.asks(one.address, other.address, protocol, port, interfaces)
            assert (found is not None) is allowed, f"{one} → {other} {protocol} {port}"


def assert_numbers_are_right(world: World, scene: Scene) -> None:
    """Who could have a number has one; nobody has one that means something else."""
    relevant = LabelFilter(world.config.labels_include, world.config.labels_exclude)
    meanings = {number: key_of(one) for number, one in scene.numbers().items()}
    fit = {meanings[number] for number, one in scene.numbers().items() if not one.unused_since}
    all_told = not world.config.labels_exclude or not any(world.index.policies())  # what policies select by counts
    for state in world.pods:
        assert (state.identity == 0) is (state.key == ())
        if state.identity:
            assert meanings.get(state.identity, state.key) == state.key
            assert state.identity in identities_in_use(world)
        pod = scene.objects[state.pod.ref]
        assert isinstance(pod, Pod)
        if pod.host_network or (pod.finished and not state.pod.addresses):
            assert state.identity == 0
            continue
        labels = {key: value for key, value in pod.labels.items() if key != SERVICE_ACCOUNT}
        key = identity_key(pod.ref.namespace, relevant.select(labels), pod.service_account)
        if all_told:
            assert (key in world.identities.wanted()) is (key not in fit)
            assert state.key == key or key not in fit

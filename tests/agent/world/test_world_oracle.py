"""Identities, policies and secrets in the World; and the World against the oracle."""

from __future__ import annotations

import os

import msgspec
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from marked_worlds import (
    WILD,
    labels,
    marks_of,
    pod,
    policy,
    set_names,
    world_of,
)
from small_worlds import put, remove
from worlds import BACKENDS, CONFIGS, EVERY_KIND, NAMED, ORIGIN, Scene, change_world, histories

from agent.objects import (
    Node,
    PolicySet,
    Secret,
)
from agent.sources.slices import derive
from agent.world.config import NodeConfig
from agent.world.serving import all_slices_of
from agent.world.world import World
from policies.address import Prefix, parse_address
from policies.facts import Party, PodFacts, ServiceFacts
from policies.matching import peer_selects
from policies.model import (
    SERVICE_ACCOUNT,
    ObjectRef,
    Subject,
    Tier,
)

EXAMPLES = int(os.environ.get("GATEHOUSE_EXAMPLES", "60"))


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
@settings(max_examples=EXAMPLES, suppress_health_check=list(HealthCheck))
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

"""Numbers that pods of this node have in a cluster: those of SecurityIdentities."""

from __future__ import annotations

import msgspec
from cluster_scenes import identities_in_use
from cluster_worlds import (
    UNMANAGED,
    attach,
    identity,
    key_of,
    number,
    number_ref,
    pod,
    pod_ref,
    put,
    remove,
    seen,
    world_of,
)

from agent.identity.labels import key_digest
from policies.model import (
    SERVICE_ACCOUNT,
    Workload,
)


def test_no_number_is_invented() -> None:
    world = world_of(pod("a", app="web"))
    attach(world, "a", "10.1.0.5")
    assert (identity(world, "a"), seen(world, "10.1.0.5"), world.subject(pod_ref("a"))) == (0, UNMANAGED, None)
    assert world.identities.wanted() == {
        key_of(app="web"): Workload("shop", {"app": "web", SERVICE_ACCOUNT: "default"})
    }
    dirty = put(world, number(4711, app="web"))
    assert (identity(world, "a"), seen(world, "10.1.0.5")) == (4711, 4711)
    assert pod_ref("a") in dirty.endpoints
    assert world.subject(pod_ref("a")) is not None
    assert world.identities.wanted() == {}
    assert identities_in_use(world) == {4711: key_of(app="web")}


def test_a_pod_without_a_network_asks_for_its_number_already() -> None:
    world = world_of(pod("a", app="web"))
    assert list(world.identities.wanted()) == [key_of(app="web")]
    put(world, number(4711, app="web"))
    attach(world, "a", "10.1.0.5")
    assert world.subject(pod_ref("a")) is not None


def test_pods_that_are_over_or_the_node_s_ask_for_none() -> None:
    world = world_of(
        msgspec.structs.replace(pod("a", app="web"), finished=True), pod("b", "192.0.2.1", host_network=True, app="b")
    )
    assert world.identities.wanted() == {}


def test_of_several_numbers_the_smallest_is_taken_and_kept() -> None:
    world = world_of(number(300, app="web"), pod("a", app="web"))
    put(world, number(299, app="web"))
    put(world, pod("b", app="web"))
    assert (identity(world, "a"), identity(world, "b")) == (300, 299), "a pod keeps what it has"
    assert world.identities.numbers(key_of(app="web")) == (299, 300)
    remove(world, number_ref(300))
    assert identity(world, "a") == 299
    assert identities_in_use(world) == {299: key_of(app="web")}


def test_a_marked_number_is_not_used_before_it_is_unmarked() -> None:
    marked = number(300, app="web", unused_since="2026-01-01T00:00:00Z")
    world = world_of(marked, pod("a", app="web"))
    key = key_of(app="web")
    assert identity(world, "a") == 0
    assert list(world.identities.wanted()) == [key]
    assert world.identities.numbers(key) == (300,)
    assert world.identities.meaning(300) == key
    put(world, number(300, app="web"))
    assert identity(world, "a") == 300
    put(world, marked)
    assert identity(world, "a") == 300, "what it has it keeps"
    assert list(world.identities.wanted()) == [key], "until somebody unmarks it"
    put(world, number(301, app="web"))
    assert identity(world, "a") == 301


def test_a_relabelled_pod_keeps_its_number_until_the_new_one_is_there() -> None:
    world = world_of(number(300, app="web"), pod("a", app="web"))
    attach(world, "a", "10.1.0.5")
    put(world, pod("a", app="db"))
    assert (identity(world, "a"), seen(world, "10.1.0.5")) == (300, 300)
    assert list(world.identities.wanted()) == [key_of(app="db")]
    assert identities_in_use(world) == {300: key_of(app="web")}
    (told_now,) = world.local_endpoints()
    assert (told_now.identity, told_now.digest) == (300, key_digest(key_of(app="web")))
    put(world, number(301, app="db"))
    assert (identity(world, "a"), seen(world, "10.1.0.5")) == (301, 301)


def test_another_pod_of_the_same_name_inherits_nothing() -> None:
    world = world_of(number(300, app="web"), pod("a", uid="1", app="web"))
    attach(world, "a", "10.1.0.5", uid="1")
    assert world.subject(pod_ref("a")) is not None
    put(world, pod("a", uid="2", app="db"))
    assert identity(world, "a") == 0
    assert (seen(world, "10.1.0.5"), world.subject(pod_ref("a"))) == (None, None), "nor the network of the other"
    put(world, number(301, app="db"))
    attach(world, "a", "10.1.0.6", uid="2")
    assert seen(world, "10.1.0.6") == 301


def test_a_number_that_is_deleted_while_in_use_is_wanted_again() -> None:
    world = world_of(number(300, app="web"), pod("a", app="web"))
    attach(world, "a", "10.1.0.5")
    remove(world, number_ref(300))
    assert (identity(world, "a"), seen(world, "10.1.0.5")) == (300, 300)
    assert list(world.identities.wanted()) == [key_of(app="web")]
    put(world, pod("b", app="web"))
    assert identity(world, "b") == 0, "who has it may keep it, nobody gets it"
    put(world, number(301, app="web"))
    assert (identity(world, "a"), identity(world, "b")) == (301, 301)
    assert world.identities.get(300) is None


def test_a_number_that_means_something_else_now_is_nobody_s_here() -> None:
    world = world_of(number(300, app="web"), pod("a", app="web"))
    attach(world, "a", "10.1.0.5")
    put(world, number(300, app="db"))
    assert (identity(world, "a"), seen(world, "10.1.0.5"), world.subject(pod_ref("a"))) == (0, UNMANAGED, None)
    assert list(world.identities.wanted()) == [key_of(app="web")]
    put(world, number(300, app="x"), number(300, app="web"))
    assert identity(world, "a") == 300
    remove(world, number_ref(300))
    remove(world, pod_ref("a"))
    assert world.identities.get(300) is None


def test_labels_a_pod_gives_itself_are_no_service_account() -> None:
    """Lesson 7."""
    world = world_of(pod("a"))
    put(world, msgspec.structs.replace(pod("a"), labels={SERVICE_ACCOUNT: "admin"}))
    assert list(world.identities.wanted()) == [key_of()]

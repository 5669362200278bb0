"""Nodes, services and the API server as marks of addresses."""

from __future__ import annotations

import msgspec
import pytest
from marked_worlds import (
    ALL,
    APISERVER,
    HOST,
    REMOTE_NODE,
    UNMANAGED,
    WORLD_IPV4,
    class_of,
    labels,
    marks_of,
    node,
    pod,
    policy,
    service,
    slice_of,
    world_of,
)
from small_worlds import put, remove

from policies.address import Prefix
from policies.model import (
    KUBERNETES,
    LabelSelector,
    NodePeer,
    ObjectRef,
    Operator,
    RemoteClass,
    Requirement,
    ServicePeer,
)


def test_nodes_are_known_by_their_labels() -> None:
    zone_a, every = NodePeer(labels(zone="a")), NodePeer(ALL)
    world = world_of(
        policy(zone_a, every),
        node("here", zone="a"),
        node("there", "192.0.2.2", "2001:db8::2", zone="a"),
        node("else", "192.0.2.3"),
        pod("agent", "192.0.2.2", node="there", host_network=True),
    )
    assert class_of(world, "192.0.2.1") == RemoteClass(HOST, marks=frozenset({zone_a, every}))
    for address in ("192.0.2.2", "2001:db8::2"):
        assert class_of(world, address) == RemoteClass(REMOTE_NODE, marks=frozenset({zone_a, every}))
    assert marks_of(world, "192.0.2.3") == {every}
    put(world, node("there", "192.0.2.2", zone="b"), node("here", zone="b"))
    assert marks_of(world, "192.0.2.1") == marks_of(world, "192.0.2.2") == {every}
    remove(world, policy().ref)
    assert class_of(world, "192.0.2.1") == RemoteClass(HOST)
    assert class_of(world, "192.0.2.2") == RemoteClass(REMOTE_NODE)


def test_a_node_without_a_manifest_has_no_labels() -> None:
    lacking = NodePeer(LabelSelector(frozenset({Requirement("zone", Operator.DOES_NOT_EXIST)})))
    world = world_of(policy(NodePeer(labels(zone="a")), lacking))
    assert marks_of(world, "192.0.2.1") == {lacking}


@pytest.mark.parametrize(
    "peer",
    [
        ServicePeer("shop", "web"),
        ServicePeer("shop", selector=labels(tier="front")),
        ServicePeer("", selector=labels(tier="front")),
        ServicePeer("", selector=ALL),
    ],
)
def test_endpoints_of_a_selected_service(peer: ServicePeer) -> None:
    """Those its selector gives and, where slices are given, those they name: of pods and outside."""
    world = world_of(
        policy(peer),
        pod("a", "10.1.0.5", app="web"),
        pod("b", "10.1.0.6", app="db"),
        service("web", selector={"app": "web"}, tier="front"),
    )
    assert marks_of(world, "10.1.0.5") == {peer}
    assert marks_of(world, "10.1.0.6") == set()
    put(world, pod("b", "10.1.0.6", app="web"))
    assert marks_of(world, "10.1.0.6") == {peer}
    put(world, slice_of("web", "198.51.100.9", "10.1.0.6", "10.1.0.77", "192.0.2.1"))
    assert marks_of(world, "10.1.0.5") == set()
    assert class_of(world, "198.51.100.9") == RemoteClass(WORLD_IPV4, marks=frozenset({peer}))
    assert class_of(world, "10.1.0.77") == RemoteClass(UNMANAGED, marks=frozenset({peer}))
    assert class_of(world, "192.0.2.1") == RemoteClass(HOST, marks=frozenset({peer}))
    assert marks_of(world, "10.1.0.6") == {peer}
    remove(world, ObjectRef("Service", "shop", "web"))
    assert class_of(world, "198.51.100.9") is None
    assert marks_of(world, "10.1.0.6") == set()


def test_other_services_do_not_count() -> None:
    world = world_of(
        policy(ServicePeer("shop", "web"), ServicePeer("shop", selector=labels(tier="front"))),
        service("web", "other"),
        slice_of("web", "198.51.100.9", namespace="other"),
        service("other", tier="back"),
        slice_of("other", "198.51.100.10"),
        slice_of("stray", "198.51.100.11"),
    )
    assert [class_of(world, f"198.51.100.{n}") for n in (9, 10, 11)] == [None] * 3


def test_a_headless_service_has_endpoints_too() -> None:
    peer = ServicePeer("shop", "db")
    headless = msgspec.structs.replace(service("db"), headless=True, proxied=False)
    world = world_of(headless, slice_of("db", "198.51.100.9", proxied=False), policy(peer))
    assert marks_of(world, "198.51.100.9") == {peer}
    remove(world, ObjectRef("EndpointSlice", "shop", "db-1"))
    assert class_of(world, "198.51.100.9") is None
    put(world, slice_of("db", "198.51.100.10", proxied=False))
    assert marks_of(world, "198.51.100.10") == {peer}


def test_a_service_that_is_relabelled_or_selected_once_more() -> None:
    front, back, any_of_them = (
        ServicePeer("", selector=one) for one in (labels(tier="front"), labels(tier="back"), ALL)
    )
    world = world_of(policy(front, back), service("web", tier="front"), slice_of("web", "198.51.100.9"))
    put(world, service("web", tier="back"))
    assert marks_of(world, "198.51.100.9") == {back}
    put(world, policy(any_of_them, name="q"))
    assert marks_of(world, "198.51.100.9") == {back, any_of_them}
    remove(world, policy().ref)
    assert marks_of(world, "198.51.100.9") == {any_of_them}


def test_the_api_server_is_known_by_its_service() -> None:
    world = world_of(
        node("there", "192.0.2.2"),
        service("kubernetes", "default"),
        slice_of("kubernetes", "198.51.100.9", "2001:db8::9", "192.0.2.2", namespace="default"),
    )
    v4, v6 = (Prefix.parse(block) for block in ("0.0.0.0/0", "::/0"))
    assert class_of(world, "198.51.100.9") == RemoteClass(APISERVER, frozenset({v4}))
    assert class_of(world, "2001:db8::9") == RemoteClass(APISERVER, frozenset({v6}))
    assert class_of(world, "192.0.2.2") == RemoteClass(REMOTE_NODE), "a node stays one"
    put(world, policy(KUBERNETES))
    assert class_of(world, "192.0.2.2") == RemoteClass(REMOTE_NODE, marks=frozenset({KUBERNETES}))
    remove(world, ObjectRef("EndpointSlice", "default", "kubernetes-1"))
    assert class_of(world, "198.51.100.9") is None
    assert class_of(world, "192.0.2.2") == RemoteClass(REMOTE_NODE)

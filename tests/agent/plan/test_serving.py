"""Whose UDP flows go on when the endpoints of a service change."""

from __future__ import annotations

import pytest
from worlds import CONFIG, ORIGIN

from agent.objects import Change, EndpointSlice, Object, Service, ServicePort, SliceEndpoint, SlicePort
from agent.plan.serving import Keep, Serving
from agent.world.world import World
from policies.address import parse_address
from policies.model import ObjectRef

DNS, OTHER = ObjectRef("Service", "ns", "dns"), ObjectRef("Service", "ns", "other")
FRONTEND = parse_address("10.96.0.5"), 53
A, B, V6 = parse_address("10.1.0.7"), parse_address("10.1.0.8"), parse_address("fd00:1::7")
READY, LEAVING, NOT_READY, GONE = (True, True, False), (False, True, True), (False, True, False), (False, False, True)
State = tuple[bool, bool, bool]


def service(ref: ObjectRef = DNS) -> Service:
    ports = (ServicePort("udp", 17, 53, 5353), ServicePort("tcp", 6, 53, 5353))
    return Service(ref, ORIGIN, "ClusterIP", None, (FRONTEND[0],), headless=False, ports=ports)


def endpoints(**states: State) -> EndpointSlice:
    """By letter: a is A and the like."""
    members = [
        SliceEndpoint((address,), ready, serving, terminating)
        for name, (ready, serving, terminating) in states.items()
        for address in [{"a": A, "b": B, "v": V6}[name]]
    ]
    ports = (SlicePort("udp", 17, 5353), SlicePort("tcp", 6, 5353))
    return EndpointSlice(ObjectRef("EndpointSlice", "ns", "dns-1"), ORIGIN, "dns", ports, tuple(members))


def apply(world: World, *objects: Object) -> set[ObjectRef]:
    for one in objects:
        world.apply(Change(one.ref, one))
    return world.take_dirty().services


CASES: list[tuple[str, EndpointSlice, EndpointSlice, Keep]] = [
    ("one more", endpoints(a=READY), endpoints(a=READY, b=READY), {}),
    ("one less", endpoints(a=READY, b=READY), endpoints(b=READY), {FRONTEND: frozenset({(B, 5353)})}),
    ("another", endpoints(a=READY), endpoints(b=READY), {FRONTEND: frozenset({(B, 5353)})}),
    ("the last", endpoints(a=READY), endpoints(), {FRONTEND: frozenset()}),
    ("terminating in order", endpoints(a=READY), endpoints(a=LEAVING, b=READY), {}),
    ("terminated", endpoints(a=LEAVING, b=READY), endpoints(a=GONE, b=READY), {FRONTEND: frozenset({(B, 5353)})}),
    ("not ready for a while, but serving", endpoints(a=READY), endpoints(a=NOT_READY), {}),
    ("of the other family", endpoints(a=READY, v=READY), endpoints(a=READY), {}),
]


@pytest.mark.parametrize(("before", "after", "expected"), [c[1:] for c in CASES], ids=[c[0] for c in CASES])
def test_backends_that_stop_serving_lesson_20(before: EndpointSlice, after: EndpointSlice, expected: Keep) -> None:
    world, serving = World(CONFIG), Serving()
    assert serving.update(world, apply(world, service(), before)) == {}
    assert serving.update(world, apply(world, after)) == expected
    assert serving.update(world, [DNS]) == {}


def test_a_service_that_is_gone_keeps_nobody() -> None:
    world, serving = World(CONFIG), Serving()
    serving.update(world, apply(world, service(), endpoints(a=READY)))
    world.apply(Change(DNS, None))
    assert serving.update(world, world.take_dirty().services) == {FRONTEND: frozenset()}


def test_a_frontend_that_changes_hands_keeps_the_new_owners_backends() -> None:
    world, serving = World(CONFIG), Serving()
    serving.update(world, apply(world, service(), endpoints(a=READY)))
    world.apply(Change(DNS, None))
    assert serving.update(world, apply(world, service(OTHER))) == {FRONTEND: frozenset()}


def test_at_the_start_every_frontend_is_named() -> None:
    world = World(CONFIG)
    apply(world, service(), endpoints(a=READY, v=READY))
    serving = Serving()
    assert serving.start(world) == {FRONTEND: frozenset({(A, 5353)})}
    gone = parse_address("10.96.0.6"), 53
    assert serving.now([FRONTEND, gone]) == {FRONTEND: frozenset({(A, 5353)}), gone: frozenset()}

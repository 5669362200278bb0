"""Whose flows end when the endpoints of a service change."""

from __future__ import annotations

import pytest
from worlds import CONFIG, ORIGIN

from agent.objects import Change, EndpointSlice, Object, Service, ServicePort, SliceEndpoint, SlicePort
from agent.plan.serving import MANY, Pair, Serving
from agent.world.world import World
from policies.address import parse_address
from policies.model import ObjectRef

DNS, OTHER = ObjectRef("Service", "ns", "dns"), ObjectRef("Service", "ns", "other")
ADDRESS, UDP, TCP = parse_address("10.96.0.5"), 17, 6
A, B, V6 = parse_address("10.1.0.7"), parse_address("10.1.0.8"), parse_address("fd00:1::7")
LETTERS = {"a": A, "b": B, "v": V6}
READY, LEAVING, NOT_READY, GONE = (True, True, False), (False, True, True), (False, True, False), (False, False, True)
State = tuple[bool, bool, bool]


def service(ref: ObjectRef = DNS, address: bytes = ADDRESS) -> Service:
    ports = (ServicePort("udp", UDP, 53, 5353), ServicePort("tcp", TCP, 53, 5353))
    return Service(ref, ORIGIN, "ClusterIP", None, (address,), headless=False, ports=ports)


def endpoints(owner: str = "dns", **states: State) -> EndpointSlice:
    """By letter: a is A and the like."""
    members = [
        SliceEndpoint((address,), ready, serving, terminating)
        for name, (ready, serving, terminating) in states.items()
        for address in [LETTERS[name]]
    ]
    ports = (SlicePort("udp", UDP, 5353), SlicePort("tcp", TCP, 5353))
    return EndpointSlice(ObjectRef("EndpointSlice", "ns", f"{owner}-1"), ORIGIN, owner, ports, tuple(members))


def apply(world: World, *objects: Object) -> set[ObjectRef]:
    for one in objects:
        world.apply(Change(one.ref, one))
    return world.take_dirty().services


def pair(letter: str, protocol: int, address: bytes = ADDRESS) -> Pair:
    return address, 53, protocol, LETTERS[letter], 5353


def lost(serving: Serving) -> set[str]:
    """As "udp a"."""
    names = {UDP: "udp", TCP: "tcp"}
    assert all(found[:2] == (ADDRESS, 53) and found[4] == 5353 for found in serving.lost)
    letters = {address: letter for letter, address in LETTERS.items()}
    return {f"{names[protocol]} {letters[backend]}" for _, _, protocol, backend, _ in serving.lost}


CASES: list[tuple[str, EndpointSlice, EndpointSlice, set[str]]] = [
    ("one more", endpoints(a=READY), endpoints(a=READY, b=READY), set()),
    ("one less", endpoints(a=READY, b=READY), endpoints(b=READY), {"udp a", "tcp a"}),
    ("another", endpoints(a=READY), endpoints(b=READY), {"udp a", "tcp a"}),
    ("the last", endpoints(a=READY), endpoints(), {"udp a", "tcp a"}),
    ("terminating in order", endpoints(a=READY), endpoints(a=LEAVING, b=READY), set()),
    ("terminated, and still listed", endpoints(a=LEAVING, b=READY), endpoints(a=GONE, b=READY), {"udp a"}),
    ("terminated, and listed no more", endpoints(a=GONE, b=READY), endpoints(b=READY), {"tcp a"}),
    ("not ready for a while, but serving", endpoints(a=READY), endpoints(a=NOT_READY), set()),
    ("of the other family", endpoints(a=READY, v=READY), endpoints(a=READY), set()),
]


@pytest.mark.parametrize(("before", "after", "expected"), [c[1:] for c in CASES], ids=[c[0] for c in CASES])
def test_backends_that_are_gone_lessons_20_and_21(
    before: EndpointSlice, after: EndpointSlice, expected: set[str]
) -> None:
    world, serving = World(CONFIG), Serving()
    assert not serving.update(world, apply(world, service(), before))
    assert serving.update(world, apply(world, after)) is bool(expected)
    assert lost(serving) == expected
    serving.done(dict(serving.lost))
    assert not serving.update(world, [DNS])


def test_a_service_that_is_gone_keeps_nobody() -> None:
    world, serving = World(CONFIG), Serving()
    serving.update(world, apply(world, service(), endpoints(a=READY)))
    world.apply(Change(DNS, None))
    assert serving.update(world, world.take_dirty().services)
    assert lost(serving) == {"udp a", "tcp a"}


def test_a_frontend_that_is_gone_ends_udp_but_no_connection_to_a_backend_that_stays() -> None:
    world, serving = World(CONFIG), Serving()
    serving.update(world, apply(world, service(), endpoints(a=READY)))
    serving.update(world, apply(world, service(address=parse_address("10.96.0.6"))))
    assert lost(serving) == {"udp a"}


def test_a_frontend_that_changes_hands_has_the_new_owners_backends() -> None:
    world, serving = World(CONFIG), Serving()
    serving.update(world, apply(world, service(), endpoints(a=READY)))
    serving.update(world, apply(world, service(OTHER), endpoints("other", b=READY, a=GONE)))
    assert lost(serving) == set()
    world.apply(Change(DNS, None))
    serving.update(world, world.take_dirty().services)
    assert lost(serving) == {"udp a"}


def test_a_backend_that_is_back_before_its_flows_have_ended_keeps_new_ones() -> None:
    world, serving = World(CONFIG), Serving()
    serving.update(world, apply(world, service(), endpoints(a=READY, b=READY)))
    serving.update(world, apply(world, endpoints()))
    assert lost(serving) == {"udp a", "tcp a", "udp b", "tcp b"}
    serving.update(world, apply(world, endpoints(a=READY)))
    assert lost(serving) == {"udp b", "tcp b"}


def test_what_is_lost_again_while_it_is_being_said_is_lost_still() -> None:
    world, serving = World(CONFIG), Serving()
    serving.update(world, apply(world, service(), endpoints(a=READY)))
    serving.update(world, apply(world, endpoints()))
    said = dict(serving.lost)
    serving.update(world, apply(world, endpoints(a=READY)))
    serving.update(world, apply(world, endpoints()))
    serving.done(said)
    assert lost(serving) == {"udp a", "tcp a"}
    serving.done(dict(serving.lost))
    assert lost(serving) == set()


ELSEWHERE = parse_address("10.96.0.99")
USED: list[tuple[Pair, bool]] = [
    # a pair in use, whether it must end
    (pair("a", UDP), False),
    (pair("a", TCP), False),
    (pair("b", UDP), True),
    (pair("b", TCP), True),
    (pair("v", UDP), True),
    (pair("a", UDP, ELSEWHERE), True),
    (pair("a", TCP, ELSEWHERE), False),  # the frontend is gone, its backend is not
    (pair("b", TCP, ELSEWHERE), True),
]


def test_at_the_start_what_is_in_use_is_checked() -> None:
    world, serving = World(CONFIG), Serving()
    apply(world, service(), endpoints(a=READY), service(OTHER, parse_address("10.96.0.7")))
    serving.start([DNS, OTHER])
    assert serving.asks
    assert serving.learn(world, 1)
    assert not serving.learn(world, 1)
    assert not serving.learn(world, 1)
    serving.check(pair for pair, _ in USED)
    assert serving.lost.keys() == {pair for pair, ends in USED if ends}


def test_a_service_that_changes_before_it_is_learnt_is_known_as_it_is_now() -> None:
    world, serving = World(CONFIG), Serving()
    apply(world, service(), endpoints(a=READY))
    serving.start([DNS])
    serving.update(world, apply(world, endpoints(b=READY)))
    while serving.learn(world, 10):
        pass
    serving.check([pair("a", UDP), pair("b", UDP)])
    assert lost(serving) == {"udp a"}


def test_too_much_at_once_is_asked_for_instead() -> None:
    world, serving = World(CONFIG), Serving()
    members = tuple(SliceEndpoint((A[:12] + number.to_bytes(4, "big"),)) for number in range(1, MANY + 2))
    many = endpoints()
    ports = (SlicePort("udp", UDP, 5353),)
    many = EndpointSlice(many.ref, many.origin, many.service, ports, members)
    serving.update(world, apply(world, service(), many))
    assert serving.update(world, apply(world, endpoints(a=READY)))
    assert (serving.lost, serving.asks) == ({}, True)

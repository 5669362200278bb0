"""Endpoints of a slice, packed: what goes in comes out."""

from __future__ import annotations

import msgspec
import pytest

from agent.objects import Endpoints, EndpointSlice, SliceEndpoint
from policies.address import parse_address
from policies.model import ObjectRef, Origin

V4, OTHER, V6 = (parse_address(text) for text in ("10.0.0.1", "10.0.0.2", "fd00::1"))
LEAVING = SliceEndpoint((OTHER,), ready=False, terminating=True, node="n", zones=("a",), nodes=("n", "m"))

CASES = [
    (),
    (SliceEndpoint((V4,)),),
    (SliceEndpoint((V4,)), SliceEndpoint((V6,))),
    (SliceEndpoint((V4,), node="n"), LEAVING, SliceEndpoint((V6,))),
    (SliceEndpoint((V4, OTHER)), SliceEndpoint((V6,), ready=False)),
    (SliceEndpoint(()), SliceEndpoint((V4,))),
]


def slice_of(*endpoints: SliceEndpoint) -> EndpointSlice:
    return EndpointSlice(ObjectRef("EndpointSlice", "shop", "web-x"), Origin("m.yaml", 1), "web", (), endpoints)


@pytest.mark.parametrize("given", CASES)
def test_endpoints_are_what_was_given(given: tuple[SliceEndpoint, ...]) -> None:
    made = slice_of(*given)
    assert tuple(made.endpoints) == given
    assert len(made.endpoints) == len(given)
    replace = msgspec.structs.replace
    assert [(a, replace(one, addresses=())) for a, one in made.addressed()] == [
        (address, replace(one, addresses=())) for one in given for address in one.addresses
    ]


@pytest.mark.parametrize("given", CASES)
def test_equal_slices_are_equal(given: tuple[SliceEndpoint, ...]) -> None:
    made = slice_of(*given)
    assert made == slice_of(*given)
    assert made == msgspec.structs.replace(made, origin=made.origin)
    assert all(made != slice_of(*other) for other in CASES if other != given)


def test_those_that_are_alike_are_said_once() -> None:
    many = slice_of(*(SliceEndpoint((parse_address(f"10.0.0.{n}"),), node="n") for n in range(100)))
    assert many.endpoints == Endpoints(b"".join(a for a, _ in many.addressed()), (SliceEndpoint((), node="n"),))

"""From one set of routes to another: on every way nothing is lost that both have, and the end is what is desired."""

from __future__ import annotations

import random
import struct

import pytest

from agent.endpoints import links, routes
from agent.endpoints.netlink import Request, attributes
from agent.endpoints.routes import Forwarding, Neighbour, Route
from agent.routing.desired import Desired, Own, vxlan
from agent.routing.diff import Found, difference
from agent.world.nodes import Peer
from policies.address import Prefix, parse_address

A, B = Prefix.parse("10.244.2.0/24"), Prefix.parse("fd00:2::/64")
GATEWAY, OTHER = parse_address("192.0.2.2"), parse_address("192.0.2.3")
ROUTE = Route(A, 2, GATEWAY)
TUNNEL = 9
STATIC = 4  # RTPROT_STATIC


def whats(requests: list[Request]) -> list[str]:
    return [request.what for request in requests]


CASES: list[tuple[list[Route], list[Route], list[str], int]] = [
    ([ROUTE], [], ["add route to 10.244.2.0/24"], 0),
    ([ROUTE], [ROUTE], [], 0),
    ([], [ROUTE], ["remove route to 10.244.2.0/24"], 0),
    ([ROUTE], [Route(A, 2, OTHER)], ["add route to 10.244.2.0/24"], 0),
    ([ROUTE], [Route(A, 3, GATEWAY)], ["add route to 10.244.2.0/24"], 0),
    ([ROUTE], [Route(A, 2, GATEWAY, onlink=True)], ["add route to 10.244.2.0/24"], 0),
    ([ROUTE], [Route(A, 2, OTHER, protocol=STATIC)], [], 1),
    ([ROUTE], [Route(A, 2, GATEWAY, protocol=STATIC)], [], 0),
    ([ROUTE], [Route(A, 2, OTHER, priority=100, protocol=STATIC)], ["add route to 10.244.2.0/24"], 0),
    ([], [Route(A, 2, OTHER, protocol=STATIC)], [], 0),
    ([ROUTE], [Route(A, 0, protocol=STATIC)], [], 1),  # by several ways, or to nowhere
    ([], [Route(Prefix.parse("10.244.1.7/32"), 5)], [], 0),  # of a pod of this node
]


@pytest.mark.parametrize(("wanted", "there", "steps", "problems"), CASES)
def test_routes(wanted: list[Route], there: list[Route], steps: list[str], problems: int) -> None:
    found = difference(Desired({route.block: route for route in wanted}), Found(there))
    assert whats(found.requests) == steps
    assert len(found.problems) == problems


def test_what_a_route_needs_goes_before_it_and_after_it() -> None:
    own = Own("n1", (parse_address("192.0.2.1"),), ())
    desired = vxlan(own, [Peer("n2", (GATEWAY,), (A, B))], TUNNEL)
    there = Found(list(desired.routes.values()), desired.neighbours, desired.forwarding)
    assert difference(desired, there).requests == []
    kinds = [request.what.split()[1] for request in difference(desired, Found()).requests]
    assert kinds == ["forwarding", "neighbour", "neighbour", "route", "route"]
    kinds = [request.what.split()[1] for request in difference(Desired(), there).requests]
    assert kinds == ["route", "route", "neighbour", "neighbour", "forwarding"]


def test_a_node_that_moved_is_one_write() -> None:
    own = Own("n1", (parse_address("192.0.2.1"),), ())
    before, after = (vxlan(own, [Peer("n2", (at,), (A,))], TUNNEL) for at in (GATEWAY, OTHER))
    steps = difference(after, Found(list(before.routes.values()), before.neighbours, before.forwarding))
    (mac,) = {entry.mac.hex(":") for entry in after.forwarding}
    assert whats(steps.requests) == [f"add forwarding entry of {mac} to 192.0.2.3"]


class Kernel:
    """What requests come to, read from their bytes."""

    def __init__(self) -> None:
        self.routes: dict[Prefix, Route] = {}
        self.neighbours: dict[tuple[int, bytes], Neighbour] = {}
        self.forwarding: dict[tuple[int, bytes], Forwarding] = {}

    def found(self) -> Found:
        return Found(list(self.routes.values()), set(self.neighbours.values()), set(self.forwarding.values()))

    def do(self, request: Request) -> None:
        if request.kind in (links.RTM_NEWROUTE, routes.RTM_DELROUTE):
            route = routes.read_route(request.body)
            assert route is not None
            if request.kind == links.RTM_NEWROUTE:
                assert route.ifindex != TUNNEL or (TUNNEL, route.gateway) in self.neighbours, "its next hop is known"
                self.routes[route.block] = route
            else:
                gone = self.routes.pop(route.block)
                assert (gone.ifindex, gone.gateway) == (route.ifindex, route.gateway)
            return
        family, ifindex, _, _, _ = routes.NEIGHBOUR.unpack_from(request.body)
        parts = dict(attributes(request.body[routes.NEIGHBOUR.size :]))
        raw = parts[links.NDA_DST]
        address = raw if len(raw) == 16 else parse_address(".".join(map(str, raw)))
        mac = parts.get(links.NDA_LLADDR, b"")
        if family == 7:
            key = ifindex, mac
            if request.kind == links.RTM_NEWNEIGH:
                self.forwarding[key] = Forwarding(ifindex, mac, address)
            else:
                del self.forwarding[key]
        elif request.kind == links.RTM_NEWNEIGH:
            self.neighbours[ifindex, address] = Neighbour(ifindex, address, mac)
        else:
            assert not any(route.gateway == address for route in self.routes.values()), "nothing leads there any more"
            del self.neighbours[ifindex, address]


def test_any_sequence_of_nodes_ends_as_from_scratch() -> None:
    seed = random.randrange(1 << 32)
    print(f"seed {seed}")
    draw = random.Random(seed)
    own = Own("n1", (parse_address("192.0.2.1"),), (Prefix.parse("10.244.1.0/24"),))
    kernel = Kernel()
    for _ in range(200):
        numbers = draw.sample(range(2, 12), draw.randrange(10))
        peers = [
            Peer(
                f"n{number}",
                (parse_address(f"192.0.2.{number + draw.choice((0, 100))}"),),
                tuple(map(Prefix.parse, (f"10.244.{draw.choice((number, number + 20))}.0/24", f"fd00:{number}::/64"))),
            )
            for number in numbers
        ]
        desired = vxlan(own, peers, TUNNEL)
        kept = {block for block, route in desired.routes.items() if kernel.routes.get(block) == route}
        for request in difference(desired, kernel.found()).requests:
            kernel.do(request)
            assert kept <= kernel.routes.keys(), "what stays is never away"
        assert kernel.routes == desired.routes
        assert set(kernel.neighbours.values()) == desired.neighbours
        assert set(kernel.forwarding.values()) == desired.forwarding


@pytest.mark.parametrize(
    "route",
    [
        Route(A, 3, GATEWAY, onlink=True),
        Route(B, 3, parse_address("fe80::1"), mtu=1400),
        Route(Prefix.parse("0.0.0.0/0"), 3, GATEWAY, priority=100),
        Route(Prefix.parse("::/0"), 3, parse_address("2001:db8::1")),
        Route(Prefix.host(GATEWAY), 4, protocol=STATIC),
    ],
)
def test_routes_read_as_they_are_written(route: Route) -> None:
    assert routes.read_route(routes.put_route(route).body) == route
    assert route.is_default == (route.block.bits in (0, 96))


def test_routes_that_are_not_spoken_of() -> None:
    elsewhere = bytearray(routes.put_route(ROUTE).body)
    struct.pack_into("=B", elsewhere, 4, 100)
    assert routes.read_route(bytes(elsewhere)) is None

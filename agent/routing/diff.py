"""From what there is to what is desired, as requests in an order in which nothing is lost on the way. Pure."""

from __future__ import annotations

from collections.abc import Iterable

import msgspec

from agent.endpoints import links, routes
from agent.endpoints.links import RTPROT_GATEHOUSE
from agent.endpoints.netlink import Request
from agent.endpoints.routes import Forwarding, Neighbour, Route
from agent.routing.desired import Desired
from policies.address import format_address


class Found(msgspec.Struct):
    """What the kernel has: all routes, and of the tunnel's device (there may be none) all else."""

    routes: list[Route] = []
    neighbours: set[Neighbour] = set()
    forwarding: set[Forwarding] = set()


class Difference(msgspec.Struct):
    """`requests` in order; `problems`: what is left as it is."""

    requests: list[Request]
    problems: list[str]


def difference(desired: Desired, found: Found) -> Difference:
    """Where somebody else's route leads to a block it stays; if by the same way, all is well."""
    foreign = {one.block: one for one in found.routes if one.protocol != RTPROT_GATEHOUSE and not one.priority}
    ours = {one.block: one for one in between_nodes(found.routes)}
    problems = [
        f"there is a route to {block} already, {_way(foreign[block])}, which is not Gatehouse's and stays: delete it, "
        "or let your network route pods' addresses (--routing off)"
        for block, route in sorted(desired.routes.items())
        if block in foreign and not _same_way(route, foreign[block])
    ]
    wanted = {block: route for block, route in desired.routes.items() if block not in foreign}
    # What routes lead to goes before them, and after them.
    requests = [routes.put_forwarding(one) for one in sorted(desired.forwarding - found.forwarding)]
    requests += [
        links.add_neighbour(one.ifindex, one.address, one.mac) for one in sorted(desired.neighbours - found.neighbours)
    ]
    requests += [routes.put_route(route) for block, route in sorted(wanted.items()) if ours.get(block) != route]
    requests += [routes.remove_route(route) for block, route in sorted(ours.items()) if block not in wanted]
    requests += _leftovers(desired, found)
    return Difference(requests, problems)


def between_nodes(found: Iterable[Route]) -> list[Route]:
    """Those that lead to other nodes: pods of this one are reached without a gateway."""
    return [one for one in found if one.protocol == RTPROT_GATEHOUSE and one.gateway]


def _leftovers(desired: Desired, found: Found) -> list[Request]:
    kept = {(one.ifindex, one.address) for one in desired.neighbours}
    replaced = {(one.ifindex, one.mac) for one in desired.forwarding}
    gone = [one for one in sorted(found.neighbours - desired.neighbours) if (one.ifindex, one.address) not in kept]
    lost = [one for one in sorted(found.forwarding - desired.forwarding) if (one.ifindex, one.mac) not in replaced]
    return [*map(routes.remove_neighbour, gone), *map(routes.remove_forwarding, lost)]


def _same_way(one: Route, other: Route) -> bool:
    return (one.ifindex, one.gateway) == (other.ifindex, other.gateway)


def _way(route: Route) -> str:
    if not route.ifindex:
        return "by several ways or to nowhere"
    return f"via {format_address(route.gateway)}" if route.gateway else "without a gateway"

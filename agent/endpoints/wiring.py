"""How a pod's veth is wired, whoever made the pod's namespace: nothing has to be resolved or learned.

The pod's default route goes to a link-local gateway that is a permanent neighbour entry (the host side's MAC) and
nothing else; so is the pod's address on the node. No ARP, no neighbour discovery, no duplicate address detection.
"""

from __future__ import annotations

import contextlib
import hashlib
import os
import re
import time
from collections.abc import Iterable, Iterator, Sequence

from agent.endpoints import links, namespaces
from agent.endpoints.netlink import (
    RTNLGRP_IPV6_ROUTE,
    RTNLGRP_LINK,
    TIMEOUT_S,
    NetlinkError,
    Request,
    RouteSocket,
    is_gone,
)
from agent.objects import Interface
from policies.address import is_v4, parse_address

GATEWAY_V4 = parse_address("169.254.1.1")
GATEWAY_V6 = parse_address("fe80::1")
HOST_SIDE = re.compile(r"gh[0-9a-f]{12}")
"""Names of the host sides of pods' veths."""


def derive_mac(side: str, seed: bytes) -> bytes:
    """A locally administered unicast MAC that is always the same for a side ("pod", "host") and address, or for
    whatever else is to have one."""
    digest = hashlib.sha256(side.encode() + seed).digest()
    return bytes([digest[0] & 0xFC | 0x02]) + digest[1:6]


def macs(addresses: Sequence[bytes]) -> tuple[bytes, bytes]:
    """Of the pod's side and of the host's."""
    return derive_mac("pod", addresses[0]), derive_mac("host", addresses[0])


def pod_side(index: int, host_mac: bytes, addresses: Sequence[bytes]) -> list[Request]:
    """To the pod's namespace: what its link, which is up, is to have besides its MAC."""
    gateways = gateways_of(addresses)
    return [
        *(links.add_address(index, address) for address in addresses),
        *(links.add_neighbour(index, gateway, host_mac) for gateway in gateways),
        *(links.default_route(index, gateway) for gateway in gateways),
    ]


def gateways_of(addresses: Sequence[bytes]) -> list[bytes]:
    return [GATEWAY_V4] * any(map(is_v4, addresses)) + [GATEWAY_V6] * (not all(map(is_v4, addresses)))


def host_side_sysctls(name: str) -> dict[str, str]:
    """What netlink cannot set."""
    return {f"net/ipv6/conf/{name}/{key}": "0" for key in ("accept_ra", "accept_dad")}


def host_side(interface: Interface, addresses: Sequence[bytes]) -> list[Request]:
    """To the node's namespace: host side up, routes and neighbours to the pod."""
    index = interface.index
    return [
        links.set_up(index),
        *(links.route_to_host(index, address) for address in addresses),
        *(links.add_neighbour(index, address, interface.mac) for address in addresses),
    ]


def activate(route: RouteSocket, interface: Interface, addresses: Sequence[bytes]) -> None:
    """Host side up, routes and neighbours to the pod; returns when the pod can send. May be repeated.

    `route`: a socket to the node's namespace.
    """
    *_, reply = route.request(*host_side(interface, addresses), links.get_link_by_index(interface.index))
    with opened(interface.netns) as netns, route_in(netns) as inside:
        await_ready(inside, links.read_ends(reply)[1], addresses)


def await_ready(inside: RouteSocket, pod_index: int, addresses: Iterable[bytes]) -> None:
    """Wait until the pod sends and receives. Two things the kernel puts off to a worker:

    The carrier is there at once, but the link watch connects the queue a moment later; since 6.7 asking for the link
    makes it do so at once. And an IPv6 address is never tentative here, but the route that delivers to it comes later.
    """
    checks = [links.get_link_by_index(pod_index), *map(links.get_route, addresses)]
    deadline = time.monotonic() + TIMEOUT_S
    joined = False
    while True:
        link, *routes = inside.request(*checks)
        if links.is_operational(link) and all(map(links.is_local_route, routes)):
            return
        if time.monotonic() > deadline:
            name = links.link_name(link.body)
            raise TimeoutError(f"{name} of the pod was not ready in {TIMEOUT_S:.0f} s: see `ip -d link` inside")
        if joined:
            inside.await_notification()
        else:  # and look again: it may have been told already
            inside.join(RTNLGRP_LINK)
            inside.join(RTNLGRP_IPV6_ROUTE)
            joined = True


def delete_links(route: RouteSocket, indexes: Iterable[int]) -> None:
    """All at once: the kernel waits some 15 ms for each deletion, however many links it is about."""
    group = int.from_bytes(os.urandom(4), "big") & 0x3FFFFFFF | 0x40000000
    marked = False
    for index in indexes:
        try:
            route.request(links.set_group(index, group))
            marked = True
        except NetlinkError as error:
            if not is_gone(error):
                raise
    if marked:
        route.remove(links.delete_group(group))


def write_sysctls(values: dict[str, str]) -> None:
    """Set sysctls of the calling thread's network namespace; keys are paths under /proc/sys."""
    for key, value in values.items():
        descriptor = os.open(f"/proc/sys/{key}", os.O_WRONLY | os.O_CLOEXEC)
        try:
            os.write(descriptor, value.encode())
        except OSError as error:
            raise OSError(error.errno, f"set {key} to {value}: {os.strerror(error.errno or 0)}") from error
        finally:
            os.close(descriptor)


@contextlib.contextmanager
def opened(path: str) -> Iterator[int]:
    """A descriptor of the namespace at a path."""
    netns = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
    try:
        yield netns
    finally:
        os.close(netns)


@contextlib.contextmanager
def route_in(netns: int) -> Iterator[RouteSocket]:
    with namespaces.entered(netns):
        route = RouteSocket()
    with route:
        yield route

"""Routes, neighbours and forwarding entries as values: how they are asked for, added, removed and read by netlink.

Addresses are 16 bytes, IPv4 held IPv4-mapped (policies.address). Only routes of the main table are spoken of.
"""

from __future__ import annotations

import socket
import struct
from collections.abc import Iterable

import msgspec

from agent.endpoints.links import (
    NDA_DST,
    NDA_LLADDR,
    NUD_PERMANENT,
    RT_SCOPE_UNIVERSE,
    RT_TABLE_MAIN,
    RTA_DST,
    RTA_GATEWAY,
    RTA_OIF,
    RTM_GETROUTE,
    RTM_NEWNEIGH,
    RTM_NEWROUTE,
    RTN_UNICAST,
    RTNH_F_ONLINK,
    RTPROT_GATEHOUSE,
)
from agent.endpoints.netlink import (
    NLM_F_CREATE,
    NLM_F_DUMP,
    NLM_F_REPLACE,
    Reply,
    Request,
    RouteSocket,
    attribute,
    attributes,
    number,
)
from policies.address import V4_MAPPED, V4_MAPPED_BITS, Prefix, format_address, is_v4

FAMILIES = (socket.AF_INET, socket.AF_INET6)

# linux/rtnetlink.h, linux/neighbour.h
RTM_DELROUTE, RTM_DELNEIGH, RTM_GETNEIGH = 25, 29, 30
RTA_PRIORITY, RTA_METRICS, RTA_TABLE, RTAX_MTU = 6, 8, 15, 2
NTF_SELF = 0x02
REMOVALS = (RTM_DELROUTE, RTM_DELNEIGH)
ROUTE = struct.Struct("=BBBBBBBBI")
NEIGHBOUR = struct.Struct("=BxxxiHBB")
_NUMBER = struct.Struct("=I")
_IPV6_PRIORITY = 1024  # what the kernel gives an IPv6 route without one


class Route(msgspec.Struct, frozen=True, order=True, gc=False):
    """`gateway` empty: what is in the block is on the link itself. `priority` 0: the family's usual one. `ifindex` 0:
    by several ways, or to nowhere (blackhole, unreachable …); Gatehouse makes none of these."""

    block: Prefix
    ifindex: int
    gateway: bytes = b""
    onlink: bool = False
    mtu: int = 0
    priority: int = 0
    protocol: int = RTPROT_GATEHOUSE

    @property
    def is_default(self) -> bool:
        return self.block.bits == (V4_MAPPED_BITS if self.block.is_v4 else 0)


class Neighbour(msgspec.Struct, frozen=True, order=True, gc=False):
    """A permanent one."""

    ifindex: int
    address: bytes
    mac: bytes


class Forwarding(msgspec.Struct, frozen=True, order=True, gc=False):
    """Of a VXLAN device: frames for this MAC go to this node."""

    ifindex: int
    mac: bytes
    node: bytes


class Reach(msgspec.Struct, frozen=True, gc=False):
    """By which device an address is reached. `gateway` empty: it is on the device's own link."""

    ifindex: int
    gateway: bytes = b""
    local: bool = False


# ---- routes


def put_route(route: Route) -> Request:
    """One to the same block with the same priority is replaced, whoever made it."""
    family, raw = _split(route.block.network)
    flags = RTNH_F_ONLINK if route.onlink else 0
    scope = RT_SCOPE_UNIVERSE
    head = (family, _bits(route.block), 0, 0, RT_TABLE_MAIN, route.protocol, scope, RTN_UNICAST, flags)
    body = ROUTE.pack(*head) + attribute(RTA_DST, raw) + number(RTA_OIF, route.ifindex)
    if route.gateway:
        body += attribute(RTA_GATEWAY, _split(route.gateway)[1])
    if route.priority:
        body += number(RTA_PRIORITY, route.priority)
    if route.mtu:
        body += attribute(RTA_METRICS, number(RTAX_MTU, route.mtu))
    return Request(RTM_NEWROUTE, NLM_F_CREATE | NLM_F_REPLACE, body, f"add route to {route.block}")


def remove_route(route: Route) -> Request:
    family, raw = _split(route.block.network)
    head = (family, _bits(route.block), 0, 0, RT_TABLE_MAIN, route.protocol, 0, RTN_UNICAST, 0)
    body = ROUTE.pack(*head) + attribute(RTA_DST, raw) + number(RTA_OIF, route.ifindex)
    if route.gateway:
        body += attribute(RTA_GATEWAY, _split(route.gateway)[1])
    if route.priority:
        body += number(RTA_PRIORITY, route.priority)
    return Request(RTM_DELROUTE, 0, body, f"remove route to {route.block}")


def list_routes(route: RouteSocket) -> list[Route]:
    """Of both families."""
    requests = [Request(RTM_GETROUTE, NLM_F_DUMP, ROUTE.pack(f, *[0] * 8), "list routes") for f in FAMILIES]
    found = [read_route(reply.body) for request in requests for reply in route.request(request)]
    return [one for one in found if one is not None]


def read_route(body: bytes) -> Route | None:
    """None for what is no route of the main table."""
    family, bits, _, _, table, protocol, _, kind, flags = ROUTE.unpack_from(body)
    found = dict(attributes(body[ROUTE.size :]))
    if family not in FAMILIES or table != RT_TABLE_MAIN:
        return None
    one_way = kind == RTN_UNICAST and RTA_OIF in found
    width = 4 if family == socket.AF_INET else 16
    network = _join(family, found.get(RTA_DST, bytes(width)))
    priority = _NUMBER.unpack(found[RTA_PRIORITY])[0] if RTA_PRIORITY in found else 0
    if family == socket.AF_INET6 and priority == _IPV6_PRIORITY:
        priority = 0
    metrics = dict(attributes(found.get(RTA_METRICS, b"")))
    return Route(
        Prefix(network, bits + (V4_MAPPED_BITS if family == socket.AF_INET else 0)),
        _NUMBER.unpack(found[RTA_OIF])[0] if one_way else 0,
        _join(family, found[RTA_GATEWAY]) if one_way and RTA_GATEWAY in found else b"",
        bool(flags & RTNH_F_ONLINK),
        _NUMBER.unpack(metrics[RTAX_MTU])[0] if RTAX_MTU in metrics else 0,
        priority,
        protocol,
    )


def read_reach(reply: Reply) -> Reach:
    """Of the answer to links.get_route."""
    family, _, _, _, _, _, _, kind, _ = ROUTE.unpack_from(reply.body)
    found = dict(attributes(reply.body[ROUTE.size :]))
    gateway = _join(family, found[RTA_GATEWAY]) if RTA_GATEWAY in found else b""
    ifindex = _NUMBER.unpack(found[RTA_OIF])[0] if RTA_OIF in found else 0
    return Reach(ifindex, gateway, kind != RTN_UNICAST)


# ---- neighbours


def remove_neighbour(neighbour: Neighbour) -> Request:
    family, raw = _split(neighbour.address)
    body = NEIGHBOUR.pack(family, neighbour.ifindex, 0, 0, 0) + attribute(NDA_DST, raw)
    return Request(RTM_DELNEIGH, 0, body, f"remove neighbour {format_address(neighbour.address)}")


def list_neighbours(route: RouteSocket) -> list[Neighbour]:
    """Permanent ones, of both families."""
    found = []
    for family in FAMILIES:
        request = Request(RTM_GETNEIGH, NLM_F_DUMP, NEIGHBOUR.pack(family, 0, 0, 0, 0), "list neighbours")
        for reply in route.request(request):
            _, ifindex, state, _, _ = NEIGHBOUR.unpack_from(reply.body)
            parts = dict(attributes(reply.body[NEIGHBOUR.size :]))
            if state & NUD_PERMANENT and NDA_DST in parts and NDA_LLADDR in parts:
                found.append(Neighbour(ifindex, _join(family, parts[NDA_DST]), parts[NDA_LLADDR]))
    return found


# ---- forwarding of a VXLAN device


def put_forwarding(entry: Forwarding) -> Request:
    return Request(RTM_NEWNEIGH, NLM_F_CREATE | NLM_F_REPLACE, _forwarding(entry), f"add {_name(entry)}")


def remove_forwarding(entry: Forwarding) -> Request:
    return Request(RTM_DELNEIGH, 0, _forwarding(entry), f"remove {_name(entry)}")


def list_forwarding(route: RouteSocket, ifindex: int) -> list[Forwarding]:
    """Entries of this device that lead to nodes."""
    body = NEIGHBOUR.pack(socket.AF_BRIDGE, ifindex, 0, 0, 0)
    found = []
    for reply in route.request(Request(RTM_GETNEIGH, NLM_F_DUMP, body, "list forwarding entries")):
        _, index, _, _, _ = NEIGHBOUR.unpack_from(reply.body)
        parts = dict(attributes(reply.body[NEIGHBOUR.size :]))
        if index == ifindex and NDA_DST in parts and NDA_LLADDR in parts:
            raw = parts[NDA_DST]
            found.append(Forwarding(ifindex, parts[NDA_LLADDR], V4_MAPPED + raw if len(raw) == 4 else raw))
    return found


def _forwarding(entry: Forwarding) -> bytes:
    head = NEIGHBOUR.pack(socket.AF_BRIDGE, entry.ifindex, NUD_PERMANENT, NTF_SELF, 0)
    return head + attribute(NDA_DST, _split(entry.node)[1]) + attribute(NDA_LLADDR, entry.mac)


def _name(entry: Forwarding) -> str:
    return f"forwarding entry of {entry.mac.hex(':')} to {format_address(entry.node)}"


# ---- several at once

_AT_ONCE = 32
"""Answers to this many requests fit into a socket's receive buffer."""


def request_many(route: RouteSocket, requests: Iterable[Request]) -> list[Reply]:
    pending = list(requests)
    batches = (pending[start : start + _AT_ONCE] for start in range(0, len(pending), _AT_ONCE))
    return [reply for batch in batches for reply in route.request(*batch)]


def _split(address: bytes) -> tuple[int, bytes]:
    return (socket.AF_INET, address[12:]) if is_v4(address) else (socket.AF_INET6, address)


def _join(family: int, raw: bytes) -> bytes:
    return V4_MAPPED + raw if family == socket.AF_INET else raw


def _bits(block: Prefix) -> int:
    return block.bits - V4_MAPPED_BITS if block.is_v4 else block.bits

"""Which notifications of the kernel may mean that routes between nodes are not as they should be. Pure."""

from __future__ import annotations

from agent.endpoints import links, routes
from agent.endpoints.links import RTPROT_GATEHOUSE
from agent.endpoints.wiring import HOST_SIDE
from policies.address import Prefix

# linux/rtnetlink.h RTMGRP_*: links, neighbours, IPv4 and IPv6 addresses, IPv4 and IPv6 routes
GROUPS = 0x1 | 0x4 | 0x10 | 0x100 | 0x40 | 0x400
_SCOPE_AT = 3  # in struct ifaddrmsg
_LINK_LOCAL = Prefix.parse("fe80::/10")


def may_matter(kind: int, body: bytes, tunnel: int) -> bool:
    """`tunnel`: index of the VXLAN device, the only one whose neighbours and forwarding entries matter; 0: there
    is none. Pods' links and routes come and go without, and so does what every device has of IPv6 by itself."""
    if kind in (links.RTM_NEWLINK, links.RTM_DELLINK):
        return not HOST_SIDE.fullmatch(links.link_name(body))
    if kind in (links.RTM_NEWROUTE, routes.RTM_DELROUTE):
        route = routes.read_route(body)
        if route is None or _LINK_LOCAL.covers(route.block):
            return False
        return route.protocol != RTPROT_GATEHOUSE or bool(route.gateway)
    if kind in (links.RTM_NEWNEIGH, routes.RTM_DELNEIGH):
        return bool(tunnel and routes.NEIGHBOUR.unpack_from(body)[1] == tunnel)
    return kind in (links.RTM_NEWADDR, links.RTM_DELADDR) and body[_SCOPE_AT] == links.RT_SCOPE_UNIVERSE

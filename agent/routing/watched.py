"""Which notifications of the kernel may mean that routes between nodes are not as they should be. Pure."""

from __future__ import annotations

import re

from agent.endpoints import links, routes
from agent.endpoints.links import RTPROT_GATEHOUSE
from agent.endpoints.netlink import attributes

# linux/rtnetlink.h RTMGRP_*: links, neighbours, IPv4 and IPv6 addresses, IPv4 and IPv6 routes
GROUPS = 0x1 | 0x4 | 0x10 | 0x100 | 0x40 | 0x400
RTM_DELLINK = 17
_POD_SIDE = re.compile(r"gh[0-9a-f]{12}")
_PF_BRIDGE = 7


def may_matter(kind: int, body: bytes) -> bool:
    """Pods' links and routes come and go without; so do entries of neighbours that the kernel learned."""
    if kind in (links.RTM_NEWLINK, RTM_DELLINK):
        name = dict(attributes(body[links.LINK_HEADER_BYTES :])).get(links.IFLA_IFNAME, b"")
        return not _POD_SIDE.fullmatch(name.rstrip(b"\0").decode(errors="replace"))
    if kind in (links.RTM_NEWROUTE, routes.RTM_DELROUTE):
        route = routes.read_route(body)
        return route is not None and (route.protocol != RTPROT_GATEHOUSE or bool(route.gateway))
    if kind == routes.RTM_DELNEIGH:
        family, _, state, _, _ = routes.NEIGHBOUR.unpack_from(body)
        return family == _PF_BRIDGE or bool(state & links.NUD_PERMANENT)
    return kind in (links.RTM_NEWADDR, links.RTM_DELADDR)

"""How packets that the datapath gave to a proxy's socket get there: a rule for their mark, to a table in which every
address is this node's. In the calling thread's network namespace; stays when the agent ends.

On its way in from a device the kernel looks whether a packet has a socket here before it looks at routes (early demux),
and drops those that have one and are to be forwarded. Packets for a proxy's connection are both until the pod's device
has seen them, so that is turned off."""

from __future__ import annotations

import socket
import struct

from agent.datapath import abi
from agent.endpoints import links, routes
from agent.endpoints.netlink import (
    NLM_F_CREATE,
    NLM_F_DUMP,
    NLM_F_EXCL,
    NLM_F_REPLACE,
    Request,
    RouteSocket,
    attributes,
    number,
)
from agent.endpoints.wiring import write_sysctls

NUMBERS = abi.load().constants
FAMILIES = (socket.AF_INET, socket.AF_INET6)
# linux/rtnetlink.h, linux/fib_rules.h
RTM_NEWRULE, RTM_DELRULE, RTM_GETRULE = 32, 33, 34
RTA_TABLE, FRA_PRIORITY, FRA_FWMARK, FRA_TABLE, FRA_FWMASK = 15, 6, 10, 15, 16
FR_ACT_TO_TBL = 1
SCOPE_HOST: dict[int, int] = {socket.AF_INET: 254, socket.AF_INET6: 0}  # IPv6 knows no scopes here
EARLY_DEMUX = ("net/ipv4/tcp_early_demux", "net/ipv4/udp_early_demux")
"""Of IPv6 as well."""
LOOPBACK = "lo"
RULE_PRIORITY = 9
"""Before the rules that others make; after that of local addresses (0)."""
_HEAD = struct.Struct("=BBBBBBBBI")  # struct rtmsg, struct fib_rule_hdr


def install() -> None:
    """Both families. What is there already stays."""
    write_sysctls(dict.fromkeys(EARLY_DEMUX, "0"))
    with RouteSocket() as route:
        loopback = links.read_link(route.request(links.get_link(LOOPBACK))[0]).ifindex
        for family in FAMILIES:
            route.request(_route(family, loopback, links.RTM_NEWROUTE, NLM_F_CREATE | NLM_F_REPLACE))
            if not _is_ruled(route, family):
                route.request(_rule(family, RTM_NEWRULE, NLM_F_CREATE | NLM_F_EXCL))


def is_installed() -> bool:
    with RouteSocket() as route:
        return all(_is_ruled(route, family) for family in FAMILIES)


def remove() -> int:
    """How many rules and routes were there. The rest is as the kernel has it by itself."""
    removed = 0
    with RouteSocket() as route:
        loopback = links.read_link(route.request(links.get_link(LOOPBACK))[0]).ifindex
        for family in FAMILIES:
            removed += route.remove(_rule(family, RTM_DELRULE, 0))
            removed += route.remove(_route(family, loopback, routes.RTM_DELROUTE, 0))
    if removed:
        write_sysctls(dict.fromkeys(EARLY_DEMUX, "1"))
    return removed


def _route(family: int, loopback: int, kind: int, flags: int) -> Request:
    """Every address is local."""
    head = (family, 0, 0, 0, 0, links.RTPROT_GATEHOUSE, SCOPE_HOST[family], links.RTN_LOCAL, 0)
    body = _HEAD.pack(*head) + number(RTA_TABLE, NUMBERS.PROXY_TABLE) + number(links.RTA_OIF, loopback)
    return Request(kind, flags, body, f"route of proxies' packets, table {NUMBERS.PROXY_TABLE}")


def _rule(family: int, kind: int, flags: int) -> Request:
    fields = {
        FRA_PRIORITY: RULE_PRIORITY,
        FRA_FWMARK: NUMBERS.MARK_TO_PROXY,
        FRA_FWMASK: 0xFFFFFFFF,
        FRA_TABLE: NUMBERS.PROXY_TABLE,
    }
    body = _HEAD.pack(family, 0, 0, 0, 0, 0, 0, FR_ACT_TO_TBL, 0)
    body += b"".join(number(field, value) for field, value in fields.items())
    return Request(kind, flags, body, f"rule of proxies' packets, mark {NUMBERS.MARK_TO_PROXY:#x}")


def _is_ruled(route: RouteSocket, family: int) -> bool:
    found = route.request(Request(RTM_GETRULE, NLM_F_DUMP, _HEAD.pack(family, *[0] * 8), "list rules"))
    wanted = struct.pack("=I", NUMBERS.MARK_TO_PROXY)
    return any(dict(attributes(rule.body[_HEAD.size :])).get(FRA_FWMARK) == wanted for rule in found)

"""How packets that the datapath gave to a proxy's socket get there: a rule for their mark, to a table in which every
address is this node's. In the calling thread's network namespace; stays when the agent ends.

On its way in from a device the kernel looks whether a packet has a socket here before it looks at routes (early demux),
and drops those that have one and are to be forwarded. Packets for a proxy's connection are both until the pod's device
has seen them, so that is turned off."""

from __future__ import annotations

import errno
import socket
from collections.abc import Iterator
from contextlib import contextmanager

from pyroute2 import IPRoute
from pyroute2.netlink.exceptions import NetlinkError

from agent.datapath import abi
from agent.endpoints.sandbox import write_sysctls

NUMBERS = abi.load().constants
FAMILIES = (socket.AF_INET, socket.AF_INET6)
EVERYWHERE = {socket.AF_INET: "0.0.0.0/0", socket.AF_INET6: "::/0"}
SCOPE_HOST = {socket.AF_INET: 254, socket.AF_INET6: 0}  # linux/rtnetlink.h; IPv6 knows no scopes here
EARLY_DEMUX = ("net/ipv4/tcp_early_demux", "net/ipv4/udp_early_demux")
"""Of IPv6 as well."""
LOOPBACK = "lo"
RULE_PRIORITY = 9
"""Before the rules that others make; after that of local addresses (0)."""


def install() -> None:
    """Both families. What is there already stays."""
    write_sysctls(dict.fromkeys(EARLY_DEMUX, "0"))
    with IPRoute() as route:
        loopback = route.link_lookup(ifname=LOOPBACK)[0]
        for family in FAMILIES:
            with _fine_if(errno.EEXIST):
                route.route(
                    "add",
                    family=family,
                    type="local",
                    scope=SCOPE_HOST[family],
                    dst=EVERYWHERE[family],
                    oif=loopback,
                    table=NUMBERS.PROXY_TABLE,
                )
            if not _rules(route, family):
                _rule(route, "add", family)


def is_installed() -> bool:
    with IPRoute() as route:
        return all(_rules(route, family) for family in FAMILIES)


def remove() -> int:
    """How many rules and routes were there. The rest is as the kernel has it by itself."""
    removed = 0
    with IPRoute() as route:
        for family in FAMILIES:
            for _ in range(_rules(route, family)):
                _rule(route, "del", family)
                removed += 1
            removed += _flush(route, family)
    if removed:
        write_sysctls(dict.fromkeys(EARLY_DEMUX, "1"))
    return removed


def _flush(route: IPRoute, family: int) -> int:
    found = list(route.get_routes(family=family, table=NUMBERS.PROXY_TABLE))
    if found:
        route.flush_routes(family=family, table=NUMBERS.PROXY_TABLE)
    return len(found)


def _rule(route: IPRoute, command: str, family: int) -> None:
    mark = NUMBERS.MARK_TO_PROXY
    route.rule(
        command, family=family, priority=RULE_PRIORITY, fwmark=mark, fwmask=0xFFFFFFFF, table=NUMBERS.PROXY_TABLE
    )


def _rules(route: IPRoute, family: int) -> int:
    """How many rules for our mark there are."""
    return sum(rule.get_attr("FRA_FWMARK") == NUMBERS.MARK_TO_PROXY for rule in route.get_rules(family=family))


@contextmanager
def _fine_if(number: int) -> Iterator[None]:
    try:
        yield
    except NetlinkError as error:
        if error.code != number:
            raise

"""Behind another CNI plugin: the veth is there, and routed; Gatehouse's programs stand on its host side.

The pod resolves its gateway by ARP and neighbour discovery, which pass for such an interface (Interface.resolves).
A pod on a bridge is refused: what it sends to its neighbours there is never routed, nor judged as coming from it.
"""

from __future__ import annotations

import errno
from collections.abc import Sequence

from agent.cni.place import NotConnected, Place, find
from agent.endpoints import links, routes
from agent.endpoints.links import Link
from agent.endpoints.netlink import NetlinkError, RouteSocket, is_gone
from agent.objects import Interface
from policies.address import Prefix, format_address

ADVICE = "chain Gatehouse behind a plugin that gives each pod a routed veth, such as ptp"


def adopt(route: RouteSocket, place: Place, ifname: str, addresses: Sequence[bytes]) -> Interface:
    """`route`: a socket to the node's namespace; `addresses`: 16 bytes each, as the plugin before told in its result.

    Raises NotConnected where it is not such a veth, or has other addresses than told.
    """
    found = find(place.inside, ifname)
    if found is None:
        raise NotConnected(errno.ENODEV, f"the plugin before made no interface {ifname} in {place.path}: {ADVICE}")
    if found.kind != "veth":
        raise NotConnected(errno.EOPNOTSUPP, f"{ifname} in {place.path} is {_kind(found)}, no veth: {ADVICE}")
    host = _host_side(route, place, found)
    if host is None:
        raise NotConnected(
            errno.ENODEV, f"the other side of {ifname} in {place.path} is not in the node's network namespace: {ADVICE}"
        )
    if host.master:
        raise NotConnected(
            errno.EOPNOTSUPP, f"{host.name}, the node's side of {ifname}, is a port of a bridge or bond: {ADVICE}"
        )
    if wrong := [*_addresses(place, found, addresses), *_ways(route, host, addresses)]:
        raise NotConnected(errno.EADDRNOTAVAIL, f"{'; '.join(wrong)}: {ADVICE}")
    route.request(links.configure_adopted(host.ifindex))
    cookie = place.inside.netns_cookie
    return Interface(host.ifindex, host.name, found.mac, host.mac, place.path, cookie, resolves=True)


def check(route: RouteSocket, place: Place, found: Link, addresses: Sequence[bytes], interface: Interface) -> list[str]:
    """What is not as `adopt` found it."""
    host = _host_side(route, place, found)
    if host is None or host.ifindex != interface.index:
        return [f"{found.name} does not lead to {interface.name} of the node"]
    differ = [*_addresses(place, found, addresses), *_ways(route, host, addresses)]
    pairs = ((found, interface.mac), (host, interface.host_mac))
    return differ + [f"{link.name} has the MAC address {link.mac.hex(':')}" for link, mac in pairs if link.mac != mac]


def _host_side(route: RouteSocket, place: Place, found: Link) -> Link | None:
    """The other end of the veth, where it is a link of the node."""
    try:
        host = links.read_link(route.request(links.get_link_by_index(found.peer))[0])
        known_as = links.read_netns_id(route.request(links.get_netns_id(place.netns))[0])
    except NetlinkError as error:
        if not is_gone(error):
            raise
        return None
    return host if host.kind == "veth" and (host.peer, host.peer_netns) == (found.ifindex, known_as) else None


def _kind(link: Link) -> str:
    return f"a {link.kind}" if link.kind else "a device of the machine"


def _addresses(place: Place, found: Link, addresses: Sequence[bytes]) -> list[str]:
    bound = [links.read_address(reply) for reply in place.inside.request(links.list_addresses())]
    there = {one.address for one in bound if one.ifindex == found.ifindex}
    return [f"{found.name} has not the address {format_address(a)}" for a in addresses if a not in there]


def _ways(route: RouteSocket, host: Link, addresses: Sequence[bytes]) -> list[str]:
    ways = {one.block for one in routes.list_routes(route) if one.ifindex == host.ifindex}
    missing = [address for address in addresses if Prefix.host(address) not in ways]
    return [f"the node has no route to {format_address(address)} by {host.name}" for address in missing]

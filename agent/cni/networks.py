"""Networks of pods whose namespaces a container runtime made: a veth into each, wired as agent.endpoints.wiring says.

The host side is down until the datapath stands on it, which lets nothing pass before it knows the pod. Its name is
derived from the pod's first address, which is no other pod's: so what a killed ADD left is known by what was on record
before it began.
"""

from __future__ import annotations

import errno
import os
import re
from collections.abc import Collection, Iterator, Sequence
from contextlib import contextmanager
from typing import NamedTuple

from agent.cni import chained, recovery
from agent.cni.place import Connected, Guard, NotConnected, Place, find, host_link, opened
from agent.cni.recovery import Recovered
from agent.endpoints import links, namespaces, routes, wiring
from agent.endpoints.links import Link
from agent.endpoints.netlink import NetlinkError, Request, RouteSocket
from agent.endpoints.routes import Neighbour
from agent.endpoints.wiring import HOST_SIDE, write_sysctls
from agent.objects import Interface
from policies.address import format_address, is_v4
from policies.model import ObjectRef

LOOPBACK = "lo"
_ALIAS = re.compile(r"([^/]+)/([^/ ]+) ([^/ ]+)")  # NAMESPACE/POD INTERFACE

# Of the pod's interface. What else there is in a namespace is the runtime's and the pod's to say.
# Those of IPv4 go by netlink; there is no duplicate address detection where no address asks for it.
_SYSCTLS_V6 = ("accept_ra", "accept_redirects")


class Networks:
    """Around one node's network namespace: that of the thread that makes this object.

    Calls block (`connect` some 3 ms, `disconnect` 20 ms), and may be made by many threads at once, about one pod by
    one. Errors are OSError (NotConnected where the runtime or its settings are at fault).
    """

    def __init__(self) -> None:
        self._node = namespaces.open_current()
        self._idle: list[RouteSocket] = []
        self._fresh: dict[int, tuple[RouteSocket, int, tuple[bytes, ...]]] = {}
        """By index of the host side: links that may not be ready yet, with a socket to the pod's namespace."""

    def close(self) -> None:
        """Networks stay."""
        for route in (*self._idle, *(inside for inside, *_ in self._fresh.values())):
            route.close()
        os.close(self._node)

    def connect(
        self,
        netns: str,
        ifname: str,
        addresses: Sequence[bytes],
        pod: ObjectRef,
        mtu: int,
        guard: Guard,
    ) -> Interface:
        """A veth into the namespace at the path `netns`, by which the pod can send and receive once `await_ready` has
        returned; `lo` there is up.

        `guard` is given the index of the host side while that is down, and has all that passes judged from then on.

        What stands already is returned as it is, if it is complete, and else built anew; an interface of that name that
        is not ours, or has other addresses, is refused.
        """
        if not addresses:
            raise ValueError(f"{pod} has no address")
        veth = _Veth(ifname, tuple(addresses), f"{pod.namespace}/{pod.name} {ifname}", mtu)
        with opened(netns) as place, self._routes() as route:
            ends = _make(route, place, veth)
            if ends is None:
                if (standing := _standing(route, place, veth)) is not None:
                    guard(standing.index)
                    return standing
                route.remove(links.delete_link(veth.name))
                ends = _make(route, place, veth)
            if ends is None:
                raise OSError(errno.EEXIST, f"{veth.name} is made by somebody else all the time")
            try:
                return self._wire(route, place, veth, ends, guard)
            except OSError:
                route.remove(links.delete_link(veth.name))
                raise

    def await_ready(self, interface: Interface) -> None:
        """Of what was connected: returns when the pod can send and receive. The kernel sees to that meanwhile, so when
        there are many it is waited for once all are connected."""
        if (fresh := self._fresh.pop(interface.index, None)) is not None:
            with fresh[0]:
                wiring.await_ready(*fresh)

    def adopt(self, netns: str, ifname: str, addresses: Sequence[bytes]) -> Interface:
        """The veth that a plugin before us in the chain made, as its result tells (see agent.cni.chained)."""
        with opened(netns) as place, self._routes() as route:
            return chained.adopt(route, place, ifname, addresses)

    def disconnect(self, link: Interface | str) -> bool:
        """Remove a pod's veth, by its interface or the name of its host side; False where it is gone already.

        What was adopted stays: its maker removes it.
        """
        if isinstance(link, Interface) and link.resolves:
            return False
        name = link if isinstance(link, str) else link.name
        if not HOST_SIDE.fullmatch(name):
            raise ValueError(f"{name} is no link that Gatehouse made")
        with self._routes() as route:
            return route.remove(links.delete_link(name))

    def disconnect_all(self, names: Collection[str]) -> None:
        """The same for many at once, by the names of their host sides: the kernel takes no longer than for one."""
        if bad := [name for name in names if not HOST_SIDE.fullmatch(name)]:
            raise ValueError(f"{bad[0]} is no link that Gatehouse made")
        with self._routes() as route:
            found = [find(route, name) for name in names]
            wiring.delete_links(route, [link.ifindex for link in found if link])

    def existing(self) -> list[Connected]:
        """Host sides that `connect` made, whether or not anybody still wants them."""
        with self._routes() as route:
            found = [links.read_link(reply) for reply in route.request(links.list_links())]
        connected = []
        for link in found:
            said = _ALIAS.fullmatch(link.alias)
            if said and HOST_SIDE.fullmatch(link.name):
                pod = ObjectRef("Pod", said[1], said[2])
                connected.append(Connected(link.name, link.ifindex, pod, said[3], link.up))
        return connected

    def recover(self, orphans: Collection[Connected]) -> list[Recovered]:
        """What can be told of networks that are on no record."""
        with self._routes() as route:
            return list(recovery.recover(route, orphans))

    def check(self, netns: str, ifname: str, addresses: Sequence[bytes], interface: Interface) -> list[str]:
        """What of a pod's network is not as `connect` left it, one sentence each (CNI CHECK)."""
        try:
            with opened(netns) as place, self._routes() as route:
                found = find(place.inside, ifname)
                if found is None:
                    return [f"there is no interface {ifname} in {netns}"]
                if interface.resolves:
                    return chained.check(route, place, found, addresses, interface)
                return [
                    *_pod_side(place.inside, found, addresses, interface),
                    *_host_side(route, found, addresses, interface),
                ]
        except NotConnected as error:
            return [error.strerror or ""]

    @contextmanager
    def _routes(self) -> Iterator[RouteSocket]:
        """To the node's namespace, for one user at a time."""
        if self._idle:
            route = self._idle.pop()
        else:
            with namespaces.entered(self._node):
                route = RouteSocket()
        try:
            yield route
        except BaseException:
            route.close()  # answers to what was given up may still come
            raise
        self._idle.append(route)

    def _wire(self, route: RouteSocket, place: Place, veth: _Veth, ends: tuple[int, int], guard: Guard) -> Interface:
        """All but the link itself, of which `ends` are the indexes. The thread is in the pod's namespace."""
        (index, peer), (mac, host_mac) = ends, wiring.macs(veth.addresses)
        interface = Interface(index, veth.name, mac, host_mac, place.path, place.inside.netns_cookie)
        if veth.has_v6:
            write_sysctls({f"net/ipv6/conf/{veth.ifname}/{key}": "0" for key in _SYSCTLS_V6})
        _fill(place, veth, [links.set_up_pod_side(peer), *wiring.pod_side(peer, host_mac, veth.addresses)])
        namespaces.enter(self._node)
        write_sysctls({f"net/ipv6/conf/{veth.name}/accept_ra": "0"})
        guard(index)
        route.request(*wiring.host_side(interface, veth.addresses))
        place.kept = True
        self._fresh[index] = place.inside, peer, veth.addresses
        return interface


class _Veth(NamedTuple):
    """What is to lead into a pod's namespace. `alias`: of the host side."""

    ifname: str
    addresses: tuple[bytes, ...]
    alias: str
    mtu: int

    @property
    def name(self) -> str:
        """Of the host side."""
        return host_link(self.addresses)

    @property
    def has_v6(self) -> bool:
        return not all(map(is_v4, self.addresses))


def _make(route: RouteSocket, place: Place, veth: _Veth) -> tuple[int, int] | None:
    """Both sides, down: index of the host's, and of the pod's. None where one of that name is there."""
    mac, host_mac = wiring.macs(veth.addresses)
    try:
        reply, *_ = route.request(
            links.add_veth(veth.name, veth.ifname, place.netns, veth.mtu, host_mac, mac),
            links.configure_host_side(veth.name, veth.alias),
            links.get_link(veth.name),
        )
    except NetlinkError as error:
        if error.errno == errno.EEXIST:
            return None
        route.remove(links.delete_link(veth.name))
        raise
    return links.read_ends(reply)


def _fill(place: Place, veth: _Veth, requests: Sequence[Request]) -> None:
    """Have this done in the pod's namespace, with `lo` up and IPv6 enabled. Mostly it is: to look first, or to say so
    again, would be to queue up once more with all who change links anywhere on the machine. The thread is there."""
    requests = (links.set_up_named(LOOPBACK), links.get_link(LOOPBACK), *requests)
    try:
        enabled = links.has_ipv6(place.inside.request(*requests)[0])
    except NetlinkError as error:
        if error.errno != errno.EACCES:  # what is said of an IPv6 address while IPv6 is disabled
            raise
        enabled = False
    if veth.has_v6 and not enabled:
        # Of all interfaces first, for that sets it for each: what the pod sends to itself goes by lo.
        write_sysctls({f"net/ipv6/conf/{name}/disable_ipv6": "0" for name in ("all", veth.ifname)})
        place.inside.request(*requests)


def _standing(route: RouteSocket, place: Place, veth: _Veth) -> Interface | None:
    """What an earlier call built; None if it did not come to its end. Raises NotConnected for anybody else's."""
    if (found := find(place.inside, veth.ifname)) is None:
        return None
    addresses = veth.addresses
    (mac, host_mac), host = wiring.macs(addresses), find(route, veth.name)
    if host is None or (host.ifindex, host.peer) != (found.peer, found.ifindex):
        raise NotConnected(
            errno.EEXIST,
            f"{place.path} has an interface {found.name} already that is not this pod's with these addresses: "
            "delete it first (CNI DEL), or name another",
        )
    interface = Interface(host.ifindex, veth.name, mac, host_mac, place.path, place.inside.netns_cookie)
    differ = _pod_side(place.inside, found, addresses, interface) or _host_side(route, found, addresses, interface)
    return None if differ else interface


def _pod_side(inside: RouteSocket, found: Link, addresses: Sequence[bytes], interface: Interface) -> list[str]:
    """What differs in the pod's namespace."""
    name = found.name
    bound = [links.read_address(reply) for reply in inside.request(links.list_addresses())]
    there = {one.address for one in bound if one.ifindex == found.ifindex and one.is_global}
    gateways = wiring.gateways_of(addresses)
    ways = {one.gateway for one in routes.list_routes(inside) if one.ifindex == found.ifindex and one.is_default}
    known = routes.list_neighbours(inside)
    wanted = [Neighbour(found.ifindex, gateway, interface.host_mac) for gateway in gateways]
    return [
        *(f"{name} has not the address {format_address(a)}" for a in addresses if a not in there),
        *(f"{name} has the address {format_address(a)} as well" for a in sorted(there - {*addresses})),
        *([f"{name} has the MAC address {found.mac.hex(':')}"] if found.mac != interface.mac else []),
        *([] if found.up else [f"{name} is down"]),
        *(f"there is no default route via {format_address(g)} by {name}" for g in gateways if g not in ways),
        *(f"{format_address(n.address)} is no permanent neighbour of {name}" for n in wanted if n not in known),
    ]


def _host_side(route: RouteSocket, found: Link, addresses: Sequence[bytes], interface: Interface) -> list[str]:
    """What differs in the node's namespace."""
    host = find(route, interface.name)
    if host is None or host.ifindex != interface.index or host.peer != found.ifindex:
        return [f"{found.name} does not lead to {interface.name} of the node"]
    ways = {one.block.network for one in routes.list_routes(route) if one.ifindex == host.ifindex}
    known = routes.list_neighbours(route)
    wanted = [Neighbour(host.ifindex, address, interface.mac) for address in addresses]
    return [
        *([] if host.up else [f"{host.name} is down"]),
        *([f"{host.name} has the MAC address {host.mac.hex(':')}"] if host.mac != interface.host_mac else []),
        *(f"the node has no route to {format_address(a)} by {host.name}" for a in addresses if a not in ways),
        *(f"{format_address(n.address)} is no permanent neighbour of {host.name}" for n in wanted if n not in known),
    ]

"""A pod's network: a namespace and a veth pair, wired so that nothing has to be resolved or learned.

The pod sees `eth0` with its addresses and a default route to a link-local gateway. The gateway is a permanent neighbour
entry (the host side's MAC) and nothing else; so is the pod's address on the node. No ARP, no neighbour discovery.

Built in two steps, so that the datapath can be attached in between: `build` leaves the host side down (nothing passes),
`activate` brings it up. The namespace gets its name last: what has a name is complete inside.
"""

from __future__ import annotations

import contextlib
import hashlib
import os
import time
from collections.abc import Iterable, Iterator, Sequence
from typing import NamedTuple

import msgspec

from agent.endpoints import links, namespaces
from agent.endpoints.links import Link
from agent.endpoints.netlink import RTNLGRP_IPV6_ROUTE, RTNLGRP_LINK, TIMEOUT_S, NetlinkError, RouteSocket, is_gone
from agent.objects import Interface
from policies.address import is_v4, parse_address
from policies.model import ObjectRef

GATEWAY_V4 = parse_address("169.254.1.1")
GATEWAY_V6 = parse_address("fe80::1")
POD_LINK = "eth0"

# Of a new namespace, before its veth: `default` is what eth0 inherits.
_POD_SYSCTLS = {
    "net/ipv4/ip_forward": "0",  # a new namespace copies the machine's: a pod is no router
    "net/ipv4/conf/all/rp_filter": "0",
    "net/ipv4/conf/default/rp_filter": "0",
    "net/ipv4/conf/all/accept_redirects": "0",
    "net/ipv4/ip_unprivileged_port_start": "0",  # as container runtimes do under the kubelet
    "net/ipv4/ping_group_range": "0 2147483647",
    "net/ipv6/conf/all/disable_ipv6": "0",
    "net/ipv6/conf/default/disable_ipv6": "0",
    "net/ipv6/conf/default/accept_ra": "0",
    "net/ipv6/conf/default/accept_dad": "0",
    "net/ipv6/conf/default/accept_redirects": "0",
}


class Existing(msgspec.Struct, frozen=True):
    """A named namespace of this instance as found. `interface` None: it is not complete, or its veth is gone."""

    name: str
    interface: Interface | None = None
    addresses: frozenset[bytes] = frozenset()


class Blank(NamedTuple):
    """A namespace on a veth that belongs to no pod yet. It has no name: it is gone when its last descriptor is."""

    netns: int
    inside: RouteSocket
    link: Link  # host side
    pod_ifindex: int

    def close(self) -> None:
        self.inside.close()
        os.close(self.netns)


class Sandboxes:
    """Builds and removes pod networks around one node namespace: that of the thread that makes this object.

    Calls block: `build` some 1 ms from a blank and 3 ms without, `destroy` 20 ms. `build`, `activate`, `refill` and
    `close` are for one thread at a time, the others for any. Errors are OSError.
    """

    def __init__(self, instance: str, mtu: int = 1500, blanks: int = 4) -> None:
        self._instance = instance
        self._mtu = mtu
        self._wanted = blanks
        self._blanks: list[Blank] = []
        namespaces.list_names(instance)  # refuses an instance that no name can be made of
        self._node = namespaces.open_current()
        try:
            self._route = RouteSocket()
        except OSError:
            os.close(self._node)
            raise

    def close(self) -> None:
        # Namespaces are cleaned up some time after their last descriptor; the links are to be gone now.
        _delete_links(self._route, [blank.link.ifindex for blank in self._blanks])
        while self._blanks:
            self._blanks.pop().close()
        self._route.close()
        os.close(self._node)

    def refill(self) -> bool:
        """Make one more blank for the pods to come; False where there are enough."""
        if len(self._blanks) < self._wanted:
            self._blanks.append(self._make_blank())
        return len(self._blanks) < self._wanted

    def build(self, pod: ObjectRef, addresses: Sequence[bytes]) -> Interface:
        """Namespace, veth, addresses, routes, neighbours; the pod's side is up, the host's is not.

        `addresses`: 16 bytes each, at least one. What an earlier attempt left under the same name is replaced.
        """
        if not addresses:
            raise ValueError(f"{pod} has no address")
        mac, host_mac = derive_mac("pod", addresses[0]), derive_mac("host", addresses[0])
        blank = self._blanks.pop() if self._blanks else self._make_blank()
        with contextlib.closing(blank):
            self._route.request(links.name_host_side(blank.link.ifindex, host_mac, f"{pod.namespace}/{pod.name}"))
            gateways = [GATEWAY_V4] * any(map(is_v4, addresses)) + [GATEWAY_V6] * (not all(map(is_v4, addresses)))
            eth0 = blank.pod_ifindex
            blank.inside.request(
                links.set_mac(eth0, mac),
                *(links.add_address(eth0, address) for address in addresses),
                *(links.add_neighbour(eth0, gateway, host_mac) for gateway in gateways),
                *(links.default_route(eth0, gateway) for gateway in gateways),
            )
            path = namespaces.give_name(blank.netns, namespaces.netns_name(self._instance, pod))
            cookie = blank.inside.netns_cookie
        return Interface(blank.link.ifindex, blank.link.name, mac, host_mac, str(path), cookie)

    def activate(self, interface: Interface, addresses: Sequence[bytes]) -> None:
        """Host side up, routes and neighbours to the pod; returns when the pod can send. May be repeated."""
        index = interface.index
        self._route.request(
            links.set_up(index),
            *(links.route_to_host(index, address) for address in addresses),
            *(links.add_neighbour(index, address, interface.mac) for address in addresses),
            links.get_link_by_index(index),  # see _await_ready
        )
        netns = os.open(interface.netns, os.O_RDONLY | os.O_CLOEXEC)
        try:
            with _route_in(netns) as inside:
                _await_ready(inside, addresses)
        finally:
            os.close(netns)

    def destroy(self, pods: Iterable[ObjectRef]) -> None:
        """Remove all there is of these pods' networks; what is gone already is no error."""
        self.destroy_named([namespaces.netns_name(self._instance, pod) for pod in pods])

    def destroy_named(self, names: Sequence[str]) -> None:
        """Remove namespaces by name (see `list_existing`), with their veths, now: not when the last process is gone."""
        with _route_in(self._node) as route:
            found = [self._inspect(route, name).interface for name in names]
            _delete_links(route, [interface.index for interface in found if interface])
        for name in names:
            namespaces.take_name(name)

    def list_existing(self) -> list[Existing]:
        """What stands from before, complete or not; an agent that starts adopts or destroys each."""
        with _route_in(self._node) as route:
            return [self._inspect(route, name) for name in namespaces.list_names(self._instance)]

    def _make_blank(self) -> Blank:
        """Everything that does not depend on the pod. The host side's name is random: renaming a link is as slow as
        making one, and its alias says whose it is."""
        name = f"gh{os.urandom(6).hex()}"
        with contextlib.ExitStack() as undo:
            with namespaces.entered(self._node):
                netns = namespaces.create()
                undo.callback(os.close, netns)
                write_sysctls(_POD_SYSCTLS)
                inside = undo.enter_context(RouteSocket())
            self._route.request(links.add_veth(name, POD_LINK, netns, self._mtu))
            replies = self._route.request(links.configure_host_side(name), links.get_link(name))
            with namespaces.entered(self._node):
                write_sysctls({f"net/ipv6/conf/{name}/{key}": "0" for key in ("accept_ra", "accept_dad")})
            loopback, eth0 = map(links.read_link, inside.request(links.get_link("lo"), links.get_link(POD_LINK)))
            inside.request(links.set_up(loopback.ifindex), links.set_up_without_link_local(eth0.ifindex))
            undo.pop_all()
            return Blank(netns, inside, links.read_link(replies[0]), eth0.ifindex)

    @staticmethod
    def _inspect(route: RouteSocket, name: str) -> Existing:
        path = namespaces.path_of(name)
        netns = namespaces.open_name(name)
        if netns is None:
            return Existing(name)
        try:
            with _route_in(netns) as inside:
                eth0 = links.read_link(inside.request(links.get_link(POD_LINK))[0])
                bound = [links.read_address(reply) for reply in inside.request(links.list_addresses())]
                cookie = inside.netns_cookie
            host = links.read_link(route.request(links.get_link_by_index(eth0.peer))[0])
        except NetlinkError as error:
            if is_gone(error):
                return Existing(name)
            raise
        finally:
            os.close(netns)
        addresses = frozenset(b.address for b in bound if b.ifindex == eth0.ifindex and b.is_global)
        interface = Interface(host.ifindex, host.name, eth0.mac, host.mac, str(path), cookie)
        return Existing(name, interface, addresses)


def derive_mac(side: str, address: bytes) -> bytes:
    """A locally administered unicast MAC that is always the same for a side ("pod", "host") and address."""
    digest = hashlib.sha256(side.encode() + address).digest()
    return bytes([digest[0] & 0xFC | 0x02]) + digest[1:6]


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
def _route_in(netns: int) -> Iterator[RouteSocket]:
    with namespaces.entered(netns):
        route = RouteSocket()
    with route:
        yield route


def _delete_links(route: RouteSocket, indexes: Iterable[int]) -> None:
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
        try:
            route.request(links.delete_group(group))
        except NetlinkError as error:
            if not is_gone(error):
                raise


def _await_ready(inside: RouteSocket, addresses: Iterable[bytes]) -> None:
    """Wait until the pod sends and receives. Two things the kernel puts off to a worker:

    The carrier is there at once, but the link watch connects the queue a moment later; since 6.7 asking for the link
    makes it do so at once. And an IPv6 address is never tentative here, but the route that delivers to it comes later.
    """
    inside.join(RTNLGRP_LINK)
    inside.join(RTNLGRP_IPV6_ROUTE)
    checks = [links.get_link(POD_LINK), *map(links.get_route, addresses)]
    deadline = time.monotonic() + TIMEOUT_S
    while True:
        link, *routes = inside.request(*checks)
        if links.read_link(link).operational and all(map(links.is_local_route, routes)):
            return
        if time.monotonic() > deadline:
            raise TimeoutError(f"{POD_LINK} of the pod was not ready in {TIMEOUT_S:.0f} s: see `ip -d link` inside")
        inside.await_notification()

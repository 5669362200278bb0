"""A pod's network: a namespace and a veth pair, wired so that nothing has to be resolved or learned (see wiring).

Built in two steps, so that the datapath can be attached in between: `build` leaves the host side down (nothing passes),
`activate` brings it up. The namespace gets its name last: what has a name is complete inside.
"""

from __future__ import annotations

import contextlib
import os
from collections.abc import Iterable, Sequence
from typing import NamedTuple

import msgspec

from agent.endpoints import links, namespaces, wiring
from agent.endpoints.links import Link
from agent.endpoints.netlink import NetlinkError, RouteSocket, is_gone
from agent.endpoints.wiring import delete_links, route_in, write_sysctls
from agent.objects import Interface
from policies.model import ObjectRef

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
        delete_links(self._route, [blank.link.ifindex for blank in self._blanks])
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
        mac, host_mac = wiring.macs(addresses)
        blank = self._blanks.pop() if self._blanks else self._make_blank()
        with contextlib.closing(blank):
            self._route.request(links.name_host_side(blank.link.ifindex, host_mac, f"{pod.namespace}/{pod.name}"))
            inside = links.set_mac(blank.pod_ifindex, mac), *wiring.pod_side(blank.pod_ifindex, host_mac, addresses)
            blank.inside.request(*inside)
            path = namespaces.give_name(blank.netns, namespaces.netns_name(self._instance, pod))
            cookie = blank.inside.netns_cookie
        return Interface(blank.link.ifindex, blank.link.name, mac, host_mac, str(path), cookie)

    def activate(self, interface: Interface, addresses: Sequence[bytes]) -> None:
        """Host side up, routes and neighbours to the pod; returns when the pod can send. May be repeated."""
        wiring.activate(self._route, interface, addresses)

    def destroy(self, pods: Iterable[ObjectRef]) -> None:
        """Remove all there is of these pods' networks; what is gone already is no error."""
        self.destroy_named([namespaces.netns_name(self._instance, pod) for pod in pods])

    def destroy_named(self, names: Sequence[str]) -> None:
        """Remove namespaces by name (see `list_existing`), with their veths, now: not when the last process is gone."""
        with route_in(self._node) as route:
            found = [self._inspect(route, name).interface for name in names]
            delete_links(route, [interface.index for interface in found if interface])
        for name in names:
            namespaces.take_name(name)

    def list_existing(self) -> list[Existing]:
        """What stands from before, complete or not; an agent that starts adopts or destroys each."""
        with route_in(self._node) as route:
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
                write_sysctls(wiring.host_side_sysctls(name))
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
            with route_in(netns) as inside:
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

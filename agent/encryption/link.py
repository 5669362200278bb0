"""The link of the WireGuard device: no addresses, no routes, nothing of its own that it sends."""

from __future__ import annotations

import errno
from types import TracebackType

from agent.endpoints import links
from agent.endpoints.links import Link
from agent.endpoints.netlink import NetlinkError, RouteSocket, is_gone

KIND = "wireguard"


class NodeLink:
    """A link by its name, in the network namespace of the thread this is made in."""

    def __init__(self, name: str) -> None:
        self.name = name
        self._route = RouteSocket()

    def __enter__(self) -> NodeLink:
        return self

    def __exit__(self, *_: type[BaseException] | BaseException | TracebackType | None) -> None:
        self.close()

    def close(self) -> None:
        self._route.close()

    def find(self) -> Link | None:
        """None: there is none."""
        try:
            return links.read_link(self._route.request(links.get_link(self.name))[0])
        except NetlinkError as error:
            if not is_gone(error):
                raise
            return None

    def received(self) -> int:
        """How many packets it has brought. Raises NetlinkError."""
        return links.received(self._route.request(links.get_link(self.name))[0])

    def add(self) -> None:
        """Of the kernel's WireGuard; down. Nothing where there is one already. Raises NetlinkError."""
        try:
            self._route.request(links.add_wireguard(self.name))
        except NetlinkError as error:
            if error.errno != errno.EEXIST:
                raise

    def settle(self, link: Link, mtu: int) -> None:
        """Up, with an MTU (0: as it is) and no link-local address. Raises NetlinkError."""
        if mtu and link.mtu != mtu:
            self._route.request(links.set_mtu(link.ifindex, mtu))
        if not link.up:
            # Two requests: in one, the kernel sets it up first, and then it has such an address already.
            self._route.request(links.without_link_local(link.ifindex))
            self._route.request(links.set_up(link.ifindex))

    def delete(self) -> bool:
        """Whether there was one."""
        return self._route.remove(links.delete_link(self.name))


def is_of(name: str, kind: int, body: bytes) -> bool:
    """Whether a notification of the kernel is about the link of that name."""
    return kind in (links.RTM_NEWLINK, links.RTM_DELLINK) and links.link_name(body) == name

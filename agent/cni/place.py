"""A network namespace that a container runtime made, what Gatehouse looks up there, and the veth that leads there."""

from __future__ import annotations

import errno
import hashlib
import os
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager

import msgspec

from agent.endpoints import links, namespaces
from agent.endpoints.links import Link
from agent.endpoints.netlink import NetlinkError, RouteSocket, is_gone
from policies.model import ObjectRef

Guard = Callable[[int], None]
"""Has all judged that passes at the interface with this index."""


class NotConnected(OSError):
    """A pod cannot be given its network; the message says why and what to do."""


class Connected(msgspec.Struct, frozen=True):
    """The host side of a pod's veth as found. `pod` and `ifname` are what its alias says."""

    name: str
    ifindex: int
    pod: ObjectRef
    ifname: str
    up: bool


def host_link(addresses: Sequence[bytes]) -> str:
    """Name of the host side of the veth of the pod that has these addresses (16 bytes each, the first one counts)."""
    return f"gh{hashlib.sha256(b'link' + addresses[0]).hexdigest()[:12]}"


class Place:
    """`netns`: descriptor. `inside` is closed with the Place, but where it is `kept`."""

    def __init__(self, path: str, netns: int, inside: RouteSocket) -> None:
        self.path, self.netns, self.inside = path, netns, inside
        self.kept = False


@contextmanager
def opened(path: str) -> Iterator[Place]:
    """The namespace at a path such as /run/netns/NAME or /proc/PID/ns/net, with the calling thread in it meanwhile.
    Raises NotConnected."""
    try:
        netns = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
    except OSError as error:
        why = os.strerror(error.errno or 0)
        raise NotConnected(
            error.errno, f"network namespace {path}: {why}: it has to be there, and visible to the agent"
        ) from None
    try:
        home = namespaces.open_current()
        try:
            _enter(path, netns)
            try:
                place = Place(path, netns, RouteSocket())
                try:
                    yield place
                finally:
                    if not place.kept:
                        place.inside.close()
            finally:
                namespaces.enter(home)
        finally:
            os.close(home)
    finally:
        os.close(netns)


def _enter(path: str, netns: int) -> None:
    try:
        namespaces.enter(netns)
    except OSError as error:
        if error.errno != errno.EINVAL:
            raise
        raise NotConnected(
            errno.EINVAL,
            f"{path} is no network namespace: where the agent runs in a container, mount /run/netns into it with "
            "mountPropagation HostToContainer",
        ) from None


def find(route: RouteSocket, name: str) -> Link | None:
    """The link of that name in the socket's namespace."""
    try:
        return links.read_link(route.request(links.get_link(name))[0])
    except NetlinkError as error:
        if not is_gone(error):
            raise
        return None

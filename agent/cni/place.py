"""A network namespace that a container runtime made, and what Gatehouse looks up there."""

from __future__ import annotations

import errno
import os
from collections.abc import Iterator
from contextlib import contextmanager
from typing import NamedTuple

from agent.endpoints import links, namespaces
from agent.endpoints.links import Link
from agent.endpoints.netlink import NetlinkError, RouteSocket, is_gone


class NotConnected(OSError):
    """A pod cannot be given its network; the message says why and what to do."""


class Place(NamedTuple):
    path: str
    netns: int  # descriptor
    inside: RouteSocket


@contextmanager
def opened(path: str) -> Iterator[Place]:
    """The namespace at a path such as /run/netns/NAME or /proc/PID/ns/net. Raises NotConnected."""
    try:
        netns = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
    except OSError as error:
        why = os.strerror(error.errno or 0)
        raise NotConnected(
            error.errno, f"network namespace {path}: {why}: it has to be there, and visible to the agent"
        ) from None
    try:
        with _socket_in(path, netns) as inside:
            yield Place(path, netns, inside)
    finally:
        os.close(netns)


def _socket_in(path: str, netns: int) -> RouteSocket:
    try:
        with namespaces.entered(netns):
            return RouteSocket()
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

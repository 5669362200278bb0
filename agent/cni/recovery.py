"""Networks of pods that stand but are on no record: its files were lost or damaged, and the pods run on.

What is known of them is in the kernel: the pod by the link's alias, its addresses by the link's permanent neighbours,
the namespace by looking into each. Only the container's id is known to nobody but the runtime.
"""

from __future__ import annotations

from collections.abc import Collection, Iterator
from pathlib import Path
from typing import NamedTuple

from agent.cni.place import Connected, NotConnected, find, host_link, opened
from agent.endpoints import namespaces, routes, wiring
from agent.endpoints.netlink import RouteSocket
from agent.objects import Interface
from policies.model import ObjectRef

PROCESSES = Path("/proc")


class Recovered(NamedTuple):
    """`interface.netns` is empty where no path to the namespace was found. Addresses are 16 bytes each."""

    pod: ObjectRef
    ifname: str
    interface: Interface
    addresses: tuple[bytes, ...]


def recover(route: RouteSocket, orphans: Collection[Connected]) -> Iterator[Recovered]:
    """`route`: a socket to the node's namespace. A link that never came up is of an ADD that nobody waits for."""
    neighbours = routes.list_neighbours(route)
    for one in orphans:
        found = sorted(n.address for n in neighbours if n.ifindex == one.ifindex)
        first = [address for address in found if host_link([address]) == one.name]
        if one.up and first:
            addresses = (*first, *(address for address in found if address not in first))
            yield Recovered(one.pod, one.ifname, _interface(one, addresses), addresses)


def _interface(one: Connected, addresses: tuple[bytes, ...]) -> Interface:
    mac, host_mac = wiring.macs(addresses)
    for path in _namespaces():
        try:
            with opened(str(path)) as place:
                inside = find(place.inside, one.ifname)
                if inside is not None and inside.peer == one.ifindex and inside.mac == mac:
                    return Interface(one.ifindex, one.name, mac, host_mac, str(path), place.inside.netns_cookie)
        except NotConnected:
            continue
    return Interface(one.ifindex, one.name, mac, host_mac, "")


def _namespaces() -> Iterator[Path]:
    """Each once, by its name where it has one."""
    seen: set[int] = set()
    named = namespaces.RUN_DIR.iterdir() if namespaces.RUN_DIR.is_dir() else ()
    for path in (*sorted(named), *PROCESSES.glob("[0-9]*/ns/net")):
        try:
            inode = path.stat().st_ino
        except OSError:  # a process that is gone
            continue
        if inode not in seen:
            seen.add(inode)
            yield path

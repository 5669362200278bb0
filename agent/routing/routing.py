"""Routes to the pods of other nodes, kept as the settings and the other nodes say, whoever changes them.

What is there when the agent ends stays, and the next agent goes on from it; a mode that is left leaves nothing.
"""

from __future__ import annotations

import asyncio
import os
import threading
from collections.abc import Iterable, Sequence
from contextlib import suppress
from pathlib import Path

from agent import log as logs
from agent.config import Config
from agent.datapath.changes import Changes
from agent.endpoints import links, namespaces, routes
from agent.endpoints.links import Link
from agent.endpoints.netlink import NetlinkError, Request, RouteSocket, is_gone
from agent.endpoints.routes import Reach, Route
from agent.endpoints.wiring import write_sysctls
from agent.routing import mtu, tunnel
from agent.routing.desired import Desired, Own, is_over_v4, native, node_mac, tunnel_address, vxlan
from agent.routing.diff import Found, between_nodes, difference
from agent.routing.tunnel import Tunnel
from agent.routing.watched import GROUPS, may_matter
from agent.world.nodes import Peer

SYNC_S = 0.1
"""Changes are followed at most this often."""
RETRY_S = 5.0
"""After something failed that may work later."""

log = logs.get("routing")


class Routing:
    """In the network namespace of the thread this is made in. Calls block, but for `update` and `follow`.

    `problems`: what is not as it should be, one sentence each; `mtu`: of pods' interfaces; `inner_mtu`: of what fits
    between nodes with all that is added; `reached`: to how many blocks of other nodes there are routes. All as of the
    last `sync`, the MTUs as of the last `measure` too.
    """

    def __init__(self, config: Config, encrypted: bool = False) -> None:
        self.problems: list[str] = []
        added = mtu.overhead(config.routing, False, encrypted)
        self.mtu, self.inner_mtu = mtu.of_pods(config.mtu, (), added), mtu.between((), added)
        self.reached = 0
        self._mode, self._port, self._mtu, self._encrypted = config.routing, config.tunnel_port, config.mtu, encrypted
        self._own: Own | None = None
        self._peers: tuple[Peer, ...] = ()
        self._failed = False
        self._lock = threading.Lock()
        self._node = namespaces.open_current()
        self._route = RouteSocket()
        self._ifindex = 0  # of the tunnel
        self._changes = Changes(GROUPS, lambda kind, body: may_matter(kind, body, self._ifindex))

    def close(self) -> None:
        """Routes stay."""
        with self._lock:
            self._changes.close()
            self._route.close()
            os.close(self._node)

    def update(self, own: Own, peers: Iterable[Peer]) -> None:
        """How things are now; `follow` makes it so, or `sync`. Before the first call nothing is touched."""
        peers = tuple(peers)
        if (own, peers) != (self._own, self._peers):
            self._own, self._peers = own, peers
            self._changes.notice()

    async def follow(self) -> None:
        """Keep it so."""
        async with self._changes:
            while True:
                with suppress(TimeoutError):
                    async with asyncio.timeout(RETRY_S if self._failed else None):
                        await self._changes.wait()
                await asyncio.to_thread(self.sync)
                await asyncio.sleep(SYNC_S)

    def measure(self) -> None:
        """How large packets may be, and nothing else."""
        own, peers = self._own, self._peers
        if own is not None:
            with self._lock, suppress(OSError):  # `sync` will tell
                over_v4 = is_over_v4(own)
                self._measure(own, over_v4, self._reach(peers, over_v4), self._links())

    def sync(self) -> None:
        """Look what there is, and make it as it should be."""
        own, peers = self._own, self._peers
        if own is None:
            return
        with self._lock:
            self._failed = False
            problems: list[str] = []
            try:
                self._sync(own, peers, problems)
            except OSError as error:
                self._fail(problems, error)
            for problem in problems:
                if problem not in self.problems:
                    log.warning("not as the settings say", problem=problem)
            self.problems = problems

    def clear(self) -> None:
        """There is nobody to reach: what an earlier agent left goes."""
        with self._lock:
            try:
                _remove(self._route)
            except OSError as error:
                self.problems = [f"routes of an earlier agent stay: {error.strerror or error}"]

    # ---- inside

    def _sync(self, own: Own, peers: Sequence[Peer], problems: list[str]) -> None:
        over_v4 = is_over_v4(own)
        reach = self._reach(peers, over_v4)
        known = self._links()
        self._measure(own, over_v4, reach, known)
        ifindex, desired = 0, Desired()
        if self._mode == "native":
            desired = native(own, peers, reach)
        elif self._mode == "vxlan" and not own.addresses:
            desired.problems.append("this node has no address from which it could send VXLAN: give it one")
        elif self._mode == "vxlan":
            local = tunnel_address(own.addresses, over_v4)
            ifindex = self._ensure_tunnel(own, local, self.inner_mtu)
            desired = vxlan(own, peers, ifindex)
            desired.problems += self._filtered({one.ifindex for one in reach.values()}, known)
        self._ifindex = ifindex
        steps = difference(desired, self._found(ifindex))
        problems += desired.problems + steps.problems
        self._apply(steps.requests, problems)
        if self._mode != "vxlan":
            _delete_tunnel(self._route)
        self.reached = len(desired.routes) - len(steps.problems)

    def _links(self) -> dict[int, Link]:
        return {link.ifindex: link for link in map(links.read_link, self._route.request(links.list_links()))}

    def _measure(self, own: Own, over_v4: bool, reach: dict[bytes, Reach], known: dict[int, Link]) -> None:
        sizes = [known[index].mtu for index in self._underlay(own, reach) if index in known]
        added = mtu.overhead(self._mode, over_v4, self._encrypted)
        self.mtu, self.inner_mtu = mtu.of_pods(self._mtu, sizes, added), mtu.between(sizes, added)

    def _reach(self, peers: Iterable[Peer], over_v4: bool) -> dict[bytes, Reach]:
        wanted = set()
        for peer in peers:
            if self._mode == "vxlan":
                wanted |= {tunnel_address(peer.addresses, over_v4)} - {b""}
            else:
                wanted |= {*peer.addresses}
        reach = {}
        for address in sorted(wanted):
            with suppress(NetlinkError):  # there is no route
                reach[address] = routes.read_reach(self._route.request(links.get_route(address))[0])
        return reach

    def _underlay(self, own: Own, reach: dict[bytes, Reach]) -> set[int]:
        """Devices that lead to other nodes; while there are none, that would."""
        used = {one.ifindex for one in reach.values() if not one.local}
        if not used:
            used = {one.ifindex for one in routes.list_routes(self._route) if one.is_default}
        if not used:
            bound = [links.read_address(reply) for reply in self._route.request(links.list_addresses())]
            used = {one.ifindex for one in bound if one.address in own.addresses}
            used -= {links.read_link(self._route.request(links.get_link("lo"))[0]).ifindex}
        return used

    def _ensure_tunnel(self, own: Own, local: bytes, size: int) -> int:
        """The device's interface index; it is up, and as it should be."""
        wanted, mac = Tunnel(tunnel.VNI, self._port, local), node_mac(own.name)
        found = self._tunnel()
        if found is not None and found[1] != wanted:
            _delete_tunnel(self._route)
            found = None
        if found is None:
            self._route.request(tunnel.add(wanted, mac, size))
            log.info("VXLAN device made", device=tunnel.NAME, port=self._port, mtu=size)
            found = self._tunnel()
            assert found is not None
        link = found[0]
        if not link.up:
            with namespaces.entered(self._node):
                write_sysctls(tunnel.SYSCTLS)
        if link.mtu != size:
            self._route.request(links.set_mtu(link.ifindex, size))
        if link.mac != mac:
            self._route.request(links.set_mac(link.ifindex, mac))
        if not link.up:
            self._route.request(links.set_up_without_link_local(link.ifindex))
        return link.ifindex

    def _tunnel(self) -> tuple[Link, Tunnel | None] | None:
        try:
            (reply,) = self._route.request(links.get_link(tunnel.NAME))
        except NetlinkError as error:
            if not is_gone(error):
                raise
            return None
        return links.read_link(reply), tunnel.read(reply)

    def _filtered(self, devices: set[int], known: dict[int, Link]) -> list[str]:
        """Devices by which pods' answers to this node come and would be dropped: they go out by another."""
        names = sorted(known[index].name for index in devices if index in known)
        with namespaces.entered(self._node):
            strict = [name for name in names if _read(f"ipv4/conf/{name}/rp_filter") == "1"]
        return [
            f"device {name} drops what pods of other nodes answer to this node (rp_filter is strict): "
            f"sysctl -w net.ipv4.conf.{name}.rp_filter=2"
            for name in strict
        ]

    def _found(self, ifindex: int) -> Found:
        found = Found(routes.list_routes(self._route))
        if ifindex:
            found.neighbours = {one for one in routes.list_neighbours(self._route) if one.ifindex == ifindex}
            found.forwarding = set(routes.list_forwarding(self._route, ifindex))
        return found

    def _apply(self, requests: Sequence[Request], problems: list[str]) -> None:
        try:
            routes.request_many(self._route, requests)
        except NetlinkError:  # some have gone through: one by one, to tell of each
            for request in requests:
                try:
                    self._route.request(request)
                except NetlinkError as error:
                    if not (is_gone(error) and request.kind in routes.REMOVALS):
                        self._fail(problems, error)

    def _fail(self, problems: list[str], error: OSError) -> None:
        self._failed = True
        problems.append(f"{error.strerror or error}: it is tried again every {RETRY_S:.0f} s")


def remove() -> int:
    """All of it out of the calling thread's network namespace: how many routes and devices there were."""
    with RouteSocket() as route:
        return _remove(route)


def _remove(route: RouteSocket) -> int:
    ours: list[Route] = between_nodes(routes.list_routes(route))
    for one in ours:
        with suppress(NetlinkError):  # it is gone meanwhile
            route.request(routes.remove_route(one))
    return len(ours) + _delete_tunnel(route)


def _delete_tunnel(route: RouteSocket) -> bool:
    try:
        link = links.read_link(route.request(links.get_link(tunnel.NAME))[0])
        if link.kind != tunnel.KIND:
            return False
        route.request(links.delete_link(tunnel.NAME))
    except NetlinkError as error:
        if not is_gone(error):
            raise
        return False
    return True


def _read(key: str) -> str:
    try:
        return Path(f"/proc/sys/net/{key}").read_text().strip()
    except FileNotFoundError:
        return ""

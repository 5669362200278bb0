"""Which routes, neighbours and forwarding entries lead to the pods of other nodes. Pure.

A block that overlaps another node's, or holds an address of a node, is refused: it would take packets from those they
are for. Of two nodes the first by name has it.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping

import msgspec

from agent.endpoints.routes import Forwarding, Neighbour, Reach, Route
from agent.endpoints.wiring import derive_mac
from agent.world.nodes import Peer
from agent.world.prefixes import PrefixSet, SortedPrefixes
from policies.address import Prefix, format_address, is_v4

SPECIAL = tuple(map(Prefix.parse, ("127.0.0.0/8", "169.254.0.0/16", "224.0.0.0/3", "::1/128", "fe80::/10", "ff00::/8")))
"""No pods' addresses: the node's own, the link's, multicast."""
SIDE = "node"
"""Of derive_mac."""


class Own(msgspec.Struct, frozen=True):
    """This node. `addresses`: the preferred first, as it tells others."""

    name: str
    addresses: tuple[bytes, ...]
    pod_cidrs: tuple[Prefix, ...]


class Desired(msgspec.Struct):
    """`routes` by block; the rest is of the tunnel's device."""

    routes: dict[Prefix, Route] = {}
    neighbours: set[Neighbour] = set()
    forwarding: set[Forwarding] = set()
    problems: list[str] = []


def node_mac(name: str) -> bytes:
    """Of a node's VXLAN device: nobody has to ask for it."""
    return derive_mac(SIDE, name.encode())


def tunnel_address(addresses: Iterable[bytes], over_v4: bool) -> bytes:
    """Where a node sends and gets VXLAN; empty: it has no address of that family."""
    return next((address for address in addresses if is_v4(address) == over_v4), b"")


def is_over_v4(own: Own) -> bool:
    """Whether VXLAN goes over IPv4: wherever this node has an address of it."""
    return any(map(is_v4, own.addresses)) or not own.addresses


def native(own: Own, peers: Iterable[Peer], reach: Mapping[bytes, Reach]) -> Desired:
    """`reach`: how addresses of other nodes are reached; those without a route are not in it."""
    desired = Desired()
    for peer, block in _accepted(own, peers, desired.problems):
        usable = [address for address in peer.addresses if is_v4(address) == block.is_v4]
        there = next((a for a in usable if (way := reach.get(a)) and not way.gateway and not way.local), None)
        if there is None:
            desired.problems.append(_unreachable(peer, block, usable, reach))
        else:
            desired.routes[block] = Route(block, reach[there].ifindex, there)
    return desired


def vxlan(own: Own, peers: Iterable[Peer], ifindex: int) -> Desired:
    """By the device `ifindex`. The next hop is a neighbour of the tunnel and nothing else: of an IPv4 block the first
    address in it, of an IPv6 one a link-local address (Linux takes no other where the block had another route)."""
    desired = Desired()
    over_v4 = is_over_v4(own)
    for peer, block in _accepted(own, peers, desired.problems):
        there, mac = tunnel_address(peer.addresses, over_v4), node_mac(peer.name)
        if not there:
            family = "IPv4" if over_v4 else "IPv6"
            desired.problems.append(
                f"pods of node {peer.name} in {block} are not reached: it has no {family} address, over which this "
                "node speaks VXLAN: give every node addresses of the same families"
            )
            continue
        hop = block.network if block.is_v4 else link_local(mac)
        desired.routes[block] = Route(block, ifindex, hop, onlink=block.is_v4)
        desired.neighbours.add(Neighbour(ifindex, hop, mac))
        desired.forwarding.add(Forwarding(ifindex, mac, there))
    return desired


def link_local(mac: bytes) -> bytes:
    """RFC 4291, appendix A."""
    return b"\xfe\x80" + bytes(6) + bytes([mac[0] ^ 2]) + mac[1:3] + b"\xff\xfe" + mac[3:]


def _accepted(own: Own, peers: Iterable[Peer], problems: list[str]) -> Iterator[tuple[Peer, Prefix]]:
    """Each peer with each of its blocks that may be its own."""
    known = sorted((peer for peer in peers if peer.name != own.name), key=lambda peer: peer.name)
    taken = _Taken(own, known)
    for peer in known:
        for block in peer.pod_cidrs:
            if why := taken.refusal(block):
                problems.append(f"pods of node {peer.name} in {block} are not reached: {why}")
            else:
                taken.add(peer.name, block)
                yield peer, block


class _Taken:
    """Whose blocks and addresses are whose."""

    def __init__(self, own: Own, peers: Iterable[Peer]) -> None:
        self._owners: dict[Prefix, str] = {}
        self._blocks, self._sorted = PrefixSet(), SortedPrefixes()
        self._nodes: dict[Prefix, str] = {}
        for name, addresses in ((own.name, own.addresses), *((peer.name, peer.addresses) for peer in peers)):
            for address in addresses:
                self._nodes.setdefault(Prefix.host(address), name)
        self._addresses = SortedPrefixes()
        for host in self._nodes:
            self._addresses.add(host)
        for block in own.pod_cidrs:
            self.add(own.name, block)

    def add(self, name: str, block: Prefix) -> None:
        self._owners[block] = name
        self._blocks.add(block)
        self._sorted.add(block)

    def refusal(self, block: Prefix) -> str:
        """Why a block cannot be another node's; empty: it can."""
        for special in SPECIAL:
            if special.covers(block) or block.covers(special):
                return f"{special} holds no pods' addresses; give it a block of its own"
        other = min((*self._blocks.covering(block), *self._sorted.inside(block)), default=None)
        if other is not None:
            return f"{other} is node {self._owners[other]}'s; give each node blocks of its own"
        held = next(self._addresses.inside(block), None)
        if held is not None:
            at = format_address(held.network)
            return f"it holds {at}, an address of node {self._nodes[held]}; give pods other addresses"
        return ""


def _unreachable(peer: Peer, block: Prefix, usable: list[bytes], reach: Mapping[bytes, Reach]) -> str:
    start = f"pods of node {peer.name} in {block} are not reached: "
    if not usable:
        return f"{start}it has no {'IPv4' if block.is_v4 else 'IPv6'} address: give it one, or use --routing vxlan"
    address = usable[0]
    way = reach.get(address)
    if way is None:
        return f"{start}there is no route to its address {format_address(address)}: connect the nodes"
    if way.local:
        return f"{start}its address {format_address(address)} is this node's: give each node one"
    return (
        f"{start}its address {format_address(address)} is not on the same link, but behind "
        f"{format_address(way.gateway)}: use --routing vxlan, or let your network route them (--routing off)"
    )

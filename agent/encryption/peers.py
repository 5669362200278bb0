"""Which peers the WireGuard device is to have, and what changes make it so. Pure.

A prefix is one peer's. What two nodes claim goes to the first by name, and so does a public key: with it alone nobody
takes over anything, for packets under it can only be read by whoever has the private half.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from functools import lru_cache
from operator import itemgetter, lt

import msgspec

from agent.encryption.device import Endpoint, PeerChange, PeerState
from agent.encryption.keys import shown
from agent.world.nodes import Peer
from policies.address import V4_MAPPED_BITS, Prefix, format_address, is_v4


class Wanted(msgspec.Struct, frozen=True, gc=False):
    """A peer as it is to be. `node`: whose key it is."""

    node: str
    endpoint: Endpoint
    allowed: frozenset[Prefix]
    keepalive_s: int = 0


class Local(msgspec.Struct, frozen=True):
    """This node, as far as peers depend on it. `keys`: all public keys it has."""

    name: str
    addresses: tuple[bytes, ...]
    pod_cidrs: tuple[Prefix, ...]
    keys: frozenset[bytes]
    port: int
    keepalive_s: int = 0


class Desired(msgspec.Struct):
    """`peers`: by public key. `keys`: node → the keys it has here, the one that has its addresses first. `problems`:
    node → why it is not as it tells, one sentence."""

    peers: dict[bytes, Wanted] = {}
    keys: dict[str, tuple[bytes, ...]] = {}
    problems: dict[str, str] = {}


class _Place(msgspec.Struct, frozen=True, gc=False):
    """Where a node is. `v4`, `v6`: its first address of each family; `prefixes`: its blocks and addresses; `spans`: the
    same as first and last number of each."""

    v4: bytes | None
    v6: bytes | None
    prefixes: frozenset[Prefix]
    spans: tuple[tuple[int, int], ...]


@lru_cache(maxsize=1 << 13)
def _place(addresses: tuple[bytes, ...], blocks: tuple[Prefix, ...]) -> _Place:
    prefixes = frozenset((*blocks, *map(Prefix.host, addresses)))
    return _Place(
        next((address for address in addresses if is_v4(address)), None),
        next((address for address in addresses if not is_v4(address)), None),
        prefixes,
        tuple((first := _first(one, 128), first | (1 << (128 - one.bits)) - 1) for one in prefixes),
    )


def desired(local: Local, peers: Iterable[Peer], handshakes: Mapping[bytes, int]) -> Desired:
    """`handshakes`: key → when its last one was made, ns. Of a node's two keys the one that was heard of last has its
    addresses: the moment it has swapped them, and back if need be."""
    result = Desired()
    told = sorted((peer for peer in peers if peer.public_key and peer.name != local.name), key=lambda peer: peer.name)
    holders: dict[bytes, str] = {}
    for peer in told:
        holders.setdefault(peer.public_key, peer.name)
    for peer in told:  # a key in use goes before one that will be
        if peer.next_public_key:
            holders.setdefault(peer.next_public_key, peer.name)
    places = [_place(peer.addresses, peer.pod_cidrs) for peer in told]
    around = None if _apart(local, places) else _Around(local, told)
    taken: dict[Prefix, str] = {}
    v4, v6 = any(map(is_v4, local.addresses)), not all(map(is_v4, local.addresses))
    for peer, place in zip(told, places, strict=True):
        # Of a family that both have, IPv4 before IPv6.
        address = place.v4 if v4 and place.v4 is not None else place.v6 if v6 else None
        problem = _refusal(local, peer, holders) or ("" if address else _unreachable(peer))
        if problem or address is None:
            result.problems[peer.name] = problem
            continue
        keys = _keys(local, peer, holders, result.problems)
        endpoint = Endpoint(address, local.port)
        if len(keys) > 1:
            keys = tuple(sorted(keys, key=lambda key: -handshakes.get(key, 0)))  # stable: of equals the first told
        allowed = _allowed(peer, taken, around, result.problems) if around else place.prefixes
        result.peers[keys[0]] = Wanted(peer.name, endpoint, allowed, local.keepalive_s)
        for key in keys[1:]:
            result.peers[key] = Wanted(peer.name, endpoint, frozenset(), local.keepalive_s)
        result.keys[peer.name] = keys
    return result


def _keys(local: Local, peer: Peer, holders: Mapping[bytes, str], problems: dict[str, str]) -> tuple[bytes, ...]:
    following = peer.next_public_key
    if not following or following == peer.public_key:
        return (peer.public_key,)
    if following in local.keys or holders[following] != peer.name:
        problems[peer.name] = f"the next key it tells of, {shown(following)}, is another node's"
        return (peer.public_key,)
    return peer.public_key, following


def _apart(local: Local, places: Iterable[_Place]) -> bool:
    """Whether nothing overlaps anything, as it should be: then there is no need to look whose is what. What lies
    within a block of one and the same node overlaps, too."""
    spans = [span for place in places for span in place.spans]
    spans += _place(local.addresses, local.pod_cidrs).spans
    spans.sort()
    firsts, lasts = map(itemgetter(0), spans[1:]), map(itemgetter(1), spans)
    return all(map(lt, lasts, firsts))


def _refusal(local: Local, peer: Peer, holders: Mapping[bytes, str]) -> str:
    key = peer.public_key
    if key in local.keys:
        return f"it tells of a public key that is this node's, {shown(key)}: remove its state directory's wireguard/"
    if holders[key] != peer.name:
        return f"it tells of the same public key as node {holders[key]}, {shown(key)}: it is taken for that one's"
    return ""


def _unreachable(peer: Peer) -> str:
    has = ", ".join(map(format_address, peer.addresses)) or "none"
    return f"it has no address of a family that this node has one of (it has {has}): packets for it cannot be encrypted"


OWN = ""
"""In _Around: this node."""


class _Around:
    """Who has what, by the rules of agent.routing.desired: a block that overlaps this node's, or holds an address of
    a node, is nobody's. A block within another node's is that one's."""

    def __init__(self, local: Local, peers: Sequence[Peer]) -> None:
        self._own_blocks, self._own_addresses = local.pod_cidrs, frozenset(local.addresses)
        self._by_bits: dict[int, dict[int, str]] = {}
        self._holds: dict[Prefix, str] = {}  # blocks that are nobody's → whose address they hold
        for peer in peers:
            for block in peer.pod_cidrs:
                if self._is_own(block):
                    self._holds[block] = OWN
                else:
                    self._by_bits.setdefault(block.bits, {}).setdefault(_first(block, block.bits), peer.name)
        for peer in peers:
            for host in map(Prefix.host, peer.addresses):
                for bits, holder in self._around(host):
                    if holder != peer.name:
                        network = (_first(host, bits) << (128 - bits)).to_bytes(16, "big")
                        self._holds[Prefix(network, bits)] = peer.name
        for block in self._holds:
            self._by_bits.get(block.bits, {}).pop(_first(block, block.bits), None)

    def other(self, name: str, prefix: Prefix) -> str | None:
        """Whose a prefix is that a node claims; None: its own."""
        if prefix in self._holds:
            return self._holds[prefix]
        if self._is_own(prefix):
            return OWN
        return next((holder for _, holder in self._around(prefix) if holder != name), None)

    def _is_own(self, prefix: Prefix) -> bool:
        if prefix.bits == 128 and prefix.network in self._own_addresses:
            return True
        return any(block.covers(prefix) or prefix.covers(block) for block in self._own_blocks) or (
            prefix.bits < 128 and any(map(prefix.contains, self._own_addresses))
        )

    def _around(self, prefix: Prefix) -> Iterator[tuple[int, str]]:
        """(bits, node) of the blocks it is in."""
        for bits, blocks in self._by_bits.items():
            if bits < prefix.bits and not (bits < V4_MAPPED_BITS and prefix.is_v4):
                holder = blocks.get(_first(prefix, bits))
                if holder is not None:
                    yield bits, holder


def _first(prefix: Prefix, bits: int) -> int:
    """The leading bits of its network, as a number."""
    return int.from_bytes(prefix.network, "big") >> (128 - bits)


def _allowed(peer: Peer, taken: dict[Prefix, str], around: _Around, problems: dict[str, str]) -> frozenset[Prefix]:
    """Its blocks and addresses, as far as they are not another's."""
    found = set()
    for prefix in (*peer.pod_cidrs, *map(Prefix.host, peer.addresses)):
        holder = around.other(peer.name, prefix)
        if holder is None:
            holder = taken.setdefault(prefix, peer.name)
        if holder == peer.name:
            found.add(prefix)
        else:
            whose = f"node {holder}" if holder else "this node"
            problems[peer.name] = f"it claims {prefix}, which is with {whose}: what is sent there does not go to it"
    return frozenset(found)


# ---- what is to change


def difference(
    wanted: Mapping[bytes, Wanted], found: Mapping[bytes, PeerState], told: Mapping[bytes, Endpoint]
) -> list[PeerChange]:
    """`told`: endpoints that this agent has given the device. A peer that has roamed since keeps where it is; who is
    given another address, goes there. Peers are changed, not made anew: that would end sessions. First come those that
    get addresses (which takes them from those that had them), at the end those that go."""
    gaining: list[PeerChange] = []
    losing: list[PeerChange] = []
    for key, want in wanted.items():
        have = found.get(key)
        if have is None:
            gaining.append(PeerChange(key, False, want.endpoint, _sorted(want.allowed), True, want.keepalive_s))
            continue
        same = want.allowed == have.allowed
        if same and want.endpoint == have.endpoint and want.keepalive_s == have.keepalive_s:
            continue
        endpoint = None if _stays(want.endpoint, have.endpoint, told.get(key)) else want.endpoint
        keepalive_s = want.keepalive_s if have.keepalive_s != want.keepalive_s else None
        more = less = frozenset[Prefix]()
        if not same:
            more, less = want.allowed - have.allowed, have.allowed - want.allowed
        if endpoint is None and keepalive_s is None and not more and not less:
            continue
        allowed = _sorted(want.allowed) if less else _sorted(more)
        change = PeerChange(key, False, endpoint, allowed, bool(less), keepalive_s, True)
        (gaining if more or not less else losing).append(change)
    gone = [PeerChange(key, remove=True) for key in found.keys() - wanted.keys()]
    return gaining + losing + gone


def anew(keys: Iterable[bytes], wanted: Mapping[bytes, Wanted]) -> list[PeerChange]:
    """Peers that are removed and made again as they are wanted: what the device remembers of them is gone."""
    changes = []
    for key in keys:
        want = wanted[key]
        made = PeerChange(key, False, want.endpoint, _sorted(want.allowed), True, want.keepalive_s)
        changes += [PeerChange(key, remove=True), made]
    return changes


def _stays(want: Endpoint, have: Endpoint | None, told: Endpoint | None) -> bool:
    return have == want or (have is not None and told == want)


def after(found: Mapping[bytes, PeerState], changes: Iterable[PeerChange]) -> dict[bytes, PeerState]:
    """What a device has after changes, without asking it. `found` is left as it is."""
    result = dict(found)
    holders = {prefix: key for key, state in found.items() for prefix in state.allowed}
    for change in changes:
        key = change.public_key
        if change.remove:
            result.pop(key, None)
            continue
        if key not in result and change.update_only:
            continue
        have = result.get(key, PeerState())
        kept = frozenset[Prefix]() if change.replace else have.allowed
        result[key] = msgspec.structs.replace(
            have,
            endpoint=change.endpoint or have.endpoint,
            allowed=kept.union(change.allowed),
            keepalive_s=have.keepalive_s if change.keepalive_s is None else change.keepalive_s,
        )
        for prefix in change.allowed:
            other = holders.get(prefix, key)
            holders[prefix] = key
            if other != key and other in result:
                state = result[other]
                result[other] = msgspec.structs.replace(state, allowed=state.allowed - {prefix})
    return result


def _sorted(prefixes: Iterable[Prefix]) -> tuple[Prefix, ...]:
    return tuple(sorted(prefixes))

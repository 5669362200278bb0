"""Between whom packets are encrypted: entries of the datapath's map, by whose blocks and addresses are. Pure."""

from __future__ import annotations

from collections.abc import Container, Iterable, Mapping

from agent.datapath import abi
from agent.world.nodes import Peer
from policies.address import Prefix

_ABI = abi.load()
KEY = _ABI.records["ipcache_key"]
VALUE = _ABI.records["encryption_value"]
OWN_PODS = _ABI.constants.ENCRYPTION_OWN_PODS
PEER_PODS = _ABI.constants.ENCRYPTION_PEER_PODS
OWN_NODE = _ABI.constants.ENCRYPTION_OWN_NODE
PEER_NODE = _ABI.constants.ENCRYPTION_PEER_NODE
READY = _ABI.constants.ENCRYPTION_READY
PODS = OWN_PODS | PEER_PODS
ANYWHERE = {KEY.pack(): VALUE.pack(flags=PEER_PODS)}
"""All addresses are those of pods that nothing can be encrypted for."""


def entries(
    pod_cidrs: Iterable[Prefix],
    addresses: Iterable[bytes],
    peers: Iterable[Peer],
    ready: Container[str],
    cluster_cidrs: Iterable[Prefix] = (),
) -> dict[bytes, bytes]:
    """In the order in which they are to be written: wide blocks before what is in them. What is this node's is nobody
    else's.

    `pod_cidrs`, `addresses` (16 bytes each): of this node; `ready`: names of the peers that the WireGuard device knows;
    `cluster_cidrs`: where pods may be of nodes of which nothing is known yet.
    """
    found: dict[Prefix, int] = dict.fromkeys(cluster_cidrs, PEER_PODS)
    for peer in peers:
        flag = READY if peer.name in ready else 0
        found |= dict.fromkeys(peer.pod_cidrs, PEER_PODS | flag)
        found |= dict.fromkeys(map(Prefix.host, peer.addresses), PEER_NODE | flag)
    found |= dict.fromkeys(pod_cidrs, OWN_PODS)
    found |= dict.fromkeys(map(Prefix.host, addresses), OWN_NODE)
    return _packed(found)


def missing(held: Mapping[bytes, bytes], wanted: Mapping[bytes, bytes]) -> dict[bytes, bytes]:
    """Entries to be added before anything is known to be ready; what is held stays as it is."""
    return {key: unready(value) for key, value in wanted.items() if key not in held}


def difference(held: Mapping[bytes, bytes], wanted: Mapping[bytes, bytes]) -> tuple[dict[bytes, bytes], list[bytes]]:
    """Entries to be written, and then keys to be deleted: an address is somebody's at any time."""
    return {key: value for key, value in wanted.items() if held.get(key) != value}, [k for k in held if k not in wanted]


def with_departed(before: Mapping[bytes, bytes], wanted: Mapping[bytes, bytes]) -> dict[bytes, bytes]:
    """What is wanted, and the blocks of pods that other nodes had before and nobody has now. Pods may run there still,
    and routes lead there: they are not ready, so in strict mode nothing leaves for them in plaintext."""
    found = _unpacked(wanted)
    blocks = {(block.bits, _leading(block, block.bits)) for block, flags in found.items() if flags & PODS}
    lengths = {bits for bits, _ in blocks}
    for block, flags in _unpacked(before).items():
        is_in_one = any((bits, _leading(block, bits)) in blocks for bits in lengths if bits <= block.bits)
        if flags & PEER_PODS and block not in found and not is_in_one:
            found[block] = PEER_PODS
    return _packed(found)


def fitting(wanted: Mapping[bytes, bytes], room: int) -> dict[bytes, bytes]:
    """No more than `room` entries that leave nothing in plaintext that `wanted` does not: blocks of other nodes' pods
    (and if there are too many of them, these nodes' addresses) make place for wider blocks around them, no wider than
    it takes, which are not ready."""
    if len(wanted) <= room:
        return dict(wanted)
    found = _unpacked(wanted)
    kept = OWN_PODS | OWN_NODE | PEER_NODE
    if sum(bool(flags & kept) for flags in found.values()) >= room:
        kept = OWN_PODS | OWN_NODE
    own = {block: flags for block, flags in found.items() if flags & kept}
    others = {block: flags for block, flags in found.items() if not flags & kept}
    narrow, wide = 0, 128  # of `narrow` bits they fit, of `wide` they do not
    while wide - narrow > 1:
        bits = (narrow + wide) // 2
        narrow, wide = (bits, wide) if len(_cut(others, bits)) + len(own) <= room else (narrow, bits)
    return _packed(_cut(others, narrow) | own)


def _cut(found: Mapping[Prefix, int], bits: int) -> dict[Prefix, int]:
    """Blocks of no more than so many bits; those that have become wider are not ready."""
    kept = {block: flags for block, flags in found.items() if block.bits <= bits}
    wider = {Prefix((_leading(b, bits) << (128 - bits)).to_bytes(16, "big"), bits) for b in found if b.bits > bits}
    return kept | dict.fromkeys(wider, PEER_PODS)


def _leading(block: Prefix, bits: int) -> int:
    return int.from_bytes(block.network, "big") >> (128 - bits)


def _packed(found: Mapping[Prefix, int]) -> dict[bytes, bytes]:
    """Wide blocks first."""
    ordered = sorted(found, key=lambda block: block.bits)
    return {KEY.pack(prefixlen=block.bits, address=block.network): VALUE.pack(flags=found[block]) for block in ordered}


def _unpacked(entries: Mapping[bytes, bytes]) -> dict[Prefix, int]:
    return {
        Prefix(key.address, key.prefixlen): VALUE.unpack(value).flags
        for key, value in ((KEY.unpack(key), value) for key, value in entries.items())
    }


def unready(value: bytes) -> bytes:
    """The same, said not to be ready."""
    flags = VALUE.unpack(value).flags
    return VALUE.pack(flags=flags & ~READY) if flags & READY else value

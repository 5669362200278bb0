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
    ordered = sorted(found, key=lambda block: block.bits)
    return {KEY.pack(prefixlen=block.bits, address=block.network): VALUE.pack(flags=found[block]) for block in ordered}


def missing(held: Mapping[bytes, bytes], wanted: Mapping[bytes, bytes]) -> dict[bytes, bytes]:
    """Entries to be added before anything is known to be ready; what is held stays as it is."""
    return {key: unready(value) for key, value in wanted.items() if key not in held}


def difference(held: Mapping[bytes, bytes], wanted: Mapping[bytes, bytes]) -> tuple[dict[bytes, bytes], list[bytes]]:
    """Entries to be written, and then keys to be deleted: an address is somebody's at any time."""
    return {key: value for key, value in wanted.items() if held.get(key) != value}, [k for k in held if k not in wanted]


def unready(value: bytes) -> bytes:
    """The same, said not to be ready."""
    flags = VALUE.unpack(value).flags
    return VALUE.pack(flags=flags & ~READY) if flags & READY else value

"""The kernel's WireGuard over generic netlink (linux/wireguard.h): messages of it. Pure but for GenericSocket."""

from __future__ import annotations

import socket
import struct
from collections.abc import Iterable, Iterator, Sequence

from agent.encryption.device import DeviceState, Endpoint, PeerChange, PeerState, Settings
from agent.endpoints.netlink import NLM_F_DUMP, Reply, Request, RouteSocket, attribute, attributes, number, text
from policies.address import V4_MAPPED, V4_MAPPED_BITS, Prefix, is_v4

NETLINK_GENERIC = 16
# linux/genetlink.h
_GENL_ID_CTRL, _CTRL_CMD_GETFAMILY, _CTRL_ATTR_FAMILY_ID, _CTRL_ATTR_FAMILY_NAME = 16, 3, 1, 2
_HEADER = struct.Struct("=BBxx")
# linux/wireguard.h
_FAMILY, _VERSION = "wireguard", 1
_GET_DEVICE, _SET_DEVICE = 0, 1
_IFNAME, _PRIVATE_KEY, _DEVICE_PUBLIC_KEY, _LISTEN_PORT, _FWMARK, _PEERS = 2, 3, 4, 6, 7, 8
_PUBLIC_KEY, _FLAGS, _ENDPOINT, _KEEPALIVE, _HANDSHAKE, _RX, _TX, _ALLOWED = 1, 3, 4, 5, 6, 7, 8, 9
_REMOVE_ME, _REPLACE_ALLOWED, _UPDATE_ONLY = 1, 2, 4
_IP_FAMILY, _IP_ADDRESS, _IP_BITS = 1, 2, 3
_NESTED = 0x8000

_V4, _V6 = struct.Struct("=H2s4s8x"), struct.Struct("=H2sI16sI")  # sockaddr_in, sockaddr_in6; ports in network order
_TIME = struct.Struct("=qq")
MESSAGE_BYTES = 1 << 14
"""Peers that go into one message: their attribute's length has 16 bits, and the kernel answers each message."""


class GenericSocket(RouteSocket):
    """As RouteSocket: to the namespace of the thread that makes it."""

    _family = NETLINK_GENERIC

    def wireguard(self) -> int:
        """Number of the family. Raises NetlinkError (ENOENT) where the kernel has no WireGuard."""
        body = _HEADER.pack(_CTRL_CMD_GETFAMILY, 1) + text(_CTRL_ATTR_FAMILY_NAME, _FAMILY)
        reply = self.request(Request(_GENL_ID_CTRL, 0, body, "look up the kernel's WireGuard"))[0]
        found = dict(attributes(reply.body[_HEADER.size :]))
        return int(struct.unpack_from("=H", found[_CTRL_ATTR_FAMILY_ID])[0])


def get(family: int, name: str) -> Request:
    body = _HEADER.pack(_GET_DEVICE, _VERSION) + text(_IFNAME, name)
    return Request(family, NLM_F_DUMP, body, f"read WireGuard device {name}")


def read(replies: Iterable[Reply]) -> DeviceState:
    """A peer with many addresses is told of in several messages."""
    state = DeviceState()
    for reply in replies:
        for kind, value in attributes(reply.body[_HEADER.size :]):
            if kind == _DEVICE_PUBLIC_KEY and any(value):
                state.public_key = value
            elif kind == _LISTEN_PORT:
                state.port = struct.unpack("=H", value)[0]
            elif kind == _FWMARK:
                state.mark = struct.unpack("=I", value)[0]
            elif kind == _PEERS:
                for _, peer in attributes(value):
                    _read_peer(state.peers, dict(attributes(peer)))
    return state


def _read_peer(peers: dict[bytes, PeerState], found: dict[int, bytes]) -> None:
    peer = peers.setdefault(found[_PUBLIC_KEY], PeerState())
    if _HANDSHAKE in found:
        seconds, rest = _TIME.unpack(found[_HANDSHAKE])
        peer.handshake_ns = seconds * 1_000_000_000 + rest
    if _KEEPALIVE in found:
        peer.keepalive_s = struct.unpack("=H", found[_KEEPALIVE])[0]
    if _RX in found:
        peer.received_bytes, peer.sent_bytes = (struct.unpack("=Q", found[kind])[0] for kind in (_RX, _TX))
    if _ENDPOINT in found:
        peer.endpoint = _read_endpoint(found[_ENDPOINT])
    peer.allowed |= {_read_prefix(dict(attributes(one))) for _, one in attributes(found.get(_ALLOWED, b""))}


def _read_endpoint(raw: bytes) -> Endpoint | None:
    family = int(struct.unpack_from("=H", raw)[0])
    if family == socket.AF_INET:
        _, port, address = _V4.unpack(raw)
        return Endpoint(V4_MAPPED + address, int.from_bytes(port, "big"))
    if family == socket.AF_INET6:
        _, port, _, address, _ = _V6.unpack(raw)
        return Endpoint(address, int.from_bytes(port, "big"))
    return None


def _read_prefix(found: dict[int, bytes]) -> Prefix:
    raw, bits = found[_IP_ADDRESS], found[_IP_BITS][0]
    return Prefix(V4_MAPPED + raw, V4_MAPPED_BITS + bits) if len(raw) == 4 else Prefix(raw, bits)


def configure(family: int, name: str, settings: Settings, changes: Sequence[PeerChange]) -> Iterator[Request]:
    """One message after the other, in order."""
    head = b""
    if settings.private_key is not None:
        head += attribute(_PRIVATE_KEY, settings.private_key.reveal())
    if settings.port is not None:
        head += attribute(_LISTEN_PORT, struct.pack("=H", settings.port))
    if settings.mark is not None:
        head += number(_FWMARK, settings.mark)
    if head:
        yield _set(family, name, head)
    batch: list[bytes] = []
    size = 0
    for change in changes:
        for peer in _peer(change):
            if size + len(peer) > MESSAGE_BYTES:
                yield _set(family, name, attribute(_PEERS | _NESTED, b"".join(batch)))
                batch, size = [], 0
            batch.append(peer)
            size += len(peer)
    if batch:
        yield _set(family, name, attribute(_PEERS | _NESTED, b"".join(batch)))


def _set(family: int, name: str, rest: bytes) -> Request:
    body = _HEADER.pack(_SET_DEVICE, _VERSION) + text(_IFNAME, name) + rest
    return Request(family, 0, body, f"configure WireGuard device {name}")


ALLOWED_AT_ONCE = 200


def _peer(change: PeerChange) -> Iterator[bytes]:
    """A peer with very many prefixes is named several times: the first time with what else there is of it."""
    flags = _REMOVE_ME * change.remove | _REPLACE_ALLOWED * change.replace | _UPDATE_ONLY * change.update_only
    rest = b""
    if change.endpoint is not None:
        rest += attribute(_ENDPOINT, _endpoint(change.endpoint))
    if change.keepalive_s is not None:
        rest += attribute(_KEEPALIVE, struct.pack("=H", change.keepalive_s))
    for start in range(0, max(len(change.allowed), 1), ALLOWED_AT_ONCE):
        piece = change.allowed[start : start + ALLOWED_AT_ONCE]
        if piece:
            rest += attribute(_ALLOWED | _NESTED, b"".join(map(_allowed, piece)))
        body = attribute(_PUBLIC_KEY, change.public_key) + number(_FLAGS, flags) + rest
        yield attribute(_NESTED, body)
        flags, rest = _UPDATE_ONLY, b""


def _endpoint(endpoint: Endpoint) -> bytes:
    port = endpoint.port.to_bytes(2, "big")
    if is_v4(endpoint.address):
        return _V4.pack(socket.AF_INET, port, endpoint.address[12:])
    return _V6.pack(socket.AF_INET6, port, 0, endpoint.address, 0)


def _allowed(prefix: Prefix) -> bytes:
    family, raw, bits = socket.AF_INET6, prefix.network, prefix.bits
    if prefix.is_v4:
        family, raw, bits = socket.AF_INET, raw[12:], bits - V4_MAPPED_BITS
    body = attribute(_IP_FAMILY, struct.pack("=H", family)) + attribute(_IP_ADDRESS, raw)
    return attribute(_NESTED, body + attribute(_IP_BITS, bytes([bits])))

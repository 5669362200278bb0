"""Sockets of the proxy, in the calling thread's network namespace. Transparent ones speak with addresses of others.

The datapath gives a pod's packets to the listening sockets as they are (bpf_sk_assign), so that the address they came
to is the resolver's. Answers to datagrams are sent as whole packets by raw sockets: a socket bound to the resolver's
address and port would take packets away from a resolver that runs on this node, or could not be bound beside it.
"""

from __future__ import annotations

import socket
import struct
from functools import lru_cache

import msgspec

from policies.address import format_address, is_v4

IP_TRANSPARENT, IP_RECVORIGDSTADDR = 19, 20  # linux/in.h
IPV6_TRANSPARENT, IPV6_RECVORIGDSTADDR = 75, 74  # linux/in6.h
LOOPBACK = {socket.AF_INET: "127.0.0.1", socket.AF_INET6: "::1"}
RECEIVE_BYTES = 1 << 20
BACKLOG = 512

_UDP = socket.IPPROTO_UDP
_V4 = struct.Struct("!BBHHHBBH4s4s")
_V6 = struct.Struct("!IHBB16s16s")
_HOPS = 64


class Marks(msgspec.Struct, frozen=True):
    """SO_MARK of what is sent on for a pod whose egress (ingress) is judged, and of what is answered. See bpf/abi.h."""

    from_egress: int
    from_ingress: int
    answers: int


def listener(kind: socket.SocketKind, family: socket.AddressFamily, port: int, mark: int) -> socket.socket:
    """On loopback. Raises OSError where the port is taken."""
    made = _transparent(kind, family, mark)
    try:
        if kind is socket.SOCK_DGRAM:
            level, option = (
                (socket.SOL_IP, IP_RECVORIGDSTADDR)
                if family is socket.AF_INET
                else (socket.IPPROTO_IPV6, IPV6_RECVORIGDSTADDR)
            )
            made.setsockopt(level, option, 1)
            made.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, RECEIVE_BYTES)
        else:
            made.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        made.bind((LOOPBACK[family], port))
        if kind is socket.SOCK_STREAM:
            made.listen(BACKLOG)
    except OSError:
        made.close()
        raise
    return made


def upstream(kind: socket.SocketKind, source: bytes, mark: int) -> socket.socket:
    """Speaks as `source` (16 bytes), from a port of the kernel's choice. Raises OSError."""
    made = _transparent(kind, socket.AF_INET if is_v4(source) else socket.AF_INET6, mark)
    try:
        made.bind((text(source), 0))
    except OSError:
        made.close()
        raise
    return made


def original(control: list[tuple[int, int, bytes]]) -> tuple[bytes, int] | None:
    """The address (16 bytes) and port a datagram was sent to."""
    for level, kind, data in control:
        if level == socket.SOL_IP and kind == IP_RECVORIGDSTADDR:
            return bytes(10) + b"\xff\xff" + data[4:8], data[2] << 8 | data[3]
        if level == socket.IPPROTO_IPV6 and kind == IPV6_RECVORIGDSTADDR:
            return data[8:24], data[2] << 8 | data[3]
    return None


@lru_cache(maxsize=8192)
def text(address: bytes) -> str:
    return format_address(address)


class Answering:
    """Sends datagrams from any address and port."""

    def __init__(self, mark: int) -> None:
        self._sockets = {}
        for v4, family in ((True, socket.AF_INET), (False, socket.AF_INET6)):
            made = socket.socket(family, socket.SOCK_RAW, socket.IPPROTO_RAW)  # receives nothing
            made.setblocking(False)
            made.setsockopt(socket.SOL_SOCKET, socket.SO_MARK, mark)
            self._sockets[v4] = made

    def send(self, source: tuple[bytes, int], destination: tuple[bytes, int], payload: bytes) -> None:
        """Addresses of 16 bytes. Raises OSError: EMSGSIZE where it does not fit the route's MTU."""
        packet = datagram(source, destination, payload)
        self._sockets[is_v4(source[0])].sendto(packet, (text(destination[0]), 0))

    def close(self) -> None:
        for made in self._sockets.values():
            made.close()


def datagram(source: tuple[bytes, int], destination: tuple[bytes, int], payload: bytes) -> bytes:
    """A whole UDP packet (RFC 768; pseudo headers of RFC 9293 and RFC 8200). The kernel fills in IPv4's checksum."""
    (from_address, from_port), (to_address, to_port) = source, destination
    length = 8 + len(payload)
    if is_v4(from_address):
        from_address, to_address = from_address[12:], to_address[12:]
        head = _V4.pack(0x45, 0, 20 + length, 0, 0, _HOPS, _UDP, 0, from_address, to_address)
    else:
        head = _V6.pack(6 << 28, length, _UDP, _HOPS, from_address, to_address)
    summed = from_address + to_address + struct.pack("!6H", 0, _UDP, length, from_port, to_port, length) + payload
    if len(payload) % 2:
        summed += b"\0"
    # The ones' complement sum of 16-bit words is the number modulo 2^16 - 1.
    checksum = 0xFFFF - int.from_bytes(summed, "big") % 0xFFFF
    return head + struct.pack("!4H", from_port, to_port, length, checksum) + payload


def _transparent(kind: socket.SocketKind, family: socket.AddressFamily, mark: int) -> socket.socket:
    made = socket.socket(family, kind)
    try:
        made.setblocking(False)
        if family is socket.AF_INET:
            made.setsockopt(socket.SOL_IP, IP_TRANSPARENT, 1)
        else:
            made.setsockopt(socket.IPPROTO_IPV6, IPV6_TRANSPARENT, 1)
            made.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY, 1)
        made.setsockopt(socket.SOL_SOCKET, socket.SO_MARK, mark)
    except OSError:
        made.close()
        raise
    return made

"""What passes between nodes that encrypt.

with Wire(network, ["p-n1"], blocks, nodes) as wire:
    ...
    assert wire.seen() == []

Look at the far ends of nodes' links: on their own devices, what is decrypted is seen as it comes in.
"""

from __future__ import annotations

import ctypes
import ipaddress
import socket
import struct
import threading
from collections.abc import Iterable

import rig

PORT = 51871
_ETH_P_ALL, _ARP, _IPV4, _IPV6 = 0x0003, 0x0806, 0x0800, 0x86DD
_ICMP, _ICMPV6, _UDP, _FRAGMENT, _UNREACHABLE = 1, 58, 17, 44, 3
_ND = range(130, 138)
_SO_RCVBUFFORCE, _SO_ATTACH_FILTER, _RECEIVE_BYTES = 33, 26, 1 << 24
_NOTHING = ctypes.create_string_buffer(struct.pack("=HBBI", 0x06, 0, 0, 0))
"""A socket filter of one instruction (linux/filter.h): return 0."""


class Wire:
    """Packets on links of a namespace, both ways, of pods (`blocks`), or between nodes (`nodes`: their addresses), that
    are none of: WireGuard, ARP, neighbour discovery. `encrypted`, `fragments`: how many were WireGuard's, and how many
    of these were pieces of one (nodes send each other nothing else of that size)."""

    def __init__(self, netns: rig.Netns, links: Iterable[str], blocks: Iterable[str], nodes: Iterable[str]) -> None:
        self.encrypted = self.fragments = 0
        self._blocks = [ipaddress.ip_network(block) for block in blocks]
        self._nodes = frozenset(map(ipaddress.ip_address, nodes))
        self._found: list[str] = []
        self._sockets = []
        for link in links:
            taken = netns.call(socket.socket, socket.AF_PACKET, socket.SOCK_RAW, socket.htons(_ETH_P_ALL))
            taken.setsockopt(socket.SOL_SOCKET, _SO_RCVBUFFORCE, _RECEIVE_BYTES)
            taken.bind((link, _ETH_P_ALL))
            taken.settimeout(0.05)
            self._sockets.append(taken)
        self._stop = threading.Event()
        self._threads = [threading.Thread(target=self._listen, args=(one,), daemon=True) for one in self._sockets]
        for thread in self._threads:
            thread.start()

    def __enter__(self) -> Wire:
        return self

    def __exit__(self, *_: object) -> None:
        self.seen()

    def seen(self) -> list[str]:
        """All there was until now, and no more."""
        for one in self._sockets:  # there may be no end of packets
            one.setsockopt(socket.SOL_SOCKET, _SO_ATTACH_FILTER, struct.pack("HP", 1, ctypes.addressof(_NOTHING)))
        self._stop.set()
        for thread in self._threads:
            thread.join()
        for one in self._sockets:
            one.close()
        self._sockets = []
        return self._found

    def _listen(self, taken: socket.socket) -> None:
        while True:
            try:
                frame = taken.recv(65535)
            except TimeoutError:
                if self._stop.is_set():
                    return
                continue
            if said := self._judge(frame):
                self._found.append(said)

    def _judge(self, frame: bytes) -> str:
        """What is wrong with it; empty: nothing."""
        (kind,) = struct.unpack_from("!H", frame, 12)
        if kind == _ARP:
            return ""
        if kind not in (_IPV4, _IPV6):
            return f"ethertype {kind:#06x}"
        v4 = kind == _IPV4
        source, destination = (
            ipaddress.ip_address(frame[at : at + (4 if v4 else 16)]) for at in ((26, 30) if v4 else (22, 38))
        )
        protocol = frame[23] if v4 else frame[20]
        at = 14 + (frame[14] & 15) * 4 if v4 else 54
        said = f"{source} → {destination} protocol {protocol}: {frame[at : at + 16].hex(' ')}"
        if any(address in block for address in (source, destination) for block in self._blocks):
            return said
        if not {source, destination} <= self._nodes:
            return ""
        if protocol == _ICMP and v4 and frame[at] == _UNREACHABLE and _is_wireguard(frame, at + 8):
            return ""  # nobody listens there (for now)
        if protocol == _FRAGMENT or (v4 and struct.unpack_from("!H", frame, 20)[0] & 0x1FFF):
            self.fragments += 1
            return ""
        if protocol == _UDP and struct.unpack_from("!HH", frame, at) == (PORT, PORT):
            self.encrypted += 1
            return ""
        return "" if protocol == _ICMPV6 and frame[at] in _ND else said


def _is_wireguard(frame: bytes, at: int) -> bool:
    """The IPv4 packet that begins there."""
    header = (frame[at] & 15) * 4
    return frame[at + 9] == _UDP and struct.unpack_from("!HH", frame, at + header) == (PORT, PORT)

"""Traffic between nodes that encrypt, and what of it is on a link."""

from __future__ import annotations

import socket
import struct
import threading
import time
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from typing import NamedTuple

import rig
from patience import SLOWER
from wireguard_nodes import PORT, EncryptedNode

ETH_P_ALL = 3
_V4, _V6, _ARP = 0x0800, 0x86DD, 0x0806
_UDP, _ICMPV6, _IGMP, _HOP_BY_HOP = 17, 58, 2, 0
EXCHANGE_S = 30.0 * SLOWER


class Frame(NamedTuple):
    """`kind`: wireguard | neighbour (ARP, neighbour and listener discovery, IGMP) | other. `payload`: of UDP."""

    kind: str
    source: str
    payload: bytes = b""


def read(frame: bytes) -> Frame:
    kind = struct.unpack_from("!H", frame, 12)[0]
    if kind == _ARP:
        return Frame("neighbour", "")
    if kind == _V4:
        header = (frame[14] & 15) * 4
        return _read(frame[23], socket.inet_ntop(socket.AF_INET, frame[26:30]), frame[14 + header :])
    if kind == _V6:
        protocol, rest = frame[20], frame[54:]
        if protocol == _HOP_BY_HOP:
            protocol, rest = rest[0], rest[8 + rest[1] * 8 :]
        return _read(protocol, socket.inet_ntop(socket.AF_INET6, frame[22:38]), rest)
    return Frame("other", "")


def _read(protocol: int, source: str, rest: bytes) -> Frame:
    if protocol == _UDP and PORT in struct.unpack_from("!HH", rest):
        return Frame("wireguard", source, rest[8:])
    if protocol == _IGMP or (protocol == _ICMPV6 and 130 <= rest[0] <= 143):  # router, neighbour, listener messages
        return Frame("neighbour", source)
    return Frame("other", source, rest)


def others(frames: Iterable[Frame]) -> list[Frame]:
    """Those that should not be there."""
    return [frame for frame in frames if frame.kind == "other"]


@contextmanager
def captured(node: rig.Netns, device: str) -> Iterator[Callable[[], list[Frame]]]:
    """All frames that pass a device, either way; asked for after the block, or within it."""
    frames: list[Frame] = []
    is_open = True

    def opened() -> socket.socket:
        made = socket.socket(socket.AF_PACKET, socket.SOCK_RAW, socket.htons(ETH_P_ALL))
        made.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 1 << 24)
        made.bind((device, ETH_P_ALL))
        made.setblocking(False)
        return made

    def taken() -> list[Frame]:
        while is_open:
            try:
                frames.append(read(tap.recv(1 << 16)))
            except BlockingIOError:
                break
        return frames

    with node.call(opened) as tap:
        yield taken
        taken()
        is_open = False


class Connection:
    """A TCP connection between two nodes' pods, for as long as the block lasts."""

    def __init__(self, client: EncryptedNode, server: EncryptedNode) -> None:
        family, address = socket.AF_INET, server.pods[0]
        listener = server.call(socket.create_server, (address, 0), family=family)
        listener.settimeout(EXCHANGE_S)
        self._ours = client.call(
            socket.create_connection, listener.getsockname()[:2], timeout=EXCHANGE_S, source_address=(client.pods[0], 0)
        )
        self._theirs, _ = listener.accept()
        self._theirs.settimeout(EXCHANGE_S)
        listener.close()
        self._count = 0

    def __enter__(self) -> Connection:
        return self

    def __exit__(self, *_: object) -> None:
        self._ours.close()
        self._theirs.close()

    def exchange(self) -> bool:
        """A byte there and one back."""
        self._count = (self._count + 1) % 256
        word = bytes([self._count])
        for sender, receiver in ((self._ours, self._theirs), (self._theirs, self._ours)):
            sender.sendall(word)
            if receiver.recv(1) != word:
                return False
        return True


class Stream:
    """Numbered datagrams one way, one every `every_s`; `gap_s`: the longest time in which none came."""

    def __init__(self, client: EncryptedNode, server: EncryptedNode, every_s: float = 0.005) -> None:
        self._server = server.call(socket.socket, socket.AF_INET, socket.SOCK_DGRAM)
        self._server.bind((server.pods[0], 0))
        self._server.settimeout(0.05)
        self._client = client.call(socket.socket, socket.AF_INET, socket.SOCK_DGRAM)
        self._client.bind((client.pods[0], 0))
        self._to = self._server.getsockname()
        self._every_s = every_s
        self._ended = threading.Event()
        self.sent = self.received = 0
        self.gap_s = 0.0

    def __enter__(self) -> Stream:
        self._threads = [threading.Thread(target=work) for work in (self._send, self._receive)]
        for thread in self._threads:
            thread.start()
        rig.wait_until(lambda: self.received, EXCHANGE_S, "the first datagram")
        return self

    def __exit__(self, *_: object) -> None:
        self._ended.set()
        for thread in self._threads:
            thread.join()
        self._server.close()
        self._client.close()

    def _send(self) -> None:
        while not self._ended.wait(self._every_s):
            try:
                self._client.sendto(b"x", self._to)
                self.sent += 1
            except OSError:  # no route, for as long as a device is made anew
                continue

    def _receive(self) -> None:
        last = 0.0
        while not self._ended.is_set():
            try:
                self._server.recv(16)
            except TimeoutError:
                continue
            now = time.monotonic()
            self.gap_s = max(self.gap_s, now - (last or now))
            last = now
            self.received += 1

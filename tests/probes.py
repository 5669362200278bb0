"""Small servers and clients inside network namespaces. Every call is bounded in time.

A probe's result: "ok" (the answer came), "refused" (told at once: RST, ABORT or an ICMP error), "timeout" (silence).
Servers answer each message with `LABEL SOURCE-ADDRESS SOURCE-PORT`, so a client learns who
answered and how it was seen.
"""

from __future__ import annotations

import errno
import os
import selectors
import socket
import struct
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Literal

from patience import SLOWER
from rig import Netns

Result = Literal["ok", "refused", "timeout"]
STREAM, DATAGRAM = socket.SOCK_STREAM, socket.SOCK_DGRAM
TIMEOUT_S = 30.0 * SLOWER
"""How long an answer that must come may take. Where none may come, a probe is given a time of its own."""
IPPROTO_SCTP = 132
_REFUSALS = {
    errno.ECONNREFUSED,
    errno.ECONNRESET,
    errno.EPIPE,
    errno.EHOSTUNREACH,
    errno.ENETUNREACH,
    errno.EACCES,
    errno.ENOPROTOOPT,
    errno.EPROTO,
}
_INIT, _INIT_ACK, _ABORT = 1, 2, 6


@dataclass(frozen=True)
class Answer:
    """What became of a probe. `label`: who answered; `seen_from`: the client's address as the server saw it."""

    result: Result
    label: str = ""
    seen_from: str = ""
    error: int = 0  # errno of a refusal

    def __bool__(self) -> bool:
        return self.result == "ok"


def _family(address: str) -> socket.AddressFamily:
    return socket.AF_INET6 if ":" in address else socket.AF_INET


def _judge(exchange: Callable[[], bytes]) -> Answer:
    """Run an exchange that returns a server's answer; sort out its errors."""
    try:
        words = exchange().decode().split()
    except TimeoutError:
        return Answer("timeout")
    except OSError as error:
        if error.errno not in _REFUSALS:
            raise
        return Answer("refused", error=error.errno or 0)
    if not words:
        return Answer("refused", error=errno.ECONNRESET)  # closed without an answer
    return Answer("ok", words[0], words[1])


class Connection:
    """A TCP connection or UDP flow that stays open, to see what becomes of it when policy changes."""

    def __init__(
        self, netns: Netns, kind: socket.SocketKind, address: str, port: int, source: tuple[str, int] | None = None
    ) -> None:
        self.socket = netns.call(socket.socket, _family(address), kind)
        try:
            if source:
                self.socket.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
                self.socket.bind(source)
            self.socket.settimeout(TIMEOUT_S)
            self.socket.connect((address, port))
        except OSError:
            self.socket.close()
            raise

    def exchange(self, timeout_s: float = TIMEOUT_S) -> Answer:
        """One message there and back."""

        def once() -> bytes:
            self.socket.settimeout(timeout_s)
            self.socket.send(b"probe\n")
            return self.socket.recv(200)

        return _judge(once)

    def __enter__(self) -> Connection:
        return self

    def __exit__(self, *_: object) -> None:
        self.socket.close()


def tcp(
    netns: Netns, address: str, port: int, timeout_s: float = TIMEOUT_S, source: tuple[str, int] | None = None
) -> Answer:
    """Connect, send, receive, close. With `source` from that address and port (0: any)."""
    return _one_shot(netns, socket.SOCK_STREAM, address, port, timeout_s, source)


def udp(
    netns: Netns, address: str, port: int, timeout_s: float = TIMEOUT_S, source: tuple[str, int] | None = None
) -> Answer:
    return _one_shot(netns, socket.SOCK_DGRAM, address, port, timeout_s, source)


def _one_shot(
    netns: Netns,
    kind: socket.SocketKind,
    address: str,
    port: int,
    timeout_s: float,
    source: tuple[str, int] | None,
) -> Answer:
    def exchange() -> bytes:
        with netns.call(socket.socket, _family(address), kind) as sock:
            if source:
                sock.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
                sock.bind(source)
            sock.settimeout(timeout_s)
            sock.connect((address, port))
            sock.send(b"probe\n")
            return sock.recv(200)

    return _judge(exchange)


def ping(netns: Netns, address: str, timeout_s: float = TIMEOUT_S, size: int = 8, source: str = "") -> Answer:
    """One ICMP echo of `size` bytes. "refused": an ICMP error came back."""
    v6 = _family(address) == socket.AF_INET6
    protocol = socket.IPPROTO_ICMPV6 if v6 else socket.IPPROTO_ICMP
    request, reply = (128, 129) if v6 else (8, 0)
    ident, payload = int.from_bytes(os.urandom(2), "big"), os.urandom(size)
    message = struct.pack(">BBHHH", request, 0, 0, ident, 1) + payload
    if not v6:
        message = message[:2] + _internet_checksum(message) + message[4:]

    def exchange() -> bytes:
        with netns.call(socket.socket, _family(address), socket.SOCK_RAW, protocol) as sock:
            sock.bind((source, 0))
            sock.connect((address, 0))
            sock.send(message)

            def is_reply(data: bytes) -> bytes | None:
                icmp = data if v6 else data[(data[0] & 15) * 4 :]
                mine = icmp[:1] == bytes([reply]) and icmp[4:6] == ident.to_bytes(2, "big") and icmp[8:] == payload
                return b"ping -" if mine else None

            return _receive_until(sock, is_reply, timeout_s)

    return _judge(exchange)


def sctp(
    netns: Netns, address: str, port: int, timeout_s: float = TIMEOUT_S, source: tuple[str, int] | None = None
) -> Answer:
    """Send an INIT by a raw socket and await INIT ACK (ok) or ABORT (refused): the kernel need not know SCTP."""
    source_address, source_port = source or ("", 20000 + int.from_bytes(os.urandom(2), "big") % 20000)
    tag = os.urandom(4)
    chunk = tag + struct.pack(">IHHI", 65536, 1, 1, 1)
    packet = _sctp_packet(source_port, port, bytes(4), _INIT, chunk)

    def exchange() -> bytes:
        with netns.call(socket.socket, _family(address), socket.SOCK_RAW, IPPROTO_SCTP) as sock:
            sock.bind((source_address, 0))
            sock.connect((address, 0))
            sock.send(packet)

            def is_reply(data: bytes) -> bytes | None:
                sctp_part = data if ":" in address else data[(data[0] & 15) * 4 :]
                ports = struct.unpack_from(">HH", sctp_part)
                if ports != (port, source_port) or sctp_part[4:8] != tag:
                    return None
                if sctp_part[12] == _ABORT:
                    raise ConnectionRefusedError(errno.ECONNREFUSED, "ABORT")
                return sctp_part[32:] if sctp_part[12] == _INIT_ACK else None

            return _receive_until(sock, is_reply, timeout_s)

    return _judge(exchange)


def _receive_until(sock: socket.socket, match: Callable[[bytes], bytes | None], timeout_s: float) -> bytes:
    deadline = time.monotonic() + timeout_s
    while (left := deadline - time.monotonic()) > 0:
        sock.settimeout(left)
        found = match(sock.recv(65535))
        if found is not None:
            return found
    raise TimeoutError


class Server:
    """Answers on one port of a namespace in a thread, until closed. TCP connections stay open for more messages.

    `kind`: "tcp", "udp" or "sctp" (INIT gets INIT ACK, nothing more). Port 0 takes a free one (not for SCTP).
    """

    def __init__(self, netns: Netns, kind: str, port: int = 0, label: str = "server", address: str = "::") -> None:
        self.label = label
        self._kind = kind
        self._selector = selectors.DefaultSelector()
        self._stop_read, self._stop_write = os.pipe()
        self._selector.register(self._stop_read, selectors.EVENT_READ)
        self.port = port
        if kind == "sctp":
            for family in (socket.AF_INET, socket.AF_INET6):
                self._watch(netns.call(socket.socket, family, socket.SOCK_RAW, IPPROTO_SCTP))
        else:
            type_ = socket.SOCK_STREAM if kind == "tcp" else socket.SOCK_DGRAM
            sock = netns.call(socket.socket, _family(address), type_)
            sock.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            if address == "::":
                sock.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY, 0)
            sock.bind((address, port))
            if kind == "tcp":
                sock.listen(128)
            self.port = sock.getsockname()[1]
            self._watch(sock, listening=kind == "tcp")
        self._thread = threading.Thread(target=self._serve, daemon=True)
        self._thread.start()

    def __enter__(self) -> Server:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        os.write(self._stop_write, b"x")
        self._thread.join()
        for key in list(self._selector.get_map().values()):
            if isinstance(key.fileobj, socket.socket):
                key.fileobj.close()
        self._selector.close()
        os.close(self._stop_read)
        os.close(self._stop_write)

    def _watch(self, sock: socket.socket, listening: bool = False) -> None:
        sock.setblocking(False)
        self._selector.register(sock, selectors.EVENT_READ, listening)

    def _serve(self) -> None:
        while True:
            for key, _ in self._selector.select():
                if not isinstance(key.fileobj, socket.socket):
                    return
                try:
                    self._answer(key.fileobj, key.data)
                except OSError:  # the client went away, or may not be answered
                    if self._kind == "tcp" and not key.data:
                        self._forget(key.fileobj)

    def _answer(self, sock: socket.socket, listening: bool) -> None:
        if listening:
            self._watch(sock.accept()[0])
        elif self._kind == "tcp":
            if not sock.recv(4096):
                self._forget(sock)
                return
            sock.send(self._greeting(sock.getpeername()))
        elif self._kind == "udp":
            _, source = sock.recvfrom(4096)
            sock.sendto(self._greeting(source), source)
        else:
            self._answer_init(sock)

    def _answer_init(self, sock: socket.socket) -> None:
        data, source = sock.recvfrom(65535)
        packet = data if sock.family == socket.AF_INET6 else data[(data[0] & 15) * 4 :]
        source_port, port = struct.unpack_from(">HH", packet)
        if port != self.port or packet[12] != _INIT:
            return
        chunk = os.urandom(4) + struct.pack(">IHHI", 65536, 1, 1, 1) + self._greeting((source[0], source_port))
        sock.sendto(_sctp_packet(port, source_port, packet[16:20], _INIT_ACK, chunk), (source[0], 0))

    def _forget(self, sock: socket.socket) -> None:
        self._selector.unregister(sock)
        sock.close()

    def _greeting(self, source: tuple[str, int]) -> bytes:
        return f"{self.label} {source[0].removeprefix('::ffff:')} {source[1]}".encode()


def _sctp_packet(source_port: int, port: int, tag: bytes, kind: int, chunk: bytes) -> bytes:
    """RFC 9260: common header (ports, tag, CRC32c in little-endian order) and one chunk."""
    header = struct.pack(">HH", source_port, port) + tag
    body = struct.pack(">BBH", kind, 0, 4 + len(chunk)) + chunk
    body += bytes(-len(body) % 4)
    return header + struct.pack("<I", crc32c(header + bytes(4) + body)) + body


def crc32c(data: bytes) -> int:
    crc = 0xFFFFFFFF
    for byte in data:
        crc ^= byte
        for _ in range(8):
            crc = crc >> 1 ^ (0x82F63B78 if crc & 1 else 0)
    return crc ^ 0xFFFFFFFF


def _internet_checksum(data: bytes) -> bytes:
    data += bytes(len(data) % 2)
    total = sum(struct.unpack(f">{len(data) // 2}H", data))
    while total >> 16:
        total = (total & 0xFFFF) + (total >> 16)
    return struct.pack(">H", ~total & 0xFFFF)

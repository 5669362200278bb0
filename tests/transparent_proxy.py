"""A proxy as the datapath expects it: it lets everything through and remembers it, in place of Envoy or the DNS proxy.

It listens on loopback in the node's namespace, takes connections and datagrams for any address, and sends on in the
originator's name, with the mark that says for which side it judges.
"""

from __future__ import annotations

import os
import selectors
import socket
import struct
import threading
from collections.abc import Callable
from dataclasses import dataclass

from rig import Netns

from agent.datapath import abi

NUMBERS = abi.load().constants
FAMILIES = (socket.AF_INET, socket.AF_INET6)
LOOPBACK = {socket.AF_INET: "127.0.0.1", socket.AF_INET6: "::1"}
TRANSPARENT = {socket.AF_INET: (socket.SOL_IP, 19), socket.AF_INET6: (socket.IPPROTO_IPV6, 75)}
ORIGINAL = {socket.AF_INET: (socket.SOL_IP, 20), socket.AF_INET6: (socket.IPPROTO_IPV6, 74)}  # IP(V6)_RECVORIGDSTADDR


@dataclass(frozen=True)
class Seen:
    """A connection or datagram: who sent it, and to whom. `port` is the destination's."""

    protocol: str
    source: str
    destination: str
    port: int


class TransparentProxy:
    """In a thread, until closed; then everything it had is reset. `ingress`: it judges for the receiver's side.
    `keeps_port`: what it sends on has the port of who asked, as well as the address."""

    def __init__(self, node: Netns, ingress: bool = False, keeps_port: bool = False) -> None:
        self.seen: list[Seen] = []
        self.refused: list[str] = []
        """Whom it asked by a datagram, and was told that nobody is there."""
        self._node = node
        self._keeps_port = keeps_port
        self._mark = NUMBERS.MARK_FROM_INGRESS if ingress else NUMBERS.MARK_FROM_EGRESS
        self._selector = selectors.DefaultSelector()
        self._stop_read, self._stop_write = os.pipe()
        self._selector.register(self._stop_read, selectors.EVENT_READ)
        self._connections: list[socket.socket] = []
        self._threads: list[threading.Thread] = []
        self._datagrams: dict[tuple[object, ...], socket.socket] = {}
        self.tcp_port, self.udp_port = self._listen(socket.SOCK_STREAM), self._listen(socket.SOCK_DGRAM)
        self._thread = threading.Thread(target=self._serve, daemon=True)
        self._thread.start()

    def __enter__(self) -> TransparentProxy:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        if not self._thread.is_alive():
            return
        os.write(self._stop_write, b"x")
        self._thread.join()
        for key in list(self._selector.get_map().values()):
            if isinstance(key.fileobj, socket.socket):
                _reset(key.fileobj)
        for one in self._connections:
            if one.fileno() >= 0:
                _abort(one)
        for one in self._datagrams.values():
            _abort(one)
        for thread in self._threads:
            thread.join()
        self._selector.close()
        os.close(self._stop_read)
        os.close(self._stop_write)

    def take(self) -> list[Seen]:
        """What came since the last time."""
        taken, self.seen = self.seen, []
        return taken

    def _socket(self, family: int, kind: int, mark: int, address: tuple[str, int]) -> socket.socket:
        made = self._node.call(socket.socket, family, kind)
        made.setsockopt(*TRANSPARENT[socket.AddressFamily(family)], 1)
        made.setsockopt(socket.SOL_SOCKET, socket.SO_MARK, mark)
        if mark == NUMBERS.MARK_PROXY_ANSWERS:
            made.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        made.bind(address)
        return made

    def _listen(self, kind: int) -> int:
        port = 0
        for family in FAMILIES:
            sock = self._socket(family, kind, NUMBERS.MARK_PROXY_ANSWERS, (LOOPBACK[family], port))
            port = sock.getsockname()[1]
            if kind == socket.SOCK_STREAM:
                sock.listen(64)
                self._watch(sock, self._accept)
            else:
                sock.setsockopt(*ORIGINAL[family], 1)
                self._watch(sock, self._receive)
        return port

    def _watch(self, sock: socket.socket, act: Callable[[socket.socket], None]) -> None:
        self._selector.register(sock, selectors.EVENT_READ, act)

    def _serve(self) -> None:
        while True:
            for key, _ in self._selector.select():
                if key.data is None:
                    return
                if isinstance(key.fileobj, socket.socket) and key.fileobj.fileno() >= 0:
                    key.data(key.fileobj)

    def _start(self, target: Callable[..., None], *arguments: object) -> None:
        thread = threading.Thread(target=target, args=arguments, daemon=True)
        self._threads.append(thread)
        thread.start()

    # ---- TCP

    def _accept(self, listener: socket.socket) -> None:
        near, (source, source_port, *_) = listener.accept()
        destination, port, *_ = near.getsockname()
        self.seen.append(Seen("tcp", source, destination, port))
        self._start(self._connect, near, (source, source_port * self._keeps_port), destination, port)

    def _connect(self, near: socket.socket, source: tuple[str, int], destination: str, port: int) -> None:
        """In a thread of its own: the far end may not answer, and what it sends may pass by this proxy again."""
        near.settimeout(None)  # for both threads, before there are two: none may find the other's change half done
        far = self._socket(near.family, socket.SOCK_STREAM, self._mark, source)
        self._connections += (near, far)
        try:
            far.connect((destination, port))
        except OSError:  # or this proxy is closed
            _reset(near)
            far.close()
            return
        back = threading.Thread(target=_relay, args=(far, near), daemon=True)
        back.start()
        _relay(near, far)
        back.join()
        near.close()
        far.close()

    # ---- UDP

    def _receive(self, listener: socket.socket) -> None:
        data, messages, _, source = listener.recvmsg(2000, 200)
        family = listener.family
        raw = messages[0][2]
        (port,) = struct.unpack_from("!H", raw, 2)
        destination = socket.inet_ntop(family, raw[4:8] if family == socket.AF_INET else raw[8:24])
        self.seen.append(Seen("udp", source[0], destination, port))
        key = (*source[:2], destination, port)
        if key not in self._datagrams:
            far = self._socket(family, socket.SOCK_DGRAM, self._mark, (source[0], source[1] * self._keeps_port))
            far.connect((destination, port))
            near = self._socket(family, socket.SOCK_DGRAM, NUMBERS.MARK_PROXY_ANSWERS, (destination, port))
            near.connect(source)  # or what it sends on to a server of this node would come to this socket
            self._datagrams[key] = far
            self._start(self._answer, far, near)
        self._datagrams[key].send(data)

    def _answer(self, far: socket.socket, near: socket.socket) -> None:
        with near, far:
            while True:
                try:
                    data = far.recv(65536)
                except ConnectionRefusedError:  # as an ICMP error says
                    self.refused.append(far.getpeername()[0])
                    continue
                if not data:
                    return
                near.send(data)


def _reset(sock: socket.socket) -> None:
    """Close, so that the other end is told at once."""
    sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
    sock.close()


def _abort(sock: socket.socket) -> None:
    """Whoever waits on it wakes up; it is closed there. Of TCP the other end is reset."""
    try:
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
        sock.shutdown(socket.SHUT_RDWR)
    except OSError:
        return


def _relay(source: socket.socket, to: socket.socket) -> None:
    """Until one of the two ends; then both do."""
    try:
        while data := source.recv(65536):
            to.sendall(data)
        to.shutdown(socket.SHUT_WR)
    except OSError:
        for one in (source, to):
            try:
                one.shutdown(socket.SHUT_RDWR)
            except OSError:
                continue

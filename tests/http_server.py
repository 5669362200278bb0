"""An HTTP/1.1 server that notes what reaches it, byte for byte of the head. Knows keep-alive, chunks, a long stream
(/stream) and WebSockets as far as to send back what comes. Threads; sockets are made inside a namespace."""

from __future__ import annotations

import itertools
import socket
import ssl
import threading
from contextlib import ExitStack, suppress
from dataclasses import dataclass, field

from rig import Netns


@dataclass(frozen=True)
class Seen:
    """One request as it came. `peer`: address and port of who sent it."""

    method: str
    target: str
    headers: tuple[tuple[str, str], ...]
    body: bytes
    peer: tuple[str, int]
    server_name: str = ""

    def header(self, name: str) -> list[str]:
        return [value for known, value in self.headers if known == name]


@dataclass
class Server:
    """Listens at an address and port inside a namespace; `tls` makes it speak TLS."""

    netns: Netns
    address: str
    port: int
    tls: ssl.SSLContext | None = None
    seen: list[Seen] = field(default_factory=list)

    def __post_init__(self) -> None:
        family = socket.AF_INET6 if ":" in self.address else socket.AF_INET
        self._listener = self.netns.call(
            lambda: socket.create_server((self.address, self.port), family=family, backlog=128)
        )
        self._over = threading.Event()
        self._open: set[socket.socket] = set()
        self.accepted = 0
        self._next_chunk = threading.Condition()
        self._chunks = 0
        threading.Thread(target=self._accept, daemon=True).start()

    def __enter__(self) -> Server:
        return self

    def __exit__(self, *_: object) -> None:
        self._over.set()
        with suppress(OSError):
            self._listener.shutdown(socket.SHUT_RDWR)
        self._listener.close()
        for connection in list(self._open):
            with suppress(OSError):
                connection.shutdown(socket.SHUT_RDWR)

    @property
    def open(self) -> int:
        """Connections that nobody has closed."""
        return len(self._open)

    def take(self) -> list[Seen]:
        """What came since the last time."""
        seen, self.seen[:] = list(self.seen), []
        return seen

    def finish(self) -> None:
        """Answers nothing more on connections there are; what has been sent to them is still read."""
        for connection in list(self._open):
            with suppress(OSError):
                connection.shutdown(socket.SHUT_WR)

    def send_chunk(self) -> None:
        """One more chunk on every stream."""
        with self._next_chunk:
            self._chunks += 1
            self._next_chunk.notify_all()

    def _accept(self) -> None:
        while not self._over.is_set():
            try:
                connection, peer = self._listener.accept()
            except OSError:
                return
            self.accepted += 1
            threading.Thread(target=self._serve, args=(connection, peer[:2]), daemon=True).start()

    def _serve(self, connection: socket.socket, peer: tuple[str, int]) -> None:
        name = [""]
        with suppress(OSError, ValueError), ExitStack() as stack:
            stack.enter_context(connection)
            self._opened(stack, connection)
            if self.tls:
                self.tls.sni_callback = lambda _socket, asked, _context: name.__setitem__(0, asked or "")
                connection = stack.enter_context(
                    self.tls.wrap_socket(connection, server_side=True, do_handshake_on_connect=False)
                )
                self._opened(stack, connection)
                connection.do_handshake()
            reader = connection.makefile("rb")
            while line := reader.readline():
                method, target, version = line.decode("latin-1").split(maxsplit=2)
                headers = []
                while (text := reader.readline().decode("latin-1").rstrip("\r\n")) != "":
                    key, _, value = text.partition(":")
                    headers.append((key.lower(), value.strip()))
                given = dict(headers)
                body = _body(reader, given)
                self.seen.append(Seen(method, target, tuple(headers), body, peer, name[0]))
                if given.get("upgrade", "").lower() == "websocket":
                    self._echo(connection)
                    return
                if target.startswith("/stream"):
                    self._stream(connection)
                    return
                connection.sendall(b"HTTP/1.1 200 OK\r\ncontent-length: 2\r\nserver: tests\r\n\r\nok")
                if given.get("connection", "").lower() == "close" or version.startswith("HTTP/1.0"):
                    return

    def _opened(self, stack: ExitStack, connection: socket.socket) -> None:
        self._open.add(connection)
        stack.callback(self._open.discard, connection)

    def _echo(self, connection: socket.socket) -> None:
        connection.sendall(b"HTTP/1.1 101 Switching Protocols\r\nconnection: upgrade\r\nupgrade: websocket\r\n\r\n")
        while data := connection.recv(4096):
            connection.sendall(data)

    def _stream(self, connection: socket.socket) -> None:
        connection.sendall(b"HTTP/1.1 200 OK\r\ntransfer-encoding: chunked\r\n\r\n")
        for sent in itertools.count(self._chunks):
            with self._next_chunk:
                while self._chunks <= sent and not self._over.is_set():
                    self._next_chunk.wait(0.1)
            if self._over.is_set():
                return
            connection.sendall(b"4\r\nmore\r\n")


def _body(reader: object, headers: dict[str, str]) -> bytes:
    read, readline = reader.read, reader.readline  # type: ignore[attr-defined]
    if "chunked" in headers.get("transfer-encoding", ""):
        body = b""
        while size := int(readline().split(b";")[0], 16):
            body += read(size)
            readline()
        while readline() not in (b"\r\n", b""):
            pass
        return body
    content: bytes = read(int(headers.get("content-length", "0")))
    return content

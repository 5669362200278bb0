"""An HTTP/1.1 client that sends whatever bytes it is given, and reads answers one by one."""

from __future__ import annotations

import socket
from dataclasses import dataclass


@dataclass(frozen=True)
class Answer:
    """`status` 0: the connection ended without one."""

    status: int
    headers: tuple[tuple[str, str], ...] = ()
    body: bytes = b""

    def header(self, name: str) -> str | None:
        return dict(self.headers).get(name)


class Connection:
    def __init__(self, sock: socket.socket) -> None:
        self.socket = sock
        self._reader = sock.makefile("rb")

    def __enter__(self) -> Connection:
        return self

    def __exit__(self, *_: object) -> None:
        self._reader.close()
        self.socket.close()

    def get(self, path: str, *headers: str, method: str = "GET", host: str = "example.com") -> Answer:
        lines = [f"{method} {path} HTTP/1.1", f"Host: {host}", *headers]
        return self.send("".join(f"{line}\r\n" for line in lines).encode("latin-1") + b"\r\n", method=method)

    def send(self, content: bytes, *, method: str = "GET") -> Answer:
        try:
            self.socket.sendall(content)
        except (BrokenPipeError, ConnectionResetError):
            return Answer(0)
        return self.answer(method=method)

    def answer(self, *, method: str = "GET", body: bool = True) -> Answer:
        """The next one. Raises TimeoutError if none comes."""
        try:
            line = self._reader.readline()
        except ConnectionResetError:
            return Answer(0)
        if not line:
            return Answer(0)
        status = int(line.split()[1])
        headers = []
        while (text := self._reader.readline().decode("latin-1").rstrip("\r\n")) != "":
            name, _, value = text.partition(":")
            headers.append((name.lower(), value.strip()))
        given = dict(headers)
        content = b""
        if body and status != 101 and method != "HEAD":
            if "content-length" in given:
                content = self._reader.read(int(given["content-length"]))
            elif "chunked" in given.get("transfer-encoding", ""):
                while chunk := self.chunk():
                    content += chunk
        return Answer(status, tuple(headers), content)

    def chunk(self) -> bytes:
        size = int(self._reader.readline().split(b";")[0] or b"0", 16)
        content = self._reader.read(size)
        self._reader.readline()
        return content

    def read(self, size: int) -> bytes:
        return self._reader.read(size)

    def ends(self) -> bool:
        """Whether the other end closes it, without another word, while this one waits."""
        try:
            return self._reader.peek(1) == b""
        except TimeoutError:
            return False
        except ConnectionResetError:
            return True

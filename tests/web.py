"""HTTP between pods of tests: a server that notes what reaches it, and clients on connections that last."""

from __future__ import annotations

import http.client
import json
import socket
import threading
from collections.abc import Mapping
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

import msgspec
from patience import SLOWER
from rig import Netns

TIMEOUT_S = 30.0 * SLOWER
"""Whoever waits for silence says for how long."""


class Seen(msgspec.Struct, frozen=True):
    """One request as it reached the server. `source`: the address it came from."""

    method: str
    path: str
    headers: dict[str, str]  # names in lower case
    source: str


class WebServer:
    """Answers every request with 200 and what it saw, as JSON; on both families. With the path /stream it sends a line
    whenever `push` is called, until the client goes."""

    def __init__(self, netns: Netns, port: int, label: str = "web") -> None:
        self.seen: list[Seen] = []
        self.label = label
        self._streams: list[Any] = []
        self._started = threading.Event()
        self._server = netns.call(_Server, ("::", port), self._handler())
        self._thread = threading.Thread(target=self._server.serve_forever, args=(0.02,), daemon=True)
        self._thread.start()

    def __enter__(self) -> WebServer:
        return self

    def __exit__(self, *_: object) -> None:
        self._server.shutdown()
        self._thread.join()
        self._server.server_close()

    def paths(self) -> list[str]:
        return [seen.path for seen in self.seen]

    def push(self) -> None:
        """A line on every stream. Waits for the first of them."""
        assert self._started.wait(TIMEOUT_S), "no stream was opened"
        for stream in self._streams:
            stream.write(b"line\n")
            stream.flush()

    def _handler(self) -> type[BaseHTTPRequestHandler]:
        server = self

        class Handler(BaseHTTPRequestHandler):
            protocol_version = "HTTP/1.1"
            timeout = 60

            def answer(self) -> None:
                length = int(self.headers.get("content-length") or 0)
                self.rfile.read(length)
                headers = {name.lower(): value for name, value in self.headers.items()}
                source = self.client_address[0].removeprefix("::ffff:")
                seen = Seen(self.command, self.path, headers, source)
                server.seen.append(seen)
                if self.path == "/stream":
                    self._stream()
                    return
                body = json.dumps({"server": server.label, **msgspec.structs.asdict(seen)}).encode()
                self.send_response(200)
                self.send_header("content-length", str(len(body)))
                self.end_headers()
                self.wfile.write(b"" if self.command == "HEAD" else body)

            def _stream(self) -> None:
                self.send_response(200)
                self.send_header("connection", "close")
                self.end_headers()
                server._streams.append(self.wfile)
                server._started.set()
                self.close_connection = True
                self.rfile.read(1)  # until the client goes

            do_GET = do_POST = do_PUT = do_DELETE = do_HEAD = do_OPTIONS = do_PATCH = answer  # noqa: N815

            def log_message(self, *_: object) -> None:
                pass

        return Handler


class _Server(ThreadingHTTPServer):
    address_family = socket.AF_INET6
    daemon_threads = True
    request_queue_size = 128

    def server_bind(self) -> None:
        self.socket.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY, 0)
        super().server_bind()

    def handle_error(self, *_: object) -> None:
        """Clients that go are no errors."""


class Reply(msgspec.Struct, frozen=True):
    """`status` 0: the connection was refused, reset or timed out; `body` says how."""

    status: int
    body: str = ""
    headers: dict[str, str] = {}

    def json(self) -> dict[str, Any]:
        return dict(json.loads(self.body))


class Client:
    """One connection from a namespace; `get` again and again on it. `source_port` 0: any."""

    def __init__(
        self, netns: Netns, address: str, port: int, timeout_s: float = TIMEOUT_S, source_port: int = 0
    ) -> None:
        self._connection = http.client.HTTPConnection(address, port, timeout=timeout_s)
        family = socket.AF_INET6 if ":" in address else socket.AF_INET

        def connect() -> socket.socket:
            made = socket.socket(family, socket.SOCK_STREAM)
            made.settimeout(timeout_s)
            try:
                if source_port:
                    made.bind(("", source_port))
                made.connect((address, port))
            except OSError:
                made.close()
                raise
            return made

        self._connection.sock = netns.call(connect)
        self.source: str
        self.source_port: int
        self.source, self.source_port = self._connection.sock.getsockname()[:2]

    def __enter__(self) -> Client:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        self._connection.close()

    def request(self, method: str, path: str, headers: Mapping[str, str] | None = None, body: str = "") -> Reply:
        if self._connection.sock is None:
            return Reply(0, "closed")
        try:
            self._connection.request(method, path, body or None, dict(headers or {}))
            answer = self._connection.getresponse()
            text = answer.read().decode()
            return Reply(answer.status, text, {name.lower(): value for name, value in answer.getheaders()})
        except (OSError, http.client.HTTPException) as error:
            self._connection.close()
            return Reply(0, type(error).__name__)

    def get(self, path: str, **headers: str) -> Reply:
        return self.request("GET", path, headers)

    def ask(self, path: str) -> None:
        """Without waiting for the answer."""
        self._connection.request("GET", path)

    def answer(self) -> int:
        """The status of what was asked; retransmissions are waited for."""
        found = self._connection.getresponse()
        found.read()
        return found.status

    def open_stream(self) -> Any:
        """GET /stream; the answer, from which lines are read."""
        self._connection.request("GET", "/stream")
        return self._connection.getresponse()


def fetch(
    netns: Netns, address: str, port: int, path: str = "/", method: str = "GET", *, timeout_s: float = TIMEOUT_S,
    **headers: str,
) -> Reply:  # fmt: skip
    """On a connection of its own."""
    try:
        with Client(netns, address, port, timeout_s) as client:
            return client.request(method, path, headers)
    except OSError as error:
        return Reply(0, type(error).__name__)

"""Envoy asked for its figures, over its admin socket."""

from __future__ import annotations

import http.client
import socket
from pathlib import Path

import msgspec

TIMEOUT_S = 30.0


class Unreachable(Exception):
    """Envoy does not answer at its admin socket."""


class EnvoyView(msgspec.Struct, frozen=True):
    """Listeners: with workers, still being warmed. `heap_bytes`: allocated."""

    version: str
    uptime_s: int
    listeners: int
    warming: int
    connections: int
    heap_bytes: int


class _Connection(http.client.HTTPConnection):
    def __init__(self, path: Path, timeout_s: float) -> None:
        super().__init__("localhost", timeout=timeout_s)
        self._at = path

    def connect(self) -> None:
        self.sock = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        self.sock.settimeout(self.timeout)
        self.sock.connect(str(self._at))


def ask(path: Path, what: str, timeout_s: float = TIMEOUT_S) -> bytes:
    """GET `what` of the admin interface whose socket is at `path`. Raises Unreachable."""
    connection = _Connection(path, timeout_s)
    try:
        connection.request("GET", what)
        answer = connection.getresponse()
        content = answer.read()
    except (OSError, http.client.HTTPException) as error:
        raise Unreachable(f"Envoy does not answer at {path}: {error}") from error
    finally:
        connection.close()
    if answer.status != 200:
        raise Unreachable(f"Envoy answers {what} with {answer.status}: {content[:200].decode(errors='replace')}")
    return content


def view(path: Path, timeout_s: float = TIMEOUT_S) -> EnvoyView:
    """Raises Unreachable."""
    figures = stats(path, timeout_s)
    info = msgspec.json.decode(ask(path, "/server_info", timeout_s))
    return EnvoyView(
        version=str(info["version"]).split("/")[1],
        uptime_s=figures.get("server.uptime", 0),
        listeners=figures.get("listener_manager.total_listeners_active", 0),
        warming=figures.get("listener_manager.total_listeners_warming", 0),
        connections=figures.get("http.l7.downstream_cx_active", 0),
        heap_bytes=figures.get("server.memory_allocated", 0),
    )


def stats(path: Path, timeout_s: float = TIMEOUT_S) -> dict[str, int]:
    """Counters and gauges by name. Raises Unreachable."""
    pairs = (line.partition(": ") for line in ask(path, "/stats?type=All", timeout_s).decode().splitlines())
    return {name: int(value) for name, _, value in pairs if value.isdigit()}

"""What a real Envoy logs of requests, ordinary and hostile: one record each, whatever a client sends."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
from envoy_at import CLIENT_V4, SERVER_V4, EnvoyPath
from http_client import Connection
from http_server import Server

from l7proxy.records import Http, L7Record
from policies.l7 import L7, HttpRule

ANY = HttpRule("", "/public(?:/.*)?")
PORT = 80


@pytest.fixture(scope="module")
def path(root: None) -> Iterator[EnvoyPath]:
    with EnvoyPath(log=True) as path:
        path.serve({PORT: frozenset({L7(http=frozenset({ANY}))})})
        with Server(path.server, SERVER_V4, PORT):
            yield path


def raw(line: bytes, *headers: bytes) -> bytes:
    return b"\r\n".join((line, b"Host: web.shop", b"Connection: close", *headers)) + b"\r\n\r\n"


def logged(path: EnvoyPath, content: bytes) -> L7Record:
    """The record of one request on a connection of its own."""
    before = len(path.log.records)
    with Connection(path.connect(PORT)) as connection:
        source_port = connection.socket.getsockname()[1]
        connection.send(content)
    record = path.log.of_port(PORT, before + 1)[before]
    assert (record.source, record.source_port) == (CLIENT_V4, source_port)
    assert (record.destination, record.destination_port, record.direction) == (SERVER_V4, PORT, "egress")
    return record


# what is sent → method, path, status, denied
ROWS: list[tuple[bytes, str, str, int, bool]] = [
    (raw(b"GET /public/a?x=y HTTP/1.1"), "GET", "/public/a?x=y", 200, False),
    (raw(b"GET /private HTTP/1.1"), "GET", "/private", 403, True),
    (raw(b"PROPFIND /private HTTP/1.1"), "PROPFIND", "/private", 403, True),
    (raw(b"GET /public/../private HTTP/1.1"), "GET", "/private", 403, True),
    (raw(b"GET /private?\xff\xfe HTTP/1.1"), "", "", 400, True),
    (raw(b"GET /public%2f.. HTTP/1.1"), "GET", "/public/..", 400, True),
    (raw(b"GET /private HTTP/1.1", b"X-Forwarded-For: 6.6.6.6"), "GET", "/private", 403, True),
    (b"\x16\x03\x01 no HTTP\r\n\r\n", "", "", 400, True),
]


@pytest.mark.parametrize(
    ("content", "method", "target", "status", "denied"), ROWS, ids=[str(row[0])[:40] for row in ROWS]
)
def test_a_request_is_logged_with_what_became_of_it(
    path: EnvoyPath, content: bytes, method: str, target: str, status: int, denied: bool
) -> None:
    record = logged(path, content)
    assert isinstance(record.l7, Http)
    assert record.denied is denied
    assert (record.l7.method, record.l7.path, record.l7.status) == (method, target, status)


def test_requests_of_one_connection_are_logged_one_by_one(path: EnvoyPath) -> None:
    before = len(path.log.records)
    with Connection(path.connect(PORT)) as connection:
        assert [connection.get(target).status for target in ("/public/1", "/no", "/public/2")] == [200, 403, 200]
    records = path.log.of_port(PORT, before + 3)[before:]
    assert [(r.l7.path, r.denied) for r in records if isinstance(r.l7, Http)] == [
        ("/public/1", False),
        ("/no", True),
        ("/public/2", False),
    ]
    assert all(r.l7.latency_ns > 0 for r in records)

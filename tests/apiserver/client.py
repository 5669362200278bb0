"""Plain HTTP to an API server: what a test asks by hand, apart from the client under test."""

from __future__ import annotations

import http.client
import json
import ssl
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any
from urllib.parse import urlsplit

import msgspec

TIMEOUT_S = 20.0
JSON = "application/json"


class Answer(msgspec.Struct, frozen=True):
    code: int
    headers: Mapping[str, str]  # names in lower case
    body: bytes

    def json(self) -> Any:
        return json.loads(self.body)


class Client:
    """One connection that lasts, opened at the first question. For one thread."""

    def __init__(self, url: str, token: str | None = None, authority: bytes | None = None) -> None:
        self._url, self._token = urlsplit(url), token
        self._tls = ssl.create_default_context(cadata=authority.decode()) if authority else None
        self._connection: http.client.HTTPConnection | None = None

    def __enter__(self) -> Client:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        if self._connection is not None:
            self._connection.close()
            self._connection = None

    def ask(
        self, method: str, path: str, body: Any = None, *, content_type: str = JSON, expect: int | None = None
    ) -> Answer:
        """`body`: bytes, or what is sent as JSON. With `expect`, another status is an AssertionError. Raises OSError
        and http.client.HTTPException."""
        if self._connection is None:
            self._connection = self._open()
        try:
            response = self._request(self._connection, method, path, body, content_type)
            headers = {name.lower(): value for name, value in response.getheaders()}
            answer = Answer(response.status, headers, response.read())
        except (OSError, http.client.HTTPException):
            self.close()
            raise
        if expect is not None:
            assert answer.code == expect, f"{method} {path}: {answer.code} {answer.body.decode()}"
        return answer

    @contextmanager
    def watch(self, path: str) -> Iterator[Watching]:
        """On a connection of its own."""
        connection = self._open()
        try:
            yield Watching(self._request(connection, "GET", path, None, JSON))
        finally:
            connection.close()

    def _open(self) -> http.client.HTTPConnection:
        host, port = self._url.hostname or "", self._url.port
        if self._tls is not None:
            return http.client.HTTPSConnection(host, port, context=self._tls, timeout=TIMEOUT_S)
        return http.client.HTTPConnection(host, port, timeout=TIMEOUT_S)

    def _request(
        self, connection: http.client.HTTPConnection, method: str, path: str, body: Any, content_type: str
    ) -> http.client.HTTPResponse:
        sent = body if body is None or isinstance(body, bytes) else json.dumps(body).encode()
        headers = {"Accept": JSON, "User-Agent": "by-hand/1"}
        if sent is not None:
            headers["Content-Type"] = content_type
        if self._token is not None:
            headers["Authorization"] = f"Bearer {self._token}"
        connection.request(method, path, body=sent, headers=headers)
        return connection.getresponse()


class Watching:
    """Events as they come."""

    def __init__(self, response: http.client.HTTPResponse) -> None:
        self.code = response.status
        self._response = response

    def __iter__(self) -> Iterator[dict[str, Any]]:
        """Until the server ends it. Raises OSError, also if nothing comes for TIMEOUT_S."""
        while line := self._response.readline():
            yield json.loads(line)

    def next(self) -> dict[str, Any]:
        """Raises AssertionError if the server ended it instead."""
        line = self._response.readline()
        assert line, "the watch ended"
        event: dict[str, Any] = json.loads(line)
        return event

    def read(self) -> bytes:
        return self._response.read()

"""The API server by HTTP: bytes in, bytes out. Every wait has an end."""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncGenerator, AsyncIterator, Mapping
from contextlib import asynccontextmanager
from typing import Any

import aiohttp
import msgspec

from agent import log as logs
from agent.kube.credentials import Access, Load, NoCredentials, Tls, credentials
from agent.kube.errors import ApiServerError, ApiUnreachable, refusal
from agent.kube.sockets import Sockets

MERGE_PATCH = "application/merge-patch+json"

RELOAD_S = 60.0
"""Credentials are read again after so long, as tokens rotate."""
REFUSED_S = 5.0
"""And at once if they are refused, but for that not more often than this."""
PAGE = 500
MAX_LINE_BYTES = 64 << 20
"""etcd takes objects of 1.5 MB; what goes on without an end is no event."""

Query = Mapping[str, str]

log = logs.get("kube")


class Timeouts(msgspec.Struct, frozen=True):
    connect_s: float = 5.0
    read_s: float = 30.0  # between two pieces of an answer
    whole_s: float = 120.0  # for an answer
    stall_s: float = 150.0  # a watch says nothing; an API server sends a bookmark every minute


class Page(msgspec.Struct, frozen=True):
    """A part of a list. `resource_version` is that of the whole list."""

    items: list[msgspec.Raw]
    resource_version: str
    last: bool


class _ListMeta(msgspec.Struct, rename="camel"):
    resource_version: str = ""
    continue_: str = msgspec.field(default="", name="continue")


class _List(msgspec.Struct):
    metadata: _ListMeta
    items: list[msgspec.Raw] | None = None


_LISTS = msgspec.json.Decoder(_List)


class ApiClient:
    """Use on one event loop; `close` at the end. Paths are those of the API ("/api/v1/nodes").

    All methods raise ApiServerError for an answer that refuses, ApiUnreachable where there is none. Nothing is tried
    twice but what was refused for its credentials (401), which are then read again.

    `unreachable_since_s`: when (CLOCK_MONOTONIC) requests began to fail, or the server to answer 5xx; None: it serves.
    """

    def __init__(self, load: Load | None = None, *, kubeconfig: str = "", timeouts: Timeouts = Timeouts()) -> None:  # noqa: B008
        self.unreachable_since_s: float | None = None
        self._load = load or credentials(kubeconfig)
        self._timeouts = timeouts
        self._access: Access | None = None
        self._loaded_s = 0.0
        self._refused_s = -REFUSED_S
        self._loading = asyncio.Lock()
        self._session: aiohttp.ClientSession | None = None
        self._session_tls: Tls | None = None
        self._sockets = Sockets()

    async def close(self) -> None:
        """Returns when the last connection is closed: the loop may end then."""
        session, self._session = self._session, None
        sockets, self._sockets = self._sockets, Sockets()
        if session is not None:
            await session.close()
            await sockets.end()

    # ---- requests

    async def get(self, path: str, query: Query | None = None) -> bytes:
        return await self._body("GET", path, query)

    async def pages(self, path: str, query: Query | None = None, *, limit: int = PAGE) -> AsyncGenerator[Page, None]:
        """A whole list, as it was at one moment. Where it takes so long that the server forgets that moment, the error
        is `expired`: start again."""
        asked = dict(query or {}, limit=str(limit))
        while True:
            body = await self._body("GET", path, asked)
            try:
                page = _LISTS.decode(body)
            except (msgspec.DecodeError, UnicodeDecodeError, RecursionError) as error:
                raise ApiUnreachable(f"GET {path}: the answer is no list: {error}") from error
            asked["continue"] = page.metadata.continue_
            yield Page(page.items or [], page.metadata.resource_version, not page.metadata.continue_)
            if not page.metadata.continue_:
                return

    async def watch(self, path: str, query: Query | None = None) -> AsyncGenerator[bytes, None]:
        """Lines, each an event. Ends when the server ends it; raises ApiUnreachable where it breaks off or stalls.

        To be iterated under contextlib.aclosing, so that its connection ends when the iteration does.
        """
        asked = dict(query or {}, watch="true")
        times = aiohttp.ClientTimeout(
            total=None, sock_connect=self._timeouts.connect_s, sock_read=self._timeouts.stall_s
        )
        async with self._answer("GET", path, asked, times=times) as answer:
            begun: list[bytes] = []  # pieces of a line
            size = 0
            async for piece in answer.content.iter_any():
                first, *others = piece.split(b"\n")
                begun.append(first)
                size += len(first)
                for other in others:
                    if size:
                        yield b"".join(begun)
                    begun, size = [other], len(other)
                if size > MAX_LINE_BYTES:
                    raise ApiUnreachable(f"GET {path}: an event of more than {MAX_LINE_BYTES >> 20} MiB")

    async def create(self, path: str, body: bytes, query: Query | None = None) -> bytes:
        """POST to a collection: the object as it was created."""
        return await self._body("POST", path, query, body)

    async def update(self, path: str, body: bytes, query: Query | None = None) -> bytes:
        """PUT: with a metadata.resourceVersion, refused (409) where the object has changed since."""
        return await self._body("PUT", path, query, body)

    async def patch(self, path: str, body: bytes, query: Query | None = None) -> bytes:
        """A merge patch (RFC 7396)."""
        return await self._body("PATCH", path, query, body, MERGE_PATCH)

    async def delete(self, path: str, *, uid: str = "", resource_version: str = "") -> bytes:
        """Given `uid` and `resource_version`, refused (409) where the object is another by now."""
        wanted = {"uid": uid, "resourceVersion": resource_version}
        options: dict[str, Any] = {"apiVersion": "v1", "kind": "DeleteOptions"}
        if preconditions := {name: value for name, value in wanted.items() if value}:
            options["preconditions"] = preconditions
        return await self._body("DELETE", path, None, msgspec.json.encode(options))

    # ---- HTTP

    async def _body(
        self, method: str, path: str, query: Query | None, body: bytes | None = None, content_type: str = ""
    ) -> bytes:
        wait = self._timeouts
        times = aiohttp.ClientTimeout(total=wait.whole_s, sock_connect=wait.connect_s, sock_read=wait.read_s)
        async with self._answer(method, path, query or {}, body, content_type, times=times) as answer:
            return await answer.read()

    @asynccontextmanager
    async def _answer(  # what a request is made of
        self,
        method: str,
        path: str,
        query: Query,
        body: bytes | None = None,
        content_type: str = "",
        *,
        times: aiohttp.ClientTimeout,
    ) -> AsyncIterator[aiohttp.ClientResponse]:
        what = f"{method} {path}"
        try:
            for first in (True, False):
                session, access = await self._connected()
                async with session.request(
                    method,
                    access.server + path,
                    params=query,
                    data=body,
                    headers=_headers(access, content_type or "application/json" if body is not None else ""),
                    timeout=times,
                    proxy=access.proxy or None,
                    server_hostname=access.tls.server_name or None,
                    allow_redirects=False,
                ) as answer:
                    self._heard(answer.status)
                    if answer.status == 401 and first and await self._renewed(access):
                        continue
                    if answer.status >= 300:
                        text = await answer.read()
                        raise refusal(what, answer.status, text, answer.headers.get("Retry-After", ""))
                    yield answer
                    return
        except (aiohttp.ClientError, TimeoutError, OSError, NoCredentials) as error:
            reason = str(error) or type(error).__name__
            self._unheard(reason)
            raise ApiUnreachable(f"{what}: {reason}") from error

    def _heard(self, status: int) -> None:
        if status >= 500:
            self._unheard(f"it answers with status {status}")
        elif self.unreachable_since_s is not None:
            away_s = time.monotonic() - self.unreachable_since_s
            log.info("the API server answers again", away_s=round(away_s, 1))
            self.unreachable_since_s = None

    def _unheard(self, reason: str) -> None:
        if self.unreachable_since_s is None:
            self.unreachable_since_s = time.monotonic()
            log.warning("the API server cannot be reached", reason=reason)

    async def _connected(self) -> tuple[aiohttp.ClientSession, Access]:
        """Connections and credentials to use now. Raises NoCredentials, OSError."""
        async with self._loading:
            now_s = time.monotonic()
            if self._access is None or now_s - self._loaded_s > RELOAD_S:
                self._access, self._loaded_s = await self._load(False), now_s
            access = self._access
            if self._session is None or self._session_tls != access.tls:
                await self.close()  # watches come back by the new session
                connector = aiohttp.TCPConnector(
                    ssl=access.tls.context(), limit=0, keepalive_timeout=60.0, socket_factory=self._sockets.make
                )
                self._session = aiohttp.ClientSession(connector=connector, cookie_jar=aiohttp.DummyCookieJar())
                self._session_tls = access.tls
            return self._session, access

    async def _renewed(self, refused: Access) -> bool:
        """Whether there are other credentials than those that were refused. Raises NoCredentials."""
        async with self._loading:
            now_s = time.monotonic()
            if self._access == refused and now_s - self._refused_s >= REFUSED_S:
                self._access, self._refused_s = await self._load(True), now_s
            return self._access != refused


def _headers(access: Access, content_type: str) -> dict[str, str]:
    """Uncompressed: on a node's own network it takes longer to unpack lists than to have them sent."""
    headers = {"Accept": "application/json", "Accept-Encoding": "identity", "User-Agent": "gatehouse"}
    if access.authorization:
        headers["Authorization"] = access.authorization
    if content_type:
        headers["Content-Type"] = content_type
    return headers


__all__ = ["ApiClient", "ApiServerError", "ApiUnreachable", "Page", "Timeouts"]

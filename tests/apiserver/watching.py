"""Watches: what happened since a version, then what happens."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Callable, Mapping

import msgspec
from aiohttp import web

from apiserver.errors import Refused, expired
from apiserver.faults import Faults, Rule, send_reset
from apiserver.listing import number
from apiserver.selectors import Selector
from apiserver.store import Collection, Entry, Event, Store, entry
from apiserver.writes import head

DEFAULT_TIMEOUT_S = 1800
_TRUE = ("true", "1", "True")


class Watch:
    """One that is open. `end`, `wake` and `bookmark` may be called from any thread."""

    def __init__(
        self, store: Store, faults: Faults, collection: Collection, version: str, selector: Selector, rule: Rule | None
    ) -> None:
        self.resource = collection.resource
        self._store, self._faults, self._collection, self._rule = store, faults, collection, rule
        self._selector = selector
        self._head = head(self.resource, version)
        self._kind = (self.resource.api_version(version), self.resource.kind)
        self._loop = asyncio.get_running_loop()
        self._woken = asyncio.Event()
        self._position = 0
        self._sent = 0
        self._bookmark_asked = False
        self._ending = False
        self._last_word: Refused | None = None  # told at the end

    def wake(self) -> None:
        if not self._woken.is_set():
            self._loop.call_soon_threadsafe(self._woken.set)

    def bookmark(self) -> None:
        self._bookmark_asked = True
        self.wake()

    def end(self, error: Refused | None = None) -> None:
        self._last_word, self._ending = error, True
        self.wake()

    async def serve(self, request: web.Request, bookmark_every_s: float) -> web.StreamResponse:
        """Raises Refused before the first byte, if the start is too old and is to be told by a status."""
        query = request.query
        first = self._begin(query)
        response = web.StreamResponse(headers={"Content-Type": "application/json"})
        response.enable_chunked_encoding()
        await response.prepare(request)
        self._collection.wakes.add(self.wake)
        try:
            if first:
                await self._write(request, response, first)
            await self._follow(request, response, bookmark_every_s if query.get("allowWatchBookmarks") in _TRUE else 0)
        except ConnectionResetError:
            return response  # the client has gone
        finally:
            self._collection.wakes.discard(self.wake)
        return response

    def _begin(self, query: Mapping[str, str]) -> bytes:
        """Sets the position; what is sent at once. Raises Refused (400, 410, 422)."""
        asked = number(query, "resourceVersion")
        initial = query.get("sendInitialEvents") in _TRUE
        if initial and query.get("resourceVersionMatch") != "NotOlderThan":
            raise Refused(422, "Invalid", "sendInitialEvents requires setting resourceVersionMatch to NotOlderThan")
        marks = query.get("allowWatchBookmarks") in _TRUE
        with self._store.lock:
            if asked and not initial:
                self._position = asked
                if self._faults.gone_as_status:
                    self._collection.since(asked)
                return b""
            self._position = self._store.version
            entries = self._collection.at(self._position)
        if query.get("sendInitialEvents") in ("false", "0"):
            return b""
        lines = [self._line("ADDED", each) for each in entries if self._takes(each)]
        return b"".join(lines) + (self._bookmark({"k8s.io/initial-events-end": "true"}) if marks else b"")

    async def _follow(self, request: web.Request, response: web.StreamResponse, every_s: float) -> None:
        now = self._loop.time()
        until = now + number(request.query, "timeoutSeconds", DEFAULT_TIMEOUT_S)
        marked = now
        while True:
            self._woken.clear()
            if self._ending:
                if self._last_word is not None:
                    await self._write(request, response, self._error(self._last_word))
                return
            stalled = self.resource.plural in self._faults.stalled
            if not stalled:
                lines, error = self._news()
                timed_out = self._loop.time() >= until
                if every_s and (timed_out or self._bookmark_asked or self._loop.time() >= marked + every_s):
                    lines += self._bookmark()
                    marked, self._bookmark_asked = self._loop.time(), False
                if lines:
                    await self._write(request, response, lines)
                if error or timed_out:
                    return
            wait_s = min(until, marked + every_s if every_s else until) - self._loop.time()
            await _wait(self._woken, None if stalled else max(wait_s, 0.0))

    def _news(self) -> tuple[bytes, bool]:
        """Lines to send, and whether they end with an error."""
        with self._store.lock:
            try:
                events = self._collection.since(self._position)
            except Refused as gone:
                return self._error(gone), True
            self._position = max(self._store.version, self._position)
        return b"".join([line for event in events if (line := self._change(event))]), False

    def _change(self, event: Event) -> bytes:
        """As the selector sees it: what leaves it is deleted, what enters it is added."""
        is_in = event.type != "DELETED" and self._takes(event.entry)
        was_in = event.old is not None and self._takes(event.old)
        if is_in:
            return self._line("MODIFIED" if was_in else "ADDED", event.entry)
        if not was_in:
            return b""
        if event.type == "DELETED":
            return self._line("DELETED", event.entry)
        assert event.old is not None
        return self._line("DELETED", entry(event.old.namespace, event.old.name, event.old.read(), event.version))

    def _takes(self, each: Entry) -> bool:
        return self._selector(each.namespace, each.name, each.node, each.labels)

    def _line(self, kind: str, each: Entry) -> bytes:
        return b'{"type":"%s","object":%s%s}\n' % (kind.encode(), self._head, each.rest)

    def _bookmark(self, annotations: Mapping[str, str] | None = None) -> bytes:
        metadata: dict[str, object] = {"resourceVersion": str(self._position)}
        if annotations:
            metadata["annotations"] = annotations
        about = {"apiVersion": self._kind[0], "kind": self._kind[1], "metadata": metadata}
        return msgspec.json.encode({"type": "BOOKMARK", "object": about}) + b"\n"

    @staticmethod
    def _error(refused: Refused) -> bytes:
        return msgspec.json.encode({"type": "ERROR", "object": refused.status}) + b"\n"

    async def _write(self, request: web.Request, response: web.StreamResponse, data: bytes) -> None:
        self._sent += len(data)
        if self._rule is not None and 0 <= self._rule.reset_after < self._sent:
            assert request.transport is not None
            send_reset(request.transport.get_extra_info("socket"))
            request.transport.abort()
            raise ConnectionResetError
        if self._rule is not None and self._rule.bytes_per_s:
            await dribble(response, data, self._rule.bytes_per_s)
        else:
            await response.write(data)


async def dribble(response: web.StreamResponse, data: bytes, bytes_per_s: int) -> None:
    step = max(bytes_per_s // 20, 1)
    for start in range(0, len(data), step):
        await response.write(data[start : start + step])
        await asyncio.sleep(step / bytes_per_s)


async def _wait(event: asyncio.Event, seconds: float | None) -> None:
    try:
        async with asyncio.timeout(seconds):
            await event.wait()
    except TimeoutError:
        return


class Watches:
    """All that are open."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._open: set[Watch] = set()

    def add(self, watch: Watch) -> None:
        with self._lock:
            self._open.add(watch)

    def discard(self, watch: Watch) -> None:
        with self._lock:
            self._open.discard(watch)

    def each(self, does: Callable[[Watch], None], resources: tuple[str, ...] = ()) -> int:
        """How many it was done to. `resources`: plurals; none for all."""
        with self._lock:
            chosen = [watch for watch in self._open if not resources or watch.resource.plural in resources]
        for watch in chosen:
            does(watch)
        return len(chosen)


def gone() -> Refused:
    return expired("The resourceVersion for the provided watch is too old.")

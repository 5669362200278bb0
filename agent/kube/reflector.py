"""Follows one resource at the API server: a list in pages, then a watch from where the list was, for as long as the
server remembers that moment.

Requests never become a storm. A list, which costs the server most, is asked for again only after a delay that grows
until a watch has lasted; a watch after one that grows until an event comes. Time is that of the event loop, which no
setting of the clock moves.
"""

from __future__ import annotations

import asyncio
import random
import time
from contextlib import aclosing

import msgspec

from agent import log as logs
from agent.kube import text
from agent.kube.backoff import Backoff
from agent.kube.client import ApiClient
from agent.kube.discovery import Discovery
from agent.kube.errors import ApiServerError, ApiUnreachable, refusal
from agent.kube.inbox import Inbox
from agent.kube.replica import Replica
from agent.kube.resources import Resource

AT_ONCE = 100
"""Events, after which others get their turn."""

log = logs.get("kube")


class Timings(msgspec.Struct, frozen=True):
    """In seconds."""

    watch_s: tuple[float, float] = (300.0, 600.0)  # how long a watch is asked for: any time between
    lasting_s: float = 10.0  # a watch of this age shows that a list was worth it
    first_delay_s: float = 0.5
    most_delay_s: float = 30.0
    absent_s: float = 120.0  # until looking again for a custom resource that the cluster does not have
    doubt_s: float = 10.0  # until looking again for one it had: a server that starts may not know yet


class Reflector:
    """`settled` is set once all there is has been told, or it is known that nothing can be had.

    `synced_s`: when (CLOCK_MONOTONIC) it was last known to be up to date; `error`: what is wrong now.
    """

    def __init__(
        self, client: ApiClient, discovery: Discovery, resource: Resource, inbox: Inbox, timings: Timings
    ) -> None:
        self.resource = resource
        self.replica = Replica(resource, inbox.push)
        self.settled = asyncio.Event()
        self.synced_s: float | None = None
        self.error = ""
        self._client = client
        self._discovery = discovery
        self._inbox = inbox
        self._timings = timings
        self._lists = Backoff(timings.first_delay_s, timings.most_delay_s)
        self._watches = Backoff(timings.first_delay_s, timings.most_delay_s)
        self._version = "" if resource.discovered else resource.versions[0]
        self.place = ""  # resourceVersion from which to watch; "": list first
        self._absences = 0
        self._retell = False

    def relist(self) -> None:
        """Tell of everything again, once the present watch is over; until then it is not settled."""
        self._retell = True
        self.settled.clear()

    async def run(self) -> None:
        while True:
            try:
                delay_s = await self._follow()
            except ApiServerError as error:
                delay_s = self._refused(error)
            except ApiUnreachable as error:
                delay_s = self._unreachable(str(error))
            await asyncio.sleep(delay_s)

    async def _follow(self) -> float:
        """One list or watch, to its end; how long to wait before the next."""
        if not self._version and not await self._locate():
            return self._timings.doubt_s if self.replica.seen else self._timings.absent_s * random.uniform(0.75, 1.25)  # noqa: S311
        if not self.place or self._retell:
            await self._list()
        began_s = time.monotonic()
        await self._watch()
        # The server ends a watch when its time is up; one that ends each at once is to be left alone.
        return 0.0 if time.monotonic() - began_s >= 1.0 else self._watches.delay_s()

    # ---- failures

    def _refused(self, error: ApiServerError) -> float:
        if error.status == 404 and self.resource.discovered:
            self._version = ""  # the definition is gone, or has other versions
        if error.expired:
            self.place = ""
            return self._lists.delay_s(error.retry_after_s)
        if error.status in (403, 404) and not self.resource.essential:
            self._settle()
        if error.message != self.error and error.status < 500 and error.status != 429:
            log.warning("the API server refuses", resource=self.resource.key, reason=error.message)
        self.error = error.message
        return self._backoff().delay_s(error.retry_after_s)

    def _unreachable(self, message: str) -> float:
        log.debug("out of touch with the API server", resource=self.resource.key, reason=message)
        self.error = message
        return self._backoff().delay_s()

    def _backoff(self) -> Backoff:
        return self._watches if self.place else self._lists

    def _well(self) -> None:
        self.error = ""
        self.synced_s = time.monotonic()

    def _settle(self) -> None:
        self.settled.set()
        self._inbox.wake()

    # ---- where

    async def _locate(self) -> bool:
        """Whether the cluster has the resource. What was known of it is given up only when it is missing twice."""
        found = await self._discovery.version(self.resource)
        if found is not None:
            self._absences = 0
            self._version = self.replica.version = found
            self.place = ""
            return True
        self._absences += 1
        self._well()
        if self._absences > 1 or not self.replica.seen:
            self.replica.begin()
            self.replica.end("")
            self._settle()
        return False

    # ---- lists

    async def _list(self) -> None:
        path, version = self.resource.path(self._version), ""
        retell = self._retell
        self.replica.begin(retell=retell)
        whole = False
        try:
            async with aclosing(self._client.pages(path, self.resource.query)) as pages:
                async for page in pages:
                    version, whole = page.resource_version, page.last
                    for item in page.items:
                        self.replica.item(text.head(item), item)
                    await self._inbox.room()
        except text.UNREADABLE as error:
            raise ApiUnreachable(f"GET {path}: an object that is none: {error}") from error
        finally:
            if not whole:
                self.replica.abandon()
        self.replica.end(version)
        self.place = version
        self._retell &= not retell
        self._well()
        self._settle()

    # ---- watches

    async def _watch(self) -> None:
        path = self.resource.path(self._version)
        query = {
            **self.resource.query,
            "resourceVersion": self.place,
            "allowWatchBookmarks": "true",
            "timeoutSeconds": str(max(1, round(random.uniform(*self._timings.watch_s)))),  # noqa: S311
        }
        began_s, count = time.monotonic(), 0
        try:
            async with aclosing(self._client.watch(path, query)) as lines:
                async for line in lines:
                    self._take(path, line)
                    self._well()
                    self._watches.reset()
                    if time.monotonic() - began_s > self._timings.lasting_s:
                        self._lists.reset()
                    count += 1
                    if count % AT_ONCE == 0:
                        await asyncio.sleep(0)
        except text.UNREADABLE as error:
            raise ApiUnreachable(f"WATCH {path}: an event that is none: {error}") from error

    def _take(self, path: str, line: bytes) -> None:
        event = text.event(line)
        if event.type == "ERROR":
            raise refusal(f"WATCH {path}", 0, bytes(event.object))
        if event.type == "BOOKMARK":
            self._advance(text.bookmark(event.object))
            return
        head = text.head(event.object)
        if event.type in ("ADDED", "MODIFIED"):
            self.replica.put(head, event.object)
        elif event.type == "DELETED":
            self.replica.remove(head)
        self._advance(head.metadata.resource_version)

    def _advance(self, version: str) -> None:
        if version and not text.older(version, self.place):
            self.place = version

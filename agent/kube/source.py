"""The objects of a cluster, from its API server: batches of changes, as soon as it tells of them.

What was seen last is kept on disk. A start without the server goes on from there; when the server is back, what changed
meanwhile arrives as one difference, in batches small enough not to hold up what happens then.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator, Callable, Sequence
from pathlib import Path

import msgspec

from agent import log as logs
from agent.kube import text
from agent.kube.cache import Cache, Row
from agent.kube.client import ApiClient
from agent.kube.discovery import Discovery
from agent.kube.inbox import Inbox
from agent.kube.intake import Intake
from agent.kube.reflector import Reflector, Timings
from agent.kube.replica import Seen
from agent.kube.resources import watched
from agent.objects import Problem
from agent.sources.source import Batch
from policies.model import ObjectRef

DATABASE = "objects.db"
BATCH = 500
"""Objects in a batch at most."""
BATCH_S = 0.02
"""And no more are taken in once it has taken this long."""
BREATH = 50
"""Objects read at the start, after which others get their turn."""
RENEW_S = 60.0

log = logs.get("kube")


class ResourceStatus(msgspec.Struct, frozen=True):
    """`synced_ago_s`: since when nothing was heard of it; None: not in this run. `error`: "" where all is well.
    `version`: resourceVersion up to which the server has told; "": it is to be listed."""

    resource: str
    objects: int
    synced_ago_s: float | None
    error: str
    version: str


class SourceStatus(msgspec.Struct, frozen=True):
    """`unreachable_s`: for how long the API server has not answered; None: it does. `waiting`: updates to take in."""

    unreachable_s: float | None
    from_disk: bool
    waiting: int
    resources: tuple[ResourceStatus, ...]
    problem: str = ""


class KubernetesSource:
    """A Source (agent.sources.source). The client stays its owner's to close.

    `from_disk`: what is in force is what was known before this run, as not everything has been had of the server yet.
    `own_told`: called where the server has told of this node's NodeEndpoints, whose endpoints are left out of batches.
    """

    def __init__(  # what a cluster's objects depend on
        self,
        client: ApiClient,
        node: str,
        state_dir: Path,
        *,
        secret_namespaces: Sequence[str] = (),
        api_wait_s: float = 10.0,
        timings: Timings = Timings(),  # noqa: B008  # immutable
    ) -> None:
        self.from_disk = False
        self.own_told: Callable[[], None] = lambda: None
        self._client = client
        self._api_wait_s = api_wait_s
        self._inbox = Inbox()
        self._cache = Cache(state_dir / DATABASE, node)
        self._whole: frozenset[str] = frozenset()  # resources that the cache was said to have
        discovery = Discovery(client)
        resources = watched(node, secret_namespaces)
        self._reflectors = {r.key: Reflector(client, discovery, r, self._inbox, timings) for r in resources}
        self._tasks: list[asyncio.Task[None]] = []
        self._shown: list[Problem] = []
        self._own = next(r.file("", node) for r in resources if r.kind == "NodeEndpoints")
        self._intake = Intake(self._cache, self._own)

    # ---- the source

    async def initial(self) -> Batch:
        """Everything there is now, or, where the server does not answer in time, was when it last did. Without
        anything on disk it waits: nobody is to start from an empty world."""
        received_ns = time.monotonic_ns()
        enough = await self._load()
        self._tasks = [
            asyncio.create_task(reflector.run(), name=f"watch {key}") for key, reflector in self._reflectors.items()
        ]
        for task in self._tasks:
            task.add_done_callback(lambda _: self._inbox.wake())
        deadline_s = time.monotonic() + self._api_wait_s if enough else float("inf")
        while not self._synced():
            left_s = deadline_s - time.monotonic()
            if left_s <= 0:
                self.from_disk = True
                log.warning("the API server does not answer: starting with what is on disk")
                break
            await self._wait(min(left_s, 1.0))
            self._check()
            await self._absorb_all()
        await self._absorb_all()
        self._note_whole()
        batch = self._settle(received_ns)
        self._shown = batch.problems
        self._tasks.append(asyncio.create_task(self._renew(), name="renew the cache"))
        return batch

    async def watch(self) -> AsyncIterator[Batch]:
        """A batch for each burst of events that changes something."""
        while True:
            received_ns = await self._inbox.some()
            self._check()
            self._absorb(BATCH, BATCH_S)
            if not len(self._inbox):
                self._note_whole()
            batch = self._settle(received_ns)
            if batch.changes or batch.problems != self._shown:
                self._shown = batch.problems
                yield batch
            await asyncio.sleep(0)

    def unread(self) -> bool:
        """Whether something may have changed that was not taken in yet."""
        return len(self._inbox) > 0

    def close(self) -> None:
        for task in self._tasks:
            task.cancel()
        self._cache.close()

    def observe(self, raw: bytes) -> None:
        """An object that this agent itself created or changed, as the server answered: it comes with the next batch,
        before the watch tells of it. Raises msgspec.DecodeError where it is none."""
        head = text.head(raw)
        reflector = self._of(head.kind, head.metadata.namespace)
        if reflector is not None:
            reflector.replica.observe(head, raw)

    def seen(self, ref: ObjectRef) -> Seen | None:
        """Which version of an object was seen last: what preconditions of a write are made of."""
        reflector = self._of(ref.kind, ref.namespace)
        if reflector is None:
            return None
        return reflector.replica.seen.get(reflector.resource.file(ref.namespace, ref.name))

    def status(self) -> SourceStatus:
        now_s = time.monotonic()
        since_s = self._client.unreachable_since_s
        return SourceStatus(
            None if since_s is None else now_s - since_s,
            self.from_disk,
            len(self._inbox),
            tuple(
                ResourceStatus(key, len(r.replica.seen), _ago(now_s, r.synced_s), r.error, r.place)
                for key, r in self._reflectors.items()
            ),
            self._cache.problem,
        )

    # ---- the start

    async def _load(self) -> bool:
        """What is on disk; whether it is enough to start from."""
        if self._cache.put_aside is not None:
            log.warning("objects on disk cannot be read and were put aside", file=str(self._cache.put_aside))
        complete = self._cache.complete()
        for count, row in enumerate(self._cache.rows()):
            self._recall(row)
            if count % BREATH == 0:
                await asyncio.sleep(0)
        self._whole = complete & self._reflectors.keys()
        needed = {key for key, reflector in self._reflectors.items() if reflector.resource.essential}
        return not self._cache.problem and needed <= complete

    def _recall(self, row: Row) -> None:
        reflector = self._reflectors.get(row.resource)
        if reflector is None:
            self._cache.remove(row.file)  # it is not watched any more
        else:
            reflector.replica.seen[row.file] = self._intake.recall(row)

    def _check(self) -> None:
        """Raises what ended a task that should not end: whoever follows is not to take silence for peace."""
        for task in self._tasks:
            if task.done() and not task.cancelled():
                task.result()

    def _synced(self) -> bool:
        return all(reflector.settled.is_set() for reflector in self._reflectors.values())

    async def _wait(self, most_s: float) -> None:
        """Until there is something to take in, or it is time to look again."""
        try:
            async with asyncio.timeout(most_s):
                await self._inbox.some()
        except TimeoutError:
            pass

    # ---- taking in

    async def _absorb_all(self) -> None:
        """Take in what waits, while more is being fetched."""
        while len(self._inbox):
            self._absorb(BREATH, BATCH_S)
            await asyncio.sleep(0)

    def _absorb(self, most: int, most_s: float) -> None:
        """Take in what waits, as far as there is time."""
        until_s = time.monotonic() + most_s
        for _ in range(most):
            update = self._inbox.pop()
            if update is None:
                return
            if update.file == self._own:
                self.own_told()
            self._intake.take(update)
            if time.monotonic() > until_s:
                return

    def _settle(self, received_ns: int) -> Batch:
        changes = self._intake.settle()
        if (writing := self._cache.commit()) is not None:
            asyncio.wrap_future(writing).add_done_callback(self._written)
        problems = self._intake.problems
        if self._cache.problem:
            message = f"what the API server says cannot be kept: {self._cache.problem}"
            effect = "this node cannot start without the API server"
            problems = sorted([*problems, Problem(DATABASE, 0, message, effect=effect)])
        return Batch(changes, problems, received_ns)

    # ---- the cache

    def _written(self, _: object) -> None:
        """Where that failed, people are to be told."""
        if self._cache.problem:
            self._inbox.wake()

    def _note_whole(self) -> None:
        """Everything that lists and watches told is taken in."""
        if self._cache.problem:
            return
        settled = {key for key, reflector in self._reflectors.items() if reflector.settled.is_set()}
        whole = self._whole | settled
        if whole != self._whole:
            self._whole = whole
            self._cache.whole(whole)
        if len(settled) == len(self._reflectors):
            if self.from_disk:
                log.info("everything is as the API server has it")
            self.from_disk = self._intake.rewriting = False

    async def _renew(self) -> None:
        """A cache that could not be written is begun anew, and told of everything again."""
        while True:
            await asyncio.sleep(RENEW_S)
            if self._cache.problem and await self._cache.renew():
                self._inbox.wake()
                self._intake.rewriting, self._whole = True, frozenset()
                for reflector in self._reflectors.values():
                    reflector.relist()

    def _of(self, kind: str, namespace: str) -> Reflector | None:
        for reflector in self._reflectors.values():
            resource = reflector.resource
            if resource.kind == kind and resource.namespace in ("", namespace):
                return reflector
        return None


def _ago(now_s: float, then_s: float | None) -> float | None:
    return None if then_s is None else now_s - then_s

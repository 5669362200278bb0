"""This node's NodeEndpoints: what the other nodes know of its pods.

A pod counts as published once the server has it *and* its number was looked up there after that: whoever collects
numbers looks at the marked number first and at NodeEndpoints then, and deletes only the version it has seen. So a
number that is found without a mark after it was published, or loses it then, cannot be collected any more.
"""

from __future__ import annotations

import asyncio
import random
from collections.abc import Awaitable, Callable, Iterable

from agent import log
from agent.kube import bodies
from agent.kube.bodies import NodeFacts
from agent.kube.ownobject import OwnObject
from agent.kube.pace import Pace
from agent.kube.text import older
from agent.kube.writes import ApiFailure, Away, Objects, Refused
from agent.objects import NodeEndpoint, Problem
from policies.model import ObjectRef

PUBLISHED_S = 5.0
"""How long `published` waits."""
AWAY_S = 1.0
"""And how long for a server that does not answer: it may only have been restarted."""
VERIFY_S = 300.0
"""What the server has is looked at so often, whatever the watch says."""
AGAIN_S = 30.0
"""After the server refused."""
UNCONFIRMED_S = 1.0
"""A number that is not there is looked for again; normally the watch tells of it and the pod has another by then."""
AT_ONCE = 16

Confirm = Callable[[int, str], Awaitable[bool]]
"""IdentityAllocator.confirm."""

logger = log.get("membership")


class Membership:
    """`facts` and `endpoints` (this node's, with an identity) are asked anew for every write. `seen`: the
    resourceVersion of this node's NodeEndpoints as the watch knows it; None: there is none."""

    def __init__(  # noqa: PLR0913  # what is told, of whom, and to whom
        self,
        objects: Objects,
        nodes: Objects,
        node: str,
        facts: Callable[[], NodeFacts],
        endpoints: Callable[[], Iterable[NodeEndpoint]],
        confirm: Confirm,
        pace: Pace | None = None,
        *,
        seen: Callable[[], str | None] = lambda: None,
    ) -> None:
        self._pace = pace or Pace()
        self._own = OwnObject(objects, nodes, node, "spec", self._pace)
        self._node, self._facts, self._endpoints, self._confirm = node, facts, endpoints, confirm
        self._seen, self._was_seen = seen, False
        self._woken = asyncio.Event()
        self._confirmed: dict[int, str] = {}  # numbers that were confirmed, and named ever since
        self.facts_told: NodeFacts | None = None
        """What the server has of the node itself, as of the last write."""
        self._published: dict[ObjectRef, NodeEndpoint] = {}
        self._told: tuple[NodeFacts, tuple[NodeEndpoint, ...]] | None = None  # in the last round
        self._wakes = self._begun = self._ended = 0  # `_begun`: with all that so many calls of `wake` were about
        self._waiting: list[asyncio.Future[None]] = []
        self._problem = ""

    def wake(self) -> None:
        """What is told may have changed."""
        self._wakes += 1
        self._woken.set()

    def notice(self) -> None:
        """The watch has told of this node's NodeEndpoints: mostly of what was written here."""
        seen = self._seen()
        if seen is None or older(self._own.version, seen):
            self.wake()

    def problems(self) -> list[Problem]:
        if not self._problem:
            return []
        file = f"api:{bodies.VERSION}/nodeendpoints/{self._node}"
        effect = "other nodes do not know this node's new pods, and deny their traffic"
        return [Problem(file, 0, self._problem, subject=f"NodeEndpoints {self._node}", effect=effect)]

    async def published(self, pod: ObjectRef, wait_s: float = PUBLISHED_S) -> bool:
        """True once the server has the pod as it was at the last `wake`. False where it does not within `wait_s`, or is
        not there."""
        needed = self._wakes  # a round that is under way may have been told something older
        loop = asyncio.get_running_loop()
        away_at = loop.time() + min(AWAY_S, wait_s)
        try:
            async with asyncio.timeout(wait_s):
                while True:
                    if self._ended >= needed and pod in self._published:
                        return True
                    if self._pace.away and loop.time() >= away_at:
                        return False
                    await self._progress(away_at if loop.time() < away_at else None)
        except TimeoutError:
            return False

    async def run(self) -> None:
        while True:
            await self._own.due(self._woken, VERIFY_S)
            self._woken.clear()
            self._begun = self._wakes
            try:
                await self._publish()
            except Away as away:
                self._say(str(away))
                self._tell()
                self._woken.set()  # the pace sees to it that this is not too often
                continue
            except Refused as refused:
                self._say(str(refused))
                self._tell()
                self._later(AGAIN_S * random.uniform(0.5, 1.5))  # noqa: S311
                continue
            self._problem = ""
            self._ended = self._begun
            self._tell()

    # ---- inside

    def _watch(self) -> None:
        """Whoever else writes or deletes the object leaves pods of this node unknown to the others."""
        seen = self._seen()
        if self._was_seen if seen is None else older(self._own.version, seen):
            logger.warning("somebody else has changed this node's NodeEndpoints", node=self._node, deleted=seen is None)
            self._own.forget()
        self._was_seen = seen is not None

    async def _publish(self) -> None:
        self._watch()
        now = (self._facts(), tuple(self._endpoints()))
        if now == self._told and self._own.version and len(self._published) == len(now[1]):
            self._ended = self._begun
            return
        self._told = now
        told = {one.pod: one for one in now[1]}
        body = bodies.node_endpoints(self._node, now[0], told.values())
        if not await self._own.put(body):
            self._confirmed.clear()
        self.facts_told = now[0]
        numbers = {one.identity: one.digest for one in told.values()}
        self._confirmed = {n: digest for n, digest in self._confirmed.items() if numbers.get(n) == digest}
        self._settle(told)
        self._tell()  # who has a number that was confirmed before need not wait for the others
        if unknown := {n: digest for n, digest in numbers.items() if n not in self._confirmed}:
            await self._confirm_all(unknown)
            self._settle(told)
            if len(self._confirmed) < len(numbers):
                self._later(UNCONFIRMED_S)

    def _settle(self, told: dict[ObjectRef, NodeEndpoint]) -> None:
        self._published = {pod: one for pod, one in told.items() if self._confirmed.get(one.identity) == one.digest}
        self._ended = self._begun

    async def _confirm_all(self, numbers: dict[int, str]) -> None:
        slots = asyncio.Semaphore(AT_ONCE)

        async def one(number: int, digest: str) -> bool:
            async with slots:
                return await self._pace.once(lambda: self._confirm(number, digest))

        answers = await asyncio.gather(*(one(*item) for item in numbers.items()), return_exceptions=True)
        failures: list[ApiFailure] = []
        for (number, digest), answer in zip(numbers.items(), answers, strict=True):
            if answer is True:
                self._confirmed[number] = digest
            elif isinstance(answer, ApiFailure):
                failures.append(answer)
            elif isinstance(answer, BaseException):
                raise answer
        if failures:
            raise failures[0]

    async def _progress(self, until_s: float | None) -> None:
        """Until something has come of a round, or that time."""
        waiter = asyncio.get_running_loop().create_future()
        self._waiting.append(waiter)
        if until_s is None:
            await waiter
        else:
            await asyncio.wait({waiter}, timeout=until_s - asyncio.get_running_loop().time())

    def _tell(self) -> None:
        waiting, self._waiting = self._waiting, []
        for waiter in waiting:
            if not waiter.done():
                waiter.set_result(None)

    def _later(self, delay_s: float) -> None:
        asyncio.get_running_loop().call_later(delay_s, self.wake)

    def _say(self, message: str) -> None:
        if message != self._problem:
            logger.warning("this node's pods cannot be told to the others", error=message)
        self._problem = message

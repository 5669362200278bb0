"""Numbers for the identities of this node's pods: SecurityIdentity objects, created where there is none yet.

A number exists by being the name of an object, so the API server lets no two agents give one number two meanings. Two
agents may well give one meaning two numbers, at the same moment or after a collection; policy does not mind.
"""

from __future__ import annotations

import asyncio
import random
from collections.abc import Callable, Collection, Mapping
from typing import Protocol

from agent import log
from agent.identity.allocator import first_choice
from agent.identity.labels import key_digest
from agent.kube import bodies
from agent.kube.bodies import IdentityHead, Key
from agent.kube.pace import Pace
from agent.kube.writes import ApiFailure, Conflict, Missing, Objects, decode
from agent.objects import Problem
from agent.world.config import FIRST_IDENTITY as FIRST
from agent.world.config import LAST_IDENTITY as LAST
from policies.model import Workload

SPAN = LAST - FIRST + 1
AT_ONCE = 16
"""Requests in flight."""
SETTLING_S = 5.0
"""How long the World may take to learn of a number that was obtained, before it is asked for once more."""
AGAIN_S = 60.0
"""After the server refused."""

logger = log.get("identities")


class Identities(Protocol):
    """What the World knows of identities and wants to know."""

    def wanted(self) -> Mapping[Key, Workload]:
        """Keys of local pods without a number fit for use: none is known, or only marked ones. Asked often."""
        ...

    def numbers(self, key: Key) -> Collection[int]:
        """All known to stand for a key, marked ones included."""
        ...

    def meaning(self, number: int) -> Key | None:
        """What a number is known to stand for."""
        ...


class NoneLeft(Exception):
    """All numbers stand for something else."""


class _Unwanted(Exception):
    """The pods that needed the number are gone."""


def next_number(key: Key, known: Identities, others: Collection[int]) -> int:
    """The number to try next for a key: one that is known to be its own, else the first from its hash on that stands
    for nothing as far as is known. `others`: found to be another key's just now. Raises NoneLeft."""
    if own := [number for number in known.numbers(key) if number not in others]:
        return min(own)
    start = first_choice("\n".join(key), SPAN)
    for step in range(SPAN):
        number = FIRST + (start + step) % SPAN
        if number not in others and known.meaning(number) in (None, key):
            return number
    raise NoneLeft(f"all {SPAN} numbers of identities are in use: leave labels out with --labels-exclude")


class IdentityAllocator:
    """`observe` takes the JSON of a SecurityIdentity as if the watch had told of it."""

    def __init__(
        self,
        objects: Objects,
        identities: Identities,
        observe: Callable[[bytes], None],
        pace: Pace | None = None,
        *,
        at_once: int = AT_ONCE,
    ) -> None:
        self._objects, self._identities, self._observe = objects, identities, observe
        self._pace = pace or Pace()
        self._slots = asyncio.Semaphore(at_once)
        self._woken = asyncio.Event()
        self._jobs: dict[Key, asyncio.Task[None]] = {}
        self._problems: dict[Key, str] = {}

    def wake(self) -> None:
        """`wanted()` may have changed."""
        self._woken.set()

    def problems(self) -> list[Problem]:
        file = f"api:{bodies.VERSION}/securityidentities"
        effect = "pods that need it are not reachable from other nodes, and new ones do not start"
        waiting = "it has no number yet, which takes the API server, and that does not answer"
        told = {**dict.fromkeys(self._jobs if self._pace.away else (), waiting), **self._problems}
        return [Problem(file, 0, message, subject=_named(key), effect=effect) for key, message in sorted(told.items())]

    async def run(self) -> None:
        try:
            while True:
                await self._woken.wait()
                self._woken.clear()
                for key, workload in self._identities.wanted().items():
                    if key not in self._jobs:
                        self._begin(key, workload)
        finally:
            jobs = list(self._jobs.values())
            for job in jobs:
                job.cancel()
            await asyncio.gather(*jobs, return_exceptions=True)

    async def confirm(self, number: int, digest: str) -> bool:
        """Whether a number stands for what `digest` says, at the server and now, and is not about to be collected; it
        is unmarked if need be. Raises ApiFailure where that could not be found out."""
        while True:
            try:
                raw = await self._objects.get(str(number))
            except Missing:
                return False
            head = decode(raw, IdentityHead)
            if key_digest(head.key) != digest:
                return False
            if not head.metadata.unused_since:
                return True
            if await self._unmark(head) is not None:
                return True

    # ---- inside

    def _begin(self, key: Key, workload: Workload) -> None:
        job = asyncio.create_task(self._settle(key, workload), name=f"identity {_named(key)}")
        self._jobs[key] = job
        job.add_done_callback(lambda _: self._jobs.pop(key, None))

    async def _settle(self, key: Key, workload: Workload) -> None:
        """Until the World wants no number for this key any more."""
        try:
            while key in self._identities.wanted():
                try:
                    async with self._slots:
                        raw = await self._obtain(key, workload)
                except _Unwanted:
                    return
                except (ApiFailure, NoneLeft) as failure:
                    self._report(key, str(failure))
                    await asyncio.sleep(AGAIN_S * random.uniform(0.5, 1.5))  # noqa: S311
                    continue
                self._problems.pop(key, None)
                self._observe(raw)
                await asyncio.sleep(SETTLING_S)
        finally:
            self._problems.pop(key, None)

    async def _obtain(self, key: Key, workload: Workload) -> bytes:
        """A SecurityIdentity that stands for `key` and is not marked. Raises ApiFailure other than Away, NoneLeft."""
        others: set[int] = set()
        while True:
            number = next_number(key, self._identities, others)
            found = await self._pace.persist(lambda number=number: self._claim(number, key, workload))  # type: ignore[misc]
            if found is not None:
                return found
            others.add(number)

    async def _claim(self, number: int, key: Key, workload: Workload) -> bytes | None:
        """The object of that number, if it stands for `key` by now. Raises ApiFailure, _Unwanted."""
        body = bodies.json_of(bodies.security_identity(number, workload))
        while True:
            if key not in self._identities.wanted():
                raise _Unwanted
            raw = await self._look(number, body, known=number in self._identities.numbers(key))
            if raw is None:
                continue
            head = decode(raw, IdentityHead)
            if head.key != key:
                return None
            if not head.metadata.unused_since:
                return raw
            if (unmarked := await self._unmark(head)) is not None:
                return unmarked

    async def _look(self, number: int, body: bytes, *, known: bool) -> bytes | None:
        """What has the number, be it what was just created; None where it came or went meanwhile: look again."""
        try:
            return await (self._objects.get(str(number)) if known else self._objects.create(body))
        except Conflict:
            return await self._read(number)
        except Missing:
            return await self._create(body)

    async def _read(self, number: int) -> bytes | None:
        try:
            return await self._objects.get(str(number))
        except Missing:
            return None

    async def _create(self, body: bytes) -> bytes | None:
        try:
            return await self._objects.create(body)
        except Conflict:
            return None

    async def _unmark(self, head: IdentityHead) -> bytes | None:
        """None where it is another version by now: look again."""
        patch = bodies.json_of(bodies.marking(head.metadata.resource_version, None))
        try:
            return await self._objects.merge(head.metadata.name, patch)
        except (Conflict, Missing):
            return None

    def _report(self, key: Key, message: str) -> None:
        if self._problems.get(key) != message:
            logger.error("no number for an identity", identity=_named(key), error=message)
        self._problems[key] = message


def _named(key: Key) -> str:
    return ", ".join(key)

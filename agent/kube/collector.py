"""What nobody needs any more at the API server: unused SecurityIdentities, and what nodes left that are gone.

Runs under the Lease, but is right even if two run at once. A number goes in three steps, each of which looks anew:
nobody's NodeEndpoints names it for a while → it is marked; it stays marked, in that very version, for the grace period
→ NodeEndpoints are read once more, after it → that version is deleted. Agents take the mark off before they use a
number, and look at it once more after they have named it (agent.kube.membership). All time is measured here: what the
mark says is for people.
"""

from __future__ import annotations

import asyncio
import random
import time
from collections.abc import AsyncIterator, Callable, Iterable, Mapping, Set
from datetime import UTC, datetime
from typing import Generic, TypeVar

import msgspec

from agent import log
from agent.kube import bodies
from agent.kube.bodies import Head, Metadata
from agent.kube.pace import Pace
from agent.kube.writes import ApiFailure, Conflict, Missing, Objects, decode

logger = log.get("collector")


class Times(msgspec.Struct, frozen=True):
    """`idle_s`: unused for so long, a number is marked; `grace_s`: and so long after that it is deleted. `node_s`: how
    long a Node must be gone; `block_s`: until its block of the pool is another's, for its pods may run on."""

    period_s: float = 60.0
    idle_s: float = 120.0
    grace_s: float = 900.0
    node_s: float = 600.0
    block_s: float = 3600.0


class _Named(msgspec.Struct):
    identity: int


class _EndpointsSpec(msgspec.Struct):
    endpoints: list[_Named] | None = None


class EndpointsHead(msgspec.Struct):
    metadata: Metadata
    spec: _EndpointsSpec


class _BlockSpec(msgspec.Struct):
    node: str


class BlockHead(msgspec.Struct):
    metadata: Metadata
    spec: _BlockSpec


T = TypeVar("T", Head, EndpointsHead, BlockHead)


class Since(Generic[T]):
    """For how long each of a number of things has been so, as seen from here. Pure."""

    def __init__(self) -> None:
        self._since: dict[tuple[str, ...], float] = {}

    def lasting(self, things: Mapping[tuple[str, ...], T], now_s: float, for_s: float) -> list[T]:
        """Of all things that are so now, those that have been for `for_s`; the others are forgotten."""
        self._since = {key: self._since.get(key, now_s) for key in things}
        return [thing for key, thing in things.items() if now_s - self._since[key] >= for_s]


class Steps(msgspec.Struct):
    """What is to become of SecurityIdentities."""

    mark: list[Metadata]
    unmark: list[Metadata]
    delete: list[Metadata]


class IdentitySweep:
    """Which numbers are marked and deleted. Pure."""

    def __init__(self, times: Times) -> None:
        self._times = times
        self._idle: Since[Head] = Since()
        self._marked: Since[Head] = Since()

    def steps(self, identities: Iterable[Head], named: Set[str], now_s: float) -> Steps:
        """`identities` were read before `named`, the names of those that some NodeEndpoints names."""
        idle: dict[tuple[str, ...], Head] = {}
        marked: dict[tuple[str, ...], Head] = {}
        unmark: list[Metadata] = []
        for head in identities:
            meta = head.metadata
            if meta.name in named:
                if meta.unused_since:
                    unmark.append(meta)
            elif meta.unused_since:
                marked[meta.uid, meta.resource_version] = head
            else:
                idle[meta.uid, meta.resource_version] = head
        mark = self._idle.lasting(idle, now_s, self._times.idle_s)
        delete = self._marked.lasting(marked, now_s, self._times.grace_s)
        return Steps([head.metadata for head in mark], unmark, [head.metadata for head in delete])


class Kinds(msgspec.Struct, frozen=True):
    """Where what is collected is."""

    identities: Objects
    endpoints: Objects
    statuses: Objects
    blocks: Objects
    nodes: Objects


def _monotonic_s() -> float:
    return time.monotonic()


class Collector:
    """One for each time the Lease is held: what an earlier holder has seen is no matter."""

    def __init__(
        self,
        kinds: Kinds,
        times: Times = Times(),  # noqa: B008
        pace: Pace | None = None,
        clock_s: Callable[[], float] = _monotonic_s,
    ) -> None:
        self._kinds, self._times, self._pace, self._clock_s = kinds, times, pace or Pace(), clock_s
        self._identities = IdentitySweep(times)
        self._endpoints: Since[EndpointsHead] = Since()
        self._statuses: Since[Head] = Since()
        self._blocks: Since[BlockHead] = Since()
        self._said = ""

    async def run(self) -> None:
        while True:
            try:
                await self._pace.once(self.sweep)
                self._said = ""
            except ApiFailure as error:
                if str(error) != self._said:
                    logger.warning("nothing is collected that is no longer used", error=str(error))
                self._said = str(error)
            await asyncio.sleep(self._times.period_s * random.uniform(0.8, 1.2))  # noqa: S311

    async def sweep(self) -> None:
        """Once. Raises ApiFailure, also where an object cannot be read: what it names is not known then."""
        identities = [head async for head in _all(self._kinds.identities, Head)]
        statuses = [head async for head in _all(self._kinds.statuses, Head)]
        blocks = [head async for head in _all(self._kinds.blocks, BlockHead)]
        endpoints = [head async for head in _all(self._kinds.endpoints, EndpointsHead)]  # after the identities
        nodes = {head.metadata.name async for head in _all(self._kinds.nodes, Head)}  # after all that nodes have
        named = {str(one.identity) for head in endpoints for one in head.spec.endpoints or ()}
        await self._tend_identities(self._identities.steps(identities, named, self._clock_s()))
        if nodes:
            await self._tend_nodes(nodes, endpoints, statuses, blocks)

    # ---- inside

    async def _tend_identities(self, steps: Steps) -> None:
        since = bodies.rfc3339(datetime.now(UTC))
        for metas, mark in ((steps.unmark, None), (steps.mark, since)):
            for meta in metas:
                await self._mark(meta, mark)
        deleted = [meta.name for meta in steps.delete if await self._delete(self._kinds.identities, meta)]
        if deleted:
            logger.info("unused identities were deleted", count=len(deleted))

    async def _tend_nodes(
        self, nodes: Set[str], endpoints: list[EndpointsHead], statuses: list[Head], blocks: list[BlockHead]
    ) -> None:
        """An agent that lives makes its objects anew, and its NodeEndpoints keeps its block."""
        now_s, times = self._clock_s(), self._times
        told = {head.metadata.name for head in endpoints}
        gone = {_key(head): head for head in endpoints if head.metadata.name not in nodes}
        for one in self._endpoints.lasting(gone, now_s, times.node_s):
            logger.info("a node is gone: what it told of its pods goes, too", node=one.metadata.name)
            await self._delete(self._kinds.endpoints, one.metadata)
        mute = {_key(head): head for head in statuses if head.metadata.name not in nodes}
        for status in self._statuses.lasting(mute, now_s, times.node_s):
            await self._delete(self._kinds.statuses, status.metadata)
        free = {_key(head): head for head in blocks if head.spec.node not in nodes | told}
        for block in self._blocks.lasting(free, now_s, times.block_s):
            logger.info("a node is gone: its block is free", node=block.spec.node, block=block.metadata.name)
            await self._delete(self._kinds.blocks, block.metadata)

    async def _mark(self, meta: Metadata, since: str | None) -> None:
        try:
            patch = bodies.json_of(bodies.marking(meta.resource_version, since))
            await self._kinds.identities.merge(meta.name, patch)
        except (Conflict, Missing):
            return  # another version by now: the next sweep looks at that

    async def _delete(self, objects: Objects, meta: Metadata) -> bool:
        try:
            await objects.delete(meta.name, meta.uid, meta.resource_version)
        except (Conflict, Missing):
            return False  # somebody uses it again, or was quicker
        return True


def _key(head: Head | EndpointsHead | BlockHead) -> tuple[str, ...]:
    return (head.metadata.uid,)


async def _all(objects: Objects, form: type[T]) -> AsyncIterator[T]:
    async for page in objects.pages():
        for raw in page:
            yield decode(raw, form)

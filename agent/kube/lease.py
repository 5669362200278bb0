"""Who does what only one agent of the cluster is to do: the holder of a Lease (coordination.k8s.io/v1).

Time is only ever measured by one clock, the own one, which runs on while the machine is suspended: a holder is past its
time once its Lease has not changed for its duration *as seen from here*. So clocks may differ and jump. The holder
counts from before its request went out and the others from after they saw its effect, so it lets go first.
What the holder writes is nevertheless tied to versions of what it read, as any number of holders might be.
"""

from __future__ import annotations

import asyncio
import random
import time
from collections.abc import Awaitable, Callable
from datetime import UTC, datetime
from typing import Any

import msgspec

from agent import log
from agent.kube.bodies import Metadata, json_of, micro_time
from agent.kube.writes import ApiFailure, Conflict, Missing, Objects, decode

GROUP = "apis/coordination.k8s.io/v1"
NAME = "gatehouse"
RELEASE_S = 3.0
"""An agent that stops does not wait longer than that."""

logger = log.get("lease")


class LeaseSpec(msgspec.Struct, rename="camel"):
    """Fields of LeaseSpec. Times are MicroTime; nobody compares them but for a change."""

    holder_identity: str | None = None
    lease_duration_seconds: int | None = None
    acquire_time: str | None = None
    renew_time: str | None = None
    lease_transitions: int | None = None


class LeaseHead(msgspec.Struct):
    metadata: Metadata
    spec: LeaseSpec


class Times(msgspec.Struct, frozen=True):
    """`renew_s` is the longest a holder goes on without having renewed; it must be well below `duration_s`. The holder
    renews every `retry_s`; the others, of which there is one on every node, look once in `look_s`."""

    duration_s: int = 15
    renew_s: float = 10.0
    retry_s: float = 2.0
    look_s: float = 60.0


class Observer:
    """How long the Lease has been as it is, as seen from here. Pure."""

    def __init__(self) -> None:
        self._seen: LeaseSpec | None = None
        self._since_s = 0.0

    def see(self, spec: LeaseSpec, now_s: float) -> None:
        if spec != self._seen:
            self._seen, self._since_s = spec, now_s

    def is_free(self, now_s: float) -> bool:
        """Whether it may be taken. Without a duration it has none."""
        spec = self._seen
        if spec is None or not spec.holder_identity:
            return True
        return now_s - self._since_s >= (spec.lease_duration_seconds or 0)


def claim(old: LeaseSpec, holder: str, times: Times, now: datetime) -> LeaseSpec:
    """What the holder writes, be it to take the Lease or to keep it."""
    kept = old.holder_identity == holder
    transitions = old.lease_transitions or 0
    return LeaseSpec(
        holder,
        times.duration_s,
        old.acquire_time if kept else micro_time(now),
        micro_time(now),
        transitions if kept else transitions + 1,
    )


def _boot_time_s() -> float:
    return time.clock_gettime(time.CLOCK_BOOTTIME)


class Lease:
    """`holder`: a name no other agent has, also not an earlier one of this node: NODE_uuid."""

    def __init__(  # who, where, and how time goes
        self,
        objects: Objects,
        namespace: str,
        holder: str,
        name: str = NAME,
        times: Times = Times(),  # noqa: B008
        clock_s: Callable[[], float] = _boot_time_s,
    ) -> None:
        self._objects, self._namespace, self._holder, self._name = objects, namespace, holder, name
        self._times, self._clock_s = times, clock_s
        self._observer = Observer()
        self._renewed_s: float | None = None
        self._said = ""

    @property
    def held(self) -> bool:
        """Whether nobody else can have it, now."""
        return self._renewed_s is not None and self._clock_s() - self._renewed_s < self._times.renew_s

    async def run(self, work: Callable[[], Awaitable[None]]) -> None:
        """Do `work` for as long as the Lease is held, again and again; give it back when cancelled."""
        try:
            while True:
                await self._acquire()
                logger.info("this agent tends the cluster's custom resources", lease=self._name)
                await self._hold(work)
                logger.warning("another agent tends the cluster's custom resources from now on", lease=self._name)
        finally:
            if self._renewed_s is not None:
                await self._release()

    # ---- inside

    async def _acquire(self) -> None:
        """The second look comes as soon as a holder that is no more (this node's last agent, say) can be found out."""
        wait_s = min(float(self._times.duration_s), self._times.look_s)
        while not await self._attempt():
            await asyncio.sleep(wait_s * random.uniform(1.0, 1.5))  # noqa: S311
            wait_s = self._times.look_s * 0.8

    async def _hold(self, work: Callable[[], Awaitable[None]]) -> None:
        """Until the Lease is lost."""
        working = asyncio.ensure_future(work())
        try:
            while True:
                done, _ = await asyncio.wait({working}, timeout=self._times.retry_s)
                if done:
                    await working  # it is to go on for ever: what ended it is for the caller
                    raise RuntimeError("the work of the Lease's holder ended by itself")
                if not await self._renew():
                    return
        finally:
            working.cancel()
            await asyncio.gather(working, return_exceptions=True)

    async def _renew(self) -> bool:
        """False once somebody else has it, or may have it before long."""
        assert self._renewed_s is not None
        left_s = self._renewed_s + self._times.renew_s - self._clock_s()
        try:
            async with asyncio.timeout(max(left_s, 0.0)):
                renewed = await self._attempt()
        except TimeoutError:
            renewed = False
        if not renewed and not self.held:
            self._renewed_s = None
        return self._renewed_s is not None

    async def _attempt(self) -> bool:
        """Take or keep it, if that can be done now. On seeing that another has it, it is held no more."""
        try:
            asked_s, head = self._clock_s(), await self._read()
            if head is None:
                return await self._write(asked_s, LeaseSpec(), None)
            self._observer.see(head.spec, self._clock_s())
            if head.spec.holder_identity != self._holder:
                self._renewed_s = None
                if not self._observer.is_free(self._clock_s()):
                    return False
            return await self._write(self._clock_s(), head.spec, head)
        except Conflict:
            return False  # somebody was quicker: the next look tells who
        except ApiFailure as failure:
            self._say(str(failure))
            return False

    async def _read(self) -> LeaseHead | None:
        try:
            return decode(await self._objects.get(self._name, self._namespace), LeaseHead)
        except Missing:
            return None

    async def _write(self, at_s: float, old: LeaseSpec, head: LeaseHead | None) -> bool:
        spec = claim(old, self._holder, self._times, datetime.now(UTC))
        body = self._body(spec, head)
        if head is None:
            await self._objects.create(body, self._namespace)
        else:
            await self._objects.replace(self._name, body, self._namespace)
        self._renewed_s = at_s
        self._observer.see(spec, self._clock_s())
        self._said = ""
        return True

    async def _release(self) -> None:
        """So that the next holder need not wait. A Lease that is not given back is free after its time all the same."""
        self._renewed_s = None
        try:
            async with asyncio.timeout(RELEASE_S):
                head = await self._read()
                if head is None or head.spec.holder_identity != self._holder:
                    return
                now = micro_time(datetime.now(UTC))
                free = LeaseSpec("", 1, now, now, head.spec.lease_transitions)
                await self._objects.replace(self._name, self._body(free, head), self._namespace)
        except (ApiFailure, TimeoutError) as failure:
            logger.info("the Lease was not given back, and is free when its time is over", error=str(failure))

    def _body(self, spec: LeaseSpec, head: LeaseHead | None) -> bytes:
        metadata: dict[str, Any] = {"name": self._name, "namespace": self._namespace}
        if head is not None:
            metadata["resourceVersion"] = head.metadata.resource_version
        given = {key: value for key, value in msgspec.to_builtins(spec).items() if value is not None}
        body = {"apiVersion": "coordination.k8s.io/v1", "kind": "Lease", "metadata": metadata, "spec": given}
        return json_of(body)

    def _say(self, message: str) -> None:
        """Once for each thing that keeps it from the Lease."""
        if message != self._said:
            self._said = message
            logger.warning("the Lease cannot be read or written", lease=self._name, error=message)

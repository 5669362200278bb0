"""The turns of the agent: batches of changes, and pods whose networks stand, taken by World and plan to the kernel.

Everything that decides happens here, in one thread. Batches go first, so that a flood of pod starts does not hold up
policy, and each turn is bounded.
"""

from __future__ import annotations

import asyncio
import time
from collections import deque
from collections.abc import Callable, Iterable, Mapping
from typing import Protocol

from agent import log as logs
from agent.attaching import Attaching
from agent.naming import NameFeed
from agent.objects import Interface, Pod, Problem
from agent.plan.ids import CollisionError
from agent.plan.state import Changes
from agent.pods import Pods
from agent.realize import Realizer
from agent.revisions import Revisions
from agent.sources.source import Batch
from agent.status import Revision
from agent.waiting import Waiting, release
from agent.world.world import World
from policies.model import ObjectRef

NETWORKS_A_TURN = 16
"""Of pods, that stand or are gone."""

Names = Mapping[str, frozenset[bytes]]
"""Addresses (16 bytes) by DNS name; none: it has no more."""

log = logs.get("turns")


class Redirects(Protocol):
    """Who sees to it that proxies listen where rows redirect to."""

    async def announce(self, changes: Changes) -> None:
        """Rows that may redirect to new listeners are about to be in force: have these ready, if that is soon."""

    async def follow(self) -> None:
        """The plan is in force, as far as there was room: what it uses may be reached, all else goes."""


class EndingFlows(Protocol):
    """Who sees to it that flows end which nobody may go on with."""

    def start(self) -> None:
        """The plan is in force for the first time."""

    def changed(self, services: Iterable[ObjectRef]) -> None:
        """These may have lost backends: no new flow goes to them any more."""

    def forget(self, addresses: set[bytes]) -> None:
        """Pods gave these up, and nobody is known by them."""


class Turns:
    """`services_changed` is called with services that may have changed; `turned` after each turn, for who tells others
    of this node."""

    def __init__(  # noqa: PLR0913, PLR0917  # what decides has to tell many
        self,
        world: World,
        realizer: Realizer,
        names: NameFeed,
        save: Callable[[], None],
        flows: EndingFlows,
        services_changed: Callable[[Iterable[ObjectRef]], None],
        proxies: Redirects,
        turned: Callable[[], None],
    ) -> None:
        self.revisions = Revisions()
        self.problems: list[Problem] = []
        self.collision = ""
        self._world = world
        self._realizer = realizer
        self._names = names
        self._save = save
        self._flows = flows
        self._services_changed = services_changed
        self._proxies = proxies
        self._turned = turned
        self._wake = asyncio.Event()
        self._batches: deque[Batch] = deque()
        self._interfaces: Waiting[tuple[ObjectRef, Interface]] = Waiting(self._wake.set)
        self.attaching = Attaching(world, self._wake.set)
        self._learnt: Waiting[Names] = Waiting(self._wake.set)
        self._done = asyncio.Event()

    # ---- what comes

    def put(self, batch: Batch) -> None:
        """A batch was read: from now on it is desired."""
        self.revisions.read()
        self._batches.append(batch)
        self._wake.set()

    async def enforce(self, ref: ObjectRef, interface: Interface) -> None:
        """Returns once the kernel enforces the pod's policy on this interface (or the pod is gone, or all is over)."""
        await self._interfaces.ask((ref, interface))

    async def learn(self, names: Names) -> None:
        """DNS names have these addresses now. Returns once rules about them hold for these (or all is over)."""
        await self._learnt.ask(names)

    def stop(self) -> None:
        """There will be no more turns: nobody is to wait for one."""
        for waiting in (self._learnt, self._interfaces, self.attaching):
            waiting.stop()

    async def settled(self) -> None:
        """Until all that has been read is in force."""
        while self.revisions.realized < self.revisions.desired or self._interfaces or self.attaching:
            self._done.clear()
            await self._done.wait()

    # ---- the start

    def load(self, batch: Batch) -> None:
        """All there is at the start."""
        self.revisions.read()
        self.problems = batch.problems
        self._world.apply_all(batch.changes)

    def start(self, interfaces: Mapping[ObjectRef, Interface]) -> int:
        """All of that at once, and the pods that stand, into maps whatever they hold. Returns the number of writes."""
        for ref, interface in interfaces.items():
            self._world.set_interface(ref, interface)
        writes = self._realizer.start(self._world, self._save)
        self._flows.start()
        self._services_changed(service.ref for service in self._world.services)
        self._finish(1)
        return writes

    # ---- turns

    async def run(self, pods: Pods) -> None:
        while True:
            delay = self._realizer.retry_in_s
            try:
                async with asyncio.timeout(delay):
                    await self._wake.wait()
            except TimeoutError:
                self._realizer.catch_up()
                self._finish(self.revisions.taken)
            self._wake.clear()
            while self._learnt or self._batches or self.attaching or self._interfaces:
                if self._learnt:  # a pod waits for each
                    await self._take_names()
                elif self._batches:
                    await self._take_batch(self._batches.popleft(), pods)
                elif self.attaching:
                    await self._take_attachments()
                else:
                    await self._take_interfaces()
                await asyncio.sleep(0)

    async def _take_batch(self, batch: Batch, pods: Pods) -> None:
        changes = batch.changes
        self._names.watch(change.ref for change in changes)
        before = {address for change in changes for address in self._world.addresses_of(change.ref)}
        self._world.apply_all(changes)
        writes = await self._realize(change.ref for change in changes)
        self.problems = batch.problems
        self._finish(self.revisions.taken + 1)
        took_ms = round((time.monotonic_ns() - batch.received_ns) / 1e6, 1)
        log.info(
            "changes in force", revision=self.revisions.taken, changes=len(changes), writes=writes, took_ms=took_ms
        )
        self._free(before)
        for change in changes:
            if change.ref.kind == "Pod":
                self.want(change.ref, pods)

    async def _take_names(self) -> None:
        """All that are there."""
        learnt = self._learnt.take(len(self._learnt))
        for names, _ in learnt:
            for name, addresses in names.items():
                self._world.set_names(name, addresses)
        await self._realize(())
        self._finish(self.revisions.taken)
        release(done for _, done in learnt)

    async def _take_interfaces(self) -> None:
        taken = self._interfaces.take(NETWORKS_A_TURN)
        for (ref, interface), _ in taken:
            if self._world.pods.get(ref) is not None:
                self._world.set_interface(ref, interface)
        await self._realize(())
        release(done for _, done in taken)
        self._finish(self.revisions.taken)

    async def _take_attachments(self) -> None:
        taken = self.attaching.take(NETWORKS_A_TURN)
        await self._realize(taken.refs)
        self._finish(self.revisions.taken)
        taken.in_force()
        self._free(taken.addresses)

    async def _realize(self, refs: Iterable[ObjectRef]) -> int:
        dirty = self._world.take_dirty()
        self._names.publish({*refs, *dirty.endpoints, *dirty.services})
        try:
            changes = self._realizer.compile(self._world, dirty)
        except CollisionError as error:
            self.collision = str(error)
            log.error("a change is not in force", reason=self.collision)
            return 0
        await self._proxies.announce(changes)
        writes = self._realizer.realize(changes, self._save)
        await self._proxies.follow()
        self._flows.changed(dirty.services)
        self._services_changed(dirty.services)
        self.attaching.settle()
        self._turned()
        return writes

    def _finish(self, taken: int) -> None:
        self.revisions.took(taken, whole=not self._realizer.missing and not self.collision)
        self._done.set()

    def _free(self, addresses: set[bytes]) -> None:
        """Of addresses that were somebody's, those that are nobody's now."""
        if freed := {address for address in addresses if self._world.addresses.owner(address) is None}:
            self._flows.forget(freed)

    # ---- pods

    def want(self, ref: ObjectRef, pods: Pods) -> None:
        """Have a pod of this node made, changed or removed, as the world has it."""
        pod = self.local(ref)
        if pod is not None:
            pods.want(pod)
        elif pods.get(ref) is not None:
            pods.drop(ref)

    def local(self, ref: ObjectRef) -> Pod | None:
        """A pod that this node is to run, with its addresses; None where it is another's, or has no address."""
        state = self._world.pods.get(ref)
        if state is None or state.pod.node not in ("", self._world.config.name):
            return None
        attached = self._world.config.attached  # its network, and with it its addresses, comes from a runtime
        return state.pod if attached or state.pod.host_network or state.pod.addresses else None

    # ---- how far it is

    def revision(self, unread: bool) -> Revision:
        """`unread`: events have come that were not read yet, and may be changes: those are desired already."""
        if unread:
            self.revisions.promise()
        elif self.revisions.broken_promise:
            problems = self._batches[-1].problems if self._batches else self.problems
            self.put(Batch([], problems, time.monotonic_ns()))
        return self.revisions.shown()

    def revision_of(self, ref: ObjectRef, unread: bool) -> Revision:
        """Of a pod of this node."""
        node = self.revision(unread)
        enforced = self._world.subject(ref) is not None or self._is_node(ref)
        return node if enforced else Revision(node.desired, 0)

    def _is_node(self, ref: ObjectRef) -> bool:
        state = self._world.pods.get(ref)
        return state is not None and state.pod.host_network

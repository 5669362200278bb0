"""The turns of the agent: batches of changes, and pods whose networks stand, taken by World and plan to the kernel.

Everything that decides happens here, in one thread. Batches go first, so that a flood of pod starts does not hold up
policy, and each turn is bounded.
"""

from __future__ import annotations

import asyncio
import time
from collections import deque
from collections.abc import Callable, Iterable, Mapping
from contextlib import suppress
from typing import Protocol

from agent import log as logs
from agent.naming import NameFeed
from agent.objects import Interface, Pod, Problem
from agent.plan.ids import CollisionError
from agent.plan.serving import Serving
from agent.plan.state import Changes
from agent.pods import PodGone, Pods
from agent.realize import Realizer
from agent.sources.source import Batch
from agent.status import Revision
from agent.world.world import World
from policies.model import ObjectRef

INTERFACES_A_TURN = 16

Names = Mapping[str, frozenset[bytes]]
"""Addresses (16 bytes) by DNS name; none: it has no more."""

log = logs.get("turns")


class Redirects(Protocol):
    """Who sees to it that proxies listen where rows redirect to."""

    async def announce(self, changes: Changes) -> None:
        """Rows that may redirect to new listeners are about to be in force: have these ready, if that is soon."""

    async def follow(self) -> None:
        """The plan is in force, as far as there was room: what it uses may be reached, all else goes."""


class _Attachment:
    """`interface` None: the pod's network is to be gone."""

    def __init__(
        self, ref: ObjectRef, addresses: tuple[bytes, ...] = (), interface: Interface | None = None, uid: str = ""
    ) -> None:
        self.ref = ref
        self.addresses = addresses
        self.interface = interface
        self.uid = uid
        self.done: asyncio.Future[None] = asyncio.get_running_loop().create_future()

    def settle(self, error: PodGone | None = None) -> None:
        if not self.done.done():
            if error is None:
                self.done.set_result(None)
            else:
                self.done.set_exception(error)


class Turns:
    """`desired` counts the batches read, `realized` is the newest of which everything is in the kernel.

    `freed` is called with the addresses that pods gave up, once nobody is known by them; `retired` when `serving` has
    flows that must end, once no new ones go the same way; `services_changed` with services that may have changed;
    `turned` after each turn, for who tells others of this node.
    `behind_since`: since when (CLOCK_MONOTONIC, seconds) not all that is desired is realized; None: all is.
    """

    def __init__(  # noqa: PLR0913, PLR0917  # what decides has to tell many
        self,
        world: World,
        realizer: Realizer,
        names: NameFeed,
        save: Callable[[], None],
        freed: Callable[[set[bytes]], None],
        retired: Callable[[], None],
        services_changed: Callable[[Iterable[ObjectRef]], None],
        proxies: Redirects,
        turned: Callable[[], None],
    ) -> None:
        self.behind_since: float | None = time.monotonic()
        self.desired = 0
        self.realized = 0
        self.problems: list[Problem] = []
        self.collision = ""
        self._world = world
        self._realizer = realizer
        self._names = names
        self._save = save
        self._freed = freed
        self._retired = retired
        self._services_changed = services_changed
        self._proxies = proxies
        self._turned = turned
        self.serving = Serving()
        self._taken = 0
        self._promised = 0
        self._over = False
        self._batches: deque[Batch] = deque()
        self._interfaces: deque[tuple[ObjectRef, Interface, asyncio.Future[None]]] = deque()
        self._attachments: deque[_Attachment] = deque()
        self._unidentified: dict[ObjectRef, _Attachment] = {}
        self._learnt: deque[tuple[Names, asyncio.Future[None]]] = deque()
        self._wake = asyncio.Event()
        self._done = asyncio.Event()

    # ---- what comes

    def put(self, batch: Batch) -> None:
        """A batch was read: from now on it is desired."""
        self.desired += 1
        self.behind_since = self.behind_since or time.monotonic()
        self._batches.append(batch)
        self._wake.set()

    async def enforce(self, ref: ObjectRef, interface: Interface) -> None:
        """Returns once the kernel enforces the pod's policy on this interface (or the pod is gone, or all is over)."""
        if self._over:
            return
        done: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        self._interfaces.append((ref, interface, done))
        self._wake.set()
        await done

    async def attach(self, ref: ObjectRef, addresses: tuple[bytes, ...], interface: Interface, uid: str = "") -> None:
        """A runtime gave the pod (that with this uid) this network. Returns once the kernel enforces the pod's policy
        on it; raises PodGone where the pod is gone, its network is detached meanwhile, or all is over."""
        await self._put_attachment(_Attachment(ref, addresses, interface, uid))

    async def detach(self, ref: ObjectRef) -> None:
        """The pod's network is to be gone. Returns once nobody is known by its addresses (or all is over)."""
        with suppress(PodGone):
            await self._put_attachment(_Attachment(ref))

    async def _put_attachment(self, attachment: _Attachment) -> None:
        if self._over:
            raise PodGone(f"{attachment.ref}: the agent stops")
        self._attachments.append(attachment)
        self._wake.set()
        await attachment.done

    async def learn(self, names: Names) -> None:
        """DNS names have these addresses now. Returns once rules about them hold for these (or all is over)."""
        if self._over:
            return
        done: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        self._learnt.append((names, done))
        self._wake.set()
        await done

    def stop(self) -> None:
        """There will be no more turns: nobody is to wait for one."""
        self._over = True
        self._release([done for _, done in self._learnt])
        self._learnt.clear()
        self._release([done for _, _, done in self._interfaces])
        self._interfaces.clear()
        for attachment in (*self._attachments, *self._unidentified.values()):
            attachment.settle(PodGone(f"{attachment.ref}: the agent stops"))
        self._attachments.clear()
        self._unidentified.clear()

    async def settled(self) -> None:
        """Until all that has been read is in force."""
        while self.realized < self.desired or self._interfaces or self._attachments:
            self._done.clear()
            await self._done.wait()

    # ---- the start

    def load(self, batch: Batch) -> None:
        """All there is at the start."""
        self.desired = 1
        self.problems = batch.problems
        self._world.apply_all(batch.changes)

    def start(self, interfaces: Mapping[ObjectRef, Interface]) -> int:
        """All of that at once, and the pods that stand, into maps whatever they hold. Returns the number of writes."""
        for ref, interface in interfaces.items():
            self._world.set_interface(ref, interface)
        writes = self._realizer.start(self._world, self._save)
        self.serving.start(self._world.served())
        self._retired()
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
                self._finish(self._taken)
            self._wake.clear()
            while self._learnt or self._batches or self._attachments or self._interfaces:
                if self._learnt:  # a pod waits for each
                    await self._take_names()
                elif self._batches:
                    await self._take_batch(self._batches.popleft(), pods)
                elif self._attachments:
                    await self._take_attachments()
                else:
                    await self._take_interfaces()
                await asyncio.sleep(0)

    async def _take_batch(self, batch: Batch, pods: Pods) -> None:
        changes = batch.changes
        self._names.watch(change.ref for change in changes)
        before = {address for change in changes for address in self._addresses(change.ref)}
        self._world.apply_all(changes)
        writes = await self._realize(change.ref for change in changes)
        self.problems = batch.problems
        self._finish(self._taken + 1)
        took_ms = round((time.monotonic_ns() - batch.received_ns) / 1e6, 1)
        log.info("changes in force", revision=self._taken, changes=len(changes), writes=writes, took_ms=took_ms)
        if freed := {address for address in before if self._world.addresses.owner(address) is None}:
            self._freed(freed)
        for change in changes:
            if change.ref.kind == "Pod":
                self.want(change.ref, pods)

    async def _take_names(self) -> None:
        """All that are there."""
        learnt = list(self._learnt)
        self._learnt.clear()
        for names, _ in learnt:
            for name, addresses in names.items():
                self._world.set_names(name, addresses)
        await self._realize(())
        self._finish(self._taken)
        self._release([done for _, done in learnt])

    def _release(self, waiting: Iterable[asyncio.Future[None]]) -> None:
        for done in waiting:
            if not done.done():
                done.set_result(None)

    async def _take_interfaces(self) -> None:
        finished: list[asyncio.Future[None]] = []
        while self._interfaces and len(finished) < INTERFACES_A_TURN:
            ref, interface, done = self._interfaces.popleft()
            if self._world.pods.get(ref) is not None:
                self._world.set_interface(ref, interface)
            finished.append(done)
        await self._realize(())
        self._release(finished)
        self._finish(self._taken)

    async def _take_attachments(self) -> None:
        """Some of those that are there. Who has no identity yet waits for one: the pod is denied everything."""
        taken = [self._attachments.popleft() for _ in range(min(len(self._attachments), INTERFACES_A_TURN))]
        freed: set[bytes] = set()
        for attachment in taken:
            ref, interface = attachment.ref, attachment.interface
            if earlier := self._unidentified.pop(ref, None):
                earlier.settle(PodGone(f"{ref}: its network was taken down"))
            if interface is None:
                freed.update(self._addresses(ref))
                self._world.detach(ref)
            else:
                self._world.attach(ref, attachment.addresses, interface, attachment.uid)
                self._unidentified[ref] = attachment
        await self._realize(attachment.ref for attachment in taken)
        self._finish(self._taken)
        for attachment in taken:
            if attachment.interface is None:
                attachment.settle()
        if freed := {address for address in freed if self._world.addresses.owner(address) is None}:
            self._freed(freed)

    def _settle_attachments(self) -> None:
        """Those whose pods are enforced by now, or are gone."""
        for ref, attachment in list(self._unidentified.items()):
            if self._world.pods.get(ref) is None:
                attachment.settle(PodGone(f"{ref} was deleted"))
            elif self._world.subject(ref) is None:
                continue
            else:
                attachment.settle()
            del self._unidentified[ref]

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
        if self.serving.update(self._world, dirty.services):
            self._retired()
        self._services_changed(dirty.services)
        self._settle_attachments()
        self._turned()
        return writes

    def _finish(self, taken: int) -> None:
        self._taken = taken
        if not self._realizer.missing and not self.collision:
            self.realized = taken
            if self.realized == self.desired:
                self.behind_since = None
        self._done.set()

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

    def revision(self, unread: bool) -> Revision:
        """`unread`: events have come that were not read yet, and may be changes: those are desired already."""
        if unread:
            self._promised = self.desired + 1
        elif self._promised > self.desired:  # they were none: what was desired once stays so
            problems = self._batches[-1].problems if self._batches else self.problems
            self.put(Batch([], problems, time.monotonic_ns()))
        return Revision(max(self.desired, self._promised), self.realized)

    def revision_of(self, ref: ObjectRef, unread: bool) -> Revision:
        """Of a pod of this node."""
        node = self.revision(unread)
        enforced = self._world.subject(ref) is not None or self._is_node(ref)
        return node if enforced else Revision(node.desired, 0)

    def _is_node(self, ref: ObjectRef) -> bool:
        state = self._world.pods.get(ref)
        return state is not None and state.pod.host_network

    def _addresses(self, ref: ObjectRef) -> tuple[bytes, ...]:
        return self._world.addresses_of(ref)

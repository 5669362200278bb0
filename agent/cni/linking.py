"""Links of attachments made and removed by threads of their own: all of that blocks.

What has begun comes to its end, also where its caller is cancelled: what it makes must be known to whoever removes it.
"""

from __future__ import annotations

import asyncio
import os
from collections.abc import Callable, Collection, Coroutine, Mapping
from concurrent.futures import ThreadPoolExecutor
from typing import Any, ParamSpec, TypeVar

from agent.cni.attachments import Attachment, Attachments
from agent.cni.place import Connected, host_link
from agent.cni.recovery import Recovered
from agent.cni.surroundings import Links
from agent.endpoints import namespaces
from agent.endpoints.batch import Batch
from agent.objects import Interface

P = ParamSpec("P")
T = TypeVar("T")

BUILDERS = 2
"""Threads: more of them wait for the interpreter and for the kernel's one lock of all links, and burn time doing so.
One removes: the kernel takes as long for many links as for one."""


class _Building:
    """A link to be made, and what came of it."""

    def __init__(self, attachment: Attachment, mtu: int) -> None:
        self.attachment, self.mtu = attachment, mtu
        self.made: Interface | OSError = OSError("it was not built")

    def result(self) -> Interface:
        if isinstance(self.made, OSError):
            raise self.made
        return self.made


class Linking:
    """Errors are OSError. An attachment is put on file in the `record` before any of it is built."""

    def __init__(self, links: Links, attach_programs: Callable[[int], None], record: Attachments) -> None:
        self._links = links
        self._record = record
        self._attach_programs = attach_programs
        # Building waits for nothing, least of all for removals, which take longer. Links that are asked for meanwhile
        # are made, told to the World and published together: most of that costs no more for many than for one.
        self._links_to_be: Batch[_Building] = Batch(self._build)
        self._builders = ThreadPoolExecutor(BUILDERS, "cni-build", initializer=namespaces.join_machine_mounts)
        self._remover = ThreadPoolExecutor(1, "cni-remove", initializer=namespaces.join_machine_mounts)
        self._removals: Batch[str] = Batch(self._disconnect)

    def close(self) -> None:
        self._builders.shutdown()
        self._remover.shutdown()

    async def existing(self) -> dict[str, Connected]:
        """Host sides of our links, by name."""
        return {one.name: one for one in await self._in(self._builders, self._links.existing)}

    async def link(self, attachment: Attachment, mtu: int) -> Interface:
        """Put on file, built, and given the programs, which let nothing pass before the pod is known."""
        one = _Building(attachment, mtu)
        await carried_through(self._links_to_be.begin(one))
        return one.result()

    async def remove(self, attachment: Attachment) -> None:
        """Another plugin's stays."""
        if not attachment.chained:
            await self.remove_link(host_link(attachment.addresses))

    async def remove_link(self, name: str) -> None:
        await self._removals.add(name)

    async def recover(self, orphans: Collection[Connected]) -> list[Recovered]:
        return await self._in(self._builders, self._links.recover, orphans)

    async def check(self, attachment: Attachment, interface: Interface) -> list[str]:
        """What is not as it was made, one sentence each."""
        where, ifname = attachment.netns, attachment.key.ifname
        return await self._in(self._builders, self._links.check, where, ifname, attachment.addresses, interface)

    async def stands(self, attachment: Attachment, links: Mapping[str, Connected]) -> bool:
        """Whether it is complete, and its link and the very namespace are there. `links`: those existing."""
        return await self._in(self._builders, _stands, attachment, links)

    async def _build(self, wanted: Collection[_Building]) -> None:
        shares = [share for first in range(BUILDERS) if (share := list(wanted)[first::BUILDERS])]
        await asyncio.gather(*(self._in(self._builders, self._build_all, share) for share in shares))

    def _build_all(self, share: Collection[_Building]) -> None:
        for one in share:
            try:
                one.made = self._link(one.attachment, one.mtu)
            except OSError as error:
                one.made = error
        for one in share:
            try:
                if not isinstance(one.made, OSError):
                    self._links.await_ready(one.made)
            except OSError as error:
                one.made = error

    def _link(self, attachment: Attachment, mtu: int) -> Interface:
        self._record.write(attachment)
        where, ifname, addresses = attachment.netns, attachment.key.ifname, attachment.addresses
        guard = self._attach_programs  # it has no endpoint entry yet: everything is dropped
        if not attachment.chained:
            return self._links.connect(where, ifname, addresses, attachment.pod, mtu, guard)
        interface = self._links.adopt(where, ifname, addresses)
        guard(interface.index)
        return interface

    async def _disconnect(self, names: Collection[str]) -> None:
        await self._in(self._remover, self._links.disconnect_all, names)

    async def _in(self, pool: ThreadPoolExecutor, function: Callable[P, T], *args: P.args, **kwargs: P.kwargs) -> T:
        work = asyncio.get_running_loop().run_in_executor(pool, lambda: function(*args, **kwargs))
        return await carried_through(work)


async def carried_through(work: Coroutine[Any, Any, T] | asyncio.Future[T]) -> T:
    """The result of `work`, which goes on to its end if whoever waits is cancelled; that is so after it only."""
    future = asyncio.ensure_future(work)
    try:
        return await asyncio.shield(future)
    except asyncio.CancelledError:
        await asyncio.wait({future})
        if not future.cancelled() and (error := future.exception()):
            raise asyncio.CancelledError(str(error)) from error
        raise


def _stands(attachment: Attachment, links: Mapping[str, Connected]) -> bool:
    """Complete, and its link and the very namespace are there. Blocks."""
    interface = attachment.interface
    if interface is None:
        return False
    if not attachment.chained:
        link = links.get(interface.name)
        if link is None or link.ifindex != interface.index:
            return False
    if attachment.recovered and not attachment.netns:
        return True  # a veth is there as long as both its ends are
    return _is_netns(attachment.netns, interface)


def _is_netns(path: str, interface: Interface) -> bool:
    try:
        netns = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
    except OSError:
        return False
    try:
        return not interface.netns_cookie or interface.netns_cookie == namespaces.cookie(netns)
    except OSError:
        return False
    finally:
        os.close(netns)

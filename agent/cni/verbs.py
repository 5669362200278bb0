"""What is done for each command of the CNI spec (1.1, section 2). Requests about one container wait for one another."""

from __future__ import annotations

import asyncio
import errno
from collections.abc import Callable
from pathlib import Path
from weakref import WeakValueDictionary

from agent import log as logs
from agent.cni.attachments import Attachment
from agent.cni.place import NotConnected
from agent.cni.pods import CniPods
from agent.cni.protocol import (
    INVALID_CONFIG,
    INVALID_ENVIRONMENT,
    INVALID_NETNS,
    IO_FAILURE,
    NOT_AVAILABLE,
    TRY_AGAIN_LATER,
    UNKNOWN_CONTAINER,
    CniError,
    Made,
    Request,
    previous_addresses,
    result_body,
)
from agent.cni.queue import queued
from agent.pods import PodGone

ADD_S = 60.0
"""The plugin waits longer, and the kubelet longer still."""
QUEUE_S = 60.0
"""How often the queue is looked into: a plugin that was not answered in time leaves its DEL there, too."""

log = logs.get("cni")


class Verbs:
    """`handle` is what agent.cni.server.Server serves. `unready`: why an ADD could not be served now; empty where it
    could. `queue`: the plugin's folder. Requests wait until `run` has done what is in the queue."""

    def __init__(
        self, pods: CniPods, queue: Path, unready: Callable[[], str], mtu: Callable[[], int], add_s: float = ADD_S
    ) -> None:
        self._pods = pods
        self._queue = queue
        self._unready = unready
        self._mtu = mtu
        self._add_s = add_s
        self._locks: WeakValueDictionary[str, asyncio.Lock] = WeakValueDictionary()
        self._opened = asyncio.Event()

    async def run(self) -> None:
        """To be started once the server listens: whoever found nobody there before has left its DEL by then."""
        self._pods.guard()
        while True:
            await self._take_queue()
            self._opened.set()
            await asyncio.sleep(QUEUE_S)

    async def handle(self, request: Request) -> bytes:
        """What the plugin is to print. Raises CniError."""
        if request.command == "STATUS":
            self._status()
            return b""
        await self._opened.wait()
        if request.command == "GC":
            await self._collect(request)
            return b""
        lock = self._locks.setdefault(request.key.container_id, asyncio.Lock())
        async with lock:
            if request.command == "ADD":
                return await self._add(request)
            if request.command == "CHECK":
                await self._check(request)
            else:
                await self._delete(request)
            return b""

    # ---- ADD

    async def _add(self, request: Request) -> bytes:
        await self._make_way(request)
        try:
            async with asyncio.timeout(self._add_s):
                attachment = await self._pods.build(request)
        except TimeoutError:
            what = self._pods.problem(request.pod) if request.pod else ""
            raise CniError(TRY_AGAIN_LATER, f"the pod's network was not ready in {self._add_s:g} s", what) from None
        except PodGone as error:
            raise CniError(TRY_AGAIN_LATER, "the pod is gone", str(error)) from None
        except NotConnected as error:
            code = INVALID_ENVIRONMENT if error.errno == errno.EEXIST else INVALID_NETNS
            raise CniError(code, "the pod's network cannot be made", error.strerror or str(error)) from None
        except OSError as error:
            raise CniError(IO_FAILURE, "the pod's network cannot be made", str(error)) from error
        interface = attachment.interface
        assert interface is not None
        log.info("pod attached", pod=_name(attachment), container=request.key.container_id, interface=interface.name)
        made = Made(interface.name, interface.host_mac, interface.mac, self._mtu(), attachment.addresses)
        return result_body(request, made)

    async def _make_way(self, request: Request) -> None:
        """What the record says of this key, or another interface of the pod, before an ADD."""
        record = self._pods.record
        if (earlier := record.get(request.key)) is not None:
            if earlier.netns == request.netns and await self._pods.stands(earlier):
                where = f"{request.key.ifname} in {request.netns}"
                raise CniError(INVALID_ENVIRONMENT, "CNI_IFNAME exists already", f"{where}: DEL comes before ADD")
            await self._remove(earlier)
        others = [a for a in record if a.key.container_id == request.key.container_id and a.key != request.key]
        if others:
            text = f"it has {others[0].key.ifname}: have one network of Gatehouse's in the runtime's configuration"
            raise CniError(INVALID_CONFIG, "a pod has one interface of Gatehouse's", text)

    # ---- DEL

    async def _delete(self, request: Request) -> None:
        """What is not there is gone, as it should be."""
        attachment = self._pods.record.get(request.key) or self._recovered(request)
        if attachment is not None:
            await self._remove(attachment)
            log.info("pod detached", pod=_name(attachment), container=request.key.container_id)

    async def _remove(self, attachment: Attachment) -> None:
        try:
            await self._pods.remove(attachment)
        except OSError as error:
            raise CniError(IO_FAILURE, "the pod's network cannot be removed", str(error)) from error

    def _recovered(self, request: Request) -> Attachment | None:
        """An attachment whose container's id was lost, known by where or what it is."""
        addresses: tuple[bytes, ...] = ()
        if request.previous is not None:
            try:
                addresses = previous_addresses(request.previous, request.key.ifname)
            except CniError:
                log.warning("a DEL without a usable prevResult", container=request.key.container_id)
        for one in self._pods.record:
            if one.recovered and one.key.ifname == request.key.ifname:
                same_place = request.netns and Path(request.netns).resolve() == Path(one.netns).resolve()
                if same_place or set(addresses) & set(one.addresses):
                    return one
        return None

    async def _take_queue(self) -> None:
        """A DEL that is older than the attachment was about an earlier one of that name."""
        for one in await asyncio.to_thread(lambda: list(queued(self._queue))):
            lock = self._locks.setdefault(one.request.key.container_id, asyncio.Lock())
            async with lock:
                attachment = self._pods.record.get(one.request.key)
                try:
                    if attachment is None or attachment.made_ns < one.left_ns:
                        await self._delete(one.request)
                except CniError as error:
                    log.error("a queued deletion failed and stays", file=one.path.name, reason=str(error))
                    continue
                one.path.unlink(missing_ok=True)

    # ---- CHECK, GC, STATUS

    async def _check(self, request: Request) -> None:
        attachment = self._pods.record.get(request.key)
        if attachment is None:
            raise CniError(UNKNOWN_CONTAINER, "the container is not attached", "it was not added, or was deleted")
        wrong = await self._pods.check(attachment)
        if attachment.netns != request.netns:
            wrong.append(f"it was attached at {attachment.netns}")
        if request.previous is not None:
            expected = previous_addresses(request.previous, request.key.ifname)
            if lost := set(expected) - set(attachment.addresses):
                wrong.append(f"{len(lost)} addresses of prevResult are not the attachment's")
        if wrong:
            raise CniError(IO_FAILURE, "the pod's network is not as it was made", "; ".join(wrong))

    async def _collect(self, request: Request) -> None:
        """Remove this network's attachments that are not valid any more; what fails is told once all is tried."""
        failed = []
        for attachment in self._pods.record:
            if attachment.key in request.valid or (attachment.network != request.network and not attachment.recovered):
                continue
            if attachment.recovered and await self._pods.stands(attachment):
                continue  # nobody can list it: its container's id was lost
            lock = self._locks.setdefault(attachment.key.container_id, asyncio.Lock())
            async with lock:
                if self._pods.record.get(attachment.key) != attachment:
                    continue
                try:
                    await self._remove(attachment)
                    log.info("stale attachment removed", pod=_name(attachment), container=attachment.key.container_id)
                except CniError as error:
                    failed.append(f"{attachment.key}: {error.details}")
        if failed:
            raise CniError(IO_FAILURE, f"{len(failed)} stale attachments could not be removed", "; ".join(failed))

    def _status(self) -> None:
        starting = "" if self._opened.is_set() else "the agent is starting"
        if why := starting or self._unready() or self._pods.unready():
            raise CniError(NOT_AVAILABLE, "no pod can be attached now", why)


def _name(attachment: Attachment) -> str:
    return f"{attachment.pod.namespace}/{attachment.pod.name}"

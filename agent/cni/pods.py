"""Pods whose networks a container runtime asks for: an agent.pods.Pods.

An attachment is on record before any of it is built, and marked as complete once all of it is in force. So whatever
ends an ADD, what there is of it is known: to its own undoing, to the DEL that follows, or to the next agent.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Awaitable, Collection, Iterator, Mapping

import msgspec

from agent import log as logs
from agent.cni.attachments import Attachment, Attachments
from agent.cni.ipam import Ipam
from agent.cni.known import CniPod, KnownPods, is_same
from agent.cni.linking import Linking, carried_through
from agent.cni.place import Connected, host_link
from agent.cni.protocol import INVALID_CONFIG, TRY_AGAIN_LATER, CniError, Key, Request, previous_addresses
from agent.cni.surroundings import Surroundings
from agent.endpoints.endpoints import Adopted
from agent.objects import Pod
from agent.pods import PodGone
from policies.model import ObjectRef

log = logs.get("cni")


class CniPods:
    """In the network namespace of the thread that makes this, and used in the event loop's thread.

    `chained`: another plugin makes the pods' links and addresses. `notices`: what was wrong with the record.
    """

    def __init__(self, record: Attachments, ipam: Ipam, around: Surroundings, chained: bool = False) -> None:
        self.record = record
        self.notices: list[str] = []
        self._ipam = ipam
        self._around = around
        self._chained = chained
        self._known = KnownPods(around.unreachable)
        self._told: dict[ObjectRef, Attachment] = {}
        """By whose addresses the World knows a pod."""
        self._leaving: set[Key] = set()
        """What is about to be gone, and is not to be known to the World again."""
        self._under_way: set[asyncio.Future[None]] = set()
        self._stopping = False
        self._linking = Linking(around.links, around.attach_programs, record)

    # ---- agent.pods.Pods

    def __iter__(self) -> Iterator[CniPod]:
        return iter(self._known)

    def get(self, ref: ObjectRef) -> CniPod | None:
        return self._known.get(ref)

    def unready(self) -> str:
        """Why an ADD could not be served now; empty where it could."""
        return "the agent stops" if self._stopping else "" if self._chained else self._ipam.problem

    def problem(self, ref: ObjectRef) -> str:
        known = self._known.get(ref)
        return known.problem if known else ""

    def attachment(self, ref: ObjectRef) -> Attachment | None:
        """The complete one a pod has. Its `uid` says whether it is that pod's, or of an earlier one of its name."""
        found = self.record.of(ref)
        return found if found is not None and found.interface is not None else None

    async def adopt(self, refs: Collection[ObjectRef]) -> dict[ObjectRef, Adopted]:
        """Networks that stand, of pods in `refs`; others stay, too, for their DEL is still to come. What was not
        complete, or has lost its namespace or its link, is removed."""
        self.notices += self.record.load()
        links = await self._linking.existing()
        await self._recover(links)
        for attachment in self.record:
            self._ipam.hold(attachment.key, () if attachment.chained else attachment.addresses)
            if not await self._linking.stands(attachment, links):
                await self._clear(attachment)
        found: dict[ObjectRef, Adopted] = {}
        for ref in refs:
            if (complete := self.attachment(ref)) is not None and complete.interface is not None:
                self._told[ref] = complete
                found[ref] = Adopted(complete.interface, frozenset(complete.addresses))
        return found

    def want(self, pod: Pod) -> None:
        """The API server told of a pod; its network comes when the runtime asks for it, or stands from before."""
        local = self._known.tell(pod)
        told, attachment = self._told.get(pod.ref), self.attachment(pod.ref)
        if attachment is not None and is_same(attachment.uid, pod.uid) and attachment.key not in self._leaving:
            if told is None or told.key != attachment.key:
                self._told[pod.ref] = attachment
                self._spawn(self._tell(local, attachment))
            elif told is attachment:
                local.ready()
        elif told is not None and not is_same(told.uid, pod.uid):
            self._forget(pod.ref)  # of an earlier pod of this name: the new one must not be known by its addresses

    def drop(self, ref: ObjectRef) -> None:
        """The API server says that a pod is gone. Its network stays until the runtime ends it, but nothing passes."""
        self._known.forget(ref)
        if ref in self._told:
            self._forget(ref)

    async def settled(self) -> None:
        while self._under_way:
            await asyncio.wait(self._under_way)

    def leave(self) -> None:
        """The agent ends: nothing new is built, and there may be nobody any more who would take an address from the
        World. What the next agent finds in the kernel it brings to what is on record."""
        self._stopping = True

    async def stop(self) -> None:
        self.leave()
        await self.settled()

    async def close(self, keep: bool) -> None:  # noqa: ARG002
        """What is attached stays in any case: agent.cleanup removes it, and needs the record for that."""
        self._linking.close()

    def guard(self) -> None:
        """Once the kernel holds the plan: networks that are no known pod's, or not its newest, get the programs that
        are in force, under which nothing passes; those of an earlier version would go on by what they knew."""
        for one in self.record:
            if one.interface is not None:
                try:
                    if not self._around.has_programs(one.interface.index):
                        self._around.attach_programs(one.interface.index)
                except OSError as error:
                    log.error("a pod's network is not guarded", pod=str(one.pod), reason=str(error))

    # ---- what runtimes ask for

    async def build(self, request: Request) -> Attachment:
        """The network of an ADD, in force. Raises CniError, OSError, PodGone; then, and if this is cancelled, nothing
        of it is left."""
        assert request.pod is not None
        local = await self._known.wait_for(request.pod, request.uid)
        if local.pod.host_network:
            raise CniError(INVALID_CONFIG, f"{request.pod.namespace}/{request.pod.name} uses the node's network")
        if self._stopping:
            raise CniError(TRY_AGAIN_LATER, "the agent stops", "the next one will serve this")
        _compare_ports(request, local.pod)
        attachment = self._begin(request, local.pod)
        done: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        self._under_way.add(done)
        try:
            complete = await self._build(local, attachment)
        except BaseException as error:
            local.fail(str(error) or self._given_up(local))
            await carried_through(self._undo(attachment))
            raise
        finally:
            self._under_way.discard(done)
            done.set_result(None)
        local.ready()
        return complete

    async def remove(self, attachment: Attachment) -> None:
        """All there is of it. Raises OSError; it then stays on record."""
        self._leaving.add(attachment.key)
        try:
            if (told := self._told.get(attachment.pod)) is not None and told.key == attachment.key:
                del self._told[attachment.pod]
                if not self._stopping:
                    await self._around.detach(attachment.pod)
                if (local := self._known.get(attachment.pod)) is not None and local.state == "ready":
                    local.state = "creating"
            await self._clear(attachment)
        finally:
            self._leaving.discard(attachment.key)

    async def check(self, attachment: Attachment) -> list[str]:
        """What is not as ADD left it, one sentence each."""
        interface = attachment.interface
        if interface is None:
            return ["its ADD has not come to its end"]
        told = self._told.get(attachment.pod)
        wrong = await self._linking.check(attachment, interface)
        if not self._around.has_programs(interface.index):
            wrong.append(f"no policy is enforced at {interface.name}: its programs are not attached")
        if told is None or told.key != attachment.key:
            wrong.append(
                "nobody is known by its addresses: the pod is gone from the API server, or has another network"
            )
        return wrong

    async def stands(self, attachment: Attachment) -> bool:
        """Whether its namespace and its link are still there."""
        return await self._linking.stands(attachment, await self._linking.existing())

    # ---- steps

    def _begin(self, request: Request, pod: Pod) -> Attachment:
        """Noted, with its addresses."""
        key = request.key
        given = previous_addresses(request.previous or {}, key.ifname) if self._chained else self._ipam.give(key)
        if not given:
            raise CniError(
                INVALID_CONFIG, "prevResult names no address of the pod's interface", f"CNI_IFNAME {key.ifname}"
            )
        attachment = Attachment(
            key, pod.ref, request.uid or pod.uid, request.netns, request.network, given, time.time_ns(), self._chained
        )
        self.record.note(attachment)
        return attachment

    async def _build(self, local: CniPod, attachment: Attachment) -> Attachment:
        around, pod = self._around, attachment.pod
        local.step = "making its link"
        interface = await self._linking.link(attachment, around.mtu())
        self._told[pod] = attachment
        await around.stands(interface)
        local.step = "waiting for its identity, and for its policy to be in the kernel"
        await around.attach(pod, attachment.addresses, interface, attachment.uid)
        local.step = "waiting for the other nodes to be told of it"
        await around.published(pod)
        if self._told.get(pod) is not attachment:
            raise PodGone(f"{pod} was deleted")
        complete = msgspec.structs.replace(attachment, interface=interface)
        self.record.put(complete)
        self._told[pod] = complete
        return complete

    def _given_up(self, local: CniPod) -> str:
        why = self._around.unreachable()
        return f"not done in time, or the runtime gave up: it was {local.step}" + (f" ({why})" if why else "")

    async def _undo(self, attachment: Attachment) -> None:
        try:
            await self.remove(attachment)
        except OSError as error:  # on record as incomplete: a DEL is to follow, and the next agent sees to it, too
            log.error("an ADD that failed could not be undone", pod=str(attachment.pod), reason=str(error))

    async def _clear(self, attachment: Attachment) -> None:
        """Link, record, addresses, in this order: none is free before the one before it is gone."""
        await self._linking.remove(attachment)
        self.record.remove(attachment.key)
        self._ipam.take_back(attachment.key)

    async def _recover(self, links: Mapping[str, Connected]) -> None:
        """Links on no record: those whose record was lost are written anew, others removed."""
        known = {host_link(one.addresses) for one in self.record if not one.chained}
        orphans = [link for name, link in links.items() if name not in known]
        if not orphans:
            return
        found = await self._linking.recover(orphans)
        for one in found:
            key = Key(f"recovered-{one.interface.name}", one.ifname)
            self.record.put(
                Attachment(
                    key, one.pod, "", one.interface.netns, "", one.addresses, time.time_ns(), False, one.interface, True
                )
            )
        left = {link.name for link in orphans} - {one.interface.name for one in found}
        await asyncio.gather(*map(self._linking.remove_link, left))
        self.notices.append(
            f"{len(orphans)} pods' links were on no record: {len(found)} were put on it, {len(left)} removed; "
            "see the agent's state directory"
        )

    async def _tell(self, local: CniPod, attachment: Attachment) -> None:
        """A network that stood before its pod was known is that pod's."""
        interface = attachment.interface
        assert interface is not None
        if self._told.get(attachment.pod) is not attachment:
            return  # it was deleted meanwhile
        try:
            self._around.attach_programs(interface.index)  # those of an earlier agent may be there
            await self._around.attach(attachment.pod, attachment.addresses, interface, attachment.uid)
            await self._around.stands(interface)
            await self._around.published(attachment.pod)
            local.ready()
        except (PodGone, OSError) as error:
            local.fail(str(error))

    def _forget(self, ref: ObjectRef) -> None:
        del self._told[ref]
        self._spawn(self._around.detach(ref))

    def _spawn(self, work: Awaitable[None]) -> None:
        task = asyncio.ensure_future(work)
        self._under_way.add(task)
        task.add_done_callback(self._under_way.discard)


def _compare_ports(request: Request, pod: Pod) -> None:
    """Host ports are served as the Pod declares them (agent.world.hostports); another would be asked for in vain."""
    declared = {(port.host_port, port.number) for port in pod.ports}
    for mapping in request.port_mappings:
        if mapping.host_port and (mapping.host_port, mapping.container_port) not in declared:
            where = f"{pod.ref.namespace}/{pod.ref.name}"
            log.warning("a host port is not served, for the Pod does not declare it", pod=where, port=mapping.host_port)

"""Pods of manifests, each walked through its start by a task of its own (ARCHITECTURE.md, "A pod's start")."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Collection, Iterator
from contextlib import suppress

from agent import log as logs
from agent.datapath.tc import Hooks
from agent.endpoints.endpoints import Adopted, Endpoints
from agent.objects import Interface, Pod
from policies.model import ObjectRef

RETRY_S = (0.2, 30.0)

Enforce = Callable[[ObjectRef, Interface], Awaitable[None]]
"""Returns once the kernel enforces the pod's policy on this interface."""
Stands = Callable[[Interface], Awaitable[None]]
"""Once the link is up: returns when it is as the pod's processes are to find it."""

log = logs.get("pods")


class StartedPod:
    """An agent.pods.LocalPod, and how far it has come."""

    def __init__(self, pod: Pod) -> None:
        self.pod = pod
        self.state = "creating"
        self.problem = ""
        self.over = asyncio.Event()  # it is to be gone, or another version of it takes over
        self.task: asyncio.Task[None] | None = None


class LocalPods:
    """Used in the event loop's thread; `endpoints` has threads for what blocks."""

    def __init__(self, endpoints: Endpoints, hooks: Hooks, enforce: Enforce, stands: Stands) -> None:
        self._endpoints = endpoints
        self._hooks = hooks
        self._enforce = enforce
        self._stands = stands
        self._pods: dict[ObjectRef, StartedPod] = {}
        self._leaving: dict[ObjectRef, asyncio.Task[None]] = {}

    def __iter__(self) -> Iterator[StartedPod]:
        return iter(self._pods.values())

    def get(self, ref: ObjectRef) -> StartedPod | None:
        return self._pods.get(ref)

    def problem(self, ref: ObjectRef) -> str:
        """Why a pod is not as it should be; empty where it is."""
        local, state = self._pods.get(ref), self._endpoints.state(ref)
        if local is not None and local.problem:
            return local.problem
        ended = [c for c in state.containers if c.state != "running" and c.exit_status] if state else []
        return "; ".join(f"container {c.name} ended with status {c.exit_status}" for c in ended)

    # ---- what is wanted

    def want(self, pod: Pod) -> None:
        """A pod with its addresses: new, changed, or one whose network stands from before."""
        known = self._pods.get(pod.ref)
        if known is not None and _runs_the_same(known.pod, pod):
            known.pod = pod
            return
        if known is not None:
            known.over.set()
        local = self._pods[pod.ref] = StartedPod(pod)
        local.task = asyncio.create_task(self._walk(local, known.task if known else self._leaving.get(pod.ref)))

    def drop(self, ref: ObjectRef) -> None:
        """A pod that is to be gone; one of an earlier agent too. Its policy is gone from the kernel already."""
        local = self._pods.pop(ref, None)
        if local is not None:
            local.over.set()
        earlier = local.task if local else self._leaving.get(ref)
        self._leaving[ref] = asyncio.create_task(self._leave(ref, earlier))

    async def settled(self) -> None:
        """Until nothing is under way but what has failed and waits to be tried again."""
        while under_way := [p.task for p in self if p.state == "creating" and p.task] + [*self._leaving.values()]:
            await asyncio.wait(under_way, timeout=0.1)

    async def adopt(self, refs: Collection[ObjectRef]) -> dict[ObjectRef, Adopted]:
        return await self._endpoints.adopt(refs)

    async def stop(self) -> None:
        for local in self:
            local.over.set()
        tasks = [local.task for local in self if local.task is not None]
        await asyncio.gather(*tasks, *self._leaving.values())

    async def close(self, keep: bool) -> None:
        await self._endpoints.close(keep=keep)

    # ---- the walk

    async def _walk(self, local: StartedPod, earlier: asyncio.Task[None] | None) -> None:
        """Until the pod is ready; what fails is tried again, at growing intervals. A step that has begun is not broken
        off: what it makes must be known to whoever removes it."""
        if earlier is not None:
            await asyncio.wait([earlier])
        ref, delay = local.pod.ref, RETRY_S[0]
        while not local.over.is_set():
            try:
                await self._start(local)
            except OSError as error:
                local.state, local.problem = "failed", str(error)
                log.warning("pod not started", pod=_name(ref), reason=str(error), again_in_s=delay)
            else:
                if not local.over.is_set():
                    local.state, local.problem = "ready", ""
                    log.info("pod ready", pod=_name(ref))
                return
            with suppress(TimeoutError):
                await asyncio.wait_for(local.over.wait(), delay)
            delay = min(delay * 2, RETRY_S[1])

    async def _start(self, local: StartedPod) -> None:
        pod = local.pod
        if not pod.host_network:
            interface = await self._endpoints.ensure(pod, pod.addresses)
            if local.over.is_set():
                return
            self._hooks.attach(interface.index)  # it has no endpoint entry yet: everything is dropped
            await asyncio.gather(self._endpoints.activate(pod.ref), self._enforce(pod.ref, interface))
            await self._stands(interface)
        if not local.over.is_set():
            await self._endpoints.start(pod)

    async def _leave(self, ref: ObjectRef, earlier: asyncio.Task[None] | None) -> None:
        if earlier is not None:
            await asyncio.wait([earlier])
        try:
            await self._endpoints.remove(ref)
            log.info("pod removed", pod=_name(ref))
        except OSError as error:
            log.error("pod not removed", pod=_name(ref), reason=str(error))
        if self._leaving.get(ref) is asyncio.current_task():
            del self._leaving[ref]


def _runs_the_same(old: Pod, new: Pod) -> bool:
    """Whether what changed, if anything, is for policy alone."""
    return (old.addresses, old.host_network, old.containers, old.restart_always) == (
        new.addresses,
        new.host_network,
        new.containers,
        new.restart_always,
    )


def _name(ref: ObjectRef) -> str:
    return f"{ref.namespace}/{ref.name}"

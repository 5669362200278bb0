"""The pods of this node made real, one at a time or many at once: what agent.loop calls.

The order for a pod: `ensure` (its network stands, nothing passes) → programs attached → `activate` → policy in the
kernel → `start` (its commands run). And back: `stop` → `remove`. After a restart of the agent `adopt` comes first.
"""

from __future__ import annotations

import asyncio
import contextlib
import os
from collections.abc import Callable, Collection, Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import ParamSpec, TypeVar

import msgspec

from agent.endpoints import launch, namespaces
from agent.endpoints.batch import Batch
from agent.endpoints.cgroups import PodCgroups
from agent.endpoints.container import Backoff, ContainerState
from agent.endpoints.processes import Processes
from agent.endpoints.sandbox import Sandboxes
from agent.objects import Interface, Pod
from policies.model import ObjectRef

P = ParamSpec("P")
T = TypeVar("T")


class Adopted(msgspec.Struct, frozen=True):
    """A pod's network that an earlier agent built. Addresses are 16 bytes each."""

    interface: Interface
    addresses: frozenset[bytes]


class EndpointState(msgspec.Struct, frozen=True):
    """`state`: creating, ready (it can send), removing, or failed; `problem` says why it failed."""

    state: str
    problem: str = ""
    interface: Interface | None = None
    containers: tuple[ContainerState, ...] = ()


class _Endpoint:
    def __init__(self) -> None:
        self.state = "creating"
        self.problem = ""
        self.interface: Interface | None = None
        self.addresses: tuple[bytes, ...] = ()
        self.lock = asyncio.Lock()


class Endpoints:
    """Networks and processes of pods around the node namespace of the thread that makes this object.

    `instance`: letters and digits, part of the names of namespaces. `blanks`: how many namespaces are kept ready.
    `cgroup`: folder of a cgroup2 file system, below which each pod's processes have a cgroup of their own.
    Calls for one pod are done one after the other; errors are OSError, and leave the endpoint `failed`.
    """

    def __init__(
        self,
        instance: str,
        state_dir: Path,
        mtu: int = 1500,
        backoff: Backoff | None = None,
        grace_s: float = 5.0,
        blanks: int = 4,
        cgroup: Path | None = None,
    ) -> None:
        cgroups = PodCgroups(cgroup, instance) if cgroup else None
        self._instance = instance
        self._sandboxes = Sandboxes(instance, mtu, blanks)
        self._node = namespaces.open_current()
        self._processes = Processes(state_dir / "pods", backoff, grace_s, cgroups)
        self._endpoints: dict[ObjectRef, _Endpoint] = {}
        # Threads of their own: builds wait for nothing, least of all for removals, which take ten times as long.
        self._builder = ThreadPoolExecutor(1, "build", initializer=namespaces.join_machine_mounts)
        self._remover = ThreadPoolExecutor(1, "remove", initializer=namespaces.join_machine_mounts)
        self._removals: Batch[str] = Batch(self._remove_names)
        self._in_flight = 0
        self._refilling: asyncio.Task[None] | None = None

    async def adopt(self, pods: Collection[ObjectRef]) -> dict[ObjectRef, Adopted]:
        """Find what an earlier agent left. What belongs to one of `pods` stays as it is and is returned; all else is
        removed, processes included. To be called once, before anything else."""
        names = {namespaces.netns_name(self._instance, pod): pod for pod in pods}
        existing = await self._build(self._sandboxes.list_existing)
        adopted: dict[ObjectRef, Adopted] = {}
        for found in existing:
            if found.name in names and found.interface:
                adopted[names[found.name]] = Adopted(found.interface, found.addresses)
        for pod, network in adopted.items():
            endpoint = self._endpoints[pod] = _Endpoint()
            endpoint.interface, endpoint.addresses = network.interface, tuple(network.addresses)
        lost = {names[found.name] for found in existing if found.name in names} - adopted.keys()
        kept = set(pods) - lost
        await self._processes.stop_others(kept)
        orphans = [found.name for found in existing if names.get(found.name) not in adopted]
        await asyncio.gather(*map(self._removals.add, orphans))
        self._refill()
        return adopted

    async def ensure(self, pod: Pod, addresses: Sequence[bytes]) -> Interface:
        """The pod's network with these addresses (16 bytes each, at least one): what stands if it has them, or a new
        one. A new one is not connected yet: see `activate`. Not for hostNetwork pods, which have none of their own.
        """
        if pod.host_network:
            raise ValueError(f"{pod.ref} uses the node's network")
        endpoint = self._endpoints.setdefault(pod.ref, _Endpoint())
        async with endpoint.lock:
            self._endpoints[pod.ref] = endpoint
            if endpoint.interface and set(endpoint.addresses) == set(addresses):
                return endpoint.interface
            with self._working_on(endpoint):
                if endpoint.interface:
                    await self._take_down(pod.ref, endpoint)
                endpoint.state = "creating"
                endpoint.interface = await self._build(self._sandboxes.build, pod.ref, addresses)
                endpoint.addresses = tuple(addresses)
            return endpoint.interface

    async def activate(self, pod: ObjectRef) -> None:
        """Connect the network that `ensure` or `adopt` returned; after this the pod can send. May be repeated."""
        endpoint = self._endpoints[pod]
        async with endpoint.lock:
            with self._working_on(endpoint):
                if endpoint.interface is None:
                    raise FileNotFoundError(f"{pod} has no network: it was removed meanwhile")
                await self._build(self._sandboxes.activate, endpoint.interface, endpoint.addresses)
                endpoint.state, endpoint.problem = "ready", ""
        self._refill()

    async def start(self, pod: Pod) -> None:
        """Have the commands of the pod's containers running, as the manifest says; those that do already go on."""
        endpoint = self._endpoints.setdefault(pod.ref, _Endpoint())
        async with endpoint.lock:
            with self._working_on(endpoint):
                if pod.host_network:
                    endpoint.state = "ready"
                    await self._processes.start(pod, self._node)
                    return
                if endpoint.interface is None:
                    raise FileNotFoundError(f"{pod.ref} has no network: ensure it first")
                netns = await self._build(os.open, endpoint.interface.netns, os.O_RDONLY | os.O_CLOEXEC)
                try:
                    await self._processes.start(pod, netns)
                finally:
                    os.close(netns)

    async def stop(self, pod: ObjectRef) -> None:
        """End the pod's processes, while it is still connected: SIGTERM, after the grace period SIGKILL."""
        endpoint = self._endpoints.setdefault(pod, _Endpoint())
        async with endpoint.lock:
            with self._working_on(endpoint):
                endpoint.state = "removing"
                await self._processes.stop([pod])

    async def remove(self, pod: ObjectRef) -> None:
        """Remove all there is of a pod; processes are ended first where `stop` did not. What is gone is no error."""
        endpoint = self._endpoints.setdefault(pod, _Endpoint())
        async with endpoint.lock:
            with self._working_on(endpoint):
                endpoint.state = "removing"
                await self._take_down(pod, endpoint)
            if self._endpoints.get(pod) is endpoint:
                del self._endpoints[pod]

    def state(self, pod: ObjectRef) -> EndpointState | None:
        """None for a pod that this object was never told of, or that was removed."""
        endpoint = self._endpoints.get(pod)
        if endpoint is None:
            return None
        containers = tuple(self._processes.states(pod))
        return EndpointState(endpoint.state, endpoint.problem, endpoint.interface, containers)

    async def close(self, keep: bool) -> None:
        """`keep`: pods go on without this agent, to be adopted by the next. Otherwise everything is removed."""
        if self._refilling:
            await self._refilling
        if not keep:
            await asyncio.gather(*map(self.remove, {*self._endpoints, *self._processes.known()}))
            rest = await self._build(namespaces.list_names, self._instance)
            await asyncio.gather(*map(self._removals.add, rest))
        await self._processes.close()
        await self._build(self._sandboxes.close)
        self._builder.shutdown()
        self._remover.shutdown()
        os.close(self._node)

    async def _take_down(self, pod: ObjectRef, endpoint: _Endpoint) -> None:
        await self._processes.stop([pod])
        await self._removals.add(namespaces.netns_name(self._instance, pod))
        endpoint.interface = None

    async def _remove_names(self, names: Iterable[str]) -> None:
        await asyncio.get_running_loop().run_in_executor(self._remover, self._remove_blocking, list(names))

    def _remove_blocking(self, names: list[str]) -> None:
        inodes = {inode for inode in map(namespaces.inode_of, names) if inode}
        if inodes:
            launch.kill_in_netns(inodes)
        self._sandboxes.destroy_named(names)

    async def _build(self, function: Callable[P, T], *args: P.args, **kwargs: P.kwargs) -> T:
        loop = asyncio.get_running_loop()
        self._in_flight += 1
        try:
            return await loop.run_in_executor(self._builder, lambda: function(*args, **kwargs))
        finally:
            self._in_flight -= 1

    @contextlib.contextmanager
    def _working_on(self, endpoint: _Endpoint) -> Iterator[None]:
        try:
            yield
        except OSError as error:
            endpoint.state, endpoint.problem = "failed", str(error)
            raise

    def _refill(self) -> None:
        """Make blanks for the next pods, when no pod is waiting."""
        if self._in_flight == 0 and (self._refilling is None or self._refilling.done()):
            self._refilling = asyncio.get_running_loop().create_task(self._refill_while_idle())

    async def _refill_while_idle(self) -> None:
        loop = asyncio.get_running_loop()
        while self._in_flight == 0 and await loop.run_in_executor(self._builder, self._sandboxes.refill):
            pass

"""A KubernetesSource that is followed: what its batches amount to, and when."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable, Mapping, Sequence
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import msgspec
from apiserver import ApiServer
from apiserver.real import RealServer

from agent.kube.client import ApiClient, Timeouts
from agent.kube.credentials import Access
from agent.kube.reflector import Timings
from agent.kube.resources import Resource, watched
from agent.kube.source import KubernetesSource
from agent.kube.text import kept, read
from agent.objects import Object
from agent.sources.source import Batch
from policies.model import ObjectRef

NODE = "n1"
QUICK = Timings(watch_s=(300.0, 600.0), lasting_s=1.0, first_delay_s=0.02, most_delay_s=0.3, absent_s=0.1, doubt_s=0.05)
PATIENT = Timeouts(connect_s=60.0, read_s=60.0, whole_s=60.0, stall_s=60.0)
SHORT = Timeouts(connect_s=1.0, read_s=0.5, whole_s=5.0, stall_s=20.0)
"""Where a server that says nothing is given up."""

Json = dict[str, Any]


def made(api_version: str, kind: str, name: str, namespace: str = "", /, **fields: Any) -> Json:
    metadata = {"name": name} | ({"namespace": namespace} if namespace else {})
    return {"apiVersion": api_version, "kind": kind, "metadata": metadata | fields.pop("metadata", {}), **fields}


def policy(name: str, namespace: str = "shop", **labels: str) -> Json:
    """It isolates the pods with these labels."""
    spec = {"podSelector": {"matchLabels": labels}}
    return made("networking.k8s.io/v1", "NetworkPolicy", name, namespace, spec=spec)


def identity(number: int, **labels: str) -> Json:
    spec = {"namespace": "shop", "serviceAccount": "default", "labels": labels}
    return made("gatehouse.io/v1alpha1", "SecurityIdentity", str(number), spec=spec)


def pod(name: str, node: str = NODE, **labels: str) -> Json:
    spec = {"nodeName": node, "containers": [{"name": "c", "image": "i"}]}
    return made("v1", "Pod", name, "shop", metadata={"labels": labels}, spec=spec)


def ref(given: Json) -> ObjectRef:
    return ObjectRef(given["kind"], given["metadata"].get("namespace", ""), given["metadata"]["name"])


class Follower:
    """`world`: the objects by what was told of them, `batches` those after the first."""

    def __init__(self, source: KubernetesSource) -> None:
        self.source = source
        self.world: dict[ObjectRef, Object] = {}
        self.first: Batch | None = None
        self.batches: list[Batch] = []
        self._told = asyncio.Event()

    async def start(self) -> Batch:
        self.first = await self.source.initial()
        self._apply(self.first)
        return self.first

    async def run(self) -> None:
        async for batch in self.source.watch():
            self.batches.append(batch)
            self._apply(batch)

    async def until(self, holds: Callable[[], bool], within_s: float = 90.0) -> None:
        async with asyncio.timeout(within_s):
            while not holds():
                self._told.clear()
                await self._told.wait()

    def names(self, kind: str) -> set[str]:
        return {ref.name for ref in self.world if ref.kind == kind}

    def told(self, kind: str) -> list[str]:
        """Changes after the first batch, in their order: "web", or "-web" where it went."""
        changes = [change for batch in self.batches for change in batch.changes if change.ref.kind == kind]
        return [change.ref.name if change.object is not None else f"-{change.ref.name}" for change in changes]

    def _apply(self, batch: Batch) -> None:
        for change in batch.changes:
            if change.object is None:
                del self.world[change.ref]  # what goes was there
            else:
                self.world[change.ref] = change.object
        self._told.set()


@asynccontextmanager
async def reaching(url: str, timeouts: Timeouts = PATIENT) -> AsyncIterator[ApiClient]:
    async def load(refused: bool) -> Access:
        return Access(url)

    client = ApiClient(load, timeouts=timeouts)
    try:
        yield client
    finally:
        await client.close()


@asynccontextmanager
async def following(
    url: str,
    state: Path,
    *,
    node: str = NODE,
    timings: Timings = QUICK,
    timeouts: Timeouts = PATIENT,
    api_wait_s: float = 0.1,
    secret_namespaces: Sequence[str] = (),
    started: bool = True,
) -> AsyncIterator[Follower]:
    async with reaching(url, timeouts) as client:
        source = KubernetesSource(
            client, node, state, secret_namespaces=secret_namespaces, api_wait_s=api_wait_s, timings=timings
        )
        follower = Follower(source)
        task = None
        try:
            if started:
                await follower.start()
                task = asyncio.create_task(follower.run())
            yield follower
        finally:
            if task is not None:
                task.cancel()
            source.close()
            await asyncio.gather(*source._tasks, *([task] if task else []), return_exceptions=True)


def stored(api: ApiServer | RealServer, node: str = NODE) -> Mapping[ObjectRef, Object]:
    """What a source is to come to."""
    found: dict[ObjectRef, Object] = {}
    for resource in watched(node):
        for given in _listed(api, resource):
            if resource.kind == "Pod" and given["spec"].get("nodeName") != node:
                continue
            file = resource.file(given["metadata"].get("namespace", ""), given["metadata"]["name"])
            item = read(kept(msgspec.json.encode(given), resource, resource.versions[0]), file)
            assert item.object is not None, item.problems
            found[item.object.ref] = item.object
    return found


def _listed(api: ApiServer | RealServer, resource: Resource) -> list[Json]:
    try:
        return api.objects(resource.plural)
    except KeyError:
        return []

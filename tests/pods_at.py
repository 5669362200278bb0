"""Endpoints around a scratch node, and pods to give them."""

from __future__ import annotations

import asyncio
import contextlib
import functools
from collections.abc import AsyncIterator, Callable, Coroutine
from pathlib import Path
from typing import Any

import rig

from agent.endpoints.container import Backoff
from agent.endpoints.endpoints import Endpoints
from agent.objects import Container, Pod
from policies.address import parse_address
from policies.model import ObjectRef, Origin

ADDRESSES = (parse_address("10.244.0.1"), parse_address("fd00:10:244::1"))
QUICK = Backoff(initial_s=0.05, maximum_s=0.2, reset_s=600)


def in_loop(test: Callable[..., Coroutine[Any, Any, None]]) -> Callable[..., None]:
    """Run an async test to its end, at most four minutes."""

    @functools.wraps(test)
    def run(*args: object, **kwargs: object) -> None:
        async def bounded() -> None:
            await asyncio.wait_for(test(*args, **kwargs), 240)

        asyncio.run(bounded())

    return run


def make_pod(*containers: Container, name: str = "web", restart: bool = True, host_network: bool = False) -> Pod:
    return Pod(
        ObjectRef("Pod", "shop", name),
        Origin("pods.yaml", 1),
        {},
        host_network=host_network,
        containers=containers,
        restart_always=restart,
    )


def shell(script: str, name: str = "main", **more: Any) -> Container:
    return Container(name, command=("/bin/sh", "-c", script), **more)


class Site:
    """A node, and how to make the endpoints of an agent on it."""

    def __init__(self, node: rig.Node, instance: str, state_dir: Path) -> None:
        self.node = node
        self.instance = instance
        self.state_dir = state_dir

    def output(self, pod: Pod, container: str = "main") -> str:
        path = self.state_dir / "pods" / pod.ref.namespace / pod.ref.name / f"{container}.log"
        return path.read_text() if path.exists() else ""

    @contextlib.asynccontextmanager
    async def endpoints(self, keep: bool = False, **options: Any) -> AsyncIterator[Endpoints]:
        settings: dict[str, Any] = {"backoff": QUICK, "grace_s": 2.0, "blanks": 1}
        made = self.node.call(Endpoints, self.instance, self.state_dir, **(settings | options))
        try:
            yield made
        finally:
            await made.close(keep)

    @contextlib.asynccontextmanager
    async def running(self, pod: Pod, **options: Any) -> AsyncIterator[Endpoints]:
        """Endpoints with one pod, started."""
        async with self.endpoints(**options) as endpoints:
            await bring_up(endpoints, pod)
            yield endpoints


async def bring_up(endpoints: Endpoints, pod: Pod) -> None:
    if not pod.host_network:
        await endpoints.ensure(pod, ADDRESSES)
        await endpoints.activate(pod.ref)
    await endpoints.start(pod)


async def until(condition: Callable[[], Any], timeout_s: float = 20.0) -> Any:
    """Poll for what sends no event, without blocking the loop."""
    async with asyncio.timeout(timeout_s):
        while not (value := condition()):
            await asyncio.sleep(0.005)
    return value

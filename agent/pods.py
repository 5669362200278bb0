"""The pods of this node, whoever makes them: the agent itself (agent.localpods), or a runtime over CNI (agent.cni)."""

from __future__ import annotations

from collections.abc import Collection, Iterator
from typing import Protocol

from agent.endpoints.endpoints import Adopted
from agent.objects import Pod
from policies.model import ObjectRef


class PodGone(Exception):
    """The pod was deleted, or its network taken down, while somebody waited for it."""


class LocalPod(Protocol):
    """`state`: creating | ready | failed (agent.status.ENDPOINT_STATES). `problem` says why it is not ready."""

    pod: Pod
    state: str
    problem: str


class Pods(Protocol):
    """Used in the event loop's thread."""

    def __iter__(self) -> Iterator[LocalPod]: ...

    def get(self, ref: ObjectRef) -> LocalPod | None: ...

    def problem(self, ref: ObjectRef) -> str:
        """Why a pod is not as it should be; empty where it is."""

    async def adopt(self, refs: Collection[ObjectRef]) -> dict[ObjectRef, Adopted]:
        """What an earlier agent left. `refs`: pods that are written or had numbers. Once, before anything else."""

    def want(self, pod: Pod) -> None:
        """A pod this node is to run is written thus."""

    def drop(self, ref: ObjectRef) -> None:
        """A pod that is to be gone; one of an earlier agent too. Its policy is gone from the kernel already."""

    async def settled(self) -> None:
        """Until nothing is under way but what has failed and waits to be tried again."""

    async def stop(self) -> None:
        """Begin nothing more; return once what is under way is done."""

    async def close(self, keep: bool) -> None:
        """After `stop`. `keep`: pods stay as they are, for the next agent to adopt; otherwise all is removed."""

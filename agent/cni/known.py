"""Pods of this node that the API server has told of, and who waits for one."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Iterator

from agent.cni.protocol import TRY_AGAIN_LATER, CniError
from agent.objects import Pod
from policies.model import ObjectRef

KNOWN_S = 20.0
"""How long an ADD waits for its pod: the runtime may hear of it a moment before we do."""


class CniPod:
    """An agent.pods.LocalPod."""

    def __init__(self, pod: Pod) -> None:
        self.pod = pod
        self.state = "ready" if pod.host_network else "creating"
        self.problem = ""
        self.step = ""
        """What an ADD of it is doing."""

    def ready(self) -> None:
        self.state, self.problem = "ready", ""

    def fail(self, problem: str) -> None:
        self.state, self.problem = "failed", problem


class KnownPods:
    """`unreachable`: why the API server cannot be asked; empty where it can."""

    def __init__(self, unreachable: Callable[[], str]) -> None:
        self._unreachable = unreachable
        self._pods: dict[ObjectRef, CniPod] = {}
        self._told: dict[ObjectRef, asyncio.Event] = {}

    def __iter__(self) -> Iterator[CniPod]:
        return iter(self._pods.values())

    def get(self, ref: ObjectRef) -> CniPod | None:
        return self._pods.get(ref)

    def tell(self, pod: Pod) -> CniPod:
        """A pod is thus. One with another uid is another pod."""
        known = self._pods.get(pod.ref)
        if known is None or known.pod.uid != pod.uid:
            known = self._pods[pod.ref] = CniPod(pod)
        known.pod = pod
        if (told := self._told.get(pod.ref)) is not None:
            told.set()
        return known

    def forget(self, ref: ObjectRef) -> None:
        self._pods.pop(ref, None)

    async def wait_for(self, ref: ObjectRef, uid: str, timeout_s: float = KNOWN_S) -> CniPod:
        """The pod with this uid ("": any); an older one of the same name is not meant. Raises CniError."""
        if (known := self._pods.get(ref)) is not None and is_same(uid, known.pod.uid):
            return known
        told = self._told.setdefault(ref, asyncio.Event())
        try:
            async with asyncio.timeout(timeout_s):
                while (found := self._pods.get(ref)) is None or not is_same(uid, found.pod.uid):
                    told.clear()
                    await told.wait()
                return found
        except TimeoutError:
            raise self._unknown(ref, timeout_s) from None

    def _unknown(self, ref: ObjectRef, timeout_s: float) -> CniError:
        found = self._pods.get(ref)
        if reason := self._unreachable():
            why = reason
        elif found is not None:
            why = f"what it told of is an earlier pod of that name (uid {found.pod.uid})"
        else:
            why = "it answers; see whether the pod still exists, and is to run on this node"
        what = f"the API server has not told of pod {ref.namespace}/{ref.name} within {timeout_s:g} s"
        return CniError(TRY_AGAIN_LATER, what, why)


def is_same(uid: str, other: str) -> bool:
    """Whether two uids may be one pod's; "" where nobody told."""
    return not uid or not other or uid == other

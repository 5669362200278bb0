"""Tells authors of CiliumNetworkPolicies what became of them, in their status: done by the holder of the Lease.

(A NetworkPolicy has no status to write to.)
"""

from __future__ import annotations

import asyncio
import random
from collections.abc import Callable, Mapping
from datetime import UTC, datetime

import msgspec

from agent import log
from agent.kube.bodies import json_of, policy_name
from agent.kube.client import ApiClient
from agent.kube.conditions import NodeStatusHead, PolicyBook, PolicyHead
from agent.kube.discovery import Discovery
from agent.kube.inbox import Inbox
from agent.kube.pace import Pace
from agent.kube.reflector import Reflector, Timings
from agent.kube.replica import Update
from agent.kube.resources import Resource
from agent.kube.text import older
from agent.kube.writes import ApiFailure, Collection, Conflict, Missing, Objects

PERIOD_S = 5.0
BETWEEN_S = 0.05
"""Two writes: each is an event to every agent."""
AT_ONCE = 50
"""Updates, after which others get their turn."""
NODE_STATUS = Resource("NodeStatus", "nodestatuses", "gatehouse.io", ("v1alpha1",), discovered=True, essential=False)
POLICIES = (
    Resource("CiliumNetworkPolicy", "ciliumnetworkpolicies", "cilium.io", ("v2",), discovered=True, essential=False),
    Resource(
        "CiliumClusterwideNetworkPolicy",
        "ciliumclusterwidenetworkpolicies",
        "cilium.io",
        ("v2",),
        discovered=True,
        essential=False,
    ),
)

logger = log.get("policystatus")


class PolicyStatus:
    """One for each time the Lease is held."""

    def __init__(
        self,
        client: ApiClient,
        timings: Timings = Timings(),  # noqa: B008
        pace: Pace | None = None,
        *,
        period_s: float = PERIOD_S,
        clock_s: Callable[[], float] | None = None,
    ) -> None:
        discovery = Discovery(client)
        self._inbox = Inbox()
        self._reflectors = [
            Reflector(client, discovery, resource, self._inbox, timings) for resource in (NODE_STATUS, *POLICIES)
        ]
        self._objects: Mapping[str, Objects] = {
            resource.kind: Collection(client, f"apis/{resource.group}/{resource.versions[0]}", resource.plural)
            for resource in POLICIES
        }
        self._book = PolicyBook()
        self._pace, self._period_s = pace or Pace(), period_s
        self._clock_s = clock_s or asyncio.get_running_loop().time
        self._names: dict[str, str] = {}  # file of an update → the policy's or node's name
        self._said = ""

    async def run(self) -> None:
        runs = (self._absorb(), *(reflector.run() for reflector in self._reflectors))
        follows = [asyncio.create_task(run) for run in runs]
        try:
            while True:
                await asyncio.sleep(self._period_s * random.uniform(0.8, 1.2))  # noqa: S311
                if not len(self._inbox) and all(reflector.settled.is_set() for reflector in self._reflectors):
                    await self._write()
        finally:
            for task in follows:
                task.cancel()
            await asyncio.gather(*follows, return_exceptions=True)

    # ---- inside

    async def _absorb(self) -> None:
        while True:
            await self._inbox.some()
            for _ in range(AT_ONCE):
                if (update := self._inbox.pop()) is None:
                    break
                try:
                    self._take(update)
                except msgspec.MsgspecError as error:
                    logger.warning("an object cannot be read", object=update.file, error=str(error))
            await asyncio.sleep(0)

    def _take(self, update: Update) -> None:
        if update.resource.kind == NODE_STATUS.kind:
            report = None if update.text is None else msgspec.json.decode(update.text, type=NodeStatusHead)
            name = self._names.pop(update.file, "") if report is None else report.metadata.name
            self._book.put_node(name, report)
        else:
            head = None if update.text is None else msgspec.json.decode(update.text, type=PolicyHead)
            if head is None:
                name = self._names.pop(update.file, "")
            else:
                name = policy_name(update.resource.kind, head.metadata.namespace, head.metadata.name)
            self._book.put_policy(name, head, self._clock_s())
        if update.text is not None:
            self._names[update.file] = name

    async def _write(self) -> None:
        for name, body in self._book.due(self._clock_s(), datetime.now(UTC)):
            if (head := self._book.policies.get(name)) is None:
                continue
            meta, objects = head.metadata, self._objects[name.partition("/")[0]]
            patch = json_of(body)
            try:
                raw = await self._pace.once(
                    lambda objects=objects, meta=meta, patch=patch: objects.merge(  # type: ignore[misc]
                        meta.name, patch, meta.namespace, status=True
                    )
                )
            except (Conflict, Missing):
                continue  # the watch will tell of what it is by now
            except ApiFailure as failure:
                self._say(str(failure))
                self._book.told(name, self._clock_s())
                return
            self._said = ""
            answer = msgspec.json.decode(raw, type=PolicyHead)
            known = self._book.policies.get(name)  # the watch may have told more meanwhile
            if known and not older(answer.metadata.resource_version, known.metadata.resource_version):
                self._book.put_policy(name, answer, self._clock_s())
            self._book.told(name, self._clock_s())
            await asyncio.sleep(BETWEEN_S)

    def _say(self, message: str) -> None:
        if message != self._said:
            logger.warning("the status of policies cannot be written", error=message)
        self._said = message

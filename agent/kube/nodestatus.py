"""This node's NodeStatus: which policies it enforces, for whoever tells their authors."""

from __future__ import annotations

import asyncio
import random
from collections.abc import Callable, Mapping, Sequence

import msgspec

from agent import log
from agent.kube import bodies
from agent.kube.bodies import RefusedPolicy
from agent.kube.ownobject import OwnObject
from agent.kube.pace import Pace
from agent.kube.writes import Away, Objects, Refused

LEAST_S, MOST_S = 5.0, 10.0
"""Between a change and its report: there may be a thousand nodes to which the same happens at the same moment."""
VERIFY_S = 900.0
AGAIN_S = 300.0

logger = log.get("nodestatus")


class Report(msgspec.Struct, frozen=True):
    """`enforced`: "CiliumNetworkPolicy/shop/web" → generation in force; kinds without a status need not be there."""

    version: str
    enforced: Mapping[str, int]
    refused: Sequence[RefusedPolicy] = ()


class StatusReporter:
    """`report` is asked anew for every write."""

    def __init__(
        self, objects: Objects, nodes: Objects, node: str, report: Callable[[], Report], pace: Pace | None = None
    ) -> None:
        self._own = OwnObject(objects, nodes, node, "status", pace or Pace())
        self._node, self._report = node, report
        self._woken = asyncio.Event()
        self._said = ""

    def wake(self) -> None:
        """The report may have changed."""
        self._woken.set()

    async def run(self) -> None:
        while True:
            await self._own.due(self._woken, VERIFY_S)
            await asyncio.sleep(random.uniform(LEAST_S, MOST_S))  # noqa: S311
            self._woken.clear()
            report = self._report()
            body = bodies.node_status(self._node, report.version, report.enforced, report.refused)
            try:
                await self._own.put(body)
                self._said = ""
            except Away:
                self._woken.set()
            except Refused as refused:
                if str(refused) != self._said:
                    logger.warning("what this node enforces cannot be reported", error=str(refused))
                self._said = str(refused)
                asyncio.get_running_loop().call_later(AGAIN_S, self.wake)

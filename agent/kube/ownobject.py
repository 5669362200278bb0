"""One object that this node alone writes, named after it: made, kept as it should be, made again if it is gone."""

from __future__ import annotations

import asyncio
import random
from typing import Any

from agent import log
from agent.kube import bodies
from agent.kube.bodies import Head
from agent.kube.pace import Pace
from agent.kube.writes import ApiFailure, Conflict, Missing, Objects, decode

CONFLICTS = 5
"""So many in a row mean that somebody else writes the object all the time."""
CONFLICT_S = 1.0

logger = log.get("membership")


class OwnObject:
    """`part` is what is written of it: "spec", or "status" where that is a subresource.

    It belongs to the Node, so it goes when that does. (The Node's uid is asked for whenever the object is made: a node
    that is registered anew has another.)
    """

    def __init__(self, objects: Objects, nodes: Objects, node: str, part: str, pace: Pace) -> None:
        self._objects, self._nodes, self._node, self._part, self._pace = objects, nodes, node, part, pace
        self._version: str | None = None  # "": there is none; None: not known
        self._metadata: dict[str, Any] = {}  # as the server has it: others may have put something there
        self._there: Any = None  # the part, as the server has it or was told

    @property
    def version(self) -> str:
        """resourceVersion of what was read or written last; empty where it is not known."""
        return self._version or ""

    def forget(self) -> None:
        """Look at what the server has before the next write: it may be something else. Not while there is one."""
        self._version = None

    async def due(self, changed: asyncio.Event, verify_s: float) -> None:
        """Until it may have changed, or (every `verify_s`, more or less) it is time to see what the server has."""
        try:
            async with asyncio.timeout(verify_s * random.uniform(0.8, 1.2)):  # noqa: S311  # not all nodes at once
                await changed.wait()
        except TimeoutError:
            self.forget()

    async def put(self, body: dict[str, Any]) -> bool:
        """Once it returns, the server has the object as `body` says. Raises Away and Refused.

        True: it was known throughout what the server had, so what is in the old and the new body was there all along.
        """
        known, conflicts = True, 0
        while True:
            try:
                if self._version is None:
                    known = False
                    await self._read()
                elif self._version and self._there == body[self._part]:
                    return known
                else:
                    await self._write(body)
            except (Conflict, Missing):
                self.forget()
                conflicts += 1
                if conflicts >= CONFLICTS:
                    await self._contended()
            except (ApiFailure, asyncio.CancelledError):  # whether it took effect is not known
                self.forget()
                raise

    async def _read(self) -> None:
        try:
            raw = await self._pace.once(lambda: self._objects.get(self._node))
        except Missing:
            self._version, self._there = "", None
            return
        self._learn(raw)

    async def _write(self, body: dict[str, Any]) -> None:
        """One request. A status takes another after the one that makes the object."""
        status = self._part == "status"
        if not self._version:
            made = bodies.json_of(bodies.owned(body, self._node, await self._node_uid()))
            self._learn(await self._pace.once(lambda: self._objects.create(made)))
        else:
            changed = bodies.json_of({**body, "metadata": self._metadata})
            self._learn(await self._pace.once(lambda: self._objects.replace(self._node, changed, status=status)))
            status = False
        if not status:
            self._there = body[self._part]  # whatever the server made of it: it is not to be written again

    def _learn(self, raw: bytes) -> None:
        read = decode(raw, dict[str, Any])
        self._metadata = {key: value for key, value in read["metadata"].items() if key != "managedFields"}
        self._version = self._metadata["resourceVersion"]
        self._there = read.get(self._part)

    async def _node_uid(self) -> str:
        """Empty where there is no Node of that name."""
        try:
            raw = await self._pace.once(lambda: self._nodes.get(self._node))
        except Missing:
            logger.warning("there is no Node of this node's name: see --node", node=self._node)
            return ""
        return decode(raw, Head).metadata.uid

    async def _contended(self) -> None:
        logger.warning("somebody else keeps writing this node's object: is there a second agent?", node=self._node)
        await asyncio.sleep(CONFLICT_S)

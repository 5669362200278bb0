"""This node among others: what it tells them, the ways to their pods, and what it knows of both."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Coroutine
from pathlib import Path
from typing import TYPE_CHECKING, Any

from agent.attachments import Attachments
from agent.config import Config
from agent.groundwork import Api
from agent.kube.bodies import NodeFacts
from agent.nodefiles import NOTE, NodeFile
from agent.objects import Problem
from agent.routing.desired import Own
from agent.routing.routing import Routing
from agent.world.nodes import Peer
from agent.world.world import World
from policies.model import ObjectRef

if TYPE_CHECKING:
    from agent.member import Member


class Neighbours:
    """`member`: what it is at the API server, where there is one. `problems_of_sources`: as Member has them."""

    def __init__(
        self,
        config: Config,
        api: Api | None,
        world: World,
        attachments: Attachments,
        problems_of_sources: Callable[[], list[Problem]],
    ) -> None:
        self._world = world
        self._attachments = attachments
        self.routing = Routing(config)
        self.node_file = NodeFile(config.node_files, config.node, Path(config.state_dir, NOTE))
        self.member = _member(config, api, world, problems_of_sources) if api else None

    def turned(self) -> None:
        """The World has changed."""
        peers = self._peers()
        if self.node_file.wanted:
            told = own(self._world)
            self.node_file.write(NodeFacts(told.addresses, told.pod_cidrs))
        if self.member:
            self.member.wake()
        if peers or self.member or self.routing.reached:
            self.routing.update(own(self._world), peers)
            self._attachments.set_pod_blocks(frozenset(block for peer in peers for block in peer.pod_cidrs))

    async def start(self) -> None:
        """Once the World is loaded: before pods are wired, or programs attached."""
        self.turned()
        await asyncio.to_thread(self.routing.sync)
        await asyncio.to_thread(self.node_file.sync)

    def works(self) -> list[Coroutine[Any, Any, None]]:
        return [self.routing.follow(), self.node_file.run(), *([self.member.run()] if self.member else ())]

    async def close(self) -> None:
        """Everything stays as it is."""
        self.routing.close()
        if self.member:
            await self.member.close()

    async def published(self, ref: ObjectRef) -> None:
        """Until the other nodes can know the pod, or cannot be told."""
        if self.member:
            await self.member.published(ref)

    def unreachable(self) -> str:
        """Why the API server cannot be asked; empty where it can, or there is none."""
        return self.member.unreachable() if self.member else ""

    def problems(self) -> list[Problem]:
        return self.member.problems() if self.member else []

    @property
    def reasons(self) -> list[str]:
        """What is not as the settings say, one sentence each."""
        away = self.unreachable()
        told = [self.node_file.problem] if self.node_file.problem else []
        return [*([f"{away}: what it told last goes on in force"] if away else ()), *self.routing.problems, *told]

    def _peers(self) -> list[Peer]:
        """Those with an agent. A Node manifest alone tells who a node is; an API server's is of this cluster."""
        peers = self._world.nodes.peers().values()
        return [peer for peer in peers if self.member or self._world.nodes.said(peer.name)]


def own(world: World) -> Own:
    """This node as others are told of it: its addresses as the Node object has them, else those of its interfaces."""
    blocks, known = world.config.pod_cidrs, world.nodes.get(world.config.name)
    bound = [a for a in world.config.addresses if not any(block.contains(a) for block in blocks)]
    return Own(world.config.name, (known.addresses if known else ()) or tuple(bound), blocks)


def _member(config: Config, api: Api, world: World, problems_of_sources: Callable[[], list[Problem]]) -> Member:
    from agent.member import Member  # noqa: PLC0415  # a library that only those need who have an API server

    return Member(config, api, world, lambda: own(world), problems_of_sources)

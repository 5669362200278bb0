"""This node among others: what it tells them, the ways to their pods, and what it knows of both."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Coroutine, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from agent import log as logs
from agent.attachments import Attachments
from agent.config import Config
from agent.datapath import abi
from agent.encryption.encryption import Encryption, Surroundings
from agent.encryption.encryption import remove as remove_device
from agent.encryption.leaving import find as find_device
from agent.encryption.leaving import unused
from agent.encryption.meeting import Meeting
from agent.groundwork import Api
from agent.instance import Instance
from agent.kube.bodies import NodeFacts
from agent.nodefiles import NOTE, NodeFile
from agent.objects import Problem
from agent.plan.encryption import entries
from agent.routing.desired import Own
from agent.routing.routing import Routing
from agent.settings import prefixes
from agent.world.nodes import Peer
from agent.world.world import World
from policies.model import ObjectRef

if TYPE_CHECKING:
    from agent.member import Member

log = logs.get("encryption")


class Neighbours:
    """`member`: what it is at the API server, where there is one. `problems_of_sources`: as Member has them."""

    def __init__(
        self,
        config: Config,
        instance: Instance,
        api: Api | None,
        world: World,
        attachments: Attachments,
        problems_of_sources: Callable[[], list[Problem]],
    ) -> None:
        self._config = config
        self._instance = instance
        self._world = world
        self._attachments = attachments
        self.routing = Routing(config, encrypted=config.encryption != "off")
        self.node_file = NodeFile(config.node_files, config.node, Path(config.state_dir, NOTE))
        self.encryption = _encryption(config, instance, self, attachments) if config.encryption != "off" else None
        self._steers = False
        self._leaving = False
        self._known: tuple[Own, tuple[Peer, ...]] | None = None
        """This node and the others, as of the last turn that changed something about them."""
        self.member = _member(config, api, world, self.facts, problems_of_sources) if api else None

    def turned(self) -> None:
        """The World has changed."""
        if self.member:
            self.member.wake()
        told, peers = own(self._world), tuple(self._peers())
        if (told, peers) == self._known and not self._attachments.steering.problem:  # which may find room by now
            return
        self._known = told, peers
        self.node_file.write(self.facts())
        if self._is_among(peers) or self.routing.reached:
            self.routing.update(told, peers)
            self._attachments.set_pod_blocks(frozenset(block for peer in peers for block in peer.pod_cidrs))
        if self.encryption:
            self.encryption.update(told, peers)
            self.steer()

    def rekeyed(self) -> None:
        """This node's public keys are others."""
        if self.member:
            self.member.wake()
        self.node_file.write(self.facts())

    async def start(self, *, pods: bool) -> None:
        """Once the World is loaded: before pods are wired, or programs attached. What is to be encrypted is so from
        the first packet on; what an earlier agent encrypted is so until nothing steers it any more. `pods`: there are
        some, who may send in plaintext now."""
        steering = self._attachments.steering
        steering.prepare(self._entries() if self.encryption else {})
        self.turned()
        if self.encryption:
            await asyncio.to_thread(self.routing.measure)
            await self.encryption.start(self._meeting(pods))
            self._instance.encrypting.touch()
            self._steers = True
            self.steer()
        else:
            await self._encrypt_no_more()
        await asyncio.to_thread(self.node_file.sync)  # others send by WireGuard as soon as they know the key
        among = self._is_among(self._peers())
        await asyncio.to_thread(self.routing.sync if among else self.routing.clear)

    def works(self) -> list[Coroutine[Any, Any, None]]:
        parts = [part.run() for part in (self.member, self.encryption) if part is not None]
        leaving = [self._leave_device()] if self._leaving else []
        return [self.routing.follow(), self.node_file.run(), *parts, *leaving]

    async def close(self) -> None:
        """Everything stays as it is."""
        self.routing.close()
        if self.encryption:
            self.encryption.close()
        if self.member:
            await self.member.close()

    # ---- what is told, and steered

    def facts(self) -> NodeFacts:
        """What this node tells the others of itself."""
        told = own(self._world)
        keys = self.encryption.facts() if self.encryption else (b"", b"")
        return NodeFacts(told.addresses, told.pod_cidrs, *keys)

    def are_told(self, keys: tuple[bytes, bytes]) -> bool:
        """Whether the others can know these public keys."""
        if self.member:
            told = self.member.told
            return told is not None and (told.public_key, told.next_public_key) == keys
        return not self.node_file.wanted or self.node_file.tells(self.facts())

    def steer(self) -> None:
        """Tell the datapath between whom packets are encrypted. Until it is known what the device can do, what an
        earlier agent said holds."""
        if self._steers and self.encryption:
            self._attachments.steering.update(self._entries(), ready_stays=not self.encryption.ifindex)

    def _meeting(self, pods: bool) -> Meeting | None:
        """None: an earlier agent encrypted. Maps do not tell: those of another version are empty."""
        if self._instance.encrypting.exists():
            return None
        return Meeting(plain=pods and not self._config.strict_encryption)

    def _entries(self) -> dict[bytes, bytes]:
        told, world = own(self._world), self._world.config
        peers, ready = self._peers(), self.encryption.ready if self.encryption else frozenset()
        ready &= {peer.name for peer in peers if peer.public_key}  # who has no key any more has no device
        addresses = dict.fromkeys((*told.addresses, *world.addresses))
        return entries(told.pod_cidrs, addresses, peers, ready, prefixes(self._config.cluster_cidrs))

    async def _encrypt_no_more(self) -> None:
        """What an earlier agent set up for it, in the order in which nothing is led to where nothing is: `works` ends
        it, as the others still encrypt what they send here."""
        self._attachments.steering.update({})
        self._instance.encrypting.unlink(missing_ok=True)
        found = await asyncio.to_thread(find_device, self._instance) if self._config.devices else 0
        self._attachments.set_wireguard(found)
        self._leaving = bool(found)
        if not found:
            await asyncio.to_thread(remove_device, self._instance)

    async def _leave_device(self) -> None:
        """Once the others have heard that nothing is to be sent there any more."""
        await unused(self._instance, lambda: self.are_told((b"", b"")))
        self._attachments.set_wireguard(0)
        await asyncio.to_thread(remove_device, self._instance)
        log.info("the WireGuard device is gone, as encryption is off")

    # ---- for others

    async def met(self) -> None:
        """Until packets to the other nodes that encrypt are encrypted, or no node answers."""
        if self.encryption:
            await self.encryption.met()

    async def published(self, ref: ObjectRef) -> None:
        """Until the other nodes can know the pod, or cannot be told."""
        if self.member:
            await self.member.published(ref)

    def unreachable(self) -> str:
        """Why the API server cannot be asked; empty where it can, or there is none."""
        return self.member.unreachable() if self.member else ""

    def problems(self) -> list[Problem]:
        parts = (part.problems() for part in (self.member, self.encryption) if part is not None)
        return [problem for problems in parts for problem in problems]

    @property
    def reasons(self) -> list[str]:
        """What is not as the settings say, one sentence each."""
        away = self.unreachable()
        told = [self.node_file.problem] if self.node_file.problem else []
        if away:
            told.append(f"{away}: what it told last goes on in force")
        return [*told, *self.routing.problems, *(self.encryption.reasons if self.encryption else ())]

    def _is_among(self, peers: Sequence[Peer]) -> bool:
        """Whether there are other nodes, or may come to be: a node by itself needs no routes."""
        return bool(peers or self.member or self.encryption)

    def _peers(self) -> list[Peer]:
        """Those with an agent. A Node manifest alone tells who a node is; an API server's is of this cluster."""
        peers = self._world.nodes.peers().values()
        return [peer for peer in peers if self.member or self._world.nodes.said(peer.name)]


def own(world: World) -> Own:
    """This node as others are told of it: its addresses as the Node object has them, else those of its interfaces."""
    blocks, known = world.config.pod_cidrs, world.nodes.get(world.config.name)
    bound = [a for a in world.config.addresses if not any(block.contains(a) for block in blocks)]
    return Own(world.config.name, (known.addresses if known else ()) or tuple(bound), blocks)


def _member(
    config: Config,
    api: Api,
    world: World,
    facts: Callable[[], NodeFacts],
    problems_of_sources: Callable[[], list[Problem]],
) -> Member:
    from agent.member import Member  # noqa: PLC0415  # a library that only those need who have an API server

    return Member(config, api, world, facts, problems_of_sources)


def _encryption(config: Config, instance: Instance, neighbours: Neighbours, attachments: Attachments) -> Encryption:
    around = Surroundings(
        mark=abi.load().constants.MARK_WIREGUARD,
        mtu=lambda: neighbours.routing.inner_mtu,
        published=neighbours.are_told,
        on_ready=lambda _: neighbours.steer(),
        on_device=attachments.set_wireguard,
        on_facts=neighbours.rekeyed,
    )
    return Encryption(config, instance, around)

"""WireGuard between this node and all others, kept as the settings and the other nodes say.

One device, made once: it, its sessions and the program behind it outlive the agent, and the next agent goes on with
them. What is steered into it is the datapath's affair, which is told which nodes can be reached by it.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable, Iterable
from contextlib import suppress

import msgspec

from agent.config import Config
from agent.datapath.changes import Changes
from agent.encryption import userspace
from agent.encryption.device import name_of
from agent.encryption.keys import shown
from agent.encryption.link import NodeLink, is_of
from agent.encryption.meeting import PATIENT_S, Meeting
from agent.encryption.reconcile import FAST_S, Reconciler, silence
from agent.encryption.rotation import Bounds, Phase
from agent.helpers.names import Name
from agent.helpers.order import withdraw
from agent.instance import Instance
from agent.objects import Problem
from agent.routing.desired import Own
from agent.status import EncryptionPeerView, EncryptionView
from agent.world.nodes import Peer

START_S = 10.0
_RTMGRP_LINK = 0x1


class Surroundings(msgspec.Struct, frozen=True):
    """What the device needs of the rest of the agent. `mtu` and `published` are called in other threads than the
    loop's.

    `mark`: of the device's own packets. `mtu`: of the device; 0 leaves it as it is. `published`: whether the others can
    know the public keys (present, next) that `facts` told. `on_ready`: which nodes the device reaches now. `on_device`:
    its interface index, once one was made and is configured. `on_facts`: `facts` are others.
    """

    mark: int
    mtu: Callable[[], int] = lambda: 0
    published: Callable[[tuple[bytes, bytes]], bool] = lambda _: True
    on_ready: Callable[[frozenset[str]], None] = lambda _: None
    on_device: Callable[[int], None] = lambda _: None
    on_facts: Callable[[], None] = lambda: None


class Encryption:
    """In the network namespace of the thread this is made in, and of those it starts. Keys are made with it."""

    def __init__(self, config: Config, instance: Instance, around: Surroundings, bounds: Bounds | None = None) -> None:
        self._config, self._instance, self._around = config, instance, around
        self._tunnel = Reconciler(
            config,
            instance,
            around.mark,
            around.mtu,
            around.published,
            bounds if bounds is not None else Bounds(config.key_overlap_s),
        )
        self.name = self._tunnel.name
        self._own: Own | None = None
        self._peers: tuple[Peer, ...] = ()
        self._turning = asyncio.Lock()
        self._met = asyncio.Event()
        self._met.set()
        self._changes = Changes(_RTMGRP_LINK, lambda kind, body: is_of(self.name, kind, body))
        self._keeping: asyncio.Task[None] | None = None  # the program behind the device

    @property
    def ready(self) -> frozenset[str]:
        """Names of nodes that the device reaches; where it is lost they stay."""
        return self._tunnel.ready

    @property
    def ifindex(self) -> int:
        """The device's; 0: there was none yet."""
        return self._tunnel.ifindex

    def facts(self) -> tuple[bytes, bytes]:
        """Public keys to tell the others: the one in use and the one that will follow it (empty: none)."""
        return self._tunnel.rotation.keys.told

    def update(self, own: Own, peers: Iterable[Peer]) -> None:
        """How things are now; `run` makes it so."""
        peers = tuple(peers)
        if (own, peers) != (self._own, self._peers):
            self._own, self._peers = own, peers
            self._changes.notice()

    async def start(self, meeting: Meeting | None = None) -> None:
        """Until the device has what `update` told. Where that cannot be, or START_S have passed, `reasons` say why.
        `meeting`: of nodes that are known now; where it is `plain`, they are `ready` once they have been met."""
        if meeting:
            self._tunnel.meeting = meeting
            self._met.clear()
        with suppress(TimeoutError):
            async with asyncio.timeout(START_S):
                while not await self._turn() and self._tunnel.making:
                    await asyncio.sleep(FAST_S)

    async def met(self) -> None:
        """Until nobody is to be waited for who is still to be met."""
        with suppress(TimeoutError):
            async with asyncio.timeout(PATIENT_S):
                await self._met.wait()

    async def run(self) -> None:
        """Keep it so, until cancelled. The device stays."""
        try:
            async with self._changes:
                while True:
                    done = await self._turn()
                    with suppress(TimeoutError):
                        async with asyncio.timeout(self._tunnel.pause_s(done)):
                            await self._changes.wait()
        finally:
            await self._let_go()

    async def rotate(self) -> tuple[bytes, bytes]:
        """Begin to change the key; what `facts` tell then. Within a change that goes on: nothing."""
        rotation = self._tunnel.rotation
        if rotation.phase is Phase.IDLE:
            rotation.asked = True
            await self._turn()
            self._changes.notice()
        return self.facts()

    async def remove(self) -> None:
        """The device, its program and its socket. Once `run` has been cancelled; keys stay."""
        await self._let_go()
        if self._tunnel.device:
            await self._tunnel.device.remove()
        else:
            await asyncio.to_thread(remove, self._instance)
        self._tunnel.forget()

    def close(self) -> None:
        """The device stays."""
        self._tunnel.close()
        self._changes.close()

    # ---- what people see

    def view(self) -> EncryptionView:
        """Without what is the datapath's: strict, node_encryption, plaintext_packets."""
        tunnel, keys = self._tunnel, self._tunnel.rotation.keys
        return EncryptionView(
            mode="wireguard",
            device=self.name,
            kernel=tunnel.device is not None and tunnel.device.backend == "kernel",
            port=self._config.encryption_port,
            public_key=shown(keys.current.public),
            key_age_s=max(time.time() - keys.made_s, 0.0),
            rotation=str(tunnel.rotation.phase),
            process=tunnel.device.process() if tunnel.device is not None else None,
            peers=tuple(self._peer_view(peer) for peer in sorted(self._peers, key=lambda peer: peer.name)),
        )

    @property
    def reasons(self) -> list[str]:
        """What is not as the settings say, one sentence each."""
        return [*self._tunnel.notices, *([self._tunnel.problem] if self._tunnel.problem else ())]

    def problems(self) -> list[Problem]:
        """What other nodes tell that cannot be followed, and who does not answer."""
        told = self._tunnel.desired.problems
        found = [Problem("", 0, message, subject=f"NodeEndpoints {node}") for node, message in told.items()]
        found += [
            Problem("", 0, silence(node), subject=f"NodeEndpoints {node}", warning=True) for node in self._tunnel.silent
        ]
        return sorted(found)

    def _peer_view(self, peer: Peer) -> EncryptionPeerView:
        tunnel = self._tunnel
        keys, found = tunnel.desired.keys.get(peer.name, ()), tunnel.found
        states = [found[key] for key in keys if key in found]
        handshake_ns = max((state.handshake_ns for state in states), default=0)
        problem = tunnel.desired.problems.get(peer.name, "")
        if not problem and peer.name in tunnel.silent:
            problem = silence(peer.name)
        return EncryptionPeerView(
            node=peer.name,
            endpoint=str(states[0].endpoint or "") if states else "",
            public_key=shown(keys[0] if keys else peer.public_key),
            last_handshake_s=max(time.time() - handshake_ns / 1e9, 0.0) if handshake_ns else None,
            received_bytes=sum(state.received_bytes for state in states),
            sent_bytes=sum(state.sent_bytes for state in states),
            ready=peer.name in tunnel.ready,
            problem=problem,
        )

    # ---- inside

    async def _turn(self) -> bool:
        """Look what there is, make it as it should be, and tell what has changed. False: that could not be."""
        async with self._turning:
            return await self._turn_alone()

    async def _turn_alone(self) -> bool:
        own, tunnel = self._own, self._tunnel
        if own is None:
            return False
        if self._keeping is not None and self._keeping.done():  # its program cannot be run (any more)
            error = self._keeping.exception()
            self._keeping = None
            await asyncio.to_thread(tunnel.lost, f"the WireGuard program cannot be run ({error})")
            return False
        before = tunnel.ifindex, tunnel.ready, self.facts()
        done = await asyncio.to_thread(tunnel.sync, own, self._peers)
        if tunnel.device is not None and self._keeping is None:
            self._keeping = asyncio.create_task(tunnel.device.run())
        ifindex, ready, facts = before
        if tunnel.ifindex != ifindex:
            self._around.on_device(tunnel.ifindex)
        if tunnel.ready != ready:
            self._around.on_ready(tunnel.ready)
        if not tunnel.meeting.is_waited_for(time.monotonic()) or tunnel.problem:
            self._met.set()
        if self.facts() != facts:
            self._around.on_facts()
        return done

    async def _let_go(self) -> None:
        if self._keeping:
            self._keeping.cancel()
            await asyncio.gather(self._keeping, return_exceptions=True)
            self._keeping = None


def remove(instance: Instance) -> bool:
    """The instance's device, its program and its socket, whoever left them; whether there were any. In the calling
    thread's network namespace; blocks."""
    name = name_of(instance.short_name)
    found = withdraw(instance.order(Name.WIREGUARD))
    found = userspace.end(name) or found
    with NodeLink(name) as link:
        return link.delete() or found

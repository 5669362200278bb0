"""WireGuard between this node and all others, kept as the settings and the other nodes say.

One device, made once: it, its sessions and the program behind it outlive the agent, and the next agent goes on with
them. What is steered into it is the datapath's affair, which is told which nodes can be reached by it.
"""

from __future__ import annotations

import asyncio
import threading
import time
from collections.abc import Callable, Iterable
from contextlib import suppress

import msgspec

from agent import log as logs
from agent.config import Config
from agent.datapath.changes import Changes
from agent.encryption import choose, userspace
from agent.encryption.audit import AuditFile
from agent.encryption.choose import NoWireGuard
from agent.encryption.device import Device, DeviceState, Endpoint, NotThere, Settings, name_of, needed, provoking
from agent.encryption.keys import KeyFolder, shown
from agent.encryption.link import NodeLink, is_of
from agent.encryption.peers import Desired, Local, after, desired, difference
from agent.encryption.port import require_free
from agent.encryption.rotation import Bounds, Facts, Phase, Rotation, Step, due, turned
from agent.encryption.silence import Silence
from agent.instance import Instance
from agent.objects import Problem
from agent.routing.desired import Own
from agent.status import EncryptionPeerView, EncryptionView
from agent.world.nodes import Peer

POLL_S = 5.0
FAST_S = 0.05
"""While keys change, or the device is being made: until then what peers send by their new keys is dropped."""
RETRY_S = 5.0
START_S = 10.0
_RTMGRP_LINK = 0x1

log = logs.get("encryption")


class Surroundings(msgspec.Struct, frozen=True):
    """What the device needs of the rest of the agent. Called in the loop's thread, but for `mtu` and `published`.

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
    """In the network namespace of the thread this is made in, and of those it starts. `ready`: names of nodes that the
    device reaches; `ifindex`: the device's, 0: there is none yet. Both are as of the last turn: where the device is
    lost they stay, for what is sent to one that is not there is dropped, and not sent in plain text."""

    def __init__(self, config: Config, instance: Instance, around: Surroundings, bounds: Bounds | None = None) -> None:
        self.name = name_of(instance.short_name)
        self.ready: frozenset[str] = frozenset()
        self.ifindex = 0
        self._config, self._around, self._bounds = config, around, bounds or Bounds()
        self._log_path = instance.state_dir / "wireguard.log"
        folder = KeyFolder(instance.state_dir / "wireguard")
        self._rotation = Rotation(
            folder, AuditFile(instance.state_dir / "audit.jsonl", config.node), config.key_rotation_days
        )
        for notice in folder.notices:
            log.error("key put aside", reason=notice)
        self._notices = tuple(folder.notices)
        self._own: Own | None = None
        self._peers: tuple[Peer, ...] = ()
        self._device: Device | None = None
        self._state: DeviceState | None = None  # None: to be read anew
        self._read_at = 0.0
        self._given: dict[bytes, Endpoint] = {}  # endpoints that the device was told
        self._desired = Desired()
        self._silence = Silence()
        self._silent: set[bytes] = set()
        self._told_at: float | None = None  # since when the others can know the keys
        self._swapped_at: float | None = None
        self._swapped_ns = 0
        self._before: dict[bytes, int] = {}  # handshakes before the swap
        self._reasons: tuple[str, ...] = ()
        self._making = False  # its program has not made it yet
        self._lock = threading.Lock()
        self._turning = asyncio.Lock()
        self._link = NodeLink(self.name)
        self._changes = Changes(_RTMGRP_LINK, lambda kind, body: is_of(self.name, kind, body))
        self._keeping: asyncio.Task[None] | None = None

    # ---- for the agent

    def facts(self) -> tuple[bytes, bytes]:
        """Public keys to tell the others: the one in use and the one that will follow it (empty: none)."""
        return self._rotation.keys.told

    def update(self, own: Own, peers: Iterable[Peer]) -> None:
        """How things are now; `run` makes it so."""
        peers = tuple(peers)
        if (own, peers) != (self._own, self._peers):
            self._own, self._peers = own, peers
            self._changes.notice()

    async def start(self) -> None:
        """Until the device has what `update` told, or START_S have passed: `reasons` then say why."""
        with suppress(TimeoutError):
            async with asyncio.timeout(START_S):
                while not await self._turn() and self._making:
                    await asyncio.sleep(FAST_S)

    async def run(self) -> None:
        """Keep it so, until cancelled. The device stays."""
        try:
            async with self._changes:
                while True:
                    done = await self._turn()
                    with suppress(TimeoutError):
                        async with asyncio.timeout(self._delay_s(done)):
                            await self._changes.wait()
        finally:
            await self._let_go()

    async def rotate(self) -> tuple[bytes, bytes]:
        """Begin to change the key; what `facts` tell then. Within a change that goes on: nothing."""
        if self._rotation.phase is Phase.IDLE:
            self._rotation.asked = True
            await self._turn()
            self._changes.notice()
        return self.facts()

    async def remove(self) -> None:
        """The device, its program and its socket. Once `run` has been cancelled; keys stay."""
        await self._let_go()
        if self._device:
            await self._device.remove()
        else:
            await asyncio.to_thread(remove, self.name)
        self.ready, self.ifindex, self._state = frozenset(), 0, None

    def close(self) -> None:
        """The device stays."""
        with self._lock:
            if self._device:
                self._device.close()
            self._changes.close()
            self._link.close()

    def view(self) -> EncryptionView:
        """Without what is the datapath's: strict, node_encryption, plaintext_packets."""
        keys = self._rotation.keys
        return EncryptionView(
            mode="wireguard", device=self.name, kernel=self._device is not None and self._device.backend == "kernel",
            port=self._config.encryption_port, public_key=shown(keys.current.public),
            key_age_s=max(time.time() - keys.made_s, 0.0), rotation=str(self._rotation.phase),
            peers=tuple(self._peer_view(peer) for peer in sorted(self._peers, key=lambda peer: peer.name)),
        )  # fmt: skip

    @property
    def reasons(self) -> list[str]:
        """What is not as the settings say, one sentence each."""
        return [*self._notices, *self._reasons]

    def problems(self) -> list[Problem]:
        """What other nodes tell that cannot be followed, and who does not answer."""
        found = [
            Problem("", 0, message, subject=f"NodeEndpoints {node}") for node, message in self._desired.problems.items()
        ]
        silent = {want.node for key in self._silent if (want := self._desired.peers.get(key))}
        found += [Problem("", 0, _silent(node), subject=f"NodeEndpoints {node}", warning=True) for node in silent]
        return sorted(found)

    # ---- one turn

    async def _turn(self) -> bool:
        """Look what there is, make it as it should be, and tell what has changed. False: there is no device yet."""
        async with self._turning:
            return await self._turn_alone()

    async def _turn_alone(self) -> bool:
        if self._keeping is not None and self._keeping.done():  # its program cannot be run (any more)
            error = self._keeping.exception()
            self._fail(f"the WireGuard program cannot be run ({error}): it is tried again every {RETRY_S:.0f} s")
            self._keeping = None
            if self._device:
                self._device.close()
            self._device = None
            return False
        ready, ifindex, facts = self.ready, self.ifindex, self.facts()
        done = await asyncio.to_thread(self._sync)
        if self._device is not None and self._keeping is None:
            self._keeping = asyncio.create_task(self._device.run())
        if self.ifindex != ifindex:
            self._around.on_device(self.ifindex)
        if self.ready != ready:
            self._around.on_ready(self.ready)
        if self.facts() != facts:
            self._around.on_facts()
        return done

    def _sync(self) -> bool:
        with self._lock:
            own, peers = self._own, self._peers
            if own is None:
                return False
            self._making = False
            try:
                if self._device is None:
                    self._device, why = choose.open_device(
                        self._config.wireguard, self._config.wireguard_program, self.name, self._log_path
                    )
                    log.info("WireGuard", backend=self._device.backend, device=self.name, why=why)
                self._device.ensure()
                self._reconcile(self._device, own, peers)
            except NotThere as error:
                self._state, self._making = None, True
                process = self._device.process() if self._device else None
                if process is None or process.restarts:
                    self._fail(f"there is no WireGuard device ({error.strerror})")
                return False
            except (NoWireGuard, OSError) as error:
                self._state = None
                self._fail(str(error) if isinstance(error, NoWireGuard) else f"WireGuard: {error.strerror or error}")
                return False
            return True

    def _reconcile(self, device: Device, own: Own, peers: tuple[Peer, ...]) -> None:
        link = self._link.find()
        if link is None:
            raise NotThere(0, "its program has made none yet")
        fresh = link.ifindex != self.ifindex
        if fresh or self._state is None or time.monotonic() - self._read_at >= self._poll_s():
            self._state, self._read_at = device.read(), time.monotonic()
        state, keys = self._state, self._rotation.keys
        settings = needed(state, keys.current, self._config.encryption_port, self._around.mark)
        if settings.port is not None or not link.up:
            require_free(self._config.encryption_port)
        made = settings.private_key is not None
        self._peers_of(device, state, settings, self._local(own, keys.public), peers)
        self._link.settle(link, self._around.mtu())
        if made:  # a new device or a new key: sessions by another are over
            device.configure(Settings(), provoking(list(state.peers), self._usual()))
        if fresh:
            log.info("WireGuard device configured", device=self.name, ifindex=link.ifindex, peers=len(state.peers))
        self.ifindex = link.ifindex
        self.ready = frozenset(self._desired.keys)
        self._watch(state)
        self._rotate(device, state)
        self._reasons = ()

    def _peers_of(
        self, device: Device, state: DeviceState, settings: Settings, local: Local, peers: tuple[Peer, ...]
    ) -> None:
        """The device's settings and peers, in as few messages as it takes."""
        self._desired = wanted = desired(local, peers, {key: peer.handshake_ns for key, peer in state.peers.items()})
        if settings.private_key is not None and not state.public_key:
            self._given.clear()
        changes = difference(wanted.peers, state.peers, self._given)
        if settings != Settings() or changes:
            self._state = None  # as long as it is not known how far this went
            device.configure(settings, changes)
            state.public_key, state.port, state.mark = self._rotation.keys.current.public, local.port, self._around.mark
            state.peers = after(state.peers, changes)
            self._state = state
        self._given = {key: want.endpoint for key, want in wanted.peers.items()}

    def _rotate(self, device: Device, state: DeviceState) -> None:
        rotation, now = self._rotation, time.monotonic()
        if self._told_at is None and self._around.published(self.facts()):
            self._told_at = now
        if rotation.phase is Phase.SWAPPED and self._swapped_at is None:  # an earlier agent did
            self._swapped_at, self._swapped_ns = now, time.time_ns()
            self._before = {key: peer.handshake_ns for key, peer in state.peers.items()}
        handshakes = {key: peer.handshake_ns for key, peer in state.peers.items()}
        step = due(
            Facts(
                phase=rotation.phase,
                key_age_s=time.time() - rotation.keys.made_s,
                max_age_s=rotation.max_age_s,
                asked=rotation.asked,
                told_s=None if self._told_at is None else now - self._told_at,
                swapped_s=0.0 if self._swapped_at is None else now - self._swapped_at,
                turned=turned(self._desired.keys.values(), self._before, handshakes, self._swapped_ns),
            ),
            self._bounds,
        )
        if step is None:
            return
        rotation.take(step)
        log.info("key rotation", step=step.value, key=shown(rotation.keys.current.public))
        self._told_at = self._swapped_at = None
        if step is Step.SWAP:
            self._swapped_at, self._swapped_ns, self._before = now, time.time_ns(), handshakes
            self._state = None
            device.configure(Settings(private_key=rotation.keys.current), provoking(list(state.peers), self._usual()))

    def _watch(self, state: DeviceState) -> None:
        silent = self._silence.look(state.peers, time.time_ns())
        for key in silent - self._silent:
            if want := self._desired.peers.get(key):
                log.warning("no handshake", node=want.node, endpoint=str(want.endpoint), problem=_silent(want.node))
        self._silent = silent

    # ---- details

    def _local(self, own: Own, keys: frozenset[bytes]) -> Local:
        return Local(
            own.name, own.addresses, own.pod_cidrs, keys, self._config.encryption_port, self._config.keepalive_s
        )

    def _usual(self) -> dict[bytes, int]:
        return {key: want.keepalive_s for key, want in self._desired.peers.items()}

    def _changing(self) -> bool:
        """Whether some node's key changes, this one's included, so that a handshake says which is in use."""
        return self._rotation.phase is Phase.SWAPPED or len(self._desired.peers) > len(self._desired.keys)

    def _poll_s(self) -> float:
        if self._changing():
            return FAST_S
        return POLL_S if self._rotation.phase is Phase.IDLE else min(POLL_S, self._bounds.overlap_s / 4)

    def _delay_s(self, done: bool) -> float:
        if done:
            return self._poll_s()
        return FAST_S if self._making else RETRY_S

    def _fail(self, reason: str) -> None:
        if reason not in self._reasons:
            log.warning("not as the settings say", problem=reason)
        self._reasons = (reason,)

    async def _let_go(self) -> None:
        if self._keeping:
            self._keeping.cancel()
            await asyncio.gather(self._keeping, return_exceptions=True)
            self._keeping = None

    def _peer_view(self, peer: Peer) -> EncryptionPeerView:
        problem = self._desired.problems.get(peer.name, "")
        peers = self._state.peers if self._state else {}
        keys = self._desired.keys.get(peer.name, ())
        states = [peers[key] for key in keys if key in peers]
        handshake_ns = max((state.handshake_ns for state in states), default=0)
        if any(key in self._silent for key in keys[:1]):
            problem = problem or _silent(peer.name)
        return EncryptionPeerView(
            node=peer.name,
            endpoint=str(states[0].endpoint or "") if states else "",
            public_key=shown(keys[0] if keys else peer.public_key),
            last_handshake_s=max(time.time() - handshake_ns / 1e9, 0.0) if handshake_ns else None,
            received_bytes=sum(state.received_bytes for state in states),
            sent_bytes=sum(state.sent_bytes for state in states),
            ready=peer.name in self.ready,
            problem=problem,
        )


def _silent(node: str) -> str:
    return (
        f"node {node} has made no handshake for 3 minutes although packets are sent to it: see whether its agent runs,"
        " and whether UDP gets there"
    )


def remove(name: str) -> bool:
    """The device of that name, its program and its socket, whoever left them; whether there were any. In the calling
    thread's network namespace; blocks."""
    found = userspace.end(name)
    with NodeLink(name) as link:
        return link.delete() or found

"""The WireGuard device, made and kept as it should be: one look and what follows from it. Blocks."""

from __future__ import annotations

import errno
import threading
import time
from collections.abc import Callable, Mapping, Sequence

from agent import log as logs
from agent.config import Config
from agent.encryption import choose
from agent.encryption.audit import AuditFile
from agent.encryption.choose import NoWireGuard
from agent.encryption.device import (
    Device,
    DeviceState,
    Endpoint,
    NotThere,
    PeerChange,
    PeerState,
    Settings,
    name_of,
    needed,
    provoking,
)
from agent.encryption.greeting import Greetings
from agent.encryption.keys import KeyFolder, shown
from agent.encryption.link import NodeLink
from agent.encryption.meeting import Meeting
from agent.encryption.peers import Desired, Local, after, anew, desired, difference
from agent.encryption.port import require_free
from agent.encryption.rotation import Bounds, Phase, Rotation, Step
from agent.encryption.silence import Silence
from agent.instance import Instance
from agent.routing.desired import Own
from agent.world.nodes import Peer

POLL_S = 5.0
FAST_S = 0.05
"""While keys change, or the device is being made: until then what peers send by their new keys is dropped."""
RETRY_S = 5.0
AT_ONCE = 200
"""Handshakes that are begun in one go: a program makes them before it answers, and other changes wait."""

log = logs.get("encryption")


class Reconciler:
    """In the network namespace of the thread that makes it and of those that call `sync`. All that can be read is as of
    the last `sync`.

    `ready`: names of nodes that the device reaches; `ifindex`: the device's, 0: there was none yet. Where it is lost
    both stay: what is sent to one that is not there is dropped, and not sent in plain text. `meeting`: those that are
    to be met first. `making`: there will be a device in a moment. `silent`: nodes that are sent packets and make no
    handshake.
    """

    def __init__(
        self,
        config: Config,
        instance: Instance,
        mark: int,
        mtu: Callable[[], int],
        published: Callable[[tuple[bytes, bytes]], bool],
        bounds: Bounds,
    ) -> None:
        self.name = name_of(instance.short_name)
        self.ready: frozenset[str] = frozenset()
        self.ifindex = 0
        self.making = False
        self.device: Device | None = None
        self.desired = Desired()
        self.meeting = Meeting(pending=frozenset())
        self.silent: frozenset[str] = frozenset()
        self.problem = ""
        self._config, self._mark, self._mtu, self._published = config, mark, mtu, published
        self._instance = instance
        folder = KeyFolder(instance.state_dir / "wireguard")
        audit = AuditFile(instance.state_dir / "audit.jsonl", config.node)
        self.rotation = Rotation(folder, audit, config.key_rotation_days, bounds)
        self.notices = tuple(folder.notices)
        for notice in self.notices:
            log.error("key put aside", reason=notice)
        self._state: DeviceState | None = None  # None: to be read anew
        self._read_at = 0.0
        self._given: dict[bytes, Endpoint] = {}  # endpoints that the device was told
        self._silence = Silence()
        self._greetings = Greetings()
        self._link = NodeLink(self.name)
        self._has_link = False
        self._lock = threading.Lock()

    @property
    def found(self) -> dict[bytes, PeerState]:
        """Peers as the device has them."""
        state = self._state
        return state.peers if state else {}

    def sync(self, own: Own, peers: Sequence[Peer]) -> bool:
        """Whether there is a device, and it is as it should be. Else `problem` says why, unless it is `making`."""
        with self._lock:
            self.making = False
            try:
                if self.device is None:
                    self.device = self._open()
                self.device.ensure()
                self._reconcile(self.device, own, peers)
            except NotThere as error:
                self._state, self.making = None, True
                process = self.device.process() if self.device else None
                if process is not None and process.problem:
                    self.fail(f"there is no WireGuard device ({error.strerror}): {process.problem}")
                return False
            except (NoWireGuard, OSError) as error:
                self._state = None
                reason = str(error) if isinstance(error, NoWireGuard) else f"WireGuard: {error.strerror or error}"
                self.fail(f"{reason} (it is tried again every {RETRY_S:.0f} s)")
                return False
            self.problem = ""
            return True

    def lost(self, reason: str) -> None:
        """The device has to be opened anew."""
        with self._lock:
            self.fail(reason)
            if self.device:
                self.device.close()
            self.device = self._state = None

    def fail(self, problem: str) -> None:
        if problem != self.problem:
            log.warning("not as the settings say", problem=problem)
        self.problem = problem

    def forget(self) -> None:
        """What there is no more is not read again."""
        self.ready, self.ifindex, self._state = frozenset(), 0, None

    def close(self) -> None:
        """The device stays."""
        with self._lock:
            if self.device:
                self.device.close()
            self._link.close()

    def poll_s(self) -> float:
        """How long what was read of the device is good for."""
        if self.rotation.phase is Phase.SWAPPED or len(self.desired.peers) > len(self.desired.keys):
            return FAST_S  # a handshake says which of a node's keys is in use
        if self.meeting.goes_on:
            return self.meeting.pause_s(time.monotonic())
        return POLL_S if self.rotation.phase is Phase.IDLE else min(POLL_S, self.rotation.bounds.overlap_s / 4)

    def pause_s(self, done: bool) -> float:
        """After a `sync` that said `done`: until the next, if nothing happens."""
        if not done:
            soon = self.making and (self._has_link or not self.problem)  # that there is a link, the kernel tells
            return FAST_S if soon else RETRY_S
        return self._greetings.delay_s(time.monotonic(), self.poll_s())

    @property
    def greets(self) -> bool:
        """Whether some peers have not answered yet, and are greeted again."""
        return bool(self._greetings.waiting)

    # ---- inside

    def _open(self) -> Device:
        device, why = choose.open_device(self._config, self._instance, self.name)
        log.info("WireGuard", backend=device.backend, device=self.name, why=why)
        return device

    def _reconcile(self, device: Device, own: Own, peers: Sequence[Peer]) -> None:
        link = self._link.find()
        self._has_link = link is not None
        if link is None:
            raise NotThere(errno.ENODEV, f"{self.name} has not been made yet")
        fresh = link.ifindex != self.ifindex
        now = time.monotonic()
        if fresh or self._state is None or now - self._read_at >= self.poll_s() or self._greetings.asks(now):
            self._state, self._read_at = device.read(), now
        state, config, keys = self._state, self._config, self.rotation.keys
        settings = needed(state, keys.current, config.encryption_port, self._mark)
        if settings.port is not None or not link.up:
            require_free(config.encryption_port)
        local = Local(own.name, own.addresses, own.pod_cidrs, keys.public, config.encryption_port, config.keepalive_s)
        came = self._configure(device, state, settings, local, peers)
        if settings.private_key is not None:  # of a new device or by a new key: sessions there were are over
            came = list(state.peers)
        self._link.settle(link, self._mtu())
        self._greetings.add(keys.current.public, came, state.handshakes, now)
        self._greet(device, state)
        if fresh:
            log.info("WireGuard device configured", device=self.name, ifindex=link.ifindex, peers=len(state.peers))
        unmet = self._unmet(state)
        self.ifindex, self.ready = link.ifindex, frozenset(self.desired.keys) - (unmet if self.meeting.plain else set())
        self._look_for_silence(state)
        self._rotate(device, state)

    def _configure(
        self, device: Device, state: DeviceState, settings: Settings, local: Local, peers: Sequence[Peer]
    ) -> list[bytes]:
        """The device's settings and peers, in as few messages as it takes. Returns keys that came and may be in use."""
        handshakes = state.handshakes
        self.desired = wanted = desired(local, peers, handshakes)
        changes = difference(wanted.peers, state.peers, self._given)
        came: list[bytes] = []
        if settings != Settings() or changes:
            self._state = None  # as long as it is not known how far this went
            device.configure(settings, changes)
            came = _in_use(changes, wanted, handshakes)
            state.public_key, state.port, state.mark = self.rotation.keys.current.public, local.port, self._mark
            state.peers = after(state.peers, changes)
            self._state = state
        self._given = {key: want.endpoint for key, want in wanted.peers.items()}
        return came

    def _unmet(self, state: DeviceState) -> frozenset[str]:
        if not self.meeting.goes_on:
            return frozenset()
        told = self._published(self.rotation.keys.told)
        return self.meeting.look(self.desired.keys, state.handshakes, told, time.time_ns(), time.monotonic())

    def _greet(self, device: Device, state: DeviceState) -> None:
        first, again = self._greetings.take(state.handshakes, time.monotonic(), AT_ONCE)
        usual = {key: want.keepalive_s for key, want in self.desired.peers.items()}
        if first or again:
            device.configure(Settings(), [*anew(again, self.desired.peers), *provoking(first + again, usual)])
        if again:
            self._state = None

    def _rotate(self, device: Device, state: DeviceState) -> None:
        step = self.rotation.advance(self._published, self.desired.keys.values(), state.handshakes)
        if step is None:
            return
        log.info("key rotation", step=step.value, key=shown(self.rotation.keys.current.public))
        if step is Step.SWAP:
            self._state = None
            device.configure(Settings(private_key=self.rotation.keys.current))
            both = {key for keys in self.desired.keys.values() if len(keys) > 1 for key in keys}
            own, now = self.rotation.keys.current.public, time.monotonic()
            self._greetings.add(b"", state.peers.keys() - both, state.handshakes, now)  # nobody else begins now
            # Who changes its own key, too, may do so in this moment.
            self._greetings.add(own, both, state.handshakes, now)
            self._greet(device, state)

    def _look_for_silence(self, state: DeviceState) -> None:
        keys = self._silence.look(state.peers, time.time_ns())
        silent = frozenset(
            want.node
            for key in keys
            if (want := self.desired.peers.get(key)) is not None and self.desired.keys[want.node][0] == key
        )
        for node in silent - self.silent:
            log.warning("no handshake", node=node, problem=silence(node))
        self.silent = silent


def _in_use(changes: Sequence[PeerChange], wanted: Desired, handshakes: Mapping[bytes, int]) -> list[bytes]:
    """Keys that came, but for those that are told to follow one by which there is a session."""
    came = []
    for change in changes:
        if not change.remove and not change.update_only:
            first, *rest = wanted.keys[wanted.peers[change.public_key].node]
            if change.public_key == first or not any(handshakes.get(key) for key in (first, *rest)):
                came.append(change.public_key)
    return came


def silence(node: str) -> str:
    """What is said of a node that makes no handshake."""
    return (
        f"node {node} has made no handshake for 3 minutes although packets are sent to it: see whether its agent runs,"
        " and whether UDP gets there"
    )

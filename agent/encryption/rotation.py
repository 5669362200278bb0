"""How a node changes its key without a connection breaking.

1. It makes the next key and tells the others (`nextPublicKey`). They add it as a peer of its own, without addresses.
2. After an overlap it gives the device the next key and makes handshakes with everybody. Who sees the next key's
   handshake has that node's addresses go by it from then on.
3. Once all have (or a bound has passed) it tells the next key as its only one, and the old one is destroyed.

Where it is, is what files there are (agent.encryption.keys): an agent that is killed goes on from there. A node whose
peers have not heard of the next key is not reached by them after step 2, so that waits until the key is told.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable, Mapping
from enum import StrEnum

import msgspec

from agent.encryption.audit import AuditFile
from agent.encryption.keys import KeyFolder, Keys, shown

DAY_S = 86400.0
SESSION_NS = 180 * 1_000_000_000
"""A session older than this is none (REJECT_AFTER_TIME of the WireGuard paper, section 6.1)."""


class Phase(StrEnum):
    IDLE = ""
    OVERLAP = "the next key is told to the other nodes"
    SWAPPED = "the other nodes turn to the new key"


class Step(StrEnum):
    BEGIN = "begin"
    SWAP = "swap"
    FINISH = "finish"


class Bounds(msgspec.Struct, frozen=True):
    """`overlap_s`: how long the others are given to learn of the next key, from when it is told; `swapped_s`: how long
    at most they are given to turn to it."""

    overlap_s: float
    swapped_s: float = 60.0


class Facts(msgspec.Struct, frozen=True):
    """What a step depends on. Times in seconds, of one clock each: `key_age_s` of the key in use; `told_s`: for how
    long the others could have known the keys, None: they cannot yet; `swapped_s`: for how long the next key has been in
    use; `turned`: whether everybody with whom there was a session has one by the new key."""

    phase: Phase
    key_age_s: float
    max_age_s: float
    asked: bool
    told_s: float | None
    swapped_s: float
    turned: bool


def phase_of(keys: Keys) -> Phase:
    if keys.old is not None:
        return Phase.SWAPPED
    return Phase.OVERLAP if keys.next is not None else Phase.IDLE


def due(facts: Facts, bounds: Bounds) -> Step | None:
    """The step whose time has come. Pure."""
    if facts.phase is Phase.IDLE:
        too_old = 0 < facts.max_age_s <= facts.key_age_s
        return Step.BEGIN if facts.asked or too_old else None
    if facts.phase is Phase.OVERLAP:
        return Step.SWAP if facts.told_s is not None and facts.told_s >= bounds.overlap_s else None
    return Step.FINISH if facts.turned or facts.swapped_s >= bounds.swapped_s else None


def turned(
    groups: Iterable[Iterable[bytes]], before: Mapping[bytes, int], now: Mapping[bytes, int], at_ns: int
) -> bool:
    """Whether all nodes (`groups`: the keys of each) that had a session `before` the swap at `at_ns` have made a
    handshake since, `now`. Both: key → ns of its last one."""
    return all(
        any(now.get(key, 0) >= at_ns for key in keys)
        for keys in map(tuple, groups)
        if any(before.get(key, 0) > at_ns - SESSION_NS for key in keys)
    )


class Rotation:
    """The keys of this node, and what becomes of them. `asked`: somebody wants a new one. Calls but properties write
    files, and block."""

    def __init__(self, folder: KeyFolder, audit: AuditFile, max_age_days: float, bounds: Bounds) -> None:
        self.keys = folder.load()
        self.asked = False
        self.bounds = bounds
        self._folder, self._audit, self._max_age_s = folder, audit, max_age_days * DAY_S
        self._told_at: float | None = None  # since when the others can know the keys
        self._swapped_at: float | None = None
        self._swapped_ns = 0
        self._before: dict[bytes, int] = {}  # handshakes before the swap

    @property
    def phase(self) -> Phase:
        return phase_of(self.keys)

    def advance(
        self,
        published: Callable[[tuple[bytes, bytes]], bool],
        groups: Iterable[Iterable[bytes]],
        handshakes: Mapping[bytes, int],
    ) -> Step | None:
        """Take the step whose time has come; which it was. `published`: whether the others can know the keys by now;
        `groups`: keys of each other node; `handshakes`: key → ns of its last one. After a swap the device is to be
        given the key. Raises OSError where a file cannot be written; the step is then still to be taken."""
        now = time.monotonic()
        if self._told_at is None and self.phase is not Phase.IDLE and published(self.keys.told):
            self._told_at = now
        if self.phase is Phase.SWAPPED and self._swapped_at is None:  # an earlier agent did
            self._swapped(now, handshakes)
        step = due(
            Facts(
                phase=self.phase,
                key_age_s=time.time() - self.keys.made_s,
                max_age_s=self._max_age_s,
                asked=self.asked,
                told_s=None if self._told_at is None else now - self._told_at,
                swapped_s=0.0 if self._swapped_at is None else now - self._swapped_at,
                turned=self.phase is Phase.SWAPPED and turned(groups, self._before, handshakes, self._swapped_ns),
            ),
            self.bounds,
        )
        if step is not None:
            self.take(step)
            if step is Step.SWAP:
                self._swapped(now, handshakes)
        return step

    def take(self, step: Step) -> None:
        """Whether its time has come or not."""
        before = self.keys
        if step is Step.BEGIN:
            by = "command" if self.asked else "age"
            self.keys = self._folder.make_next()
            self.asked = False
            following = self.keys.next.public if self.keys.next else b""
            self._record("key rotation begun", by=by, key=shown(before.current.public), next_key=shown(following))
        elif step is Step.SWAP:
            self.keys = self._folder.swap()
            self._record("key swapped", old_key=shown(before.current.public), key=shown(self.keys.current.public))
        else:
            self.keys = self._folder.destroy_old()
            old = before.old.public if before.old else b""
            self._record("old key destroyed", old_key=shown(old), key=shown(self.keys.current.public))
        self._told_at = self._swapped_at = None

    def _swapped(self, now: float, handshakes: Mapping[bytes, int]) -> None:
        self._swapped_at, self._swapped_ns, self._before = now, time.time_ns(), dict(handshakes)

    def _record(self, event: str, **facts: str) -> None:
        self._audit.record(event, **facts)

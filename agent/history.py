"""What changed last at each frontend, read off the plan's changes. Kept while the agent runs."""

from __future__ import annotations

import functools
import struct
import time
from collections.abc import Callable
from datetime import UTC, datetime
from typing import Any

import msgspec

from agent.datapath import abi
from agent.plan.blocks import ENTRY_SIZES, POOL_VALUE, POOLS
from agent.plan.state import SERVICES, Changes, State
from policies.address import format_socket

KEPT = 16384
"""Frontends of which the last change is remembered; of more, those that changed last."""

NAMED = 3
"""So many backends that came or went are named, of more it is said how many."""

ADDED = "frontend added"
SERVICE_VALUE = abi.load().records["service_value"]
_ENTRY = struct.Struct("{}x{}s".format(*ENTRY_SIZES[POOLS]))

Pools = tuple[int, int]
"""Numbers of the pools for clients inside and outside; 0: there is no backend."""


class LastChange(msgspec.Struct, frozen=True, gc=False):
    """`time`: seconds since 1970."""

    time: float
    text: str

    @property
    def at(self) -> str:
        """RFC 3339, UTC."""
        return datetime.fromtimestamp(self.time, UTC).isoformat(timespec="milliseconds").replace("+00:00", "Z")


class History:
    """By key of the services map."""

    def __init__(self, kept: int = KEPT, now: Callable[[], float] = time.time) -> None:
        self._kept = kept
        self._now = now
        self._last: dict[bytes, LastChange] = {}  # what changed last comes last

    def note(self, state: State, changes: Changes) -> None:
        """These changes are about to be made of that state."""
        describe = functools.cache(functools.partial(_backends, state, changes))
        for key, value in changes.tables[SERVICES].items():
            self._last.pop(key, None)
            if value is None:
                continue
            before = state.tables[SERVICES].get(key)
            self._last[key] = LastChange(self._now(), ADDED if before is None else _change(before, value, describe))
        while len(self._last) > self._kept:
            del self._last[next(iter(self._last))]

    def last(self, key: bytes) -> LastChange | None:
        """None: nothing has changed since the agent started (or it is too long ago)."""
        return self._last.get(key)


def _change(before: bytes, after: bytes, describe: Callable[[Pools, Pools], str]) -> str:
    old, new = SERVICE_VALUE.unpack(before), SERVICE_VALUE.unpack(after)
    text = "" if _pools(old) == _pools(new) else describe(_pools(old), _pools(new))
    return text or "settings changed"


def _pools(value: Any) -> Pools:
    return (value.pool_inside if value.count_inside else 0, value.pool_outside if value.count_outside else 0)


def _backends(state: State, changes: Changes, old: Pools, new: Pools) -> str:
    """Which backends came and went. "": the same serve, but not the same clients."""

    def members(pools: Pools) -> set[bytes]:
        found: set[bytes] = set()
        for number in set(pools) - {0}:
            block = state.blocks[POOLS].get(number) or changes.blocks[POOLS][number]
            found.update(value for (value,) in _ENTRY.iter_unpack(block.data))
        return found

    before, after = members(old), members(new)
    said = (_say(after - before, "added"), _say(before - after, "removed"))
    return ", ".join(text for text in said if text) or "traffic policy or hints give clients other backends"


def _say(backends: set[bytes], what: str) -> str:
    if len(backends) > NAMED:
        return f"{len(backends)} backends {what}"
    names = sorted((value.address, abi.be16(value.port_be)) for value in map(POOL_VALUE.unpack, backends))
    noun = "backend" if len(names) == 1 else "backends"
    return f"{noun} {' '.join(format_socket(*name) for name in names)} {what}" if names else ""

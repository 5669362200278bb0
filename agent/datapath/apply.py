"""A transition of the plan carried out on the kernel's maps, and the maps' content read back after a restart."""

from __future__ import annotations

import errno
import struct
from collections.abc import Iterable, Mapping, Sequence
from typing import Protocol

import msgspec

from agent.datapath import bpf
from agent.datapath.maps import Map, TableMap

PLANNED = (
    *("interfaces", "endpoints", "namespaces", "ipcache", "policy_class", "policy_row"),
    *("services", "backends", "members", "maglev", "source_ranges"),
)
"""Maps whose whole content the plan decides; the others are counters, settings, or filled by the datapath."""

_INDEX_0 = struct.pack("=I", 0)
_EPOCH = struct.Struct("=Q")


class Step(Protocol):
    """Writes to one map: updates in their order, then deletes (agent.plan.step)."""

    @property
    def map(self) -> str: ...
    @property
    def updates(self) -> Mapping[bytes, bytes]: ...
    @property
    def deletes(self) -> Sequence[bytes]: ...


class Failure(msgspec.Struct, frozen=True):
    """Where a transition stopped: `written` of the `wanted` entries of a step went into `map`."""

    map: str
    wanted: int
    written: int
    max_entries: int
    steps_left: int
    reason: str

    def __str__(self) -> str:
        return (
            f"map {self.map} (max_entries {self.max_entries}): {self.reason}; {self.written} of {self.wanted} entries "
            "were written and what follows them was not"
        )


class Outcome(msgspec.Struct, frozen=True):
    """`epoch` is the one now in force; after a `failure` only read_state tells what the maps hold."""

    epoch: int
    written: int
    deleted: int
    failure: Failure | None = None


def apply(maps: Mapping[str, Map], steps: Iterable[Step], *, raise_epoch: bool) -> Outcome:
    """Carry out the steps in order.

    It stops at the first entry that finds no room: what comes later may point at what is not there, and deletions
    would take away what is still in use. The epoch is raised then too, as stricter entries may have gone in.
    Raises bpf.BpfError where the kernel refuses for another reason; the epoch has risen then, too.
    """
    pending = list(steps)
    written = deleted = 0
    failure = None
    for number, step in enumerate(pending):
        target = maps[step.map]
        try:
            target.update_many(step.updates)
        except bpf.MapFull as full:
            written += full.written
            left = len(pending) - number - 1
            reason = "the kernel has no memory left" if full.errno == errno.ENOMEM else "it is full"
            failure = Failure(step.map, len(step.updates), full.written, target.spec.max_entries, left, reason)
            break
        except bpf.BpfError:
            increase_epoch(maps)
            raise
        written += len(step.updates)
        deleted += target.delete_many(step.deletes)
    epoch = increase_epoch(maps) if raise_epoch or failure else read_epoch(maps)
    return Outcome(epoch, written, deleted, failure)


def read_epoch(maps: Mapping[str, Map]) -> int:
    value = maps["epoch"].lookup(_INDEX_0)
    assert value is not None, "an array always has its elements"
    return int(_EPOCH.unpack(value)[0])


def increase_epoch(maps: Mapping[str, Map]) -> int:
    """Every live flow is judged anew at its next packet. The agent is the only writer. Returns the new epoch."""
    epoch = read_epoch(maps) + 1
    maps["epoch"].update(_INDEX_0, _EPOCH.pack(epoch))
    return epoch


def read_state(maps: Mapping[str, Map], names: Iterable[str] = PLANNED) -> dict[str, dict[bytes, bytes]]:
    """What the maps hold, for the difference to the plan after a restart; of tables only which there are."""
    return {name: _content(maps[name]) for name in names}


def _content(some: Map) -> dict[bytes, bytes]:
    return dict.fromkeys(some.keys(), b"") if isinstance(some, TableMap) else dict(some.items())

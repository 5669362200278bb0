"""What the datapath is told of between whom packets are encrypted: the map `encryption`."""

from __future__ import annotations

from collections.abc import Mapping

from agent.datapath import bpf
from agent.datapath.maps import Map
from agent.plan.encryption import ANYWHERE, difference, fitting, missing, unready, with_departed


class Steering:
    """The one writer of the map. `problem`: one sentence; empty while all is in force. Entries: see
    agent.plan.encryption.entries. `strict`: blocks of nodes that went stay blocks of pods, as long as this agent runs.

    One entry stays free: where more are to be replaced than find room beside those that go, it says meanwhile of all
    addresses that nothing can be encrypted for them.
    """

    def __init__(self, table: Map, *, strict: bool = False) -> None:
        self.problem = ""
        self._table = table
        self._strict = strict
        self._room = table.spec.max_entries - 1
        self._held: dict[bytes, bytes] | None = None  # None: not known
        self._told: dict[bytes, bytes] = {}

    def prepare(self, entries: Mapping[bytes, bytes]) -> None:
        """Before anything is known of the WireGuard device: whose addresses are, so that strict mode holds. What is
        there stays: an earlier agent's device goes on."""
        self.problem = ""
        new = missing(self._read(), entries)
        self._write(new if len(self._read()) + len(new) <= self._room else ANYWHERE)

    def update(self, entries: Mapping[bytes, bytes], *, ready_stays: bool = False) -> None:
        """These, and no others; where there is no room for them, wider ones. `ready_stays`: nothing is known of the
        device: where an earlier agent had packets encrypted they are sent to it, and dropped if there is none."""
        self.problem = ""
        if ready_stays:
            held = self._read()
            entries = {k: held[k] if k in held and unready(held[k]) == value else value for k, value in entries.items()}
        self._told = with_departed(self._told, entries) if self._strict and entries else dict(entries)
        wanted = fitting(self._told, self._room)
        changed, gone = difference(self._read(), wanted)
        if len(self._read().keys() | wanted.keys()) <= self._room:
            self._write(changed)
            self._delete(gone)
        else:
            self._write(ANYWHERE)
            self._delete([key for key in gone if key not in ANYWHERE])
            self._write(changed | {key: wanted[key] for key in ANYWHERE if key in wanted})
            self._delete([key for key in ANYWHERE if key not in wanted])
        if len(wanted) < len(self._told) and not self.problem:
            self.problem = self._full(len(self._told))

    def _read(self) -> dict[bytes, bytes]:
        if self._held is None:
            self._held = dict(self._table.items())
        return self._held

    def _write(self, entries: Mapping[bytes, bytes]) -> None:
        if not entries:
            return
        try:
            self._table.update_many(entries)
        except bpf.MapFull:
            self.problem = self._full(len(self._told))
            self._held = None
            return
        self._read().update(entries)

    def _delete(self, keys: list[bytes]) -> None:
        self._table.delete_many(keys)
        for key in keys:
            self._read().pop(key, None)

    def _full(self, wanted: int) -> str:
        name, size = self._table.spec.name, self._table.spec.max_entries
        return (
            f"map {name} holds {size} entries and is to hold {wanted} and a free one: pods of some nodes, and "
            f"addresses around theirs, count as such of nodes that do not encrypt; raise --map-sizes {name}"
        )

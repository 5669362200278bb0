"""What the datapath is told of between whom packets are encrypted: the map `encryption`."""

from __future__ import annotations

from collections.abc import Mapping

from agent.datapath import bpf
from agent.datapath.maps import Map
from agent.plan.encryption import difference, missing


class Steering:
    """The one writer of the map. `problem`: one sentence; empty while all is in force. Entries: see
    agent.plan.encryption.entries."""

    def __init__(self, table: Map) -> None:
        self.problem = ""
        self._table = table
        self._held: dict[bytes, bytes] | None = None  # None: not known

    def prepare(self, entries: Mapping[bytes, bytes]) -> None:
        """Before anything is known of the WireGuard device: whose addresses are, so that strict mode holds. What is
        there stays: an earlier agent's device goes on."""
        self.problem = ""
        self._write(missing(self._read(), entries))

    def update(self, entries: Mapping[bytes, bytes]) -> None:
        """These, and no others."""
        self.problem = ""
        changed, gone = difference(self._read(), entries)
        self._write(changed)
        self._table.delete_many(gone)
        for key in gone:
            self._read().pop(key, None)

    def _read(self) -> dict[bytes, bytes]:
        if self._held is None:
            self._held = dict(self._table.items())
        return self._held

    def _write(self, entries: dict[bytes, bytes]) -> None:
        if not entries:
            return
        try:
            self._table.update_many(entries)
        except bpf.MapFull:
            name, size = self._table.spec.name, self._table.spec.max_entries
            self.problem = (
                f"map {name} holds {size} entries and is to hold more: what does not fit is not encrypted; raise "
                f"--map-sizes {name}"
            )
            self._held = None
            return
        self._read().update(entries)

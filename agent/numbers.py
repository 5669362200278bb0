"""The numbers and addresses this node gave out, on disk from one agent to the next (agent.state)."""

from __future__ import annotations

import asyncio
from collections.abc import Iterable
from pathlib import Path

from agent import log as logs
from agent.state import Damaged, State, StateFile
from agent.world.allocations import Allocations, key_of, ref_of
from policies.model import ObjectRef

FLUSH_S = 1.0

log = logs.get("numbers")


class Numbers:
    """`notices`: files that could not be used, a sentence each."""

    def __init__(self, allocations: Allocations, path: Path) -> None:
        self.notices: list[str] = []
        self._allocations = allocations
        self._file = StateFile(path)

    def restore(self) -> set[ObjectRef]:
        """What was given earlier; returns the pods that had some."""
        state = None
        while state is None:
            try:
                state = self._file.load()
            except Damaged as damaged:  # put aside: the next attempt does without
                self.notices.append(str(damaged))
                log.error("state put aside", reason=str(damaged))
        self._allocations.restore(state.allocations)
        return {ref_of("Pod", key) for key in self._allocations.endpoints.held()}

    def restore_addresses(self, ref: ObjectRef, addresses: Iterable[bytes]) -> None:
        """A pod that runs keeps its addresses, whatever became of the file that says so."""
        for address in addresses:
            for pool in self._allocations.pod_pools:
                if pool.block.contains(address):
                    index = int.from_bytes(address, "big") - int.from_bytes(pool.block.network, "big")
                    pool.restore({key_of(ref): index})

    def save(self) -> None:
        """What was given or given up since the last time."""
        if not self._file.append(self._allocations.take_changes()):
            self.save_all()

    def save_all(self) -> None:
        self._file.save(State(self._allocations.snapshot()))
        self._allocations.take_changes()  # they are in it

    async def run(self) -> None:
        """Bring it to the disk, behind everybody's back."""
        while True:
            await asyncio.sleep(FLUSH_S)
            await asyncio.to_thread(self._file.flush)

    def close(self) -> None:
        self._file.flush()

"""Writes, in the order in which they are to be made."""

from __future__ import annotations

import msgspec


class Step(msgspec.Struct, frozen=True):
    """Writes to one map: updates in their order, then deletes in theirs."""

    map: str
    updates: dict[bytes, bytes] = {}
    deletes: tuple[bytes, ...] = ()

    def __bool__(self) -> bool:
        return bool(self.updates or self.deletes)


class Transition(msgspec.Struct, frozen=True):
    """Apply `steps` in order; then, if `raises_epoch`, raise the epoch; then apply `cleanup`."""

    steps: tuple[Step, ...] = ()
    raises_epoch: bool = False
    cleanup: tuple[Step, ...] = ()

    def __bool__(self) -> bool:
        return bool(self.steps or self.cleanup)

    @property
    def writes(self) -> int:
        return sum(len(step.updates) + len(step.deletes) for step in (*self.steps, *self.cleanup))

"""Which listeners of proxies the rows in force redirect to. Pure."""

from __future__ import annotations

from agent.plan.blocks import ROW_VALUE, ROWS, Block
from agent.plan.ids import NUMBERS
from agent.plan.state import Changes, State


def listeners_of(block: Block) -> frozenset[int]:
    """Numbers of the listeners that a row names."""
    values = (ROW_VALUE.unpack(value) for _, value in block.entries())
    return frozenset(v.listener for v in values if v.verdict == NUMBERS.VERDICT_REDIRECT)


class ListenerUses:
    """`note` every change before the state takes it over; then `in_use` knows without looking at all rows."""

    def __init__(self) -> None:
        self._rows: dict[int, frozenset[int]] = {}  # those that redirect, by number

    def note(self, changes: Changes) -> frozenset[int]:
        """The listeners that rows of this change name, which may be new."""
        found = {number: named for number, block in changes.blocks[ROWS].items() if (named := listeners_of(block))}
        self._rows.update(found)
        return frozenset().union(*found.values())

    def in_use(self, state: State) -> frozenset[int]:
        """By rows the state has."""
        for number in self._rows.keys() - state.blocks[ROWS].keys():
            del self._rows[number]
        return frozenset().union(*self._rows.values())

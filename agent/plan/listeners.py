"""Which listeners of proxies the rows in force redirect to. Pure."""

from __future__ import annotations

from collections.abc import Mapping

from agent.plan.blocks import ROW_VALUE, ROWS, Block
from agent.plan.ids import NUMBERS
from agent.plan.state import ENDPOINTS, INTERFACES, IPCACHE, Changes, State, ipcache_class


def listeners_of(block: Block) -> frozenset[int]:
    """Numbers of the listeners that a row names."""
    values = (ROW_VALUE.unpack(value) for _, value in block.entries())
    return frozenset(v.listener for v in values if v.verdict == NUMBERS.VERDICT_REDIRECT)


class ListenerUses:
    """`note` every change before the state takes it over, `settle` after."""

    def __init__(self) -> None:
        self._rows: dict[int, frozenset[int]] = {}  # those that redirect, by number

    def note(self, changes: Changes) -> frozenset[int]:
        """The listeners that rows of this change name, which may be new."""
        return self._note(changes.blocks[ROWS])

    def start(self, state: State) -> None:
        """All rows there are."""
        self._note(state.blocks[ROWS])

    def replaced(self, state: State, changes: Changes) -> frozenset[int]:
        """Listeners of which some flows may be judged otherwise once the state takes the changes over."""
        if not self._rows:
            return frozenset()
        if changes.tables[ENDPOINTS] or changes.tables[INTERFACES]:
            return self.named
        rows = {state.row(side, remote) for side, remotes in changes.policy.items() for remote in remotes}
        for key in changes.tables[IPCACHE]:
            value = state.tables[IPCACHE].get(key) or state.covering(key)
            remote = ipcache_class(value) if value else 0
            rows.update(state.row(side, remote) for side in state.policy)
        return frozenset().union(*(named for row, named in self._rows.items() if row in rows))

    def settle(self, state: State) -> None:
        """Forget the rows that it does not have any more."""
        for number in self._rows.keys() - state.blocks[ROWS].keys():
            del self._rows[number]

    @property
    def named(self) -> frozenset[int]:
        """By rows in force and, between `note` and `settle`, by those that are about to be."""
        return frozenset().union(*self._rows.values())

    def _note(self, rows: Mapping[int, Block]) -> frozenset[int]:
        found = {number: named for number, block in rows.items() if (named := listeners_of(block))}
        self._rows.update(found)
        return frozenset().union(*found.values())

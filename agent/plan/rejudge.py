"""How the rows of policy_class entries change in a transition: in which stage each entry takes which row."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterator, Mapping

from agent.plan.blocks import RowMeets
from agent.plan.ids import CLASS_ANY
from agent.plan.moves import Moves, Pair, between
from agent.plan.state import Changes, Side, State

Rows = dict[int, int]
Writes = dict[tuple[Side, int], int | None]
"""Side and class → row; None: the entry goes."""

DIRECTIONS = (0, 1)


class Rejudgement:
    """Four stages of writes to policy_class:

    before: entries nobody is judged by yet, and what moves means before it has moved
    tightened: entries in force take the meet of the old row and the new
    final: the new row
    leftover: entries nobody is judged by any more
    """

    def __init__(self, old: State, changes: Changes, moves: Moves, meets: RowMeets) -> None:
        self._old = old
        self._changes = changes
        self._moves = moves
        self._meets = meets
        self.before: Writes = {}
        self.final: Writes = {}
        self.leftover: Writes = {}
        self.changes_rows_in_force = False
        # Rows of single classes tighten before the row of all others, which they may be less strict than.
        self._tightened: Writes = {}
        self._tightened_any: Writes = {}
        self._pairs_from: dict[int, list[Pair]] = defaultdict(list)
        self._pairs_to: dict[int, list[Pair]] = defaultdict(list)
        if moves.aliased:
            for pair in moves.classes:
                self._pairs_from[pair[0]].append(pair)
                self._pairs_to[pair[1]].append(pair)
        for side, remotes in changes.policy.items():
            self._judge_side(side, side, side, remotes)
        if moves.aliased:
            self._judge_moved()

    @property
    def tightened(self) -> Writes:
        return {**self._tightened, **self._tightened_any}

    def _judge_moved(self) -> None:
        for side in self._old.policy.keys() | self._changes.policy.keys():
            old, new = self._old.policy.get(side, {}), self._new_rows(side)
            self._judge_pairs(side, old, new)
        for pair in self._moves.subjects:
            for direction in DIRECTIONS:
                mine = (between(*pair), direction)
                old_side, new_side = (pair[0], direction), (pair[1], direction)
                old, new = self._old.policy.get(old_side, {}), self._new_rows(new_side)
                self._judge_side(mine, old_side, new_side, {**old, **new})
                self._judge_pairs(mine, old, new)

    def _judge_side(self, mine: Side, old_side: Side, new_side: Side, remotes: Mapping[int, int | None]) -> None:
        """Entries of one subject for classes that stay what they are."""
        old, new = self._old.policy.get(old_side, {}), self._new_rows(new_side)
        for remote in remotes:
            self._judge(mine, remote, (old.get(remote), new.get(remote)), (old.get(CLASS_ANY), new.get(CLASS_ANY)))

    def _judge_pairs(self, mine: Side, old: Rows, new: Rows) -> None:
        """Entries of one subject for classes that addresses have while they move."""
        for pair in self._pairs_with_rows(old, new):
            own = (old.get(pair[0]), new.get(pair[1]))
            self._judge(mine, between(*pair), own, (old.get(CLASS_ANY), new.get(CLASS_ANY)))

    def _pairs_with_rows(self, old: Rows, new: Rows) -> Iterator[Pair]:
        """Pairs of which one class has a row of its own."""
        if len(self._moves.classes) <= len(old) + len(new):
            yield from (pair for pair in self._moves.classes if pair[0] in old or pair[1] in new)
            return
        found = {pair for remote in old for pair in self._pairs_from.get(remote, ())}
        yield from found.union(pair for remote in new for pair in self._pairs_to.get(remote, ()))

    def _judge(
        self, mine: Side, remote: int, own: tuple[int | None, int | None], rest: tuple[int | None, int | None]
    ) -> None:
        """Place the writes of one entry. `own`: its row before and after; `rest`: the row of any remote."""
        key = (mine, remote)
        old, new = own
        passing = self._is_passing(mine, remote)
        if passing and new is not None:
            self.leftover[key] = None
        if not self._used(mine, remote, before=True):
            if new != (None if passing else old):
                self.before[key] = new
            return
        if passing and old is not None:
            self.before[key] = old
        if not self._used(mine, remote, before=False):
            if passing and old is not None:
                self.leftover[key] = None
            elif not passing and new != old:
                self.leftover[key] = new
            return
        self._judge_in_force(key, own, rest)

    def _judge_in_force(
        self, key: tuple[Side, int], own: tuple[int | None, int | None], rest: tuple[int | None, int | None]
    ) -> None:
        old, new = own
        deny = self._meets.empty.id
        rest_old, rest_new = (deny if row is None else row for row in rest)
        effective = (rest_old if old is None else old, rest_new if new is None else new)
        meet = self._meets.meet(*effective)
        self.changes_rows_in_force |= effective[0] != effective[1]
        held = old
        if old is None and key[1] != CLASS_ANY and meet != self._meets.meet(rest_old, rest_new):
            held = self._tightened[key] = meet
        elif old is not None and meet != old:
            tightened = self._tightened_any if key[1] == CLASS_ANY else self._tightened
            held = tightened[key] = meet
        if held != new:
            self.final[key] = new

    def _is_passing(self, mine: Side, remote: int) -> bool:
        """Whether the entry exists for the time of the move only."""
        return self._moves.is_passing_subject(mine[0]) or self._moves.is_passing_class(remote)

    def _used(self, mine: Side, remote: int, before: bool) -> bool:
        moves = self._moves
        subject_used = moves.used_before if before else moves.used_after
        class_used = moves.class_used_before if before else moves.class_used_after
        return (moves.is_passing_subject(mine[0]) or subject_used(mine[0])) and (
            remote == CLASS_ANY or moves.is_passing_class(remote) or class_used(remote)
        )

    def _new_rows(self, side: Side) -> Rows:
        rows = dict(self._old.policy.get(side, {}))
        for remote, row in self._changes.policy.get(side, {}).items():
            if row is None:
                rows.pop(remote, None)
            else:
                rows[remote] = row
        return rows

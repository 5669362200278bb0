"""How the rows of policy_class entries change in a transition: in which stage each entry takes which row."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable

from agent.plan.blocks import RowMeets
from agent.plan.ids import CLASS_ANY, NUMBERS
from agent.plan.moves import Moves, Pair, between
from agent.plan.state import Changes, Side, State

Rows = dict[int, int]
Writes = dict[Side, dict[int, int | None]]
"""Side → class → row; None: the entry goes."""

DIRECTIONS = (NUMBERS.DIRECTION_INGRESS, NUMBERS.DIRECTION_EGRESS)


class Rejudgement:
    """Stages of writes to policy_class:

    before: entries nobody is judged by yet, and what moves means before it has moved
    tightened, then tightened_any: entries in force take the meet of the old row and the new; rows of single classes
        before the row of any remote, which they may be less strict than
    final: the new row
    leftover: entries nobody is judged by any more
    """

    def __init__(self, old: State, changes: Changes, moves: Moves, meets: RowMeets) -> None:
        self._old = old
        self._changes = changes
        self._moves = moves
        self._meets = meets
        self.before: Writes = defaultdict(dict)
        self.tightened: Writes = defaultdict(dict)
        self.tightened_any: Writes = defaultdict(dict)
        self.final: Writes = defaultdict(dict)
        self.leftover: Writes = defaultdict(dict)
        self.rejudged: set[tuple[Side, int]] = set()
        """Entries in force, before and after, that take another row."""
        self._pairs_from: dict[int, list[Pair]] = defaultdict(list)
        self._pairs_to: dict[int, list[Pair]] = defaultdict(list)
        for pair in moves.classes:
            self._pairs_from[pair[0]].append(pair)
            self._pairs_to[pair[1]].append(pair)
        for side, remotes in changes.policy.items():
            self._judge_side(side, old.policy.get(side, {}), self._new_rows(side), remotes)
        if moves.aliased:
            self._judge_moving()

    def changed_directions(self) -> set[int]:
        """Directions in which some flow is judged by another row afterwards."""
        directions = {direction for (_, direction), _ in self.rejudged}
        for side in self._old.policy.keys() | self._changes.policy.keys():
            if side[1] not in directions:
                old, new = self._old.policy.get(side, {}), self._new_rows(side)
                if self._any_pair_differs(old, new):
                    directions.add(side[1])
        for subject, successor in self._moves.subjects:
            for direction in set(DIRECTIONS) - directions:
                if self._old.policy.get((subject, direction), {}) != self._new_rows((successor, direction)):
                    directions.add(direction)
        return directions

    def hold_arrivals(self) -> bool:
        """Give classes that addresses move to their rows before the move, also where those are the row of any remote
        and that one changes. False where it cannot be done: somebody else has such a class already."""
        deny = self._meets.empty.id
        for side in [side for side, remote in self.rejudged if remote == CLASS_ANY]:
            new = self._new_rows(side)
            for _, arriving in self._moves.classes:
                if arriving in new:
                    continue
                if self._moves.class_used_before(arriving):
                    return False
                self.before[side][arriving] = new.get(CLASS_ANY, deny)
                self.leftover[side][arriving] = None
        return True

    # ---- inside: which entries

    def _judge_moving(self) -> None:
        for side in self._old.policy.keys() | self._changes.policy.keys():
            self._judge_pairs(side, self._old.policy.get(side, {}), self._new_rows(side))
        for pair in self._moves.subjects:
            for direction in DIRECTIONS:
                mine = (between(*pair), direction)
                old, new = self._old.policy.get((pair[0], direction), {}), self._new_rows((pair[1], direction))
                self._judge_side(mine, old, new, old.keys() | new.keys())
                self._judge_pairs(mine, old, new)

    def _judge_side(self, mine: Side, old: Rows, new: Rows, remotes: Iterable[int]) -> None:
        """Entries of one subject for classes that stay what they are."""
        entry = _Entries(self, mine, old.get(CLASS_ANY), new.get(CLASS_ANY))
        for remote in remotes:
            entry.judge(remote, old.get(remote), new.get(remote))

    def _judge_pairs(self, mine: Side, old: Rows, new: Rows) -> None:
        """Entries of one subject for classes that addresses have while they move."""
        entry = _Entries(self, mine, old.get(CLASS_ANY), new.get(CLASS_ANY))
        for pair in self._pairs_with_rows(old, new):
            entry.judge(between(*pair), old.get(pair[0]), new.get(pair[1]))

    def _pairs_with_rows(self, old: Rows, new: Rows) -> set[Pair]:
        """Pairs of which one class has a row of its own."""
        if len(self._moves.classes) <= len(old) + len(new):
            return {pair for pair in self._moves.classes if pair[0] in old or pair[1] in new}
        found = {pair for remote in old if remote in self._pairs_from for pair in self._pairs_from[remote]}
        return found.union(pair for remote in new if remote in self._pairs_to for pair in self._pairs_to[remote])

    def _any_pair_differs(self, old: Rows, new: Rows) -> bool:
        old_any, new_any = old.get(CLASS_ANY), new.get(CLASS_ANY)
        if old_any != new_any and self._moves.classes:
            return True
        return any(old.get(one, old_any) != new.get(other, new_any) for one, other in self._pairs_with_rows(old, new))

    def _new_rows(self, side: Side) -> Rows:
        changed = self._changes.policy.get(side)
        known = self._old.policy.get(side, {})
        if not changed:
            return known
        return {remote: row for remote, row in {**known, **changed}.items() if row is not None}


class _Entries:
    """Places the writes of one side's entries; `rest_old` and `rest_new` are its rows for any remote."""

    def __init__(self, judged: Rejudgement, mine: Side, rest_old: int | None, rest_new: int | None) -> None:
        moves = judged._moves
        passing = moves.is_passing_subject(mine[0])
        self._judged = judged
        self._moves = moves
        self._mine = mine
        self._passing = passing
        self._before = passing or moves.used_before(mine[0])
        self._after = passing or moves.used_after(mine[0])
        deny = judged._meets.empty.id
        self._rest_old = deny if rest_old is None else rest_old
        self._rest_new = deny if rest_new is None else rest_new
        self._rest_meet = judged._meets.meet(self._rest_old, self._rest_new)

    def judge(self, remote: int, old: int | None, new: int | None) -> None:
        """`old` and `new`: the entry's own row before and after. What is passing exists only while something moves."""
        judged, mine = self._judged, self._mine
        passing_class = self._moves.is_passing_class(remote)
        everyone = passing_class or remote == CLASS_ANY
        passing = self._passing or passing_class
        if not (self._before and (everyone or self._moves.class_used_before(remote))):
            if new != (None if passing else old):
                judged.before[mine][remote] = new
            written = new
        else:
            if passing and old is not None:
                judged.before[mine][remote] = old
            written = old
            if self._after and (everyone or self._moves.class_used_after(remote)):
                self._judge_in_force(remote, old, new)
                written = new
            elif not passing and new != old:
                judged.leftover[mine][remote] = new
        if passing and written is not None:
            judged.leftover[mine][remote] = None

    def _judge_in_force(self, remote: int, old: int | None, new: int | None) -> None:
        judged, mine = self._judged, self._mine
        before = self._rest_old if old is None else old
        after = self._rest_new if new is None else new
        held, meet = old, before
        if before != after:
            judged.rejudged.add((mine, remote))
            meet = judged._meets.meet(before, after)
        if remote == CLASS_ANY:
            if old is not None and meet != old:
                held = judged.tightened_any[mine][remote] = meet
        elif meet != (self._rest_meet if old is None else old):
            held = judged.tightened[mine][remote] = meet
        if held != new:
            judged.final[mine][remote] = new

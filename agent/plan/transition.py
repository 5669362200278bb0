"""From what the maps hold to what they are to hold, in an order that is never more open than both. Pure.

A flow is judged by two lookups (egress of its source, ingress of its destination), each by a subject and a class. So an
intermediate state may mix: one side judged as before, the other as after, and pass what neither would. Hence:

* Rows in force tighten first, to the meet of old and new; then addresses move; then rows become what they are to be.
  Until the move everything is at most the old state, from then on at most the new one.
* Where several owners of addresses change subject or class at once, or rows change too, each goes by way of a subject
  and class of its own: numbers that at first mean what the old ones mean (nothing changes when it moves there), are
  then judged anew (meet, then new) and at last mean what the new ones mean (nothing changes when it moves on). What
  old and new both allow is never denied in between.

See ARCHITECTURE.md, "Order of writes".
"""

from __future__ import annotations

from collections import ChainMap
from collections.abc import Iterable

from agent.plan.blocks import ROWS, Block, RowMeets
from agent.plan.ids import CLASS_ANY, Names
from agent.plan.moves import Moves
from agent.plan.pieces import difference
from agent.plan.rejudge import Rejudgement, Writes
from agent.plan.state import CLASS_KEY, CLASS_VALUE, NAMESPACES, POLICY, SERVICES, Changes, State, Uses
from agent.plan.step import Step, Transition


def transition(old: State, changes: Changes, names: Names, uses: Uses | None = None) -> Transition:
    """How to take maps that hold `old` through `changes`. `uses`: of these changes, if known (State.use_changes)."""
    rows = ChainMap(changes.blocks[ROWS], old.blocks[ROWS])
    meets = RowMeets(rows, names)
    moves = Moves(old, changes, uses or old.use_changes(changes))
    leftover: Writes = {}
    if changes.moves_nobody:
        stages = _stages_in_place(old, changes, moves, meets)
    else:
        judged = Rejudgement(old, changes, moves, meets)
        straight = _stages(moves, judged)
        if straight is None:
            moves.by_way_of_own_numbers()
            judged = Rejudgement(old, changes, moves, meets)
            straight = _stages_by_own_numbers(moves, judged)
        stages, leftover = straight, judged.leftover
    new = [block for blocks in changes.blocks.values() for block in blocks.values()]
    passing = [block for number, block in meets.made.items() if number not in rows]
    services, services_gone = _entries(SERVICES, changes)
    namespaces, namespaces_gone = _entries(NAMESPACES, changes)  # go first and come last, as interfaces do
    unused = [block for name, number in moves.orphans() if (block := old.blocks[name].get(number)) is not None]
    return Transition(
        steps=tuple(filter(None, [*_written([*new, *passing], old), namespaces_gone, *stages, services, namespaces])),
        raises_epoch=any(stages),
        cleanup=tuple(filter(None, [_policy(leftover), services_gone, *_deleted([*unused, *passing])])),
    )


def _stages_in_place(old: State, changes: Changes, moves: Moves, meets: RowMeets) -> list[Step]:
    """Only rows change. A flow is judged by one of each direction: while those of one direction change, each flow is
    judged as before or as after. Where both do, the rows of one go by way of the meet, as long as the others change."""
    directions: dict[int, Writes] = {}
    for side, rows in changes.policy.items():
        directions.setdefault(side[1], {})[side] = rows
    fewest_first = sorted(directions.values(), key=lambda writes: sum(map(len, writes.values())))
    if len(fewest_first) < 2:
        return [step for writes in fewest_first for step in _straight(writes)]
    fewer, more = fewest_first
    judged = Rejudgement(old, Changes(policy=fewer), moves, meets)
    return [*_tightened(judged), *_straight(more), *_straight(fewer)]


def _straight(writes: Writes) -> list[Step]:
    """New rows of single classes, then of any remote, then what goes: nobody falls to a row that is not to judge it.
    The row of a single class may allow less than that of any remote."""
    single: Writes = {}
    rest: Writes = {}
    gone: Writes = {}
    for side, rows in writes.items():
        if None not in rows.values() and CLASS_ANY not in rows:
            single[side] = rows
            continue
        single[side] = {remote: row for remote, row in rows.items() if row is not None and remote != CLASS_ANY}
        if CLASS_ANY in rows:
            rest[side] = {CLASS_ANY: rows[CLASS_ANY]}
        gone[side] = {remote: None for remote, row in rows.items() if row is None and remote != CLASS_ANY}
    return [_policy(single), _policy(rest), _policy(gone)]


def _stages(moves: Moves, judged: Rejudgement) -> list[Step] | None:
    """Everyone goes straight to where it is to be; None where flows could meet a mixture of old and new on the way."""
    if not moves.any or (moves.only_one and not judged.rejudged):
        return [_policy(judged.before), *_tightened(judged), *moves.home(), *_straight(judged.final)]
    # Where only one of the two lookups of a flow changes, it is either as before or as after, whoever moves when, as
    # long as nobody moves to where another row is in force than will be.
    if moves.comings or (moves.classes and moves.subjects) or len(judged.changed_directions()) > 1:
        return None
    if any(side[0] in moves.arriving_subjects or remote in moves.arriving_classes for side, remote in judged.rejudged):
        return None
    if not judged.hold_arrivals():
        return None
    return [_policy(judged.before), *moves.home(), *_final(judged)]


def _stages_by_own_numbers(moves: Moves, judged: Rejudgement) -> list[Step]:
    return [_policy(judged.before), *moves.aside(), *_tightened(judged), *_straight(judged.final), *moves.home()]


def _tightened(judged: Rejudgement) -> list[Step]:
    return [_policy(judged.tightened), _policy(judged.tightened_any)]


def _final(judged: Rejudgement) -> list[Step]:
    """New rows without tightening first: those of single classes, then of any remote, then what goes. Any remote's goes
    before those of single classes: nobody falls to it on the way."""
    single: Writes = {}
    rest: Writes = {}
    gone: Writes = {}
    for writes in (judged.tightened, judged.tightened_any, judged.final):
        for side, rows in writes.items():
            for remote, row in rows.items():
                stage = rest if remote == CLASS_ANY else single
                stage.setdefault(side, {})[remote] = row
    for side, rows in single.items():
        for remote in [remote for remote, row in rows.items() if row is None]:
            gone.setdefault(side, {})[remote] = rows.pop(remote)
    return [_policy(single), _policy(rest), _policy(gone)]


def reconcile(kernel: State, wanted: State, names: Names) -> Transition:
    """How to take maps found in the kernel to a plan, writing only what differs. `kernel`: see State.read."""
    result = transition(kernel, difference(kernel, wanted), names)
    strays = [block for block in kernel.strays() if block.id not in wanted.blocks[block.map]]
    return Transition(result.steps, result.raises_epoch, (*result.cleanup, *_deleted(strays)))


def _policy(writes: Writes) -> Step:
    pack = CLASS_KEY.pack_values
    updates: dict[bytes, bytes] = {}
    deletes: list[bytes] = []
    values = Values()
    for (subject, direction), rows in writes.items():
        if None in rows.values():
            deletes += [pack(subject, remote, direction) for remote, row in rows.items() if row is None]
        updates.update(
            {pack(subject, remote, direction): values[row] for remote, row in rows.items() if row is not None}
        )
    return Step(POLICY, updates, tuple(deletes))


class Values(dict[int, bytes]):
    """Of policy_class, by row; packed once each."""

    def __missing__(self, row: int) -> bytes:
        return self.setdefault(row, CLASS_VALUE.pack_values(row))


def _entries(name: str, changes: Changes) -> tuple[Step, Step]:
    """Those of a map that are written, and those that are deleted."""
    entries = changes.tables[name]
    updates = {key: value for key, value in entries.items() if value is not None}
    return Step(name, updates), Step(name, {}, tuple(key for key, value in entries.items() if value is None))


def _written(blocks: Iterable[Block], old: State) -> list[Step]:
    """Entries of blocks that are not there, or not whole."""
    updates: dict[str, dict[bytes, bytes]] = {}
    deletes: dict[str, list[bytes]] = {}
    for block in blocks:
        entries = updates.setdefault(block.map, {})
        held = old.blocks[block.map].get(block.id)
        if held is None:
            entries.update(block.entries())
            continue
        if block.same(held):
            continue
        there, wanted = dict(held.entries()), dict(block.entries())
        entries.update({key: value for key, value in wanted.items() if there.get(key) != value})
        deletes.setdefault(block.map, []).extend(there.keys() - wanted.keys())
    return [Step(name, entries, tuple(deletes.get(name, ()))) for name, entries in updates.items()]


def _deleted(blocks: Iterable[Block]) -> list[Step]:
    keys: dict[str, list[bytes]] = {}
    for block in blocks:
        keys.setdefault(block.map, []).extend(block.keys())
    return [Step(name, {}, tuple(gone)) for name, gone in keys.items()]

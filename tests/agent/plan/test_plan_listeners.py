"""Which listeners the rows in force redirect to."""

from __future__ import annotations

from agent.plan.blocks import ROWS, row
from agent.plan.ids import Asked, Names
from agent.plan.listeners import ListenerUses, listeners_of
from agent.plan.state import Changes, State
from policies.l7 import L7, HttpRule
from policies.model import Cell, Direction, ObjectRef, RuleRef, Verdict

RULE = RuleRef(ObjectRef("CiliumNetworkPolicy", "blue", "p"), Direction.INGRESS, 0)
GET = frozenset({L7(http=frozenset({HttpRule(method="GET")}))})
POST = frozenset({L7(http=frozenset({HttpRule(method="POST")}))})


def redirect(port: int, demands: frozenset[L7]) -> Cell:
    return Cell(6, port, port, Verdict.REDIRECT, RULE, demands)


def test_a_row_names_the_listeners_of_its_cells() -> None:
    names = Names()
    block = row((redirect(80, GET), redirect(81, POST), Cell(6, 82, 82, Verdict.ALLOW, RULE)), names)
    assert listeners_of(block) == {names.listener(Asked(Direction.INGRESS, d)) for d in (GET, POST)}
    assert listeners_of(row((Cell(None, 0, 65535, Verdict.ALLOW, RULE),), names)) == frozenset()


def test_directions_have_listeners_of_their_own() -> None:
    names = Names()
    assert len({names.listener(Asked(direction, GET)) for direction in Direction}) == 2


def test_listeners_go_out_of_use_with_the_last_row() -> None:
    names, uses, state = Names(), ListenerUses(), State()
    block = row((redirect(80, GET),), names)
    changes = Changes()
    changes.blocks[ROWS][block.id] = block
    changes.policy[1, 0] = {2: block.id}
    number = names.listener(Asked(Direction.INGRESS, GET))
    assert uses.note(changes) == {number}
    state.advance(changes)
    uses.settle(state)
    assert uses.named == {number}
    gone = Changes()
    gone.policy[1, 0] = {2: None}
    assert uses.note(gone) == frozenset()
    assert uses.named == {number}
    state.advance(gone)
    uses.settle(state)
    assert uses.named == frozenset()

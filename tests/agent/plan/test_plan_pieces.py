"""Changes cut into pieces: together they are the whole, each stands alone, and what frees room comes first."""

from __future__ import annotations

import os

from hypothesis import HealthCheck, given, settings
from map_model import MapModel
from served_clusters import histories as served
from worlds import Scene, built, histories

from agent.plan.blocks import MAGLEV
from agent.plan.pieces import pieces
from agent.plan.state import Changes, State
from agent.plan.transition import transition

EXAMPLES = int(os.environ.get("GATEHOUSE_EXAMPLES", "30"))


@given(scenes=histories(steps=2, batch=8) | served(steps=2))
@settings(max_examples=EXAMPLES, suppress_health_check=list(HealthCheck))
def test_all_pieces_one_by_one_end_at_the_whole(scenes: list[Scene]) -> None:
    older, wanted = built(scenes[0]).state, built(scenes[-1])
    kernel, maps = State.read(older.maps()), MapModel(older.maps())
    kernel.blocks[MAGLEV] = dict(older.blocks[MAGLEV])  # of tables that are read nothing but the number is known
    found = list(pieces(kernel, wanted.state))
    frees = [not adds(piece) for piece in found]
    assert frees == sorted(frees, reverse=True)
    for piece in found:
        maps.apply(transition(kernel, piece, wanted.names))
        kernel.advance(piece)
        assert maps.maps == kernel.maps(), "the maps hold what the state says after every piece"
    assert maps.maps == wanted.state.maps()


def adds(piece: Changes) -> bool:
    entries = [value for table in piece.tables.values() for value in table.values()]
    return any(value is not None for value in (*entries, *(r for side in piece.policy.values() for r in side.values())))


@given(scenes=histories(steps=1, batch=8))
@settings(max_examples=10, suppress_health_check=list(HealthCheck))
def test_nothing_differs_nothing_to_do(scenes: list[Scene]) -> None:
    plan = built(scenes[-1])
    kernel = State.read(plan.state.maps())
    assert list(pieces(kernel, plan.state)) == []

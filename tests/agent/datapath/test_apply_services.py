"""Plans of services brought into the kernel's maps, Maglev tables among them, and taken up again after a restart."""

from __future__ import annotations

from services_rows import ROWS, world_of

from agent.datapath.apply import PLANNED, apply, read_state
from agent.datapath.maps import Maps
from agent.plan.plan import Plan
from agent.plan.state import MAPS, State
from agent.plan.transition import reconcile


def test_from_row_to_row_the_kernel_holds_the_plan(maps: Maps) -> None:
    assert set(PLANNED) == set(MAPS)
    tables = 0
    for row in ROWS:
        world, plan = world_of(row), Plan()
        plan.advance(plan.update(world, world.take_dirty()))
        way = reconcile(State.read(read_state(maps)), plan.state, plan.names)
        for steps in (way.steps, way.cleanup):
            outcome = apply(maps, steps, raise_epoch=False)
            assert outcome.failure is None
        wanted = plan.state.maps()
        assert {name: dict(maps[name].items()) for name in MAPS} == wanted, row.name
        assert not reconcile(State.read(read_state(maps)), plan.state, plan.names), "what is there is not written again"
        tables += len(wanted["maglev"])
    assert tables >= 2

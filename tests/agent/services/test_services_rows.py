"""The rows of tests/services_rows.py, asked of the compiler: by its trace, and by the entries its plan makes."""

from __future__ import annotations

import pytest
from map_model import MapModel
from planned import trace_in
from services_rows import ROWS, Row, packets_of, said, world_of

from agent.plan.plan import Plan
from agent.plan.tracing import WorldView
from agent.services.trace import INSIDE, SCTP_PORT, Outcome, Place

IDS = [row.name for row in ROWS]


@pytest.mark.parametrize("row", ROWS, ids=IDS)
def test_trace_says_what_the_row_says(row: Row) -> None:
    world = world_of(row)
    for packet, family, expected in packets_of(row):
        assert said(trace_in(world, packet), family) == expected, f"{packet} in IPv{family}"


@pytest.mark.parametrize("row", ROWS, ids=IDS)
def test_plan_has_the_entries_that_say_so(row: Row) -> None:
    world, plan = world_of(row), Plan()
    plan.advance(plan.update(world, world.take_dirty()))
    maps, view = MapModel(plan.state.maps()), WorldView(world)
    for packet, _, _ in packets_of(row):
        trace, place = trace_in(world, packet), view.place(packet.source)
        found = maps.serves(packet, place in INSIDE, place is Place.NODE)
        if trace.frontend is None:
            assert found is None
        elif trace.outcome is Outcome.NO_SERVICE:
            assert found is not None, "there is an entry, but such packets are not looked up among its kind"
        elif trace.reason == SCTP_PORT:
            assert isinstance(found, frozenset), "that is seen when the packet is"
        elif trace.outcome is Outcome.DELIVERED:
            assert found == frozenset(one.backend for one in trace.deliveries)
        else:
            assert found == (trace.reason or trace.outcome)


def test_rows_have_names_of_their_own() -> None:
    assert len(set(IDS)) == len(IDS) >= 60

"""Whom a node that turns encryption on meets before it encrypts what goes there."""

from __future__ import annotations

from collections.abc import Mapping

from agent.encryption.meeting import MEET_S, OFTEN_S, PATIENT_S, SELDOM_S, Meeting

BEGAN_NS = 1_000
ONE, TWO, NEXT = (bytes([number]) * 32 for number in (1, 2, 3))
NODES = {"n1": (ONE,), "n2": (TWO,)}


def look(
    meeting: Meeting,
    handshakes: dict[bytes, int],
    at_s: float = 0.0,
    *,
    told: bool = True,
    nodes: Mapping[str, tuple[bytes, ...]] = NODES,
) -> set[str]:
    found = meeting.look(nodes, handshakes, told, BEGAN_NS, at_s)
    assert meeting.goes_on is bool(found)
    return set(found)


def test_each_is_met_by_a_handshake() -> None:
    meeting = Meeting()
    assert meeting.goes_on
    assert look(meeting, {}) == {"n1", "n2"}
    assert look(meeting, {ONE: BEGAN_NS}) == {"n2"}
    assert look(meeting, {ONE: BEGAN_NS, TWO: BEGAN_NS + 1}) == set()


def test_one_before_does_not_count() -> None:
    """The other node may have forgotten this one meanwhile."""
    assert look(Meeting(), {ONE: BEGAN_NS - 1, TWO: BEGAN_NS}) == {"n1"}


def test_by_its_next_key_it_is_met_too() -> None:
    nodes = {"n1": (ONE, NEXT)}
    meeting = Meeting()
    assert look(meeting, {}, nodes=nodes) == {"n1"}
    assert look(meeting, {NEXT: BEGAN_NS}, nodes=nodes) == set()


def test_who_does_not_answer_is_waited_for_from_when_it_can_know() -> None:
    meeting = Meeting()
    assert look(meeting, {}, 1000.0, told=False) == {"n1", "n2"}
    assert look(meeting, {}, 2000.0) == {"n1", "n2"}
    assert meeting.is_waited_for(2000.0 + PATIENT_S - 0.1)
    assert meeting.pause_s(2000.0 + PATIENT_S - 0.1) == OFTEN_S
    assert not meeting.is_waited_for(2000.0 + PATIENT_S)
    assert meeting.pause_s(2000.0 + PATIENT_S) == SELDOM_S
    assert look(meeting, {}, 2000.0 + MEET_S - 0.1, told=False) == {"n1", "n2"}
    assert look(meeting, {}, 2000.0 + MEET_S) == set()


def test_nodes_that_go_and_come() -> None:
    """Who comes later is not waited for, and who comes again neither."""
    meeting = Meeting()
    look(meeting, {}, nodes={"n1": (ONE,)})
    assert look(meeting, {}) == {"n1"}
    assert look(meeting, {}, nodes={"n2": (TWO,)}) == set()
    assert look(meeting, {}) == set()


def test_alone() -> None:
    assert look(Meeting(), {}, nodes={}) == set()

"""What an allocator says has changed is exactly what takes one snapshot to the next."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from agent.identity.allocator import Allocator, ExhaustedError

BASE, SPAN = 10, 6
KEYS = st.sampled_from("abcdefgh")
STEPS = st.lists(
    st.one_of(
        st.tuples(st.just("allocate"), KEYS),
        st.tuples(st.just("release"), KEYS),
        st.tuples(st.just("restore"), st.dictionaries(KEYS, st.integers(BASE - 1, BASE + SPAN))),
        st.tuples(st.just("take"), st.none()),
    ),
    max_size=30,
)


@given(STEPS)
def test_changes_lead_from_snapshot_to_snapshot(steps: list[tuple[str, object]]) -> None:
    allocator = Allocator("number", BASE, SPAN, reserved=[BASE])
    known: dict[str, int] = {}
    for step, argument in [*steps, ("take", None)]:
        if step == "take":
            for key, number in allocator.take_changes().items():
                known.pop(key, None)
                if number is not None:
                    known[key] = number
            assert known == allocator.snapshot()
            assert allocator.take_changes() == {}
        else:
            try:
                getattr(allocator, step)(argument)
            except ExhaustedError:
                assert len(allocator.snapshot()) == SPAN - 1


def test_what_is_not_taken_over_from_an_earlier_run_is_a_change() -> None:
    """Else it would stay in the journal, and could be in the way of who holds the number."""
    allocator = Allocator("number", BASE, SPAN, reserved=[BASE])
    allocator.restore({"reserved": BASE, "fits": BASE + 1, "taken": BASE + 1})
    assert allocator.take_changes() == {"reserved": None, "fits": BASE + 1, "taken": None}

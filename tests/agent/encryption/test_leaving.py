"""How long a device is kept that is not wanted any more."""

from __future__ import annotations

from collections.abc import Sequence

import pytest

from agent.encryption.leaving import QUIET_S, Quiet

Look = tuple[float, int, bool]


@pytest.mark.parametrize(
    ("looks", "over"),
    [
        ([(0.0, 7, True), (QUIET_S - 0.1, 7, True)], False),
        ([(0.0, 7, True), (QUIET_S, 7, True)], True),
        ([(0.0, 7, True), (3.0, 8, True), (QUIET_S, 8, True)], False),
        ([(0.0, 7, True), (3.0, 8, True), (3.0 + QUIET_S, 8, True)], True),
        ([(0.0, 0, False), (100.0, 0, False), (100.0 + QUIET_S - 0.1, 0, True)], False),
        ([(0.0, 0, False), (100.0, 0, False), (100.0 + QUIET_S, 0, True)], True),
    ],
    ids=["not yet", "quiet", "something came", "quiet after that", "told just now", "told for long enough"],
)
def test_once_nothing_comes_and_the_others_can_know(looks: Sequence[Look], over: bool) -> None:
    quiet = Quiet()
    assert [quiet.look(received, told, at_s) for at_s, received, told in looks] == [False] * (len(looks) - 1) + [over]

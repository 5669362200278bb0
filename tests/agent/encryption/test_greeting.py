from itertools import pairwise

import pytest

from agent.encryption.greeting import AGAIN_S, APART, WAIT_S, Greetings

LOW, HIGH = b"a" * 32, b"b" * 32
ALL = 100
NEVER = {LOW: 0, HIGH: 0}


def greets(own: bytes, *keys: bytes) -> Greetings:
    greetings = Greetings({})
    greetings.add(own, keys, NEVER, 0.0)
    return greetings


def test_one_of_two_greets_at_once_and_the_other_a_little_later() -> None:
    low, high = greets(LOW, HIGH), greets(HIGH, LOW)
    assert (low.delay_s(0.0, 5.0), high.delay_s(0.0, 5.0)) == (0.0, WAIT_S)
    assert low.take(NEVER, 0.0, ALL) == ([HIGH], [])
    assert high.take(NEVER, 0.0, ALL) == ([], [])
    assert high.take(NEVER, WAIT_S, ALL) == ([LOW], [])


def test_who_has_made_a_handshake_is_not_greeted_again() -> None:
    greetings = greets(LOW, HIGH)
    greetings.take(NEVER, 0.0, ALL)
    assert greetings.take({HIGH: 1}, 60.0, ALL) == ([], [])
    assert not greetings.waiting


def test_a_handshake_of_before_is_none() -> None:
    """A session that is over, for one of the two keys is another."""
    greetings = Greetings({})
    greetings.add(LOW, [HIGH], {HIGH: 7}, 0.0)
    assert greetings.take({HIGH: 7}, 0.0, ALL) == ([HIGH], [])
    assert greetings.take({HIGH: 7}, 1.0, ALL) == ([], [HIGH])
    assert greetings.take({HIGH: 0}, 2.0, ALL) == ([], [HIGH]), "it was made anew"
    assert greetings.take({HIGH: 8}, 9.0, ALL) == ([], [])


def test_who_does_not_answer_is_greeted_a_few_times() -> None:
    """Each time later; by two that met in the middle not at the same time again."""
    taken = {}
    for own, other in ((LOW, HIGH), (HIGH, LOW)):
        greetings, now, times = greets(own, other), 0.0, []
        while greetings.waiting:
            now += greetings.delay_s(now, 60.0)
            expected = [other] if greetings.asks(now) else []
            first, again = greetings.take(NEVER, now, ALL)
            assert again in (expected, [])
            times += [now] * len(first + again)
        taken[own] = times
    assert [b - a for a, b in pairwise(taken[LOW])] == pytest.approx(AGAIN_S)
    assert [b - a for a, b in pairwise(taken[HIGH])] == pytest.approx([wait * APART for wait in AGAIN_S])
    assert min(abs(a - b) for a in taken[LOW] for b in taken[HIGH]) > 0.099


def test_who_is_gone_is_forgotten() -> None:
    greetings = greets(LOW, HIGH)
    assert greetings.take({}, 0.0, ALL) == ([], [])
    assert not greetings.waiting


def test_many_are_greeted_in_turns() -> None:
    keys = [bytes([number]) * 32 for number in range(1, 6)]
    never = dict.fromkeys(keys, 0)
    greetings = Greetings({})
    greetings.add(b"", keys, never, 0.0)
    turns = []
    while greetings.delay_s(0.0, 5.0) == 0.0:
        turns.append(greetings.take(never, 0.0, 2)[0])
    assert turns == [keys[:2], keys[2:4], keys[4:]]


def test_who_waits_long_is_not_late_for_what_comes_sooner() -> None:
    greetings = greets(HIGH, LOW)
    assert greetings.delay_s(0.0, WAIT_S / 4) == WAIT_S / 4
    assert greetings.delay_s(1.0, 5.0) == 0.0

from agent.encryption.greeting import WAIT_S, Greetings

LOW, HIGH = b"a" * 32, b"b" * 32


def test_one_of_two_greets_at_once_and_the_other_a_little_later() -> None:
    low, high = Greetings(), Greetings()
    low.add(LOW, [HIGH], 0.0)
    high.add(HIGH, [LOW], 0.0)
    assert (low.delay_s(0.0, 5.0), high.delay_s(0.0, 5.0)) == (0.0, WAIT_S)
    assert (low.take(0.0), high.take(0.0)) == ([HIGH], [])
    assert high.take(WAIT_S) == [LOW]


def test_each_is_greeted_once() -> None:
    greetings = Greetings()
    greetings.add(LOW, [HIGH], 0.0)
    assert (greetings.take(1.0), greetings.take(2.0)) == ([HIGH], [])
    assert greetings.delay_s(2.0, 5.0) == 5.0


def test_who_waits_long_is_not_late_for_what_comes_sooner() -> None:
    greetings = Greetings()
    greetings.add(HIGH, [LOW], 0.0)
    assert greetings.delay_s(0.0, WAIT_S / 4) == WAIT_S / 4
    assert greetings.delay_s(1.0, 5.0) == 0.0

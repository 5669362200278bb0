"""Peers that are sent packets and do not answer."""

from __future__ import annotations

from agent.encryption.device import PeerState
from agent.encryption.silence import PAUSE_NS, SILENT_NS, Silence

A = b"a" * 32
SECOND = 1_000_000_000
START = 1_700_000_000 * SECOND


def looked(handshake_s: float, sends: list[tuple[float, float]], until_s: float) -> list[float]:
    """When it is silent, in steps of 5 s. `sends`: (from, to) in which packets are sent; times from START."""
    silence, sent, found = Silence(), 1000, []
    for step in range(int(until_s // 5) + 1):
        at = step * 5.0
        sent += 148 * any(first <= at <= last for first, last in sends)
        made = START + int(handshake_s * SECOND) if at >= handshake_s > -1e9 else 0
        if silence.look({A: PeerState(handshake_ns=made, sent_bytes=sent)}, START + int(at * SECOND)):
            found.append(at)
    return found


NEVER = -1e10


def test_three_minutes_of_packets_and_no_handshake() -> None:
    found = looked(NEVER, [(10, 600)], 700)
    assert found[0] == 10 + SILENT_NS / SECOND
    assert found[-1] == 600 + PAUSE_NS / SECOND, "once nothing is sent, nothing is missing"


def test_three_minutes_after_the_last_handshake() -> None:
    assert looked(100, [(0, 600)], 600)[0] == 100 + SILENT_NS / SECOND


def test_an_idle_peer_is_not_silent() -> None:
    assert looked(NEVER, [], 10_000) == []
    assert looked(0, [], 10_000) == []


def test_one_that_is_sent_something_after_a_long_time_has_three_minutes_to_answer() -> None:
    assert looked(0, [(5000, 5170)], 5179) == []
    assert looked(0, [(5000, 5400)], 5400)[0] == 5000 + SILENT_NS / SECOND


def test_packets_now_and_then_are_no_stretch() -> None:
    every = [(at, at) for at in range(100, 2000, int(PAUSE_NS / SECOND) + 10)]
    assert looked(NEVER, [(float(a), float(b)) for a, b in every], 2000) == []


def test_one_that_is_gone_is_forgotten() -> None:
    silence = Silence()
    silence.look({A: PeerState(sent_bytes=1)}, START)
    silence.look({A: PeerState(sent_bytes=2)}, START + SECOND)
    silence.look({}, START + 2 * SECOND)
    assert not silence.look({A: PeerState(sent_bytes=3)}, START + SILENT_NS * 2)

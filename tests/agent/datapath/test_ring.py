"""The ring reader against a program that submits and discards events."""

from __future__ import annotations

import select
import struct
from collections.abc import Iterator
from pathlib import Path

import pytest
from small_datapath import SMALL_SIZES, write_source

from agent.datapath import testrun
from agent.datapath.abi import load
from agent.datapath.maps import Maps
from agent.datapath.pins import Pins
from agent.datapath.programs import Programs, ensure_loaded
from agent.datapath.ring import Ring

EVENT = load().records["event"]
STRIDE = EVENT.size + 8
SHOT = testrun.Action.SHOT  # PROGRAM says so where the ring is full


@pytest.fixture
def ring(maps: Maps) -> Iterator[Ring]:
    ring = Ring(maps["events"].fd)
    yield ring
    ring.close()


class Emitter:
    """Runs PROGRAM on numbered packets, the first of which is 1."""

    def __init__(self, program: int) -> None:
        self._program = program
        self._count = 0

    def __call__(self, kinds: str) -> list[int]:
        """One packet for each letter; returns the actions."""
        return [self._run(kind) for kind in kinds]

    def _run(self, kind: str) -> int:
        self._count += 1
        return testrun.run(self._program, kind.encode() + struct.pack("=Q", self._count) + bytes(51)).action


@pytest.fixture
def emit(programs: Programs) -> Emitter:
    return Emitter(programs["from_pod"])


def numbers(ring: Ring, limit: int = 1 << 20) -> list[int]:
    """The numbers of the packets whose events are drained."""
    return [EVENT.unpack(data).packets for data in ring.drain(limit)]


def test_nothing_yet(ring: Ring) -> None:
    assert ring.drain() == []
    assert numbers(ring) == []
    assert ring.unread_bytes == 0


def test_events_in_order(ring: Ring, emit: Emitter) -> None:
    emit("....")
    assert ring.unread_bytes == 4 * STRIDE
    assert numbers(ring) == [1, 2, 3, 4]
    assert numbers(ring) == []
    emit("..")
    assert [len(data) for data in ring.drain()] == [EVENT.size] * 2
    assert ring.unread_bytes == 0


def test_a_limit_leaves_the_rest(ring: Ring, emit: Emitter) -> None:
    emit("......")
    assert numbers(ring, limit=2 * STRIDE) == [1, 2]
    assert numbers(ring, limit=1) == [3]  # never none, or a reader would not get on
    assert numbers(ring) == [4, 5, 6]


@pytest.mark.parametrize("kinds", ["d", "d.", ".d", "dd..d.dd", ".d.d.d", "dddddddd"])
def test_discarded_records_are_passed_over(ring: Ring, emit: Emitter, kinds: str) -> None:
    expected = [number for number, kind in enumerate(kinds, 1) if kind == "."]
    emit(kinds)
    assert numbers(ring) == expected
    assert ring.unread_bytes == 0


def test_many_times_round(ring: Ring, emit: Emitter) -> None:
    """The ring holds 31 events of 128 bytes, with one place kept free; odd batches wrap at every offset."""
    seen: list[int] = []
    for turn in range(60):
        emit("." * (1 + turn % 23) + "d" * (turn % 3))
        seen += numbers(ring)
    wanted: list[int] = []
    number = 0
    for turn in range(60):
        wanted += range(number + 1, number + 2 + turn % 23)
        number += 1 + turn % 23 + turn % 3
    assert seen == wanted
    assert len(seen) * STRIDE > 10 * 4096


def test_a_record_across_the_end(ring: Ring, emit: Emitter) -> None:
    emit("s")  # 16 bytes: from now on no event ends where the ring does
    assert [len(data) for data in ring.drain()] == [8]
    for first in range(2, 200, 25):
        emit("." * 25)
        assert numbers(ring) == list(range(first, first + 25))


def test_a_full_ring_loses_the_newest(ring: Ring, emit: Emitter) -> None:
    actions = emit("." * 40)
    lost = actions.count(SHOT)
    assert 0 < lost < 40
    assert actions == [0] * (40 - lost) + [SHOT] * lost
    assert numbers(ring) == list(range(1, 41 - lost))
    assert emit(".") == [0]


@pytest.mark.parametrize("kinds", ["s", ".s", "s.", "..s.ss..d.s", "ssss....ssss", "sdsdsd.d.d.d"])
def test_records_of_several_lengths(ring: Ring, emit: Emitter, kinds: str) -> None:
    for _ in range(9):
        emit(kinds)
        assert [len(data) for data in ring.drain()] == [{".": EVENT.size, "s": 8}[k] for k in kinds if k != "d"]
        assert ring.unread_bytes == 0


def test_runs_longer_than_are_looked_at_together(pins: Pins, tmp_path: Path) -> None:
    with (
        Maps.open_or_create(pins.maps, SMALL_SIZES | {"events": 1 << 16}) as maps,
        ensure_loaded(maps, pins, write_source(tmp_path)) as programs,
    ):
        ring, emit = Ring(maps["events"].fd), Emitter(programs["from_pod"])
        for first in (1, 301, 601):
            emit("." * 300)
            assert numbers(ring) == list(range(first, first + 300))
        ring.close()


def test_readable_when_there_is_something(ring: Ring, emit: Emitter) -> None:
    with select.epoll() as poll:
        poll.register(ring, select.EPOLLIN)
        assert poll.poll(timeout=0) == []
        emit(".")
        assert poll.poll(timeout=30) == [(ring.fileno(), select.EPOLLIN)]
        assert numbers(ring) == [1]
        assert poll.poll(timeout=0) == []

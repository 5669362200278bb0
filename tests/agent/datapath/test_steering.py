"""The map of who encrypts towards whom, written by difference."""

from __future__ import annotations

from pathlib import Path

import pytest
from small_datapath import SMALL_SIZES

from agent.datapath.maps import Maps
from agent.datapath.pins import Pins
from agent.datapath.steering import Steering
from agent.plan.encryption import entries, unready
from agent.world.nodes import Peer
from policies.address import Prefix, parse_address

BLOCKS = (Prefix.parse("10.244.1.0/24"),)
ADDRESSES = (parse_address("192.0.2.1"),)


def peer(number: int) -> Peer:
    return Peer(
        f"n{number}", (parse_address(f"192.0.2.{number}"),), (Prefix.parse(f"10.244.{number}.0/24"),), b"k" * 32
    )


def test_written_changed_and_taken_back(maps: Maps) -> None:
    steering, table = Steering(maps["encryption"]), maps["encryption"]
    wanted = entries(BLOCKS, ADDRESSES, [peer(2), peer(3)], {"n2"})
    steering.prepare(wanted)
    assert dict(table.items()) == {key: unready(value) for key, value in wanted.items()}
    steering.update(wanted)
    assert dict(table.items()) == wanted
    fewer = entries(BLOCKS, ADDRESSES, [peer(3)], {"n3"})
    steering.update(fewer)
    assert dict(table.items()) == fewer
    steering.update({})
    assert not dict(table.items())
    assert not steering.problem


def test_the_next_agent_goes_on_from_what_is_there(maps: Maps) -> None:
    wanted = entries(BLOCKS, ADDRESSES, [peer(2)], {"n2"})
    Steering(maps["encryption"]).update(wanted)
    after = Steering(maps["encryption"])
    more = entries(BLOCKS, ADDRESSES, [peer(2), peer(3)], {"n2", "n3"})
    after.prepare(more)
    unprepared = {key: unready(value) for key, value in more.items() if key not in wanted}
    assert dict(maps["encryption"].items()) == wanted | unprepared
    after.update(more)
    assert dict(maps["encryption"].items()) == more


@pytest.fixture
def small(pins: Pins, tmp_path: Path) -> Maps:
    return Maps.open_or_create(pins.maps, SMALL_SIZES | {"encryption": 4})


def test_a_full_map_is_told_of_until_there_is_room(small: Maps) -> None:
    with small as maps:
        steering = Steering(maps["encryption"])
        steering.update(entries(BLOCKS, ADDRESSES, [peer(2), peer(3)], ()))
        assert "map encryption holds 4 entries" in steering.problem
        held = dict(maps["encryption"].items())
        assert len(held) == 4
        fits = entries(BLOCKS, ADDRESSES, [peer(2)], ())
        steering.update(fits)
        steering.update(fits)
        assert dict(maps["encryption"].items()) == fits
        assert not steering.problem

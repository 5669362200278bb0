"""The map of who encrypts towards whom, written by difference."""

from __future__ import annotations

import random
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import cast

import pytest
from small_datapath import SMALL_SIZES

from agent.datapath.maps import Map, Maps
from agent.datapath.pins import Pins
from agent.encryption.steering import Steering
from agent.plan.encryption import ANYWHERE, KEY, PEER_PODS, READY, VALUE, entries, unready
from agent.world.nodes import Peer
from policies.address import Prefix, parse_address

BLOCKS = (Prefix.parse("10.244.1.0/24"),)
ADDRESSES = (parse_address("192.0.2.1"),)
SIZE = 12
"""Of the map where it is small."""


def peer(number: int) -> Peer:
    return Peer(
        f"n{number}", (parse_address(f"192.0.2.{number}"),), (Prefix.parse(f"10.244.{number}.0/24"),), b"k" * 32
    )


@pytest.fixture
def maps(pins: Pins) -> Iterator[Maps]:
    with Maps.open_or_create(pins.maps, SMALL_SIZES | {"encryption": SIZE}) as maps:
        yield maps


def told(*numbers: int) -> dict[bytes, bytes]:
    """Of this node and these, all ready."""
    peers = [peer(number) for number in numbers]
    return entries(BLOCKS, ADDRESSES, peers, {one.name for one in peers})


def flags_of(held: Mapping[bytes, bytes], address: str) -> int:
    """As the datapath finds them: by the longest block."""
    number = int.from_bytes(parse_address(address), "big")
    found = 0, 0
    for key, value in held.items():
        block = KEY.unpack(key)
        if number >> (128 - block.prefixlen) == int.from_bytes(block.address, "big") >> (128 - block.prefixlen):
            found = max(found, (block.prefixlen, VALUE.unpack(value).flags))
    return found[1]


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


def test_what_is_ready_stays_so_while_nothing_is_known_of_the_device(maps: Maps) -> None:
    """For the same nodes; what comes new is not ready."""
    Steering(maps["encryption"]).update(told(2, 3))
    after, table = Steering(maps["encryption"]), maps["encryption"]
    after.update(entries(BLOCKS, ADDRESSES, [peer(2), peer(4)], ()), ready_stays=True)
    assert dict(table.items()) == entries(BLOCKS, ADDRESSES, [peer(2), peer(4)], {"n2"})
    after.update(entries(BLOCKS, ADDRESSES, [peer(2), peer(4)], ()))
    assert dict(table.items()) == entries(BLOCKS, ADDRESSES, [peer(2), peer(4)], ())


def test_the_next_agent_goes_on_from_what_is_there(maps: Maps) -> None:
    wanted = told(2)
    Steering(maps["encryption"]).update(wanted)
    after = Steering(maps["encryption"])
    more = told(2, 3)
    after.prepare(more)
    unprepared = {key: unready(value) for key, value in more.items() if key not in wanted}
    assert dict(maps["encryption"].items()) == wanted | unprepared
    after.update(more)
    assert dict(maps["encryption"].items()) == more


# ---- nodes that go


def test_in_strict_mode_a_block_stays_one_of_pods_when_its_node_goes(maps: Maps) -> None:
    """Its pods may still run, and routes still lead to them."""
    steering, table = Steering(maps["encryption"], strict=True), maps["encryption"]
    steering.update(told(2, 3))
    for _ in range(2):
        steering.update(told(2))
        held = dict(table.items())
        assert (flags_of(held, "10.244.3.9"), flags_of(held, "192.0.2.3")) == (PEER_PODS, 0)
        assert told(2).items() <= held.items()
    steering.update(told(2, 3))
    assert dict(table.items()) == told(2, 3)
    steering.update({})
    assert not dict(table.items()), "nothing is encrypted any more"
    steering.update(told(2))
    assert dict(table.items()) == told(2)


@pytest.mark.parametrize("around", ["10.244.0.0/16", "10.244.3.0/24"])
def test_not_where_a_wider_block_says_so(maps: Maps, around: str) -> None:
    steering = Steering(maps["encryption"], strict=True)
    steering.update(told(2, 3))
    wanted = entries(BLOCKS, ADDRESSES, [peer(2)], {"n2"}, [Prefix.parse(around)])
    steering.update(wanted)
    assert dict(maps["encryption"].items()) == wanted


def test_a_block_that_is_this_nodes_now(maps: Maps) -> None:
    steering = Steering(maps["encryption"], strict=True)
    steering.update(told(2, 3))
    wanted = entries((*BLOCKS, *peer(3).pod_cidrs), ADDRESSES, [peer(2)], {"n2"})
    steering.update(wanted)
    assert dict(maps["encryption"].items()) == wanted


# ---- a map that is full


class Watched:
    """A map that is looked at after each single write: addresses of others stay others' all the while."""

    def __init__(self, table: Map, *addresses: str) -> None:
        self.spec, self._table, self._addresses = table.spec, table, addresses

    def items(self) -> Iterator[tuple[bytes, bytes]]:
        return self._table.items()

    def update_many(self, some: Mapping[bytes, bytes]) -> None:
        for key, value in some.items():
            self._table.update_many({key: value})
            self._look()

    def delete_many(self, keys: Iterable[bytes]) -> None:
        for key in keys:
            self._table.delete_many([key])
            self._look()

    def _look(self) -> None:
        held = dict(self._table.items())
        assert len(held) <= SIZE
        lost = [address for address in self._addresses if not flags_of(held, address)]
        assert not lost


def watched(table: Map, numbers: Iterable[int]) -> Map:
    addresses = [text for n in numbers for text in (f"10.244.{n}.9", f"192.0.2.{n}")]
    return cast("Map", Watched(table, *addresses))


def test_what_finds_no_room_is_others_still(maps: Maps) -> None:
    many = range(2, 12)
    steering, table = Steering(maps["encryption"]), maps["encryption"]
    steering.update(told(*many))
    assert f"map encryption holds {SIZE} entries and is to hold 22 and a free one" in steering.problem
    held = dict(table.items())
    assert len(held) < SIZE
    for number in many:
        assert flags_of(held, f"10.244.{number}.9") == PEER_PODS
        assert flags_of(held, f"192.0.2.{number}")
    assert told().items() <= held.items(), "this node's own"
    assert flags_of(held, "203.0.113.1") == 0, "no wider than it takes"
    few = told(2, 3)
    steering.update(few)
    assert dict(table.items()) == few
    assert not steering.problem


def test_from_one_full_map_to_another_nothing_is_nobodys(maps: Maps) -> None:
    table = maps["encryption"]
    draws = random.Random(seed := random.randrange(1 << 32))
    print("seed", seed)
    before: list[int] = []
    for _ in range(40):
        after = draws.sample(range(2, 30), draws.randrange(1, 14))
        Steering(watched(table, set(before) & set(after))).update(told(*after))
        held = dict(table.items())
        assert all(flags_of(held, f"10.244.{n}.9") & PEER_PODS for n in after), (before, after)
        if len(told(*after)) < SIZE:
            assert held == told(*after)
        before = after


def test_what_finds_no_room_before_anything_is_ready(maps: Maps) -> None:
    """Of a map that an earlier agent has filled."""
    table = maps["encryption"]
    Steering(table).update(told(2, 3, 4, 5))
    steering = Steering(table)
    steering.prepare(told(2, 3, 4, 5, 6, 7))
    held = dict(table.items())
    assert held == told(2, 3, 4, 5) | ANYWHERE
    assert flags_of(held, "10.244.2.9") == PEER_PODS | READY
    steering.update(told(2, 3, 6, 7))
    assert dict(table.items()) == told(2, 3, 6, 7)


@pytest.fixture
def tiny(pins: Pins, tmp_path: Path) -> Maps:
    return Maps.open_or_create(pins.maps, SMALL_SIZES | {"encryption": 2})


def test_no_room_even_for_this_node(tiny: Maps) -> None:
    with tiny as maps:
        steering = Steering(maps["encryption"])
        steering.update(told(2, 3))
        assert "map encryption holds 2 entries" in steering.problem
        assert flags_of(dict(maps["encryption"].items()), "10.244.3.9") == PEER_PODS

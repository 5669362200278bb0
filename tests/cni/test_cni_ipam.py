"""Addresses of attachments: never one twice, never a reserved one, and not at once to the next."""

from __future__ import annotations

import random

import pytest

from agent.cni.ipam import REST_S, Ipam
from agent.cni.protocol import CniError, Key
from policies.address import Prefix, parse_address

V4, V6 = Prefix.parse("10.0.0.0/28"), Prefix.parse("fd00::/64")  # 13 addresses of IPv4


class Clock:
    now_s = 0.0

    def __call__(self) -> float:
        return self.now_s


def key(number: int) -> Key:
    return Key(f"c{number}", "eth0")


def test_one_of_each_block_and_the_same_again() -> None:
    ipam = Ipam(Clock())
    ipam.set_blocks([V4, V6])
    given = ipam.give(key(1))
    assert V4.contains(given[0])
    assert V6.contains(given[1])
    assert ipam.give(key(1)) == given
    assert ipam.give(key(2)) != given


def test_without_a_block_it_says_why() -> None:
    ipam = Ipam(Clock())
    with pytest.raises(CniError, match="no block") as caught:
        ipam.give(key(1))
    assert caught.value.code == 11
    ipam.set_blocks([], why_none="Node n1 has no spec.podCIDRs")
    assert ipam.problem == "Node n1 has no spec.podCIDRs"
    with pytest.raises(CniError, match="podCIDRs"):
        ipam.give(key(1))
    ipam.set_blocks([V4])
    assert ipam.problem == ""
    ipam.give(key(1))


def test_a_block_that_is_used_up() -> None:
    ipam = Ipam(Clock())
    ipam.set_blocks([V4, V6], reserved=[parse_address("10.0.0.5")])
    given = [ipam.give(key(number)) for number in range(12)]
    assert len({address for pair in given for address in pair}) == 24
    assert parse_address("10.0.0.5") not in {pair[0] for pair in given}
    with pytest.raises(CniError, match="all 12 are in use") as caught:
        ipam.give(key(99))
    assert caught.value.code == 11
    assert "all 12" in ipam.problem
    assert key(99) not in ipam.held()
    ipam.take_back(key(3))
    assert ipam.problem == ""
    assert ipam.give(key(99))[0] == given[3][0]


def test_what_comes_back_rests() -> None:
    clock = Clock()
    ipam = Ipam(clock)
    ipam.set_blocks([V4])
    for number in range(10):
        ipam.give(key(number))
    freed = ipam.held()[key(0)]
    ipam.take_back(key(0))
    assert freed not in [ipam.give(key(100 + n)) for n in range(3)]
    assert ipam.give(key(200)) == freed  # nothing else is left: better than none
    ipam.take_back(key(200))
    ipam.take_back(key(1))
    clock.now_s += REST_S
    assert {ipam.give(key(300)), ipam.give(key(301))} == {freed, ipam_address(ipam, freed)}


def ipam_address(ipam: Ipam, other: tuple[bytes, ...]) -> tuple[bytes, ...]:
    (found,) = [given for k, given in ipam.held().items() if k in (key(300), key(301)) and given != other]
    return found


def test_what_was_held_before_stays_held_whatever_the_blocks() -> None:
    ipam = Ipam(Clock())
    elsewhere = (parse_address("10.9.0.7"), parse_address("fd00:9::7"))
    ipam.hold(key(1), elsewhere)
    ipam.hold(key(2), (parse_address("10.0.0.7"),))
    ipam.set_blocks([V4])
    given = {ipam.give(key(number)) for number in range(10, 22)}
    assert (parse_address("10.0.0.7"),) not in given
    assert ipam.give(key(1)) == elsewhere
    ipam.set_blocks([Prefix.parse("10.9.0.0/28")])  # the block comes back
    assert elsewhere[:1] not in {ipam.give(key(number)) for number in range(30, 42)}


def test_any_order() -> None:
    seed = random.randrange(1 << 32)
    print("seed", seed)
    rng = random.Random(seed)
    clock, blocks = Clock(), [[V4], [V4, V6], [Prefix.parse("10.0.1.0/29"), V6], []]
    ipam = Ipam(clock)
    for _ in range(3000):
        choice = rng.random()
        if choice < 0.02:
            ipam.set_blocks(rng.choice(blocks))
        elif choice < 0.55:
            try:
                ipam.give(key(rng.randrange(40)))
            except CniError:
                assert ipam.problem
        else:
            ipam.take_back(key(rng.randrange(40)))
        clock.now_s += rng.random() * 5
        held = [address for given in ipam.held().values() for address in given]
        assert len(held) == len(set(held)), seed

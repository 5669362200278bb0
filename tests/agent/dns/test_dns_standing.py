"""What addresses become by their names while the agent is away, in the kernel's own map."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
from small_datapath import SMALL_SIZES

from agent.datapath import abi
from agent.datapath.maps import Maps
from agent.datapath.pins import Pins
from agent.dns.configuration import Standing, StandingClass
from agent.dns.standing import KEY, VALUE, AbsentAgent
from policies.address import Prefix, parse_address
from policies.l7 import NamePattern

C = abi.load().constants
OURS, ALSO = NamePattern(pattern="*.ours"), NamePattern(exact="a.ours")
V4, V6 = C.IDENTITY_WORLD_IPV4, C.IDENTITY_WORLD_IPV6
BLOCK = "198.51.100.0/24"
STANDING = Standing(
    prefixes=(BLOCK, "203.0.113.7/32"),
    inside=("10.0.0.0/8",),
    classes=(
        StandingClass(101, V4, (), (OURS,)),
        StandingClass(102, V6, (), (OURS,)),
        StandingClass(103, V4, (), (OURS, ALSO)),
        StandingClass(104, V4, (BLOCK,), (OURS,)),
    ),
)
POD_IDENTITY = 4711


@pytest.fixture
def maps(pins: Pins) -> Iterator[Maps]:
    with Maps.open_or_create(pins.maps, SMALL_SIZES) as maps:
        put(maps, "0.0.0.0/0", 9, V4)
        put(maps, "::/0", 10, V6)
        put(maps, "192.0.2.55/32", POD_IDENTITY, POD_IDENTITY)
        yield maps


def put(maps: Maps, prefix: str, remote_class: int, identity: int) -> None:
    block = Prefix.parse(prefix)
    key = KEY.pack_values(block.bits, block.network)
    maps["ipcache"].update(key, VALUE.pack_values(remote_class, identity))


def held(maps: Maps, address: str) -> tuple[int, int]:
    """Class and identity of what an address is now."""
    found = maps["ipcache"].lookup(KEY.pack_values(128, parse_address(address)))
    assert found is not None
    fields = VALUE.unpack(found)
    return fields.remote_class, fields.identity


ROWS = [
    # address, its names, whether it is settled, class afterwards
    ("203.0.113.1", {"b.ours"}, True, 101),
    ("203.0.113.1", {"b.ours", "c.ours", "other"}, True, 101),
    ("203.0.113.1", {"a.ours"}, True, 103),
    ("203.0.113.1", {"other"}, False, 9),
    ("2001:db8::1", {"b.ours"}, True, 102),
    ("2001:db8::1", {"a.ours"}, False, 10),  # the kernel knows no such class
    ("198.51.100.1", {"b.ours"}, True, 104),
    ("198.51.100.1", {"a.ours"}, False, 9),
    ("203.0.113.7", {"b.ours"}, False, 9),
    ("10.1.2.3", {"a.ours"}, True, 9),  # inside the cluster names mean nothing
    ("192.0.2.55", {"a.ours"}, True, POD_IDENTITY),  # a pod's
]


@pytest.mark.parametrize(("address", "names", "settled", "remote_class"), ROWS)
def test_classes(maps: Maps, address: str, names: set[str], settled: bool, remote_class: int) -> None:
    absent = AbsentAgent(maps["ipcache"])
    absent.configure(STANDING, (OURS, ALSO))
    entries = len(list(maps["ipcache"].items()))
    assert absent.settle(parse_address(address), frozenset(names)) is settled
    found, identity = held(maps, address)
    assert found == remote_class
    if remote_class > 100 and remote_class != POD_IDENTITY:
        assert identity == (V6 if ":" in address else V4)
        assert absent.settle(parse_address(address), frozenset(names))
    else:
        assert len(list(maps["ipcache"].items())) == entries


def test_without_a_word_from_the_agent_nothing_is_settled(maps: Maps) -> None:
    assert not AbsentAgent(maps["ipcache"]).settle(parse_address("203.0.113.1"), frozenset({"b.ours"}))


def test_an_empty_ipcache_settles_nothing(maps: Maps) -> None:
    maps["ipcache"].delete_many([key for key, _ in maps["ipcache"].items()])
    absent = AbsentAgent(maps["ipcache"])
    absent.configure(STANDING, (OURS, ALSO))
    assert not absent.settle(parse_address("203.0.113.1"), frozenset({"b.ours"}))


def test_a_full_ipcache_settles_nothing(maps: Maps) -> None:
    absent = AbsentAgent(maps["ipcache"])
    absent.configure(STANDING, (OURS, ALSO))
    for number in range(SMALL_SIZES["ipcache"] - 3):
        put(maps, f"172.16.{number // 256}.{number % 256}/32", 9, V4)
    assert not absent.settle(parse_address("203.0.113.1"), frozenset({"b.ours"}))

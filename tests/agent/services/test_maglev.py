"""Maglev tables: even, stable, the same everywhere, and asked as the kernel asks them."""

from __future__ import annotations

import random
import struct
from collections import Counter

import pytest

from agent.services.maglev import assign, client_hash, flow_hash, is_prime, lookup, mix, most_backends, shares, table
from agent.services.model import Backend
from policies.address import parse_address

SIZE = 16381
SEED = 0x1234_5678_9ABC_DEF0


def backends(count: int, first: int = 0) -> list[Backend]:
    return [(parse_address(f"10.{n >> 16}.{n >> 8 & 255}.{n & 255}"), 8080) for n in range(first, first + count)]


@pytest.mark.parametrize(("count", "size"), [(100, SIZE), (100, 10007), (1, 251), (2, 251), (13, 1361), (600, 65521)])
def test_shares_are_within_one_percent(count: int, size: int) -> None:
    assert size > 100 * count
    held = Counter(assign(backends(count), size, SEED))
    assert len(held) == count
    mean = size / count
    assert max(held.values()) <= max(mean * 1.01, mean + 1)
    assert min(held.values()) >= min(mean * 0.99, mean - 1)


@pytest.mark.parametrize("seed", [0, 1, SEED])
def test_when_one_of_100_goes_at_most_one_percent_of_the_others_flows_move(seed: int) -> None:
    members = backends(100)
    before = assign(members, SIZE, seed)
    for gone in random.Random(seed).sample(range(100), 4):
        left = members[:gone] + members[gone + 1 :]
        after = assign(left, SIZE, seed)
        moved = sum(1 for old, new in zip(before, after, strict=True) if old != gone and members[old] != left[new])
        assert moved <= SIZE / 100, f"seed {seed}, without backend {gone}"


def test_order_and_node_do_not_matter() -> None:
    members = backends(20)
    mixed = random.Random(1).sample(members, len(members))
    one, other = assign(members, 1009, SEED), assign(mixed, 1009, SEED)
    assert [members[slot] for slot in one] == [mixed[slot] for slot in other]
    assert table(members, 1009, SEED) == table(list(members), 1009, SEED)


def test_seed_port_and_address_matter() -> None:
    members = backends(20)
    other_port = [(address, 8081) for address, _ in members]
    assert assign(members, 1009, 1) != assign(members, 1009, 2)
    assert assign(members, 1009, 1) != assign(other_port, 1009, 1)


@pytest.mark.parametrize(("count", "size"), [(25, 251), (251, 251), (3, 131071), (7, 2)])
def test_odd_sizes(count: int, size: int) -> None:
    if count > size:
        with pytest.raises(ValueError, match="no room for 7 backends"):
            assign(backends(count), size, SEED)
        return
    held = Counter(assign(backends(count), size, SEED))
    most, least = shares(count, size)
    assert len(held) == count and least <= min(held.values()) <= max(held.values()) <= most


def test_sizes_that_are_not_prime_are_refused() -> None:
    with pytest.raises(ValueError, match="must be prime"):
        table(backends(2), 16384, SEED)
    with pytest.raises(ValueError, match="no room for 0 backends"):
        table([], 251, SEED)
    assert [n for n in range(20) if is_prime(n)] == [2, 3, 5, 7, 11, 13, 17, 19]
    assert is_prime(251) and is_prime(16381) and is_prime(131071) and not is_prime(16383) and not is_prime(1)


def test_tables_need_some_slots_for_each_backend() -> None:
    assert [most_backends(size) for size in (251, SIZE, 131071)] == [25, 1638, 13107]


def test_layout_is_that_of_abi_h() -> None:
    data = table(backends(3), 251, SEED)
    slots = assign(backends(3), 251, SEED)
    words = struct.unpack(f"={len(data) // 8}Q", data)
    assert words[0] == 251 and len(words) == 1 + 63
    for index, slot in enumerate(slots):
        assert (
            words[1 + index // 4] >> (index % 4 * 16) & 0xFFFF
            == slot
            == lookup(data, index)
            == lookup(data, index + 251)
        )


def test_hashes_are_those_of_backend_h() -> None:
    """Worked out by hand from the C text, with little-endian words."""
    source, destination = parse_address("198.51.100.7"), parse_address("2001:db8::1")
    expected = SEED
    for address in (source, destination):
        for half in (address[:8], address[8:]):
            expected = mix(expected, int.from_bytes(half, "little"))
        if address is source:
            assert client_hash(source, SEED) == expected & 0xFFFFFFFF
    ports = (
        int.from_bytes((12345).to_bytes(2, "big"), "little") << 32
        | int.from_bytes((80).to_bytes(2, "big"), "little") << 16
    )
    expected = mix(expected, ports | 6)
    assert flow_hash(source, 12345, destination, 80, 6, SEED) == expected & 0xFFFFFFFF
    assert mix(0, 1) == 0x9E3779B97F4A7C15 ^ 0x9E3779B9


def test_flows_spread_evenly() -> None:
    data, count = table(backends(10), 1009, SEED), Counter[int]()
    source, destination = parse_address("198.51.100.7"), parse_address("192.0.2.1")
    for port in range(1024, 21024):
        count[lookup(data, flow_hash(source, port, destination, 80, 6, SEED))] += 1
    assert max(count.values()) < 2300 and min(count.values()) > 1700

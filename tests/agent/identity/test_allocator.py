from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from agent.identity.allocator import AddressPool, Allocator, ExhaustedError
from policies.address import Prefix, format_address, parse_address

KEYS = st.lists(st.text("abcdef", min_size=1, max_size=3), unique=True, max_size=10)


@given(keys=KEYS)
def test_numbers_are_unique_in_range_and_kept(keys: list[str]) -> None:
    allocator = Allocator("number", 100, 16, reserved=(100, 107))
    given_out = {key: allocator.allocate(key) for key in keys}
    assert len(set(given_out.values())) == len(keys)
    assert all(100 <= n < 116 and n not in (100, 107) for n in given_out.values())
    assert {key: allocator.allocate(key) for key in reversed(keys)} == given_out


@given(keys=KEYS)
def test_the_first_choice_does_not_depend_on_who_asked_before(keys: list[str]) -> None:
    busy = Allocator("number", 0, 1 << 32)
    for key in keys:
        busy.allocate(key)
    assert all(busy.get(key) == Allocator("number", 0, 1 << 32).allocate(key) for key in keys)


@given(keys=KEYS, gone=st.sets(st.integers(0, 9)))
def test_restored_numbers_are_the_same(keys: list[str], gone: set[int]) -> None:
    first = Allocator("number", 0, 12)
    for key in keys:
        first.allocate(key)
    for at in gone:
        if at < len(keys):
            first.release(keys[at])
    second = Allocator("number", 0, 12)
    second.restore(first.snapshot())
    assert second.snapshot() == first.snapshot()
    assert all(second.allocate(key) == first.allocate(key) for key in keys)


def test_restore_forgets_what_does_not_fit() -> None:
    allocator = Allocator("number", 10, 10, reserved=(12,))
    allocator.restore({"ok": 11, "reserved": 12, "below": 9, "above": 20, "twice": 11})
    assert allocator.snapshot() == {"ok": 11}


def test_exhaustion_says_so_and_ends_with_a_release() -> None:
    allocator = Allocator("endpoint id", 1, 3, reserved=(2,))
    allocator.allocate("a")
    allocator.allocate("b")
    with pytest.raises(ExhaustedError, match="no endpoint id is left for c: all 2 are in use"):
        allocator.allocate("c")
    freed = allocator.get("a")
    allocator.release("a")
    assert allocator.allocate("c") == freed


def test_avoided_numbers_are_not_given_until_nobody_has_them() -> None:
    allocator = Allocator("number", 0, 2)
    for number in (0, 1, 1):
        allocator.avoid(number)
    allocator.unavoid(1)
    with pytest.raises(ExhaustedError):
        allocator.allocate("a")
    allocator.unavoid(1)
    assert allocator.allocate("a") == 1


@pytest.mark.parametrize(
    ("block", "first", "last", "size"),
    (("10.0.0.0/29", "10.0.0.2", "10.0.0.6", 5), ("fd00::/125", "fd00::2", "fd00::7", 6)),
)
def test_pool_gives_every_address_but_the_edges(block: str, first: str, last: str, size: int) -> None:
    pool = AddressPool("pod address", Prefix.parse(block))
    addresses = sorted(pool.allocate(f"shop/{n}") for n in range(size))
    assert (format_address(addresses[0]), format_address(addresses[-1])) == (first, last)
    with pytest.raises(ExhaustedError, match=block):
        pool.allocate("shop/more")


def test_pool_leaves_reserved_and_given_addresses_alone() -> None:
    pool = AddressPool("pod address", Prefix.parse("10.0.0.0/29"), reserved=[parse_address("10.0.0.3")])
    pool.avoid(parse_address("10.0.0.4"))
    pool.avoid(parse_address("192.0.2.1"))
    assert {format_address(pool.allocate(f"{n}")) for n in range(3)} == {"10.0.0.2", "10.0.0.5", "10.0.0.6"}


def test_pool_of_a_large_block_stays_inside_it() -> None:
    block = Prefix.parse("fd00:1::/64")
    assert all(block.contains(AddressPool("pod address", block).allocate(f"{n}")) for n in range(50))

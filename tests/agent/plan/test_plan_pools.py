"""What frontends point at, as map entries."""

from __future__ import annotations

import random

import msgspec
import pytest

from agent.datapath import abi
from agent.plan.blocks import MAGLEV, MEMBERS, POOLS, RANGES
from agent.plan.ids import NUMBERS
from agent.plan.pools import (
    SERVICE_VALUE,
    Pools,
    Table,
    backends,
    maglev,
    member_number,
    members,
    pointed_at,
    pool,
    pool_number,
    prefixes,
    ranges,
    ranges_number,
)
from agent.services import maglev as tables
from agent.services.model import Backend, Frontend, Kind, Target
from policies.address import Prefix, parse_address
from policies.model import ObjectRef

REF = ObjectRef("Service", "shop", "web")
TABLE = Table(251, 7)
VIP = parse_address("10.96.0.1")


def some(count: int, first: int = 0) -> tuple[Backend, ...]:
    return tuple((parse_address(f"10.1.{n >> 8}.{n & 255}"), 8080) for n in range(first, first + count))


def frontend(inside: Target, outside: Target | None = None, kind: Kind = Kind.CLUSTER_IP) -> Frontend:
    return Frontend(VIP, 80, 6, kind, "http", inside, outside or inside)


def test_a_pool_survives_its_entries() -> None:
    given = some(300)
    block = pool(given)
    assert backends(block) == list(given) and block.size == 300
    assert set(map(pool_number, block.keys())) == {block.id}


def test_members_are_the_pools_backends_by_slot() -> None:
    given = some(300)
    block = members(pool(given))
    keys = {abi.load().records["member_key"].unpack(key): value for key, value in block.entries()}
    found = {(key.address, abi.be16(key.port_be)): int.from_bytes(value, "little") for key, value in keys.items()}
    assert found == {backend: slot for slot, backend in enumerate(given)}
    assert set(map(member_number, block.keys())) == {pool(given).id}


def test_a_pool_with_a_table_is_another_one() -> None:
    given = some(3)
    numbers = {pool(given).id, pool(given, TABLE).id, pool(given, Table(251, 8)).id, pool(given, Table(257, 7)).id}
    assert len(numbers) == 4, "content under a number never changes"


def test_a_table_is_made_when_it_is_written() -> None:
    given = some(5)
    block = maglev(pool(given, TABLE), TABLE)
    ((key, value),) = block.entries()
    assert value == tables.table(given, 251, 7) and list(block.keys()) == [key] and block.size == 1
    assert len(block.data) < len(value)


def test_source_ranges_survive_their_entries() -> None:
    given = [Prefix.parse(text) for text in ("203.0.113.0/24", "192.0.2.1/32", "2001:db8::/32", "203.0.113.0/24")]
    block = ranges(given)
    assert prefixes(block) == sorted(set(given))
    assert set(map(ranges_number, block.keys())) == {block.id}
    assert ranges(reversed(given)) == block


def test_a_frontend_points_at_all_it_needs() -> None:
    inside, outside = Target(some(3)), Target(some(2, 50))
    one = msgspec.structs.replace(
        frontend(inside, outside, Kind.LOAD_BALANCER),
        affinity_timeout_s=60,
        maglev=True,
        ranges=(Prefix.parse("203.0.113.0/24"),),
    )
    pools = Pools(REF, TABLE)
    value = pools.value(one)
    assert set(pointed_at(value)) == set(pools.blocks), "each block is pointed at, and each that is pointed at is there"
    assert sorted(name for name, _ in pools.blocks) == sorted([POOLS, MEMBERS, MAGLEV] * 2 + [RANGES])
    fields = SERVICE_VALUE.unpack(value)
    assert (fields.count_inside, fields.count_outside, fields.affinity_timeout_s) == (3, 2, 60)
    assert fields.flags == NUMBERS.SERVICE_LOAD_BALANCER | NUMBERS.SERVICE_MAGLEV | NUMBERS.SERVICE_NODE_IN_RANGES


@pytest.mark.parametrize("inside", [some(2), ()])
@pytest.mark.parametrize("outside", [some(2), some(1), ()])
def test_equal_pools_are_one(inside: tuple[Backend, ...], outside: tuple[Backend, ...]) -> None:
    pools = Pools(REF, TABLE)
    value = pools.value(frontend(Target(inside), Target(outside, drops=not outside), Kind.NODE_PORT))
    assert len(list(pointed_at(value))) == len(pools.blocks) == len({inside, outside} - {()})
    fields = SERVICE_VALUE.unpack(value)
    assert bool(fields.flags & NUMBERS.SERVICE_DROP_OUTSIDE) is (not outside)
    assert not fields.flags & NUMBERS.SERVICE_DROP_INSIDE


def test_affinity_is_of_the_service_port_wherever_it_is_reached() -> None:
    def number(ref: ObjectRef, one: Frontend) -> int:
        return int(SERVICE_VALUE.unpack(Pools(ref, TABLE).value(one)).affinity)

    one = msgspec.structs.replace(frontend(Target(some(2))), affinity_timeout_s=60)
    node_port = msgspec.structs.replace(one, kind=Kind.NODE_PORT, port=30080, inside=Target(some(9)))
    assert number(REF, one) == number(REF, node_port) != 0
    others = [msgspec.structs.replace(one, port_name="admin"), msgspec.structs.replace(one, protocol=17)]
    different = {number(REF, one), number(ObjectRef("Service", "shop", "api"), one), *(number(REF, o) for o in others)}
    assert len(different) == 4
    assert number(REF, msgspec.structs.replace(one, affinity_timeout_s=0)) == 0


def test_tables_found_in_a_kernel_are_taken_as_they_are() -> None:
    """They are put in place whole, under a number of their content."""
    given = list(some(5))
    random.Random(1).shuffle(given)
    block = maglev(pool(given, TABLE), TABLE)
    found = msgspec.structs.replace(block, data=b"")
    assert block.same(found) and not block.same(None)

"""What frontends point at: pools of backends, who is in them, Maglev tables, source ranges. Pure."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence

import msgspec

from agent.datapath import abi
from agent.plan.blocks import MAGLEV, MEMBERS, POOL_VALUE, POOLS, RANGES, TABLE_HEAD, Block, block_of
from agent.plan.ids import NUMBERS, content_id
from agent.services.model import Backend, Frontend, Kind
from policies.address import Prefix
from policies.model import ObjectRef

ABI = abi.load()
SERVICE_VALUE = ABI.records["service_value"]
POOL_KEY = ABI.records["backend_key"]
MEMBER_KEY = ABI.records["member_key"]
RANGE_KEY = ABI.records["range_key"]
IN_ORDER = 256
"""So many slots are in the order of their keys, as bytes."""
PRESENT = ABI.maps[RANGES].value
NUMBER = ABI.maps[MEMBERS].value

KINDS = {
    Kind.CLUSTER_IP: NUMBERS.SERVICE_CLUSTER_IP,
    Kind.NODE_PORT: NUMBERS.SERVICE_NODE_PORT,
    Kind.EXTERNAL_IP: NUMBERS.SERVICE_EXTERNAL_IP,
    Kind.LOAD_BALANCER: NUMBERS.SERVICE_LOAD_BALANCER,
    Kind.HOST_PORT: NUMBERS.SERVICE_HOST_PORT,
    Kind.LOOPBACK: NUMBERS.SERVICE_LOOPBACK,
}


class Table(msgspec.Struct, frozen=True, gc=False):
    """How Maglev tables are made."""

    size: int
    seed: int


class Pools:
    """Makes the values of one service's frontends and collects the blocks they point at."""

    def __init__(self, ref: ObjectRef, table: Table) -> None:
        self.blocks: dict[tuple[str, int], Block] = {}
        self._ref = ref
        self._table = table
        self._pools: dict[tuple[tuple[Backend, ...], bool], Block] = {}
        self._values: dict[bytes, bytes] = {}

    def value(self, f: Frontend) -> bytes:
        """The service_value of a frontend. Equal values are one object."""
        inside = self._pool(f, f.inside.backends)
        outside = inside if f.outside.backends == f.inside.backends else self._pool(f, f.outside.backends)
        value = SERVICE_VALUE.pack_values(
            inside.id if inside else 0,
            outside.id if outside else 0,
            self._note(ranges(f.ranges)).id if f.ranges else 0,
            affinity_id(self._ref, f) if f.affinity_timeout_s else 0,
            len(f.inside.backends),
            len(f.outside.backends),
            f.affinity_timeout_s,
            _flags(f),
        )
        return self._values.setdefault(value, value)

    def _pool(self, f: Frontend, backends: tuple[Backend, ...]) -> Block | None:
        if not backends:
            return None
        if (known := self._pools.get((backends, f.maglev))) is None:
            known = self._pools[backends, f.maglev] = self._note(pool(backends, self._table if f.maglev else None))
            if f.maglev:
                self._note(maglev(known, self._table))
            if f.affinity_timeout_s:
                self._note(members(known))
        return known

    def _note(self, block: Block) -> Block:
        return self.blocks.setdefault((block.map, block.id), block)


def pool(backends: Sequence[Backend], table: Table | None = None) -> Block:
    """Backends in their order. One that has a Maglev table is another pool than one without, or with another."""
    values = [POOL_VALUE.pack_values(address, abi.be16(port)) for address, port in backends]
    content = b"".join(values)
    number = content_id("pool", content) if table is None else content_id("maglev", _head(table) + content)
    pack = POOL_KEY.pack_values
    if len(values) <= IN_ORDER:
        return Block(number, POOLS, b"".join([pack(number, slot) + value for slot, value in enumerate(values)]))
    return block_of(number, POOLS, {pack(number, slot): value for slot, value in enumerate(values)})


def members(pool: Block) -> Block:
    """Backend → slot."""
    assert NUMBER is not None
    values = map(POOL_VALUE.unpack_values, _in_order(pool))
    entries = {MEMBER_KEY.pack_values(pool.id, *one): NUMBER.pack_values(slot) for slot, one in enumerate(values)}
    return block_of(pool.id, MEMBERS, entries)


def maglev(pool: Block, table: Table) -> Block:
    """The Maglev table of a pool."""
    return Block(pool.id, MAGLEV, _head(table) + b"".join(_in_order(pool)))


def ranges(blocks: Iterable[Prefix]) -> Block:
    """Who may use a frontend."""
    assert PRESENT is not None
    wanted = sorted(set(blocks))
    number = content_id("ranges", b"".join(block.network + bytes((block.bits,)) for block in wanted))
    high, low = abi.be32(number >> 32), abi.be32(number & 0xFFFFFFFF)
    present = PRESENT.pack_values(1)
    entries = {RANGE_KEY.pack_values(NUMBERS.RANGES_BITS + b.bits, high, low, b.network): present for b in wanted}
    return block_of(number, RANGES, entries)


def backends(block: Block) -> list[Backend]:
    """Address and port of each backend of a pool, by slot."""
    fields = map(POOL_VALUE.unpack, _in_order(block))
    return [(value.address, abi.be16(value.port_be)) for value in fields]


def prefixes(block: Block) -> list[Prefix]:
    """The source ranges of a block."""
    keys = map(RANGE_KEY.unpack, block.keys())
    return sorted(Prefix(key.address, key.prefixlen - NUMBERS.RANGES_BITS) for key in keys)


def pointed_at(value: bytes) -> Iterator[tuple[str, int]]:
    """(map, number) of each block a service_value points at."""
    inside, outside, sources, affinity, count_inside, count_outside, _, flags = SERVICE_VALUE.unpack_values(value)
    for number in (inside,) if inside == outside else (inside, outside):
        if number and (count_inside if number == inside else count_outside):
            yield POOLS, number
            if affinity:
                yield MEMBERS, number
            if flags & NUMBERS.SERVICE_MAGLEV:
                yield MAGLEV, number
    if sources:
        yield RANGES, sources


def pool_number(key: bytes) -> int:
    """The pool that a key of backends belongs to."""
    return int(POOL_KEY.unpack_values(key)[0])


def member_number(key: bytes) -> int:
    return int(MEMBER_KEY.unpack_values(key)[0])


def ranges_number(key: bytes) -> int:
    fields = RANGE_KEY.unpack(key)
    return int(abi.be32(fields.ranges_high_be)) << 32 | abi.be32(fields.ranges_low_be)


def affinity_id(ref: ObjectRef, f: Frontend) -> int:
    """The same at every frontend of a service port, as long as it has its name and number."""
    return content_id("affinity", f"{ref.namespace}/{ref.name}/{f.port_name}/{f.protocol}".encode())


def _flags(f: Frontend) -> int:
    flags = KINDS[f.kind]
    if f.inside.drops:
        flags |= NUMBERS.SERVICE_DROP_INSIDE
    if f.outside.drops:
        flags |= NUMBERS.SERVICE_DROP_OUTSIDE
    if f.local_outside:
        flags |= NUMBERS.SERVICE_LOCAL_OUTSIDE
    if f.maglev:
        flags |= NUMBERS.SERVICE_MAGLEV
    if f.dsr:
        flags |= NUMBERS.SERVICE_DSR
    if f.node_in_ranges:
        flags |= NUMBERS.SERVICE_NODE_IN_RANGES
    return int(flags)


def _in_order(pool: Block) -> list[bytes]:
    """Values by slot."""
    return [value for _, value in sorted((POOL_KEY.unpack_values(key), value) for key, value in pool.entries())]


def _head(table: Table) -> bytes:
    return TABLE_HEAD.pack(table.seed, table.size)

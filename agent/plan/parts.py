"""One unit of the plan at a time, from the World: an endpoint, a prefix, a service, a subject's policy. Pure."""

from __future__ import annotations

from collections.abc import Set

import msgspec

from agent.datapath import abi
from agent.plan.blocks import Block, row
from agent.plan.ids import CLASS_ANY, NUMBERS, Names
from agent.plan.pools import Pools, Table
from agent.plan.state import (
    ENDPOINT,
    ENDPOINTS,
    INTERFACES,
    IPCACHE_KEY,
    IPCACHE_VALUE,
    NAMESPACES,
    NETNS,
    NO_ADDRESS,
    SERVICES,
    Side,
)
from agent.world.allocations import key_of
from agent.world.world import World
from policies.address import Prefix, is_v4
from policies.model import Direction, ObjectRef, RemoteClass, Row, Subject

INTERFACE_KEY = abi.load().maps[INTERFACES].key
NAMESPACE_KEY = abi.load().maps[NAMESPACES].key
SERVICE_KEY = abi.load().records["service_key"]

DIRECTIONS = {
    Direction.INGRESS: NUMBERS.DIRECTION_INGRESS,
    Direction.EGRESS: NUMBERS.DIRECTION_EGRESS,
}

Entry = tuple[str, bytes, bytes]
"""Map, key, value."""


class Part(msgspec.Struct):
    """`entries` are all the part consists of; `blocks` is what they point at."""

    entries: list[Entry]
    blocks: list[Block]


NOTHING = Part([], [])


def endpoint(world: World, ref: ObjectRef, names: Names) -> Part:
    """A local pod: one value under its interface and each of its addresses, and what sockets know it by."""
    subject, state = world.subject(ref), world.pods.get(ref)
    if subject is None or state is None or state.interface is None:
        return NOTHING
    link = state.interface
    owned = world.own_addresses(ref)
    v4 = next((a for a in owned if is_v4(a)), NO_ADDRESS)
    v6 = next((a for a in owned if not is_v4(a)), NO_ADDRESS)
    value = ENDPOINT.pack(
        subject=names.subject(subject),
        class_v4=_class_number(world, v4, names),
        class_v6=_class_number(world, v6, names),
        ipv4=v4,
        ipv6=v6,
        identity=subject.identity,
        ifindex=link.index,
        mac=link.mac,
        host_mac=link.host_mac,
        id=world.allocations.endpoints.allocate(key_of(ref)),
        flags=NUMBERS.ENDPOINT_RESOLVES if link.resolves else 0,
    )
    assert INTERFACE_KEY is not None and NAMESPACE_KEY is not None
    entries = [(INTERFACES, INTERFACE_KEY.pack_values(link.index), value)]
    entries += [(ENDPOINTS, address, value) for address in (v4, v6) if address != NO_ADDRESS]
    if link.netns_cookie:
        netns = NETNS.pack_values(v4, v6, link.index)
        entries.append((NAMESPACES, NAMESPACE_KEY.pack_values(link.netns_cookie), netns))
    return Part(entries, [])


def prefix_key(prefix: Prefix) -> bytes:
    return IPCACHE_KEY.pack_values(prefix.bits, prefix.network)


def prefix(world: World, block: Prefix, names: Names) -> bytes | None:
    """The ipcache value of a prefix; None where it has no class of its own."""
    remote = world.addresses.remote_class(block)
    return None if remote is None else IPCACHE_VALUE.pack_values(names.remote_class(remote), remote.identity)


def service(world: World, ref: ObjectRef) -> Part:
    """Its frontends, and what they point at. Without a backend a frontend refuses or drops."""
    settings = world.config.services
    pools = Pools(ref, Table(settings.maglev_size, settings.seed))
    entries = [(SERVICES, frontend_key(f.address, f.port, f.protocol), pools.value(f)) for f in world.frontends(ref)]
    return Part(entries, list(pools.blocks.values())) if entries else NOTHING


def frontend_key(address: bytes, port: int, protocol: int) -> bytes:
    return SERVICE_KEY.pack_values(address, abi.be16(port), protocol)


class PolicyPart(msgspec.Struct):
    """Rows of one subject by side and class. `classes` None: these are all its rows; else all it has for these."""

    subject: int
    classes: frozenset[int] | None
    rows: dict[Side, dict[int, int]]
    blocks: list[Block]


class PolicyCompiler:
    """Policy parts of subjects that are compiled together: many share rows, and are dirty in the same classes."""

    def __init__(self, world: World, names: Names) -> None:
        self._world = world
        self._names = names
        self._blocks: dict[Row, Block] = {}
        self._numbers: dict[Set[RemoteClass], frozenset[int]] = {}

    def compile(self, subject: Subject, classes: Set[RemoteClass] | None) -> PolicyPart:
        """`classes` None: all there are."""
        number = self._names.subject(subject)
        if subject not in self._world.subjects():
            return PolicyPart(number, None, {}, [])
        part = PolicyPart(number, None if classes is None else self._numbers_of(classes), {}, [])
        for direction, cells, remotes in self._world.index.rows(subject, classes):
            block = self._block(cells)
            part.blocks.append(block)
            keys = [CLASS_ANY] if remotes is None else self._names.remote_classes(remotes)
            part.rows.setdefault((number, DIRECTIONS[direction]), {}).update(dict.fromkeys(keys, block.id))
        return part

    def _block(self, cells: Row) -> Block:
        if (block := self._blocks.get(cells)) is None:
            block = self._blocks[cells] = row(cells, self._names)
        return block

    def _numbers_of(self, classes: Set[RemoteClass]) -> frozenset[int]:
        known = self._numbers.get(classes) if isinstance(classes, frozenset) else None
        if known is None:
            known = frozenset(self._names.remote_classes(classes))
            if isinstance(classes, frozenset):
                self._numbers[classes] = known
        return known


def _class_number(world: World, address: bytes, names: Names) -> int:
    if address == NO_ADDRESS:
        return 0
    remote = world.addresses.remote_class(Prefix.host(address))
    return 0 if remote is None else names.remote_class(remote)

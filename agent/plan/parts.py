"""One unit of the plan at a time, from the World: an endpoint, a prefix, a service, a subject's policy. Pure."""

from __future__ import annotations

from collections.abc import Iterable, Set

import msgspec

from agent.datapath import abi
from agent.objects import EndpointSlice, ServicePort
from agent.plan.blocks import Block, pool, row
from agent.plan.ids import CLASS_ANY, NUMBERS, Names
from agent.plan.state import ENDPOINT, ENDPOINTS, INTERFACES, IPCACHE_KEY, IPCACHE_VALUE, NO_ADDRESS, SERVICES, Side
from agent.world.allocations import key_of
from agent.world.services import serves
from agent.world.world import World
from policies.address import Prefix, is_v4
from policies.model import Direction, ObjectRef, RemoteClass, Row, Subject

INTERFACE_KEY = abi.load().maps[INTERFACES].key
SERVICE_KEY = abi.load().records["service_key"]
SERVICE_VALUE = abi.load().records["service_value"]

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
    """A local pod: one value under its interface and each of its addresses."""
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
    )
    assert INTERFACE_KEY is not None
    addresses = [(ENDPOINTS, address, value) for address in (v4, v6) if address != NO_ADDRESS]
    return Part([(INTERFACES, INTERFACE_KEY.pack_values(link.index), value), *addresses], [])


def prefix_key(prefix: Prefix) -> bytes:
    return IPCACHE_KEY.pack_values(prefix.bits, prefix.network)


def prefix(world: World, block: Prefix, names: Names) -> bytes | None:
    """The ipcache value of a prefix; None where it has no class of its own."""
    remote = world.addresses.remote_class(block)
    return None if remote is None else IPCACHE_VALUE.pack_values(names.remote_class(remote), remote.identity)


def service(world: World, ref: ObjectRef) -> Part:
    """Its frontends, and a pool for each distinct set of backends. Without a backend the frontend refuses."""
    found = world.services.get(ref)
    addresses = world.services.addresses(ref)
    if found is None or not addresses:
        return NOTHING
    slices = world.slices(found)
    pools: dict[bytes, Block | None] = {}  # by frontend: of two ports that are one, the last holds
    for port in found.ports:
        usable = backends(slices, port)
        for address in addresses:
            if not world.services.owns(found, address, port):
                continue
            members = [b for b in usable if serves(address, b[0])]
            key = SERVICE_KEY.pack_values(address, abi.be16(port.port), port.protocol)
            pools[key] = pool(members) if members else None
    entries = [(SERVICES, key, _frontend(block)) for key, block in pools.items()]
    return Part(entries, [block for block in pools.values() if block is not None])


def _frontend(block: Block | None) -> bytes:
    number, count = (0, 0) if block is None else (block.id, sum(1 for _ in block.entries()))
    return SERVICE_VALUE.pack_values(number, number, 0, 0, count, count, 0, NUMBERS.SERVICE_CLUSTER_IP)


def backends(slices: Iterable[EndpointSlice], port: ServicePort) -> list[tuple[bytes, int]]:
    """Addresses and ports that serve a service port, sorted.

    Ready endpoints only; where there is none, those that terminate but still serve (KEP-1669).
    """
    ready: set[tuple[bytes, int]] = set()
    leaving: set[tuple[bytes, int]] = set()
    for one in slices:
        for target in one.ports:
            if target.name != port.name or target.protocol != port.protocol:
                continue
            for member in one.endpoints:
                if member.ready:
                    ready.update((address, target.port) for address in member.addresses)
                elif member.serving and member.terminating:
                    leaving.update((address, target.port) for address in member.addresses)
    return sorted(ready or leaving)


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

"""The datapath's verdict in Python, from the bytes its maps hold: see bpf/policy.h, from_pod.c and to_pod.c."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from functools import cache, lru_cache
from typing import Any

from agent.datapath import abi
from agent.plan.state import MAPS
from agent.plan.step import Step, Transition
from agent.services import maglev
from agent.services.trace import Packet
from policies.address import is_v4

ABI = abi.load()
NUMBERS = ABI.constants
RECORDS = ABI.records

Asks = frozenset[int] | None
"""Numbers of the listeners a flow goes by; none where it passes by itself; None: it does not pass."""
UNASKED: frozenset[int] = frozenset()


@cache
def _slots(table: bytes) -> frozenset[int]:
    """All that a Maglev table names."""
    return frozenset(maglev.lookup(table, number) for number in range(int.from_bytes(table[:8], "little")))


@cache
def _prefixes(address: bytes) -> tuple[bytes, ...]:
    """Keys of the ipcache that hold an address, the longest first."""
    number, pack = int.from_bytes(address, "big"), RECORDS["ipcache_key"].pack_values
    return tuple(pack(128 - free, (number >> free << free).to_bytes(16, "big")) for free in range(129))


@lru_cache(1 << 14)
def _cells(row: int, protocol: int, port: int) -> tuple[bytes, ...]:
    """Keys of a row that hold a port, the narrowest first."""
    high, low = abi.be32(row >> 32), abi.be32(row & 0xFFFFFFFF)
    pack = RECORDS["policy_row_key"].pack_values
    ports = (pack(96 - free, high, low, protocol, abi.be16(port >> free << free)) for free in range(17))
    return *ports, pack(64, high, low, 0, 0)


class MapModel:
    """Contents of the maps of a plan, written step by step."""

    def __init__(self, maps: Mapping[str, Mapping[bytes, bytes]] | None = None) -> None:
        self.maps: dict[str, dict[bytes, bytes]] = {name: dict((maps or {}).get(name, {})) for name in MAPS}

    def writes(self, steps: Iterable[Step]) -> Iterator[None]:
        """Apply steps, pausing after each single write."""
        for step in steps:
            table = self.maps[step.map]
            for key, value in step.updates.items():
                table[key] = value
                yield
            for key in step.deletes:
                del table[key]  # KeyError: a transition deletes nothing that is not there
                yield

    def apply(self, transition: Transition) -> None:
        for _ in self.writes((*transition.steps, *transition.cleanup)):
            pass

    # ---- services

    def serves(self, packet: Packet, inside: bool, node: bool) -> frozenset[tuple[bytes, int]] | str | None:
        """The backends a new flow may get, as bpf/backend.h finds them, or why it gets none; None: no frontend."""
        key = RECORDS["service_key"].pack_values(packet.destination, abi.be16(packet.port), packet.protocol)
        value = self.maps["services"].get(key)
        if value is None:
            return None
        fields = RECORDS["service_value"].unpack(value)
        if fields.ranges and not self._in_ranges(fields, packet.source, node):
            return "SOURCE_RANGE"
        pool, count, drops = (
            (fields.pool_inside, fields.count_inside, NUMBERS.SERVICE_DROP_INSIDE)
            if inside
            else (fields.pool_outside, fields.count_outside, NUMBERS.SERVICE_DROP_OUTSIDE)
        )
        if not count:
            return "NO_LOCAL_BACKEND" if fields.flags & drops else "refused"
        slots = [self.maps["backends"][RECORDS["backend_key"].pack_values(pool, slot)] for slot in range(count)]
        if fields.affinity:
            for slot, backend in enumerate(slots):
                key = RECORDS["member_key"].pack_values(pool, *RECORDS["backend_value"].unpack_values(backend))
                assert self.maps["members"][key] == slot.to_bytes(4, "little")
        if fields.flags & NUMBERS.SERVICE_MAGLEV:
            table = self.maps["maglev"][pool.to_bytes(8, "little")]
            assert _slots(table) == set(range(count))
        values = map(RECORDS["backend_value"].unpack, slots)
        return frozenset((value.address, abi.be16(value.port_be)) for value in values)

    def _in_ranges(self, fields: Any, source: bytes, node: bool) -> bool:
        if node:
            return bool(fields.flags & NUMBERS.SERVICE_NODE_IN_RANGES)
        client = int.from_bytes(source, "big")
        for key in map(RECORDS["range_key"].unpack, self.maps["source_ranges"]):
            number = abi.be32(key.ranges_high_be) << 32 | abi.be32(key.ranges_low_be)
            free = NUMBERS.RANGES_BITS + 128 - key.prefixlen
            if number == fields.ranges and client >> free == int.from_bytes(key.address, "big") >> free:
                return True
        return False

    # ---- verdicts

    def allows(
        self, source: bytes, destination: bytes, protocol: int, port: int, interfaces: Mapping[bytes, int]
    ) -> bool:
        """Whether a new flow passes and no proxy is asked."""
        return self.asks(source, destination, protocol, port, interfaces) == UNASKED

    def asks(
        self, source: bytes, destination: bytes, protocol: int, port: int, interfaces: Mapping[bytes, int]
    ) -> Asks:
        """Whether a new flow passes, and which proxies are asked. `interfaces`: which interface each local pod's
        addresses hang off. Of ICMP the port is the type."""
        if source in interfaces:
            return self._from_pod(source, destination, protocol, port, interfaces[source])
        if destination in interfaces:
            return self._to_pod(source, destination, protocol, port, interfaces[destination])
        return None

    def _from_pod(self, source: bytes, destination: bytes, protocol: int, port: int, ifindex: int) -> Asks:
        near = self._interface(ifindex)
        if near is None or source != (near.ipv4 if is_v4(source) else near.ipv6):
            return None
        far = self.maps["endpoints"].get(destination)
        if far is None:
            remote = self._class_of(destination)
            return self._judge(near.subject, remote, NUMBERS.DIRECTION_EGRESS, protocol, port)
        to = RECORDS["endpoint"].unpack(far)
        if to.ifindex == near.ifindex:
            return UNASKED
        their, mine = (to.class_v4, near.class_v4) if is_v4(source) else (to.class_v6, near.class_v6)
        egress = self._judge(near.subject, their, NUMBERS.DIRECTION_EGRESS, protocol, port)
        ingress = self._judge(to.subject, mine, NUMBERS.DIRECTION_INGRESS, protocol, port)
        return None if egress is None or ingress is None else egress | ingress

    def _to_pod(self, source: bytes, destination: bytes, protocol: int, port: int, ifindex: int) -> Asks:
        near = self._interface(ifindex)
        if near is None or destination != (near.ipv4 if is_v4(source) else near.ipv6):
            return None
        if source in self.maps["endpoints"]:
            return None
        return self._judge(near.subject, self._class_of(source), NUMBERS.DIRECTION_INGRESS, protocol, port)

    def _interface(self, ifindex: int):  # type: ignore[no-untyped-def]
        value = self.maps["interfaces"].get(ifindex.to_bytes(4, "little"))
        return None if value is None else RECORDS["endpoint"].unpack(value)

    def _class_of(self, address: bytes) -> int:
        table = self.maps["ipcache"]
        value = next((table[key] for key in _prefixes(address) if key in table), None)
        return 0 if value is None else int(RECORDS["ipcache_value"].unpack(value).remote_class)

    def _judge(self, subject: int, remote: int, direction: int, protocol: int, port: int) -> Asks:
        if not remote:
            return None
        pack = RECORDS["policy_class_key"].pack_values
        table = self.maps["policy_class"]
        value = table.get(pack(subject, remote, direction)) or table.get(pack(subject, NUMBERS.CLASS_ANY, direction))
        if value is None:
            return None
        row = RECORDS["policy_class_value"].unpack(value).row
        rows = self.maps["policy_row"]
        found = next((rows[key] for key in _cells(row, protocol, port) if key in rows), None)
        return None if found is None else _asks(RECORDS["policy_row_value"].unpack(found))


def _asks(cell: Any) -> Asks:
    if cell.verdict == NUMBERS.VERDICT_ALLOW:
        return UNASKED
    return frozenset({cell.listener}) if cell.verdict == NUMBERS.VERDICT_REDIRECT else None

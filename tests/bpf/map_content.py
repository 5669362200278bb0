"""What the maps of a packet test hold, in symbolic form: names for addresses, cells for rows, backends for services."""

from __future__ import annotations

import struct
from collections.abc import Sequence
from dataclasses import dataclass
from enum import IntEnum

from frames import TCP, Family, address, host_mac, pod_mac

from agent.datapath import apply
from agent.datapath.abi import Abi, MapType, be16, be32, load
from agent.datapath.maps import Maps

SIZES = {
    "interfaces": 64,
    "endpoints": 64,
    "ipcache": 64,
    "policy_class": 256,
    "policy_row": 256,
    "conntrack": 64,
    "conntrack_host": 1024,  # a small LRU map forgets early on older kernels
    "fragments": 1024,
    "services": 64,
    "backends": 64,
    "members": 64,
    "maglev": 16,
    "affinity": 64,
    "source_ranges": 64,
    "nat": 64,
    "unmasqueraded": 16,
    "encryption": 64,
    "socket_frontends": 1024,
    "socket_backends": 1024,
    "namespaces": 64,
    "listeners": 16,
    "events": 16384,
}
LASTING = (MapType.ARRAY, MapType.PERCPU_ARRAY, MapType.RINGBUF)
"""Maps of these types cannot be emptied."""

INTERFACES = {"a": 101, "b": 102, "c": 103, "d": 104, "eth": 110, "uplink": 111}
"""`d` is a device without a pod at first; `eth` and `uplink` are devices of the node."""

IDENTITIES = {
    "a": 1001,
    "b": 1002,
    "c": 1003,
    "d": 1004,
    "node": 1,
    "uplink": 1,
    "world": 2,
    "router": 2,
    "free": 3,
    "link-local": 2,
    "other-node": 6,
    "control-plane": 7,
    "far": 1005,
    "far-too": 1005,
    "beyond": 1005,
    "unreachable": 1005,
}
SECONDS = 1_000_000_000
PORTS = range(61000, 65536)
"""Source ports the datapath gives out."""


class Rule(IntEnum):
    """Deciding rules of the tests, beside the built-in ones of abi.h."""

    ALLOW = 0x1111_0000_0000_0001
    DENY = 0x2222_0000_0000_0002
    LATER = 0x3333_0000_0000_0003


class Listener(IntEnum):
    """Whom a cell may redirect to, in place of allowing."""

    ENVOY = 0xE000_0000_0000_0001
    DNS = 0xD000_0000_0000_0002
    NOBODY = 0


ANY = "any"
Cell = tuple[int | None, int | None, "bool | Listener"]
"""Protocol (None: all), port (None: all), allowed."""

OPEN: tuple[Cell, ...] = ((None, None, True),)
CLOSED: tuple[Cell, ...] = ()

Backend = tuple[str, int]
"""The name of its address, and its port."""

Block = tuple[str, int, int]
"""The name of an address in it; how many bits of an IPv4, of an IPv6 address it fixes."""


@dataclass(frozen=True)
class Frontend:
    """All of a frontend but its address. `kinds`: names of service flags. `outside` is `backends` if not given."""

    backends: Sequence[Backend] = ()
    outside: Sequence[Backend] | None = None
    kinds: tuple[str, ...] = ("CLUSTER_IP",)
    affinity_s: int = 0  # 0: clients do not keep their backend
    ranges: Sequence[Block] | None = None  # None: anybody
    table: Sequence[int] = ()  # slots of the Maglev tables of both pools; empty: there are none


def class_of(name: str) -> int:
    return 0 if name == "nobody" else 0xC1A5_0000_0000_0000 + IDENTITIES[name]


def subject_of(name: str) -> int:
    return 0x5B00_0000_0000_0000 + IDENTITIES[name]


def maglev_table(slots: Sequence[int]) -> bytes:
    """As the maglev map has it: the size, then words of MAGLEV_LANES slots."""
    lanes = load().constants.MAGLEV_LANES
    padded = [*slots, *[0] * (-len(slots) % lanes)]
    return struct.pack(f"=Q{len(padded)}H", len(slots), *padded)


class Content:
    """Maps, written by name; one family at a time."""

    def __init__(self, maps: Maps) -> None:
        self.abi: Abi = load()
        self.maps = maps
        self.family: Family = 4
        self._rows = 0

    def reset(self, family: Family) -> None:
        """Three pods that everything may reach, a node and a world; generous time-outs."""
        self.family = family
        for name, table in self.maps.items():
            if table.spec.type not in LASTING:
                self.empty(name)
        self.timeouts()
        for name in ("a", "b", "c"):
            self.pod(name)
            for direction in ("ingress", "egress"):
                self.policy(name, direction, ANY, OPEN, self.abi.constants.RULE_NOT_ISOLATED)
        for name in ("node", "world", "router", "free", "link-local"):
            self.identity(name)
        self.raise_epoch()

    def empty(self, name: str) -> None:
        """Remove all entries of a map."""
        self.maps[name].delete_many([key for key, _ in self.maps[name].items()])

    def fill(self, name: str, leave: int = 0) -> None:
        """Entries that nobody asks for, until only `leave` more fit."""
        table = self.maps[name]
        held = sum(1 for _ in table.items())
        for number in range(table.spec.max_entries - held - leave):
            table.update(
                struct.pack("=Q", ~number & (1 << 64) - 1).ljust(table.spec.key_size, b"\xfe"),
                bytes(table.spec.value_size),
            )

    def pack(self, record: str, **values: int | bytes) -> bytes:
        return self.abi.records[record].pack(**values)

    def raise_epoch(self) -> None:
        apply.increase_epoch(self.maps)

    def address(self, name: str) -> bytes:
        return address(name, self.family)

    # ---- config --------------------------------------------------------------------------------------------------

    def timeouts(self, tcp: int = 600, syn: int = 60, close: int = 10, udp: int = 120, other: int = 30) -> None:
        """In seconds; all other settings of `config` become what most tests want."""
        given = {"tcp": tcp, "syn": syn, "close": close, "udp": udp, "other": other}
        times = {f"timeout_{name}_ns": value * SECONDS for name, value in given.items()}
        config = self.pack("config", **times, port_min=PORTS[0], port_max=PORTS[-1], hash_seed=77)
        self.maps["config"].update(struct.pack("=I", 0), config)

    def config(self, **values: int | bytes) -> None:
        """Change members of struct config."""
        found = self.maps["config"].lookup(struct.pack("=I", 0))
        assert found is not None
        changed = self.abi.records["config"].unpack(found)._asdict() | values
        self.maps["config"].update(struct.pack("=I", 0), self.pack("config", **changed))

    # ---- pods and policy -----------------------------------------------------------------------------------------

    def pod(self, name: str, at: str | None = None, interface: str | None = None, identity: int | None = None) -> None:
        """A pod whose policy is that of `name`, with the address of `at` and the device of `interface`."""
        at, interface = at or name, interface or name
        number = IDENTITIES[name] if identity is None else identity
        endpoint = self.pack(
            "endpoint",
            subject=subject_of(name),
            class_v4=class_of(name) if self.family == 4 else 0,
            class_v6=class_of(name) if self.family == 6 else 0,
            ipv4=self.address(at) if self.family == 4 else bytes(16),
            ipv6=self.address(at) if self.family == 6 else bytes(16),
            identity=number,
            ifindex=INTERFACES[interface],
            mac=pod_mac(interface),
            host_mac=host_mac(interface),
            id=INTERFACES[interface],
        )
        self.maps["interfaces"].update(struct.pack("=I", INTERFACES[interface]), endpoint)
        self.maps["endpoints"].update(self.address(at), endpoint)

    def remove_pod(self, name: str) -> None:
        """Its address falls back to what covers it: unmanaged."""
        self.maps["interfaces"].delete(struct.pack("=I", INTERFACES[name]))
        self.maps["endpoints"].delete(self.address(name))
        self.identity("free", name)

    def identity(self, name: str, at: str | None = None) -> None:
        """An ipcache entry for the address of `at`."""
        key = self.pack("ipcache_key", prefixlen=128, address=self.address(at or name))
        value = self.pack("ipcache_value", remote_class=class_of(name), identity=IDENTITIES[name])
        self.maps["ipcache"].update(key, value)

    def policy(self, pod: str, direction: str, remote: str, cells: tuple[Cell, ...], rule: int = Rule.ALLOW) -> None:
        """The row of `pod` for a remote. A denying cell carries Rule.DENY."""
        self._rows += 1
        row = 0xA0B0_0000_C0D0_0000 + self._rows
        constants = self.abi.constants
        for protocol, port, allowed in cells:
            bits = (
                constants.ROW_BITS_ANY
                if protocol is None
                else constants.ROW_BITS_PROTOCOL
                if port is None
                else constants.ROW_BITS_PORT
            )
            key = self.pack(
                "policy_row_key",
                prefixlen=bits,
                row_high_be=be32(row >> 32),
                row_low_be=be32(row & 0xFFFFFFFF),
                protocol=protocol or 0,
                port_be=be16(port or 0),
            )
            verdict = constants.VERDICT_REDIRECT if isinstance(allowed, Listener) else int(allowed)
            listener = int(allowed) if isinstance(allowed, Listener) else 0
            value = self.pack(
                "policy_row_value", verdict=verdict, rule=rule if verdict else Rule.DENY, listener=listener
            )
            self.maps["policy_row"].update(key, value)
        self.maps["policy_class"].update(self._policy_class(pod, direction, remote), struct.pack("=Q", row))

    def listener(self, listener: Listener, tcp: int, udp: int) -> None:
        """Its proxy listens there."""
        value = self.pack("listener_value", tcp_port_be=be16(tcp), udp_port_be=be16(udp))
        self.maps["listeners"].update(struct.pack("=Q", listener), value)

    def remove_policy(self, pod: str, direction: str, remote: str = ANY) -> None:
        self.maps["policy_class"].delete(self._policy_class(pod, direction, remote))

    def _policy_class(self, pod: str, direction: str, remote: str) -> bytes:
        return self.pack(
            "policy_class_key",
            subject=subject_of(pod),
            remote_class=self.abi.constants.CLASS_ANY if remote == ANY else class_of(remote),
            direction=int(direction == "egress"),
        )

    # ---- services ------------------------------------------------------------------------------------------------

    def service(
        self, frontend: str, port: int, backends: Sequence[Backend], protocol: int = TCP, pool: int = 0
    ) -> None:
        """A frontend and its pool, which is named after both unless given."""
        self.frontend(frontend, port, Frontend(backends), protocol, pool)

    def frontend(self, name: str, port: int, given: Frontend, protocol: int = TCP, pool: int = 0) -> None:
        """A frontend and all that hangs on it: pools, members, source ranges, Maglev tables."""
        number = (ord(name[0]) << 32) + (ord(name[-1]) << 40) + (protocol << 16) + port
        outside = given.backends if given.outside is None else given.outside
        pools = (pool or number, (pool or number) if given.outside is None else (pool or number) + (1 << 48))
        for one, backends in zip(pools, (given.backends, outside), strict=True):
            self._pool(one, backends, bool(given.affinity_s), given.table)
        if given.ranges is not None:
            self._ranges(number, given.ranges)
        flags = given.kinds + (("MAGLEV",) if given.table else ())
        value = self.pack(
            "service_value",
            pool_inside=pools[0],
            pool_outside=pools[1],
            ranges=0 if given.ranges is None else number,
            affinity=number if given.affinity_s else 0,
            count_inside=len(given.backends),
            count_outside=len(outside),
            affinity_timeout_s=given.affinity_s,
            flags=sum(self.abi.constants[f"SERVICE_{flag}"] for flag in flags),
        )
        self.maps["services"].update(self.service_key(name, port, protocol), value)

    def service_key(self, name: str, port: int, protocol: int = TCP) -> bytes:
        return self.pack("service_key", address=self.address(name), port_be=be16(port), protocol=protocol)

    def _pool(self, pool: int, backends: Sequence[Backend], members: bool, table: Sequence[int]) -> None:
        for slot, (name, port) in enumerate(backends):
            ends: dict[str, int | bytes] = {"address": self.address(name), "port_be": be16(port)}
            self.maps["backends"].update(
                self.pack("backend_key", pool=pool, slot=slot), self.pack("backend_value", **ends)
            )
            if members:
                self.maps["members"].update(self.pack("member_key", pool=pool, **ends), struct.pack("=I", slot))
        if table:
            self.maps["maglev"].update(struct.pack("=Q", pool), maglev_table(table))

    def _ranges(self, number: int, blocks: Sequence[Block]) -> None:
        for name, v4_bits, v6_bits in blocks:
            bits = v4_bits + 96 if self.family == 4 else v6_bits
            key = self.pack(
                "range_key",
                prefixlen=self.abi.constants.RANGES_BITS + bits,
                ranges_high_be=be32(number >> 32),
                ranges_low_be=be32(number & 0xFFFFFFFF),
                address=self.address(name),
            )
            self.maps["source_ranges"].update(key, struct.pack("=I", 1))

    def affinity(self) -> list[tuple[bytes, bytes]]:
        """Clients that keep a backend: the addresses of both, sorted."""
        key, value = self.abi.records["affinity_key"], self.abi.records["affinity_value"]
        found = self.maps["affinity"].items()
        return sorted((key.unpack(k).client, value.unpack(v).address) for k, v in found)

    def age_affinity(self, seconds: int) -> None:
        """As if that much time had passed since clients used their backends."""
        record = self.abi.records["affinity_value"]
        for key, data in list(self.maps["affinity"].items()):
            value = record.unpack(data)
            older = value._asdict() | {"used_ns": max(0, value.used_ns - seconds * SECONDS)}
            self.maps["affinity"].update(key, record.pack(**older))

    # ---- the node ------------------------------------------------------------------------------------------------

    def device(self, name: str, at: str = "node", mtu: int = 1500) -> None:
        """A device of the node with the address of `at` in the family at hand."""
        value = self.pack(
            "device",
            ipv4=self.address(at) if self.family == 4 else bytes(16),
            ipv6=self.address(at) if self.family == 6 else bytes(16),
            mac=host_mac(name),
            mtu=mtu,
        )
        self.maps["devices"].update(struct.pack("=I", INTERFACES[name]), value)

    def unmasqueraded(self, *blocks: Block) -> None:
        """Destinations towards which pods keep their address."""
        for name, v4_bits, v6_bits in blocks:
            bits = v4_bits + 96 if self.family == 4 else v6_bits
            key = self.pack("ipcache_key", prefixlen=bits, address=self.address(name))
            self.maps["unmasqueraded"].update(key, struct.pack("=I", 1))

    def encryption(self, *blocks: Block, flags: str) -> None:
        """Whose they are: names of encryption flags."""
        number = sum(self.abi.constants[f"ENCRYPTION_{flag}"] for flag in flags.split())
        for name, v4_bits, v6_bits in blocks:
            bits = v4_bits + 96 if self.family == 4 else v6_bits
            key = self.pack("ipcache_key", prefixlen=bits, address=self.address(name))
            self.maps["encryption"].update(key, self.pack("encryption_value", flags=number))

    def namespace(self, cookie: int, pod: str) -> None:
        """The network namespace of a pod."""
        value = self.pack(
            "netns",
            ipv4=self.address(pod) if self.family == 4 else bytes(16),
            ipv6=self.address(pod) if self.family == 6 else bytes(16),
            ifindex=INTERFACES[pod],
        )
        self.maps["namespaces"].update(struct.pack("=Q", cookie), value)

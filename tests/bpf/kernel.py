"""The two programs on maps of a test's own: their content in symbolic form, packets in, what came of them out."""

from __future__ import annotations

import struct
import time
from collections.abc import Callable, Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from enum import IntEnum
from typing import Any, TypeVar

from frames import TCP, Family, Packet, address, host_mac, pod_mac

from agent.datapath import apply, testrun
from agent.datapath.abi import Abi, be16, be32, load
from agent.datapath.maps import Maps
from agent.datapath.pins import Pins
from agent.datapath.programs import Programs, ensure_loaded
from agent.datapath.ring import Ring

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
    "members": 64,
    "affinity": 64,
    "source_ranges": 64,
    "nat": 64,
    "maglev": 16,
    "backends": 64,
    "events": 16384,
}
HASHES = (
    "interfaces",
    "endpoints",
    "ipcache",
    "policy_class",
    "policy_row",
    "conntrack",
    "conntrack_host",
    "fragments",
)
"""What each test starts empty, services and backends besides."""

INTERFACES = {"a": 101, "b": 102, "c": 103, "d": 104}
"""`d` is a device without a pod at first."""

IDENTITIES = {
    "a": 1001,
    "b": 1002,
    "c": 1003,
    "d": 1004,
    "node": 1,
    "world": 2,
    "router": 2,
    "free": 3,
    "link-local": 2,
}
T = TypeVar("T")
SECONDS = 1_000_000_000


class Rule(IntEnum):
    """Deciding rules of the tests, beside the built-in ones of abi.h."""

    ALLOW = 0x1111_0000_0000_0001
    DENY = 0x2222_0000_0000_0002
    LATER = 0x3333_0000_0000_0003


ANY = "any"
Cell = tuple[int | None, int | None, bool]
"""Protocol (None: all), port (None: all), allowed."""

OPEN: tuple[Cell, ...] = ((None, None, True),)
CLOSED: tuple[Cell, ...] = ()


def class_of(name: str) -> int:
    return 0 if name == "nobody" else 0xC1A5_0000_0000_0000 + IDENTITIES[name]


def subject_of(name: str) -> int:
    return 0x5B00_0000_0000_0000 + IDENTITIES[name]


@dataclass(frozen=True)
class Outcome:
    """What became of one packet."""

    action: int
    frame: bytes
    drops: Mapping[str, int]
    tallies: Mapping[str, int]
    events: list[Any]


class Network:
    """A thread in a network namespace that has the devices: namespaces belong to threads, and tests share this one."""

    def __init__(self) -> None:
        self._thread = ThreadPoolExecutor(1)
        self._devices = ExitStack()
        self.run(self._devices.enter_context, testrun.network(INTERFACES.values()))

    def run(self, function: Callable[..., T], *arguments: Any, **named: Any) -> T:
        return self._thread.submit(function, *arguments, **named).result()

    def close(self) -> None:
        self.run(self._devices.close)
        self._thread.shutdown()


class Kernel:
    """Programs and maps; one family at a time."""

    def __init__(self, maps: Maps, programs: Programs, network: Network) -> None:
        self.network = network
        self.abi: Abi = load()
        self.maps = maps
        self.programs = programs
        self.ring = Ring(maps["events"].fd)
        self.family: Family = 4
        self._rows = 0

    # ---- content -------------------------------------------------------------------------------------------------

    def reset(self, family: Family) -> None:
        """Three pods that everything may reach, a node and a world; generous time-outs."""
        self.family = family
        for name in (*HASHES, "services", "backends"):
            self.maps[name].delete_many([key for key, _ in self.maps[name].items()])
        self.ring.drain(1 << 30)
        self.timeouts()
        for name in ("a", "b", "c"):
            self.pod(name)
            for direction in ("ingress", "egress"):
                self.policy(name, direction, ANY, OPEN, self.abi.constants.RULE_NOT_ISOLATED)
        for name in ("node", "world", "router", "free", "link-local"):
            self.identity(name)
        self.raise_epoch()

    def pack(self, record: str, **values: int | bytes) -> bytes:
        return self.abi.records[record].pack(**values)

    def timeouts(self, tcp: int = 600, syn: int = 60, close: int = 10, udp: int = 120, other: int = 30) -> None:
        """In seconds."""
        given = {"tcp": tcp, "syn": syn, "close": close, "udp": udp, "other": other}
        config = self.pack("config", **{f"timeout_{name}_ns": value * SECONDS for name, value in given.items()})
        self.maps["config"].update(struct.pack("=I", 0), config)

    def address(self, name: str) -> bytes:
        return address(name, self.family)

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
            self.maps["policy_row"].update(
                key, self.pack("policy_row_value", verdict=int(allowed), rule=rule if allowed else Rule.DENY)
            )
        self.maps["policy_class"].update(self._policy_class(pod, direction, remote), struct.pack("=Q", row))

    def remove_policy(self, pod: str, direction: str, remote: str = ANY) -> None:
        self.maps["policy_class"].delete(self._policy_class(pod, direction, remote))

    def _policy_class(self, pod: str, direction: str, remote: str) -> bytes:
        return self.pack(
            "policy_class_key",
            subject=subject_of(pod),
            remote_class=self.abi.constants.CLASS_ANY if remote == ANY else class_of(remote),
            direction=int(direction == "egress"),
        )

    def service(
        self, frontend: str, port: int, backends: list[tuple[str, int]], protocol: int = TCP, pool: int = 0
    ) -> None:
        """A frontend and its pool, which is named after both unless given."""
        pool = pool or 0x9000 + (protocol << 16) + port + (0x1_0000_0000 if frontend == "dns" else 0)
        for slot, (name, backend_port) in enumerate(backends):
            key = self.pack("backend_key", pool=pool, slot=slot)
            self.maps["backends"].update(
                key, self.pack("backend_value", address=self.address(name), port_be=be16(backend_port))
            )
        key = self.pack("service_key", address=self.address(frontend), port_be=be16(port), protocol=protocol)
        count = len(backends)
        value = self.pack(
            "service_value", pool_inside=pool, pool_outside=pool, count_inside=count, count_outside=count, flags=1
        )
        self.maps["services"].update(key, value)

    def raise_epoch(self) -> None:
        apply.increase_epoch(self.maps)

    # ---- conntrack -----------------------------------------------------------------------------------------------

    def key(self, packet: Packet, reverse: bool = False) -> bytes:
        """The tuple of a packet of TCP, UDP or SCTP."""
        ends = [(packet.source, packet.l4.source_port), (packet.destination, packet.l4.destination_port)]
        (source, source_port), (destination, destination_port) = reversed(ends) if reverse else ends
        return self.pack(
            "tuple",
            source=self.address(source),
            destination=self.address(destination),
            source_port_be=be16(source_port),
            destination_port_be=be16(destination_port),
            protocol=packet.l4.number(self.family),
        )

    def entry(self, packet: Packet, host: bool = False) -> Any:
        """The conntrack entry a packet meets, or None."""
        found = self.maps["conntrack_host" if host else "conntrack"].lookup(self.key(packet))
        return None if found is None else self.abi.records["conntrack"].unpack(found)

    def edit(self, packet: Packet, **values: int) -> None:
        """Change members of the entry a packet meets."""
        found = self.entry(packet)
        assert found is not None, f"no entry for {packet}"
        self.maps["conntrack"].update(self.key(packet), self.pack("conntrack", **(found._asdict() | values)))

    def expire(self, *packets: Packet) -> None:
        for packet in packets:
            self.edit(packet, expires_ns=1)

    def entries(self) -> list[Any]:
        return [self.abi.records["conntrack"].unpack(value) for _, value in self.maps["conntrack"].items()]

    def fill_conntrack(self, leave: int = 0) -> None:
        """Live flows of nobody in particular, until only `leave` more fit."""
        room = self.maps["conntrack"].spec.max_entries - len(self.entries()) - leave
        value = self.pack("conntrack", expires_ns=time.monotonic_ns() + 1000 * SECONDS, verdict=1)
        for number in range(room):
            self.maps["conntrack"].update(self.pack("tuple", source_port_be=number, protocol=255), value)

    # ---- packets -------------------------------------------------------------------------------------------------

    def counters(self, name: str, enum: str) -> dict[str, int]:
        members = self.abi.enums[enum]
        return {members(i).name or "": count for i, count in enumerate(self.maps[name].sums())}

    def send(self, pod: str, packet: Packet | bytes, program: str = "from_pod", ingress_ifindex: int = 0) -> Outcome:
        """Run a program on a packet at a pod's device."""
        macs = (host_mac(pod), pod_mac(pod)) if program == "from_pod" else (pod_mac(pod), host_mac(pod))
        frame = packet if isinstance(packet, bytes) else packet.encode(self.family, *macs)
        before = self.counters("drops", "drop_reason"), self.counters("tallies", "tally")
        result = self.network.run(
            testrun.run, self.programs[program], frame, ifindex=INTERFACES[pod], ingress_ifindex=ingress_ifindex
        )
        after = self.counters("drops", "drop_reason"), self.counters("tallies", "tally")
        drops, tallies = (
            {name: count - old[name] for name, count in new.items() if count != old[name]}
            for old, new in zip(before, after, strict=True)
        )
        events = list(self.abi.records["event"].records(b"".join(self.ring.drain(1 << 30))))
        return Outcome(result.action, result.packet, drops, tallies, events)

    def measure(self, pod: str, packet: Packet, repeat: int) -> int:
        """Mean ns of from_pod on a packet that it does not change."""
        frame = packet.encode(self.family, host_mac(pod), pod_mac(pod))
        program, device = self.programs["from_pod"], INTERFACES[pod]
        return self.network.run(testrun.run, program, frame, ifindex=device, repeat=repeat).duration_ns


@contextmanager
def load_kernel(instance: str, sizes: Mapping[str, int] | None = None) -> Iterator[Kernel]:
    """Programs on maps that nobody else uses, in a namespace that has the devices. Gone when left."""
    pins = Pins.of(instance)
    network = Network()
    try:
        with Maps.open_or_create(pins.maps, SIZES | dict(sizes or {})) as maps, ensure_loaded(maps, pins) as programs:
            kernel = Kernel(maps, programs, network)
            yield kernel
            kernel.ring.close()
    finally:
        network.close()
        pins.remove()

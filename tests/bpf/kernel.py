"""The programs on maps of a test's own: packets in, what came of them out."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from typing import Any, TypeVar

from frames import ECHO, Family, Icmp, Packet, host_mac, pod_mac
from map_content import (
    ANY,
    CLOSED,
    INTERFACES,
    OPEN,
    PORTS,
    SECONDS,
    SIZES,
    Backend,
    Block,
    Cell,
    Content,
    Frontend,
    Listener,
    Rule,
)

from agent.datapath import testrun
from agent.datapath.abi import be16, bpf_dir
from agent.datapath.maps import Maps
from agent.datapath.pins import Pins
from agent.datapath.programs import PROGRAMS, ProgramSpec, ensure_loaded
from agent.datapath.ring import Ring

__all__ = [
    "ANY",
    "CLOSED",
    "INTERFACES",
    "OPEN",
    "PORTS",
    "SECONDS",
    "TOWARDS_NODE",
    "Backend",
    "Block",
    "Cell",
    "Frontend",
    "Kernel",
    "Listener",
    "Network",
    "Outcome",
    "Rule",
    "load_kernel",
]

TOWARDS_NODE = ("from_pod", "from_network", "xdp_network")
"""Programs that see what comes from the other end of a device."""

Units = Mapping[str, tuple[ProgramSpec, ...]]
"""C files of bpf/ and the programs in each."""

PODS: Units = {"gatehouse.c": PROGRAMS}
T = TypeVar("T")


@dataclass(frozen=True)
class Outcome:
    """What became of one packet."""

    action: int
    frame: bytes
    drops: Mapping[str, int]
    tallies: Mapping[str, int]
    events: list[Any]
    mark: int = 0


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


class Kernel(Content):
    """Programs and maps; one family at a time."""

    def __init__(self, maps: Maps, programs: Mapping[str, int], network: Network) -> None:
        super().__init__(maps)
        self.network = network
        self.programs = programs
        self.ring = Ring(maps["events"].fd)

    def reset(self, family: Family) -> None:
        self.ring.drain(1 << 30)
        super().reset(family)

    # ---- flows ---------------------------------------------------------------------------------------------------

    def key(self, packet: Packet, reverse: bool = False, leg: int = 0) -> bytes:
        """The tuple of a packet of TCP, UDP or SCTP, of an echo, or of a protocol without ports."""
        ends = [(packet.source, packet.l4.source_port), (packet.destination, packet.l4.destination_port)]
        if isinstance(packet.l4, Icmp) and packet.l4.kind in ECHO:
            end = ECHO.index(packet.l4.kind)
            ends[end] = (ends[end][0], packet.l4.identifier)
        (source, source_port), (destination, destination_port) = reversed(ends) if reverse else ends
        return self.pack(
            "tuple",
            source=self.address(source),
            destination=self.address(destination),
            source_port_be=be16(source_port),
            destination_port_be=be16(destination_port),
            protocol=packet.l4.number(self.family),
            leg=leg,
        )

    def entry(self, packet: Packet, host: bool = False, leg: int = 0) -> Any:
        """The conntrack entry a packet meets, or None."""
        found = self.maps["conntrack_host" if host else "conntrack"].lookup(self.key(packet, leg=leg))
        return None if found is None else self.abi.records["conntrack"].unpack(found)

    def edit(self, packet: Packet, leg: int = 0, **values: int) -> None:
        """Change members of the entry a packet meets."""
        found = self.entry(packet, leg=leg)
        assert found is not None, f"no entry for {packet}"
        self.maps["conntrack"].update(self.key(packet, leg=leg), self.pack("conntrack", **(found._asdict() | values)))

    def mark(self, flag: str, *packets: Packet) -> None:
        """Set a flag in the entries that packets meet, as user space may."""
        for packet in packets:
            self.edit(packet, flags=self.entry(packet).flags | self.abi.constants[f"CT_{flag}"])

    def retarget(self, before: Packet, after: Packet) -> None:
        """From now on the flow of `before` becomes that of `after`, and answers to that come back as answers to it."""
        forward, answer = self.entry(before), self.maps["conntrack"].lookup(self.key(before, reverse=True))
        assert forward is not None
        assert answer is not None
        translated = self.abi.constants.CT_SOURCE
        backward = self.abi.records["conntrack"].unpack(answer)
        self.maps["conntrack"].delete(self.key(before, reverse=True))
        for key, found, becomes in (
            (self.key(before), forward, self.key(after)),
            (self.key(after, reverse=True), backward, self.key(before, reverse=True)),
        ):
            ends = {
                f"after_{name}": value for name, value in self.abi.records["tuple"].unpack(becomes)._asdict().items()
            }
            flags = found.flags | translated
            self.maps["conntrack"].update(key, self.pack("conntrack", **(found._asdict() | ends | {"flags": flags})))

    def expire(self, *packets: Packet, leg: int = 0) -> None:
        for packet in packets:
            self.edit(packet, leg, expires_ns=1)

    def entries(self) -> list[Any]:
        return [self.abi.records["conntrack"].unpack(value) for _, value in self.maps["conntrack"].items()]

    def nat(self, packet: Packet, reverse: bool = False) -> Any:
        """The entry of the nat map a packet meets, or None."""
        found = self.maps["nat"].lookup(self.key(packet, reverse))
        return None if found is None else self.abi.records["nat"].unpack(found)

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

    def send(
        self,
        pod: str,
        packet: Packet | bytes,
        program: str = "from_pod",
        ingress_ifindex: int = 0,
        summed: bool = False,
        mark: int = 0,
        gso_size: int = 0,
    ) -> Outcome:
        """Run a tc program on a packet at a device: a pod's, or the node's. `summed`: see testrun.run_summed;
        `gso_size`: testrun.run."""
        macs = (host_mac(pod), pod_mac(pod)) if program in TOWARDS_NODE else (pod_mac(pod), host_mac(pod))
        frame = packet if isinstance(packet, bytes) else packet.encode(self.family, *macs)
        before = self.counters("drops", "drop_reason"), self.counters("tallies", "tally")
        result = self.network.run(
            testrun.run_summed if summed else testrun.run,
            self.programs[program],
            frame,
            ifindex=INTERFACES[pod],
            ingress_ifindex=ingress_ifindex,
            mark=mark,
            **({"gso_size": gso_size} if gso_size else {}),
        )
        after = self.counters("drops", "drop_reason"), self.counters("tallies", "tally")
        drops, tallies = (
            {name: count - old[name] for name, count in new.items() if count != old[name]}
            for old, new in zip(before, after, strict=True)
        )
        events = list(self.abi.records["event"].records(b"".join(self.ring.drain(1 << 30))))
        return Outcome(result.action, result.packet, drops, tallies, events, result.mark)

    def measure(self, pod: str, packet: Packet, repeat: int) -> int:
        """Mean ns of from_pod on a packet that it does not change."""
        frame = packet.encode(self.family, host_mac(pod), pod_mac(pod))
        program, device = self.programs["from_pod"], INTERFACES[pod]
        return self.network.run(testrun.run, program, frame, ifindex=device, repeat=repeat).duration_ns


@contextmanager
def load_kernel(instance: str, sizes: Mapping[str, int] | None = None, units: Units = PODS) -> Iterator[Kernel]:
    """Programs on maps that nobody else uses, in a namespace that has the devices. Gone when left."""
    pins = Pins.of(instance)
    with ExitStack() as undo:
        undo.callback(pins.remove)
        network = Network()
        undo.callback(network.close)
        maps = undo.enter_context(Maps.open_or_create(pins.maps, SIZES | dict(sizes or {})))
        programs: dict[str, int] = {}
        for source, specs in units.items():
            programs |= undo.enter_context(ensure_loaded(maps, pins, bpf_dir() / source, specs))
        kernel = Kernel(maps, programs, network)
        undo.callback(kernel.ring.close)
        yield kernel

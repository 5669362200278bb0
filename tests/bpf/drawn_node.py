"""A node whose maps hold a drawn cluster (tests/worlds.py), for random packets through all of its programs.

Pods hang off the interfaces that worlds.interface_of gives them; everybody else is behind one device of the node, by
way of a gateway. Packets are bytes here, their ends addresses of 16 bytes.
"""

from __future__ import annotations

import struct
from collections.abc import Callable, Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import NamedTuple, TypeVar

import strategies as drawn
import worlds
from frames import DESTINATION_OPTIONS, ETHERTYPE, L4, SCTP, TCP, UDP, checksum
from map_content import SECONDS, SIZES
from pyroute2 import IPRoute

from agent.datapath import testrun
from agent.datapath.abi import bpf_dir, load
from agent.datapath.apply import apply, read_state
from agent.datapath.maps import Maps
from agent.datapath.pins import Pins
from agent.datapath.programs import NETWORK_PROGRAMS, PROGRAMS, ensure_loaded
from agent.datapath.ring import Ring
from agent.datapath.testrun import Action, Result, XdpAction
from agent.plan.blocks import MAGLEV
from agent.plan.plan import Plan
from agent.plan.state import State
from agent.plan.step import Step, Transition
from agent.plan.transition import reconcile
from policies.address import V4_MAPPED, is_v4, parse_address

ABI = load()
DEVICE, DEVICE_MAC, OTHERS_MAC = 120, bytes.fromhex("020000000178"), bytes.fromhex("020000000909")
PODS = 6
PORTS = range(61000, 65536)
"""Source ports the node gives out."""

LARGE = ("services", "backends", "members", "source_ranges", "ipcache", "policy_class", "policy_row")
ROOM = SIZES | dict.fromkeys((*LARGE, "conntrack", "nat"), 8192) | {"affinity": 1024, "maglev": 256, "events": 1 << 20}
FORGETFUL = ("conntrack", "conntrack_host", "nat", "affinity", "fragments")
"""Maps that the datapath fills."""

_IPV4_HEADER, _IPV6_HEADER = 20, 40
T = TypeVar("T")


class Ends(NamedTuple):
    """Of a packet. `direct`: it names a frontend, for the backend to answer in its name (DSR)."""

    source: bytes
    source_port: int
    destination: bytes
    port: int
    protocol: int
    direct: bool = False

    def turned(self) -> Ends:
        return Ends(self.destination, self.port, self.source, self.source_port, self.protocol)


class Fate(NamedTuple):
    """What became of a packet. `reasons`: DROP_… of what was reported. `by_xdp`: it never came to tc."""

    action: Action
    ends: Ends
    reasons: tuple[str, ...] = ()
    by_xdp: bool = False


class DrawnNode:
    """In a namespace of its own, which belongs to a thread: everything but making it goes through `run`."""

    def __init__(self, maps: Maps, programs: Mapping[str, int], thread: ThreadPoolExecutor) -> None:
        self.maps, self.programs, self._thread = maps, programs, thread
        self.ring = Ring(maps["events"].fd)

    def run(self, function: Callable[..., T], *arguments: object) -> T:
        return self._thread.submit(function, *arguments).result()

    # ---- what the maps hold

    def start(self, plan: Plan, seed: int) -> None:
        """As an agent that finds there whatever was before; no flow is known. `seed`: of Maglev tables."""
        times = {f"timeout_{name}_ns": 600 * SECONDS for name in ("tcp", "syn", "close", "udp", "other")}
        own = {f"ipv{family}": parse_address(text) for family, text in zip((4, 6), drawn.HOST_ADDRESSES, strict=True)}
        config = ABI.records["config"].pack(**times, **own, port_min=PORTS[0], port_max=PORTS[-1], hash_seed=seed)
        self.maps["config"].update(bytes(4), config)
        self.maps["devices"].update(
            struct.pack("=I", DEVICE), ABI.records["device"].pack(**own, mac=DEVICE_MAC, mtu=1500)
        )
        for name in FORGETFUL:
            self.maps[name].delete_many([key for key, _ in self.maps[name].items()])
        self.carry_out(reconcile(State.read(read_state(self.maps)), plan.state, plan.names))
        held, wanted = read_state(self.maps), plan.state.maps()
        assert held.pop(MAGLEV).keys() == wanted.pop(MAGLEV).keys()
        assert held == wanted

    def carry_out(self, steps: Transition) -> None:
        assert apply(self.maps, steps.steps, raise_epoch=steps.raises_epoch).failure is None
        assert apply(self.maps, steps.cleanup, raise_epoch=False).failure is None

    def writes(self, steps: Transition) -> Iterator[None]:
        """As carry_out, with a pause after each single write."""
        for step in (*steps.steps, *steps.cleanup):
            singles = [Step(step.map, {key: value}) for key, value in step.updates.items()]
            singles += [Step(step.map, {}, (key,)) for key in step.deletes]
            for single in singles:
                assert apply(self.maps, [single], raise_epoch=False).failure is None
                yield
        apply(self.maps, [], raise_epoch=steps.raises_epoch)

    # ---- packets

    def send(self, program: str, device: int, packet: bytes, via: int = 0) -> Fate:
        """By a tc program. `via`: by which device what the stack sends came to the node; 0: it is the node's own."""
        self.ring.drain(1 << 30)
        result = testrun.run(self.programs[program], packet, ifindex=device, ingress_ifindex=via)
        events = ABI.records["event"].records(b"".join(self.ring.drain(1 << 30)))
        reasons = ABI.enums["drop_reason"]
        told = tuple(str(reasons(e.reason).name) for e in events if e.type == ABI.constants.EVENT_DROP)
        return Fate(Action(result.action), ends_of(result.packet), told)

    def comes_in(self, packet: bytes, *, xdp: bool) -> Fate:
        """By the node's device."""
        if xdp:
            result: Result = testrun.run_xdp(self.programs["xdp_network"], packet, ifindex=DEVICE)
            if result.action != XdpAction.PASS:
                assert result.action == XdpAction.TX, result
                return Fate(Action.REDIRECT, ends_of(result.packet), by_xdp=True)
            assert result.packet == packet, "what XDP leaves to tc is as it was"
        return self.send("from_network", DEVICE, packet)


def frame(ends: Ends, flags: str = "S") -> bytes:
    """An Ethernet frame to the node's device. `flags`: TCP's."""
    l4 = L4(ends.protocol, ends.source_port, ends.port, flags if ends.protocol == TCP else "")
    size = len(l4.encode(4, b""))
    payload = l4.encode(4, _pseudo(ends, size))
    if is_v4(ends.source):
        head = struct.pack("!BBHHHBBH", 0x45, 0, _IPV4_HEADER + size, 1, 0, 64, ends.protocol, 0)
        head += ends.source[12:] + ends.destination[12:]
        head = head[:10] + struct.pack("!H", checksum(head)) + head[12:]
    else:
        head = struct.pack("!IHBB", 6 << 28, size, ends.protocol, 64) + ends.source + ends.destination
    ethertype = ETHERTYPE[4 if is_v4(ends.source) else 6]
    return DEVICE_MAC + OTHERS_MAC + struct.pack("!H", ethertype) + head + payload


def ends_of(packet: bytes) -> Ends:
    """Of a frame whose checksums are right; else an AssertionError."""
    ip = packet[14:]
    if packet[12:14] == struct.pack("!H", ETHERTYPE[4]):
        size = (ip[0] & 15) * 4
        assert checksum(ip[:size]) == 0, f"checksum of the header: {packet.hex()}"
        protocol, direct = ip[9], size > _IPV4_HEADER
        source, destination = V4_MAPPED + ip[12:16], V4_MAPPED + ip[16:20]
    else:
        direct = ip[6] == DESTINATION_OPTIONS
        size = _IPV6_HEADER + (8 * (ip[_IPV6_HEADER + 1] + 1) if direct else 0)
        protocol = ip[_IPV6_HEADER] if direct else ip[6]
        source, destination = ip[8:24], ip[24:40]
    has_ports = protocol in (TCP, UDP, SCTP)
    ports = struct.unpack_from("!HH", ip, size) if has_ports else (0, 0)
    ends = Ends(source, ports[0], destination, ports[1], protocol, direct)
    if protocol in (TCP, UDP):
        assert checksum(_pseudo(ends, len(ip) - size) + ip[size:]) == 0, f"checksum: {packet.hex()}"
    return ends


def _pseudo(ends: Ends, size: int) -> bytes:
    """IPv4-mapped addresses have the sum of what they map."""
    return ends.source + ends.destination + struct.pack("!II", size, ends.protocol)


@contextmanager
def load_drawn_node(instance: str) -> Iterator[DrawnNode]:
    """All programs on maps that nobody else uses. Gone when left."""
    pins = Pins.of(instance)
    interfaces = [worlds.interface_of(drawn.PodSpec("blue", f"pod-{n}", {}, (), ())).index for n in range(PODS)]
    with ExitStack() as undo:
        undo.callback(pins.remove)
        thread = undo.enter_context(ThreadPoolExecutor(1))
        devices = testrun.network([*interfaces, DEVICE])
        thread.submit(devices.__enter__).result()
        undo.callback(lambda: thread.submit(devices.__exit__, None, None, None).result())
        thread.submit(_set_up).result()
        maps = undo.enter_context(Maps.open_or_create(pins.maps, ROOM))
        programs: dict[str, int] = {}
        for source, specs in (("gatehouse.c", PROGRAMS), ("network.c", NETWORK_PROGRAMS)):
            programs |= undo.enter_context(ensure_loaded(maps, pins, bpf_dir() / source, specs))
        node = DrawnNode(maps, programs, thread)
        undo.callback(node.ring.close)
        yield node


def _set_up() -> None:
    """Everything is behind the gateway, whose link address is known."""
    for name in ("ipv4/ip_forward", "ipv6/conf/all/forwarding"):
        Path("/proc/sys/net", name).write_text("1")
    gateways = (2, "192.0.2.254"), (10, "2001:db8:ffff::fe")
    with IPRoute() as ip:
        ip.link("set", index=DEVICE, address=DEVICE_MAC.hex(":"), state="up")
        for (family, gateway), own in zip(gateways, drawn.HOST_ADDRESSES, strict=True):
            ip.addr("add", index=DEVICE, address=own, prefixlen=32 if family == 2 else 128, family=family)
            ip.neigh("add", ifindex=DEVICE, dst=gateway, lladdr=OTHERS_MAC.hex(":"), state="permanent")
            everything = "0.0.0.0/0" if family == 2 else "::/0"
            ip.route("add", dst=everything, gateway=gateway, oif=DEVICE, flags=["onlink"], family=family)

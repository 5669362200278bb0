"""The programs on the node's own devices, and what the datapath knows of these; kept to the settings while devices and
addresses come and go.

Nothing here is undone when the agent ends: programs stay on their devices, and the next agent takes their places.
"""

from __future__ import annotations

import asyncio
import errno
import os
import struct
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence

from agent import log as logs
from agent.config import Config
from agent.datapath import abi, bpf, bpf_programs, devices, xdp
from agent.datapath.changes import Changes
from agent.datapath.devices import Device
from agent.datapath.maps import Map
from agent.datapath.pins import Pins
from agent.datapath.programs import NETWORK_PROGRAMS, WIREGUARD_PROGRAMS, Programs
from agent.datapath.tc import Hooks, TcError, remove_empty_clsact
from agent.datapath.xdp import Xdp, XdpRefused
from agent.endpoints.netlink import RouteSocket
from agent.settings import unmasqueraded
from policies.address import Prefix

SYNC_S = 0.1
"""Changes are followed at most this often."""
XDP_PROGRAM = "xdp_network"
_CONFIG = abi.load().records["config"]
_TC_PROGRAMS = sum(spec.hook is not None for spec in NETWORK_PROGRAMS)

# linux/rtnetlink.h RTMGRP_*: links, tc, IPv4 and IPv6 addresses, IPv4 and IPv6 routes
_GROUPS = 0x1 | 0x8 | 0x10 | 0x100 | 0x40 | 0x400

log = logs.get("network")


class Network:
    """In the network namespace this is made in, for one thread.

    `programs` may be empty: then nothing is to be attached. `problems`: what is not as the settings say, one sentence
    each. `attached`: on how many devices each program is.
    """

    def __init__(
        self,
        config: Config,
        maps: Mapping[str, Map],
        pins: Pins,
        programs: Programs,
        node_addresses: Sequence[bytes],
    ) -> None:
        self.problems: list[str] = []
        self.attached: Counter[str] = Counter()
        self._config = config
        self._pins = pins
        self._programs = programs
        self._node_addresses = tuple(node_addresses)
        self._pod_blocks: frozenset[Prefix] = frozenset()
        self._devices = maps["devices"]
        self._unmasqueraded = maps["unmasqueraded"]
        self._settings = maps["config"]
        self._wireguard: int | None = None  # None: not known yet
        self._xdp: Xdp | None = None
        if config.xdp != "off" and XDP_PROGRAM in programs:
            self._xdp = Xdp(pins, programs[XDP_PROGRAM], config.xdp)
        self._used: set[int] = set()
        self._changes = Changes(_GROUPS, lambda kind, body: devices.may_matter(kind, body, self._used))
        self._route = RouteSocket()
        self._hooks = Hooks(programs, NETWORK_PROGRAMS)
        self._of_wireguard = Hooks(programs, WIREGUARD_PROGRAMS)

    def close(self) -> None:
        """Programs stay where they are."""
        self._changes.close()
        self._route.close()
        self._hooks.close()
        self._of_wireguard.close()

    def set_wireguard(self, ifindex: int) -> None:
        """The device that encrypts; 0: there is none any more. In force when this returns, or `problems` say why not.
        Until the first call all stays as an earlier agent left it."""
        self._wireguard = ifindex
        self.sync()

    def set_pod_blocks(self, blocks: frozenset[Prefix]) -> None:
        """Where pods of all nodes have their addresses, as far as nodes tell: their traffic is never masqueraded."""
        if blocks != self._pod_blocks:
            self._pod_blocks = blocks
            self._changes.notice()

    async def follow(self) -> None:
        """Keep it so. Ends at once where nothing is to be attached."""
        if not (self._config.devices and self._programs):
            return
        async with self._changes:
            while True:
                await self._changes.wait()
                self.sync()
                await asyncio.sleep(SYNC_S)

    def sync(self) -> None:
        """Look what there is and make it as the settings say. What is known of a device goes before its programs."""
        problems: list[str] = []
        found = devices.read(self._route)
        wanted: list[Device] = []
        if self._config.devices and self._programs:
            wanted, problems = devices.choose(self._config.devices, found, self._node_addresses)
        self._used = {device.ifindex for device in wanted} | {self._wireguard or 0}
        self._write(found, wanted, problems)
        self._detach(found, wanted)
        self._attach(wanted, problems)
        if self._wireguard is not None:
            self._encrypt(self._wireguard, found, wanted, problems)
        for problem in problems:
            if problem not in self.problems:
                log.warning("not as the settings say", problem=problem)
        self.problems = problems

    # ---- what the datapath knows

    def _write(self, found: Sequence[Device], wanted: Sequence[Device], problems: list[str]) -> None:
        known = {struct.pack("=I", d.ifindex): devices.value(d, self._node_addresses) for d in wanted}
        own = {*self._node_addresses, *(address for device in found for address in device.addresses)}
        kept = unmasqueraded(self._config, own, self._pod_blocks)
        for target, entries in ((self._devices, known), (self._unmasqueraded, kept)):
            held = dict(target.items())
            try:
                target.update_many({key: value for key, value in entries.items() if held.get(key) != value})
            except bpf.MapFull:
                name, size = target.spec.name, target.spec.max_entries
                problems.append(
                    f"map {name} holds {size} entries and is to hold {len(entries)}: raise --map-sizes {name}"
                )
            target.delete_many(held.keys() - entries.keys())

    # ---- what is attached

    def _attach(self, wanted: Sequence[Device], problems: list[str]) -> None:
        self.attached.clear()
        current = Counter(f.ifindex for f in self._hooks.attached(d.ifindex for d in wanted) if f.is_current)
        for device in wanted:
            try:
                if current[device.ifindex] != _TC_PROGRAMS:
                    self._attach_tc(device)
                self.attached.update(spec.name for spec in NETWORK_PROGRAMS if spec.hook is not None)
            except TcError as error:
                problems.append(f"device {device.name}: {error.strerror}")
                continue
            try:
                self._attach_xdp(device)
            except XdpRefused as refused:
                problems.append(str(refused))

    def _encrypt(self, wireguard: int, found: Sequence[Device], wanted: Sequence[Device], problems: list[str]) -> None:
        """Nothing is given to the device before what it decrypts is taken from it. Where it is not there, or is of no
        use, what would be given to it is dropped: it does not go out in plaintext."""
        entry = _way_in(wanted, self._node_addresses)
        if wireguard and not entry:
            problems.append("nothing can be decrypted: there is no device by which it could go on (--devices)")
        try:
            if wireguard and not any(one.is_current for one in self._of_wireguard.attached([wireguard])):
                self._of_wireguard.attach(wireguard)
                log.info("program on the WireGuard device", ifindex=wireguard)
            self.attached.update({"from_wireguard": 1} if wireguard else {})
        except TcError as error:
            problems.append(f"nothing can be decrypted: {error.strerror}")
        before = self._settings.lookup(bytes(4))
        assert before is not None, "an array has all its elements"
        value = _CONFIG.unpack(before)
        value = value._replace(wireguard_ifindex=wireguard, decrypted_ifindex=entry or value.decrypted_ifindex)
        if (after := _CONFIG.pack_values(*value)) != before:
            self._settings.update(bytes(4), after)
        detach_tc(self._route, self._of_wireguard, [d for d in found if d.ifindex != wireguard])

    def _attach_tc(self, device: Device) -> None:
        if self._hooks.occupied(device.ifindex):
            raise TcError(
                errno.EBUSY,
                "somebody else's filter has priority 1 and handle 1, and keeps them: take it off (`tc filter show dev "
                f"{device.name} ingress` and `… egress` show it) and restart the agent",
            )
        self._hooks.attach(device.ifindex)
        log.info("programs on device", device=device.name, ifindex=device.ifindex)

    def _attach_xdp(self, device: Device) -> None:
        if self._xdp is None or device.name == devices.TUNNEL:
            return
        if not self._xdp.is_attached(device):
            self._xdp.attach(device)
            log.info("XDP on device", device=device.name, ifindex=device.ifindex)
        self.attached[XDP_PROGRAM] += 1

    def _detach(self, found: Sequence[Device], wanted: Sequence[Device]) -> None:
        kept = {device.ifindex for device in wanted}
        for ifindex in detach_tc(self._route, self._hooks, [d for d in found if d.ifindex not in kept]):
            log.info("programs off device", ifindex=ifindex)
        for ifindex in xdp.attached(self._pins.links):
            if ifindex not in kept or self._xdp is None:
                xdp.detach(self._pins.links, ifindex)


def _way_in(wanted: Iterable[Device], node_addresses: Iterable[bytes]) -> int:
    """The device by which decrypted packets go on; 0: there is none. The tunnel, by which they would come without
    WireGuard and where no filter looks for the way back; else the one with the node's address."""
    own = frozenset(node_addresses)
    ranked = sorted(wanted, key=lambda d: (d.name != devices.TUNNEL, own.isdisjoint(d.addresses)))
    return ranked[0].ifindex if ranked else 0


def detach_tc(route: RouteSocket, hooks: Hooks, found: Sequence[Device]) -> list[int]:
    """Take the programs off those of the devices that have them; the clsact qdisc, too, where nothing else is on it."""
    ours = sorted({f.ifindex for f in hooks.attached(d.ifindex for d in found if not d.of_pod)})
    for ifindex in ours:
        hooks.detach(ifindex)
        remove_empty_clsact(route, ifindex)
    return ours


def detach_all(map_ids: frozenset[int]) -> int:
    """Take the tc programs that use these maps off every device of the calling thread's namespace; off how many."""
    programs = (*NETWORK_PROGRAMS, *WIREGUARD_PROGRAMS)
    with RouteSocket() as route, Hooks(Programs("", {}), programs) as hooks:
        found = devices.read(route)
        users = {f.ifindex for f in hooks.attached(d.ifindex for d in found) if _uses(f.program_id, map_ids)}
        return len(detach_tc(route, hooks, [d for d in found if d.ifindex in users]))


def _uses(program: int, map_ids: frozenset[int]) -> bool:
    try:
        fd = bpf_programs.program_by_id(program)
    except bpf.NoEntry:
        return False
    try:
        return not map_ids.isdisjoint(bpf_programs.program_info(fd).map_ids)
    finally:
        os.close(fd)

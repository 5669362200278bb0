"""BIG TCP: packets of more than 64 KiB between a TCP socket and the wire, so that fewer go through the stack.

Both sides of pods' links and the node's devices are raised to what all of them can take. Two things are left out on
purpose, as Linux (up to 6.18 at least) takes the jumbo option of an IPv6 packet it forwards for a part of each segment,
and finds segments of full size too long: IPv6 that comes in by the node's devices is not put together to more than
before, and pods' IPv6 MTU is eight bytes less than their links', which they also tell whomever they speak to.
"""

from __future__ import annotations

import asyncio
import os
import threading
from collections.abc import Iterable, Mapping, Sequence
from contextlib import suppress
from pathlib import Path

import msgspec

from agent import log as logs
from agent.config import Config
from agent.datapath import devices
from agent.datapath.changes import Changes
from agent.endpoints import links, namespaces
from agent.endpoints.links import Limits
from agent.endpoints.netlink import NetlinkError, RouteSocket, is_gone
from agent.endpoints.wiring import opened, route_in, write_sysctls
from agent.objects import Interface

USUAL, SIZE = 65536, 196608
"""Bytes: the kernel's limit, and ours, beyond which little is gained."""
JUMBO_BYTES, MIN_MTU = 8, 1280
SYNC_S = 0.5
GROUPS = 0x1 | 0x10 | 0x100 | 0x40 | 0x400  # linux/rtnetlink.h RTMGRP_LINK, _IPV4_IFADDR, _IPV6_IFADDR, …_ROUTE

log = logs.get("bigtcp")


class _Saved(msgspec.Struct, forbid_unknown_fields=True):
    """`netns`: inode of the namespace. `size`: what was set; `before`: device name → its four limits (links.Limits)."""

    netns: int
    size: int
    before: dict[str, tuple[int | None, ...]]


class BigTcp:
    """In the network namespace of the thread that makes this. `saved`: file for what was before. `problems`: what is
    not as the settings say, one sentence each. `size`: of packets on pods' links; USUAL: as ever.
    """

    def __init__(self, config: Config, node_addresses: Sequence[bytes], saved: Path) -> None:
        self.problems: list[str] = []
        self.size = USUAL
        self._wanted = config.big_tcp
        self._devices = config.devices or (devices.AUTO,)
        self._node_addresses = tuple(node_addresses)
        self._saved = saved
        self._pods: dict[int, Interface] = {}
        self._lock = threading.Lock()
        self._node = namespaces.open_current()
        self._changes = Changes(GROUPS, lambda kind, body: devices.may_matter(kind, body, ()))

    def close(self) -> None:
        """Limits stay."""
        self._changes.close()
        os.close(self._node)

    # ---- an agent's

    async def start(self, pods: Iterable[Interface]) -> None:
        """Bring all there is to what the settings say, or, where they say no, to what was before. `pods`: those that
        run already."""
        if self._wanted or self._saved.exists():
            await asyncio.to_thread(self._start, list(pods))

    async def raised(self, pod: Interface) -> None:
        """A pod's link has come up: when it does, the kernel puts its IPv6 MTU to the link's."""
        if self._wanted:
            await asyncio.to_thread(self.apply, pod)

    async def run(self) -> None:
        """Devices come and go."""
        if not self._wanted:
            return
        async with self._changes:
            while True:
                await self._changes.wait()
                await asyncio.to_thread(self.apply_devices)
                await asyncio.sleep(SYNC_S)

    def _start(self, pods: Sequence[Interface]) -> None:
        if self._wanted:
            self.apply_devices()
        for pod in pods:
            self.apply(pod)
        if not self._wanted:
            with namespaces.entered(self._node):
                restore(self._saved)

    # ---- blocking

    def apply(self, pod: Interface) -> None:
        """Both sides of a pod's link are as `size` says. What fails is a problem, of which pods go on all the same."""
        with self._lock:
            self._pods[pod.index] = pod
            self._apply(pod)

    def apply_devices(self) -> None:
        """The node's devices are raised as far as all of them go, and pods' links as far."""
        with self._lock:
            try:
                with namespaces.entered(self._node), RouteSocket() as route:
                    size, problems = self._apply_devices(route)
            except OSError as error:  # such as a device that is gone meanwhile: that is followed
                size, problems = self.size, [f"BIG TCP is as it was: {error.strerror or error}"]
            for problem in problems:
                if problem not in self.problems:
                    log.warning("not as the settings say", problem=problem)
            self.problems = problems
            if size != self.size:
                self.size = size
                log.info("BIG TCP", bytes=size)
                for pod in list(self._pods.values()):
                    self._apply(pod)

    def _apply_devices(self, route: RouteSocket) -> tuple[int, list[str]]:
        chosen, _ = devices.choose(self._devices, devices.read(route), self._node_addresses)
        replies = [route.request(links.get_link_by_index(device.ifindex))[0] for device in chosen]
        found = {device.name: links.read_limits(reply) for device, reply in zip(chosen, replies, strict=True)}
        size, problems = common(found)
        if size > USUAL:
            _save(self._saved, size, found)
        for device in chosen:
            wanted = of_device(found[device.name], size)
            if wanted != Limits():
                route.request(links.set_limits(device.ifindex, wanted))
        return size, problems

    def _apply(self, pod: Interface) -> None:
        try:
            with opened(pod.netns) as netns, route_in(self._node) as route:
                _set_pod(route, netns, pod, self.size)
        except FileNotFoundError:  # it is gone
            self._pods.pop(pod.index, None)
        except OSError as error:
            if is_gone(error):
                self._pods.pop(pod.index, None)
            else:
                log.warning("a pod has no BIG TCP", interface=pod.name, reason=str(error))


def lower(pod: Interface) -> None:
    """Back to the kernel's limits, of a link in the calling thread's network namespace."""
    with opened(pod.netns) as netns, RouteSocket() as route:
        _set_pod(route, netns, pod, USUAL)


def restore(saved: Path) -> None:
    """Put limits of the node's devices back, where they are still as we left them. Nothing in another namespace."""
    try:
        record = msgspec.json.decode(saved.read_bytes(), type=_Saved)
    except FileNotFoundError:
        return
    except msgspec.MsgspecError:
        saved.unlink()
        return
    if record.netns == _inode():
        with RouteSocket() as route:
            for name, before in record.before.items():
                with suppress(NetlinkError):  # the device is gone
                    reply = route.request(links.get_link(name))[0]
                    wanted = put_back(links.read_limits(reply), Limits(*before), record.size)
                    route.request(links.set_limits(links.read_link(reply).ifindex, wanted))
    saved.unlink()


# ---- which limits (pure) -------------------------------------------------------------------------------------


def common(found: Mapping[str, Limits]) -> tuple[int, list[str]]:
    """The size that all devices take, by their names; and what keeps it small, one sentence each. What a device cannot
    take would be cut up in software, which costs more than was gained."""
    size, problems = SIZE, []
    for name, limits in sorted(found.items()):
        if limits.most is None or limits.gso is None:
            problems.append(f"there is no BIG TCP: this kernel does not say what {name} takes (Linux 5.19 does)")
            return USUAL, problems
        most = limits.most if limits.gso >= USUAL else limits.gso
        if most <= USUAL:
            problems.append(f"there is no BIG TCP: device {name} takes packets of at most {most} bytes")
        size = min(size, most)
    if any(limits.gso_ipv4 is None for limits in found.values()):
        problems.append("there is BIG TCP for IPv6 only: this kernel has none for IPv4 (Linux 6.3 has)")
    return max(size, USUAL), problems


def of_device(found: Limits, size: int) -> Limits:
    """What is to be set. See above for what is not."""
    return Limits(
        gso=_changed(found.gso, size), gso_ipv4=_changed(found.gso_ipv4, size), gro_ipv4=_changed(found.gro_ipv4, size)
    )


def of_pod(found: Limits, size: int, ipv6: bool) -> Limits:
    """The same of a side of a pod's link."""
    general = size if ipv6 else USUAL
    gso, gro = _changed(found.gso, general), _changed(found.gro, general)
    return Limits(gso, gro, _of_ipv4(found.gso_ipv4, gso, size), _of_ipv4(found.gro_ipv4, gro, size))


def put_back(found: Limits, before: Limits, size: int) -> Limits:
    """What is to be set where a limit is still `size`."""
    return Limits(*(then if now == size else None for now, then in zip(found[:4], before[:4], strict=True)))


def _of_ipv4(found: int | None, general: int | None, wanted: int) -> int | None:
    """A general limit that becomes small takes this one along."""
    if general is not None and general <= USUAL and found is not None:
        return wanted
    return _changed(found, wanted)


def _changed(found: int | None, wanted: int) -> int | None:
    """A limit that somebody made smaller than the kernel's stays."""
    return wanted if found is not None and found >= USUAL and found != wanted else None


# ---- effects -------------------------------------------------------------------------------------------------


def _set_pod(route: RouteSocket, netns: int, pod: Interface, size: int) -> None:
    reply = route.request(links.get_link_by_index(pod.index))[0]
    host = links.read_link(reply)
    if host.name != pod.name:
        return
    with route_in(netns) as inside:
        other = inside.request(links.get_link_by_index(host.peer))[0]
        peer = links.read_link(other)
        ipv6 = size > USUAL and peer.mtu - JUMBO_BYTES >= MIN_MTU
        if ipv6:
            _set_ipv6_mtu(netns, peer.name, peer.mtu, peer.mtu - JUMBO_BYTES)
        for socket_, index, found in ((route, pod.index, reply), (inside, host.peer, other)):
            wanted = of_pod(links.read_limits(found), size, ipv6)
            if wanted != Limits():
                socket_.request(links.set_limits(index, wanted))
        if not ipv6:
            _set_ipv6_mtu(netns, peer.name, peer.mtu - JUMBO_BYTES, peer.mtu)


def _set_ipv6_mtu(netns: int, name: str, before: int, after: int) -> None:
    key = f"net/ipv6/conf/{name}/mtu"
    with namespaces.entered(netns), suppress(FileNotFoundError):  # it has no IPv6
        if Path("/proc/sys", key).read_text().strip() == str(before):
            write_sysctls({key: str(after)})


def _save(saved: Path, size: int, found: Mapping[str, Limits]) -> None:
    """Values saved earlier win: they are from before the first agent."""
    before = {name: tuple(limits[:4]) for name, limits in found.items()}
    with suppress(FileNotFoundError, msgspec.MsgspecError):
        earlier = msgspec.json.decode(saved.read_bytes(), type=_Saved)
        if earlier.netns == _inode():
            before |= earlier.before
    aside = saved.with_suffix(".new")
    aside.write_bytes(msgspec.json.encode(_Saved(_inode(), size, before)))
    aside.replace(saved)


def _inode() -> int:
    return Path(namespaces.CURRENT).stat().st_ino

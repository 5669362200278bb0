"""The XDP program on the node's devices, each held by a pinned link.

A link keeps the program attached when the agent ends and goes with its pin, so it can be taken off from anywhere; it is
replaced without a gap, and neither takes another's place nor lets others take this one.
"""

from __future__ import annotations

import errno
import os
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from agent.datapath import bpf, bpf_programs
from agent.datapath.devices import Device
from agent.datapath.pins import Pins
from agent.datapath.programs import AttachType

# linux/if_link.h
_SKB_MODE, _DRV_MODE = 1 << 1, 1 << 2
_ATTACHED_DRV = 1
_TAKEN = (errno.EBUSY, errno.EEXIST)

_MODES = {"native": (_DRV_MODE,), "generic": (_SKB_MODE,), "auto": (_DRV_MODE, _SKB_MODE)}
"""What the setting lets us try, in this order."""


class XdpRefused(Exception):
    """The program is not attached; one sentence says why and what to do."""


class Xdp:
    """`program`: descriptor of the program; `mode`: the setting."""

    def __init__(self, pins: Pins, program: int, mode: str) -> None:
        self._folder = pins.links
        self._program = program
        self._id = bpf_programs.program_info(program).id
        self._mode = mode

    def attach(self, device: Device) -> None:
        """Attach, or take an earlier program's place. Raises XdpRefused."""
        path = _path(self._folder, device.ifindex)
        with _open(path) as link:
            if link is not None and self._replace(link, device):
                return
        detach(self._folder, device.ifindex)
        path.parent.mkdir(parents=True, exist_ok=True)
        link = self._create(device)
        try:
            bpf.pin(link, path)
        finally:
            os.close(link)

    def is_attached(self, device: Device) -> bool:
        """The very program, in a mode that is wanted."""
        return device.xdp_program == self._id and _mode(device) in self._modes(device)

    def _modes(self, device: Device) -> tuple[int, ...]:
        """What native XDP sends out of a veth is lost unless its other end has a program too: only whoever knows that
        it has asks for it by name."""
        return _MODES["generic" if self._mode == "auto" and device.veth else self._mode]

    def _replace(self, link: int, device: Device) -> bool:
        """False where the link is of another device, or in a mode that is not wanted (any more)."""
        info = bpf_programs.link_info(link)
        here = (device.ifindex, device.xdp_program) == (info.ifindex, info.program_id)
        if not here or _mode(device) not in self._modes(device):
            return False
        if info.program_id != self._id:
            bpf_programs.link_update(link, self._program)
        return True

    def _create(self, device: Device) -> int:
        refusal: OSError | None = None
        for mode in self._modes(device):
            try:
                return bpf_programs.link_create(self._program, device.ifindex, AttachType.XDP, mode)
            except bpf.BpfError as error:
                if error.errno in _TAKEN:
                    raise XdpRefused(
                        f"device {device.name} has an XDP program of somebody else, which is left there: take it off "
                        f"(ip link set {device.name} xdp off) or do without (--xdp off)"
                    ) from None
                refusal = error
        assert refusal is not None
        reason = os.strerror(refusal.errno or 0)
        instead = "; --xdp auto takes the generic hook instead" if self._mode == "native" else ""
        raise XdpRefused(f"device {device.name} does not take XDP ({self._mode}: {reason}){instead}")


def detach(folder: Path, ifindex: int) -> bool:
    """Take this instance's program off; whether there was one."""
    path = _path(folder, ifindex)
    with _open(path) as link:
        if link is None:
            return False
        with suppress(OSError):  # its device is gone
            bpf_programs.link_detach(link)
    path.unlink()
    return True


def attached(folder: Path) -> list[int]:
    """Interfaces with a link of this instance, of whichever namespace."""
    return sorted(int(path.name.removeprefix("xdp-")) for path in folder.glob("xdp-*"))


def _mode(device: Device) -> int:
    return _DRV_MODE if device.xdp == _ATTACHED_DRV else _SKB_MODE


def _path(folder: Path, ifindex: int) -> Path:
    return folder / f"xdp-{ifindex}"


@contextmanager
def _open(path: Path) -> Iterator[int | None]:
    try:
        link = bpf.open_pinned(path)
    except bpf.NoEntry:
        yield None
        return
    try:
        yield link
    finally:
        os.close(link)

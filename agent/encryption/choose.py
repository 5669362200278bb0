"""Which WireGuard a node uses: the kernel's, or a program's."""

from __future__ import annotations

import shutil
from pathlib import Path

import msgspec

from agent.config import Config
from agent.encryption import userspace
from agent.encryption.device import Device
from agent.encryption.kernel import KernelDevice
from agent.encryption.link import KIND, NodeLink
from agent.encryption.userspace import UserspaceDevice
from agent.endpoints.netlink import NetlinkError
from agent.helpers import keeping
from agent.helpers import order as orders
from agent.helpers.names import Name
from agent.instance import Instance

TUN = Path("/dev/net/tun")


class NoWireGuard(Exception):
    """There is none that can be used; the message says what to do."""


class Choice(msgspec.Struct, frozen=True):
    """`program`: path of the one to run; empty: the kernel's. `why`: where it is not the first choice."""

    program: str
    why: str = ""


def choose(setting: str, kernel: str, program: str, missing: str) -> Choice:
    """`setting`: auto | kernel | userspace; `kernel`: why the kernel's cannot be used, empty where it can; `program`:
    the one found; `missing`: why none can be used, empty where it can. Pure. Raises NoWireGuard."""
    if setting != "userspace" and not kernel:
        return Choice("")
    if setting == "kernel":
        raise NoWireGuard(f"{kernel}: load the kernel's module (modprobe wireguard), or set --wireguard=auto")
    if missing:
        raise NoWireGuard(f"{kernel}, and {missing}" if setting == "auto" else missing)
    return Choice(program, kernel and f"{kernel}: {program} is used")


def open_device(config: Config, instance: Instance, name: str) -> tuple[Device, str]:
    """The device to use, and why it is not the first choice. One of the other sort under its name is removed: a node
    has one. In the calling thread's network namespace; blocks. Raises NoWireGuard."""
    named = config.wireguard_program or userspace.PROGRAM
    kernel = "" if config.wireguard == "userspace" else kernel_problem(name)
    elsewhere = config.helpers == "containers"
    choice = choose(config.wireguard, kernel, shutil.which(named) or "", program_problem(named, elsewhere))
    if not (choice.program and elsewhere):
        orders.withdraw(instance.order(Name.WIREGUARD))
    with NodeLink(name) as link:
        found = link.find()
        if found is not None and (found.kind == KIND) is bool(choice.program):
            userspace.end(name)
            link.delete()
    if not choice.program:
        return KernelDevice(name), choice.why
    words, socket = userspace.command(choice.program, name), userspace.socket_of(name)
    kept = keeping.wireguard(config, instance, words, socket, (Path(choice.program), TUN))
    log = f"the log of `gatehouse helper {Name.WIREGUARD}`" if elsewhere else str(instance.wireguard_log)
    return UserspaceDevice(name, kept, log), choice.why


def kernel_problem(name: str) -> str:
    """Why the kernel's WireGuard cannot be used here; empty where it can. Leaves a device of that name as it is."""
    with NodeLink(name) as link:
        found = link.find()
        if found is not None and found.kind == KIND:
            return ""
        with NodeLink(f"{name[:13]}-p") as probe:  # the name may be taken by a program's
            try:
                probe.add()
                probe.delete()
            except NetlinkError as error:
                return f"the kernel makes no WireGuard device ({error.strerror})"
    return ""


def program_problem(program: str, elsewhere: bool = False) -> str:
    """Why a program cannot make devices here; empty where it can. `elsewhere`: it runs in a container of its own, with
    the same image, and what it makes devices of is there."""
    if not shutil.which(program):
        return f"no program {program} is found: install it (Debian: wireguard-go), or say where by --wireguard-program"
    if not elsewhere and not TUN.exists():
        return f"{program} cannot make a device without {TUN}: load the kernel's module (modprobe tun)"
    return ""

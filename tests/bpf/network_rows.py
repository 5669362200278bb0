"""Rows for the node's devices, as table.py has them for pods: a packet at a device and all that must come of it."""

from __future__ import annotations

import errno
import time
from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any

from frames import L4, Family, Icmp, Packet, error, host_mac, pod_mac
from kernel import TOWARDS_NODE, Kernel
from map_content import INTERFACES, SECONDS
from network_node import OTHERS_MAC
from table import Change, Events, check_events, drop_event

from agent.datapath import bpf, testrun
from agent.datapath.testrun import Action, XdpAction

TOLERANCE_S = 4
"""Less than half of what any two time-outs differ by."""


def sums(kernel: Kernel) -> bool:
    """Whether the kernel can be asked if the sum of a packet stays right (testrun.run_summed)."""
    try:
        kernel.network.run(testrun.run_summed, kernel.programs["from_network"], bytes(60), ifindex=INTERFACES["eth"])
    except bpf.BpfError as error:
        if error.errno != errno.EINVAL:
            raise
        return False
    return True


@dataclass(frozen=True)
class Row:
    """`out`: what is sent or passed on, as it is then. `counted`: none for packets that are no concern of ours.

    Packets come as if the device had summed them, where the kernel has a test for what becomes of the sum. Who gets an
    answer made of his packet does not look at it, and who got no checksum does not either.
    """

    device: str
    packet: Packet
    program: str
    action: Action
    out: Packet | Callable[[Family], Packet] | None = None
    counted: str = "NONE"
    events: Events = ()
    tally: str = ""
    via: int = 0
    mark: str = ""

    def __call__(self, kernel: Kernel) -> None:
        summed = self.out is not None and not callable(self.out) and not self.packet.l4.zero_checksum and sums(kernel)
        mark = kernel.abi.constants[f"MARK_{self.mark}"] if self.mark else 0
        outcome = kernel.send(self.device, self.packet, self.program, self.via, summed, mark)
        summary = f"{self}\ngave {outcome}"
        assert outcome.drops == ({f"DROP_{self.counted}": 1} if self.counted else {}), summary
        assert outcome.action == self.action, summary
        if self.out:
            macs = host_mac(self.device), pod_mac(self.device)
            bounced = self.counted not in ("", "NONE")
            towards = (self.program in TOWARDS_NODE) != bounced
            out = self.out if isinstance(self.out, Packet) else self.out(kernel.family)
            assert outcome.frame == out.encode(kernel.family, *(macs if towards else reversed(macs))), summary
        assert outcome.tallies == ({f"TALLY_{self.tally}": 1} if self.tally else {}), summary
        check_events(kernel, self.device, self.program, outcome.events, self.events, summary)


def ignored(packet: Packet, device: str = "eth", program: str = "from_network", via: int = 0) -> Row:
    """It goes on as it came."""
    return Row(device, packet, program, Action.OK, packet, "", via=via)


def comes_in(packet: Packet, out: Packet, device: str = "eth") -> Row:
    """From outside to the stack, translated."""
    return Row(device, packet, "from_network", Action.OK, out)


def goes_on(packet: Packet, out: Packet, device: str = "eth", mark: str = "") -> Row:
    """From outside to another machine; a hop is taken."""
    return Row(device, packet, "from_network", Action.REDIRECT, replace(out, ttl=packet.ttl - 1), mark=mark)


def goes_out(packet: Packet, out: Packet, device: str = "eth", via: int = INTERFACES["b"]) -> Row:
    """From the stack out of a device, translated. `via`: by which it came to the node; 0: it is the node's own."""
    return Row(device, packet, "to_network", Action.OK, out, via=via)


def stopped(
    packet: Packet,
    reason: str,
    program: str = "from_network",
    tally: str = "",
    via: int = 0,
    device: str = "eth",
    **members: Any,
) -> Row:
    """Dropped, and an event says why."""
    return Row(device, packet, program, Action.SHOT, None, reason, drop_event(reason, members), tally, via)


def told(packet: Packet, reason: str, kind: tuple[int, int], code: tuple[int, int], mtu: int = 0) -> Row:
    """Dropped, and its sender gets an ICMP error from the address that was asked."""

    def answer(family: Family) -> Packet:
        headers = len(replace(packet, l4=L4(packet.l4.protocol, data=b"", size=0)).encode_ip(family))
        message = error(packet.destination, packet.source, packet, kind, code, headers + 8)
        assert isinstance(message.l4, Icmp)
        return replace(message, identification=0, l4=replace(message.l4, mtu=mtu))

    return Row("eth", packet, "from_network", Action.REDIRECT, answer, reason, drop_event(reason, {}))


@dataclass(frozen=True)
class XdpRow:
    """`out`: what is sent, None: all that tc gets as it came."""

    packet: Packet
    action: XdpAction
    out: Packet | None
    device: str
    by: str = ""
    macs: tuple[bytes, bytes] | None = None

    def __call__(self, kernel: Kernel) -> None:
        macs = host_mac(self.device), pod_mac(self.device)
        frame = self.packet.encode(kernel.family, *(self.macs or macs))
        before = kernel.counters("tallies", "tally")["TALLY_XDP_FORWARDED"]
        result = kernel.network.run(
            testrun.run_xdp, kernel.programs["xdp_network"], frame, ifindex=INTERFACES[self.device]
        )
        forwarded = kernel.counters("tallies", "tally")["TALLY_XDP_FORWARDED"] - before
        summary = f"{self}\ngave {result}"
        assert result.action == self.action, summary
        assert forwarded == (self.out is not None), summary
        if self.out:
            frame = self.out.encode(kernel.family, bytes.fromhex(OTHERS_MAC.replace(":", "")), host_mac(self.by))
        assert result.packet == frame, summary


def by_xdp(packet: Packet, out: Packet, device: str = "eth", by: str = "eth") -> XdpRow:
    """Sent on."""
    action = XdpAction.TX if device == by else XdpAction.REDIRECT
    return XdpRow(packet, action, replace(out, ttl=packet.ttl - 1), device, by)


def left_to_tc(packet: Packet, device: str = "eth", macs: tuple[bytes, bytes] | None = None) -> XdpRow:
    return XdpRow(packet, XdpAction.PASS, None, device, macs=macs)


def nat(packet: Packet, **members: Any) -> Change:
    """The entry `packet` meets has these values; with none given, there is no entry. `flags` are names, `lasts` is how
    many seconds it will if no more packets come, give or take a few."""

    def check(kernel: Kernel) -> None:
        found = kernel.nat(packet)
        if not members:
            assert found is None, found
            return
        assert found is not None, f"no entry for {packet}"
        for name, value in members.items():
            if name == "lasts":
                assert abs((found.expires_ns - time.monotonic_ns()) / SECONDS - value) < TOLERANCE_S, found
                continue
            wanted = sum(kernel.abi.constants[f"NAT_{flag}"] for flag in value.split()) if name == "flags" else value
            assert getattr(found, name) == wanted, (name, found)

    return check


def edit_nat(packet: Packet, **values: int) -> Change:
    """Change members of the entry `packet` meets."""

    def change(kernel: Kernel) -> None:
        found = kernel.nat(packet)
        assert found is not None, f"no entry for {packet}"
        kernel.maps["nat"].update(kernel.key(packet), kernel.pack("nat", **(found._asdict() | values)))

    return change


def mark_gone(packet: Packet) -> Change:
    """As user space does for a backend that is no more."""
    return lambda kernel: edit_nat(packet, flags=kernel.nat(packet).flags | kernel.abi.constants.NAT_GONE)(kernel)


def expire(*packets: Packet) -> Change:
    def change(kernel: Kernel) -> None:
        for packet in packets:
            edit_nat(packet, expires_ns=1)(kernel)

    return change

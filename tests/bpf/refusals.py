"""Rows of packets that are refused: the sender is told at once, by the device the packet came from."""

from __future__ import annotations

from dataclasses import dataclass, replace

from frames import L4, TCP, Family, Packet, error, host_mac, pod_mac
from kernel import Kernel
from table import Events, check_events, drop_event

from agent.datapath.testrun import Action


@dataclass(frozen=True)
class Refusal:
    """An RST or port unreachable comes back from the address that was asked."""

    device: str
    packet: Packet
    program: str
    reason: str
    events: Events

    def __call__(self, kernel: Kernel) -> None:
        outcome = kernel.send(self.device, self.packet, self.program)
        summary = f"{self}\ngave {outcome}"
        assert outcome.drops == {f"DROP_{self.reason}": 1}, summary
        assert outcome.action == Action.REDIRECT, summary
        answer = replace(answer_to(self.packet, kernel.family), identification=0)
        assert outcome.frame == answer.encode(kernel.family, pod_mac(self.device), host_mac(self.device)), summary
        check_events(kernel, self.device, self.program, outcome.events, self.events, summary)


def refused(
    device: str, packet: Packet, reason: str = "NO_BACKEND", program: str = "from_pod", **members: object
) -> Refusal:
    """`members` of the event that says so."""
    told = {"refused": 1} if reason == "PROXY_UNREADY" else {}
    return Refusal(device, packet, program, reason, drop_event(reason, told | members))


def answer_to(packet: Packet, family: Family) -> Packet:
    """RFC 9293, 3.10.7.1; or an ICMP error that quotes up to 8 bytes of the transport header."""
    l4, bare = packet.l4, replace(packet, options=b"", extensions=())
    if l4.protocol != TCP or packet.encode_ip(family) != bare.encode_ip(family):
        return error(packet.destination, packet.source, packet, quoted_size=_quoted_size(packet, family))
    numbers = ("R", l4.acknowledged, 0) if "A" in l4.flags else ("RA", 0, l4.sequence + ("S" in l4.flags))
    flags, sequence, acknowledged = numbers
    reset = L4(
        TCP, l4.destination_port, l4.source_port, flags, b"", sequence=sequence, acknowledged=acknowledged, window=0
    )
    return Packet(packet.destination, packet.source, reset)


def _quoted_size(packet: Packet, family: Family) -> int:
    payload = packet.fragment[2] if packet.fragment else len(packet.l4.encode(family, b""))
    return len(packet.encode_ip(family)) - payload + 8

"""Headers that say of a packet that it is longer than they can say, as BIG TCP writes them. Only kernels make
such packets; that they pass is tested with real traffic (tests/netns/test_big_tcp.py), as no kernel runs programs on
test data of that size. Here: nobody else's claim is believed."""

from __future__ import annotations

import struct
from dataclasses import replace

import pytest
from frames import L4, TCP, UDP, Packet
from kernel import ANY, CLOSED, Kernel

from agent.datapath.testrun import Action

HOP_BY_HOP, JUMBO = 0, 0xC2
DATA = bytes(1000)


def jumbo(payload: int, kind: int = JUMBO, size: int = 4, length: int = 0, more: bytes = b"") -> tuple[int, bytes]:
    return HOP_BY_HOP, struct.pack("!BBBI", length, kind, size, payload) + more


WHOLE = 8 + 20 + len(DATA)
"""Payload of the IPv6 packet, as it really is."""
PAD = b"\x01\x06" + bytes(6)  # PadN of eight bytes

CLAIMS = {
    "0": ((), 0),
    "true": ((jumbo(WHOLE),), 0),
    "big": ((jumbo(100_000),), 0),
    "least": ((jumbo(65_536),), 0),
    "nothing": ((jumbo(0),), 0),
    "wraps": ((jumbo(0xFFFFFFFF),), 0),
    "padded": ((jumbo(WHOLE + 8, length=1, more=PAD),), 0),
    "two": ((jumbo(100_000), jumbo(100_000)), 0),
    "another option": ((jumbo(WHOLE, kind=5),), 0),
    "size": ((jumbo(WHOLE, size=2),), 0),
    "short": ((), 7),
}
"""What stands between the headers (of IPv6), and the length the IP header says."""


@pytest.mark.parametrize("segment", [0, 500])
@pytest.mark.parametrize("claim", CLAIMS)
@pytest.mark.parametrize("protocol", [TCP, UDP])
@pytest.mark.parametrize("program", ["from_pod", "to_pod"])
def test_small_packets_that_claim_to_be_big(
    kernel: Kernel, program: str, protocol: int, claim: str, segment: int
) -> None:
    extensions, length = CLAIMS[claim]
    if kernel.family == 4:
        extensions = ()
    ends = ("a", "b") if program == "from_pod" else ("world", "a")
    packet = Packet(*ends, L4(protocol, 1000, 80, "S" if protocol == TCP else "", data=DATA))
    forged = replace(packet, extensions=extensions, length=length)
    for policy in (CLOSED, None):
        if policy:
            kernel.policy("a", "ingress" if program == "to_pod" else "egress", ANY, policy)
        outcome = kernel.send("a", forged, program, gso_size=segment)
        assert outcome.drops == {"DROP_MALFORMED": 1}, outcome
        assert outcome.action == Action.SHOT
    assert kernel.entry(packet) is None


@pytest.mark.parametrize("claim", ["true", "another option"])
def test_a_jumbo_option_in_an_honest_header_is_an_option_like_any_other(kernel: Kernel, claim: str) -> None:
    """The receiver drops the packet (RFC 2675, 3); policy sees the ports that stand behind."""
    if kernel.family == 4:
        return
    extensions, _ = CLAIMS[claim]
    packet = Packet("a", "b", L4(TCP, 1000, 80, "S", data=DATA), extensions=extensions)
    kernel.policy("b", "ingress", ANY, CLOSED)
    outcome = kernel.send("a", packet, "from_pod", gso_size=500)
    assert outcome.drops == {"DROP_POLICY_INGRESS": 1}, outcome

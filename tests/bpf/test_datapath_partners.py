"""agent.flows.pairs is the datapath's partner_key in Python: both are asked about the same flows."""

from __future__ import annotations

import asyncio
import time

import pytest
from frames import TCP, UDP, Packet, echo, tcp, udp
from kernel import Kernel

from agent.flows.pairs import Pairs
from agent.flows.sweeper import Sweep, Sweeper

PACKETS: dict[str, Packet] = {
    "TCP between pods": tcp("a", "b", 1000, 80, "S"),
    "UDP to the world": udp("a", "world", 1000, 53),
    "echo": echo("a", "b"),
    "service": tcp("a", "web", 1001, 80, "S"),
    "service over UDP": udp("a", "dns", 1002, 53),
    "its own service": tcp("b", "web", 1003, 80, "S"),
}
SAME = (
    "rule_egress", "rule_ingress", "source", "destination", "service", "source_identity", "destination_identity",
    "ifindex", "source_port_be", "destination_port_be", "service_port_be", "verdict", "protocol", "egress_judged",
    "ingress_judged", "hook",
)  # fmt: skip


@pytest.mark.parametrize("packet", PACKETS.values(), ids=PACKETS)
def test_python_and_the_datapath_agree_on_partners_and_ends(kernel: Kernel, packet: Packet) -> None:
    kernel.service("web", 80, [("b", 8080)], TCP)
    kernel.service("dns", 53, [("b", 5353)], UDP)
    outcome = kernel.send(packet.source, packet)
    (new,) = outcome.events
    assert new.type == kernel.abi.constants.EVENT_NEW
    tuples, entries, pairs = kernel.abi.records["tuple"], kernel.abi.records["conntrack"], Pairs(kernel.abi)
    found = {key: entries.unpack(value) for key, value in kernel.maps["conntrack"].items()}
    first, second = found
    assert pairs.partner(tuples.unpack(first), found[first]) == second
    assert pairs.partner(tuples.unpack(second), found[second]) == first

    reported: list[bytes] = []
    later_ns = time.monotonic_ns() + 10**15
    result = asyncio.run(_sweep(kernel, reported, later_ns))
    assert (result.expired, result.ended, result.entries) == (2, 1, 0)
    end = kernel.abi.records["event"].unpack(b"".join(reported))
    assert {name: getattr(end, name) for name in SAME} == {name: getattr(new, name) for name in SAME}
    assert (end.type, end.packets) == (kernel.abi.constants.EVENT_END, 1)


async def _sweep(kernel: Kernel, reported: list[bytes], now_ns: int) -> Sweep:
    return await Sweeper(kernel.abi, kernel.maps["conntrack"], reported.append, now_ns=lambda: now_ns).sweep()

"""ARP and neighbour discovery between a pod on a veth that another CNI plugin made, and its node: what passes, and that
nothing does for any other pod."""

from __future__ import annotations

import struct
from collections.abc import Callable
from dataclasses import dataclass, replace

import pytest
from frames import ICMPV6, L4, Family, Packet, host_mac, icmp, pod_mac, raw_address, udp
from kernel import ANY, CLOSED, INTERFACES, Kernel

from agent.datapath.testrun import Action

REQUEST, REPLY = 1, 2
SOLICITATION, ADVERTISEMENT = 135, 136
BROADCAST = b"\xff" * 6
NODE = 0
"""Sent by the node itself: it came in by no interface."""
UPLINK = 7


def arp(operation: int, sender: str, target: str, frame_sizes: int = 0x0604, hardware: int = 1) -> bytes:
    body = struct.pack("!HHHH", hardware, 0x0800, frame_sizes, operation)
    body += pod_mac("a") + raw_address(sender, 4) + bytes(6) + raw_address(target, 4)
    return BROADCAST + pod_mac("a") + struct.pack("!H", 0x0806) + body


def discovery(kind: int, source: str, destination: str, target: str, hops: int = 255, code: int = 0) -> Packet:
    body = struct.pack("!BBHI", kind, code, 0, 0) + raw_address(target, 6)
    return Packet(source, destination, L4(ICMPV6, data=body), ttl=hops)


@dataclass(frozen=True)
class Row:
    name: str
    frame: bytes | Packet
    passes: bool
    program: str = "from_pod"
    via: int = NODE

    def bytes(self) -> bytes:
        return self.frame if isinstance(self.frame, bytes) else self.frame.encode(6, host_mac("a"), pod_mac("a"))


SOLICIT = discovery(SOLICITATION, "a", "multicast", "link-local")
ADVERTISE = discovery(ADVERTISEMENT, "a", "node", "a")
ROWS: dict[Family, list[Row]] = {
    4: [
        Row("the pod asks for its gateway", arp(REQUEST, "a", "node"), True),
        Row("the pod answers", arp(REPLY, "a", "node"), True),
        Row("the pod announces itself", arp(REQUEST, "a", "a"), True),
        Row("the pod says it is another", arp(REPLY, "b", "node"), False),
        Row("the pod says it is the node", arp(REQUEST, "node", "world"), False),
        Row("the pod says it is nobody", arp(REQUEST, "none", "node"), False),
        Row("other hardware", arp(REQUEST, "a", "node", hardware=6), False),
        Row("other sizes", arp(REQUEST, "a", "node", 0x0810), False),
        Row("cut off", arp(REQUEST, "a", "node")[:-1], False),
        Row("the node asks for the pod", arp(REQUEST, "node", "a"), True, "to_pod"),
        Row("the node answers", arp(REPLY, "link-local", "a"), True, "to_pod"),
        Row("somebody behind the node asks", arp(REQUEST, "node", "a"), False, "to_pod", UPLINK),
    ],
    6: [
        Row("the pod asks for its gateway", SOLICIT, True),
        Row("by its link-local address", replace(SOLICIT, source="link-local"), True),
        Row("in somebody else's name", replace(SOLICIT, source="b"), False),
        Row("in nobody's name", replace(SOLICIT, source="none"), False),
        Row("from behind a router", replace(SOLICIT, ttl=254), False),
        Row("with another code", discovery(SOLICITATION, "a", "multicast", "link-local", code=1), False),
        Row("cut off", replace(SOLICIT, l4=L4(ICMPV6, data=b"\x87" + bytes(22))), False),
        Row("the pod answers", ADVERTISE, True),
        Row("about its link-local address", discovery(ADVERTISEMENT, "link-local", "node", "link-local"), True),
        Row("about somebody else's", discovery(ADVERTISEMENT, "a", "node", "b"), False),
        Row("about the node's", discovery(ADVERTISEMENT, "a", "node", "node"), False),
        Row("asks for routers", replace(icmp("a", "multicast", (0, 133)), ttl=255), False),
        Row("says it is a router", replace(icmp("link-local", "multicast", (0, 134)), ttl=255), False),
        Row("redirects", replace(icmp("link-local", "node", (0, 137)), ttl=255), False),
        Row("tells its groups", replace(icmp("link-local", "multicast", (0, 143)), ttl=255), False),
        Row("multicast", Packet("a", "multicast", L4(17, 5353, 5353), ttl=255), False),
        Row("behind an extension header", replace(SOLICIT, extensions=((60, bytes([0, 1, 4, 0, 0, 0, 0])),)), False),
        Row("the node asks for the pod", discovery(SOLICITATION, "node", "multicast", "a"), True, "to_pod"),
        Row("the node answers", discovery(ADVERTISEMENT, "link-local", "a", "link-local"), True, "to_pod"),
        Row("the node says it is a router", replace(icmp("node", "multicast", (0, 134)), ttl=255), False, "to_pod"),
        Row(
            "somebody behind the node asks", discovery(SOLICITATION, "node", "multicast", "a"), False, "to_pod", UPLINK
        ),
    ],
}


def resolving(kernel: Kernel, pod: str) -> None:
    key = struct.pack("=I", INTERFACES[pod])
    found = kernel.maps["interfaces"].lookup(key)
    assert found is not None
    fields = kernel.abi.records["endpoint"].unpack(found)._asdict()
    fields["flags"] = kernel.abi.constants.ENDPOINT_RESOLVES
    kernel.maps["interfaces"].update(key, kernel.pack("endpoint", **fields))


def send(kernel: Kernel, row: Row) -> tuple[int, dict[str, int]]:
    outcome = kernel.send("a", row.bytes(), row.program, row.via)
    assert (outcome.events, outcome.tallies) == ([], {})
    return outcome.action, dict(outcome.drops)


CASES = [pytest.param(family, row, id=f"v{family}-{row.name}") for family, rows in ROWS.items() for row in rows]
PASSED, DROPPED = (Action.OK, {"DROP_NONE": 1}), (Action.SHOT, {"DROP_LINK_CONTROL": 1})


@pytest.mark.parametrize(("family", "row"), CASES)
def test_a_pod_that_resolves(loaded: Kernel, family: Family, row: Row) -> None:
    loaded.reset(family)
    resolving(loaded, "a")
    assert send(loaded, row) == (PASSED if row.passes else DROPPED)
    assert loaded.entries() == [], "nothing is tracked"


@pytest.mark.parametrize(("family", "row"), CASES)
def test_any_other_pod(loaded: Kernel, family: Family, row: Row) -> None:
    loaded.reset(family)
    assert send(loaded, row) == DROPPED


def without_endpoint(kernel: Kernel) -> None:
    kernel.remove_pod("a")


def without_address(kernel: Kernel) -> None:
    """It has one of the other family alone."""
    key = struct.pack("=I", INTERFACES["a"])
    kernel.maps["interfaces"].update(
        key, kernel.pack("endpoint", identity=9, flags=kernel.abi.constants.ENDPOINT_RESOLVES)
    )


@pytest.mark.parametrize("family", [4, 6])
@pytest.mark.parametrize(
    ("change", "reason"), [(without_endpoint, "DROP_UNKNOWN_ENDPOINT"), (without_address, "DROP_LINK_CONTROL")]
)
def test_nobody_in_particular(loaded: Kernel, family: Family, change: Callable[[Kernel], None], reason: str) -> None:
    loaded.reset(family)
    change(loaded)
    assert loaded.send("a", ROWS[family][0].bytes()).drops == {reason: 1}


FROM_GATEWAY = udp("free", "a", 1000, 80)
"""The gateway's address is of the pods' block, and nobody's."""


@pytest.mark.parametrize("family", [4, 6])
@pytest.mark.parametrize(
    ("resolves", "via", "passes"), [(True, NODE, True), (False, NODE, False), (True, UPLINK, False)]
)
def test_the_node_speaks_from_the_gateway(
    loaded: Kernel, family: Family, resolves: bool, via: int, passes: bool
) -> None:
    """An isolated pod: the node reaches it, whatever address the other plugin gave it."""
    loaded.reset(family)
    loaded.policy("a", "ingress", ANY, CLOSED)
    if resolves:
        resolving(loaded, "a")
    outcome = loaded.send("a", FROM_GATEWAY, "to_pod", via)
    assert outcome.drops == {"DROP_NONE" if passes else "DROP_POLICY_INGRESS": 1}
    if passes:
        assert loaded.send("a", udp("a", "free", 80, 1000)).drops == {"DROP_NONE": 1}, "and is answered"

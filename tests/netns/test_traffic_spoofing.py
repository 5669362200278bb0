"""A pod that is root in its namespace sends what it likes: frames made by hand, from it and from outside.

Each row is a frame that the datapath must drop for the reason given, and that must not arrive. That the same way of
sending does reach the victim is checked first.
"""

from __future__ import annotations

import json
import re
import socket
import struct
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from dataclasses import dataclass, replace

import frames
import pytest
import rig
from agents import Document
from frames import FAMILIES, Family, Packet, echo, udp
from traffic import ANSWERED_S, DROPPED_S, EXTRA_V4, EXTRA_V6, Cluster, objects, pods

FILE = "spoofing.yaml"
AGES = re.compile(r" (REACHABLE|STALE|DELAY|PROBE)\b")
PORT = 5353
DOCUMENTS: list[Document] = [
    *pods("""
    bank/vault: {labels: {app: vault}}
    bank/clerk: {labels: {app: clerk}}
    bank/thief: {labels: {app: thief}}
    """),
    *objects("NetworkPolicy", """
    bank/vault:
      podSelector: {matchLabels: {app: vault}}
      ingress:
      - {from: [{podSelector: {matchLabels: {app: clerk}}}]}
      - {from: [{ipBlock: {cidr: 198.51.100.10/32}}, {ipBlock: {cidr: "2001:db8:100::10/128"}}]}
    """),
]  # fmt: skip
LSRR = bytes([131, 7, 4]) + bytes(4) + b"\0"
ROUTING = ((frames.ROUTING, bytes([2, 0, 1]) + bytes(20)),)
EXTENSIONS = ((frames.DESTINATION_OPTIONS, bytes([0, 1, 4, 0, 0, 0, 0])),) * 7


class Wire:
    """Frames by hand on an interface of a namespace."""

    def __init__(self, netns: rig.Netns, link: str, gateway_mac: bytes) -> None:
        self.socket = netns.call(socket.socket, socket.AF_PACKET, socket.SOCK_RAW)
        self.socket.bind((link, 0))
        self.mac: bytes = self.socket.getsockname()[4]
        self.gateway_mac = gateway_mac

    def send(self, packet: Packet, family: Family) -> None:
        self.socket.send(packet.encode(family, self.gateway_mac, self.mac))

    def __enter__(self) -> Wire:
        return self

    def __exit__(self, *_: object) -> None:
        self.socket.close()


def pod_wire(cluster: Cluster, pod: str) -> Wire:
    netns = cluster.netns(pod)
    (gateway,) = json.loads(netns.run("ip", "-j", "neigh", "show", "169.254.1.1").stdout)
    return Wire(netns, "eth0", bytes.fromhex(gateway["lladdr"].replace(":", "")))


def outside_wire(cluster: Cluster) -> Wire:
    (link,) = json.loads(cluster.node.run("ip", "-j", "link", "show", cluster.outside.link).stdout)
    return Wire(cluster.outside, "eth0", bytes.fromhex(link["address"].replace(":", "")))


@pytest.fixture(scope="module")
def bank(cluster: Cluster) -> Iterator[Cluster]:
    with cluster.written(FILE, *DOCUMENTS), pytest.MonkeyPatch.context() as patch:
        for pod in ("vault", "clerk", "thief"):
            v4, v6 = cluster.ip(f"bank/{pod}"), cluster.ip(f"bank/{pod}", "v6")
            patch.setitem(frames.ADDRESSES, pod, (v4, v6))
            patch.setitem(frames.ADDRESSES, f"mapped-{pod}", (v4, f"::ffff:{v4}"))
        patch.setitem(frames.ADDRESSES, "node", (rig.NODE_V4, rig.NODE_V6))
        patch.setitem(frames.ADDRESSES, "friend", (EXTRA_V4[0], EXTRA_V6[0]))
        patch.setitem(frames.ADDRESSES, "free", ("10.244.0.253", "fd00:10:244::dead"))
        yield cluster


@pytest.fixture
def vault(bank: Cluster) -> Iterator[Callable[[float], bytes | None]]:
    """What comes to the vault's port, of either family; None for silence."""
    with bank.netns("bank/vault").call(socket.socket, socket.AF_INET6, socket.SOCK_DGRAM) as sock:
        sock.bind(("::", PORT))

        def receive(timeout_s: float) -> bytes | None:
            sock.settimeout(timeout_s)
            try:
                return sock.recv(100)
            except TimeoutError:
                return None

        yield receive


@dataclass(frozen=True)
class Row:
    name: str
    packet: Packet
    reason: str
    families: tuple[Family, ...] = FAMILIES


def to_vault(source: str) -> Packet:
    return udp(source, "vault", 4000, PORT)


FROM_THIEF = [
    Row("its own, who may not", to_vault("thief"), "POLICY_INGRESS"),
    Row("one who may", to_vault("clerk"), "SPOOFED_SOURCE"),
    Row("the victim itself", to_vault("vault"), "SPOOFED_SOURCE"),
    Row("the node", to_vault("node"), "SPOOFED_SOURCE"),
    Row("an address outside that may", to_vault("friend"), "SPOOFED_SOURCE"),
    Row("a free address of the pods' block", to_vault("free"), "SPOOFED_SOURCE"),
    Row("no address", to_vault("none"), "SPOOFED_SOURCE"),
    Row("a link-local address", to_vault("link-local"), "SPOOFED_SOURCE"),
    Row("the hairpin address", to_vault("hairpin"), "SPOOFED_SOURCE"),
    Row("an echo of one who may", echo("clerk", "vault"), "SPOOFED_SOURCE"),
    Row("in a VLAN", replace(to_vault("clerk"), vlan=7), "UNSUPPORTED_PROTOCOL"),
    Row("in VLAN 0", replace(to_vault("thief"), vlan=0), "UNSUPPORTED_PROTOCOL"),
    Row("an unknown protocol above Ethernet", replace(to_vault("thief"), ethertype=0x88B5), "UNSUPPORTED_PROTOCOL"),
    Row("IPv4-mapped, one who may", to_vault("mapped-clerk"), "MALFORMED", (6,)),
    Row("to an IPv4-mapped address", udp("thief", "mapped-vault", 4000, PORT), "MALFORMED", (6,)),
    Row("by a routing header", replace(to_vault("thief"), extensions=ROUTING), "SOURCE_ROUTE", (6,)),
    Row("by a loose source route", replace(to_vault("thief"), options=LSRR), "SOURCE_ROUTE", (4,)),
    Row("behind many headers", replace(to_vault("thief"), extensions=EXTENSIONS), "EXTENSION_HEADERS", (6,)),
    Row("a later fragment", replace(to_vault("thief"), fragment=(8, False, 16)), "FRAGMENT_UNKNOWN"),
    Row("a first fragment without ports", replace(to_vault("thief"), fragment=(0, True, 0)), "FRAGMENT_TINY"),
]
FROM_OUTSIDE = [
    Row("a pod that may", to_vault("clerk"), "SPOOFED_SOURCE"),
    Row("the victim itself", to_vault("vault"), "SPOOFED_SOURCE"),
    Row("a free address of the pods' block", to_vault("free"), "POLICY_INGRESS"),
    Row("the node", to_vault("node"), "POLICY_INGRESS", (6,)),  # IPv4's stack takes it for martian
]


def ids(rows: list[tuple[Row, Family]]) -> list[str]:
    return [f"{row.name} v{family}".replace(" ", "_") for row, family in rows]


def both(rows: list[Row]) -> list[tuple[Row, Family]]:
    return [(row, family) for row in rows for family in row.families]


def drops(cluster: Cluster, reason: str) -> int:
    return int(cluster.agent.status()["drops"].get(reason, 0))


def expect_drop(bank: Cluster, wire: Wire, row: Row, family: Family) -> None:
    before = drops(bank, row.reason)
    wire.send(row.packet, family)
    rig.wait_until(lambda: drops(bank, row.reason) == before + 1, ANSWERED_S, f"a drop for {row.reason}")


Vault = Callable[[float], bytes | None]


@pytest.mark.parametrize(("row", "family"), both(FROM_THIEF), ids=ids(both(FROM_THIEF)))
def test_a_pod_sends_as_itself_or_not_at_all(bank: Cluster, vault: Vault, row: Row, family: Family) -> None:
    with pod_wire(bank, "bank/thief") as thief, pod_wire(bank, "bank/clerk") as clerk:
        clerk.send(to_vault("clerk"), family)
        assert vault(ANSWERED_S)
        expect_drop(bank, thief, row, family)
        clerk.send(to_vault("clerk"), family)
        assert vault(ANSWERED_S)
        assert vault(0.01) is None, "what was dropped came as well"


@pytest.mark.parametrize(("row", "family"), both(FROM_OUTSIDE), ids=ids(both(FROM_OUTSIDE)))
def test_outside_cannot_pass_for_a_pod_or_the_node(bank: Cluster, vault: Vault, row: Row, family: Family) -> None:
    with outside_wire(bank) as outside:
        outside.send(to_vault("friend"), family)
        assert vault(ANSWERED_S)
        expect_drop(bank, outside, row, family)
        assert vault(0.01) is None


def test_ipv4_from_outside_as_the_node_is_dropped_by_the_stack(bank: Cluster, vault: Vault) -> None:
    with outside_wire(bank) as outside:
        outside.send(to_vault("node"), 4)
        outside.send(to_vault("friend"), 4)  # comes behind it
        assert vault(ANSWERED_S)
        assert vault(DROPPED_S) is None


# ---- link control


def arp(operation: int, mac: bytes, claimed: str, asked: str) -> bytes:
    """The frame's payload (RFC 826)."""
    claim, ask = socket.inet_aton(claimed), socket.inet_aton(asked)
    return struct.pack("!HHBBH", 1, 0x0800, 6, 4, operation) + mac + claim + bytes(6) + ask


def advertisements(source: str, claimed: str, mac: bytes) -> dict[str, bytes]:
    """IPv6 packets to all nodes (RFC 4861): neighbour advertisement, router advertisement, redirect."""
    sender, everyone = socket.inet_pton(socket.AF_INET6, source), socket.inet_pton(socket.AF_INET6, "ff02::1")
    claim = socket.inet_pton(socket.AF_INET6, claimed)
    prefix = struct.pack("!BBBBIII", 3, 4, 64, 0xC0, 3600, 3600, 0) + socket.inet_pton(
        socket.AF_INET6, "2001:db8:bad::"
    )
    bodies = {
        "neighbour advertisement": bytes([136, 0, 0, 0, 0x60, 0, 0, 0]) + claim + b"\2\1" + mac,
        "router advertisement": bytes([134, 0, 0, 0, 64, 0]) + struct.pack("!HII", 1800, 0, 0) + b"\1\1" + mac + prefix,
        "redirect": bytes([137, 0, 0, 0, 0, 0, 0, 0]) + claim + claim,
    }
    packets = {}
    for name, body in bodies.items():
        pseudo = sender + everyone + struct.pack("!II", len(body), 58)
        total = frames.checksum(pseudo + body)
        message = body[:2] + struct.pack("!H", total) + body[4:]
        packets[name] = struct.pack("!IHBB", 6 << 28, len(body), 58, 255) + sender + everyone + message
    return packets


def expect_more_drops(bank: Cluster, wire: Wire, frame: bytes) -> None:
    """At least this one: kernels say things of themselves as well."""
    before = drops(bank, "LINK_CONTROL")
    wire.socket.send(frame)
    rig.wait_until(lambda: drops(bank, "LINK_CONTROL") > before, ANSWERED_S)


def test_what_a_pod_says_of_neighbours_and_routers_is_not_heard(bank: Cluster) -> None:
    def known() -> list[list[str]]:
        """But for how sure the kernel is of it, which time alone changes."""
        shows = (("-d", "neigh"), ("-4", "route"), ("-6", "route"), ("-o", "address"))
        places = (bank.node, bank.netns("bank/vault"))
        told = [place.run("ip", *show).stdout for place in places for show in shows]
        return [sorted(AGES.sub("", line) for line in text.splitlines()) for text in told]

    before = known()
    vault_v4, vault_v6, thief_v6 = bank.ip("bank/vault"), bank.ip("bank/vault", "v6"), bank.ip("bank/thief", "v6")
    with ExitStack() as stack:
        wire = stack.enter_context(pod_wire(bank, "bank/thief"))
        payloads = [
            (0x0806, arp(2, wire.mac, vault_v4, vault_v4)),
            (0x0806, arp(1, wire.mac, vault_v4, "169.254.1.1")),
            (0x0806, arp(1, wire.mac, rig.NODE_V4, rig.NODE_V4)),
            *((0x86DD, packet) for packet in advertisements(thief_v6, vault_v6, wire.mac).values()),
            *((0x86DD, packet) for packet in advertisements("fe80::1", rig.NODE_V6, wire.mac).values()),
        ]
        for target in (b"\xff" * 6, wire.gateway_mac):
            for ethertype, payload in payloads:
                expect_more_drops(bank, wire, target + wire.mac + struct.pack("!H", ethertype) + payload)
    assert known() == before
    bank.check("""
        bank/clerk  bank/vault  ICMP  answered
        node        bank/vault  ICMP  answered
        bank/thief  bank/vault  ICMP  dropped
    """)

"""Packets by name: built from scratch, checksums included, so that equal bytes prove a rewritten packet right.

A packet names its ends ("a", "web", "world"); one table serves both families, as ADDRESSES gives each name an address
of either.
"""

from __future__ import annotations

import socket
import struct
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Literal

Family = Literal[4, 6]
FAMILIES: tuple[Family, ...] = (4, 6)

TCP, UDP, SCTP, ICMP, ICMPV6, GRE = 6, 17, 132, 1, 58, 47
FLAGS = {"F": 1, "S": 2, "R": 4, "P": 8, "A": 16}
HOP_BY_HOP, ROUTING, FRAGMENT, AH, DESTINATION_OPTIONS, NO_NEXT_HEADER = 0, 43, 44, 51, 60, 59
ETHERTYPE = {4: 0x0800, 6: 0x86DD}

ADDRESSES: dict[str, tuple[str, str]] = {
    "a": ("10.0.0.1", "fd00::1"),
    "b": ("10.0.0.2", "fd00::2"),
    "c": ("10.0.0.3", "fd00::3"),
    "free": ("10.0.0.99", "fd00::99"),  # in the pod CIDR, nobody's: unmanaged
    "node": ("192.0.2.1", "2001:db8:0:1::1"),
    "world": ("198.51.100.7", "2001:db8:7::7"),
    "router": ("198.51.100.1", "2001:db8:7::1"),
    "nobody": ("203.0.113.9", "2001:db8:dead::9"),  # not in the ipcache
    "web": ("10.96.0.10", "fd96::10"),  # service frontends
    "dns": ("10.96.0.53", "fd96::53"),
    # What other machines have: a load balancer's address, another node, pods on it.
    "vip": ("192.0.2.100", "2001:db8:0:1::100"),
    "uplink": ("203.0.113.1", "2001:db8:0:2::1"),
    "other-node": ("192.0.2.3", "2001:db8:0:1::3"),
    "control-plane": ("192.0.2.4", "2001:db8:0:1::4"),  # where the API server is
    "far": ("10.0.1.1", "fd00:1::1"),
    "far-too": ("10.0.1.2", "fd00:1::2"),
    "far-last": ("10.0.1.255", "fd00:1::ffff:ffff:ffff:ffff"),
    "beyond": ("10.0.9.1", "fd00:9::1"),  # by `uplink`, too
    "unreachable": ("10.0.8.1", "fd00:8::1"),  # no route leads there
    "hairpin": ("169.254.42.1", "fdff:6761:7465::1"),
    "link-local": ("169.254.1.1", "fe80::1"),
    "multicast": ("224.0.0.251", "ff02::fb"),
    "broadcast": ("255.255.255.255", "ff02::1"),
    "none": ("0.0.0.0", "::"),
    "loopback": ("127.0.0.1", "::1"),
    # IPv4-mapped, as no IPv6 packet may carry them; IPv4-compatible, which is an address like others.
    "mapped-a": ("10.0.0.1", "::ffff:10.0.0.1"),
    "mapped-b": ("10.0.0.2", "::ffff:10.0.0.2"),
    "mapped-world": ("198.51.100.7", "::ffff:198.51.100.7"),
    "mapped-web": ("10.96.0.10", "::ffff:10.96.0.10"),
    "compatible": ("198.51.100.7", "::198.51.100.7"),
}


def raw_address(name: str, family: Family) -> bytes:
    """4 or 16 bytes."""
    text = ADDRESSES[name][0 if family == 4 else 1]
    return socket.inet_pton(socket.AF_INET if family == 4 else socket.AF_INET6, text)


def address(name: str, family: Family) -> bytes:
    """16 bytes, as the maps hold it."""
    raw = raw_address(name, family)
    return raw if family == 6 else bytes(10) + b"\xff\xff" + raw


def pod_mac(name: str) -> bytes:
    return b"\x02\x00\x00\x00\x00" + name[0].encode()


def host_mac(name: str) -> bytes:
    return b"\x02\x00\x00\x00\x01" + name[0].encode()


def checksum(data: bytes) -> int:
    """RFC 1071."""
    padded = data + b"\0" * (len(data) % 2)
    total: int = sum(struct.unpack(f"!{len(padded) // 2}H", padded))
    while total >> 16:
        total = (total & 0xFFFF) + (total >> 16)
    return ~total & 0xFFFF


@dataclass(frozen=True)
class L4:
    """A transport header and its data. `size`: cut to that many bytes (after checksumming)."""

    protocol: int = 0
    source_port: int = 0
    destination_port: int = 0
    flags: str = ""
    data: bytes = b"sixteen bytes..."
    zero_checksum: bool = False
    size: int | None = None
    sequence: int = 1
    acknowledged: int = 2
    window: int = 1000

    def number(self, family: Family) -> int:
        return self.protocol

    def encode(self, family: Family, pseudo: bytes) -> bytes:
        header = self.header()
        if self.protocol in (TCP, UDP):
            at = 16 if self.protocol == TCP else 6
            total = checksum(pseudo + header + self.data)
            if self.protocol == UDP:
                total = 0 if self.zero_checksum else total or 0xFFFF
            header = header[:at] + struct.pack("!H", total) + header[at + 2 :]
        return (header + self.data)[: self.size]

    def header(self) -> bytes:
        ports = struct.pack("!HH", self.source_port, self.destination_port)
        if self.protocol == TCP:
            flags = sum(FLAGS[f] for f in self.flags)
            numbers = struct.pack("!II", self.sequence, self.acknowledged)
            return ports + numbers + struct.pack("!BBHHH", 5 << 4, flags, self.window, 0, 0)
        if self.protocol == UDP:
            return ports + struct.pack("!HH", 8 + len(self.data), 0)
        if self.protocol == SCTP:
            return ports + struct.pack("!II", 77, 0xC0C0C0C0)  # its CRC32c covers no address
        return b""


@dataclass(frozen=True)
class Icmp(L4):
    """`kind` is the type of either family: (ICMP, ICMPv6). An error carries `quoted`, cut to `quoted_size`."""

    kind: tuple[int, int] = (8, 128)
    code: tuple[int, int] = (0, 0)
    identifier: int = 0
    mtu: int = 0  # or a sequence number: what stands behind the identifier
    quoted: Packet | None = None
    quoted_size: int | None = None

    def number(self, family: Family) -> int:
        return ICMP if family == 4 else ICMPV6

    def encode(self, family: Family, pseudo: bytes) -> bytes:
        which = 0 if family == 4 else 1
        body = self.quoted.encode_ip(family)[: self.quoted_size] if self.quoted else self.data
        rest = struct.pack("!HH", self.identifier, self.mtu)
        head = struct.pack("!BB", self.kind[which], self.code[which])
        total = checksum((b"" if family == 4 else pseudo) + head + b"\0\0" + rest + body)
        return (head + struct.pack("!H", total) + rest + body)[: self.size]


@dataclass(frozen=True)
class Packet:
    """`fragment`: (offset in bytes, more follow, bytes of the payload this one carries)."""

    source: str
    destination: str
    l4: L4
    options: bytes = b""  # IPv4
    extensions: tuple[tuple[int, bytes], ...] = ()  # IPv6: kind and the header behind its first byte
    fragment: tuple[int, bool, int] | None = None
    identification: int = 7
    ttl: int = 64
    ethertype: int | None = None
    vlan: int | None = None
    padding: bytes = b""  # behind the IP packet, in the frame
    length: int | None = None  # claimed by the IP header
    version: int | None = None
    size: int | None = None  # of the frame: cut there

    def encode_ip(self, family: Family) -> bytes:
        source, destination = raw_address(self.source, family), raw_address(self.destination, family)
        protocol = self.l4.number(family)
        length = len(self.l4.encode(family, b""))
        if family == 4:
            pseudo = source + destination + struct.pack("!BBH", 0, protocol, length)
        else:
            pseudo = source + destination + struct.pack("!IBBBB", length, 0, 0, 0, protocol)
        payload = self.l4.encode(family, pseudo)
        if self.fragment:
            offset, _, count = self.fragment
            payload = payload[offset : offset + count]
        return self._ipv4(source, destination, payload) if family == 4 else self._ipv6(source, destination, payload)

    def _ipv4(self, source: bytes, destination: bytes, payload: bytes) -> bytes:
        words = 5 + len(self.options) // 4
        offset, more, _ = self.fragment or (0, False, 0)
        length = 4 * words + len(payload) if self.length is None else self.length
        header = struct.pack(
            "!BBHHHBBH",
            (self.version or 4) << 4 | words,
            0,
            length,
            self.identification,
            more << 13 | offset // 8,
            self.ttl,
            self.l4.number(4),
            0,
        )
        header += source + destination + self.options
        return header[:10] + struct.pack("!H", checksum(header)) + header[12:] + payload

    def _ipv6(self, source: bytes, destination: bytes, payload: bytes) -> bytes:
        headers = list(self.extensions)
        if self.fragment:
            offset, more, _ = self.fragment
            headers.append((FRAGMENT, struct.pack("!BHI", 0, offset | more, self.identification)))
        kinds = [kind for kind, _ in headers] + [self.l4.number(6)]
        chain = b"".join(bytes([kinds[i + 1]]) + body for i, (_, body) in enumerate(headers))
        length = len(chain) + len(payload) if self.length is None else self.length
        header = struct.pack("!IHBB", (self.version or 6) << 28, length, kinds[0], self.ttl)
        return header + source + destination + chain + payload

    def encode(self, family: Family, destination_mac: bytes, source_mac: bytes) -> bytes:
        """The Ethernet frame."""
        ethertype = ETHERTYPE[family] if self.ethertype is None else self.ethertype
        tag = b"" if self.vlan is None else struct.pack("!HH", 0x8100, self.vlan)
        frame = destination_mac + source_mac + tag + struct.pack("!H", ethertype)
        return (frame + self.encode_ip(family) + self.padding)[: self.size]


def tcp(source: str, destination: str, source_port: int, destination_port: int, flags: str = "A") -> Packet:
    return Packet(source, destination, L4(TCP, source_port, destination_port, flags))


def udp(source: str, destination: str, source_port: int, destination_port: int, zero_checksum: bool = False) -> Packet:
    return Packet(source, destination, L4(UDP, source_port, destination_port, zero_checksum=zero_checksum))


def sctp(source: str, destination: str, source_port: int, destination_port: int) -> Packet:
    return Packet(source, destination, L4(SCTP, source_port, destination_port))


def flow(protocol: int, source: str, destination: str, source_port: int, destination_port: int) -> Packet:
    """The first packet of a flow of any protocol with ports."""
    return Packet(source, destination, L4(protocol, source_port, destination_port, "S" if protocol == TCP else ""))


ECHO_REQUEST, ECHO_REPLY = ECHO = (8, 128), (0, 129)


def echo(source: str, destination: str, identifier: int = 5) -> Packet:
    return Packet(source, destination, Icmp(kind=ECHO_REQUEST, identifier=identifier))


def echo_reply(source: str, destination: str, identifier: int = 5) -> Packet:
    return Packet(source, destination, Icmp(kind=ECHO_REPLY, identifier=identifier))


def icmp(source: str, destination: str, kind: tuple[int, int], code: tuple[int, int] = (0, 0)) -> Packet:
    return Packet(source, destination, Icmp(kind=kind, code=code))


UNREACHABLE, TOO_BIG, TIME_EXCEEDED, PARAMETER_PROBLEM = (3, 1), (3, 2), (11, 3), (12, 4)


def error(
    source: str,
    destination: str,
    quoted: Packet,
    kind: tuple[int, int] = UNREACHABLE,
    code: tuple[int, int] = (3, 4),
    quoted_size: int | None = None,
) -> Packet:
    return Packet(source, destination, Icmp(kind=kind, code=code, quoted=quoted, quoted_size=quoted_size))


def fragments(packet: Packet, sizes: Sequence[int]) -> list[Packet]:
    """The packet in fragments of `sizes` payload bytes (all but the last a multiple of 8)."""
    found, offset = [], 0
    for index, size in enumerate(sizes):
        found.append(replace(packet, fragment=(offset, index < len(sizes) - 1, size)))
        offset += size
    return found

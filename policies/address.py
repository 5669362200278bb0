"""Addresses and prefixes as the datapath sees them: 128 bits, IPv4 held IPv4-mapped."""

from __future__ import annotations

import ipaddress
import socket

import msgspec

V4_MAPPED = bytes(10) + b"\xff\xff"
V4_MAPPED_BITS = 96


def parse_address(text: str) -> bytes:
    """16 bytes of an address in text. Raises ValueError where it is none."""
    try:
        if ":" in text:
            return socket.inet_pton(socket.AF_INET6, text)
        return V4_MAPPED + socket.inet_pton(socket.AF_INET, text)
    except OSError:
        raise ValueError(f"{text!r} is not an IP address") from None


def format_address(address: bytes) -> str:
    """The usual spelling of 16 address bytes."""
    if is_v4(address):
        return socket.inet_ntop(socket.AF_INET, address[12:])
    return socket.inet_ntop(socket.AF_INET6, address)


def format_socket(address: bytes, port: int) -> str:
    """10.0.0.1:80, [2001:db8::1]:80."""
    text = format_address(address)
    return f"{text}:{port}" if is_v4(address) else f"[{text}]:{port}"


def is_v4(address: bytes) -> bool:
    return address.startswith(V4_MAPPED)


class Prefix(msgspec.Struct, frozen=True, order=True, gc=False, cache_hash=True):
    """A CIDR block. `bits` counts from the start of the 128-bit form: 10.0.0.0/8 has 104.

    One family never contains the other: ::/0 holds no IPv4 address, although the mapped form lies inside it.
    """

    network: bytes
    bits: int

    @classmethod
    def parse(cls, text: str) -> Prefix:
        """Read a CIDR; host bits are cleared. Raises ValueError."""
        net = ipaddress.ip_network(text, strict=False)
        if net.version == 4:
            return cls(V4_MAPPED + net.network_address.packed, V4_MAPPED_BITS + net.prefixlen)
        return cls(net.network_address.packed, net.prefixlen)

    @classmethod
    def host(cls, address: bytes) -> Prefix:
        return cls(address, 128)

    @property
    def is_v4(self) -> bool:
        return self.bits >= V4_MAPPED_BITS and is_v4(self.network)

    def contains(self, address: bytes) -> bool:
        if is_v4(address) != self.is_v4:
            return False
        shift = 128 - self.bits
        return int.from_bytes(address, "big") >> shift == int.from_bytes(self.network, "big") >> shift

    def covers(self, other: Prefix) -> bool:
        """Every address of `other` is in this block."""
        return other.bits >= self.bits and self.contains(other.network)

    def __str__(self) -> str:
        bits = self.bits - V4_MAPPED_BITS if self.is_v4 else self.bits
        return f"{format_address(self.network)}/{bits}"

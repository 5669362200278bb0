"""Addresses and blocks as manifests spell them."""

from __future__ import annotations

from collections.abc import Iterable

from agent.sources.findings import Findings
from policies.address import V4_MAPPED, Prefix, is_v4, parse_address


def address_of(path: str, text: str, findings: Findings) -> bytes | None:
    """16 bytes. An IPv4-mapped IPv6 address is refused: it could be meant as either family."""
    try:
        address = parse_address(text)
    except ValueError as error:
        findings.error(path, str(error))
        return None
    if ":" in text and address.startswith(V4_MAPPED):
        findings.error(path, f"{text!r} is an IPv4-mapped IPv6 address: write it as an IPv4 address")
        return None
    return address


def one_a_family(
    given: Iterable[tuple[str, str]], whose: str, findings: Findings, *, special: bool = True
) -> tuple[bytes, ...]:
    """Addresses of pairs of path and text. `whose`: "pod"; `special`: some may be of nobody alone."""
    addresses: list[bytes] = []
    for path, text in given:
        address = address_of(path, text, findings)
        if address is None:
            continue
        if not special and is_special(address):
            findings.error(path, f"{text!r} is no address of one {whose}")
        elif any(is_v4(address) == is_v4(other) for other in addresses):
            findings.error(path, f"a {whose} has at most one address of each family")
        else:
            addresses.append(address)
    return tuple(addresses)


def of_one_node(given: Iterable[tuple[str, str]], findings: Findings) -> tuple[bytes, ...]:
    """Each once, in their order, of pairs of path and text. An address that many have, such as a loopback one, is
    refused: traffic of all who have it would be taken for the node's."""
    found: dict[bytes, None] = {}
    for path, text in given:
        address = address_of(path, text, findings)
        if address is not None and is_special(address):
            findings.error(path, f"{text!r} is no address by which other machines know one node")
        elif address is not None:
            found[address] = None
    return tuple(found)


def block_of(path: str, text: str, findings: Findings) -> Prefix | None:
    """A CIDR block, such as 192.0.2.0/24; bits beyond its length are cleared."""
    address, slash, _ = text.partition("/")
    try:
        block = Prefix.parse(text) if slash else None
    except ValueError:
        block = None
    if block is None:
        findings.error(path, f"{text!r} is not a block of addresses such as 192.0.2.0/24")
        return None
    if ":" in address and is_v4(block.network):
        findings.error(path, f"{text!r} is an IPv4-mapped IPv6 block: write it as an IPv4 block")
        return None
    return block


def is_special(address: bytes) -> bool:
    """What core ValidateNonSpecialIP refuses, and all multicast: no service leads to the node's own loopback."""
    if address[0] == 0:
        if not is_v4(address):
            return address[:15] == bytes(15) and address[15] <= 1
        first = address[12]
        if first not in _SPECIAL_V4:
            return False
        return address[12:14] == b"\xa9\xfe" if first == 0xA9 else first != 0 or address[12:] == bytes(4)
    return address[0] == 0xFF or (address[0] == 0xFE and address[1] & 0xC0 == 0x80)


_SPECIAL_V4 = frozenset((0, 127, 0xA9, *range(224, 240)))

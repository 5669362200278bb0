"""How ranges of ports, addresses to listen at and blocks are written in settings."""

from __future__ import annotations

from agent.config.fields import ConfigError
from policies.address import Prefix, parse_address

MAX_PORT = 65535

Range = tuple[int, int]
"""First and last."""


def port_range(field: str, text: str) -> Range:
    """First and last port of "30000-32767", the value of a setting. Raises ConfigError."""
    first, dash, last = text.partition("-")
    if not (first.isdecimal() and (last.isdecimal() or not dash)):
        raise ConfigError(f"{text!r} is not a range of ports such as 30000-32767", field)
    low, high = int(first), int(last or first)
    if not 1 <= low <= high <= MAX_PORT:
        raise ConfigError(f"{text!r} does not go upwards within 1-{MAX_PORT}", field)
    return low, high


def overlap(one: Range, other: Range) -> bool:
    return one[0] <= other[1] and other[0] <= one[1]


def listen_address(field: str, text: str) -> tuple[bytes, int]:
    """Address (16 bytes) and port of "0.0.0.0:10256" or "[::]:10256", the value of a setting. Raises ConfigError."""
    host, _, port = text.rpartition(":")
    bare = host[1:-1] if host.startswith("[") and host.endswith("]") else host
    try:
        if (":" in bare) != (bare != host) or not port.isdecimal() or not 1 <= int(port) <= MAX_PORT:
            raise ValueError
        return parse_address(bare), int(port)
    except ValueError:
        raise ConfigError(f"{text!r} is not an address and a port such as 0.0.0.0:10256 or [::]:10256", field) from None


def prefix(field: str, text: str) -> Prefix:
    try:
        return Prefix.parse(text)
    except ValueError:
        raise ConfigError(f"{text!r} is not a block of addresses such as 10.244.0.0/24", field) from None


def one_a_family(field: str, texts: tuple[str, ...]) -> list[Prefix]:
    """Blocks, of which each of IPv4 and IPv6 may have one. Raises ConfigError."""
    found = [prefix(field, text) for text in texts]
    if len({block.is_v4 for block in found}) != len(found):
        raise ConfigError("give at most one block for each of IPv4 and IPv6", field)
    return found

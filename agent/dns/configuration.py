"""What the agent tells the DNS proxy: a file in the state directory, so that the proxy starts without the agent."""

from __future__ import annotations

from pathlib import Path
from typing import Literal

import msgspec

from l7proxy.dns.rules import Refuse
from policies.address import Prefix
from policies.l7 import NamePattern

VERSION = 1
FILE = "dns.json"


class Listening(msgspec.Struct, frozen=True):
    """One listener: the names its rules allow, and the loopback port it is to have (0: any)."""

    names: tuple[NamePattern, ...]
    port: int = 0
    direction: Literal["egress", "ingress"] = "egress"


class StandingClass(msgspec.Struct, frozen=True):
    """A class the kernel knows that an address outside the cluster may have: with just these of the prefixes in use
    that cover it, and these of the patterns."""

    number: int
    identity: int
    prefixes: tuple[str, ...] = ()
    names: tuple[NamePattern, ...] = ()


class Standing(msgspec.Struct, frozen=True):
    """What holds while the agent is away. `prefixes`: those that policies name; `inside`: blocks of the cluster
    (pods, services, nodes), whose addresses no name gives another class."""

    prefixes: tuple[str, ...] = ()
    inside: tuple[str, ...] = ()
    classes: tuple[StandingClass, ...] = ()


class Configuration(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """`listeners`: by number, in 16 hex digits. `patterns`: what toFQDNs rules name. A world with neither is allowed
    nothing."""

    listeners: dict[str, Listening] = {}
    patterns: tuple[NamePattern, ...] = ()
    standing: Standing = Standing()
    refuse: Refuse = "refused"
    min_ttl_s: int = 60
    max_addresses: int = 1000
    version: int = VERSION


class Unusable(Exception):
    """The file cannot be used; the message is for people."""


def load(path: Path) -> Configuration:
    """Nothing but defaults where there is no file. Raises Unusable."""
    try:
        content = path.read_bytes()
    except FileNotFoundError:
        return Configuration()
    try:
        found = msgspec.json.decode(content, type=Configuration)
        if found.version != VERSION:
            raise ValueError(f"it is of version {found.version}, this is version {VERSION}")
        _check(found)
    except (ValueError, msgspec.MsgspecError) as error:
        raise Unusable(f"{path} cannot be used ({error}): the agent writes it anew at its next start") from None
    return found


def save(path: Path, configuration: Configuration) -> None:
    """Replace the file. Does not wait for the disk."""
    fresh = path.with_name(f".{path.name}.new")
    fresh.write_bytes(msgspec.json.encode(configuration))
    fresh.rename(path)


def _check(found: Configuration) -> None:
    """Raises ValueError."""
    for number in found.listeners:
        int(number, 16)
    for text in (*found.standing.prefixes, *found.standing.inside):
        Prefix.parse(text)

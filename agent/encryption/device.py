"""A WireGuard device, whoever makes it: what is asked of it, and what it tells."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Protocol

import msgspec

from agent.encryption.keys import PrivateKey
from agent.status import ProcessView
from policies.address import Prefix, format_socket

PREFIX = "ghwg"


class Endpoint(msgspec.Struct, frozen=True, gc=False):
    """Where a peer's UDP packets go. `address`: 16 bytes."""

    address: bytes
    port: int

    def __str__(self) -> str:
        return format_socket(self.address, self.port)


class PeerState(msgspec.Struct):
    """A peer as the device has it. `handshake_ns`: when the last one was made, since 1970; 0: never."""

    endpoint: Endpoint | None = None
    allowed: frozenset[Prefix] = frozenset()
    keepalive_s: int = 0
    handshake_ns: int = 0
    received_bytes: int = 0
    sent_bytes: int = 0


class DeviceState(msgspec.Struct):
    """`public_key`: of the private key it has; empty: none. `peers`: by public key."""

    public_key: bytes = b""
    port: int = 0
    mark: int = 0
    peers: dict[bytes, PeerState] = {}

    @property
    def handshakes(self) -> dict[bytes, int]:
        """When each peer made its last one: ns since 1970."""
        return {key: peer.handshake_ns for key, peer in self.peers.items()}


class PeerChange(msgspec.Struct, frozen=True):
    """What is to change of one peer; what is None stays. `allowed` are added, and with `replace` are all there are: an
    address that was another peer's is this one's from then on. `update_only`: of a peer there is, or nothing."""

    public_key: bytes
    remove: bool = False
    endpoint: Endpoint | None = None
    allowed: tuple[Prefix, ...] = ()
    replace: bool = False
    keepalive_s: int | None = None
    update_only: bool = False


class Settings(msgspec.Struct, frozen=True):
    """Of the device itself; what is None stays."""

    private_key: PrivateKey | None = None
    port: int | None = None
    mark: int | None = None


class NotThere(OSError):
    """There is no such device, or the program behind it does not answer (yet)."""


class Device(Protocol):
    """In the network namespace of the thread it is made in. Calls block; all raise NotThere or another OSError."""

    name: str
    backend: str
    """kernel | userspace"""

    def ensure(self) -> None:
        """Make it, where it is this one's to make at once."""

    def read(self) -> DeviceState:
        """All of it."""

    def configure(self, settings: Settings, changes: Sequence[PeerChange] = ()) -> None:
        """In this order, as few messages as it takes."""

    async def run(self) -> None:
        """What keeps it there, until cancelled; it then stays."""

    async def remove(self) -> None:
        """Once `run` has been cancelled."""

    def process(self) -> ProcessView | None:
        """The program behind it; None where there is none."""

    def close(self) -> None:
        """It stays."""


def name_of(short_name: str) -> str:
    """Of an instance's device. Sockets of programs are named after devices, and are one name space for all nodes that
    share a file system."""
    return f"{PREFIX}{short_name}"


def needed(state: DeviceState, key: PrivateKey, port: int, mark: int) -> Settings:
    """What the device lacks of its settings. What it has is not set again: that could end sessions."""
    return Settings(
        key if state.public_key != key.public else None,
        port if state.port != port else None,
        mark if state.mark != mark else None,
    )


def provoking(keys: Sequence[bytes], keepalive_s: Mapping[bytes, int]) -> list[PeerChange]:
    """Changes after which the device makes handshakes at once with those it has no session with, and which change
    nothing: a peer whose keepalive is turned on is sent a packet."""
    changes = []
    for key in keys:
        usual = keepalive_s.get(key, 0)
        changes += [PeerChange(key, keepalive_s=0, update_only=True), PeerChange(key, keepalive_s=1, update_only=True)]
        if usual != 1:
            changes.append(PeerChange(key, keepalive_s=usual, update_only=True))
    return changes

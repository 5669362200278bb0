"""Which service has an address and port, where several want it."""

from __future__ import annotations

from collections.abc import Iterator, Mapping

import msgspec

from agent.services.model import Kind
from agent.world.claims import Claims
from policies.model import ObjectRef

Key = tuple[bytes, int, int]
"""Address (16 bytes; empty: the node port itself, wherever it is open), protocol, port."""

# Who has the better claim. What was allocated stays whatever is written later; nobody takes over a cluster address or a
# node port through an address that its author may choose freely (CVE-2020-8554).
CLUSTER_IP_ALLOCATED, CLUSTER_IP_GIVEN, NODE_PORT_ALLOCATED, NODE_PORT_GIVEN, BALANCER, EXTERNAL_IP, HOST_PORT = range(
    7
)
RANKS = {Kind.LOAD_BALANCER: BALANCER, Kind.EXTERNAL_IP: EXTERNAL_IP}


class Lost(msgspec.Struct, frozen=True, gc=False):
    """An address and port that a service wants and another has. `rank`: by what it wants it."""

    service: ObjectRef
    rank: int
    key: Key
    winner: ObjectRef


class FrontendClaims:
    """Smallest rank first, then smallest ref: who wins does not depend on who came first."""

    def __init__(self) -> None:
        self._claims = Claims()

    def owner(self, address: bytes, protocol: int, port: int) -> ObjectRef | None:
        return self._claims.winner(_pack((address, protocol, port)))

    def add(self, ref: ObjectRef, wanted: Mapping[Key, int]) -> set[ObjectRef]:
        """A service wants these, each by a rank. Returns the services that have lost one, or did not get one."""
        touched = set()
        for key, rank in wanted.items():
            packed = _pack(key)
            if (owner := self._claims.winner(packed)) is not None:
                touched.add(owner)
            self._claims.add(packed, rank, ref)
        return touched

    def remove(self, ref: ObjectRef, wanted: Mapping[Key, int]) -> set[ObjectRef]:
        """What `add` was given. Returns the services that have one of them now."""
        touched = set()
        for key, rank in wanted.items():
            packed = _pack(key)
            self._claims.remove(packed, rank, ref)
            if (heir := self._claims.winner(packed)) is not None:
                touched.add(heir)
        return touched

    def lost(self) -> Iterator[Lost]:
        for packed, (rank, loser), winner in self._claims.lost():
            yield Lost(loser, rank, _unpack(packed), winner)


def _pack(key: Key) -> bytes:
    address, protocol, port = key
    return address + bytes((protocol,)) + port.to_bytes(2, "big")


def _unpack(packed: bytes) -> Key:
    return packed[:-3], packed[-3], int.from_bytes(packed[-2:], "big")

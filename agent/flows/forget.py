"""What is to become of flows that live: those of addresses that change hands, and of backends that are gone. Pure."""

from __future__ import annotations

from enum import Enum
from typing import Any

import msgspec

from agent.flows.pairs import Pair, Pairs
from policies.model import Protocol

TCP = Protocol.BY_NAME["TCP"]


class Fate(Enum):
    STAYS = "stays"
    REMOVED = "removed"  # the next packet begins a flow of its own
    REFUSED = "refused"  # the entries say that the backend is gone: the next packet is answered by a reset


class Forget(msgspec.Struct):
    """Flows that are not younger than the CLOCK_MONOTONIC ns given: what came later is another's, or chosen anew.

    `addresses`: flows with such an end are removed. `retired`: of flows through this frontend to this backend TCP is
    refused (its ends know what was said), all else is removed (a UDP client goes on with another backend).
    """

    addresses: dict[bytes, int] = {}
    retired: dict[Pair, int] = {}

    def __bool__(self) -> bool:
        return bool(self.addresses or self.retired)

    def concerned(self) -> frozenset[bytes]:
        """An address of these is among the four in the key and `after` of every entry that does not stay."""
        return frozenset(self.addresses) | {pair[3] for pair in self.retired}

    def fate(self, pairs: Pairs, key: Any, entry: Any) -> Fate:
        """`key` and `entry` as in Pairs."""
        ends = (key.source, key.destination, entry.after_source, entry.after_destination)
        if self.addresses and any(entry.created_ns <= self.addresses.get(address, -1) for address in ends):
            return Fate.REMOVED
        pair = pairs.ends(key, entry) if self.retired else None
        if pair is None or entry.created_ns > self.retired.get(pair, -1):
            return Fate.STAYS
        if key.protocol != TCP:
            return Fate.REMOVED
        return Fate.STAYS if entry.flags & (pairs.table.gone | pairs.table.over) else Fate.REFUSED

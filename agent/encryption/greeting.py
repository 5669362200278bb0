"""Who makes the first handshake with a peer that is new. Pure.

One that is made before the other side knows this node is dropped there, and the device tries again after 5 s only
(WireGuard paper, section 6.1: REKEY_TIMEOUT). So whoever comes to know the other last has to make one. Where both do so
at once, each takes the other's for the beginning and neither ends: so the one with the greater key waits a little.
"""

from __future__ import annotations

from collections.abc import Iterable

import msgspec

WAIT_S = 0.2


class Greetings(msgspec.Struct):
    """Peers that are still to be greeted. Times in seconds, of one clock."""

    at_s: dict[bytes, float] = {}

    def add(self, own: bytes, keys: Iterable[bytes], now_s: float) -> None:
        """`own`: this node's public key; `keys`: those of peers that are new to it."""
        self.at_s |= {key: now_s + (WAIT_S if key < own else 0.0) for key in keys}

    def take(self, now_s: float) -> list[bytes]:
        """Those whose time has come; they are greeted once."""
        due = [key for key, at_s in self.at_s.items() if at_s <= now_s]
        for key in due:
            del self.at_s[key]
        return due

    def delay_s(self, now_s: float, at_most_s: float) -> float:
        """Until the next, or `at_most_s`."""
        return max(min([at_most_s, *(at_s - now_s for at_s in self.at_s.values())]), 0.0)

"""Who makes the first handshake with a peer that is new, and how soon it is tried again. Pure.

One that is made before the other side knows this node is dropped there. So whoever comes to know the other last has to
make one. Where both do so at once, each takes the other's for the beginning and neither ends: so the one with the
greater key waits a little. That may go wrong on a busy machine, packets are lost, and a device tries again after 5 s
only (WireGuard paper, section 6.1: REKEY_TIMEOUT), for which no connection should stand still. So a peer that has made
no handshake soon is made anew, and a device may greet at once who is new to it. There is no session that could end.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping

import msgspec

WAIT_S = 0.2
AGAIN_S = (0.3, 0.5, 1.0)
"""After each greeting, until it is repeated. Later ones are the device's own affair."""
APART = 1.6
"""Times as long waits the one with the greater key: two that met in the middle do not do so again."""


class Greeting(msgspec.Struct):
    """Of one peer. `last_ns`: its last handshake before, 0: none; `times`: greeted so often; `due_s`: when next."""

    last_ns: int
    due_s: float
    apart: float
    times: int = 0


class Greetings(msgspec.Struct):
    """Peers that have not answered yet. Times in seconds of one clock, those of handshakes in ns since 1970."""

    waiting: dict[bytes, Greeting] = {}

    def add(self, own: bytes, keys: Iterable[bytes], handshakes: Mapping[bytes, int], now_s: float) -> None:
        """`own`: this node's public key; `keys`: those of peers that are new to it; `handshakes`: peer → its last."""
        for key in keys:
            apart = APART if key < own else 1.0
            self.waiting[key] = Greeting(handshakes.get(key, 0), now_s + WAIT_S * (key < own), apart)

    def asks(self, now_s: float) -> bool:
        """Whether it depends on handshakes that may have been made meanwhile what `take` says now."""
        return any(one.times and one.due_s <= now_s for one in self.waiting.values())

    def take(self, handshakes: Mapping[bytes, int], now_s: float, at_most: int) -> tuple[list[bytes], list[bytes]]:
        """Who is to be greeted for the first time, and who once more. `handshakes`: peer → its last, of all peers."""
        self.waiting = {
            key: one
            for key, one in self.waiting.items()
            if handshakes.get(key) in (0, one.last_ns) and (one.times <= len(AGAIN_S) or one.due_s > now_s)
        }
        due = [key for key, one in self.waiting.items() if one.due_s <= now_s][:at_most]
        first = [key for key in due if not self.waiting[key].times]
        for key in due:
            one = self.waiting[key]
            one.due_s = now_s + one.apart * AGAIN_S[min(one.times, len(AGAIN_S) - 1)]
            one.times += 1
        return first, [key for key in due if key not in first]

    def delay_s(self, now_s: float, at_most_s: float) -> float:
        """Until the next, or `at_most_s`."""
        return max(min([at_most_s, *(one.due_s - now_s for one in self.waiting.values())]), 0.0)

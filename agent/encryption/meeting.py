"""Which nodes are met where a node turns encryption on. Pure.

The others drop what a node encrypts until they have heard of its key. Where plaintext may pass, and pods were sending
it, it goes on until the other node has made a handshake: then nothing is lost in between. Else only new pods wait.
Nodes that come to be known later need no such wait: a node tells its key once its device takes packets of all that it
knows.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping

import msgspec

MEET_S = 60.0
"""From when the others can know the key. Who has made no handshake by then has no agent that runs, or is not there, or
out of reach: what goes there is encrypted from then on all the same."""
PATIENT_S = 5.0
"""So long what is new here waits for the others, and it is looked often."""
OFTEN_S, SELDOM_S = 0.2, 1.0


class Meeting(msgspec.Struct):
    """`plain`: what goes to them meanwhile is not encrypted. `pending`: nodes still to be met; None: it has not begun,
    and whoever is known then is to be met. Times of handshakes in ns since 1970, others in seconds of one clock."""

    plain: bool = True
    pending: frozenset[str] | None = None
    since_ns: int = 0
    told_at: float | None = None

    @property
    def goes_on(self) -> bool:
        return self.pending is None or bool(self.pending)

    def is_waited_for(self, now_s: float) -> bool:
        return self.goes_on and (self.told_at is None or now_s - self.told_at < PATIENT_S)

    def pause_s(self, now_s: float) -> float:
        """Until it is to be looked again."""
        return OFTEN_S if self.is_waited_for(now_s) else SELDOM_S

    def look(
        self,
        nodes: Mapping[str, Iterable[bytes]],
        handshakes: Mapping[bytes, int],
        told: bool,
        now_ns: int,
        now_s: float,
    ) -> frozenset[str]:
        """Who is still to be met. `nodes`: their keys; `handshakes`: when each key's last one was made; `told`: whether
        the others can know this node's key."""
        if self.pending is None:
            self.pending, self.since_ns = frozenset(nodes), now_ns
        if told and self.told_at is None:
            self.told_at = now_s
        if self.told_at is not None and now_s - self.told_at >= MEET_S:
            self.pending = frozenset()
        self.pending = frozenset(
            node
            for node in self.pending & nodes.keys()
            if all(handshakes.get(key, 0) < self.since_ns for key in nodes[node])
        )
        return self.pending

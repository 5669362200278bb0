"""Peers that are sent packets and make no handshake. Pure."""

from __future__ import annotations

from collections.abc import Mapping

import msgspec

from agent.encryption.device import PeerState

SILENT_NS = 180 * 1_000_000_000
"""After three minutes a session is over (WireGuard paper, section 6.1: REJECT_AFTER_TIME)."""
PAUSE_NS = 60 * 1_000_000_000
"""Packets further apart than this are not one stretch: attempts at a handshake end 90 s after the last packet."""


class _Sent(msgspec.Struct):
    sent_bytes: int
    began_ns: int = 0  # of the stretch of packets that goes on
    last_ns: int = 0


class Silence:
    """A peer's count of bytes grows with each attempt at a handshake, too, and those are made only for a packet."""

    def __init__(self) -> None:
        self._seen: dict[bytes, _Sent] = {}

    def look(self, peers: Mapping[bytes, PeerState], now_ns: int) -> set[bytes]:
        """Keys of peers that have been sent packets for SILENT_NS and have made no handshake in that time.
        `now_ns`: since 1970, as the peers' handshakes."""
        for key in self._seen.keys() - peers.keys():
            del self._seen[key]
        silent = set()
        for key, peer in peers.items():
            seen = self._seen.setdefault(key, _Sent(peer.sent_bytes))
            if peer.sent_bytes != seen.sent_bytes:
                if now_ns - seen.last_ns > PAUSE_NS:
                    seen.began_ns = now_ns
                seen.sent_bytes, seen.last_ns = peer.sent_bytes, now_ns
            goes_on = now_ns - seen.last_ns <= PAUSE_NS
            if goes_on and now_ns - max(seen.began_ns, peer.handshake_ns) >= SILENT_NS:
                silent.add(key)
        return silent

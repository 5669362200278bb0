"""Handshakes that do not come about at the first attempt."""

from __future__ import annotations

import socket
import struct
from itertools import pairwise

from wireguard_nodes import PORT, WAIT_S, Wire

from agent.encryption.greeting import AGAIN_S
from agent.encryption.keys import PrivateKey

REKEY_TIMEOUT_S = 5.0
"""After which a device tries again by itself: WireGuard paper, section 6.1."""
_SO_TIMESTAMPNS = 35  # asm-generic/socket.h


def when_asked(asked: socket.socket) -> float:
    """When the kernel took in the next handshake initiation, in seconds."""
    while True:
        packet, notes, _, _ = asked.recvmsg(1 << 12, 64)
        if packet[:1] == b"\1":
            seconds, nanoseconds = struct.unpack("=qq", notes[0][2])
            return float(seconds + nanoseconds / 1e9)


def test_who_does_not_answer_is_soon_asked_again(wire: Wire, backend: str) -> None:
    """A node that is there, and knows nothing of the one that asks."""
    with wire.node(1, backend) as one, wire.node(2, backend) as two:
        two.facts = (PrivateKey.generate().public, b"")
        with two.call(socket.socket, socket.AF_INET, socket.SOCK_DGRAM) as asked:
            asked.setsockopt(socket.SOL_SOCKET, _SO_TIMESTAMPNS, 1)
            asked.settimeout(WAIT_S)
            asked.bind((two.addresses[0], PORT))
            one.start()
            one.hear([two.told()])
            times = [when_asked(asked) for _ in range(1 + len(AGAIN_S))]
        apart = [after - before for before, after in pairwise(times)]
        assert min(apart) < REKEY_TIMEOUT_S, apart
        shown = one.run("wg", "show", one.device, "dump").stdout
        assert "10.244.2.0/24" in shown, "it has its addresses again"

"""A connection that is never quiet, to see for how long it stands still.

with Steady(client.netns, web.ip(), 8080) as steady:
    ...
assert steady.retransmits <= AT_MOST, steady
"""

from __future__ import annotations

import socket
import struct
import threading
import time
from contextlib import suppress

import rig
from patience import SLOWER
from probes import Connection

ENOUGH_S = 30.0 * SLOWER
"""A connection that stands still for so long is broken."""
PAUSE_S = 0.002
AT_MOST = 2
"""Retransmits that a change may cost: packets are lost while one side has turned and the other has not; where both
begin a handshake at once, it takes another attempt. So Linux's TCP goes on within 1.4 s (200 ms, doubled each time)."""
_TOTAL_RETRANS_AT, _DSACK_DUPS_AT, _INFO_BYTES = 100, 216, 232
"""Of tcpi_total_retrans and tcpi_dsack_dups in struct tcp_info (linux/tcp.h), and how much of it is read."""


class Steady:
    """One exchange after another over one TCP connection, in a thread. What it has found can be read at any time.

    `exchanges`: so many; `longest_s`: the longest one; `broken`: why there are no more, empty: there are.
    """

    def __init__(self, netns: rig.Netns, address: str, port: int) -> None:
        self.exchanges = self._most = self._lost = 0
        self.longest_s = 0.0
        self.broken = ""
        netns.sysctl(ipv4__tcp_early_retrans="0")  # RFC 8985: probes are early, and count
        self._connection = Connection(netns, socket.SOCK_STREAM, address, port)
        self._over = threading.Event()
        self._more = threading.Condition()
        self._thread = threading.Thread(target=self._go_on, daemon=True)
        self._thread.start()

    @property
    def retransmits(self) -> int:
        """The most that the client needed for one exchange. An emulated machine stands still by itself, and TCP sends
        again what only waits: there, what came twice (RFC 2883) was not needed."""
        return self._most if SLOWER == 1.0 else min(self._most, self._lost)

    def __enter__(self) -> Steady:
        return self

    def __exit__(self, *_: object) -> None:
        self._over.set()
        with suppress(OSError):
            self._connection.socket.shutdown(socket.SHUT_RDWR)  # nobody waits for what does not come
        self._thread.join()
        self._connection.socket.close()

    def __repr__(self) -> str:
        return (
            f"{self.exchanges} exchanges, the longest {self.longest_s * 1000:.0f} ms, at most {self.retransmits} "
            f"retransmits; {self.broken or 'it lives'}"
        )

    def go_on(self, exchanges: int = 5) -> None:
        """Until there have been so many more, begun after this call."""
        with self._more:
            wanted = self.exchanges + exchanges + 1
            self._more.wait_for(lambda: self.exchanges >= wanted or self.broken, ENOUGH_S)
        assert self.exchanges >= wanted, self

    def _go_on(self) -> None:
        while not self._over.wait(PAUSE_S):
            (before, _), began = self._sent_again(), time.monotonic()
            answer = self._connection.exchange(ENOUGH_S)
            with self._more:
                self.longest_s = max(self.longest_s, time.monotonic() - began)
                if answer:
                    self.exchanges += 1
                    again, twice = self._sent_again()
                    self._most, self._lost = max(self._most, again - before), again - twice
                else:
                    self.broken = f"{answer.result} {answer.error}"
                self._more.notify_all()
            if self.broken:
                return

    def _sent_again(self) -> tuple[int, int]:
        """Segments since the beginning, and how many of them the server had got already."""
        info = self._connection.socket.getsockopt(socket.IPPROTO_TCP, socket.TCP_INFO, _INFO_BYTES)
        return struct.unpack_from("=I", info, _TOTAL_RETRANS_AT)[0], struct.unpack_from("=I", info, _DSACK_DUPS_AT)[0]

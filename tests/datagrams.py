"""Datagrams that are all to be answered, to see whether one is lost.

with Datagrams(client.netns, web.ip(), 8080) as datagrams:
    ...
    datagrams.go_on()
assert not datagrams.lost, datagrams
"""

from __future__ import annotations

import socket
import threading

import rig
from patience import SLOWER
from probes import Connection

ANSWER_S = 10.0 * SLOWER
"""One that is not answered by then is lost."""
PAUSE_S = 0.002


class Datagrams:
    """One after another, each sent once, in a thread, until one is lost."""

    def __init__(self, netns: rig.Netns, address: str, port: int) -> None:
        self.answered = 0
        self.lost = ""
        self._connection = Connection(netns, socket.SOCK_DGRAM, address, port)
        self._over = threading.Event()
        self._more = threading.Condition()
        self._thread = threading.Thread(target=self._send, daemon=True)
        self._thread.start()

    def __enter__(self) -> Datagrams:
        return self

    def __exit__(self, *_: object) -> None:
        self._over.set()
        self._thread.join()
        self._connection.socket.close()

    def __repr__(self) -> str:
        return f"{self.answered} answered; {self.lost or 'none lost'}"

    def go_on(self, count: int = 5) -> None:
        """Until so many more have been answered, sent after this call."""
        with self._more:
            wanted = self.answered + count + 1
            self._more.wait_for(lambda: self.answered >= wanted or self.lost, 2 * ANSWER_S)
        assert self.answered >= wanted, self

    def _send(self) -> None:
        while not self._over.wait(PAUSE_S):
            answer = self._connection.exchange(ANSWER_S)
            with self._more:
                if answer:
                    self.answered += 1
                else:
                    self.lost = f"{answer.result} {answer.error}"
                self._more.notify_all()
            if self.lost:
                return

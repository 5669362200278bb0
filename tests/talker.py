"""Clients whose backend goes: UDP that never stops sending, TCP that is told."""

from __future__ import annotations

import errno
import threading

import rig
from probes import Connection
from traffic import ANSWERED_S

MOVED = 2000
"""How many messages may still go to a backend that is gone: a client that sends all the time sends 500 a second (lesson
20). They are what time is measured by, as they stand still when the machine does."""


class Talker:
    """Sends by a connected UDP socket, whatever comes back, and notes who answers, and how many it had sent by then."""

    def __init__(self, connection: Connection, every_s: float = 0.002) -> None:
        self.sent = 0
        self.answers: list[tuple[int, str]] = []
        self._socket = connection.socket
        self._every_s = every_s
        self._over = threading.Event()
        self._changed = threading.Condition()
        self._threads = [threading.Thread(target=work, daemon=True) for work in (self._send, self._receive)]
        self._socket.settimeout(0.1)
        for thread in self._threads:
            thread.start()

    def _send(self) -> None:
        while not self._over.wait(self._every_s):
            try:
                self._socket.send(b"talk")
                self.sent += 1
            except ConnectionRefusedError:  # of an earlier one
                continue

    def _receive(self) -> None:
        while not self._over.is_set():
            try:
                label = self._socket.recv(200).split()[0].decode()
            except (TimeoutError, ConnectionRefusedError):
                continue
            with self._changed:
                self.answers.append((self.sent, label))
                self._changed.notify_all()

    def first(self, label: str) -> int:
        """How many had been sent when somebody first answered; waits for it."""
        with self._changed:
            found = self._changed.wait_for(lambda: any(who == label for _, who in self.answers), ANSWERED_S)
            assert found, f"{label} never answered: {self.answers[-3:]}"
            return next(sent for sent, who in self.answers if who == label)

    def heard(self, count: int) -> list[str]:
        """Who gave so many further answers."""
        with self._changed:
            before = len(self.answers)
            assert self._changed.wait_for(lambda: len(self.answers) >= before + count, ANSWERED_S)
            return [who for _, who in self.answers[before:]]

    def __enter__(self) -> Talker:
        return self

    def __exit__(self, *_: object) -> None:
        self._over.set()
        for thread in self._threads:
            thread.join()
        self._socket.close()


def await_reset(*connections: Connection) -> None:
    """Until each of them, asked again and again, is reset: they are marked one after the other."""
    for connection in connections:

        def refusal(connection: Connection = connection) -> int:
            answer = connection.exchange(ANSWERED_S)
            assert answer.result != "timeout", "it hangs"
            return answer.error

        assert rig.wait_until(refusal, ANSWERED_S) == errno.ECONNRESET

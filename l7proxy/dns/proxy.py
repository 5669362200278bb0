"""The DNS proxy: listeners by number, and the regular work behind them. In one event loop, in the node's namespace.

proxy = Proxy(judge, learning, marks)
ports = proxy.serve({number: Wanted(rules, port)})     # again whenever rules change
…
await proxy.close()
"""

from __future__ import annotations

import asyncio
import errno
import socket
from collections.abc import Mapping

import msgspec

from l7proxy.dns.datagrams import Datagrams
from l7proxy.dns.learning import Learning
from l7proxy.dns.rules import Judge, Rules
from l7proxy.dns.sockets import Marks
from l7proxy.dns.streams import Streams

SWEEP_S = 0.25
PORT_TRIES = 32
FAMILIES = (socket.AF_INET, socket.AF_INET6)


class Wanted(msgspec.Struct, frozen=True):
    """A listener, and the loopback port it is to have: of both families, TCP and UDP. 0: any."""

    rules: Rules
    port: int = 0


class _Listener:
    """Four sockets of one port. Their rules change in place: connections and queries under way keep them."""

    def __init__(self, rules: Rules, datagrams: Datagrams, streams: Streams) -> None:
        self.rules = rules
        self.port = 0
        self._datagrams = datagrams
        self._streams = streams
        self._udp: list[socket.socket] = []
        self._tcp: list[socket.socket] = []

    def open(self, port: int) -> None:
        """Raises OSError where the port is taken."""
        try:
            for family in FAMILIES:
                self._udp.append(self._datagrams.listen(self.rules, family, port))
                port = self._udp[-1].getsockname()[1]
                self._tcp.append(self._streams.listen(self.rules, family, port))
        except OSError:
            self.close()
            raise
        self.port = port

    def close(self) -> None:
        for one in self._udp:
            self._datagrams.leave(one)
        for one in self._tcp:
            self._streams.leave(one)
        self._udp, self._tcp, self.port = [], [], 0


class Proxy:
    def __init__(self, judge: Judge, learning: Learning, marks: Marks) -> None:
        self._judge = judge
        self._datagrams = Datagrams(judge, marks)
        self._streams = Streams(judge, marks)
        self._learning = learning
        self._listeners: dict[int, _Listener] = {}

    @property
    def ports(self) -> dict[int, int]:
        return {number: listener.port for number, listener in self._listeners.items()}

    def serve(self, wanted: Mapping[int, Wanted]) -> dict[int, str]:
        """Listen for these, and for no others. Those that cannot, and why: all else is served."""
        for number in self._listeners.keys() - wanted.keys():
            self._listeners.pop(number).close()
            self._streams.end(number)
        problems: dict[int, str] = {}
        for number, one in wanted.items():
            listener = self._listeners.get(number)
            if listener is not None and one.port in (0, listener.port):
                listener.rules.names, listener.rules.ingress = one.rules.names, one.rules.ingress
                continue
            if listener is not None:
                self._listeners.pop(number).close()
            fresh = _Listener(one.rules, self._datagrams, self._streams)
            try:
                _open(fresh, one.port)
            except OSError as error:
                problems[number] = f"port {one.port} of loopback cannot be had: {error.strerror}"
                continue
            self._listeners[number] = fresh
        return problems

    def end(self, number: int, pod: bytes) -> int:
        """Connections of a pod that began at a listener which is not the pod's any more. Returns how many."""
        return self._streams.end(number, pod)

    async def run(self) -> None:
        """The regular work, until cancelled."""
        while True:
            await asyncio.sleep(SWEEP_S)
            self._judge.sweep()
            self._datagrams.sweep()
            self._learning.expire()

    async def close(self) -> None:
        for listener in self._listeners.values():
            listener.close()
        self._listeners.clear()
        await self._streams.close()
        self._datagrams.close()


def _open(listener: _Listener, port: int) -> None:
    """Raises OSError. A port that the kernel chose for one socket may be taken for another."""
    for _ in range(PORT_TRIES if port == 0 else 1):
        try:
            listener.open(port)
        except OSError as error:
            if port or error.errno != errno.EADDRINUSE:
                raise
            continue
        return
    raise OSError(errno.EADDRINUSE, "no port is free")

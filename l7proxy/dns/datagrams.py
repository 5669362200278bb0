"""DNS over UDP: queries of pods to their resolvers, and answers back.

A query goes on from the pod's own address through a socket that is connected to the resolver, under a random id. Such a
socket carries a few queries of one pod and is then replaced by one with another port, so that neither port nor id can
be guessed from what was before, while the flows that conntrack has to remember stay few.
"""

from __future__ import annotations

import asyncio
import errno
import os
import socket
import time
from collections import Counter
from collections.abc import Container

from l7proxy.dns.answer import belongs
from l7proxy.dns.query import SERVFAIL, id_of, refusal, truncated, with_id
from l7proxy.dns.rules import MAX_QUERY, Asked, Endpoint, Judge, Rules
from l7proxy.dns.sockets import LOOPBACK, Answering, Marks, listener, original, text, upstream
from policies.address import parse_address

AT_ONCE = 64
"""Datagrams that are taken from one socket before others get their turn."""
ANSWER_BYTES = 65_535
CONTROL_BYTES = 64
QUERIES_OF_SOCKET = 32
SOCKET_S = 2.0
"""How long a socket takes new queries."""
TIMEOUT_S = 10.0
FOREIGN_ANSWERS = 16
"""Answers to no query that one socket bears: somebody is guessing. It is closed then, and its queries fail."""
MAX_SOCKETS = 8192
MAX_SOCKETS_OF_POD = 512
"""It may ask many resolvers at once."""

_Key = tuple[Endpoint, bytes, bool]
"""Resolver, pod, whether its ingress is judged."""

_LOOPBACKS = frozenset(map(parse_address, LOOPBACK.values()))


class Datagrams:
    """Listeners of all rule sets, and the sockets behind them. To be `sweep`ed several times a second."""

    def __init__(self, judge: Judge, marks: Marks) -> None:
        self._judge = judge
        self._marks = marks
        self._loop = asyncio.get_running_loop()
        self._answering = Answering(marks.answers)
        self._current: dict[_Key, _Upstream] = {}
        self._upstreams: set[_Upstream] = set()
        self._of_pod: Counter[bytes] = Counter()
        self._ids = RandomIds()

    def listen(self, rules: Rules, family: socket.AddressFamily, port: int) -> socket.socket:
        """A socket that is served until `leave`. `port` 0: any. Raises OSError."""
        made = listener(socket.SOCK_DGRAM, family, port, self._marks.answers)
        self._loop.add_reader(made.fileno(), self._take, made, rules, made.getsockname()[1])
        return made

    def leave(self, listening: socket.socket) -> None:
        self._loop.remove_reader(listening.fileno())
        listening.close()

    def sweep(self) -> None:
        """Give up what nobody answers, and sockets that have done their work."""
        now_s = time.monotonic()
        for one in list(self._upstreams):
            one.sweep(now_s)

    def close(self) -> None:
        for one in list(self._upstreams):
            one.close()
        self._answering.close()

    # ---- queries

    def _take(self, listening: socket.socket, rules: Rules, port: int) -> None:
        for _ in range(AT_ONCE):
            try:
                message, control, flags, source = listening.recvmsg(MAX_QUERY, CONTROL_BYTES)
            except BlockingIOError:
                return
            except OSError:  # an ICMP error of some datagram sent before
                continue
            resolver = original(control)
            if flags & socket.MSG_TRUNC or resolver is None or (resolver[1] == port and resolver[0] in _LOOPBACKS):
                self._judge.counters.unusable += 1  # the last: sent to the listener itself, by a process of the node
                continue
            self._query(rules, message, (parse_address(source[0]), source[1]), resolver)

    def _query(self, rules: Rules, message: bytes, client: Endpoint, resolver: Endpoint) -> None:
        asked = self._judge.ask(rules, message, client, resolver, "UDP")
        if isinstance(asked, bytes):
            if asked:
                self._send(resolver, client, asked)
            return
        way = self._way(asked)
        if way is None or not way.send(asked, message):
            self._judge.failed(asked)
            self._send(resolver, client, refusal(message, asked.query, SERVFAIL))

    def _way(self, asked: Asked) -> _Upstream | None:
        key = (asked.resolver, asked.client[0], asked.rules.ingress)
        way = self._current.get(key)
        # A port that the pod itself uses would make two flows one.
        if way is not None and way.takes(time.monotonic()) and way.port != asked.client[1]:
            return way
        if len(self._upstreams) >= MAX_SOCKETS or self._of_pod[asked.client[0]] >= MAX_SOCKETS_OF_POD:
            return None
        mark = self._marks.from_ingress if asked.rules.ingress else self._marks.from_egress
        for _ in range(2):
            try:
                made = upstream(socket.SOCK_DGRAM, asked.client[0], mark)
            except OSError:
                return None
            if made.getsockname()[1] != asked.client[1]:
                break
            made.close()
        else:
            return None
        try:
            made.connect((text(asked.resolver[0]), asked.resolver[1]))
        except OSError:
            made.close()
            return None
        way = self._current[key] = _Upstream(key, made, self._judge, self._ids, self)
        self._upstreams.add(way)
        self._of_pod[way.pod] += 1
        self._loop.add_reader(made.fileno(), way.take)
        return way

    def closed(self, way: _Upstream) -> None:
        self._loop.remove_reader(way.socket.fileno())
        self._upstreams.discard(way)
        self._of_pod[way.pod] -= 1
        if not self._of_pod[way.pod]:
            del self._of_pod[way.pod]
        if self._current.get(way.key) is way:
            del self._current[way.key]

    # ---- answers

    def deliver(self, asked: Asked, message: bytes) -> None:
        if not self._send(asked.resolver, asked.client, with_id(message, asked.id)):
            self._send(asked.resolver, asked.client, with_id(truncated(message, asked.query), asked.id))

    def _send(self, resolver: Endpoint, client: Endpoint, message: bytes) -> bool:
        """False where it is too long for the way there."""
        try:
            self._answering.send(resolver, client, message)
        except OSError as error:
            if error.errno == errno.EMSGSIZE:
                return False
            self._judge.counters.failed += 1  # as if it had been lost on its way
        return True


class _Upstream:
    """One socket towards a resolver."""

    def __init__(
        self,
        key: _Key,
        connected: socket.socket,
        judge: Judge,
        ids: RandomIds,
        datagrams: Datagrams,
    ) -> None:
        self.key = key
        self.pod = key[1]
        self.socket = connected
        self.port: int = connected.getsockname()[1]
        self._judge = judge
        self._ids = ids
        self._datagrams = datagrams
        self._pending: dict[int, Asked] = {}
        self._used = 0
        self._foreign = 0
        self._until_s = time.monotonic() + SOCKET_S
        self._open = True

    def takes(self, now_s: float) -> bool:
        return self._open and self._used < QUERIES_OF_SOCKET and now_s < self._until_s

    def send(self, asked: Asked, message: bytes) -> bool:
        number = self._ids.next(self._pending)
        try:
            self.socket.send(with_id(message, number))
        except OSError:  # no way there, or an ICMP error of a query before
            return False
        self._used += 1
        self._pending[number] = asked
        return True

    def take(self) -> None:
        for _ in range(AT_ONCE):
            try:
                message = self.socket.recv(ANSWER_BYTES)
            except BlockingIOError:
                break
            except OSError:  # an ICMP error: whoever asked hears of no answer, and asks again
                continue
            self._answer(message)
            if not self._open:
                return
        if not self._pending and not self.takes(time.monotonic()):
            self.close()

    def _answer(self, message: bytes) -> None:
        number = id_of(message)
        asked = self._pending.get(number)
        if asked is None or not belongs(message, asked.query, number):
            self._judge.counters.foreign_answers += 1
            self._foreign += 1
            if self._foreign > FOREIGN_ANSWERS:
                self.close()
            return
        del self._pending[number]
        self._judge.finish(asked)
        deliver = self._datagrams.deliver
        self._judge.answered(asked, message, lambda fine: deliver(asked, message) if fine else None)

    def sweep(self, now_s: float) -> None:
        late_ns = time.monotonic_ns() - int(TIMEOUT_S * 1e9)
        for number, asked in list(self._pending.items()):
            if asked.started_ns > late_ns:
                break  # they are in the order in which they were sent
            del self._pending[number]
            self._judge.finish(asked)
            self._judge.timed_out(asked)
        if not self._pending and now_s >= self._until_s:
            self.close()

    def close(self) -> None:
        if not self._open:
            return
        self._open = False
        for asked in self._pending.values():
            self._judge.finish(asked)
            self._judge.timed_out(asked)
        self._pending.clear()
        self._datagrams.closed(self)
        self.socket.close()


class RandomIds:
    """Ids nobody can guess, fetched from the kernel many at a time."""

    def __init__(self) -> None:
        self._bytes = b""
        self._at = 0

    def next(self, used: Container[int]) -> int:
        while (number := self._next()) in used:
            pass
        return number

    def _next(self) -> int:
        if self._at >= len(self._bytes):
            self._bytes, self._at = os.urandom(4096), 0
        self._at += 2
        return self._bytes[self._at - 2] << 8 | self._bytes[self._at - 1]

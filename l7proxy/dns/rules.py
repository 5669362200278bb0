"""What one listener lets through, and what becomes of a query: the part that datagrams and streams share."""

from __future__ import annotations

import time
from collections import Counter
from collections.abc import Callable, Iterable
from typing import Literal

import msgspec

from l7proxy.dns import answer as answers
from l7proxy.dns.answer import NOTHING, Answer, Bad, Reader
from l7proxy.dns.learning import Learning, Release
from l7proxy.dns.query import NXDOMAIN, REFUSED, SERVFAIL, Query, Unusable, id_of, read, refusal, type_name
from l7proxy.dns.sockets import text
from l7proxy.records import Dns, L7Record
from policies.l7 import NamePattern
from policies.names import Names

Refuse = Literal["refused", "nxdomain"]
_RCODES: dict[Refuse, int] = {"refused": REFUSED, "nxdomain": NXDOMAIN}
_RCODE_NAMES = ("NOERROR", "FORMERR", "SERVFAIL", "NXDOMAIN", "NOTIMP", "REFUSED")

MAX_PENDING = 16_384
"""Queries that wait for a resolver."""
MAX_PENDING_OF_POD = 512
MAX_QUERY = 4096
BUSY = 1500
"""Queries between two sweeps, near what one core can do. Above that a pod that alone asks more than all others together
is not heard, as long as there are others."""

Transport = Literal["TCP", "UDP"]
Endpoint = tuple[bytes, int]
"""Address (16 bytes) and port."""


class Rules(msgspec.Struct):
    """Of one listener. `ingress`: these judge what comes to a pod that is a resolver itself; nothing is learned there,
    for what it answers binds nobody here."""

    number: int
    names: Names
    ingress: bool = False

    @classmethod
    def of(cls, number: int, patterns: Iterable[NamePattern], ingress: bool = False) -> Rules:
        return cls(number, Names(patterns), ingress)


class Asked(msgspec.Struct):
    """A query under way, and the id the pod gave it."""

    id: int
    rules: Rules
    query: Query
    client: Endpoint
    resolver: Endpoint
    transport: Transport
    started_ns: int


class Counters(msgspec.Struct):
    queries: int = 0
    refused: int = 0
    unusable: int = 0
    answers: int = 0
    bad_answers: int = 0  # that did not parse
    foreign_answers: int = 0  # that belong to no query
    timeouts: int = 0
    over_limit: int = 0  # queries of a pod, or of all, that have too many under way
    failed: int = 0  # that could not be sent


class Judge:
    """`record` is told of every query that was answered or refused."""

    def __init__(self, learning: Learning, record: Callable[[L7Record], None]) -> None:
        self.counters = Counters()
        self.refuse: Refuse = "refused"
        self._learning = learning
        self._record = record
        self._reader = Reader()
        self._pending: Counter[bytes] = Counter()
        self._pending_all = 0
        self._recent: Counter[bytes] = Counter()
        self._recent_all = 0

    def ask(
        self, rules: Rules, message: bytes, client: Endpoint, resolver: Endpoint, transport: Transport
    ) -> Asked | bytes:
        """A query to pass on, or what to answer at once (b"": nothing). What is passed on must be `finish`ed once."""
        if self._is_too_loud(client[0]):
            self.counters.over_limit += 1
            return b""
        try:
            query = read(message)
        except Unusable as unusable:
            self.counters.unusable += 1
            return unusable.reply
        started_ns = time.monotonic_ns()
        asked = Asked(id_of(message), rules, query, client, resolver, transport, started_ns)
        if not rules.names.allow(query.name):
            self.counters.refused += 1
            code = _RCODES[self.refuse]
            self._note(asked, code, NOTHING, denied=True)
            return refusal(message, query, code)
        pod = client[0]
        if self._pending_all >= MAX_PENDING or self._pending[pod] >= MAX_PENDING_OF_POD:
            self.counters.over_limit += 1
            return b""
        self._pending[pod] += 1
        self._pending_all += 1
        self.counters.queries += 1
        return asked

    def sweep(self) -> None:
        """To be called several times a second."""
        self._recent.clear()
        self._recent_all = 0

    def _is_too_loud(self, pod: bytes) -> bool:
        self._recent[pod] += 1
        self._recent_all += 1
        return self._recent_all > BUSY and len(self._recent) > 1 and self._recent[pod] * 2 > self._recent_all

    def finish(self, asked: Asked) -> None:
        """It has been answered, or given up."""
        pod = asked.client[0]
        self._pending_all -= 1
        self._pending[pod] -= 1
        if not self._pending[pod]:
            del self._pending[pod]

    def answered(self, asked: Asked, message: bytes, release: Release) -> None:
        """An answer that belongs to it. Calls `release` once, now or later: whether it may go to the pod."""
        self.counters.answers += 1
        try:
            answer = self._reader.read(message, asked.query)
        except Bad:
            self.counters.bad_answers += 1
            self._note(asked, None, NOTHING)
            release(False)
            return
        code = answers.rcode(message)

        def released(fine: bool) -> None:
            self._note(asked, code if fine else None, answer if fine else NOTHING)
            release(fine)

        if asked.rules.ingress or code:
            released(True)
        else:
            self._learning.learn(asked.query.name, answer, asked.client[0], released)

    def failed(self, asked: Asked) -> None:
        """It could not be sent on."""
        self.counters.failed += 1
        self.finish(asked)
        self._note(asked, SERVFAIL, NOTHING)

    def timed_out(self, asked: Asked) -> None:
        self.counters.timeouts += 1
        self._note(asked, None, NOTHING)

    @property
    def pending(self) -> int:
        return self._pending_all

    def _note(self, asked: Asked, rcode: int | None, answer: Answer, *, denied: bool = False) -> None:
        code = "" if rcode is None else _RCODE_NAMES[rcode] if rcode < len(_RCODE_NAMES) else f"RCODE{rcode}"
        latency_ns = time.monotonic_ns() - asked.started_ns
        query = asked.query
        spoken = Dns(query.name, type_name(query.qtype), code, answer.texts, answer.ttl_s, latency_ns)
        self._record(
            L7Record(
                listener=asked.rules.number,
                time_ns=time.time_ns(),
                source=text(asked.client[0]),
                source_port=asked.client[1],
                destination=text(asked.resolver[0]),
                destination_port=asked.resolver[1],
                l7=spoken,
                direction="ingress" if asked.rules.ingress else "egress",
                denied=denied,
                transport=asked.transport,
            )
        )

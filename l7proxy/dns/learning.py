"""From answers to addresses in the kernel: an answer waits until what it brings is there.

A pair of name and address that a rule needs (toFQDNs) is *told* to whoever keeps the kernel (the agent, `subscribe`),
and *settled* once they say so; answers wait for their pairs. While nobody listens, `absent` is asked to do it. An
answer that brings nothing new is released at once, as is one that no rule needs: it is told, too, but not waited for.
"""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import AsyncGenerator, Callable, Iterable
from typing import Protocol

import msgspec

from l7proxy.dns.answer import Answer
from l7proxy.dns.store import Store
from l7proxy.dns.table import Pair, Table
from policies.l7 import NamePattern
from policies.names import Names

WAIT_S = 4.0
"""For the kernel to be ready. A resolver library asks again after five seconds, and then finds it so."""
WAITING = 4096
"""Answers that wait; more are given up at once."""
TOLD_AT_ONCE = 1000
"""Pairs of one item of news."""

Release = Callable[[bool], None]
"""Called once: whether the answer may go out."""


class Absent(Protocol):
    """What can be done while nobody listens."""

    def settle(self, address: bytes, names: frozenset[str]) -> bool:
        """Put an address that has these names into the kernel; whether it is there."""


class News(msgspec.Struct):
    """One item. `full`: it is all there is. Names → addresses (16 bytes each)."""

    number: int
    learned: dict[str, list[bytes]]
    gone: list[Pair]
    full: bool = False


class Counters(msgspec.Struct):
    learned: int = 0
    settled_absent: int = 0
    given_up: int = 0  # answers that waited in vain
    no_room: int = 0  # addresses that were not learned
    forgotten: int = 0
    unwritten: int = 0  # changes that the disk did not take


class _Waiter:
    __slots__ = ("deadline_s", "left", "release")

    def __init__(self, left: int, release: Release | None, deadline_s: float) -> None:
        self.left = left
        self.release = release
        self.deadline_s = deadline_s


class Learning:
    """`clock` gives wall time in seconds, `monotonic` that of time-outs."""

    def __init__(
        self, table: Table, store: Store, absent: Absent, *, clock: Callable[[], float], monotonic: Callable[[], float]
    ) -> None:
        self.table = table
        self.counters = Counters()
        self._store = store
        self._absent = absent
        self._clock = clock
        self._monotonic = monotonic
        self._needed = Names(())
        self._settled: set[Pair] = set()
        self._by_address: dict[bytes, set[str]] = {}
        self._waiters: dict[Pair, list[_Waiter]] = {}
        self._deadlines: deque[_Waiter] = deque()
        self._number = 0
        self._untold: dict[Pair, bool] = {}  # True: learned; False: gone
        self._told: deque[tuple[int, list[Pair]]] = deque()
        self._told_in: dict[Pair, int] = {}  # the last item that said of a pair that it was learned
        self._subscriber: object | None = None
        self._news = asyncio.Event()
        self._torn = False
        self._extended: set[str] = set()  # names whose ends are not written yet
        for name, address in table.pairs():
            self._by_address.setdefault(address, set()).add(name)

    def need(self, patterns: Iterable[NamePattern]) -> None:
        """What rules name."""
        self._needed = Names(patterns)

    @property
    def subscribed(self) -> bool:
        return self._subscriber is not None

    @property
    def waiting(self) -> int:
        return len(self._deadlines)

    def is_settled(self, pair: Pair) -> bool:
        return pair in self._settled

    def names_of(self, address: bytes) -> frozenset[str]:
        return frozenset(self._by_address.get(address, ()))

    # ---- answers

    def learn(self, name: str, answer: Answer, owner: bytes, release: Release) -> None:
        """An answer to a query for `name` that was allowed. May call `release` before it returns."""
        if not answer.addresses:
            release(True)
            return
        needed = self._needed.allow(name)
        ends_s = self.table.end(answer.ttl_s, self._clock())
        result = self.table.learn(name, answer.addresses, ends_s, owner=owner, needed=needed)
        self._extended.add(name)
        if result.new or result.gone:
            self.counters.learned += len(result.new)
            self._remember(result.new, ends_s)
            self._gone(result.gone)
            for pair in result.new:
                self._by_address.setdefault(pair[1], set()).add(pair[0])
                self._tell(pair, True)
        self.counters.no_room += result.refused
        if not needed:
            release(True)
            return
        open_pairs = {(name, address) for address in answer.addresses} - self._settled
        if open_pairs:  # what found no room never settles: its address is denied, and the answer need not wait for it
            open_pairs = {pair for pair in open_pairs if pair in self.table}
        if open_pairs and self._subscriber is None:
            open_pairs -= self._settle_absent(open_pairs)
        if not open_pairs:
            release(True)
            return
        self._wait(open_pairs, release)

    def expire(self) -> None:
        """Give up answers that have waited for too long. To be called several times a second."""
        now_s = self._monotonic()
        while self._deadlines and (self._deadlines[0].release is None or self._deadlines[0].deadline_s <= now_s):
            waiter = self._deadlines.popleft()
            if waiter.release is not None:
                self.counters.given_up += 1
                release, waiter.release = waiter.release, None
                release(False)
        for pair in [pair for pair, held in self._waiters.items() if all(w.release is None for w in held)]:
            del self._waiters[pair]

    def _wait(self, pairs: set[Pair], release: Release) -> None:
        if len(self._deadlines) >= WAITING:
            self.counters.given_up += 1
            release(False)
            return
        waiter = _Waiter(len(pairs), release, self._monotonic() + WAIT_S)
        self._deadlines.append(waiter)
        for pair in pairs:
            self._waiters.setdefault(pair, []).append(waiter)

    # ---- the other side

    async def subscribe(self) -> AsyncGenerator[News, None]:
        """All that is known, then what changes. A new subscriber takes the place of the one before."""
        me = self._subscriber = object()
        self._begin_anew()
        self._settled.clear()  # until they say that they have it
        self._news.set()  # wakes the one before
        try:
            yield self._all()
            while self._subscriber is me:
                if not self._untold:
                    self._news.clear()
                    await self._news.wait()
                    continue
                yield self._next()
        finally:
            if self._subscriber is me:
                self._subscriber = None
                self._begin_anew()
                self._settle_absent(list(self._waiters))

    def settled(self, number: int) -> None:
        """All that was told up to this item is in the kernel."""
        while self._told and self._told[0][0] <= number:
            item, pairs = self._told.popleft()
            self._settle(pair for pair in pairs if self._told_in.get(pair) == item and pair not in self._untold)

    def _all(self) -> News:
        self._number += 1
        learned = {name: list(held) for name, held in self.table.items()}
        self._note_told(list(self.table.pairs()))
        return News(self._number, learned, [], full=True)

    def _next(self) -> News:
        self._number += 1
        news = News(self._number, {}, [])
        pairs: list[Pair] = []
        for pair in list(self._untold)[:TOLD_AT_ONCE]:
            if self._untold.pop(pair):
                news.learned.setdefault(pair[0], []).append(pair[1])
                pairs.append(pair)
            else:
                news.gone.append(pair)
                self._told_in.pop(pair, None)
        self._note_told(pairs)
        return news

    def _note_told(self, pairs: list[Pair]) -> None:
        self._told.append((self._number, pairs))
        self._told_in.update(dict.fromkeys(pairs, self._number))

    def _begin_anew(self) -> None:
        self._told.clear()
        self._told_in.clear()
        self._untold.clear()

    def _tell(self, pair: Pair, learned: bool) -> None:
        if self._subscriber is None:
            return
        self._untold.pop(pair, None)  # what is told keeps the order of the last changes
        self._untold[pair] = learned
        self._news.set()

    def _settle(self, pairs: Iterable[Pair]) -> None:
        for pair in pairs:
            if pair not in self.table:
                continue
            self._told_in.pop(pair, None)
            self._settled.add(pair)
            for waiter in self._waiters.pop(pair, ()):
                waiter.left -= 1
                if not waiter.left and waiter.release is not None:
                    release, waiter.release = waiter.release, None
                    release(True)

    def _settle_absent(self, pairs: Iterable[Pair]) -> set[Pair]:
        done = {pair for pair in pairs if self._absent.settle(pair[1], self.names_of(pair[1]))}
        self.counters.settled_absent += len(done)
        self._settle(done)
        return done

    # ---- the end of pairs

    def due(self) -> list[Pair]:
        """Pairs whose time has ended; none while nobody could take them out of the kernel."""
        return self.table.due(self._clock()) if self.subscribed else []

    def forget(self, pairs: Iterable[Pair]) -> None:
        """Of the due ones, those that no connection needs."""
        gone = [pair for pair in pairs if pair in self.table]
        for pair in gone:
            self.table.forget(pair)
        self._gone(gone)
        if gone:
            self._write({}, gone)

    def save(self) -> None:
        """Ends of pairs that live on are not written one by one: to be called now and then."""
        ends = {name: dict(self.table.addresses(name)) for name in self._extended}
        self._extended.clear()
        if ends:
            self._write(ends, [])

    def _gone(self, pairs: Iterable[Pair]) -> None:
        for pair in pairs:
            self.counters.forgotten += 1
            self._settled.discard(pair)
            names = self._by_address.get(pair[1], set())
            names.discard(pair[0])
            if not names:
                self._by_address.pop(pair[1], None)
            self._tell(pair, False)

    def _remember(self, pairs: Iterable[Pair], ends_s: float) -> None:
        ends: dict[str, dict[bytes, float]] = {}
        for name, address in pairs:
            if (name, address) in self.table:
                ends.setdefault(name, {})[address] = ends_s
        self._write(ends, [])

    def _write(self, ends: dict[str, dict[bytes, float]], gone: list[Pair]) -> None:
        """A disk that takes nothing holds up no answer: what was not written is lost with the process alone."""
        try:
            if self._torn or not self._store.note(ends, gone):
                self._store.save(self.table)
            self._torn = False
        except OSError:
            self._torn = True  # the journal may end within a line: the next time all is written anew
            self.counters.unwritten += 1

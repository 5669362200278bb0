"""The most recent events, as bytes in one block of memory. Nothing here depends on how fast they come.

Events are numbered from 0 as they are appended; names and records are made when somebody looks.
"""

from __future__ import annotations

import asyncio
import sys
from collections import Counter, deque
from collections.abc import Sequence

import msgspec

from agent.datapath.abi import Abi
from agent.flows.record import L7_EVENT, drop_reasons, event_types
from l7proxy.records import L7

LOSSES = 256


class Loss(msgspec.Struct, frozen=True):
    """`count` events are missing, somewhere before event `seq`. `number` counts losses from 1, `where`: see Lost."""

    number: int
    seq: int
    time_ns: int
    count: int
    where: str = "kernel"


Tally = Counter[tuple[int, int]]
"""How many events of which (type, reason)."""


class Store:
    """`first` ≤ the numbers of the events held < `next`."""

    def __init__(self, abi: Abi, capacity: int) -> None:
        record = abi.records["event"]
        self.capacity = capacity
        self.first = 0
        self.next = 0
        self.totals: Tally = Counter()  # of all events before `next`
        self.forgotten: Tally = Counter()  # of those before `first`
        self.losses: deque[Loss] = deque(maxlen=LOSSES)
        self._l7: list[L7 | None] = [None] * capacity  # what else is known of events of type l7
        self._size = record.size
        self._time_at, self._type_at, self._reason_at = map(record.offset, ("time_ns", "type", "reason"))
        self._ring = bytearray(capacity * record.size)
        self._changed: asyncio.Future[None] | None = None

    def append(self, data: bytes) -> None:
        """Any number of whole events, oldest first."""
        count = len(data) // self._size
        kept = min(count, self.capacity)
        overwritten = max(self.next - self.first + kept - self.capacity, 0)
        self.forgotten.update(self.tally(self.read(self.first, overwritten)))
        self.forgotten.update(self.tally(data[: (count - kept) * self._size]))
        self.totals.update(self.tally(data))
        self._write(self.next + count - kept, data[(count - kept) * self._size :])
        self.next += count
        self.first = max(self.first, self.next - self.capacity)
        self._wake()

    def append_l7(self, data: bytes, details: Sequence[L7]) -> None:
        """Whole events of type l7, oldest first, and what each is about."""
        for seq, detail in enumerate(details, self.next):
            self._l7[seq % self.capacity] = detail
        self.append(data)

    def l7(self, seq: int) -> L7 | None:
        """Of event number `seq`, which must be held and be of that type."""
        return self._l7[seq % self.capacity]

    def _write(self, seq: int, data: bytes) -> None:
        start = seq % self.capacity * self._size
        room = len(self._ring) - start
        self._ring[start : start + min(room, len(data))] = data[:room]
        self._ring[: len(data[room:])] = data[room:]

    def read(self, seq: int, count: int) -> bytes:
        """Up to `count` events from number `seq` on, which must be held."""
        start, size = seq % self.capacity * self._size, min(count, self.next - seq) * self._size
        head = bytes(self._ring[start : start + size])
        return head + bytes(self._ring[: size - len(head)])

    def tally(self, data: bytes) -> Tally:
        return Counter(zip(data[self._type_at :: self._size], data[self._reason_at :: self._size], strict=True))

    @property
    def newest_ns(self) -> int:
        """CLOCK_MONOTONIC of the event appended last; 0 where there is none."""
        if not self.next:
            return 0
        newest = self.read(self.next - 1, 1)
        return int.from_bytes(newest[self._time_at : self._time_at + 8], sys.byteorder)

    def lose(self, count: int, time_ns: int, where: str = "kernel") -> None:
        """The datapath (or a proxy) could not report `count` events since it was last asked."""
        number = self.losses[-1].number + 1 if self.losses else 1
        self.losses.append(Loss(number, self.next, time_ns, count, where))
        self._wake()

    async def changed(self) -> None:
        """Until something is appended or lost."""
        if self._changed is None:
            self._changed = asyncio.get_running_loop().create_future()
        await asyncio.shield(self._changed)

    def _wake(self) -> None:
        if self._changed is not None:
            self._changed.set_result(None)
            self._changed = None


def kind_names(abi: Abi) -> dict[tuple[int, int], str]:
    """(type, reason) → what a tally calls it: "new", "end", "l7"; "drop" or "l7" with its reason."""
    types = event_types(abi)
    kinds = {(number, 0): str(kind) for number, kind in types.items()}
    return kinds | {
        (kind, number): f"{types[kind]} {name}"
        for kind in (abi.constants.EVENT_DROP, L7_EVENT)
        for number, name in drop_reasons(abi).items()
    }

"""Reading the store for one observer: what is held, then what comes. Who is too slow is told what was passed over."""

from __future__ import annotations

import asyncio
import time
from collections import Counter
from collections.abc import AsyncGenerator

from agent.api.protocol import Batch
from agent.datapath.abi import Abi
from agent.flows.clock import WallClock
from agent.flows.filters import Filter
from agent.flows.flow import Flow, Lost
from agent.flows.record import L7_EVENT, Recorder
from agent.flows.store import Store, Tally, kind_names

CHUNK = 256
"""Events looked at in one go: some 3 ms where all of them are wanted."""

TURN_S = 0.003
"""Others get their turn after that: who wants little can look at more."""


class Observer:
    """One pass over the store. `missed` counts the events its reader was too slow for."""

    def __init__(self, abi: Abi, store: Store, recorder: Recorder, clock: WallClock, wanted: Filter) -> None:
        self.missed = 0
        self._store = store
        self._recorder = recorder
        self._clock = clock
        self._wanted = wanted
        self._records = abi.records["event"].records
        self._kinds = kind_names(abi)
        self._seq = 0  # of the event to look at next
        self._seen: Tally = Counter()  # of all events before that
        self._losses_seen = 0
        self._skip = 0

    async def run(self, last: int | None, *, follow: bool) -> AsyncGenerator[Batch, None]:
        """The newest `last` records wanted (None: all that is held), oldest first; then, with `follow`, new ones."""
        store = self._store
        end = store.next
        await self._begin(last)
        while follow or self._seq < end:
            batch = self._step(store.next if follow else end, follow=follow)
            if batch:
                yield batch
            elif follow and self._seq >= store.next:
                await store.changed()
            else:
                await asyncio.sleep(0)

    async def _begin(self, last: int | None) -> None:
        """Go to where the newest `last` records wanted begin."""
        store = self._store
        if last is None:
            self._seq, self._seen = store.first, store.forgotten.copy()
        else:
            self._seq, self._seen = store.next, store.totals.copy()
            self._losses_seen = store.losses[-1].number if store.losses else 0
            found = 0
            while found < last and self._seq > store.first:
                start = max(store.first, self._seq - CHUNK)
                flows = self._flows(start, store.read(start, self._seq - start))
                found += len(flows)
                if found > last:  # the first to show may be the second of its event
                    start = flows[found - last].seq
                    self._skip = int(flows[found - last - 1].seq == start)
                self._seen -= store.tally(store.read(start, self._seq - start))
                self._seq = start
                await asyncio.sleep(0)
        if self._seq < store.next:
            self._losses_seen = max((loss.number for loss in store.losses if loss.seq <= self._seq), default=0)

    def _step(self, goal: int, *, follow: bool) -> Batch:
        """The next few events, or a word on those that are passed over; and on what was lost before."""
        store, batch = self._store, Batch()
        if follow and store.next - self._seq > store.capacity // 2:
            batch.append(self._pass_over(store.next, store.totals))
        elif self._seq < store.first:
            batch.append(self._pass_over(store.first, store.forgotten))
        turn_ends = time.monotonic() + TURN_S
        while store.first <= self._seq < goal and time.monotonic() < turn_ends:
            batch.extend(self._look(store.read(self._seq, min(CHUNK, goal - self._seq))))
        batch.extend(self._losses())
        return batch

    def _look(self, data: bytes) -> list[Flow]:
        flows = self._flows(self._seq, data)
        shown = flows[self._skip :]
        self._skip = max(self._skip - len(flows), 0)
        tally = self._store.tally(data)
        self._seen.update(tally)
        self._seq += tally.total()
        return shown

    def _flows(self, seq: int, data: bytes) -> list[Flow]:
        wanted, wall_ns, flows = self._wanted, self._clock.wall_ns, self._recorder.flows
        is_timed, l7 = wanted.is_timed, self._store.l7
        return [
            flow
            for number, event in enumerate(self._records(data), seq)
            if wanted.event(event) and not (is_timed and not wanted.time(wall_ns(event.time_ns)))
            for flow in flows(number, event, l7(number) if event.type == L7_EVENT else None)
            if wanted.flow(flow)
        ]

    def _pass_over(self, target: int, until: Tally) -> Lost:
        """Go on at event `target`; `until` counts all before it."""
        passed = until - self._seen
        self._seen, self._seq, self._skip = until.copy(), target, 0
        self.missed += passed.total()
        summary = {self._kinds.get(kind, "other"): count for kind, count in passed.most_common()}
        return Lost(self._clock.text(self._store.newest_ns), "observer", passed.total(), summary)

    def _losses(self) -> list[Lost]:
        fresh = [loss for loss in self._store.losses if self._losses_seen < loss.number and loss.seq <= self._seq]
        if fresh:
            self._losses_seen = fresh[-1].number
        return [Lost(self._clock.text(loss.time_ns), loss.where, loss.count) for loss in fresh]

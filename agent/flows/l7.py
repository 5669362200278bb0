"""What proxies report, on its way into the store: Envoy by its access log, the DNS proxy by flows.sock.

Requests may come faster than is worth recording: of those beyond RECORDS_PER_S only the number is kept, as it is for
events the kernel has no room for.
"""

from __future__ import annotations

import os
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from agent import log as logs
from agent import privileges
from agent.api.address import socket_address
from agent.datapath.abi import Abi
from agent.datapath.maps import Maps
from agent.flows.clock import WallClock
from agent.flows.judgements import Ends, Judged, Judgements
from agent.flows.store import Store
from l7proxy.records import L7, L7Record

if TYPE_CHECKING:
    from l7proxy.accesslog import AccessLog

RECORDS_PER_S, BURST = 10_000, 20_000
"""To take in one costs some 20 µs, and each flow a look-up in conntrack. More may come at once after a quiet time."""

log = logs.get("flows.l7")


class L7Intake:
    """Takes records in, in the event loop (l7proxy.accesslog.Sink). `catch_up` takes in the events before them."""

    def __init__(
        self,
        abi: Abi,
        maps: Maps,
        store: Store,
        clock: WallClock,
        now_ns: Callable[[], int] = time.monotonic_ns,
    ) -> None:
        self.taken = 0
        self.lost = 0
        self._unsaid = 0  # of those lost
        self._judgements = Judgements(abi, maps)
        self._store, self._clock, self._now_ns = store, clock, now_ns
        self._room, self._since_ns = float(BURST), now_ns()
        self.catch_up: Callable[[], None] = lambda: None

    def admit(self, count: int) -> int:
        now_ns = self._now_ns()
        self._room = min(self._room + (now_ns - self._since_ns) * RECORDS_PER_S / 1e9, BURST)
        self._since_ns = now_ns
        admitted = min(count, int(self._room))
        self._room -= admitted
        self.lose(count - admitted)
        return admitted

    def take(self, records: Sequence[L7Record]) -> None:
        """Those that were admitted."""
        events: list[bytes] = []
        details: list[L7] = []
        known: dict[Ends, Judged] = {}
        for record in records:
            try:
                event = self._judgements.event(record, max(self._clock.monotonic_ns(record.time_ns), 0), known)
            except ValueError:  # addresses that are none
                self.lose(1)
                continue
            events.append(event)
            details.append(record.l7)
        self.catch_up()
        self._store.append_l7(b"".join(events), details)
        self.taken += len(events)

    def lose(self, count: int) -> None:
        self.lost += count
        self._unsaid += count

    def say_lost(self) -> None:
        """Once in a while, not for each."""
        if self._unsaid:
            self._store.lose(self._unsaid, self._now_ns(), "proxy")
            log.warning("more requests than are recorded", records_lost=self._unsaid)
            self._unsaid = 0


class EnvoyLog:
    """The service for Envoy's access log at a socket. It imports gRPC, so it is there only once somebody has asked for
    it; and in each later process, which finds the socket."""

    def __init__(self, path: Path, intake: L7Intake, *, redacted: bool) -> None:
        self.path = path
        self._intake = intake
        self._redacted = redacted
        self._service: AccessLog | None = None

    async def open(self) -> None:
        """Raises OSError. Does nothing where it is open."""
        if self._service is not None:
            return
        from l7proxy.accesslog import AccessLog  # noqa: PLC0415  # 20 MB

        service = AccessLog(self._intake, redacted=self._redacted)
        privileges.make_folder(self.path.parent)
        # Under another name first: so what a dead process left can be replaced, and gRPC leaves it when it ends.
        fresh = self.path.with_name(f".{self.path.name}.{os.getpid()}")
        fresh.unlink(missing_ok=True)
        before = os.umask(0o177)
        try:
            with socket_address(fresh) as address:
                await service.start(address)
        finally:
            os.umask(before)
        privileges.share(fresh)
        fresh.rename(self.path)
        self._service = service
        log.info("access log of Envoy is taken in", socket=str(self.path))

    async def reopen(self) -> None:
        """Where the process before had it open."""
        if self.path.exists():
            await self.open()

    async def close(self) -> None:
        if self._service is not None:
            await self._service.stop()

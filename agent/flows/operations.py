"""What can be asked at flows.sock.

observe {filters: {NAME: [VALUE]}, last, follow}   records (flow.Flow) and gaps (flow.Lost), see filters.OPTIONS
stats                                              Stats
forget {ips: [ADDRESS]}                            {entries}: conntrack entries removed, two a flow
ping                                               {pid, version, pin_dir, node}
retire {frontends: [{ip, port, keep: [[IP, PORT]]}]}  {entries}: of UDP flows through these to other backends
stop                                               {}
"""

from __future__ import annotations

import os
import time
from collections.abc import AsyncGenerator, Mapping
from importlib.metadata import version
from typing import Annotated, Any

import msgspec

from agent.api.protocol import ApiError, Batch
from agent.api.server import Handler
from agent.datapath.abi import be16
from agent.flows.conntrack import Sweep
from agent.flows.engine import Flows
from agent.flows.filters import FilterError, parse
from agent.flows.observe import Observer
from agent.flows.record import Recorder, drop_reasons
from policies.address import parse_address

OBSERVERS = 16
"""At a time: all of them get a turn before the ring is looked at again."""


PortNumber = Annotated[int, msgspec.Meta(ge=1, le=65535)]


class ObserveArguments(msgspec.Struct, forbid_unknown_fields=True):
    """`last` None: all that is held."""

    filters: dict[str, list[str]] = {}
    last: Annotated[int, msgspec.Meta(ge=0)] | None = None
    follow: bool = False


class ForgetArguments(msgspec.Struct, forbid_unknown_fields=True):
    ips: list[str]


class FrontendArguments(msgspec.Struct, forbid_unknown_fields=True):
    ip: str
    port: PortNumber
    keep: list[tuple[str, PortNumber]]


class RetireArguments(msgspec.Struct, forbid_unknown_fields=True):
    frontends: list[FrontendArguments]


class ConntrackStats(msgspec.Struct, kw_only=True):
    entries: int  # two a flow
    capacity: int
    host_entries: int  # of flows the node itself began
    host_capacity: int
    sweeps: int
    interval_s: float  # to the next sweep
    last: Sweep
    last_host: Sweep


class Stats(msgspec.Struct, kw_only=True):
    """`tallies` and `drops` count since the maps were made, the rest since this process began."""

    pid: int
    version: str
    node: str
    uptime_s: float
    events_seen: int
    events_held: int
    events_lost: int  # the kernel's ring was full; since the maps were made
    records_lost: int  # events that observers were too slow for
    observers: int
    drops: dict[str, int]  # reason → packets
    tallies: dict[str, int]
    conntrack: ConntrackStats
    names: dict[str, int]
    agent_connected: bool


class Operations:
    def __init__(self, flows: Flows) -> None:
        self._flows = flows
        self._recorder = Recorder(flows.abi, flows.names, flows.clock)
        self._reasons = drop_reasons(flows.abi)
        self._tallies = {
            name.removeprefix("TALLY_").lower(): number
            for name, number in flows.abi.constants.items()
            if name.startswith("TALLY_")
        }
        self._observers: set[Observer] = set()
        self._missed = 0  # by observers that are gone
        self._started = time.monotonic()
        self._version = version("gatehouse")

    def handlers(self) -> Mapping[str, Handler]:
        return {
            "observe": self.observe,
            "stats": self.stats,
            "forget": self.forget,
            "retire": self.retire,
            "ping": self.ping,
            "stop": self.stop,
        }

    async def observe(self, arguments: dict[str, Any]) -> AsyncGenerator[Batch, None]:
        request = msgspec.convert(arguments, ObserveArguments)
        flows = self._flows
        try:
            wanted = parse(request.filters, time.time_ns(), flows.abi)
        except FilterError as error:
            raise ApiError(str(error)) from None
        if len(self._observers) >= OBSERVERS:
            raise ApiError(f"{OBSERVERS} clients observe already: end one of them first")
        observer = Observer(flows.abi, flows.store, self._recorder, flows.clock, wanted)
        self._observers.add(observer)
        try:
            async for batch in observer.run(request.last, follow=request.follow):
                yield batch
        finally:
            self._observers.discard(observer)
            self._missed += observer.missed

    async def stats(self, _arguments: dict[str, Any]) -> Stats:
        flows = self._flows
        drops = flows.maps["drops"].sums()
        tallies = flows.maps["tallies"].sums()
        return Stats(
            pid=os.getpid(),
            version=self._version,
            node=flows.names.node,
            uptime_s=round(time.monotonic() - self._started, 3),
            events_seen=flows.store.next,
            events_held=flows.store.next - flows.store.first,
            events_lost=tallies[flows.abi.constants.TALLY_EVENTS_LOST],
            records_lost=self._missed + sum(observer.missed for observer in self._observers),
            observers=len(self._observers),
            drops={name: drops[number] for number, name in self._reasons.items() if drops[number]},
            tallies={name: tallies[number] for name, number in self._tallies.items()},
            conntrack=self._conntrack(),
            names=flows.names.counts(),
            agent_connected=flows.subscription.connected,
        )

    def _conntrack(self) -> ConntrackStats:
        collector, maps = self._flows.collector, self._flows.maps
        return ConntrackStats(
            entries=collector.conntrack.entries,
            capacity=maps["conntrack"].spec.max_entries,
            host_entries=collector.host.entries,
            host_capacity=maps["conntrack_host"].spec.max_entries,
            sweeps=collector.sweeps,
            interval_s=collector.interval_s,
            last=collector.conntrack,
            last_host=collector.host,
        )

    async def forget(self, arguments: dict[str, Any]) -> dict[str, int]:
        request = msgspec.convert(arguments, ForgetArguments)
        try:
            addresses = [parse_address(ip) for ip in request.ips]
        except ValueError as error:
            raise ApiError(f"forget: {error}") from None
        return {"entries": await self._flows.collector.forget(addresses)}

    async def retire(self, arguments: dict[str, Any]) -> dict[str, int]:
        request = msgspec.convert(arguments, RetireArguments)
        try:
            frontends = {
                (parse_address(f.ip), be16(f.port)): frozenset((parse_address(ip), be16(port)) for ip, port in f.keep)
                for f in request.frontends
            }
        except ValueError as error:
            raise ApiError(f"retire: {error}") from None
        return {"entries": await self._flows.collector.retire(frontends)}

    async def ping(self, _arguments: dict[str, Any]) -> dict[str, Any]:
        flows = self._flows
        return {
            "pid": os.getpid(),
            "version": self._version,
            "pin_dir": str(flows.pin_dir),
            "node": flows.names.node,
        }

    async def stop(self, _arguments: dict[str, Any]) -> dict[str, Any]:
        self._flows.stopping.set()
        return {}

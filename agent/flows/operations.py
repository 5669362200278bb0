"""What can be asked at flows.sock.

observe {filters: {NAME: [VALUE]}, last, follow}   records (flow.Flow) and gaps (flow.Lost), see filters.OPTIONS
stats                                              Stats
forget {ips: [ADDRESS]}                            {entries}: those of conntrack and nat removed, two a flow
ping                                               {pid, version, pin_dir, node}
backends                                           frontends in use, each {ip, port, protocol, backends: [[IP, PORT]]}
retire {frontends: [as above], until_ns,           {entries, sockets}: of flows through these to these, which are ended
        namespaces: [PATH]}
l7 {records: [l7proxy.records.L7Record]}           {taken}: what the DNS proxy judged
access_log                                         {path}: the socket for Envoy's access log, which is there from now on
stop                                               {}
"""

from __future__ import annotations

import os
import time
from collections.abc import AsyncGenerator, Iterator, Mapping
from importlib.metadata import version
from typing import Annotated, Any

import msgspec

from agent.api.protocol import ApiError, Batch
from agent.api.server import Handler
from agent.datapath.abi import be16
from agent.flows.affinity import AffinitySweep
from agent.flows.engine import Flows
from agent.flows.filters import FilterError, parse
from agent.flows.observe import Observer
from agent.flows.pairs import Pair
from agent.flows.record import PORT_PROTOCOLS, Recorder, drop_reasons
from agent.flows.sweeper import Sweep
from l7proxy.records import L7Record
from policies.address import format_address, parse_address
from policies.model import Protocol

OBSERVERS = 16
"""At a time: all of them get a turn before the ring is looked at again."""


FRONTENDS_AT_ONCE = 256

PortNumber = Annotated[int, msgspec.Meta(ge=1, le=65535)]


class ObserveArguments(msgspec.Struct, forbid_unknown_fields=True):
    """`last` None: all that is held."""

    filters: dict[str, list[str]] = {}
    last: Annotated[int, msgspec.Meta(ge=0)] | None = None
    follow: bool = False


class ForgetArguments(msgspec.Struct, forbid_unknown_fields=True):
    ips: list[str]


class FrontendBackends(msgspec.Struct, forbid_unknown_fields=True):
    ip: str
    port: PortNumber
    protocol: str  # TCP, UDP or SCTP
    backends: list[tuple[str, PortNumber]]


class RetireArguments(msgspec.Struct, forbid_unknown_fields=True):
    """`until_ns` (CLOCK_MONOTONIC): younger flows chose their backend when it served again. `namespaces`: paths of the
    network namespaces that pods' sockets are in."""

    frontends: list[FrontendBackends]
    until_ns: int
    namespaces: list[str] = []


class L7Arguments(msgspec.Struct, forbid_unknown_fields=True):
    records: list[L7Record]


class MapStats(msgspec.Struct):
    """As the last sweep left it."""

    entries: int
    capacity: int
    expired: int


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
    l7_records: int  # of proxies, taken in
    l7_records_lost: int  # there were too many, or they could not be read
    drops: dict[str, int]  # reason → packets
    tallies: dict[str, int]
    conntrack: ConntrackStats
    maps: dict[str, MapStats]  # those that flows fill: conntrack, conntrack_host, nat, affinity
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
            "backends": self.backends,
            "retire": self.retire,
            "ping": self.ping,
            "l7": self.l7,
            "access_log": self.access_log,
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
            l7_records=flows.l7.taken,
            l7_records_lost=flows.l7.lost,
            drops={name: drops[number] for number, name in self._reasons.items() if drops[number]},
            tallies={name: tallies[number] for name, number in self._tallies.items()},
            conntrack=self._conntrack(),
            maps=self._maps(),
            names=flows.names.counts(),
            agent_connected=flows.subscription.connected,
        )

    def _conntrack(self) -> ConntrackStats:
        collector, maps = self._flows.collector, self._flows.maps
        swept = collector.swept
        return ConntrackStats(
            entries=swept["conntrack"].entries,
            capacity=maps["conntrack"].spec.max_entries,
            host_entries=swept["conntrack_host"].entries,
            host_capacity=maps["conntrack_host"].spec.max_entries,
            sweeps=collector.sweeps,
            interval_s=collector.interval_s,
            last=swept["conntrack"],
            last_host=swept["conntrack_host"],
        )

    def _maps(self) -> dict[str, MapStats]:
        collector = self._flows.collector
        swept: dict[str, Sweep | AffinitySweep] = {**collector.swept, "affinity": collector.affinity}
        return {
            name: MapStats(sweep.entries, self._flows.maps[name].spec.max_entries, sweep.expired)
            for name, sweep in swept.items()
        }

    async def forget(self, arguments: dict[str, Any]) -> dict[str, int]:
        request = msgspec.convert(arguments, ForgetArguments)
        try:
            addresses = [parse_address(ip) for ip in request.ips]
        except ValueError as error:
            raise ApiError(f"forget: {error}") from None
        return {"entries": await self._flows.collector.forget(addresses)}

    async def backends(self, _arguments: dict[str, Any]) -> AsyncGenerator[Batch, None]:
        found: dict[tuple[bytes, int, int], list[tuple[str, int]]] = {}
        for address, port_be, protocol, backend, backend_port_be in await self._flows.collector.used():
            backends = found.setdefault((address, port_be, protocol), [])
            backends.append((format_address(backend), be16(backend_port_be)))
        frontends = [
            FrontendBackends(format_address(address), be16(port_be), Protocol.BY_NUMBER[protocol], sorted(backends))
            for (address, port_be, protocol), backends in found.items()
            if protocol in PORT_PROTOCOLS
        ]
        for start in range(0, len(frontends), FRONTENDS_AT_ONCE):
            yield Batch(frontends[start : start + FRONTENDS_AT_ONCE])

    async def retire(self, arguments: dict[str, Any]) -> dict[str, int]:
        request = msgspec.convert(arguments, RetireArguments)
        try:
            pairs = [pair for frontend in request.frontends for pair in _pairs(frontend)]
        except ValueError as error:
            raise ApiError(f"retire: {error}") from None
        entries, sockets = await self._flows.collector.retire(pairs, request.until_ns, request.namespaces)
        return {"entries": entries, "sockets": sockets}

    async def l7(self, arguments: dict[str, Any]) -> dict[str, int]:
        records = msgspec.convert(arguments, L7Arguments).records
        intake = self._flows.l7
        admitted = records[: intake.admit(len(records))]
        intake.take(admitted)
        return {"taken": len(admitted)}

    async def access_log(self, _arguments: dict[str, Any]) -> dict[str, str]:
        envoy_log = self._flows.envoy_log
        try:
            await envoy_log.open()
        except OSError as error:
            raise ApiError(f"access_log: {error}; check the state directory") from None
        return {"path": str(envoy_log.path)}

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


def _pairs(given: FrontendBackends) -> Iterator[Pair]:
    """Raises ValueError."""
    protocol = Protocol.BY_NAME.get(given.protocol)
    if protocol is None:
        raise ValueError(f"{given.protocol!r} is no protocol of a service: give one of {', '.join(Protocol.BY_NAME)}")
    for ip, port in given.backends:
        yield parse_address(given.ip), be16(given.port), protocol, parse_address(ip), be16(port)

"""The DNS proxy in one event loop: what the process does, and what its socket answers.

configure   {}              read dns.json again → {"ports": {number: {"tcp", "udp"}}, "problems": {number: text}}
learn       {}              stream: {"id", "full", "learned": {name: [address, …]}, "gone": [[name, address], …]}
learned     {"id"}          all up to this item is in the kernel → {}
end         {"flows": [{"listener": number, "pod": address}, …]}     connections close that other rules judge now
names       {}              [{"name", "address", "expires_s", "settled"}, …]
status      {}              counters
stop        {}
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncGenerator
from pathlib import Path
from typing import Any

import msgspec

from agent import log as logs
from agent.api.server import Handler, Server
from agent.datapath import abi
from agent.datapath.maps import Maps
from agent.dns import configuration
from agent.dns.configuration import Configuration
from agent.dns.feed import Feed
from agent.dns.lives import live_addresses
from agent.dns.standing import AbsentAgent
from l7proxy.dns.learning import Learning, News
from l7proxy.dns.proxy import Proxy, Wanted
from l7proxy.dns.rules import Judge, Rules
from l7proxy.dns.sockets import Marks
from l7proxy.dns.store import Store
from l7proxy.dns.table import Limits, Table
from l7proxy.listening import listener_name
from policies.address import format_address, parse_address

NUMBERS = abi.load().constants
MARKS = Marks(NUMBERS.MARK_FROM_EGRESS, NUMBERS.MARK_FROM_INGRESS, NUMBERS.MARK_PROXY_ANSWERS)
NAMES_FILE = "names.json"
EXPIRE_S = 5.0
"""How often names whose time has ended are looked at; conntrack is read as often, if there are any."""
SAVE_S = 30.0
ALIVE_S = 2.0

log = logs.get("dns")


class _Item(msgspec.Struct):
    id: int


class _Flow(msgspec.Struct):
    listener: str
    pod: str


class _Ending(msgspec.Struct):
    flows: list[_Flow]


class Service:
    """`maps`: the kernel's, opened. Make it inside the loop."""

    def __init__(self, state_dir: Path, maps: Maps) -> None:
        self.stopping = asyncio.Event()
        self._state_dir = state_dir
        self._conntrack = maps["conntrack"]
        self._absent = AbsentAgent(maps["ipcache"])
        self._table = Table()
        self._store = Store(state_dir / NAMES_FILE)
        if problem := self._store.load(self._table, time.time()):
            log.error("names were lost", problem=problem)
        self.learning = Learning(self._table, self._store, self._absent, clock=time.time, monotonic=time.monotonic)
        self._feed = Feed(state_dir / "flows.sock")
        self.judge = Judge(self.learning, self._feed.put)
        self._proxy = Proxy(self.judge, self.learning, MARKS)

    def start(self) -> None:
        """As the file says. One that cannot be used is reported: nothing is then served until the agent comes."""
        try:
            self._apply(configuration.load(self._state_dir / configuration.FILE))
        except configuration.Unusable as unusable:
            log.error("no configuration", problem=str(unusable))

    async def run(self, server: Server) -> None:
        """Until told to stop, or the socket's path leads elsewhere."""
        works = (self._proxy.run(), self._feed.run(), self._expire(), self._save())
        tasks: list[asyncio.Future[None]] = [asyncio.ensure_future(work) for work in works]
        stop = asyncio.ensure_future(self.stopping.wait())
        everything: set[asyncio.Future[Any]] = {stop, *tasks}
        try:
            while not stop.done() and server.reachable():
                await asyncio.wait(everything, timeout=ALIVE_S, return_when=asyncio.FIRST_COMPLETED)
                for task in tasks:
                    if task.done():
                        task.result()  # none ends by itself
        finally:
            for one in everything:
                one.cancel()
            await asyncio.wait(everything)
            await self._proxy.close()
            if self._state_dir.is_dir():
                self.learning.save()
            self._store.close()

    def handlers(self) -> dict[str, Handler]:
        return {
            "configure": self.configure,
            "learn": self.learn,
            "learned": self.learned,
            "end": self.end,
            "names": self.names,
            "status": self.status,
            "stop": self.stop,
        }

    # ---- operations

    async def configure(self, _arguments: dict[str, Any]) -> dict[str, Any]:
        try:
            problems = self._apply(configuration.load(self._state_dir / configuration.FILE))
        except configuration.Unusable as unusable:
            log.error("configuration refused: the one before stays in force", problem=str(unusable))
            return {"ports": self._ports(), "problems": {"": str(unusable)}}
        return {"ports": self._ports(), "problems": {listener_name(number): why for number, why in problems.items()}}

    async def learn(self, _arguments: dict[str, Any]) -> AsyncGenerator[dict[str, Any], None]:
        log.info("agent subscribed", names=len(self._table))
        news = self.learning.subscribe()
        try:
            async for item in news:
                yield _spoken(item)
        finally:
            await news.aclose()
            log.info("subscription ended", agent_there=self.learning.subscribed)

    async def learned(self, arguments: dict[str, Any]) -> dict[str, Any]:
        self.learning.settled(msgspec.convert(arguments, _Item).id)
        return {}

    async def end(self, arguments: dict[str, Any]) -> dict[str, int]:
        flows = msgspec.convert(arguments, _Ending).flows
        return {"ended": sum(self._proxy.end(int(one.listener, 16), parse_address(one.pod)) for one in flows)}

    async def names(self, _arguments: dict[str, Any]) -> list[dict[str, Any]]:
        return [
            {
                "name": name,
                "address": format_address(address),
                "expires_s": end,
                "settled": self.learning.is_settled((name, address)),
            }
            for name, held in sorted(self._table.items())
            for address, end in held.items()
        ]

    async def status(self, _arguments: dict[str, Any]) -> dict[str, Any]:
        return {
            "queries": msgspec.to_builtins(self.judge.counters),
            "learning": msgspec.to_builtins(self.learning.counters),
            "names": len(self._table),
            "waiting": self.learning.waiting,
            "pending": self.judge.pending,
            "agent": self.learning.subscribed,
            "records_lost": self._feed.lost,
            "ports": self._ports(),
        }

    async def stop(self, _arguments: dict[str, Any]) -> dict[str, Any]:
        self.stopping.set()
        return {}

    # ---- inside

    def _apply(self, wanted: Configuration) -> dict[int, str]:
        self.judge.refuse = wanted.refuse
        self._table.limits = Limits(wanted.min_ttl_s, wanted.max_addresses)
        self._absent.configure(wanted.standing, wanted.patterns)
        self.learning.need(wanted.patterns)
        listeners = {}
        for text, one in wanted.listeners.items():
            number = int(text, 16)
            listeners[number] = Wanted(Rules.of(number, one.names, one.direction == "ingress"), one.port)
        problems = self._proxy.serve(listeners)
        for number, why in problems.items():
            log.error("no listener: its flows are denied", listener=listener_name(number), problem=why)
        return problems

    def _ports(self) -> dict[str, dict[str, int]]:
        return {listener_name(number): {"tcp": port, "udp": port} for number, port in self._proxy.ports.items()}

    async def _expire(self) -> None:
        while True:
            await asyncio.sleep(EXPIRE_S)
            if due := self.learning.due():
                live = await live_addresses(self._conntrack, {address for _, address in due})
                still = set(self.learning.due())  # an answer may have come meanwhile
                self.learning.forget(pair for pair in due if pair in still and pair[1] not in live)

    async def _save(self) -> None:
        while True:
            await asyncio.sleep(SAVE_S)
            self.learning.save()


def _spoken(item: News) -> dict[str, Any]:
    return {
        "id": item.number,
        "full": item.full,
        "learned": {name: [format_address(a) for a in addresses] for name, addresses in item.learned.items()},
        "gone": [[name, format_address(address)] for name, address in item.gone],
    }

"""The agent's side of the DNS proxy: which names it allows, and the addresses it learns.

What it is to do is written to a file, so that it starts and works while there is no agent, and said at its socket; it
answers where it listens. What names it knows it tells in turn: all at first, then what changes. Each item goes through
one of the agent's turns, and once its addresses are in the kernel the proxy is told, which then lets pods have their
answers. Whoever subscribes is waited for, so nothing is learned behind the agent's back while it starts.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator, Awaitable, Callable, Mapping
from contextlib import aclosing, suppress
from typing import Any

import msgspec

from agent import log as logs
from agent.api import aio
from agent.api.protocol import ApiError
from agent.config import Config
from agent.dns import configuration
from agent.dns.configuration import Configuration, Listening
from agent.dns.words import Known, Listens, News, changes, listening, standing
from agent.helpers import keeping
from agent.identity.allocator import Allocator, ExhaustedError
from agent.instance import Instance
from agent.plan.ids import Asked
from agent.plan.live import Otherwise
from agent.proxy.running import Running
from agent.status import ProxyView
from agent.world.names import NameClasses
from l7proxy.dns import store
from l7proxy.listening import listener_name
from policies.address import format_address
from policies.l7 import NamePattern

FIRST_S = 2.0
"""How long the agent's start waits for a proxy that runs to say what it knows."""
AGAIN_S = 0.1
CALL_S = 5.0
KEY = "dns "
"""Before the listener's name, in what ports are allocated to."""

log = logs.get("dns")

Learn = Callable[[Mapping[str, frozenset[bytes]]], Awaitable[None]]


class DnsSide:
    """`ports`: to listen at, by key. `begin`: see Running. `patterns`: of names that rules ask for, `classes`: what
    these make of addresses; as of the last turn. `learn` returns once it is in the kernel."""

    def __init__(
        self,
        config: Config,
        instance: Instance,
        ports: Allocator,
        patterns: Callable[[], frozenset[NamePattern]],
        classes: Callable[[], NameClasses],
        learn: Learn,
        begin: Callable[[], None],
    ) -> None:
        self.changed = asyncio.Event()
        self.running = Running(keeping.dns(config, instance), config.dns_proxy, begin)
        self._config = config
        self._instance = instance
        self._ports = ports
        self._patterns = patterns
        self._classes = classes
        self._learn = learn
        self._wanted: Mapping[int, Asked] = {}
        self._told: Configuration | None = None
        self._ending: set[tuple[int, bytes]] = set()
        self._tell = asyncio.Event()
        self._all_told = asyncio.Event()
        self._serving: dict[int, tuple[int, int]] = {}
        self._answers = False
        self._problems: dict[str, str] = {}
        self._no_port: dict[int, str] = {}
        self._known: Known = {}
        self._items: AsyncGenerator[Any, None] | None = None
        self._first: News | None = None

    # ---- agent.proxy.proxies.Side

    def takes(self, asked: Asked) -> bool:
        return any(one.dns is not None for one in asked.demands)

    def order(self, wanted: Mapping[int, Asked]) -> None:
        """Also to be called when the classes of names may have changed."""
        for number in self._wanted.keys() - wanted.keys():
            self._serving.pop(number, None)
        self._wanted = dict(wanted)
        if wanted or self._patterns():
            self.running.want()
        if not self.running.is_wanted:
            return
        told = self._configuration(self._classes())
        if told != self._told:
            configuration.save(self._instance.state_dir / configuration.FILE, told)
            self._told = told
            self._say()

    def serving(self) -> Mapping[int, tuple[int, int]]:
        return self._serving

    def is_soon(self) -> bool:
        return self._answers

    # ---- agent.proxy.rules.Judges

    @property
    def lingering(self) -> Mapping[int, Asked]:
        """None: connections to one that is left out are closed."""
        return {}

    def judge_otherwise(self, overrides: Mapping[int, tuple[Otherwise, ...]], alive: frozenset[int]) -> None:  # noqa: ARG002
        """Connections that began by other rules are closed, and begin anew; datagrams go by those of the day anyhow."""
        ending = {(n, one.source) for n, some in overrides.items() if n in self._wanted for one in some}
        if ending:
            self._ending |= ending
            self._say()

    async def told(self) -> None:
        """Until it has taken all that was ordered, or cannot soon."""
        if self.is_soon():
            with suppress(TimeoutError):
                async with asyncio.timeout(CALL_S):
                    await self._all_told.wait()

    # ---- the agent's start

    async def restore(self) -> Known:
        """The names there are, from the proxy if it runs, else from its file. It waits from then on: see `run`."""
        if self.running.is_off:
            return {}
        with suppress(ApiError, TimeoutError):
            async with asyncio.timeout(FIRST_S):
                items = aio.stream(self._instance.dns_socket, "learn")
                try:
                    self._first = msgspec.convert(await anext(items), News)
                except BaseException:
                    await items.aclose()
                    raise
                self._items = items
                self._known = changes({}, [self._first])
        if self._items is None:
            found = store.read(self._instance.dns_names)
            self._known = {name: frozenset(held) for name, held in found.items() if held}
        log.info("names restored", names=len(self._known), from_proxy=self._items is not None)
        return self._known

    # ---- life

    async def run(self) -> None:
        """Until cancelled; the process then goes on."""
        await asyncio.gather(self.running.run(), self._keep_told(), self._keep_learning())

    async def close(self) -> None:
        if self._items is not None:
            await self._items.aclose()

    def view(self) -> ProxyView:
        served = self._serving.keys() if self._answers else set[int]()
        return self.running.view(len(served), len(self._wanted.keys() - served), self.problems())

    def problems(self) -> tuple[str, ...]:
        """Why listeners are not served, as far as it is known."""
        return tuple(dict.fromkeys((*self._no_port.values(), *self._problems.values())))

    # ---- what it is to do

    def _configuration(self, classes: NameClasses) -> Configuration:
        self._no_port.clear()
        listeners: dict[str, Listening] = {}
        for number, asked in sorted(self._wanted.items()):
            try:
                port = self._ports.allocate(_key(number))
            except ExhaustedError as error:
                self._no_port[number] = f"{error}: widen --proxy-ports"
                continue
            listeners[listener_name(number)] = listening(asked, port)
        return Configuration(
            listeners=listeners,
            patterns=tuple(sorted(classes.patterns)),
            standing=standing(classes),
            refuse=self._config.dns_refuse,
            min_ttl_s=self._config.dns_min_ttl,
            max_addresses=self._config.dns_max_addresses,
        )

    async def _keep_told(self) -> None:
        while True:
            await self._tell.wait()
            self._tell.clear()
            try:
                answer = await self._configure()
            except ApiError as error:
                self._answers = False
                log.debug("not told yet", reason=str(error))
                self._tell.set()
                await asyncio.sleep(AGAIN_S)
                continue
            self._take(msgspec.convert(answer, Listens))
            if not self._tell.is_set():
                self._all_told.set()

    def _say(self) -> None:
        self._all_told.clear()
        self._tell.set()

    async def _configure(self) -> Any:
        """Raises ApiError."""
        ending, self._ending = self._ending, set()
        try:
            answer = await aio.call(self._instance.dns_socket, "configure", timeout_s=CALL_S)
            flows = [{"listener": listener_name(number), "pod": format_address(pod)} for number, pod in ending]
            if flows:
                await aio.call(self._instance.dns_socket, "end", timeout_s=CALL_S, flows=flows)
        except ApiError:
            self._ending |= ending
            raise
        return answer

    def _take(self, answer: Listens) -> None:
        self._answers = True
        found = {int(number, 16): (port.tcp, port.udp) for number, port in answer.ports.items()}
        self._serving = {number: ports for number, ports in found.items() if number in self._wanted}
        if answer.problems != self._problems:
            for number, why in answer.problems.items():
                log.error("not served: these names cannot be asked for", listener=number, reason=why)
        self._problems = answer.problems
        self._release_ports()
        self.changed.set()

    def _release_ports(self) -> None:
        """Once it has left them: another proxy may get them. Also those of an earlier agent's listeners."""
        keep = set(map(_key, self._wanted))
        for key in self._ports.held():
            if key.startswith(KEY) and key not in keep:
                self._ports.release(key)

    # ---- what it knows

    async def _keep_learning(self) -> None:
        """Also notices when another process serves: it is then told anew."""
        while True:
            await self.running.wanted()
            items, self._items = self._items or aio.stream(self._instance.dns_socket, "learn"), None
            first, self._first = self._first, None
            try:
                async with aclosing(items):
                    await self._follow(items, first)
            except ApiError as error:
                log.debug("not subscribed", reason=str(error))
            self._answers = False
            await asyncio.sleep(AGAIN_S)

    async def _follow(self, items: AsyncGenerator[Any, None], first: News | None) -> None:
        """Reads on while a turn is made, so that all that came meanwhile goes into the next."""
        read: asyncio.Queue[News] = asyncio.Queue()
        if first is not None:
            read.put_nowait(first)

        async def pull() -> None:
            async for item in items:
                read.put_nowait(msgspec.convert(item, News))

        pulling = asyncio.create_task(pull())
        try:
            while True:
                getting = asyncio.create_task(read.get())
                await asyncio.wait({getting, pulling}, return_when=asyncio.FIRST_COMPLETED)
                if not getting.done():
                    getting.cancel()
                    pulling.result()
                    return
                news = [getting.result()]
                while not read.empty():
                    news.append(read.get_nowait())
                await self._take_news(news)
        finally:
            pulling.cancel()
            await asyncio.gather(pulling, return_exceptions=True)

    async def _take_news(self, news: list[News]) -> None:
        if news[0].full:
            log.info("subscribed", names=len(news[0].learned))
            self._say()  # it may be another process, which knows the file alone
        if names := changes(self._known, news):
            self._known.update(names)
            for name in [name for name, addresses in names.items() if not addresses]:
                del self._known[name]
            await self._learn(names)
        await aio.call(self._instance.dns_socket, "learned", timeout_s=CALL_S, id=news[-1].id)


def _key(number: int) -> str:
    """Apart from Envoy's: where both judge one port, they cannot listen at the same."""
    return KEY + listener_name(number)

"""The agent's side of the DNS proxy: it says what to listen for, and hears which names have which addresses.

side = DnsSide(state_dir, options, port_of, heard)
names = side.restored()             # for the first plan: what pods were told before
side.order({number: asked, …}); side.describe(world.name_classes())      # whenever they change
await side.run()                    # until cancelled; the proxy may come and go
"""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Iterable, Mapping
from contextlib import aclosing, suppress
from pathlib import Path
from typing import TYPE_CHECKING

import msgspec

from agent import log as logs
from agent.api import aio
from agent.api.protocol import ApiError, UnreachableError
from agent.dns import configuration
from agent.dns.configuration import Configuration, Listening, Standing, StandingClass
from agent.plan.ids import Asked, class_id
from l7proxy.dns import store
from l7proxy.dns.rules import Refuse
from policies.address import Prefix, parse_address
from policies.l7 import Demands, NamePattern

if TYPE_CHECKING:
    from agent.world.names import NameClasses

NAMES_FILE = "names.json"
AGAIN_S = 0.2
"""Between attempts to reach the proxy."""

log = logs.get("dns")


class Heard(msgspec.Struct, frozen=True):
    """Names → addresses (16 bytes). `full`: these are all there are. `gone` is void where a name has it again."""

    full: bool
    learned: dict[str, list[bytes]]
    gone: list[tuple[str, bytes]]


class Options(msgspec.Struct, frozen=True):
    refuse: Refuse = "refused"
    min_ttl_s: int = 60
    max_addresses: int = 1000


class _Item(msgspec.Struct):
    id: int
    full: bool
    learned: dict[str, list[str]]
    gone: list[tuple[str, str]]


class _Configured(msgspec.Struct):
    ports: dict[str, dict[str, int]]
    problems: dict[str, str]


class DnsSide:
    """One of agent.proxy.proxies.Side. `port_of` gives a listener's port by its number, always the same. `heard` is
    awaited with each item of news, in order; it returns once the kernel has it."""

    def __init__(
        self,
        state_dir: Path,
        options: Options,
        port_of: Callable[[int], int],
        heard: Callable[[Heard], Awaitable[None]],
    ) -> None:
        self.changed = asyncio.Event()
        self.problems: dict[str, str] = {}
        self._path = state_dir / configuration.FILE
        self._names = state_dir / NAMES_FILE
        self._socket = state_dir / "dns.sock"
        self._port_of = port_of
        self._heard = heard
        self._options = options
        self._wanted = Configuration(
            refuse=options.refuse, min_ttl_s=options.min_ttl_s, max_addresses=options.max_addresses
        )
        self._serving: dict[int, tuple[int, int]] = {}
        self._reached = False
        self._ordered = self._described = False
        self._saved: Configuration | None = None
        self._stale = asyncio.Event()

    # ---- what is wanted

    def takes(self, asked: Asked) -> bool:
        return any(one.dns is not None for one in asked.demands)

    def order(self, wanted: Mapping[int, Asked]) -> None:
        listeners = {
            f"{number:016x}": Listening(allowed(asked.demands), self._port_of(number), asked.direction.value)
            for number, asked in sorted(wanted.items())
        }
        self._ordered = True
        self._want(msgspec.structs.replace(self._wanted, listeners=listeners))

    def describe(self, found: NameClasses) -> None:
        """What toFQDNs rules name, and what holds while this agent is away."""
        self._described = True
        patterns = tuple(sorted(found.patterns))
        self._want(msgspec.structs.replace(self._wanted, patterns=patterns, standing=standing(found)))

    def serving(self) -> Mapping[int, tuple[int, int]]:
        """TCP and UDP port by number."""
        return self._serving

    def is_soon(self) -> bool:
        return self._reached

    @property
    def needed(self) -> bool:
        """Whether any rule asks for the proxy."""
        return bool(self._wanted.listeners)

    def restored(self) -> dict[str, frozenset[bytes]]:
        """Name → addresses, from the proxy's files: they hold whether it runs or not."""
        return {name: frozenset(held) for name, held in store.read(self._names).items()}

    def _want(self, wanted: Configuration) -> None:
        """What an earlier agent wrote holds until all of it is known."""
        self._wanted = wanted
        if self._ordered and self._described and wanted != self._saved:
            self._stale.set()

    # ---- the proxy

    async def run(self) -> None:
        await asyncio.gather(self._configure(), self._learn())

    async def _configure(self) -> None:
        while True:
            await self._stale.wait()
            self._stale.clear()
            if not (self._ordered and self._described):
                continue
            if self._wanted != self._saved:
                configuration.save(self._path, self._wanted)
                self._saved = self._wanted
            try:
                answer = await aio.call(self._socket, "configure")
            except ApiError as error:
                self._unreached(error)
                await asyncio.sleep(AGAIN_S)
                self._stale.set()
                continue
            configured = msgspec.convert(answer, _Configured)
            self._reached, self.problems = True, configured.problems
            for number, problem in configured.problems.items():
                log.error("DNS listener", listener=number, problem=problem)
            self._serving = {int(n, 16): (ports["tcp"], ports["udp"]) for n, ports in configured.ports.items()}
            self.changed.set()

    async def _learn(self) -> None:
        while True:
            with suppress(ApiError):
                async with aclosing(aio.stream(self._socket, "learn")) as items:
                    self._stale.set()  # a proxy that has just started may have read an older file
                    async for value in items:
                        item = msgspec.convert(value, _Item)
                        await self._heard(_heard(item))
                        await aio.call(self._socket, "learned", id=item.id)
            self._reached = False
            await asyncio.sleep(AGAIN_S)

    def _unreached(self, error: ApiError) -> None:
        self._reached = False
        if not isinstance(error, UnreachableError):
            log.warning("DNS proxy did not take its configuration", problem=str(error))


def allowed(demands: Demands) -> tuple[NamePattern, ...]:
    """The names that any of them allows."""
    return tuple(sorted(frozenset[NamePattern]().union(*(one.dns for one in demands if one.dns is not None))))


def standing(found: NameClasses) -> Standing:
    classes = [
        StandingClass(class_id(one), one.identity, _texts(one.prefixes), tuple(sorted(names)))
        for one in found.classes
        if len(names := [mark for mark in one.marks if isinstance(mark, NamePattern)]) == len(one.marks)
    ]
    classes.sort(key=lambda one: one.number)
    return Standing(_texts(found.prefixes), _texts(found.inside), tuple(classes))


def _texts(prefixes: Iterable[Prefix]) -> tuple[str, ...]:
    return tuple(map(str, sorted(prefixes)))


def _heard(item: _Item) -> Heard:
    return Heard(
        item.full,
        {name: list(map(parse_address, addresses)) for name, addresses in item.learned.items()},
        [(name, parse_address(address)) for name, address in item.gone],
    )

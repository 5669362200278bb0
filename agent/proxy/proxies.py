"""Rows that redirect, and the proxies they redirect to, kept in step.

A listener is ordered before the rows that name it are in force, and entered in the kernel's map once its proxy has said
that it listens; until then its flows are denied. It leaves the map before it leaves the proxy.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Mapping, Sequence
from typing import Protocol

from agent import log as logs
from agent.datapath import abi
from agent.datapath.bpf import MapFull
from agent.datapath.maps import Map
from agent.plan.ids import Asked
from agent.plan.listeners import ListenerUses
from agent.plan.plan import Plan
from agent.plan.state import Changes
from l7proxy.listening import listener_name

VALUE = abi.load().records["listener_value"]
KEY = abi.load().maps["listeners"].key
assert KEY is not None

READY_S = 1.0
"""How long rows wait for a proxy that runs. Longer, and other policy would wait for it."""

log = logs.get("proxy")

Ports = tuple[int, int]
"""TCP and UDP; 0: it does not listen there."""
NOWHERE: Ports = (0, 0)


class Side(Protocol):
    """One proxy. `changed` is set whenever `serving` may say something else."""

    changed: asyncio.Event

    def takes(self, asked: Asked) -> bool:
        """Whether these are its listeners."""

    def order(self, wanted: Mapping[int, Asked]) -> None:
        """All listeners that are in use, or soon will be. One that is left out may go once nobody is using it."""

    def serving(self) -> Mapping[int, Ports]:
        """Where it listens, as it has said."""

    def is_soon(self) -> bool:
        """Whether it can be expected to have what was ordered within a second."""


class Proxies:
    """`plan` says what numbers ask; `listeners` is the kernel's map. `changed` is called with listeners of which some
    flows may be judged otherwise now."""

    def __init__(
        self,
        plan: Plan,
        listeners: Map,
        sides: Sequence[Side],
        changed: Callable[[frozenset[int]], None] = lambda _: None,
    ) -> None:
        self.full = 0
        self._plan = plan
        self._map = listeners
        self._sides = sides
        self._changed = changed
        self._touched: frozenset[int] = frozenset()
        self._uses = ListenerUses()
        self._entered: dict[int, Ports] = {}

    # ---- the start

    def start(self) -> None:
        """Once the maps hold the plan. Entries of an earlier agent stay where a proxy may still have these rules."""
        for key, value in self._map.items():
            fields = VALUE.unpack(value)
            ports = abi.be16(fields.tcp_port_be), abi.be16(fields.udp_port_be)
            self._entered[int.from_bytes(key, "little")] = ports
        self._uses.start(self._plan.state)
        self._leave(self._entered.keys() - self._uses.named)
        self._order(self._uses.named)

    # ---- turns

    async def announce(self, changes: Changes) -> None:
        self._touched |= self._uses.replaced(self._plan.state, changes)
        named = self._uses.note(changes)
        new = named - self._entered.keys()
        if not new:
            return
        self._order(self._uses.named)
        concerned = [side for side in self._sides if side.is_soon() and any(map(side.takes, self._asked(new).values()))]
        try:
            async with asyncio.timeout(READY_S):
                for side in concerned:
                    while any(side.takes(asked) and n not in side.serving() for n, asked in self._asked(new).items()):
                        side.changed.clear()
                        await side.changed.wait()
        except TimeoutError:
            log.warning("rules are in force before their proxy: flows are denied meanwhile", listeners=len(new))
        self._enter(new)

    async def follow(self) -> None:
        self._uses.settle(self._plan.state)
        self._leave(self._entered.keys() - self._uses.named)
        self._order(self._uses.named)
        self._enter(self._uses.named)
        touched, self._touched = self._touched, frozenset()
        self._changed(touched)

    async def run(self) -> None:
        """Until cancelled: what a proxy says at another time than it is asked."""
        await asyncio.gather(*(self._watch(side) for side in self._sides))

    async def _watch(self, side: Side) -> None:
        while True:
            await side.changed.wait()
            side.changed.clear()
            self._enter(self._uses.named)

    @property
    def waiting(self) -> int:
        """Listeners in use that nobody can reach."""
        return len(self._uses.named - self._entered.keys())

    # ---- inside

    def _asked(self, numbers: frozenset[int] | set[int]) -> dict[int, Asked]:
        return {number: self._plan.names.listeners[number] for number in numbers}

    def _order(self, numbers: frozenset[int]) -> None:
        asked = self._asked(numbers)
        for side in self._sides:
            side.order({number: one for number, one in asked.items() if side.takes(one)})

    def _enter(self, numbers: frozenset[int] | set[int]) -> None:
        """Those of these that are served."""
        served = [side.serving() for side in self._sides]
        for number in numbers:
            ports = _ports([where.get(number, NOWHERE) for where in served])
            if ports == self._entered.get(number) or not any(ports):
                continue
            try:
                self._map.update(_key(number), VALUE.pack_values(*map(abi.be16, ports)))
            except MapFull:
                self.full += 1
                log.error("no room for a listener: its flows are denied", listener=listener_name(number))
                continue
            self._entered[number] = ports

    def _leave(self, numbers: set[int] | frozenset[int]) -> None:
        for number in numbers:
            self._map.delete(_key(number))
            self._entered.pop(number, None)


def _ports(served: Sequence[Ports]) -> Ports:
    """Of the first that listens, TCP and UDP each."""
    return next((tcp for tcp, _ in served if tcp), 0), next((udp for _, udp in served if udp), 0)


def _key(number: int) -> bytes:
    assert KEY is not None
    return KEY.pack_values(number)

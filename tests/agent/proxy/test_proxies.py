"""Listeners in the kernel's map: only those a proxy has said it serves, and no longer than rows name them."""

from __future__ import annotations

import asyncio
from collections.abc import Mapping

import pytest

from agent.datapath import abi
from agent.datapath.bpf import MapFull
from agent.plan.blocks import ROWS, row
from agent.plan.ids import Asked
from agent.plan.plan import Plan
from agent.plan.state import Changes
from agent.proxy import proxies
from agent.proxy.proxies import VALUE, Ports, Proxies
from policies.l7 import L7, Demands, HttpRule, NamePattern
from policies.model import Cell, Direction, ObjectRef, RuleRef, Verdict

RULE = RuleRef(ObjectRef("CiliumNetworkPolicy", "blue", "p"), Direction.EGRESS, 0)
GET = frozenset({L7(http=frozenset({HttpRule(method="GET")}))})
NAMES = frozenset({L7(dns=frozenset({NamePattern(exact="a.example")}))})


class Kernel:
    """The map `listeners`, as far as it is used."""

    def __init__(self, room: int = 100) -> None:
        self.entries: dict[bytes, bytes] = {}
        self._room = room

    def items(self) -> list[tuple[bytes, bytes]]:
        return list(self.entries.items())

    def update(self, key: bytes, value: bytes) -> None:
        if key not in self.entries and len(self.entries) >= self._room:
            raise MapFull(28, "listeners")
        self.entries[key] = value

    def delete(self, key: bytes) -> bool:
        return self.entries.pop(key, None) is not None

    def ports(self) -> dict[int, Ports]:
        found = {}
        for key, value in self.entries.items():
            fields = VALUE.unpack(value)
            found[int.from_bytes(key, "little")] = (abi.be16(fields.tcp_port_be), abi.be16(fields.udp_port_be))
        return found


class Told:
    """A proxy that serves what the test says."""

    def __init__(self, dns: bool = False, soon: bool = True) -> None:
        self.changed = asyncio.Event()
        self.ordered: dict[int, Asked] = {}
        self.served: dict[int, Ports] = {}
        self._dns = dns
        self._soon = soon

    def takes(self, asked: Asked) -> bool:
        return any((one.dns is not None) is self._dns for one in asked.demands)

    def order(self, wanted: Mapping[int, Asked]) -> None:
        self.ordered = dict(wanted)

    def serving(self) -> Mapping[int, Ports]:
        return self.served

    def is_soon(self) -> bool:
        return self._soon

    def serve(self, number: int, ports: Ports) -> None:
        self.served[number] = ports
        self.changed.set()


class Bench:
    def __init__(self, *sides: Told, room: int = 100) -> None:
        self.plan, self.kernel = Plan(), Kernel(room)
        self.proxies = Proxies(self.plan, self.kernel, sides)  # type: ignore[arg-type]

    def rows(self, *demands: Demands) -> Changes:
        """A change after which one subject's row redirects like this."""
        cells = tuple(Cell(6, 80 + i, 80 + i, Verdict.REDIRECT, RULE, d) for i, d in enumerate(demands))
        changes = Changes()
        if cells:
            block = row(cells, self.plan.names)
            changes.blocks[ROWS][block.id] = block
            changes.policy[1, 1] = {2: block.id}
        else:
            changes.policy[1, 1] = {2: None}
        return changes

    def number(self, demands: Demands) -> int:
        return self.plan.names.listener(Asked(Direction.EGRESS, demands))

    async def turn(self, changes: Changes) -> None:
        await self.proxies.announce(changes)
        self.plan.state.advance(changes)
        await self.proxies.follow()


def test_a_listener_is_entered_before_the_rows_that_name_it_are_in_force() -> None:
    async def run() -> None:
        envoy = Told()
        bench = Bench(envoy)
        changes = bench.rows(GET)
        turn = asyncio.create_task(bench.proxies.announce(changes))
        await asyncio.sleep(0)
        number = bench.number(GET)
        assert envoy.ordered == {number: Asked(Direction.EGRESS, GET)}
        assert not turn.done()
        assert bench.kernel.ports() == {}
        envoy.serve(number, (10001, 0))
        await turn
        assert bench.kernel.ports() == {number: (10001, 0)}

    asyncio.run(run())


def test_rows_do_not_wait_for_a_proxy_that_is_down() -> None:
    async def run() -> None:
        envoy = Told(soon=False)
        bench = Bench(envoy)
        await bench.turn(bench.rows(GET))
        assert bench.kernel.ports() == {}
        assert bench.proxies.waiting == 1
        watching = asyncio.create_task(bench.proxies.run())
        envoy.serve(bench.number(GET), (10001, 0))
        for _ in range(3):
            await asyncio.sleep(0)
        assert bench.kernel.ports() == {bench.number(GET): (10001, 0)}
        watching.cancel()

    asyncio.run(run())


def test_rows_wait_for_a_slow_proxy_only_so_long(monkeypatch: pytest.MonkeyPatch) -> None:
    async def run() -> None:
        bench = Bench(Told())
        await bench.turn(bench.rows(GET))
        assert bench.kernel.ports() == {}

    monkeypatch.setattr(proxies, "READY_S", 0.01)
    asyncio.run(run())


def test_a_listener_leaves_with_its_last_row() -> None:
    async def run() -> None:
        envoy, dns = Told(), Told(dns=True)
        bench = Bench(envoy, dns)
        envoy.served[bench.number(GET)] = (10001, 0)
        dns.served[bench.number(NAMES)] = (10002, 10003)
        await bench.turn(bench.rows(GET, NAMES))
        assert bench.kernel.ports() == {bench.number(GET): (10001, 0), bench.number(NAMES): (10002, 10003)}
        await bench.turn(bench.rows(NAMES))
        assert bench.kernel.ports() == {bench.number(NAMES): (10002, 10003)}
        assert envoy.ordered == {}
        await bench.turn(bench.rows())
        assert bench.kernel.ports() == {}

    asyncio.run(run())


def test_a_restart_keeps_the_entries_that_rows_name() -> None:
    bench = Bench(Told())
    changes = bench.rows(GET)
    bench.plan.state.advance(changes)
    for number, ports in ((bench.number(GET), (10001, 0)), (77, (10002, 0))):
        bench.kernel.update(number.to_bytes(8, "little"), VALUE.pack_values(*map(abi.be16, ports)))
    bench.proxies.start()
    assert bench.kernel.ports() == {bench.number(GET): (10001, 0)}


def test_what_finds_no_room_is_counted_and_stays_denied() -> None:
    async def run() -> None:
        envoy, dns = Told(), Told(dns=True)
        bench = Bench(envoy, dns, room=1)
        envoy.served[bench.number(GET)] = (10001, 0)
        dns.served[bench.number(NAMES)] = (10002, 10003)
        await bench.turn(bench.rows(GET, NAMES))
        assert len(bench.kernel.ports()) == 1
        assert bench.proxies.full
        assert bench.proxies.waiting == 1

    asyncio.run(run())

"""The agent's side of the DNS proxy, against a proxy that says what the test wants at a real socket."""

from __future__ import annotations

import asyncio
import functools
import random
from collections.abc import AsyncGenerator, AsyncIterator, Callable, Coroutine
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any, ParamSpec

import pytest

from agent.api.server import Handler, Server, serve
from agent.config import Config
from agent.dns import configuration
from agent.dns.words import Known, News, changes
from agent.identity.allocator import Allocator
from agent.instance import Instance
from agent.plan.ids import Asked, class_id
from agent.plan.live import Otherwise
from agent.proxy.dns import DnsSide
from agent.world.names import NameClasses
from policies.address import Prefix, format_address, parse_address
from policies.l7 import L7, HttpRule, NamePattern
from policies.model import Direction, RemoteClass

WWW, API = NamePattern(exact="www.example"), NamePattern(pattern="*.api.example")
NOTHING = NameClasses(frozenset(), frozenset(), frozenset(), frozenset())
WAIT_S = 30.0

P = ParamSpec("P")


def in_loop(test: Callable[P, Coroutine[Any, Any, None]]) -> Callable[P, None]:
    @functools.wraps(test)
    def run(*args: P.args, **kwargs: P.kwargs) -> None:
        asyncio.run(test(*args, **kwargs))

    return run


def asked(*patterns: NamePattern, direction: Direction = Direction.EGRESS) -> Asked:
    return Asked(direction, frozenset({L7(dns=frozenset(patterns))}))


def at(*texts: str) -> frozenset[bytes]:
    return frozenset(map(parse_address, texts))


class Alone(Instance):
    def dns_command(self, _: Config) -> list[str]:
        """Without maps."""
        return []


class Process:
    """What Running is asked for."""

    def __init__(self, off: bool = False) -> None:
        self.is_off = off
        self._wanted = asyncio.Event()

    @property
    def is_wanted(self) -> bool:
        return self._wanted.is_set()

    def want(self) -> None:
        if not self.is_off:
            self._wanted.set()

    async def wanted(self) -> None:
        await self._wanted.wait()

    async def run(self) -> None:
        await asyncio.Event().wait()


class Proxy:
    """The socket of a DNS proxy. `busy`: ports it cannot have."""

    def __init__(self, path: Path, state_dir: Path) -> None:
        self.acknowledged: list[int] = []
        self.configured: list[configuration.Configuration] = []
        self.ended: list[tuple[int, str]] = []
        self.subscribed = 0
        self.busy: set[int] = set()
        self._path, self._state_dir = path, state_dir
        self._items: asyncio.Queue[dict[str, Any] | None] = asyncio.Queue()
        self._happened = asyncio.Condition()
        self._server: Server | None = None
        self._number = 0

    async def start(self) -> None:
        handlers: dict[str, Handler] = {
            "configure": self.configure, "learn": self.learn, "learned": self.learned, "end": self.end,
        }  # fmt: skip
        self._server = await serve(self._path, handlers)

    async def stop(self) -> None:
        assert self._server is not None
        await self._server.close()
        self._items = asyncio.Queue()

    def tell(self, full: bool = False, gone: tuple[tuple[str, str], ...] = (), **learned: list[str]) -> int:
        self._number += 1
        names = {name.replace("_", "."): texts for name, texts in learned.items()}
        self._items.put_nowait({"id": self._number, "full": full, "learned": names, "gone": gone})
        return self._number

    async def until(self, condition: Callable[[], bool]) -> None:
        async with asyncio.timeout(WAIT_S), self._happened:
            await self._happened.wait_for(condition)

    async def configure(self, _: dict[str, Any]) -> dict[str, Any]:
        found = configuration.load(self._state_dir / configuration.FILE)
        self.configured.append(found)
        await self._happen()
        had = {n: one.port for n, one in found.listeners.items() if one.port not in self.busy}
        return {
            "ports": {n: {"tcp": port, "udp": port} for n, port in had.items()},
            "problems": dict.fromkeys(found.listeners.keys() - had.keys(), "it is taken"),
        }

    async def learn(self, _: dict[str, Any]) -> AsyncGenerator[dict[str, Any], None]:
        self.subscribed += 1
        await self._happen()
        while (item := await self._items.get()) is not None:
            yield item

    async def learned(self, arguments: dict[str, Any]) -> dict[str, Any]:
        self.acknowledged.append(arguments["id"])
        await self._happen()
        return {}

    async def end(self, arguments: dict[str, Any]) -> dict[str, Any]:
        self.ended += [(int(one["listener"], 16), one["pod"]) for one in arguments["flows"]]
        await self._happen()
        return {}

    async def _happen(self) -> None:
        async with self._happened:
            self._happened.notify_all()


class Bench:
    def __init__(self, folder: Path, off: bool = False) -> None:
        self.instance = Alone(folder)
        self.classes = NOTHING
        self.learnt: list[Known] = []
        self.kernel = asyncio.Event()
        """Set: turns end."""
        self.kernel.set()
        self.process = Process(off)
        self.ports = Allocator("proxy port", 12000, 4)
        self.proxy = Proxy(self.instance.dns_socket, folder)
        self.side = DnsSide(
            Config(manifests="", dns_min_ttl=7), self.instance, self.ports, lambda: self.classes.patterns,
            lambda: self.classes, self.learn, lambda: None,
        )  # fmt: skip
        self.side.running = self.process  # type: ignore[assignment]

    async def learn(self, names: Any) -> None:
        self.learnt.append(dict(names))
        await self.kernel.wait()

    def known(self) -> Known:
        """What turns have been told, all together."""
        found: Known = {}
        for names in self.learnt:
            found |= names
        return {name: addresses for name, addresses in found.items() if addresses}

    @asynccontextmanager
    async def running(self) -> AsyncIterator[None]:
        await self.proxy.start()
        work = asyncio.create_task(self.side.run())
        try:
            yield
        finally:
            work.cancel()
            await asyncio.gather(work, return_exceptions=True)
            await self.side.close()
            await self.proxy.stop()

    async def served(self, *numbers: int) -> None:
        async with asyncio.timeout(WAIT_S):
            while set(self.side.serving()) != set(numbers):
                self.side.changed.clear()
                await self.side.changed.wait()


def test_it_takes_what_asks_for_names(tmp_path: Path) -> None:
    side = Bench(tmp_path).side
    http = L7(http=frozenset({HttpRule()}))
    assert side.takes(asked(WWW))
    assert side.takes(Asked(Direction.EGRESS, frozenset({http, L7(dns=frozenset())})))
    assert not side.takes(Asked(Direction.EGRESS, frozenset({http})))


@in_loop
async def test_it_serves_what_was_ordered_where_it_says_so(tmp_path: Path) -> None:
    bench = Bench(tmp_path)
    bench.ports.allocate(f"{1:016x}")
    async with bench.running():
        bench.side.order({1: asked(WWW, API), 2: asked(direction=Direction.INGRESS)})
        await bench.served(1, 2)
        assert bench.process.is_wanted
        assert bench.side.is_soon()
        told = bench.proxy.configured[-1]
        one, two = told.listeners[f"{1:016x}"], told.listeners[f"{2:016x}"]
        assert (set(one.names), one.direction) == ({WWW, API}, "egress")
        assert (two.names, two.direction) == ((), "ingress")
        assert one.port != two.port
        assert bench.side.serving() == {1: (one.port, one.port), 2: (two.port, two.port)}
        assert told.min_ttl_s == 7
        bench.side.order({2: asked(direction=Direction.INGRESS)})
        assert set(bench.side.serving()) == {2}, "at once"
        assert len(bench.ports.held()) == 3, "it may listen there yet; another's is not touched"
        bench.side.changed.clear()
        async with asyncio.timeout(WAIT_S):
            await bench.side.changed.wait()
        assert len(bench.proxy.configured[-1].listeners) == 1
        assert len(bench.ports.held()) == 2


@in_loop
async def test_several_rules_that_meet_allow_what_any_of_them_does(tmp_path: Path) -> None:
    bench = Bench(tmp_path)
    bench.side.order({1: Asked(Direction.EGRESS, frozenset({L7(dns=frozenset({WWW})), L7(dns=frozenset({API}))}))})
    told = configuration.load(tmp_path / configuration.FILE)
    assert set(told.listeners[f"{1:016x}"].names) == {WWW, API}


@in_loop
async def test_a_pattern_of_a_peer_alone_asks_for_it(tmp_path: Path) -> None:
    bench = Bench(tmp_path)
    outside = RemoteClass(9, frozenset({Prefix.parse("198.51.100.0/24")}), frozenset(), frozenset({WWW}))
    bench.classes = NameClasses(
        frozenset({WWW}), outside.prefixes, frozenset({Prefix.parse("10.0.0.0/8")}), frozenset({outside})
    )
    bench.side.order({})
    assert bench.process.is_wanted
    told = configuration.load(tmp_path / configuration.FILE)
    assert told.patterns == (WWW,)
    assert (told.standing.prefixes, told.standing.inside) == (("198.51.100.0/24",), ("10.0.0.0/8",))
    (known,) = told.standing.classes
    assert (known.number, known.identity, known.names) == (class_id(outside), 9, (WWW,))


def test_without_such_rules_nothing_is_wanted_nor_written(tmp_path: Path) -> None:
    bench = Bench(tmp_path)
    bench.side.order({})
    assert not bench.process.is_wanted
    assert not list(tmp_path.iterdir())


@in_loop
async def test_turned_off_it_serves_nothing_and_says_so_by_waiting(tmp_path: Path) -> None:
    bench = Bench(tmp_path, off=True)
    bench.side.order({1: asked(WWW)})
    assert bench.side.serving() == {}
    assert not list(tmp_path.iterdir())
    assert await bench.side.restore() == {}


@in_loop
async def test_what_cannot_listen_is_a_problem_and_all_else_is_served(tmp_path: Path) -> None:
    bench = Bench(tmp_path)
    wanted = {number: asked(NamePattern(exact=f"n{number}.example")) for number in range(1, 6)}
    bench.proxy.busy = {12000}
    async with bench.running():
        bench.side.order(wanted)  # five, and there are four ports
        await bench.proxy.until(lambda: bool(bench.proxy.configured))
        while not bench.side.is_soon():
            await bench.side.changed.wait()
        assert len(bench.side.serving()) == 3
        problems = bench.side.problems()
        assert any("--proxy-ports" in problem for problem in problems)
        assert "it is taken" in problems


@in_loop
async def test_a_proxy_that_comes_back_is_told_again(tmp_path: Path) -> None:
    bench = Bench(tmp_path)
    async with bench.running():
        bench.side.order({1: asked(WWW)})
        await bench.served(1)
        before = len(bench.proxy.configured)
        await bench.proxy.stop()
        await bench.proxy.start()
        bench.proxy.tell(full=True)
        await bench.proxy.until(lambda: len(bench.proxy.configured) > before and bench.proxy.acknowledged != [])


@in_loop
async def test_connections_that_other_rules_judge_now_are_ended(tmp_path: Path) -> None:
    bench = Bench(tmp_path)
    pod, resolver = parse_address("10.244.0.5"), parse_address("10.244.0.9")
    one = Otherwise(pod, resolver, 53, asked(API).demands)
    async with bench.running():
        bench.side.order({1: asked(WWW)})
        await bench.served(1)
        bench.side.judge_otherwise({1: (one,), 2: (one,)}, frozenset({1, 2}))
        async with asyncio.timeout(WAIT_S):
            await bench.side.told()
        assert bench.proxy.ended == [(1, "10.244.0.5")], "of the other proxy's listeners it knows nothing"
        await bench.proxy.stop()
        bench.side.judge_otherwise({1: (one,)}, frozenset({1}))
        await bench.proxy.start()
        await bench.proxy.until(lambda: len(bench.proxy.ended) == 2)
    assert bench.side.lingering == {}


# ---- names


@in_loop
async def test_news_is_acknowledged_once_it_is_in_the_kernel(tmp_path: Path) -> None:
    bench = Bench(tmp_path)
    async with bench.running():
        bench.side.order({1: asked(WWW)})
        first = bench.proxy.tell(full=True, www_example=["198.51.100.1", "2001:db8::1"])
        await bench.proxy.until(lambda: first in bench.proxy.acknowledged)
        assert bench.learnt == [{"www.example": at("198.51.100.1", "2001:db8::1")}]
        bench.kernel.clear()
        second = bench.proxy.tell(www_example=["198.51.100.2"])
        async with asyncio.timeout(WAIT_S):
            while len(bench.learnt) < 2:
                await asyncio.sleep(0)
        third, fourth = bench.proxy.tell(a_example=["198.51.100.3"]), bench.proxy.tell(b_example=["198.51.100.3"])
        assert second not in bench.proxy.acknowledged
        bench.kernel.set()
        await bench.proxy.until(lambda: fourth in bench.proxy.acknowledged)
        assert bench.learnt[1] == {"www.example": at("198.51.100.1", "198.51.100.2", "2001:db8::1")}
        assert bench.proxy.acknowledged[:2] == [first, second]
        assert third in bench.proxy.acknowledged or len(bench.learnt) == 3, "what came meanwhile goes together"


@in_loop
async def test_what_is_gone_is_taken_out(tmp_path: Path) -> None:
    bench = Bench(tmp_path)
    async with bench.running():
        bench.side.order({1: asked(WWW)})
        first = bench.proxy.tell(full=True, www_example=["198.51.100.1", "198.51.100.2"])
        await bench.proxy.until(lambda: first in bench.proxy.acknowledged)
        assert len(bench.known()["www.example"]) == 2
        bench.proxy.tell(gone=(("www.example", "198.51.100.1"),))
        last = bench.proxy.tell(gone=(("www.example", "198.51.100.2"),))
        await bench.proxy.until(lambda: last in bench.proxy.acknowledged)
        assert "www.example" not in bench.known()


@in_loop
async def test_a_full_table_takes_the_place_of_all_there_was(tmp_path: Path) -> None:
    bench = Bench(tmp_path)
    async with bench.running():
        bench.side.order({1: asked(WWW)})
        one = bench.proxy.tell(full=True, a_example=["198.51.100.1"], b_example=["198.51.100.2"])
        await bench.proxy.until(lambda: one in bench.proxy.acknowledged)
        await bench.proxy.stop()
        await bench.proxy.start()
        two = bench.proxy.tell(full=True, b_example=["198.51.100.2"], c_example=["198.51.100.3"])
        await bench.proxy.until(lambda: two in bench.proxy.acknowledged)
        assert bench.learnt[-1] == {"a.example": frozenset(), "c.example": at("198.51.100.3")}


@in_loop
async def test_at_the_start_the_table_of_a_proxy_that_runs_is_taken_and_it_waits(tmp_path: Path) -> None:
    bench = Bench(tmp_path)
    await bench.proxy.start()
    bench.proxy.tell(full=True, www_example=["198.51.100.1"])
    assert await bench.side.restore() == {"www.example": at("198.51.100.1")}
    assert bench.proxy.acknowledged == []
    await bench.proxy.stop()


@in_loop
async def test_the_subscription_of_the_start_is_the_one_that_is_followed(tmp_path: Path) -> None:
    bench = Bench(tmp_path)
    async with bench.running():
        first = bench.proxy.tell(full=True, www_example=["198.51.100.1"])
        await bench.side.restore()
        bench.side.order({1: asked(WWW)})
        await bench.proxy.until(lambda: first in bench.proxy.acknowledged)
        assert bench.proxy.subscribed == 1
        assert bench.learnt == [], "it was in the plan from the first"


@in_loop
async def test_without_a_proxy_its_file_is_read(tmp_path: Path) -> None:
    bench = Bench(tmp_path)
    saved = '{"version": 1, "names": {"www.example": {"198.51.100.1": 1}}}'
    bench.instance.dns_names.write_text(saved)
    assert await bench.side.restore() == {"www.example": at("198.51.100.1")}
    async with bench.running():
        bench.side.order({1: asked(WWW)})
        last = bench.proxy.tell(full=True)
        await bench.proxy.until(lambda: last in bench.proxy.acknowledged)
        assert bench.learnt == [{"www.example": frozenset()}]


@pytest.mark.parametrize("seed", range(5))
def test_changes_are_what_one_by_one_would_be(seed: int) -> None:
    draw = random.Random(seed)
    names, texts = ["a", "b", "c"], ["10.0.0.1", "10.0.0.2", "::1"]
    known: Known = {}
    for _ in range(200):
        news, model = [], {name: set(addresses) for name, addresses in known.items()}
        for number in range(draw.randint(1, 4)):
            full = draw.random() < 0.1
            learned = {n: draw.sample(texts, draw.randint(1, 3)) for n in names if draw.random() < 0.4}
            gone = [(n, t) for n in names for t in texts if draw.random() < 0.3]
            news.append(News(number, full, learned, gone))
            if full:
                model.clear()
            for name, found in learned.items():
                model.setdefault(name, set()).update(map(parse_address, found))
            for name, text in gone:
                model.get(name, set()).discard(parse_address(text))
        delta = changes(known, news)
        assert all(delta[name] != known.get(name, frozenset()) for name in delta), f"seed {seed}"
        known = {name: now for name, now in (known | delta).items() if now}
        wanted = {name: {format_address(a) for a in held} for name, held in model.items() if held}
        assert {name: {format_address(a) for a in held} for name, held in known.items()} == wanted, f"seed {seed}"

"""The DNS proxy as a process, with the kernel's maps and an agent that is recorded, slow, or away."""

from __future__ import annotations

import asyncio
import shutil
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Awaitable, Callable, Iterator
from contextlib import aclosing, suppress
from pathlib import Path
from types import TracebackType
from typing import Any, Self

import msgspec
import pytest
from conntrack_entries import Flow
from dns_site import DnsSite
from dnsrig import Resolver, ask
from rig import OUTSIDE_V4, WAIT_S, wait_until
from small_datapath import SMALL_SIZES

from agent.api import aio, client
from agent.api.protocol import ApiError
from agent.api.server import serve
from agent.datapath import abi
from agent.datapath.maps import Maps
from agent.datapath.pins import Pins
from agent.dns import configuration
from agent.dns.configuration import Configuration, Listening, Standing, StandingClass
from agent.dns.standing import KEY, VALUE
from agent.plan.ids import class_id
from l7proxy.dns import learning
from l7proxy.dns.store import read
from l7proxy.records import L7Record
from policies.address import Prefix, format_address, parse_address
from policies.l7 import NamePattern
from policies.model import RemoteClass

C = abi.load().constants
OURS, ANY = NamePattern(pattern="*.ours"), NamePattern(pattern="*")
ADDRESS, OTHER = "198.51.100.10", "198.51.100.11"
PORT = 14001
NUMBER = f"{77:016x}"
KNOWN = RemoteClass(C.IDENTITY_WORLD_IPV4, frozenset(), frozenset(), frozenset({OURS}))
STANDING = Standing(classes=(StandingClass(class_id(KNOWN), KNOWN.identity, (), (OURS,)),))
SERVED = Configuration({NUMBER: Listening((ANY,), PORT)}, (OURS,), STANDING, min_ttl_s=60)


@pytest.fixture
def site(root: None) -> Iterator[DnsSite]:
    with DnsSite() as site:
        site.redirect(PORT)
        yield site


@pytest.fixture
def resolver(site: DnsSite) -> Iterator[Resolver]:
    with Resolver(site.outside) as resolver:
        resolver.records |= {"a.ours": (ADDRESS,), "b.ours": (OTHER,), "theirs": (OTHER,)}
        yield resolver


@pytest.fixture
def maps(pins: Pins) -> Iterator[Maps]:
    with Maps.open_or_create(pins.maps, SMALL_SIZES) as maps:
        for prefix, identity in (("0.0.0.0/0", C.IDENTITY_WORLD_IPV4), ("::/0", C.IDENTITY_WORLD_IPV6)):
            block = Prefix.parse(prefix)
            maps["ipcache"].update(KEY.pack_values(block.bits, block.network), VALUE.pack_values(identity, identity))
        yield maps


@pytest.fixture
def state_dir(tmp_path: Path) -> Path:
    folder = tmp_path / "state"
    folder.mkdir()
    return folder


class Item(msgspec.Struct):
    id: int
    full: bool
    learned: dict[str, list[str]]
    gone: list[tuple[str, str]]


class Process:
    """A running proxy, known to be up by its socket."""

    def __init__(self, site: DnsSite, state_dir: Path, pin_dir: Path) -> None:
        self.socket = state_dir / "dns.sock"
        self._given_up = 0
        command = [sys.executable, "-m", "agent.dns.process", "--state-dir", str(state_dir), "--pin-dir", str(pin_dir)]
        self._log = (state_dir.parent / "dns.log").open("ab+")
        self.child: subprocess.Popen[bytes] = site.node.popen(*command, stderr=self._log)
        wait_until(self._answers, what="the proxy answers")

    def _answers(self) -> bool:
        assert self.child.poll() is None, self.log()
        try:
            return bool(self.ask("status")["queries"])
        except ApiError:
            return False

    def log(self) -> str:
        self._log.seek(0)
        return self._log.read().decode()

    def ask(self, op: str, **arguments: Any) -> Any:
        return client.call(self.socket, op, **arguments)

    def gave_up(self) -> bool:
        """Whether it has given up an answer since it was last asked that: an agent did not do its part in time."""
        before, self._given_up = self._given_up, self.ask("status")["learning"]["given_up"]
        return bool(self._given_up > before)

    def end(self, number: int = signal.SIGKILL) -> int:
        self.child.send_signal(number)
        status = self.child.wait(WAIT_S)
        self._log.close()
        return status


Starter = Callable[[], Process]


@pytest.fixture
def start(site: DnsSite, state_dir: Path, maps: Maps, pins: Pins) -> Iterator[Starter]:
    started: list[Process] = []

    def start() -> Process:
        started.append(Process(site, state_dir, pins.maps))
        return started[-1]

    yield start
    for process in started:
        if process.child.poll() is None:
            process.end()


class Agent:
    """One that reads what is learned in a thread of its own. `enter`: what it does with an item before it says that
    it has it."""

    def __init__(self, state_dir: Path, enter: Callable[[Item], Awaitable[None]]) -> None:
        self.heard: list[Item] = []
        self._socket = state_dir / "dns.sock"
        self._enter = enter
        self._loop = asyncio.new_event_loop()
        self._task = self._loop.create_task(self._run())
        self._thread = threading.Thread(target=self._live)

    def _live(self) -> None:
        with suppress(asyncio.CancelledError):
            self._loop.run_until_complete(self._task)
        self._loop.run_until_complete(self._loop.shutdown_asyncgens())
        self._loop.close()

    async def _run(self) -> None:
        while True:
            with suppress(ApiError):
                async with aclosing(aio.stream(self._socket, "learn")) as items:
                    async for value in items:
                        item = msgspec.convert(value, Item)
                        await self._enter(item)
                        self.heard.append(item)
                        await aio.call(self._socket, "learned", id=item.id)
            await asyncio.sleep(0.05)

    def __enter__(self) -> Self:
        self._thread.start()
        wait_until(lambda: self.heard, what="the proxy was reached")
        return self

    def __exit__(
        self, kind: type[BaseException] | None, value: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._loop.call_soon_threadsafe(self._task.cancel)
        self._thread.join(10)


class Kernel:
    """What such an agent has entered, a moment after it heard of it. Or it `stands` still."""

    def __init__(self, delay_s: float = 0.01) -> None:
        self.names: dict[str, set[str]] = {}
        self.stands = False
        self._delay_s = delay_s

    async def enter(self, heard: Item) -> None:
        await asyncio.sleep(self._delay_s)
        while self.stands:
            await asyncio.sleep(self._delay_s)
        if heard.full:
            self.names.clear()
        for name, address in heard.gone:
            self.names.get(name, set()).discard(address)
        for name, addresses in heard.learned.items():
            self.names.setdefault(name, set()).update(addresses)


def entered(maps: Maps, address: str) -> int:
    """Class of an address in the ipcache."""
    found = maps["ipcache"].lookup(KEY.pack_values(128, parse_address(address)))
    assert found is not None
    return int(VALUE.unpack(found).remote_class)


def serve_alone(state_dir: Path, served: Configuration = SERVED) -> None:
    configuration.save(state_dir / configuration.FILE, served)


def test_it_serves_without_an_agent(site: DnsSite, resolver: Resolver, state_dir: Path, start: Starter) -> None:
    serve_alone(state_dir, Configuration({NUMBER: Listening((OURS,), PORT)}))
    process = start()
    assert process.ask("status")["ports"] == {NUMBER: {"tcp": PORT, "udp": PORT}}
    assert ask(site.pod, OUTSIDE_V4, "a.ours").addresses == (ADDRESS,)
    assert ask(site.pod, OUTSIDE_V4, "theirs").rcode == "REFUSED"


def test_configuration(site: DnsSite, resolver: Resolver, state_dir: Path, start: Starter) -> None:
    process = start()
    assert process.ask("configure") == {"ports": {}, "problems": {}}
    taken = f"{78:016x}"
    serve_alone(
        state_dir, Configuration({NUMBER: Listening((ANY,), PORT), taken: Listening((ANY,), PORT)}, refuse="nxdomain")
    )
    answer = process.ask("configure")
    assert answer["ports"] == {NUMBER: {"tcp": PORT, "udp": PORT}}
    assert list(answer["problems"]) == [taken]
    assert ask(site.pod, OUTSIDE_V4, "theirs").addresses == (OTHER,)
    serve_alone(state_dir, Configuration({NUMBER: Listening((OURS,), PORT)}, refuse="nxdomain"))
    process.ask("configure")
    assert ask(site.pod, OUTSIDE_V4, "theirs").rcode == "NXDOMAIN"
    (state_dir / "dns.json").write_text("{")
    assert "cannot be used" in process.ask("configure")["problems"][""]
    assert ask(site.pod, OUTSIDE_V4, "a.ours").addresses == (ADDRESS,)  # the one before stays in force


def test_no_answer_before_its_address_is_in_the_kernel(
    site: DnsSite, resolver: Resolver, state_dir: Path, start: Starter
) -> None:
    """A name that rotates through 200 addresses, one an answer."""
    serve_alone(state_dir)
    process = start()
    kernel = Kernel(0.002)
    with Agent(state_dir, kernel.enter):
        for number in range(400):
            address = f"203.0.113.{number % 200}"
            resolver.records["rotates.ours"] = (address,)
            asked = ask(site.pod, OUTSIDE_V4, "rotates.ours", tcp=number % 10 == 0, gave_up=process.gave_up)
            assert asked.addresses == (address,)
            assert address in kernel.names["rotates.ours"]
    assert len(kernel.names["rotates.ours"]) == 200


def test_a_slow_agent_holds_up_new_addresses_alone(
    site: DnsSite, resolver: Resolver, state_dir: Path, start: Starter
) -> None:
    serve_alone(state_dir)
    process = start()
    kernel = Kernel()
    with Agent(state_dir, kernel.enter):
        assert ask(site.pod, OUTSIDE_V4, "a.ours", gave_up=process.gave_up)
        kernel.stands = True
        assert not ask(site.pod, OUTSIDE_V4, "b.ours", timeout_s=0.3)
        assert ask(site.pod, OUTSIDE_V4, "a.ours")
        assert ask(site.pod, OUTSIDE_V4, "theirs")
        kernel.stands = False
        wait_until(lambda: "b.ours" in kernel.names, what="entered")
        assert ask(site.pod, OUTSIDE_V4, "b.ours", gave_up=process.gave_up)


def test_while_the_agent_is_away(
    site: DnsSite, resolver: Resolver, state_dir: Path, maps: Maps, start: Starter
) -> None:
    serve_alone(state_dir)
    process = start()
    kernel = Kernel()
    with Agent(state_dir, kernel.enter):
        pass
    wait_until(lambda: not process.ask("status")["agent"], what="it has noticed")
    assert ask(site.pod, OUTSIDE_V4, "a.ours").addresses == (ADDRESS,)
    assert entered(maps, ADDRESS) == class_id(KNOWN)
    assert ask(site.pod, OUTSIDE_V4, "theirs").addresses == (OTHER,)  # no rule needs it
    assert entered(maps, OTHER) == C.IDENTITY_WORLD_IPV4
    with Agent(state_dir, kernel.enter) as agent:
        assert agent.heard[0].full
        assert kernel.names == {"a.ours": {ADDRESS}, "theirs": {OTHER}}


def test_what_nobody_knows_waits_for_the_agent(
    site: DnsSite, resolver: Resolver, state_dir: Path, maps: Maps, start: Starter
) -> None:
    serve_alone(state_dir, msgspec.structs.replace(SERVED, standing=Standing()))
    process = start()
    began = time.monotonic()
    assert not ask(site.pod, OUTSIDE_V4, "a.ours", timeout_s=0.3)
    assert entered(maps, ADDRESS) == C.IDENTITY_WORLD_IPV4
    kernel = Kernel()
    with Agent(state_dir, kernel.enter):
        assert kernel.names == {"a.ours": {ADDRESS}}
        assert ask(site.pod, OUTSIDE_V4, "a.ours").addresses == (ADDRESS,)
    assert process.ask("status")["learning"]["given_up"] == 0 or time.monotonic() - began > learning.WAIT_S


def test_killed_it_comes_back_with_what_it_knew(
    site: DnsSite, resolver: Resolver, state_dir: Path, maps: Maps, start: Starter
) -> None:
    serve_alone(state_dir)
    process = start()
    kernel = Kernel()
    with Agent(state_dir, kernel.enter) as agent:
        assert ask(site.pod, OUTSIDE_V4, "a.ours", gave_up=process.gave_up)
        process.end(signal.SIGKILL)
        assert {name: set(map(format_address, held)) for name, held in read(state_dir / "names.json").items()} == {
            "a.ours": {ADDRESS}
        }
        again = start()
        wait_until(lambda: again.ask("status")["agent"], what="the agent is back")
        assert ask(site.pod, OUTSIDE_V4, "a.ours", gave_up=again.gave_up)
        assert kernel.names == {"a.ours": {ADDRESS}}
        assert agent.heard[-1].full
        assert [one["name"] for one in again.ask("names")] == ["a.ours"]
    again.end(signal.SIGKILL)  # both away
    last = start()
    assert ask(site.pod, OUTSIDE_V4, "b.ours").addresses == (OTHER,)
    assert entered(maps, OTHER) == class_id(KNOWN)
    assert {one["name"] for one in last.ask("names")} == {"a.ours", "b.ours"}


def test_an_address_goes_with_its_time_and_its_connections(
    site: DnsSite, resolver: Resolver, state_dir: Path, maps: Maps, start: Starter
) -> None:
    serve_alone(state_dir, msgspec.structs.replace(SERVED, min_ttl_s=0))
    process = start()
    resolver.ttl_s = 1
    kernel = Kernel()
    with Agent(state_dir, kernel.enter):
        flow = Flow(("10.9.0.2", 40000), (ADDRESS, 443))
        maps["conntrack"].update_many(flow.entries(expires_ns=time.monotonic_ns() + 3600 * 10**9))
        assert ask(site.pod, OUTSIDE_V4, "a.ours", gave_up=process.gave_up)
        assert ask(site.pod, OUTSIDE_V4, "b.ours", gave_up=process.gave_up)
        wait_until(lambda: not kernel.names["b.ours"], what="the one nobody is connected to is gone")
        assert kernel.names["a.ours"] == {ADDRESS}
        maps["conntrack"].delete_many(flow.keys)
        wait_until(lambda: not kernel.names["a.ours"], what="the other, too")
        assert process.ask("names") == []
        assert read(state_dir / "names.json") == {} or not any(read(state_dir / "names.json").values())


def test_queries_become_records(site: DnsSite, resolver: Resolver, state_dir: Path, start: Starter) -> None:
    taken: list[L7Record] = []

    async def take(arguments: dict[str, Any]) -> dict[str, int]:
        taken.extend(msgspec.convert(arguments["records"], list[L7Record]))
        return {"taken": len(taken)}

    async def flows(up: threading.Event, stop: asyncio.Event) -> None:
        async with await serve(state_dir / "flows.sock", {"l7": take}):
            up.set()
            await stop.wait()

    loop, up, stop = asyncio.new_event_loop(), threading.Event(), asyncio.Event()
    thread = threading.Thread(target=loop.run_until_complete, args=(flows(up, stop),))
    serve_alone(state_dir, Configuration({NUMBER: Listening((OURS,), PORT)}))
    start()
    thread.start()
    try:
        assert up.wait(WAIT_S)
        ask(site.pod, OUTSIDE_V4, "a.ours")
        ask(site.pod, OUTSIDE_V4, "theirs")
        wait_until(lambda: len(taken) == 2, what="two records")
    finally:
        loop.call_soon_threadsafe(stop.set)
        thread.join()
        loop.close()
    assert [(one.listener, one.direction, one.denied, one.destination) for one in taken] == [
        (77, "egress", False, OUTSIDE_V4),
        (77, "egress", True, OUTSIDE_V4),
    ]


@pytest.mark.parametrize("how", ["stop", "term", "folder"])
def test_it_ends(state_dir: Path, start: Starter, how: str) -> None:
    process = start()
    if how == "stop":
        process.ask("stop")
    elif how == "term":
        process.child.send_signal(signal.SIGTERM)
    else:
        shutil.rmtree(state_dir)
    assert process.child.wait(WAIT_S) == 0, process.log()
    process.end(0)


def test_a_second_one_does_not_start(site: DnsSite, state_dir: Path, pins: Pins, start: Starter) -> None:
    process = start()
    command = [sys.executable, "-m", "agent.dns.process", "--state-dir", str(state_dir), "--pin-dir", str(pins.maps)]
    second = site.node.run(*command, check=False)
    assert second.returncode == 1
    assert "another process answers" in second.stderr
    assert process.ask("status")

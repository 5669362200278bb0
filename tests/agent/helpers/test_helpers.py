"""Helpers in containers of their own: what the agent orders, what the container makes of it, what the agent sees."""

from __future__ import annotations

import asyncio
import os
import signal
import socket
import subprocess
import sys
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import asynccontextmanager, suppress
from pathlib import Path

import msgspec
import pytest

from agent import supervisor
from agent.config import build
from agent.encryption.choose import TUN
from agent.helpers import elsewhere, keeping
from agent.helpers import order as orders
from agent.helpers.elsewhere import Elsewhere
from agent.helpers.order import Order, boot_id
from agent.helpers.process import launcher
from agent.instance import Instance
from agent.privileges import ROOT, USER
from agent.supervisor import UNSEEN, Supervisor, listener_pid

LISTENS = """
import os, socket, sys, time
if os.path.exists(sys.argv[1]): os.unlink(sys.argv[1])
s = socket.socket(socket.AF_UNIX); s.bind(sys.argv[1]); s.listen()
time.sleep(100)
"""
WAIT_S = 30.0


def listens(path: Path, *more: str) -> tuple[str, ...]:
    return (sys.executable, "-c", LISTENS, str(path), *more)


def order_of(path: Path, *more: str, needs: tuple[str, ...] = ()) -> Order:
    return Order(boot_id(), listens(path, *more), str(path), needs)


async def until(condition: Callable[[], object]) -> None:
    async with asyncio.timeout(WAIT_S):
        while not condition():
            await asyncio.sleep(0.01)


class Site:
    """A state directory, and the container of its flows process."""

    def __init__(self, folder: Path, log: Path | None = None) -> None:
        self.instance = Instance(folder)
        self.socket = self.instance.flows_socket
        self.path = self.instance.order("flows")
        self.log = log or folder.with_suffix(".log")
        self.container: subprocess.Popen[bytes] | None = None

    def start(self) -> subprocess.Popen[bytes]:
        command = [sys.executable, "-m", "agent.helpers.process", "flows", str(self.instance.state_dir)]
        with self.log.open("ab") as log:
            self.container = subprocess.Popen(command, stdout=log, stderr=log, start_new_session=True)
        return self.container

    def said(self, words: str) -> bool:
        return words in self.log.read_text()

    def elsewhere(self, *more: str) -> Elsewhere:
        return Elsewhere("flows", order_of(self.socket, *more), self.path)

    def argument(self) -> str:
        """The last of the command line of who listens; "" where nobody does any more."""
        with suppress(FileNotFoundError, ProcessLookupError, IndexError):
            return Path(f"/proc/{listener_pid(self.socket)}/cmdline").read_text().split("\0")[-2]
        return ""


@pytest.fixture
def site(tmp_path: Path) -> Iterator[Site]:
    (tmp_path / "state").mkdir()
    made = Site(tmp_path / "state")
    try:
        yield made
    finally:
        if made.container is not None:
            with suppress(ProcessLookupError):
                os.killpg(made.container.pid, signal.SIGKILL)
            made.container.wait()


@asynccontextmanager
async def watching(helper: Elsewhere) -> AsyncIterator[Elsewhere]:
    task = asyncio.create_task(helper.run())
    try:
        yield helper
    finally:
        task.cancel()
        with suppress(asyncio.CancelledError):
            await task


def test_a_container_runs_what_the_agent_orders(site: Site) -> None:
    async def run() -> None:
        site.start()
        await until(lambda: site.said("for the agent to write"))
        async with watching(site.elsewhere("one")) as helper:
            await until(lambda: helper.view().state == "running")
            assert site.argument() == "one"
            assert helper.view().pid == 0
            first = listener_pid(site.socket)
        # another agent, with other settings
        async with watching(site.elsewhere("two")) as helper:
            await until(lambda: site.argument() == "two")
            assert not Path(f"/proc/{first}").exists()
        await helper.stop()
        assert not site.path.exists()
        assert listener_pid(site.socket) == 0
        assert site.container is not None and site.container.poll() is None

    asyncio.run(run())


def test_an_order_that_goes_ends_it_and_one_that_comes_starts_it(site: Site) -> None:
    async def run() -> None:
        orders.write(site.path, order_of(site.socket, "one"))
        site.start()
        await until(lambda: site.argument() == "one")
        helper = site.elsewhere("one")
        assert helper.leave()
        assert not helper.leave()
        await until(lambda: listener_pid(site.socket) == 0)
        orders.write(site.path, order_of(site.socket, "two"))
        await until(lambda: site.argument() == "two")

    asyncio.run(run())


def test_an_order_taken_back(site: Site, monkeypatch: pytest.MonkeyPatch) -> None:
    """By who is no agent any more: what it ran has ended then, or whoever runs it does not end it."""

    async def run() -> None:
        assert not orders.withdraw(site.path)
        orders.write(site.path, order_of(site.socket))
        assert not orders.withdraw(site.path), "nobody ran it"
        assert not site.path.exists()
        site.start()
        orders.write(site.path, order_of(site.socket))
        await until(lambda: listener_pid(site.socket))
        assert await asyncio.to_thread(orders.withdraw, site.path)
        assert listener_pid(site.socket) == 0
        await until(lambda: not site.socket.exists())
        monkeypatch.setattr(orders, "STOP_S", 0.1)
        with subprocess.Popen(listens(site.socket, "another's")) as other:
            await until(lambda: listener_pid(site.socket))
            orders.write(site.path.with_name("stays"), order_of(site.socket))
            assert not orders.withdraw(site.path.with_name("stays"))
            other.kill()

    asyncio.run(run())


def test_it_waits_for_what_is_needed(site: Site) -> None:
    needed = site.instance.state_dir / "maps"

    async def run() -> None:
        orders.write(site.path, order_of(site.socket, needs=(str(needed),)))
        site.start()
        await until(lambda: site.said(f"for {needed}"))
        assert not site.said("running")
        needed.mkdir()
        await until(lambda: listener_pid(site.socket))

    asyncio.run(run())


def test_it_waits_for_a_state_directory(tmp_path: Path) -> None:
    site = Site(tmp_path / "later" / "state", tmp_path / "log")

    async def run() -> None:
        container = site.start()
        try:
            await until(lambda: site.said("for the agent to write"))
            site.instance.state_dir.mkdir(parents=True)
            orders.write(site.path, order_of(site.socket))
            await until(lambda: listener_pid(site.socket))
        finally:
            container.terminate()
            assert container.wait(WAIT_S) == 0
        assert listener_pid(site.socket) == 0

    asyncio.run(run())


@pytest.mark.parametrize("content", [b"", b"{", b'{"boot": "x"}', b'{"version": 2}'])
def test_an_order_that_cannot_be_read_is_none(site: Site, content: bytes) -> None:
    async def run() -> None:
        site.path.write_bytes(content)
        site.start()
        await until(lambda: site.said("another version"))
        orders.write(site.path, order_of(site.socket, "good"))
        await until(lambda: site.argument() == "good")

    asyncio.run(run())


def test_an_order_of_an_earlier_boot_is_none(site: Site) -> None:
    orders.write(site.path, msgspec.structs.replace(order_of(site.socket), boot="earlier"))
    assert orders.read(site.path) is None
    assert orders.read(site.path / "below") is None


def test_it_ends_with_what_it_runs(site: Site) -> None:
    """For the kubelet to start it again."""

    async def run() -> None:
        orders.write(site.path, order_of(site.socket))
        container = site.start()
        await until(lambda: listener_pid(site.socket))
        os.kill(listener_pid(site.socket), signal.SIGKILL)
        assert await asyncio.to_thread(container.wait, WAIT_S) == 1
        assert not site.socket.exists(), "nobody may come who removes it"

    asyncio.run(run())


def test_an_earlier_one_gives_way(site: Site) -> None:
    """Of an agent that ran its helpers as children, or of a container that was killed."""

    async def run() -> None:
        with subprocess.Popen(listens(site.socket, "earlier")) as earlier:
            await until(lambda: listener_pid(site.socket) == earlier.pid)
            orders.write(site.path, order_of(site.socket, "now"))
            site.start()
            await until(lambda: site.argument() == "now")
            assert earlier.wait() == -signal.SIGTERM

    asyncio.run(run())


def test_the_agent_sees_when_nobody_answers(site: Site, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(elsewhere, "GRACE_S", 0.3)

    async def run() -> None:
        async with watching(site.elsewhere("one")) as helper:
            assert helper.view().state == "stopped"
            await until(lambda: "gatehouse helper flows" in helper.view().problem)
            assert helper.view().state == "restarting"
            container = site.start()
            await until(lambda: helper.view().state == "running")
            assert (helper.view().problem, helper.view().restarts) == ("", 0)
            container.kill()
            os.kill(listener_pid(site.socket), signal.SIGKILL)
            container.wait()
            await until(lambda: helper.view().state == "restarting")
            site.start()
            await until(lambda: helper.view().state == "running")
            assert helper.view().restarts == 1

    asyncio.run(run())


def test_who_closes_what_only_listens_runs_on(site: Site) -> None:
    """The agent's own protocol has a client send its request within seconds."""
    closes = socket.socket(socket.AF_UNIX)
    closes.bind(str(site.socket))
    closes.listen()
    closes.setblocking(False)

    async def run() -> None:
        async with watching(site.elsewhere()) as helper:
            for _ in range(5):
                client, _ = await asyncio.get_running_loop().sock_accept(closes)
                await until(lambda: helper.view().state == "running")
                client.close()
            assert (helper.view().state, helper.view().restarts) == ("running", 0)

    with closes:
        asyncio.run(run())


def test_what_another_container_serves_is_left_alone(site: Site) -> None:
    """There its number means nothing here: no process is started beside it, and none is ended."""
    script = f"exec {sys.executable} -c '{LISTENS}' {site.socket}"
    with subprocess.Popen(["unshare", "--pid", "--fork", "--kill-child", "sh", "-c", script]) as other:
        try:

            async def run() -> None:
                await until(lambda: listener_pid(site.socket))
                log = site.log
                inside = ["unshare", "--pid", "--fork", "--kill-child", "--mount-proc", sys.executable, "-c", SEEN]
                seen = subprocess.run([*inside, str(site.socket)], capture_output=True, text=True, check=True)
                assert seen.stdout.split() == [str(UNSEEN), "False"]
                supervised = Supervisor("flows", listens(site.socket, "mine"), site.socket, log)
                here = listener_pid
                with pytest.MonkeyPatch.context() as patch:
                    patch.setattr(supervisor, "listener_pid", lambda path: UNSEEN if here(path) else 0)
                    task = asyncio.create_task(supervised.run())
                    await until(lambda: "another container" in supervised.view().problem)
                    assert supervised.view().state == "restarting"
                    other.kill()
                    await until(lambda: supervised.view().state == "running")
                task.cancel()
                with suppress(asyncio.CancelledError):
                    await task
                await until(lambda: site.argument() == "mine")
                await supervised.stop()

            asyncio.run(run())
        finally:
            other.kill()


SEEN = """
import sys
from pathlib import Path
from agent.supervisor import end_listener, listener_pid
print(listener_pid(Path(sys.argv[1])), end_listener(Path(sys.argv[1])))
"""


def test_what_is_ordered(tmp_path: Path) -> None:
    children = build({"manifests": "m"})
    containers = build({"manifests": "m", "helpers": "containers"})
    instance = Instance(tmp_path)
    command = ["/usr/bin/envoy", "--x"]
    for keep in (
        keeping.flows,
        keeping.dns,
        lambda config, instance: keeping.envoy(config, instance, command, USER),
        lambda config, instance: keeping.wireguard(config, instance, command, tmp_path / "d.sock", [TUN]),
    ):
        instance.order("envoy").parent.mkdir(exist_ok=True)
        kept = keep(containers, instance)
        orders.write(instance.order(kept.name), order_of(tmp_path))
        other = keep(children, instance)
        assert not instance.order(kept.name).exists(), "no container is to run what a child does"
        assert isinstance(other, Supervisor)
        assert isinstance(kept, Elsewhere)
        assert kept.name == other.name
        order = kept._order
        assert order.command == other._command
        assert Path(order.socket) == other._path
        assert order.reduced is (kept.name in ("envoy", "dns"))
        assert order.user == (USER if kept.name == "envoy" else ROOT)
        needs = {"envoy": (), "wireguard": ("/dev/net/tun",)}
        assert order.needs == needs.get(kept.name, (str(instance.pins.maps),))
        assert kept._path == instance.order(kept.name)


def test_envoys_user_can_read_its_order_and_nobody_else(tmp_path: Path) -> None:
    path = tmp_path / "order"
    orders.write(path, msgspec.structs.replace(order_of(path), user=USER))
    assert (path.stat().st_uid, path.stat().st_gid, path.stat().st_mode & 0o777) == (ROOT, USER, 0o640)
    orders.write(path, order_of(path))
    assert (path.stat().st_gid, path.stat().st_mode & 0o777) == (ROOT, 0o600)
    assert list(tmp_path.iterdir()) == [path]


def test_privileges_are_given_up_where_there_are_some(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    order = msgspec.structs.replace(order_of(tmp_path), reduced=True, user=USER)
    assert f"--reuid={USER}" in launcher(order)
    assert launcher(msgspec.structs.replace(order, reduced=False)) == []
    monkeypatch.setattr(os, "geteuid", lambda: USER)
    assert launcher(order) == []

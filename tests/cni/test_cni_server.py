"""The socket of the plugin: clients that are slow, leave, flood or talk nonsense hold nobody up."""

from __future__ import annotations

import asyncio
import json
import os
import random
import stat
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import Any

import pytest
from cni_node import CniNode, Kernel, pod
from cni_plugin import ask, config, environment, queued_names, start
from coroutines import on_a_loop

from agent.api.address import socket_address
from agent.api.protocol import ApiError
from agent.cni.protocol import HEADER, CniError, Request, frame_request
from agent.cni.server import Limits, Server

SHORT = Limits(handshake_s=0.2, stall_s=0.2)

Connection = tuple[asyncio.StreamReader, asyncio.StreamWriter]


async def connect(path: Path) -> Connection:
    with socket_address(path) as address:
        return await asyncio.open_unix_connection(address)


async def answer(connection: Connection) -> tuple[int, Any]:
    """Status and JSON, or (-1, None) where there is none."""
    reader, writer = connection
    try:
        magic, status, length = HEADER.unpack(await reader.readexactly(HEADER.size))
        assert magic == b"GHA1"
        body = await reader.readexactly(length)
        return status, json.loads(body) if body else None
    except (asyncio.IncompleteReadError, ConnectionError):
        return -1, None
    finally:
        writer.close()


async def send(path: Path, data: bytes) -> Connection:
    connection = await connect(path)
    connection[1].write(data)
    return connection


async def fine(request: Request) -> bytes:
    return b'{"fine": true}'


REQUEST = frame_request(environment("ADD"), config("/s"))


def failing(error: BaseException) -> Callable[[Request], Awaitable[bytes]]:
    async def handler(request: Request) -> bytes:
        raise error

    return handler


@on_a_loop
async def test_only_root_may_ask(tmp_path: Path) -> None:
    async with Server(tmp_path / "s", fine):
        assert stat.S_IMODE((tmp_path / "s").stat().st_mode) == 0o600
        assert await answer(await send(tmp_path / "s", REQUEST)) == (0, {"fine": True})
    assert not (tmp_path / "s").exists()


@on_a_loop
async def test_two_agents_do_not_share_a_socket(tmp_path: Path) -> None:
    async with Server(tmp_path / "s", fine):
        with pytest.raises(ApiError):
            async with Server(tmp_path / "s", fine):
                pass
        assert await answer(await send(tmp_path / "s", REQUEST)) == (0, {"fine": True})


@pytest.mark.parametrize(
    ("data", "code"),
    [
        (b"GET / HTTP/1.1\r\nHost: x\r\n\r\n", 5),
        (HEADER.pack(b"GHC1", 0xFFFFFFFF, 0xFFFFFFFF), 6),
        (HEADER.pack(b"GHC1", 0, 2) + b"{}", 4),
        (frame_request(environment("ADD"), b"nonsense"), 6),
        (b"", 5),
        (REQUEST[:-1], 5),
    ],
)
@on_a_loop
async def test_nonsense_is_answered_and_a_silent_client_is_let_go(data: bytes, code: int, tmp_path: Path) -> None:
    async with Server(tmp_path / "s", fine, SHORT):
        status, body = await answer(await send(tmp_path / "s", data))
        assert (status, body["code"]) == (1, code)


@pytest.mark.parametrize(
    ("error", "code", "said"),
    [(CniError(11, "later", "in a minute"), 11, "later"), (RuntimeError("a fault"), 999, "RuntimeError: a fault")],
)
@on_a_loop
async def test_errors_of_a_handler(error: Exception, code: int, said: str, tmp_path: Path) -> None:
    async with Server(tmp_path / "s", failing(error)):
        for _ in range(2):  # it goes on
            status, body = await answer(await send(tmp_path / "s", REQUEST))
            assert (status, body["code"], body["cniVersion"]) == (1, code, "1.1.0")
            assert said in json.dumps(body)


@on_a_loop
async def test_the_silent_and_the_slow_hold_nobody_up(tmp_path: Path) -> None:
    """Lesson 22: a handshake without a time-out hung the server."""
    big = b" " * (8 << 20)

    async def handler(request: Request) -> bytes:
        return big if request.key.container_id == "slow" else b"{}"

    slow = frame_request(environment("ADD", "slow"), config("/s"))
    async with Server(tmp_path / "s", handler, Limits(handshake_s=30, stall_s=30)) as server:
        silent = [await connect(tmp_path / "s") for _ in range(50)]
        half = [await send(tmp_path / "s", REQUEST[:20]) for _ in range(50)]
        stuck = [await send(tmp_path / "s", slow) for _ in range(5)]  # they do not read
        for _ in range(20):
            assert await answer(await send(tmp_path / "s", REQUEST)) == (0, {})
        for _, writer in [*silent, *half, *stuck]:
            writer.close()
        while server._connections:
            await asyncio.wait(server._connections)


@on_a_loop
async def test_a_client_that_takes_nothing_is_cut_off(tmp_path: Path) -> None:
    async def handler(request: Request) -> bytes:
        return b" " * (8 << 20)

    async with Server(tmp_path / "s", handler, SHORT) as server:
        _, writer = await send(tmp_path / "s", REQUEST)
        while not server._connections:
            await asyncio.sleep(0)
        await asyncio.wait(server._connections)
        writer.close()


@on_a_loop
async def test_there_is_an_end_to_connections(tmp_path: Path) -> None:
    async with Server(tmp_path / "s", fine, Limits(connections=3)):
        silent = [await connect(tmp_path / "s") for _ in range(3)]
        status, body = await answer(await send(tmp_path / "s", REQUEST))
        assert (status, body["code"]) == (1, 11)
        for _, writer in silent:
            writer.close()
            await writer.wait_closed()
        while (await answer(await send(tmp_path / "s", REQUEST)))[0] != 0:
            pass


@on_a_loop
async def test_an_add_whose_client_left_is_given_up_and_a_del_is_not(tmp_path: Path) -> None:
    began, ended = asyncio.Event(), asyncio.Event()
    fate: list[str] = []
    carry_on = asyncio.Event()

    async def handler(request: Request) -> bytes:
        began.set()
        try:
            await carry_on.wait()
            fate.append("done")
        except asyncio.CancelledError:
            fate.append("given up")
            raise
        finally:
            ended.set()
        return b""

    async with Server(tmp_path / "s", handler):
        for command in ("ADD", "DEL"):
            began.clear()
            ended.clear()
            _, writer = await send(tmp_path / "s", frame_request(environment(command), config("/s")))
            await began.wait()
            writer.close()
            if command == "DEL":
                await writer.wait_closed()
                carry_on.set()
            await ended.wait()
    assert fate == ["given up", "done"]


@on_a_loop
async def test_what_is_under_way_when_the_server_closes_is_ended(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("agent.cni.server.CLOSING_S", 0.05)
    began = asyncio.Event()

    async def handler(request: Request) -> bytes:
        began.set()
        await asyncio.Event().wait()
        return b""

    async with Server(tmp_path / "s", handler):
        connection = await send(tmp_path / "s", REQUEST)
        await began.wait()
    assert await answer(connection) == (-1, None)


@on_a_loop
async def test_random_bytes(tmp_path: Path) -> None:
    seed = random.randrange(1 << 32)
    print("seed", seed)
    rng = random.Random(seed)
    async with Server(tmp_path / "s", fine, SHORT):
        connections = []
        for _ in range(100):
            data = bytearray(REQUEST)
            for _ in range(rng.randrange(8)):
                data[rng.randrange(len(data))] = rng.randrange(256)
            connections.append(await send(tmp_path / "s", bytes(data[: rng.randrange(len(data) + 1)])))
        for status, body in await asyncio.gather(*map(answer, connections)):
            assert status == 0 or body["code"] in (1, 4, 5, 6, 7), seed
        assert await answer(await send(tmp_path / "s", REQUEST)) == (0, {"fine": True})


# ---- the plugin, the server and what is behind it


@on_a_loop
async def test_a_pods_whole_life_by_the_plugin(tmp_path: Path) -> None:
    node = await CniNode(tmp_path, Kernel()).begin(pod("web"))
    netns, stdin = node.netns("c1"), config(tmp_path / "cni.sock")
    async with Server(tmp_path / "cni.sock", node.verbs.handle):
        assert (await ask(environment("STATUS"), stdin)).status == 0
        added = await ask(environment("ADD", netns=netns), stdin)
        assert added.status == 0, added
        assert added.json["ips"][0]["interface"] == 1
        previous = config(tmp_path / "cni.sock", prevResult=added.json)
        assert (await ask(environment("CHECK", netns=netns), previous)).output == b""
        gc: dict[str, Any] = {"cni.dev/valid-attachments": [{"containerID": "c1", "ifname": "eth0"}]}
        assert (await ask(environment("GC"), config(tmp_path / "cni.sock", **gc))).status == 0
        assert len(node.record) == 1
        for _ in range(2):
            assert (await ask(environment("DEL", netns=netns), previous)).status == 0
        refused = await ask(environment("CHECK", netns=netns), previous)
        assert (refused.status, refused.json["code"]) == (1, 3)
    node.assert_clean()
    assert not list(node.record)
    await node.end()


@on_a_loop
async def test_a_plugin_that_is_killed_leaves_nothing(tmp_path: Path) -> None:
    node = await CniNode(tmp_path, Kernel()).begin(pod("web"))
    never = asyncio.Event()
    reached = asyncio.Event()

    async def wait(*_: object) -> None:
        reached.set()
        await never.wait()

    node.publish = wait
    async with Server(tmp_path / "cni.sock", node.verbs.handle) as server:
        process = await start(environment("ADD", netns=node.netns("c1")))
        assert process.stdin is not None
        process.stdin.write(config(tmp_path / "cni.sock"))
        process.stdin.close()
        await reached.wait()
        assert len(node.kernel.links) == 1
        process.kill()
        await process.wait()
        while server._connections:
            await asyncio.wait(server._connections)
        node.assert_clean()
        assert not list(node.record)
        assert not node.world.attached
        process._transport.close()  # type: ignore[attr-defined]
    await node.end()


@on_a_loop
async def test_an_agent_that_stops_waits_for_nobody(tmp_path: Path) -> None:
    """There are no turns any more: no ADD is enforced, and no address leaves the World. Nothing is lost by that."""
    kernel, pods = Kernel(), [pod("web"), pod("going"), pod("coming")]
    node = await CniNode(tmp_path, kernel).begin(*pods)
    waiting = asyncio.Semaphore(0)
    stdin = config(tmp_path / "cni.sock")

    def env(command: str, name: str) -> dict[str, str]:
        args = f"K8S_POD_NAMESPACE=shop;K8S_POD_NAME={name};K8S_POD_UID=u1"
        return environment(command, f"c-{name}", netns=node.netns(f"c-{name}"), args=args)

    async def never(ref: object) -> None:
        waiting.release()
        await asyncio.Event().wait()

    async with Server(tmp_path / "cni.sock", node.verbs.handle):
        for name in ("web", "going"):
            assert (await ask(env("ADD", name), stdin)).status == 0
        node.publish = node.detach = never
        add = asyncio.create_task(ask(env("ADD", "coming"), stdin))
        deletion = asyncio.create_task(ask(env("DEL", "going"), stdin))
        for _ in range(2):
            await waiting.acquire()
        node.pods.leave()
    done, undone = await deletion, await add
    assert (done.status, undone.status, undone.json["code"]) == (0, 1, 11)
    assert queued_names(tmp_path) == ["c-going@eth0"]
    await node.end()
    following = await CniNode(tmp_path, kernel).begin(*pods)
    assert [one.key.container_id for one in following.record] == ["c-web"]
    following.assert_clean()
    await following.end()


@on_a_loop
async def test_agents_come_and_go_under_runtimes(tmp_path: Path) -> None:
    """Adds and deletions all the time, by the plugin; the agent ends and another comes; in the end all is deleted."""
    kernel, names = Kernel(), [f"p{number}" for number in range(12)]
    pods = [pod(name) for name in names]

    async def lives(name: str) -> None:
        env = {"container": f"c-{name}", "netns": str(tmp_path / f"netns-c-{name}")}
        args = f"K8S_POD_NAMESPACE=shop;K8S_POD_NAME={name};K8S_POD_UID=u1"
        stdin = config(tmp_path / "cni.sock")
        for _ in range(3):
            while (await ask(environment("ADD", args=args, **env), stdin)).status:
                assert (await ask(environment("DEL", **env), stdin)).status == 0
            assert (await ask(environment("DEL", **env), stdin)).status == 0

    for name in names:
        (tmp_path / f"netns-c-{name}").touch()
    work = asyncio.gather(*map(lives, names))
    rounds = 0
    while not work.done():
        node = await CniNode(tmp_path, kernel).begin(*pods)
        node.assert_clean()
        enough = _after(kernel, 40)
        async with Server(tmp_path / "cni.sock", node.verbs.handle):
            either: set[asyncio.Future[Any]] = {work, enough}
            await asyncio.wait(either, return_when=asyncio.FIRST_COMPLETED)
        enough.cancel()
        await node.end()
        rounds += 1
    await work
    assert rounds > 1
    following = await CniNode(tmp_path, kernel).begin(*pods)
    assert not list(following.record)
    assert not kernel.links
    assert queued_names(tmp_path) == []
    following.assert_clean()
    await following.end()
    assert os.listdir(tmp_path / "attachments") == []  # noqa: PTH208


def _after(kernel: Kernel, steps: int) -> asyncio.Task[bool]:
    """Done once the kernel has taken so many more."""
    loop, event, wanted = asyncio.get_running_loop(), asyncio.Event(), len(kernel.steps) + steps

    def count(step: str) -> None:
        if len(kernel.steps) >= wanted:
            loop.call_soon_threadsafe(event.set)

    kernel.at = count
    return asyncio.create_task(event.wait())

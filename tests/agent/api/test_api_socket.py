"""The socket protocol between real processes' ends: answers, streams, and clients that do not behave."""

from __future__ import annotations

import asyncio
import json
import os
import socket
import stat
import subprocess
import sys
import threading
from collections.abc import AsyncGenerator, Awaitable, Callable
from contextlib import suppress
from pathlib import Path
from typing import Any

import msgspec
import pytest

from agent.api import aio, client
from agent.api.listen import answered
from agent.api.protocol import REQUEST_BYTES, ApiError, Batch, UnreachableError
from agent.api.server import Handler, Limits, Server, serve


class Wanted(msgspec.Struct):
    count: int


async def echo(arguments: dict[str, Any]) -> Any:
    return arguments


async def nothing(arguments: dict[str, Any]) -> None:
    return None


async def refuse(arguments: dict[str, Any]) -> None:
    raise ApiError("there is no such pod: name one that `gatehouse endpoints` lists")


async def broken(arguments: dict[str, Any]) -> int:
    return 1 // int(arguments["by"])


async def unencodable(arguments: dict[str, Any]) -> object:
    return object()


async def count(arguments: dict[str, Any]) -> AsyncGenerator[int | Batch, None]:
    wanted = msgspec.convert(arguments, Wanted)
    yield Batch(range(wanted.count - 1))
    yield wanted.count - 1


async def broken_stream(arguments: dict[str, Any]) -> AsyncGenerator[int, None]:
    yield 1
    raise KeyError("lost")


DEFAULTS = Limits()
HANDLERS: dict[str, Handler] = {
    "echo": echo,
    "nothing": nothing,
    "refuse": refuse,
    "broken": broken,
    "unencodable": unencodable,
    "count": count,
    "broken_stream": broken_stream,
}


def with_server(
    path: Path,
    scenario: Callable[[Server], Awaitable[None]],
    handlers: dict[str, Handler] = HANDLERS,
    limits: Limits = DEFAULTS,
) -> None:
    async def run() -> None:
        async with await serve(path, handlers, limits) as server, asyncio.timeout(60):
            await scenario(server)

    asyncio.run(run())


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "agent.sock"


CALLS: list[tuple[str, dict[str, Any], Any]] = [
    ("echo", {}, {}),
    ("echo", {"a": [1, {"b": "ü\n"}], "n": None}, {"a": [1, {"b": "ü\n"}], "n": None}),
    ("nothing", {}, None),
]


@pytest.mark.parametrize(("op", "arguments", "value"), CALLS)
def test_call_gives_the_answer(path: Path, op: str, arguments: dict[str, Any], value: Any) -> None:
    async def scenario(server: Server) -> None:
        assert await asyncio.to_thread(client.call, path, op, **arguments) == value
        assert await aio.call(path, op, **arguments) == value

    with_server(path, scenario)


ERRORS = [
    ("refuse", {}, "there is no such pod: name one that `gatehouse endpoints` lists"),
    ("absent", {}, "there is no operation 'absent' at agent.sock: broken, broken_stream, count,"),
    ("broken", {"by": 0}, "broken failed (ZeroDivisionError:"),
    ("unencodable", {}, "unencodable failed (TypeError:"),
    ("count", {"count": "many"}, "count: Expected `int`, got `str`"),
    ("broken_stream", {}, "broken_stream failed (KeyError:"),
]


@pytest.mark.parametrize(("op", "arguments", "text"), ERRORS)
def test_errors_reach_the_client_as_a_sentence_and_the_server_lives_on(
    path: Path, op: str, arguments: dict[str, Any], text: str
) -> None:
    async def scenario(server: Server) -> None:
        with pytest.raises(ApiError) as caught:
            await asyncio.to_thread(client.call, path, op, **arguments)
        assert str(caught.value).startswith(text)
        with pytest.raises(ApiError):
            await aio.call(path, op, **arguments)
        assert await aio.call(path, "echo", x=1) == {"x": 1}

    with_server(path, scenario)


def test_stream_gives_every_value_in_order(path: Path) -> None:
    async def scenario(server: Server) -> None:
        got = await asyncio.to_thread(lambda: list(client.stream(path, "count", count=1000)))
        assert got == list(range(1000))
        assert [value async for value in aio.stream(path, "count", count=3)] == [0, 1, 2]

    with_server(path, scenario)


def send_raw(path: Path, data: bytes) -> dict[str, Any]:
    """The first response line to raw bytes."""
    with socket.socket(socket.AF_UNIX) as connection:
        connection.settimeout(20)
        connection.connect(str(path))
        with suppress(BrokenPipeError):  # it may answer before it has read all of it
            connection.sendall(data)
        line = connection.makefile("rb").readline()
    answer: dict[str, Any] = json.loads(line)
    return answer


GARBAGE = [
    (b"\n", "not a JSON object"),
    (b"GET / HTTP/1.1\r\n", "not a JSON object"),
    (b"\xff\xfe\x00\n", "not a JSON object"),
    (b"[1]\n", "not a JSON object"),
    (b'{"op": 7}\n', "names no operation"),
    (b"{}\n", "names no operation"),
    (b"[" * 100_000 + b"\n", "not a JSON object"),
    (b'{"op": "' + b"x" * (2 * REQUEST_BYTES) + b'"}\n', "longer than"),
]


@pytest.mark.parametrize(("data", "text"), GARBAGE, ids=range(len(GARBAGE)))
def test_garbage_is_answered_with_an_error(path: Path, data: bytes, text: str) -> None:
    async def scenario(server: Server) -> None:
        answer = await asyncio.to_thread(send_raw, path, data)
        assert text in answer["error"]
        assert answer["last"] is True
        assert await aio.call(path, "nothing") is None

    with_server(path, scenario)


def test_a_client_refuses_to_send_a_request_that_is_too_long(path: Path) -> None:
    with pytest.raises(ApiError, match="longer than"):
        client.call(path, "echo", text="x" * REQUEST_BYTES)


def test_lesson_22_a_silent_client_is_cut_off_and_does_not_hang_the_server(path: Path) -> None:
    async def scenario(server: Server) -> None:
        _, silent_writer = await asyncio.open_unix_connection(path)
        reader, writer = await asyncio.open_unix_connection(path)
        writer.write(b'{"op"')  # begun, never ended
        assert await aio.call(path, "nothing") is None  # others are served meanwhile
        answer = json.loads(await reader.readline())
        assert "no request came within 0.2 s" in answer["error"]
        assert await reader.read() == b""
        writer.close()
        silent_writer.close()

    with_server(path, scenario, limits=Limits(handshake_s=0.2))


def test_too_many_clients_are_told_so(path: Path) -> None:
    async def scenario(server: Server) -> None:
        held = [await asyncio.open_unix_connection(path) for _ in range(4)]
        answer = await asyncio.to_thread(send_raw, path, b"")
        assert "serves 4 clients already" in answer["error"]
        for _, writer in held:
            writer.close()

    with_server(path, scenario, limits=Limits(connections=4))


def test_a_slow_reader_is_cut_off_while_others_are_served(path: Path) -> None:
    produced = 0
    ended = asyncio.Event()

    async def flood(arguments: dict[str, Any]) -> AsyncGenerator[str, None]:
        nonlocal produced
        try:
            while True:
                yield "x" * 10_000
                produced += 1
        finally:
            ended.set()

    async def scenario(server: Server) -> None:
        _, writer = await asyncio.open_unix_connection(path)
        writer.write(b'{"op": "flood"}\n')
        writer.transport.pause_reading()  # type: ignore[attr-defined]
        assert await aio.call(path, "echo", x=1) == {"x": 1}
        await ended.wait()  # cut off after stall_s
        assert produced * 10_000 < 4 << 20, "the handler ran on although its reader took nothing"
        assert await aio.call(path, "echo", x=2) == {"x": 2}
        writer.close()

    with_server(path, scenario, {"flood": flood, "echo": echo}, Limits(stall_s=0.3))


def test_a_stream_ends_when_its_client_leaves(path: Path) -> None:
    ended = asyncio.Event()
    started = asyncio.Event()

    async def quiet(arguments: dict[str, Any]) -> AsyncGenerator[int, None]:
        try:
            started.set()
            yield 1
            await asyncio.Event().wait()
        finally:
            ended.set()

    async def scenario(server: Server) -> None:
        def read_one() -> Any:
            values = client.stream(path, "quiet")
            value = next(values)
            values.close()  # type: ignore[attr-defined]
            return value

        assert await asyncio.to_thread(read_one) == 1
        await ended.wait()

    with_server(path, scenario, {"quiet": quiet})


def test_a_call_is_carried_through_although_its_client_left(path: Path) -> None:
    release, done = asyncio.Event(), asyncio.Event()

    async def work(arguments: dict[str, Any]) -> None:
        await release.wait()
        done.set()

    async def scenario(server: Server) -> None:
        _, writer = await asyncio.open_unix_connection(path)
        writer.write(b'{"op": "work"}\n')
        await writer.drain()
        writer.transport.abort()
        release.set()
        await done.wait()

    with_server(path, scenario, {"work": work})


def test_call_times_out_with_a_sentence(path: Path) -> None:
    async def never(arguments: dict[str, Any]) -> AsyncGenerator[int, None]:
        await asyncio.Event().wait()
        yield 1

    async def scenario(server: Server) -> None:
        with pytest.raises(ApiError, match=r"did not answer 'never' within 0.1 s"):
            await asyncio.to_thread(client.call, path, "never", timeout_s=0.1)
        with pytest.raises(ApiError, match=r"did not answer 'never' within 0.1 s"):
            await aio.call(path, "never", timeout_s=0.1)

    with_server(path, scenario, {"never": never})


def test_close_lets_a_call_end_and_breaks_streams_off(path: Path) -> None:
    async def forever(arguments: dict[str, Any]) -> AsyncGenerator[int, None]:
        while True:
            yield 1
            await asyncio.Event().wait()

    async def run() -> None:
        stopping = asyncio.Event()

        async def stop(arguments: dict[str, Any]) -> str:
            stopping.set()
            await asyncio.sleep(0)
            return "stopping"

        async with await serve(path, {"stop": stop, "forever": forever}):
            values = aio.stream(path, "forever")
            assert await anext(values) == 1
            asking = asyncio.create_task(aio.call(path, "stop"))
            await stopping.wait()
        assert await asking == "stopping"
        with pytest.raises(ApiError, match="closed the connection before its answer was complete"):
            await anext(values)
        assert not path.exists()

    asyncio.run(run())


def test_the_socket_is_closed_to_other_users_and_leaves_no_other_file(path: Path) -> None:
    async def scenario(server: Server) -> None:
        assert stat.S_IMODE(path.stat().st_mode) == 0o600
        assert [entry.name for entry in path.parent.iterdir()] == [path.name]

    with_server(path, scenario)


def test_a_stale_socket_is_replaced_and_a_live_one_is_not(path: Path) -> None:
    with socket.socket(socket.AF_UNIX) as dead:
        dead.bind(str(path))
    assert path.exists()
    assert not answered(path)

    async def scenario(server: Server) -> None:
        with pytest.raises(ApiError, match="another process answers"):
            await serve(path, HANDLERS)
        assert server.reachable()
        assert await aio.call(path, "nothing") is None

    with_server(path, scenario)


def test_a_file_in_the_way_is_not_removed(path: Path) -> None:
    path.write_text("precious")
    with pytest.raises(ApiError, match="is not a socket"):
        asyncio.run(serve(path, HANDLERS))
    assert path.read_text() == "precious"


def test_a_server_notices_that_its_socket_is_gone_and_spares_its_successor(path: Path) -> None:
    async def scenario(server: Server) -> None:
        assert server.reachable()
        path.unlink()
        assert not server.reachable()
        async with await serve(path, HANDLERS) as successor:
            assert not server.reachable()
            await server.close()
            assert successor.reachable()

    with_server(path, scenario)


def test_paths_longer_than_sun_path_work(tmp_path: Path) -> None:
    folder = tmp_path / ("d" * 120)
    folder.mkdir()
    path = folder / "agent.sock"

    async def scenario(server: Server) -> None:
        assert await asyncio.to_thread(client.call, path, "echo", x=1) == {"x": 1}
        assert await aio.call(path, "echo", x=1) == {"x": 1}

    with_server(path, scenario)


@pytest.mark.parametrize(
    ("name", "text"),
    [
        ("agent.sock", "no agent answers at {path}: start one with `gatehouse agent --state-dir {folder}`"),
        ("flows.sock", "no flows process answers at {path}: the agent runs it, start one with"),
    ],
)
def test_nobody_there_is_said_with_what_to_do(tmp_path: Path, name: str, text: str) -> None:
    path = tmp_path / name
    expected = text.format(path=path, folder=tmp_path)
    for attempt in range(2):
        with pytest.raises(UnreachableError) as caught:
            client.call(path, "echo")
        assert str(caught.value).startswith(expected)
        with pytest.raises(UnreachableError):
            asyncio.run(aio.call(path, "echo"))
        if attempt == 0:
            with socket.socket(socket.AF_UNIX) as dead:
                dead.bind(str(path))


def test_a_server_that_dies_in_the_middle_is_an_error_and_not_an_end(path: Path) -> None:
    with socket.socket(socket.AF_UNIX) as listener:
        listener.bind(str(path))
        listener.listen()

        def half_answer() -> None:
            connection, _ = listener.accept()
            with connection:
                connection.recv(1000)
                connection.sendall(b'{"value": 1}\n{"val')

        thread = threading.Thread(target=half_answer)
        thread.start()
        values = client.stream(path, "count")
        assert next(values) == 1
        with pytest.raises(ApiError, match="before its answer was complete"):
            next(values)
        thread.join()


def test_the_blocking_client_needs_no_event_loop() -> None:
    code = "import sys, agent.api.client; sys.exit('asyncio' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], env={**os.environ}, check=False).returncode == 0

"""The HTTP server on real sockets: who asks properly is answered, who does not hurts nobody."""

from __future__ import annotations

import asyncio
import errno
import gc
import socket
import threading
from collections.abc import AsyncIterator, Callable, Coroutine
from concurrent.futures import ThreadPoolExecutor
from contextlib import AsyncExitStack, asynccontextmanager, suppress
from http import HTTPStatus
from typing import Any

import pytest
import rig

from agent.health.server import EVERYWHERE, Answers, HttpServer, Limits, Listening
from agent.services.health import Answer
from policies.address import parse_address

V4, V6 = "192.0.2.1", "2001:db8:0:1::1"
PORT = 10256
GET = b"GET /healthz HTTP/1.1\r\nHost: x\r\n\r\n"
BOUND_S = 20.0
DEFAULTS = Limits()
Scenario = Callable[[], Coroutine[Any, Any, None]]


def echo(path: str) -> Answer:
    return Answer(HTTPStatus.OK, path.encode())


def inside(node: rig.Node, scenario: Scenario) -> None:
    """Run it in the node's namespace, server and clients."""

    async def bounded() -> None:
        await asyncio.wait_for(scenario(), BOUND_S)

    node.call(asyncio.run, bounded())


@asynccontextmanager
async def serving(
    limits: Limits = DEFAULTS, addresses: tuple[str, ...] = (), answers: Answers = echo
) -> AsyncIterator[Listening]:
    where = [parse_address(a) for a in addresses] or [EVERYWHERE]
    listening = await HttpServer(limits).listen(where, PORT, answers)
    try:
        yield listening
    finally:
        await listening.close()


@asynccontextmanager
async def connected(address: str = V4) -> AsyncIterator[tuple[asyncio.StreamReader, asyncio.StreamWriter]]:
    reader, writer = await asyncio.open_connection(address, PORT)
    try:
        yield reader, writer
    finally:
        writer.close()
        with suppress(ConnectionError):
            await writer.wait_closed()


async def said(request: bytes, address: str = V4) -> bytes:
    """All that is answered until the server closes."""
    async with connected(address) as (reader, writer):
        writer.write(request)
        try:
            return await reader.read()
        except ConnectionResetError:
            return b"reset"


async def exchange(reader: asyncio.StreamReader, writer: asyncio.StreamWriter, request: bytes = GET) -> bytes:
    writer.write(request)
    head = await reader.readuntil(b"\r\n\r\n")
    length = int(head.lower().partition(b"content-length: ")[2].partition(b"\r")[0])
    return head + (b"" if request.startswith(b"HEAD") else await reader.readexactly(length))


def test_one_connection_many_requests(node: rig.Node) -> None:
    async def scenario() -> None:
        async with serving(), connected() as (reader, writer):
            for path in (b"/healthz", b"/livez?x=1", b"/"):
                answer = await exchange(reader, writer, GET.replace(b"/healthz", path))
                assert answer.startswith(b"HTTP/1.1 200 OK\r\n")
                assert answer.endswith(b"\r\n\r\n" + path.partition(b"?")[0])
                assert b"content-type: application/json" in answer.lower()
            head = await exchange(reader, writer, GET.replace(b"GET", b"HEAD"))
            assert b"content-length: 8" in head.lower()
            assert (await exchange(reader, writer)).endswith(b"/healthz"), "the answer to HEAD has no body"

    inside(node, scenario)


REQUESTS = {
    "closed when asked to": (GET.replace(b"\r\n\r\n", b"\r\nConnection: close\r\n\r\n"), b" 200 "),
    "HTTP/1.0": (b"GET / HTTP/1.0\r\n\r\n", b" 200 "),
    "a body nobody reads": (b"POST / HTTP/1.1\r\nHost: x\r\nContent-Length: 9\r\n\r\nabc", b" 405 "),
    "garbage": (b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03\r\n\r\n", b" 400 "),
    "no host": (b"GET / HTTP/1.1\r\n\r\n", b" 400 "),
    "endless headers": (b"GET / HTTP/1.1\r\nHost: x\r\n" + b"X: y\r\n" * 5000, b" 400 "),
    "an endless line": (b"GET /" + b"a" * 20000, b" 400 "),
    "two lengths": (b"GET / HTTP/1.1\r\nHost: x\r\nContent-Length: 1\r\nContent-Length: 2\r\n\r\n", b" 400 "),
    "nothing": (b"", b""),
}


@pytest.mark.parametrize("name", REQUESTS)
def test_requests(node: rig.Node, name: str) -> None:
    request, status = REQUESTS[name]

    async def scenario() -> None:
        async with serving(Limits(request_s=0.3)):
            answer = await said(request)
            assert status in answer[:16] or answer == b"reset", answer
            assert (await said(GET)).startswith(b"HTTP/1.1 200 "), "others are served"

    inside(node, scenario)


def test_pipelined_requests_have_their_limit(node: rig.Node) -> None:
    async def scenario() -> None:
        async with serving(Limits(requests=5)):
            answers = await said(GET * 7)
            assert answers.count(b"HTTP/1.1 200") == 5
            assert b"connection: close" in answers.lower()

    inside(node, scenario)


def test_who_does_not_read_is_cut_off(node: rig.Node) -> None:
    async def scenario() -> None:
        big = Answer(HTTPStatus.OK, bytes(4 << 20))
        async with serving(Limits(request_s=0.2), answers=lambda _path: big) as listening, connected() as (_, writer):
            writer.transport.pause_reading()  # type: ignore[attr-defined]  # of all transports but the base class
            writer.write(GET)
            while not listening.connections:
                await asyncio.sleep(0)
            while listening.connections:
                await asyncio.sleep(0.01)

    inside(node, scenario)


def test_when_there_are_too_many_the_oldest_goes(node: rig.Node) -> None:
    async def scenario() -> None:
        async with serving(Limits(connections=4)) as listening, AsyncExitStack() as stack:
            idle = [await stack.enter_async_context(connected()) for _ in range(12)]
            asked = [await said(GET.replace(b"Host", b"Connection: close\r\nHost")) for _ in range(20)]
            assert all(answer.startswith(b"HTTP/1.1 200") for answer in asked)
            assert len(listening.connections) <= 4
            assert await idle[0][0].read() == b""

    inside(node, scenario)


def test_addresses(node: rig.Node) -> None:
    async def scenario() -> None:
        close = GET.replace(b"Host", b"Connection: close\r\nHost")
        async with serving():
            for address in (V4, V6, "127.0.0.1", "::1"):
                assert b" 200 " in await said(close, address)
        async with serving(addresses=("::",)):
            assert b" 200 " in await said(close, "127.0.0.1")
        async with serving(addresses=(V4, V6)):
            for address in (V4, V6):
                assert b" 200 " in await said(close, address)
            for address in ("127.0.0.1", "::1"):
                with pytest.raises(ConnectionRefusedError):
                    await said(close, address)
        with pytest.raises(ConnectionRefusedError):
            await said(close)

    inside(node, scenario)


def test_a_port_in_use_leaves_nothing_open(node: rig.Node) -> None:
    async def scenario() -> None:
        async with serving(addresses=(V6,)):
            with pytest.raises(OSError) as raised:
                await HttpServer().listen([parse_address(V4), parse_address(V6)], PORT, echo)
            assert raised.value.errno == errno.EADDRINUSE
            with pytest.raises(ConnectionRefusedError):
                await said(GET)

    inside(node, scenario)


def test_connections_end_with_their_port(node: rig.Node) -> None:
    async def scenario() -> None:
        async with serving() as listening, connected() as (reader, writer):
            assert await exchange(reader, writer)
            await listening.close()
            with pytest.raises((ConnectionError, asyncio.IncompleteReadError)):
                await exchange(reader, writer)

    inside(node, scenario)


def test_a_port_that_closes_lets_nobody_hang(node: rig.Node) -> None:
    """Connections come all the time: some are being accepted when it closes. What is left of them is not left to the
    garbage collector, which an agent seldom needs."""
    over = threading.Event()
    hung: list[int] = []

    def ask_again_and_again() -> int:
        asked = 0
        while not over.is_set():
            asked += 1
            try:
                with node.call(socket.create_connection, (V4, PORT), 2.0) as made:
                    made.sendall(GET)
                    made.recv(1)
            except TimeoutError:
                hung.append(asked)
            except ConnectionError:
                continue
        return asked

    async def scenario() -> None:
        server = HttpServer()
        for number in range(1000):
            listening = await server.listen([EVERYWHERE], PORT, echo)  # it is free again at once
            for _ in range(number % 20):
                await asyncio.sleep(0)
            await listening.close()

    with ThreadPoolExecutor(4) as clients:
        asking = [clients.submit(ask_again_and_again) for _ in range(4)]
        gc.disable()
        try:
            inside(node, scenario)
        finally:
            over.set()
            gc.enable()
        assert sum(one.result() for one in asking) > 100
    assert hung == []

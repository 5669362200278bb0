"""A client's end: no connection outlives it, so that its loop may end at once."""

from __future__ import annotations

import asyncio
import gc
import socket
import threading
import warnings
from collections.abc import Callable, Coroutine, Iterator
from contextlib import aclosing, contextmanager
from pathlib import Path
from typing import Any

import pytest
from certificates import Authority

from agent.kube.client import ApiClient
from agent.kube.credentials import Access, File, Tls
from agent.kube.sockets import Sockets

EVENT = b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n3\r\n{}\n\r\n"


@contextmanager
def silent(tmp_path: Path, tls: bool) -> Iterator[ApiClient]:
    """A client of a server that tells each connection one event and no more: it does not answer TLS's close_notify,
    and does not close."""
    authority, trusted = Authority("silent"), Tls()
    if tls:
        (tmp_path / "ca.crt").write_bytes(authority.pem)
        trusted = Tls(ca=File.of(str(tmp_path / "ca.crt")))
    context = authority.pair("127.0.0.1").server_context()
    kept: list[socket.socket] = []

    def serve() -> None:
        while True:
            try:
                connection, _ = listener.accept()
            except OSError:
                return
            if tls:
                connection = context.wrap_socket(connection, server_side=True)
            kept.append(connection)
            connection.recv(4096)
            connection.sendall(EVENT)

    async def load(refused: bool) -> Access:
        return Access(f"{'https' if tls else 'http'}://127.0.0.1:{listener.getsockname()[1]}", tls=trusted)

    with socket.create_server(("127.0.0.1", 0)) as listener:
        thread = threading.Thread(target=serve)
        thread.start()
        try:
            yield ApiClient(load)
        finally:
            listener.shutdown(socket.SHUT_RDWR)
            thread.join()
            for connection in kept:
                connection.close()


def unclosed(run: Coroutine[Any, Any, None]) -> list[str]:
    """What is said of transports and sockets that nobody has closed when a loop ends with `run`."""
    with warnings.catch_warnings(record=True) as said:
        warnings.simplefilter("always")
        asyncio.run(run)
        gc.collect()
    return [str(one.message) for one in said if issubclass(one.category, ResourceWarning)]


async def _left(client: ApiClient) -> None:
    """A watch that was left just before: aiohttp has forgotten it."""
    async with aclosing(client.watch("/api/v1/nodes")) as events:
        assert await anext(events) == b"{}"
    await client.close()


async def _under_way(client: ApiClient) -> None:
    """A watch that goes on."""
    events = client.watch("/api/v1/nodes")
    assert await anext(events) == b"{}"
    await client.close()
    await events.aclose()


async def _cancelled(client: ApiClient) -> None:
    """What is waited for is a list that does not come."""
    asked = asyncio.create_task(client.get("/api/v1/nodes"))
    async with aclosing(client.watch("/api/v1/nodes")) as events:  # by then the other one, too, is connected or near
        await anext(events)
    asked.cancel()
    await client.close()
    with pytest.raises(asyncio.CancelledError):
        await asked


@pytest.mark.parametrize("tls", [False, True], ids=["plain", "tls"])
@pytest.mark.parametrize("run", [_left, _under_way, _cancelled])
def test_nothing_is_open_after_close(
    run: Callable[[ApiClient], Coroutine[Any, Any, None]], tls: bool, tmp_path: Path
) -> None:
    with silent(tmp_path, tls) as client:
        assert unclosed(run(client)) == []


def test_a_connection_that_is_being_made_ends_too_and_none_is_made_any_more() -> None:
    async def run() -> None:
        sockets = Sockets()
        (address,) = socket.getaddrinfo("127.0.0.1", full.getsockname()[1], type=socket.SOCK_STREAM)

        async def connect() -> None:
            with sockets.make(address) as one:
                await asyncio.get_running_loop().sock_connect(one, address[4])

        connecting = asyncio.create_task(connect())
        await asyncio.sleep(0)  # it begins
        await sockets.end()
        with pytest.raises(OSError, match="Connect call failed"):
            await connecting
        with pytest.raises(OSError, match="are being closed"):
            sockets.make(address)

    with socket.create_server(("127.0.0.1", 0), backlog=0) as full, socket.create_connection(full.getsockname()):
        asyncio.run(asyncio.wait_for(run(), 60))

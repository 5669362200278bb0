"""The socket at which the CNI plugin asks: one request a connection, none of which holds up another.

A client has `handshake_s` to send all of its request, and `stall_s` to take its answer. One that leaves while its ADD
is under way was killed, or has given up: nobody will hear of what is made, so the ADD is undone. All else is carried
through: half a deletion helps nobody.
"""

from __future__ import annotations

import asyncio
import socket
from collections.abc import Awaitable, Callable
from pathlib import Path
from types import TracebackType
from typing import Self

import msgspec

from agent import log as logs
from agent.api.listen import listen
from agent.cni.protocol import (
    HEADER,
    INTERNAL,
    IO_FAILURE,
    TRY_AGAIN_LATER,
    CniError,
    Request,
    error_body,
    frame_answer,
    parse_request,
    request_lengths,
    version_of,
)

CLOSING_S = 0.5
"""What requests under way are given when the server closes. Those that are cut off are not lost: an ADD is undone, a
DEL is left in the queue by its plugin."""

RETRY_S = 1.0
RECEIVE_BYTES = 1 << 16

Handler = Callable[[Request], Awaitable[bytes]]
"""Returns what the plugin is to print; raises CniError. Anything else it raises ends in the log, and as an error."""

log = logs.get("cni")


class Limits(msgspec.Struct, frozen=True):
    """`connections`: a node has some hundred pods, and a runtime starts a few of them at a time."""

    handshake_s: float = 5.0
    stall_s: float = 10.0
    connections: int = 512


class Server:
    """Use as `async with`. Raises agent.api.protocol.ApiError where the path cannot be taken.

    Sockets are read and written as they are: asyncio's streams take longer than all else that is done for an ADD here.
    """

    def __init__(self, path: Path, handler: Handler, limits: Limits | None = None) -> None:
        self.path = path
        self._handler = handler
        self._limits = limits or Limits()
        self._listener: socket.socket | None = None
        self._connections: set[asyncio.Task[None]] = set()

    async def __aenter__(self) -> Self:
        self._listener = listen(self.path)
        self._listen()
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, value: BaseException | None, trace: TracebackType | None
    ) -> None:
        """Whoever asks from now on finds nobody: its plugin says so, or leaves a DEL in the queue."""
        assert self._listener is not None
        listener, self._listener = self._listener, None
        self.path.unlink(missing_ok=True)
        asyncio.get_running_loop().remove_reader(listener)
        listener.close()
        if self._connections:
            _, late = await asyncio.wait(self._connections, timeout=CLOSING_S)
            for task in late:
                task.cancel()
            if late:
                await asyncio.wait(late)

    def _listen(self) -> None:
        if self._listener is not None:
            asyncio.get_running_loop().add_reader(self._listener, self._accept, self._listener)

    def _accept(self, listener: socket.socket) -> None:
        loop = asyncio.get_running_loop()
        try:
            connection, _ = listener.accept()
        except (BlockingIOError, ConnectionError):
            return
        except OSError as error:  # such as too many open files
            log.error("CNI clients cannot be accepted", reason=str(error), again_in_s=RETRY_S)
            loop.remove_reader(listener)
            loop.call_later(RETRY_S, self._listen)
            return
        connection.setblocking(False)
        task = loop.create_task(self._serve(connection))
        self._connections.add(task)
        task.add_done_callback(self._connections.discard)

    async def _serve(self, connection: socket.socket) -> None:
        with connection:
            try:
                answer = await self._answer(connection)
                if answer:
                    async with asyncio.timeout(self._limits.stall_s):
                        await asyncio.get_running_loop().sock_sendall(connection, answer)
            except (ConnectionError, TimeoutError) as error:
                log.info("a CNI client left without its answer", reason=str(error) or type(error).__name__)

    async def _answer(self, connection: socket.socket) -> bytes:
        """Empty where the client has left."""
        config = b""
        try:
            if len(self._connections) > self._limits.connections:
                raise CniError(TRY_AGAIN_LATER, f"{self._limits.connections} requests are under way already")
            try:
                async with asyncio.timeout(self._limits.handshake_s):
                    environment, config = await _read(connection)
            except TimeoutError:
                raise CniError(IO_FAILURE, f"no request came within {self._limits.handshake_s:g} s") from None
            except EOFError:
                return b""
            return await self._carry_out(parse_request(environment, config), connection)
        except CniError as error:
            return frame_answer(1, error_body(version_of(config), error))

    async def _carry_out(self, request: Request, connection: socket.socket) -> bytes:
        loop = asyncio.get_running_loop()
        work = asyncio.ensure_future(self._handler(request))
        loop.add_reader(connection, _hear, connection, request, work)
        try:
            await asyncio.wait({work})
        except asyncio.CancelledError:
            work.cancel()
            await asyncio.wait({work})
            raise
        finally:
            loop.remove_reader(connection)
        return _told(request, work)


def _hear(connection: socket.socket, request: Request, work: asyncio.Future[bytes]) -> None:
    """What comes besides is not asked for, and not kept; that nothing will come any more tells that the client left."""
    try:
        left = not connection.recv(RECEIVE_BYTES)
    except BlockingIOError:
        return
    except ConnectionError:
        left = True
    if left:
        asyncio.get_running_loop().remove_reader(connection)
        if not work.done():
            log.info("a CNI client left", command=request.command, container=request.key.container_id)
            if request.command == "ADD":
                work.cancel()


def _told(request: Request, work: asyncio.Future[bytes]) -> bytes:
    if work.cancelled():
        return b""
    error = work.exception()
    if error is None:
        return frame_answer(0, work.result())
    if not isinstance(error, CniError):
        log.error("a CNI request failed", command=request.command, exc_info=error)
        text = f"{type(error).__name__}: {error}: a fault of the agent itself, see its log"
        error = CniError(INTERNAL, f"{request.command} failed", text)
    where = request.key.container_id
    log.warning("CNI request refused", command=request.command, container=where, code=error.code, reason=str(error))
    return frame_answer(1, error_body(request.version, error))


async def _read(connection: socket.socket) -> tuple[bytes, bytes]:
    """Environment and configuration. Raises EOFError where the client leaves before it has sent all of it."""
    loop = asyncio.get_running_loop()
    data, wanted, environment = bytearray(), HEADER.size, 0
    while len(data) < wanted:
        some = await loop.sock_recv(connection, RECEIVE_BYTES)
        if not some:
            raise EOFError
        data += some
        if wanted == HEADER.size <= len(data):
            environment, config = request_lengths(bytes(data[: HEADER.size]))
            wanted += environment + config
    rest = HEADER.size + environment
    return bytes(data[HEADER.size : rest]), bytes(data[rest:wanted])

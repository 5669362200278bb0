"""The socket at which the CNI plugin asks: one request a connection, none of which holds up another.

A client has `handshake_s` to send all of its request, and `stall_s` to take its answer. One that leaves while its ADD
is under way was killed, or has given up: nobody will hear of what is made, so the ADD is undone. All else is carried
through: half a deletion helps nobody.
"""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from contextlib import suppress
from pathlib import Path
from types import TracebackType
from typing import Self

import msgspec

from agent import log as logs
from agent.api.listen import listen
from agent.cni.protocol import (
    CONFIG_BYTES,
    ENVIRONMENT_BYTES,
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

Handler = Callable[[Request], Awaitable[bytes]]
"""Returns what the plugin is to print; raises CniError. Anything else it raises ends in the log, and as an error."""

log = logs.get("cni")


class Limits(msgspec.Struct, frozen=True):
    """`connections`: a node has some hundred pods, and a runtime starts a few of them at a time."""

    handshake_s: float = 5.0
    stall_s: float = 10.0
    connections: int = 512


class Server:
    """Use as `async with`. Raises agent.api.protocol.ApiError where the path cannot be taken."""

    def __init__(self, path: Path, handler: Handler, limits: Limits | None = None) -> None:
        self.path = path
        self._handler = handler
        self._limits = limits or Limits()
        self._listener: asyncio.Server | None = None
        self._connections: set[asyncio.Task[None]] = set()
        self._closing = False

    async def __aenter__(self) -> Self:
        listener = listen(self.path)
        limit = HEADER.size + ENVIRONMENT_BYTES + CONFIG_BYTES
        self._listener = await asyncio.start_unix_server(self._accept, sock=listener, limit=limit)
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, value: BaseException | None, trace: TracebackType | None
    ) -> None:
        """Whoever asks from now on finds nobody: its plugin says so, or leaves a DEL in the queue."""
        assert self._listener is not None
        self._closing = True
        self.path.unlink(missing_ok=True)
        # asyncio loses a connection that it has accepted when its server closes, but not yet handed over.
        asyncio.get_running_loop().remove_reader(self._listener.sockets[0].fileno())
        await asyncio.sleep(0)
        await asyncio.sleep(0)
        self._listener.close()
        if self._connections:
            _, late = await asyncio.wait(self._connections, timeout=CLOSING_S)
            for task in late:
                task.cancel()
            if late:
                await asyncio.wait(late)

    def _accept(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        if self._closing:  # it was in the backlog
            writer.transport.abort()
            return
        task = asyncio.ensure_future(self._connection(reader, writer))
        self._connections.add(task)
        task.add_done_callback(self._connections.discard)

    async def _connection(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        try:
            answer = await self._answer(reader)
            if answer:
                writer.transport.set_write_buffer_limits(high=0)
                async with asyncio.timeout(self._limits.stall_s):
                    writer.write(answer)
                    await writer.drain()
        except (ConnectionError, TimeoutError) as error:
            log.info("a CNI client left without its answer", reason=str(error) or type(error).__name__)
        finally:
            writer.transport.abort()

    async def _answer(self, reader: asyncio.StreamReader) -> bytes:
        """Empty where the client has left."""
        config = b""
        try:
            if len(self._connections) > self._limits.connections:
                raise CniError(TRY_AGAIN_LATER, f"{self._limits.connections} requests are under way already")
            try:
                async with asyncio.timeout(self._limits.handshake_s):
                    environment, config = await _read(reader)
            except TimeoutError:
                raise CniError(IO_FAILURE, f"no request came within {self._limits.handshake_s:g} s") from None
            except asyncio.IncompleteReadError:
                return b""
            return await self._serve(parse_request(environment, config), reader)
        except CniError as error:
            return frame_answer(1, error_body(version_of(config), error))

    async def _serve(self, request: Request, reader: asyncio.StreamReader) -> bytes:
        work = asyncio.ensure_future(self._handler(request))
        left = asyncio.ensure_future(_until_closed(reader))
        try:
            await asyncio.wait({work, left}, return_when=asyncio.FIRST_COMPLETED)
            if not work.done():
                log.info("a CNI client left", command=request.command, container=request.key.container_id)
                if request.command == "ADD":
                    work.cancel()
                await asyncio.wait({work})
        except asyncio.CancelledError:
            work.cancel()
            await asyncio.wait({work})
            raise
        finally:
            left.cancel()
        return _told(request, work)


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


async def _read(reader: asyncio.StreamReader) -> tuple[bytes, bytes]:
    environment, config = request_lengths(await reader.readexactly(HEADER.size))
    return await reader.readexactly(environment), await reader.readexactly(config)


async def _until_closed(reader: asyncio.StreamReader) -> None:
    """What comes besides is not asked for, and not kept."""
    with suppress(ConnectionError):
        while await reader.read(1 << 12):
            pass

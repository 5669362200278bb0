"""The server: answers requests without ever waiting for a client.

A client has `handshake_s` to send its request, and `stall_s` to take what was written for it; then it is cut off.
A stream's handler is asked for its next value only when the client has taken the last ones, so a slow client costs
one value (or Batch) of memory, and a handler that watches something notices by itself how far its reader is behind.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import AsyncGenerator, Awaitable, Callable, Mapping
from contextlib import aclosing, suppress
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import Any, Self

import msgspec

from agent.api.listen import listen
from agent.api.protocol import (
    REQUEST_BYTES,
    ApiError,
    Batch,
    Response,
    decode_request,
    encode_response,
    encode_values,
)

log = logging.getLogger(__name__)

Handler = Callable[[dict[str, Any]], Awaitable[Any] | AsyncGenerator[Any, None]]
"""Gets the arguments; an async function returns the answer, an async generator yields a stream's values.

Raises ApiError (or lets msgspec.convert raise ValidationError) for what the client can mend.
"""

WRITE_BUFFER_BYTES = 256 << 10
CLOSING_S = 2.0  # what a call in progress is given when the server closes


class _CutOffError(Exception):
    """The client left, or takes nothing."""


@dataclass(frozen=True)
class Limits:
    handshake_s: float = 5.0
    stall_s: float = 30.0
    request_bytes: int = REQUEST_BYTES
    connections: int = 128


class Server:
    """Made by `serve`. `close` ends all connections and removes the socket, if it is still ours."""

    def __init__(self, path: Path, handlers: Mapping[str, Handler], limits: Limits) -> None:
        self.path = path
        self._handlers = handlers
        self._limits = limits
        self._connections: set[asyncio.Task[None]] = set()
        self._calls: set[asyncio.Task[None]] = set()  # those of the connections that must not be broken off
        self._listener: asyncio.Server | None = None
        self._made: tuple[int, int, int] | None = None

    async def start(self) -> None:
        listener = listen(self.path)
        self._made = self._identity()
        self._listener = await asyncio.start_unix_server(self._accept, sock=listener, limit=self._limits.request_bytes)

    def reachable(self) -> bool:
        """Whether the path still leads to this server; not so once the state directory was removed or replaced."""
        return self._made is not None and self._identity() == self._made

    def _identity(self) -> tuple[int, int, int] | None:
        try:
            found = self.path.stat()
        except OSError:
            return None
        return found.st_dev, found.st_ino, found.st_mtime_ns  # an inode's number is soon used again

    async def close(self) -> None:
        if self._listener is None:
            return
        self._listener.close()
        self._listener = None
        if self.reachable():
            self.path.unlink()
        for task in self._connections - self._calls:
            task.cancel()
        if self._connections:
            _, late = await asyncio.wait(self._connections, timeout=CLOSING_S)
            for task in late:
                task.cancel()

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, value: BaseException | None, trace: TracebackType | None
    ) -> None:
        await self.close()

    def _accept(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        task = asyncio.ensure_future(self._connection(reader, writer))
        self._connections.add(task)
        task.add_done_callback(self._connections.discard)
        task.add_done_callback(self._calls.discard)

    async def _connection(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        writer.transport.set_write_buffer_limits(high=WRITE_BUFFER_BYTES)
        try:
            if len(self._connections) > self._limits.connections:
                raise ApiError(f"{self.path} serves {self._limits.connections} clients already: try again later")
            request = await self._request(reader)
            if request is not None:
                await self._serve(request, reader, writer)
        except ApiError as error:
            with suppress(_CutOffError):
                await self._send(writer, encode_response(Response(error=str(error), last=True)))
                await self._flush(writer)
        except _CutOffError as error:
            log.info("%s: %s", self.path.name, error)
        finally:
            writer.transport.abort()

    async def _request(self, reader: asyncio.StreamReader) -> bytes | None:
        """The request line; None where the client left without one."""
        try:
            async with asyncio.timeout(self._limits.handshake_s):
                return await reader.readuntil(b"\n")
        except (asyncio.IncompleteReadError, ConnectionError):
            return None
        except asyncio.LimitOverrunError:
            raise ApiError(f"the request is longer than {self._limits.request_bytes} bytes: ask for less") from None
        except TimeoutError:
            raise ApiError(f"no request came within {self._limits.handshake_s:g} s: connect again") from None

    async def _serve(self, line: bytes, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        op, arguments = decode_request(line)
        handler = self._handlers.get(op)
        if handler is None:
            raise ApiError(f"there is no operation {op!r} at {self.path.name}: {', '.join(sorted(self._handlers))}")
        answer = handler(arguments)
        if isinstance(answer, AsyncGenerator):
            await self._stream(op, answer, reader, writer)
        else:
            # Carried through even if the client leaves: half an operation helps nobody.
            task = asyncio.ensure_future(answer)
            if (connection := asyncio.current_task()) is not None:
                self._calls.add(connection)
            await _finished(task)
            await self._send(writer, _last_line(op, task))
        await self._flush(writer)

    async def _stream(
        self, op: str, values: AsyncGenerator[Any, None], reader: asyncio.StreamReader, writer: asyncio.StreamWriter
    ) -> None:
        """Until the handler ends or the client leaves, whichever is first."""
        pump = asyncio.ensure_future(self._pump(values, writer))
        left = asyncio.ensure_future(_until_closed(reader))
        try:
            await asyncio.wait({pump, left}, return_when=asyncio.FIRST_COMPLETED)
        finally:
            left.cancel()
            if not pump.done():
                pump.cancel()
            await _finished(pump)
        if not pump.cancelled():
            await self._send(writer, _last_line(op, pump))

    async def _pump(self, values: AsyncGenerator[Any, None], writer: asyncio.StreamWriter) -> None:
        async with aclosing(values) as source:
            async for value in source:
                await self._send(writer, encode_values(value if isinstance(value, Batch) else Batch([value])))
                await asyncio.sleep(0)  # drain does not give way while there is room

    async def _send(self, writer: asyncio.StreamWriter, data: bytes) -> None:
        """Raises _CutOffError where the client has left, or takes nothing for `stall_s`."""
        writer.write(data)
        await self._drain(writer)

    async def _flush(self, writer: asyncio.StreamWriter) -> None:
        """Waits until the client has it all, so that the connection can be dropped."""
        writer.transport.set_write_buffer_limits(high=0)
        await self._drain(writer)

    async def _drain(self, writer: asyncio.StreamWriter) -> None:
        try:
            async with asyncio.timeout(self._limits.stall_s):
                await writer.drain()
        except ConnectionError:
            raise _CutOffError("a client left before it had its answer") from None
        except TimeoutError:
            raise _CutOffError(f"a client took nothing for {self._limits.stall_s:g} s and was cut off") from None


async def serve(path: Path, handlers: Mapping[str, Handler], limits: Limits = Limits()) -> Server:
    """Answer `handlers` (by operation) at `path`. Use as `async with await serve(...)`. Raises ApiError."""
    server = Server(path, handlers, limits)
    await server.start()
    return server


def _last_line(op: str, task: asyncio.Future[Any]) -> bytes:
    """The end of an answer, whichever way its handler ended. A handler's own fault ends in the log, not the server."""
    error = task.exception()
    if error is None:
        try:
            return encode_response(Response(task.result(), last=True))
        except TypeError as unencodable:
            error = unencodable
    if isinstance(error, ApiError):
        return encode_response(Response(error=str(error), last=True))
    if isinstance(error, msgspec.ValidationError):
        return encode_response(Response(error=f"{op}: {error}; correct the arguments", last=True))
    if isinstance(error, _CutOffError):
        raise error
    log.error("%s failed", op, exc_info=error)
    text = f"{op} failed ({type(error).__name__}: {error}): this is a fault of the process itself, see its log"
    return encode_response(Response(error=text, last=True))


async def _finished(task: asyncio.Future[Any]) -> None:
    await asyncio.wait({task})


async def _until_closed(reader: asyncio.StreamReader) -> None:
    with suppress(ConnectionError):
        while await reader.read(1 << 12):
            pass

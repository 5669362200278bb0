"""A small HTTP server for small answers, made so that nobody who connects can hurt the agent.

Nobody is waited for longer than `request_s`. When there are too many connections, the oldest is cut off: whoever comes
anew gets an answer, however many hold on to theirs. Few connections are accepted at a time, between which the agent
does its work.
"""

from __future__ import annotations

import asyncio
import errno
import socket
from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import dataclass
from email.utils import formatdate
from http import HTTPStatus

import h11

from agent.services.health import Answer
from policies.address import format_address, is_v4

Answers = Callable[[str], Answer]
"""From the path of a request, without its query."""

EVERYWHERE = b""
"""All addresses of both families."""

READ_BYTES = 4096
REFUSED = Answer(HTTPStatus.BAD_REQUEST, b'{"error":"not a request of HTTP/1.1"}')
NO_METHOD = Answer(HTTPStatus.METHOD_NOT_ALLOWED, b'{"error":"use GET or HEAD"}', (("Allow", "GET, HEAD"),))


@dataclass(frozen=True)
class Limits:
    """`requests`: of one connection. `backlog`: connections accepted at a time."""

    request_s: float = 10.0
    request_bytes: int = 8192
    requests: int = 100
    connections: int = 128
    backlog: int = 16


class HttpServer:
    """Listens at any number of ports; the limits hold for all of them together."""

    def __init__(self, limits: Limits = Limits()) -> None:
        self._limits = limits
        self._connections: dict[asyncio.Task[None], asyncio.StreamWriter] = {}  # the oldest first

    async def listen(self, addresses: Sequence[bytes], port: int, answers: Answers) -> Listening:
        """At these addresses: 16 bytes each, or EVERYWHERE. Raises OSError where the port is in use."""
        bound: list[socket.socket] = []
        listening = Listening()
        try:
            for address in addresses:
                bound.append(_bound(address, port))  # noqa: PERF401  # those before one that fails are to be closed
            for one in bound:
                server = await asyncio.start_server(
                    lambda reader, writer: self._accept(reader, writer, answers, listening),
                    sock=one,
                    backlog=self._limits.backlog,
                    limit=self._limits.request_bytes,
                )
                listening.servers.append(server)
        except OSError:
            for one in bound:
                one.close()
            raise
        return listening

    def _accept(
        self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter, answers: Answers, listening: Listening
    ) -> None:
        if len(self._connections) >= self._limits.connections:
            oldest = next(iter(self._connections))
            self._connections.pop(oldest).transport.abort()
        task = asyncio.ensure_future(self._converse(reader, writer, answers))
        self._connections[task] = listening.writers[task] = writer
        task.add_done_callback(lambda done: self._connections.pop(done, None))
        task.add_done_callback(lambda done: listening.writers.pop(done, None))

    async def _converse(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter, answers: Answers) -> None:
        """Until the client is done or out of order, or has had enough. What has been asked before is answered."""
        conversation = h11.Connection(h11.SERVER, max_incomplete_event_size=self._limits.request_bytes)
        writer.transport.set_write_buffer_limits(high=0)
        try:
            with suppress(ConnectionError, TimeoutError):
                for left in reversed(range(self._limits.requests)):
                    async with asyncio.timeout(self._limits.request_s):
                        if not await _exchange(conversation, reader, writer, answers, last=not left):
                            break
        finally:
            if writer.transport.get_write_buffer_size():
                writer.transport.abort()
            else:
                writer.close()


class Listening:
    """One or more listening sockets, and who is connected to them."""

    def __init__(self) -> None:
        self.servers: list[asyncio.Server] = []
        self.writers: dict[asyncio.Task[None], asyncio.StreamWriter] = {}

    def close(self) -> None:
        for server in self.servers:
            server.close()
        for writer in list(self.writers.values()):
            writer.transport.abort()


async def _exchange(
    conversation: h11.Connection,
    reader: asyncio.StreamReader,
    writer: asyncio.StreamWriter,
    answers: Answers,
    *,
    last: bool,
) -> bool:
    """One request and its answer. Whether there may be another."""
    method = "GET"
    try:
        request = await _request(conversation, reader)
        if request is None:
            return False
        method = request.method.decode()
        answer = answers(request.target.decode().partition("?")[0]) if method in ("GET", "HEAD") else NO_METHOD
        last = last or not isinstance(conversation.next_event(), h11.EndOfMessage)  # a body: nobody reads it
    except h11.RemoteProtocolError:
        answer, last = REFUSED, True
    if conversation.our_state not in (h11.IDLE, h11.SEND_RESPONSE):
        return False
    writer.write(_encoded(conversation, answer, method == "HEAD", last))
    await writer.drain()
    if last or conversation.states != {h11.CLIENT: h11.DONE, h11.SERVER: h11.DONE}:
        return False
    conversation.start_next_cycle()
    return True


async def _request(conversation: h11.Connection, reader: asyncio.StreamReader) -> h11.Request | None:
    """None where the client left. Raises h11.RemoteProtocolError."""
    while (event := conversation.next_event()) is h11.NEED_DATA:
        conversation.receive_data(await reader.read(READ_BYTES))
    return event if isinstance(event, h11.Request) else None


def _encoded(conversation: h11.Connection, answer: Answer, head: bool, last: bool) -> bytes:
    headers = [*answer.headers, ("Content-Length", str(len(answer.body))), ("Date", formatdate(usegmt=True))]
    if last:
        headers.append(("Connection", "close"))
    response = h11.Response(status_code=answer.status, headers=headers, reason=answer.status.phrase)
    parts = [conversation.send(response)]
    if not head:
        parts.append(conversation.send(h11.Data(data=answer.body)))
    return b"".join(part or b"" for part in (*parts, conversation.send(h11.EndOfMessage())))


def _bound(address: bytes, port: int) -> socket.socket:
    """`address`: as HttpServer.listen has them."""
    families = [socket.AF_INET if is_v4(address) else socket.AF_INET6] if address else [socket.AF_INET6, socket.AF_INET]
    for family in families:
        try:
            made = socket.socket(family, socket.SOCK_STREAM)
        except OSError as error:
            if error.errno == errno.EAFNOSUPPORT and family is not families[-1]:
                continue  # a node without IPv6
            raise
        try:
            made.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            if family is socket.AF_INET6:
                made.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY, any(address))  # ::, too, is all of both
            made.bind((format_address(address) if address else "", port))
        except OSError:
            made.close()
            raise
        return made
    raise AssertionError("there is a last family")

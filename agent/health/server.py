"""A small HTTP server for small answers, made so that nobody who connects can hurt the agent.

Nobody is waited for longer than `request_s`. When there are too many connections, the oldest is cut off: whoever comes
anew gets an answer, however many hold on to theirs. Connections are accepted one by one, and between them the agent
does its work.
"""

from __future__ import annotations

import asyncio
import errno
import socket
from collections.abc import Awaitable, Callable, Sequence
from contextlib import suppress
from dataclasses import dataclass
from email.utils import formatdate
from http import HTTPStatus

import h11

from agent import log as logs
from agent.services.health import Answer
from policies.address import format_address, is_v4

Answers = Callable[[str], Answer | Awaitable[Answer]]
"""From the path of a request, without its query."""

EVERYWHERE = b""
"""All addresses of both families."""

READ_BYTES = 4096
BACKLOG = 128
ACCEPT_AGAIN_S = 0.1
REFUSED = Answer(HTTPStatus.BAD_REQUEST, b'{"error":"not a request of HTTP/1.1"}')
NO_METHOD = Answer(HTTPStatus.METHOD_NOT_ALLOWED, b'{"error":"use GET or HEAD"}', (("Allow", "GET, HEAD"),))

log = logs.get("health")


@dataclass(frozen=True)
class Limits:
    """`requests`: of one connection."""

    request_s: float = 10.0
    request_bytes: int = 8192
    requests: int = 100
    connections: int = 128


class HttpServer:
    """Listens at any number of ports; the limits hold for all of them together."""

    def __init__(self, limits: Limits = Limits()) -> None:
        self._limits = limits
        self._connections: dict[asyncio.Task[None], None] = {}  # the oldest first

    async def listen(self, addresses: Sequence[bytes], port: int, answers: Answers) -> Listening:
        """At these addresses: 16 bytes each, or EVERYWHERE. Raises OSError where the port is in use."""
        bound: list[socket.socket] = []
        try:
            for address in addresses:
                bound.append(_bound(address, port))  # noqa: PERF401  # those before one that fails are to be closed
        except OSError:
            for one in bound:
                one.close()
            raise
        return Listening(bound, lambda made: self._accepted(made, answers))

    def _accepted(self, made: socket.socket, answers: Answers) -> asyncio.Task[None]:
        if len(self._connections) >= self._limits.connections:
            oldest = next(iter(self._connections))
            del self._connections[oldest]
            oldest.cancel()
        task = asyncio.ensure_future(self._converse(made, answers))
        self._connections[task] = None
        task.add_done_callback(lambda done: self._connections.pop(done, None))
        return task

    async def _converse(self, made: socket.socket, answers: Answers) -> None:
        """Until the client is done or out of order, or has had enough. What has been asked before is answered."""
        conversation = h11.Connection(h11.SERVER, max_incomplete_event_size=self._limits.request_bytes)
        reader, writer = await asyncio.open_connection(sock=made, limit=self._limits.request_bytes)
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
    """Sockets that listen, and those connected to them, each with the task that serves it.

    Accepts by itself: what asyncio accepts while its server is closed (or its call cancelled) stays open for ever.
    """

    def __init__(self, bound: Sequence[socket.socket], serve: Callable[[socket.socket], asyncio.Task[None]]) -> None:
        self.connections: dict[asyncio.Task[None], socket.socket] = {}
        self._bound = bound
        self._serve = serve
        self._loop = asyncio.get_running_loop()
        self._paused: dict[socket.socket, asyncio.TimerHandle] = {}
        for listener in bound:
            self._loop.add_reader(listener, self._accept, listener)

    def _accept(self, listener: socket.socket) -> None:
        """One connection: as long as there are more, the loop comes back after it has done other work."""
        try:
            made, _ = listener.accept()
        except BlockingIOError:
            return
        except OSError as error:  # the client is gone again, or there is no file descriptor left
            log.warning("health check not accepted", reason=error.strerror)
            self._loop.remove_reader(listener)
            self._paused[listener] = self._loop.call_later(ACCEPT_AGAIN_S, self._resume, listener)
            return
        made.setblocking(False)
        task = self._serve(made)
        self.connections[task] = made
        task.add_done_callback(lambda done: self.connections.pop(done).close())  # also where it never began

    def _resume(self, listener: socket.socket) -> None:
        del self._paused[listener]
        self._loop.add_reader(listener, self._accept, listener)

    async def close(self) -> None:
        """The port is free afterwards, and nobody connected any more."""
        for timer in self._paused.values():
            timer.cancel()
        bound, self._bound = self._bound, ()
        for listener in bound:
            self._loop.remove_reader(listener)
            listener.close()
        tasks = list(self.connections)
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)


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
        made = answers(request.target.decode().partition("?")[0]) if method in ("GET", "HEAD") else NO_METHOD
        answer = made if isinstance(made, Answer) else await made
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
            made.setblocking(False)
            made.bind((format_address(address) if address else "", port))
            made.listen(BACKLOG)
        except OSError:
            made.close()
            raise
        return made
    raise AssertionError("there is a last family")

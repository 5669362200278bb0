"""DNS over TCP (RFC 7766): each connection of a pod has one of its own to the resolver; queries may be pipelined, and
are answered in any order."""

from __future__ import annotations

import asyncio
import socket
import struct
from collections import Counter
from contextlib import suppress

from l7proxy.dns.answer import belongs
from l7proxy.dns.datagrams import RandomIds
from l7proxy.dns.query import id_of, with_id
from l7proxy.dns.rules import MAX_QUERY, Asked, Endpoint, Judge, Rules
from l7proxy.dns.sockets import LOOPBACK, Marks, listener, text, upstream
from policies.address import parse_address

MAX_CONNECTIONS = 1024
MAX_CONNECTIONS_OF_POD = 32
PIPELINED = 16
"""Queries of one connection under way; more are not read yet."""
IDLE_S = 10.0
"""For a query, for a resolver to answer, for a pod to take an answer."""
BUFFER_BYTES = 1 << 17

_LENGTH = struct.Struct("!H")
_LOOPBACKS = frozenset(map(parse_address, LOOPBACK.values()))


class Streams:
    def __init__(self, judge: Judge, marks: Marks) -> None:
        self._judge = judge
        self._marks = marks
        self._ids = RandomIds()
        self._connections: dict[asyncio.Task[None], tuple[int, bytes]] = {}  # listener and pod
        self._of_pod: Counter[bytes] = Counter()

    def listen(self, rules: Rules, family: socket.AddressFamily, port: int) -> socket.socket:
        """A socket that is served until `leave`. Raises OSError."""
        made = listener(socket.SOCK_STREAM, family, port, self._marks.answers)
        asyncio.get_running_loop().add_reader(made.fileno(), self._accept, made, rules)
        return made

    def leave(self, listening: socket.socket) -> None:
        """Connections that stand go on until `end`."""
        asyncio.get_running_loop().remove_reader(listening.fileno())
        listening.close()

    def end(self, number: int, pod: bytes | None = None) -> int:
        """Close the connections of a listener, or those of one pod there, that began by rules which hold no more. The
        pod connects anew, to the listener of the day. Returns how many there were."""
        ended = [task for task, at in self._connections.items() if at[0] == number and pod in (None, at[1])]
        for task in ended:
            task.cancel()
        return len(ended)

    async def close(self) -> None:
        for task in list(self._connections):
            task.cancel()
        if self._connections:
            await asyncio.wait(list(self._connections))
            await asyncio.sleep(0)  # for transports that were aborted

    def _accept(self, listening: socket.socket, rules: Rules) -> None:
        try:
            connection, _ = listening.accept()
        except OSError:  # gone again, or no descriptors left
            return
        client, resolver = _endpoint(connection.getpeername()), _endpoint(connection.getsockname())
        here = resolver == _endpoint(listening.getsockname())
        pod = client[0]
        too_many = len(self._connections) >= MAX_CONNECTIONS or self._of_pod[pod] >= MAX_CONNECTIONS_OF_POD
        if here or too_many:
            self._judge.counters.over_limit += too_many
            connection.close()
            return
        connection.setblocking(False)
        self._of_pod[pod] += 1
        served = _Connection(self._judge, self._marks, self._ids, rules, client, resolver)
        task = asyncio.ensure_future(served.run(connection))
        self._connections[task] = rules.number, pod
        task.add_done_callback(self._ended)

    def _ended(self, task: asyncio.Task[None]) -> None:
        _, pod = self._connections.pop(task)
        self._of_pod[pod] -= 1
        if not self._of_pod[pod]:
            del self._of_pod[pod]
        if not task.cancelled() and (error := task.exception()) is not None:
            raise error


class _Connection:
    """One connection of a pod, with the one behind it."""

    def __init__(
        self, judge: Judge, marks: Marks, ids: RandomIds, rules: Rules, client: Endpoint, resolver: Endpoint
    ) -> None:
        self._judge = judge
        self._mark = marks.from_ingress if rules.ingress else marks.from_egress
        self._ids = ids
        self._rules = rules
        self._client = client
        self._resolver = resolver
        self._pending: dict[int, Asked] = {}
        self._room = asyncio.Semaphore(PIPELINED)
        self._up: asyncio.StreamWriter | None = None
        self._answers: asyncio.Task[None] | None = None

    async def run(self, connection: socket.socket) -> None:
        reader, writer = await asyncio.open_connection(sock=connection, limit=BUFFER_BYTES)
        try:
            await self._serve(reader, writer)
        except (OSError, TimeoutError, asyncio.IncompleteReadError):
            pass  # either end left, or was silent for too long
        finally:
            if self._answers is not None:
                self._answers.cancel()
            for asked in self._pending.values():
                self._judge.finish(asked)
                self._judge.timed_out(asked)
            if self._up is not None:
                self._up.transport.abort()
            await _end(writer)

    async def _serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        while (message := await self._next_query(reader)) is not None:
            asked = self._judge.ask(self._rules, message, self._client, self._resolver, "TCP")
            if isinstance(asked, Asked):
                await self._pass_on(asked, message, writer)
                continue
            self._room.release()
            if not asked:
                return
            await _send(writer, asked)
        async with asyncio.timeout(IDLE_S):
            for _ in range(PIPELINED):  # what is under way is answered yet
                await self._room.acquire()

    async def _next_query(self, reader: asyncio.StreamReader) -> bytes | None:
        """None: the pod sends no more, or what is no query."""
        async with asyncio.timeout(IDLE_S):
            await self._room.acquire()
            try:
                (length,) = _LENGTH.unpack(await reader.readexactly(_LENGTH.size))
            except asyncio.IncompleteReadError as end:
                if end.partial:
                    raise
                length = 0
            if 0 < length <= MAX_QUERY:
                return await reader.readexactly(length)
        self._room.release()
        return None

    async def _pass_on(self, asked: Asked, message: bytes, writer: asyncio.StreamWriter) -> None:
        number = self._ids.next(self._pending)
        self._pending[number] = asked
        if self._up is None or (self._answers is not None and self._answers.done()):
            self._up = await self._connect(writer)
        await _send(self._up, with_id(message, number))

    async def _connect(self, writer: asyncio.StreamWriter) -> asyncio.StreamWriter:
        made = upstream(socket.SOCK_STREAM, self._client[0], self._mark)
        try:
            async with asyncio.timeout(IDLE_S):
                address = (text(self._resolver[0]), self._resolver[1])
                await asyncio.get_running_loop().sock_connect(made, address)
        except (OSError, TimeoutError):
            made.close()
            raise
        reader, up = await asyncio.open_connection(sock=made, limit=BUFFER_BYTES)
        if self._up is not None:
            self._up.transport.abort()
        self._answers = asyncio.ensure_future(self._read_answers(reader, writer))
        return up

    async def _read_answers(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        """Until the resolver leaves. What it left without an answer stays pending: the pod's connection then ends."""
        with suppress(OSError, asyncio.IncompleteReadError):
            while True:
                (length,) = _LENGTH.unpack(await reader.readexactly(_LENGTH.size))
                message = await reader.readexactly(length)
                number = id_of(message)
                asked = self._pending.get(number)
                if asked is None or not belongs(message, asked.query, number):
                    self._judge.counters.foreign_answers += 1
                    break
                del self._pending[number]
                self._judge.finish(asked)
                self._answer(asked, message, writer)
                async with asyncio.timeout(IDLE_S):
                    await writer.drain()
        if self._pending:
            writer.transport.abort()

    def _answer(self, asked: Asked, message: bytes, writer: asyncio.StreamWriter) -> None:
        def release(fine: bool) -> None:
            self._room.release()
            if fine and not writer.is_closing():
                whole = with_id(message, asked.id)
                writer.write(_LENGTH.pack(len(whole)) + whole)
            elif not fine:
                writer.transport.abort()  # the pod connects anew and asks again

        self._judge.answered(asked, message, release)


async def _send(writer: asyncio.StreamWriter, message: bytes) -> None:
    writer.write(_LENGTH.pack(len(message)) + message)
    async with asyncio.timeout(IDLE_S):
        await writer.drain()


async def _end(writer: asyncio.StreamWriter) -> None:
    """Once the other end has taken what was written."""
    writer.close()
    try:
        async with asyncio.timeout(IDLE_S):
            await writer.wait_closed()
    except (OSError, TimeoutError):
        pass
    finally:
        writer.transport.abort()


def _endpoint(address: tuple[str, int]) -> Endpoint:
    return parse_address(address[0]), address[1]

"""TCP connections to an address inside a network namespace, passed on to a port of loopback outside of it."""

from __future__ import annotations

import asyncio
import socket
import threading
from contextlib import suppress

from apiserver.faults import send_reset

_PIECE = 1 << 16


class Relay:
    """Serves from the start until `close`. `listening`: bound, by whoever is inside; it is closed at the end. Where
    nobody listens at `port`, connections are reset."""

    def __init__(self, listening: socket.socket, port: int) -> None:
        self._port = port
        self._listening = listening
        self._loop = asyncio.new_event_loop()
        self._open: set[asyncio.Task[None]] = set()
        ready = threading.Event()
        self._thread = threading.Thread(target=self._run, args=(ready,), name="relay", daemon=True)
        self._thread.start()
        ready.wait()

    def close(self) -> None:
        self._loop.call_soon_threadsafe(self._loop.stop)
        self._thread.join()

    def _run(self, ready: threading.Event) -> None:
        asyncio.set_event_loop(self._loop)
        server = self._loop.run_until_complete(asyncio.start_server(self._take, sock=self._listening))
        ready.set()
        self._loop.run_forever()
        server.close()
        for task in self._open:
            task.cancel()
        self._loop.run_until_complete(asyncio.gather(*self._open, return_exceptions=True))
        self._loop.close()

    async def _take(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        task = asyncio.current_task()
        assert task is not None
        self._open.add(task)
        try:
            there_reader, there_writer = await asyncio.open_connection("127.0.0.1", self._port)
        except OSError:
            send_reset(writer.get_extra_info("socket"))
            writer.transport.abort()
        else:
            ways = [asyncio.create_task(_pass_on(*way)) for way in ((reader, there_writer), (there_reader, writer))]
            try:
                await asyncio.wait(ways, return_when=asyncio.FIRST_COMPLETED)
            finally:
                for way in ways:
                    way.cancel()
                writer.close()
                there_writer.close()
        finally:
            self._open.discard(task)


async def _pass_on(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    with suppress(OSError):
        while data := await reader.read(_PIECE):
            writer.write(data)
            await writer.drain()

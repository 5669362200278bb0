"""The sockets of a session with the API server, so that its end can be awaited.

aiohttp waits only for connections that are in use or kept when a session is closed. One that ended before, such as a
watch's, may still be in TLS's shutdown, for which asyncio gives the other side half a minute.
"""

from __future__ import annotations

import asyncio
import errno
import socket
from collections.abc import Callable
from contextlib import suppress
from typing import Any

OPTIONS = (
    (socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1),
    (socket.IPPROTO_TCP, socket.TCP_KEEPIDLE, 15),
    (socket.IPPROTO_TCP, socket.TCP_KEEPINTVL, 5),
    (socket.IPPROTO_TCP, socket.TCP_KEEPCNT, 3),
    (socket.IPPROTO_TCP, socket.TCP_USER_TIMEOUT, 30_000),
)
"""It is noticed within 30 s that the other side is gone, whether or not there is anything to send."""

CLOSED_S = 10.0
"""Nobody's end waits longer than that for a socket."""


class Sockets:
    """Those that `make` made and that are open. For one event loop."""

    def __init__(self) -> None:
        self._open: set[_Socket] = set()
        self._ended = False
        self._all_closed = asyncio.Event()

    def make(self, address: Any) -> socket.socket:
        """An aiohttp socket factory: `address` is one of getaddrinfo's. Raises OSError, also after `end`."""
        if self._ended:
            raise OSError(errno.ECONNABORTED, "connections to the API server are being closed")
        family, kind, protocol, _, _ = address
        made = _Socket(self._closed, family, kind, protocol)
        made.setblocking(False)
        for level, option, value in OPTIONS:
            made.setsockopt(level, option, value)
        self._open.add(made)
        return made

    async def end(self) -> None:
        """Ends what is open and makes no more; returns when all are closed, or after CLOSED_S. Their session is closed
        before."""
        self._ended = True
        for one in tuple(self._open):
            with suppress(OSError):  # that one is not connected yet: whoever would connect it fails and closes it
                one.shutdown(socket.SHUT_RDWR)  # to its transport the other side has closed, so it closes, too
        with suppress(TimeoutError):
            async with asyncio.timeout(CLOSED_S):
                while self._open:
                    self._all_closed.clear()
                    await self._all_closed.wait()

    def _closed(self, one: _Socket) -> None:
        self._open.discard(one)
        if not self._open:
            self._all_closed.set()


class _Socket(socket.socket):
    """Tells when it is closed."""

    def __init__(self, closed: Callable[[_Socket], None], family: int, kind: int, protocol: int) -> None:
        super().__init__(family, kind, protocol)
        self._tell = closed

    def close(self) -> None:
        super().close()
        self._tell(self)

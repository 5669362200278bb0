"""Waiting for the kernel to tell of changes of the node's network (rtnetlink notifications)."""

from __future__ import annotations

import asyncio
import errno
import socket
import struct
from collections.abc import Callable

_MESSAGE = struct.Struct("=IHHII")
_RECEIVE_BYTES = 1 << 16


class Changes:
    """Tells when something has changed that matters, in the network namespace this is made in.

    `groups`: RTMGRP_*, a bit each; `matters`: given a message's kind and body. From when it is made, nothing is missed.
    """

    def __init__(self, groups: int, matters: Callable[[int, bytes], bool]) -> None:
        self._matters = matters
        self._socket = socket.socket(
            socket.AF_NETLINK, socket.SOCK_RAW | socket.SOCK_CLOEXEC | socket.SOCK_NONBLOCK, socket.NETLINK_ROUTE
        )
        self._socket.bind((0, groups))
        self._happened = asyncio.Event()

    async def __aenter__(self) -> None:
        asyncio.get_running_loop().add_reader(self._socket, self._receive)

    async def __aexit__(self, *_: object) -> None:
        asyncio.get_running_loop().remove_reader(self._socket)

    def notice(self) -> None:
        """Something else has changed that matters."""
        self._happened.set()

    async def wait(self) -> None:
        """Until something has changed since the last call returned."""
        await self._happened.wait()
        self._happened.clear()

    def close(self) -> None:
        self._socket.close()

    def _receive(self) -> None:
        while True:
            try:
                data = self._socket.recv(_RECEIVE_BYTES)
            except BlockingIOError:
                return
            except OSError as error:
                if error.errno != errno.ENOBUFS:
                    raise
                self._happened.set()  # some were lost
                continue
            while len(data) >= _MESSAGE.size:
                length, kind, _, _, _ = _MESSAGE.unpack_from(data)
                if self._matters(kind, data[_MESSAGE.size : length]):
                    self._happened.set()
                data = data[(length + 3) & ~3 :]

"""inotify(7) by way of libc: watches and events, non-blocking."""

from __future__ import annotations

import ctypes
import os
import struct
from collections.abc import Iterator
from errno import EINVAL
from pathlib import Path

import msgspec

CLOSE_WRITE = 0x8
MOVED_FROM = 0x40
MOVED_TO = 0x80
CREATE = 0x100
DELETE = 0x200
DELETE_SELF = 0x400
MOVE_SELF = 0x800
OVERFLOW = 0x4000
IGNORED = 0x8000
ONLY_DIRECTORIES = 0x1000000
IS_DIRECTORY = 0x40000000

_HEADER = struct.Struct("iIII")  # struct inotify_event without its name
_BUFFER = 64 * 1024
_LIBC = ctypes.CDLL(None, use_errno=True)
_LIBC.inotify_add_watch.argtypes = (ctypes.c_int, ctypes.c_char_p, ctypes.c_uint32)


class Event(msgspec.Struct, frozen=True, gc=False):
    watch: int  # -1 for OVERFLOW
    mask: int
    name: str  # "" where it is about the watched directory itself


class Inotify:
    """Raises OSError with the name of what cannot be watched; ENOSPC means fs.inotify.max_user_watches is too low."""

    def __init__(self) -> None:
        self._fd: int = _LIBC.inotify_init1(os.O_CLOEXEC | os.O_NONBLOCK)
        if self._fd < 0:
            raise _error("inotify: raise the sysctl fs.inotify.max_user_instances")

    def fileno(self) -> int:
        return self._fd

    def close(self) -> None:
        os.close(self._fd)

    def add(self, path: Path, mask: int) -> int:
        """Watch; one directory has one watch however often it is added."""
        watch: int = _LIBC.inotify_add_watch(self._fd, os.fsencode(path), mask)
        if watch < 0:
            raise _error(str(path))
        return watch

    def remove(self, watch: int) -> None:
        """A watch that the kernel has removed by itself is no error."""
        if _LIBC.inotify_rm_watch(self._fd, watch) < 0 and ctypes.get_errno() != EINVAL:
            raise _error("inotify")

    def read(self) -> Iterator[Event]:
        """All events that are there now."""
        while True:
            try:
                data = os.read(self._fd, _BUFFER)
            except BlockingIOError:
                return
            position = 0
            while position < len(data):
                watch, mask, _, length = _HEADER.unpack_from(data, position)
                position += _HEADER.size
                name = data[position : position + length].rstrip(b"\0")
                position += length
                yield Event(watch, mask, os.fsdecode(name))


def _error(what: str) -> OSError:
    number = ctypes.get_errno()
    return OSError(number, os.strerror(number), what)

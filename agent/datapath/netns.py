"""The network namespace that a thread is in. Each thread has its own, so all of this is about the calling one."""

from __future__ import annotations

import ctypes
import os
from collections.abc import Iterator
from contextlib import contextmanager

CURRENT = "/proc/thread-self/ns/net"

_CLONE_NEWNET = 0x40000000
# It takes a microsecond: to let another thread have the interpreter meanwhile costs a thousand.
_libc = ctypes.PyDLL(None, use_errno=True)


def open_current() -> int:
    """A descriptor of the calling thread's network namespace."""
    return os.open(CURRENT, os.O_RDONLY | os.O_CLOEXEC)


def enter(netns: int) -> None:
    """Move the calling thread, and the processes it starts from now on, into a network namespace."""
    if _libc.setns(netns, _CLONE_NEWNET):
        number = ctypes.get_errno()
        raise OSError(number, f"enter network namespace: {os.strerror(number)}")


@contextmanager
def entered(netns: int) -> Iterator[None]:
    """The calling thread is in `netns` inside the block, and back where it was after it."""
    home = open_current()
    try:
        enter(netns)
        try:
            yield
        finally:
            enter(home)
    finally:
        os.close(home)

"""Memory of the process: given back to the kernel as soon as it is not needed, and not gone through in vain."""

from __future__ import annotations

import ctypes
import gc
import os
from contextlib import suppress
from pathlib import Path

MMAP_BYTES = 128 << 10
"""Blocks of memory from this size on are mapped one by one."""
_M_MMAP_THRESHOLD = -3  # malloc.h

_LIBC = ctypes.CDLL(None)


def give_back() -> None:
    """Keep glibc from raising its threshold as large blocks are freed: texts of files and buffers of maps then go back
    to the kernel when they are done with, rather than leave holes in the heap."""
    if hasattr(_LIBC, "mallopt"):
        _LIBC.mallopt(_M_MMAP_THRESHOLD, MMAP_BYTES)


def keep() -> None:
    """What is there now stays: the garbage collector is not to go through it again and again. With a large cluster that
    takes it 60 ms, in the middle of some small change. What loading it has left unused goes back to the kernel."""
    gc.collect()
    gc.freeze()
    if hasattr(_LIBC, "malloc_trim"):
        _LIBC.malloc_trim(0)


def resident_bytes(pid: int) -> int:
    """Of a process; 0 where there is none."""
    with suppress(OSError):
        return int(Path(f"/proc/{pid}/statm").read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE")
    return 0

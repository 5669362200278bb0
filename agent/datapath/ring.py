"""A reader for a BPF ring buffer map (Documentation/bpf/ringbuf.rst).

The kernel appends records at the producer position and never overwrites what the consumer position has not passed.
Data are mapped twice in a row, so a record that wraps is still contiguous. Each starts with a header of 8 bytes: its
length, with a bit for "still being written" and one for "discarded", and a page offset that is of no use here.

Memory order: the producer position must be read before headers, and headers before data. Python has no acquire load,
but taking a lock is one, on every architecture.
"""

from __future__ import annotations

import mmap
import struct
import threading
from collections.abc import Iterator
from typing import Any

from agent.datapath import bpf
from agent.datapath.record import Record

_HEADER_SIZE = 8
_BUSY, _DISCARDED = 1 << 31, 1 << 30
DRAIN_BYTES = 1 << 20


class Ring:
    """The one reader of a ring. `fileno` becomes readable when there are records, for a level-triggered epoll."""

    def __init__(self, fd: int) -> None:
        self._fd = fd
        self._size = bpf.map_info(fd).max_entries
        page = mmap.PAGESIZE
        self._consumer_map = mmap.mmap(fd, page, mmap.MAP_SHARED, mmap.PROT_READ | mmap.PROT_WRITE, offset=0)
        self._producer_map = mmap.mmap(fd, page + 2 * self._size, mmap.MAP_SHARED, mmap.PROT_READ, offset=page)
        self._consumer = memoryview(self._consumer_map).cast("Q")
        self._producer = memoryview(self._producer_map)[:8].cast("Q")
        self._data = memoryview(self._producer_map)[page:]
        self._words = self._data.cast("I")
        self._barrier = threading.Lock()
        self._structs: dict[str, struct.Struct] = {}

    def fileno(self) -> int:
        return self._fd

    @property
    def unread_bytes(self) -> int:
        return self._producer[0] - self._consumer[0]

    def drain(self, limit: int = DRAIN_BYTES) -> list[bytes]:
        """Records that are complete, oldest first; at most `limit` bytes of ring are freed, but at least one record."""
        start, end = self._bounds()
        position, found = start, []
        while position < end and position - start < limit:
            offset = position % self._size
            length = self._words[offset // 4]
            if length & _BUSY:
                break
            size = length & ~_DISCARDED
            if not length & _DISCARDED:
                with self._barrier:
                    found.append(bytes(self._data[offset + _HEADER_SIZE : offset + _HEADER_SIZE + size]))
            position += (size + _HEADER_SIZE + 7) & ~7
        self._consumer[0] = position
        return found

    def drain_records(self, record: Record, limit: int = DRAIN_BYTES) -> Iterator[tuple[Any, ...]]:
        """As `drain`, for a ring whose records are all of one struct; plain tuples in the order of `record.names`.

        The first run of complete records is copied and freed at once. Raises ValueError on another length.
        """
        start, end = self._bounds()
        stride = (record.size + _HEADER_SIZE + 7) & ~7
        offset = start % self._size
        # Records may lie across the end of the first mapping; those looked at never reach the end of the second.
        count = min(end - start, max(limit, stride)) // stride
        headers = self._words[offset // 4 : (offset + count * stride) // 4 : stride // 4].tolist()
        if headers.count(record.size) == count:
            first, after = 0, count
        else:
            first, after = _first_run(headers, record.size)
        with self._barrier:
            copy = bytes(self._data[offset + first * stride : offset + after * stride])
        self._consumer[0] = start + after * stride
        if not copy and after < count and not headers[after] & _BUSY:
            raise ValueError(f"the ring holds a record of {headers[after]} bytes, which is no struct {record.name}")
        return self._struct(record, stride).iter_unpack(copy)

    def _struct(self, record: Record, stride: int) -> struct.Struct:
        """The record with its header before and its alignment after it."""
        found = self._structs.get(record.name)
        if found is None:
            padding = stride - _HEADER_SIZE - record.size
            codes = "".join(f.code for f in record.fields)
            found = self._structs[record.name] = struct.Struct(f"={_HEADER_SIZE}x{codes}{padding}x")
        return found

    def _bounds(self) -> tuple[int, int]:
        start = self._consumer[0]
        with self._barrier:
            return start, self._producer[0]

    def close(self) -> None:
        """Unmap; the file descriptor stays the caller's."""
        for view in (self._consumer, self._producer, self._words, self._data):
            view.release()
        self._consumer_map.close()
        self._producer_map.close()


def _first_run(headers: list[int], size: int) -> tuple[int, int]:
    """Bounds of the first run of complete records of that size; discarded ones before it are passed over."""
    first = 0
    while first < len(headers) and headers[first] == size | _DISCARDED:
        first += 1
    after = first
    while after < len(headers) and headers[after] == size:
        after += 1
    return first, after

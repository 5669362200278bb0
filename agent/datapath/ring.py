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

from agent.datapath import bpf

_HEADER_SIZE = 8
_BUSY, _DISCARDED = 1 << 31, 1 << 30
_RUN = 128  # records of one length that are looked at together
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

    def fileno(self) -> int:
        return self._fd

    @property
    def unread_bytes(self) -> int:
        return self._producer[0] - self._consumer[0]

    def drain(self, limit: int = DRAIN_BYTES) -> list[bytes]:
        """Records that are complete, oldest first, up to one still being written. Discarded ones are left out.

        At most `limit` bytes of the ring are freed, but at least one record, so that a reader always gets on.
        """
        start, end = self._bounds()
        stop = min(end, start + limit)
        position, found = start, []
        while position < stop:
            length = self._words[position % self._size // 4]
            if length & _BUSY:
                break
            stride = ((length & ~_DISCARDED) + _HEADER_SIZE + 7) & ~7
            if length & _DISCARDED:
                position += stride
                continue
            records = self._run(position % self._size, length, stride, max((stop - position) // stride, 1))
            position += len(records) * stride
            found += records
        self._consumer[0] = position
        return found

    def _run(self, offset: int, length: int, stride: int, most: int) -> list[bytes]:
        """Records of one length that follow each other from `offset` on; the first is known to be one."""
        count = min(most, _RUN)
        headers = self._words[offset // 4 : (offset + count * stride) // 4 : stride // 4].tolist()
        if headers.count(length) != count:
            count = next(index for index, header in enumerate(headers) if header != length)
        with self._barrier:
            copy = bytes(self._data[offset : offset + count * stride])
        pattern = f"={_HEADER_SIZE}x{length}s{stride - _HEADER_SIZE - length}x"
        return [data for (data,) in struct.iter_unpack(pattern, copy)]

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

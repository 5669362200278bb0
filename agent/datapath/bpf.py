"""bpf(2), as much of it as Gatehouse uses. Everything here takes and returns file descriptors and bytes.

Layouts are those of union bpf_attr, struct bpf_map_info and struct bpf_prog_info in include/uapi/linux/bpf.h.
"""

from __future__ import annotations

import ctypes
import errno
import os
import platform
import struct
from ctypes import c_char_p, c_uint32, c_uint64
from pathlib import Path

import msgspec

_NUMBERS = {"x86_64": 321, "aarch64": 280, "riscv64": 280, "ppc64le": 361, "s390x": 351}
_SYSCALL = _NUMBERS.get(platform.machine(), -1)  # elsewhere each call fails with ENOSYS

_MAP_CREATE, _MAP_LOOKUP, _MAP_UPDATE, _MAP_DELETE = 0, 1, 2, 3
_OBJ_PIN, _OBJ_GET, _MAP_GET_FD_BY_ID, _OBJ_GET_INFO = 6, 7, 14, 15
_MAP_LOOKUP_BATCH, _MAP_UPDATE_BATCH, _MAP_DELETE_BATCH = 24, 26, 27

ANY, NOEXIST, EXIST = 0, 1, 2
"""Flags of an update: create or replace, create only, replace only."""

_libc = ctypes.CDLL(None, use_errno=True)


class BpfError(OSError):
    """A bpf(2) call failed."""


class NoEntry(BpfError):
    """ENOENT: no such key, or nothing pinned there."""


class EntryExists(BpfError):
    """EEXIST: the key, or the pin, is there already."""


class MapFull(BpfError):
    """E2BIG, ENOSPC, ENOMEM: no room for a new key. `written` counts the entries of the same call that went in."""

    written = 0


_ERRORS: dict[int, type[BpfError]] = {
    errno.ENOENT: NoEntry,
    errno.EEXIST: EntryExists,
    errno.E2BIG: MapFull,
    errno.ENOSPC: MapFull,
    errno.ENOMEM: MapFull,
}
_FULL = frozenset(number for number, kind in _ERRORS.items() if kind is MapFull)


def error_of(number: int, what: str, *, writes: bool = False) -> BpfError:
    kind = BpfError if number in _FULL and not writes else _ERRORS.get(number, BpfError)
    return kind(number, f"{what}: {os.strerror(number)}")


class _Element(ctypes.Structure):
    """BPF_MAP_*_ELEM."""

    _fields_ = (("map_fd", c_uint32), ("pad", c_uint32), ("key", c_char_p), ("value", c_char_p), ("flags", c_uint64))


class _Batch(ctypes.Structure):
    """BPF_MAP_*_BATCH."""

    _fields_ = (
        ("in_batch", c_uint64),
        ("out_batch", c_uint64),
        ("keys", c_char_p),
        ("values", c_char_p),
        ("count", c_uint32),
        ("map_fd", c_uint32),
        ("elem_flags", c_uint64),
        ("flags", c_uint64),
    )


class _Path(ctypes.Structure):
    """BPF_OBJ_PIN, BPF_OBJ_GET."""

    _fields_ = (("pathname", c_char_p), ("bpf_fd", c_uint32), ("file_flags", c_uint32))


class _Info(ctypes.Structure):
    """BPF_OBJ_GET_INFO_BY_FD."""

    _fields_ = (("bpf_fd", c_uint32), ("info_len", c_uint32), ("info", c_uint64))


def call(command: int, attributes: ctypes.Structure | ctypes.Array[ctypes.c_char]) -> int:
    """Result of the call, or -errno."""
    while True:
        result = int(_libc.syscall(_SYSCALL, command, ctypes.byref(attributes), ctypes.sizeof(attributes)))
        if result >= 0:
            return result
        error = ctypes.get_errno()
        if error != errno.EINTR:
            return -error


def checked(command: int, attributes: ctypes.Structure | ctypes.Array[ctypes.c_char], what: str) -> int:
    result = call(command, attributes)
    if result < 0:
        raise error_of(-result, what)
    return result


# ---- maps ----------------------------------------------------------------------------------------------------


def map_create(
    kind: int, key_size: int, value_size: int, max_entries: int, flags: int = 0, name: str = "", inner_map: int = 0
) -> int:
    """A new map's file descriptor. `name` is cut to the 15 bytes the kernel keeps. `inner_map`: file descriptor of a
    map like those that this one is to hold."""
    numa_node = 0
    packed = struct.pack(
        "=7I16s", kind, key_size, value_size, max_entries, flags, inner_map, numa_node, name.encode()[:15]
    )
    return checked(_MAP_CREATE, ctypes.create_string_buffer(packed, len(packed)), f"creating map {name}")


def map_by_id(number: int) -> int:
    """File descriptor of a map by the kernel's number. Raises NoEntry."""
    packed = struct.pack("=3I", number, 0, 0)
    return checked(_MAP_GET_FD_BY_ID, ctypes.create_string_buffer(packed, len(packed)), f"opening map {number}")


def map_lookup(fd: int, key: bytes, value_size: int) -> bytes | None:
    """The value, or None. `value_size` counts the values of all possible CPUs where there is one for each."""
    value = ctypes.create_string_buffer(value_size)
    result = call(_MAP_LOOKUP, _Element(fd, 0, key, ctypes.addressof(value), 0))
    if result == -errno.ENOENT:
        return None
    if result < 0:
        raise error_of(-result, "reading a map")
    return value.raw


def map_update(fd: int, key: bytes, value: bytes, flags: int = ANY) -> None:
    """Raises MapFull; EntryExists (with NOEXIST), NoEntry (with EXIST)."""
    result = call(_MAP_UPDATE, _Element(fd, 0, key, value, flags))
    if result < 0:
        raise error_of(-result, "writing to a map", writes=True)


def map_delete(fd: int, key: bytes) -> bool:
    """Whether the key was there."""
    result = call(_MAP_DELETE, _Element(fd, 0, key, None, 0))
    if result < 0 and result != -errno.ENOENT:
        raise error_of(-result, "deleting from a map")
    return result >= 0


class BatchReader:
    """Reads a map in chunks, through buffers of its own that every chunk reuses.

    Entries that are written or deleted meanwhile may be seen or not; all others are seen.
    """

    def __init__(self, fd: int, key_size: int, value_size: int, chunk: int) -> None:
        self._fd, self._key_size, self._value_size = fd, key_size, value_size
        token_size = max(key_size, 8)  # a bucket number for hashes, a key for tries
        self._tokens = (ctypes.create_string_buffer(token_size), ctypes.create_string_buffer(token_size))
        self._started = False
        self._done = False
        self._resize(chunk)

    def _resize(self, chunk: int) -> None:
        self._chunk = chunk
        self._keys = ctypes.create_string_buffer(self._key_size * chunk)
        self._values = ctypes.create_string_buffer(self._value_size * chunk)

    def read(self) -> tuple[memoryview, memoryview] | None:
        """Keys and values of the next entries, joined; None at the end. Views are valid until the next call."""
        while not self._done:
            before, after = self._tokens
            batch = _Batch(
                ctypes.addressof(before) if self._started else 0,
                ctypes.addressof(after),
                ctypes.addressof(self._keys),
                ctypes.addressof(self._values),
                self._chunk,
                self._fd,
            )
            result = call(_MAP_LOOKUP_BATCH, batch)
            if result == -errno.ENOSPC:  # one hash bucket holds more than a chunk
                self._resize(2 * self._chunk)
                continue
            if result == -errno.ENOENT:
                self._done = True
            elif result < 0 and result != -errno.EAGAIN:  # again: an entry of a trie vanished under the reader
                raise error_of(-result, "reading a map")
            count = batch.count
            if count:
                self._started = True
                self._tokens = (after, before)
                return (
                    memoryview(self._keys).cast("B")[: count * self._key_size],
                    memoryview(self._values).cast("B")[: count * self._value_size],
                )
        return None


def map_update_batch(fd: int, keys: bytes, values: bytes, count: int) -> None:
    """Write joined keys and values. Raises MapFull, whose `written` counts those that went in before it failed."""
    batch = _Batch(0, 0, keys, values, count, fd)
    result = call(_MAP_UPDATE_BATCH, batch)
    if result < 0:
        error = error_of(-result, "writing to a map", writes=True)
        if isinstance(error, MapFull):
            error.written = batch.count
        raise error


def map_delete_batch(fd: int, keys: bytes, key_size: int) -> int:
    """Delete joined keys; those that are not there are passed over. Returns how many were there."""
    total, done, deleted = len(keys) // key_size, 0, 0
    while done < total:
        batch = _Batch(0, 0, keys[done * key_size :] if done else keys, None, total - done, fd)
        result = call(_MAP_DELETE_BATCH, batch)
        if result < 0 and result != -errno.ENOENT:
            raise error_of(-result, "deleting from a map")
        deleted += batch.count
        done += batch.count + (1 if result < 0 else 0)
    return deleted


# ---- pins and information ------------------------------------------------------------------------------------


def pin(fd: int, path: Path) -> None:
    """Raises EntryExists."""
    checked(_OBJ_PIN, _Path(os.fsencode(path), fd), f"pinning {path}")


def open_pinned(path: Path) -> int:
    """Raises NoEntry."""
    return checked(_OBJ_GET, _Path(os.fsencode(path), 0), f"opening {path}")


class MapInfo(msgspec.Struct, frozen=True):
    type: int
    id: int
    key_size: int
    value_size: int
    max_entries: int
    flags: int


def info(fd: int, buffer: ctypes.Array[ctypes.c_char]) -> bytes:
    attributes = _Info(fd, ctypes.sizeof(buffer), ctypes.addressof(buffer))
    checked(_OBJ_GET_INFO, attributes, "asking about a BPF object")
    return buffer.raw


def map_info(fd: int) -> MapInfo:
    return MapInfo(*struct.unpack_from("=6I", info(fd, ctypes.create_string_buffer(24))))

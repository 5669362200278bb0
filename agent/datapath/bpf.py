"""bpf(2), as much of it as Gatehouse uses. Everything here takes and returns file descriptors and bytes.

Layouts are those of union bpf_attr, struct bpf_map_info and struct bpf_prog_info in include/uapi/linux/bpf.h.
"""

from __future__ import annotations

import ctypes
import errno
import os
import platform
import struct
from ctypes import c_char, c_char_p, c_uint32, c_uint64
from pathlib import Path

import msgspec

_NUMBERS = {"x86_64": 321, "aarch64": 280, "riscv64": 280, "ppc64le": 361, "s390x": 351}
_SYSCALL = _NUMBERS.get(platform.machine(), -1)  # elsewhere each call fails with ENOSYS

_MAP_CREATE, _MAP_LOOKUP, _MAP_UPDATE, _MAP_DELETE = 0, 1, 2, 3
_PROG_LOAD, _OBJ_PIN, _OBJ_GET, _PROG_ATTACH, _PROG_DETACH, _PROG_TEST_RUN = 5, 6, 7, 8, 9, 10
_PROG_GET_FD_BY_ID, _MAP_GET_FD_BY_ID, _OBJ_GET_INFO, _PROG_QUERY = 13, 14, 15, 16
_MAP_LOOKUP_BATCH, _MAP_UPDATE_BATCH, _MAP_DELETE_BATCH = 24, 26, 27
_LINK_CREATE, _LINK_UPDATE, _LINK_DETACH = 28, 29, 34

ANY, NOEXIST, EXIST = 0, 1, 2
"""Flags of an update: create or replace, create only, replace only."""

_libc = ctypes.CDLL(None, use_errno=True)


class BpfError(OSError):
    """A bpf(2) call failed."""


class NoEntry(BpfError):
    """ENOENT: no such key, or nothing pinned there."""


class EntryExists(BpfError):
    """EEXIST: the key, or the pin, is there already."""


class ProgramRefused(BpfError):
    """The verifier does not accept a program; `log` is what it said."""

    log = ""


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


def _error(number: int, what: str, *, writes: bool = False) -> BpfError:
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


class _Attach(ctypes.Structure):
    """BPF_PROG_ATTACH, BPF_PROG_DETACH."""

    _fields_ = (
        ("target_fd", c_uint32),
        ("attach_bpf_fd", c_uint32),
        ("attach_type", c_uint32),
        ("attach_flags", c_uint32),
        ("replace_bpf_fd", c_uint32),
    )


class _Query(ctypes.Structure):
    """BPF_PROG_QUERY, as far as every kernel knows it."""

    _fields_ = (
        ("target_fd", c_uint32),
        ("attach_type", c_uint32),
        ("query_flags", c_uint32),
        ("attach_flags", c_uint32),
        ("prog_ids", c_uint64),
        ("prog_cnt", c_uint32),
        ("pad", c_uint32),
    )


class _Info(ctypes.Structure):
    """BPF_OBJ_GET_INFO_BY_FD."""

    _fields_ = (("bpf_fd", c_uint32), ("info_len", c_uint32), ("info", c_uint64))


class _TestRun(ctypes.Structure):
    """BPF_PROG_TEST_RUN."""

    _fields_ = (
        ("prog_fd", c_uint32),
        ("retval", c_uint32),
        ("data_size_in", c_uint32),
        ("data_size_out", c_uint32),
        ("data_in", c_char_p),
        ("data_out", c_uint64),
        ("repeat", c_uint32),
        ("duration", c_uint32),
        ("ctx_size_in", c_uint32),
        ("ctx_size_out", c_uint32),
        ("ctx_in", c_char_p),
        ("ctx_out", c_uint64),
        ("flags", c_uint32),
        ("cpu", c_uint32),
    )


def _call(command: int, attributes: ctypes.Structure | ctypes.Array[ctypes.c_char]) -> int:
    """Result of the call, or -errno."""
    while True:
        result = int(_libc.syscall(_SYSCALL, command, ctypes.byref(attributes), ctypes.sizeof(attributes)))
        if result >= 0:
            return result
        error = ctypes.get_errno()
        if error != errno.EINTR:
            return -error


def _checked(command: int, attributes: ctypes.Structure | ctypes.Array[ctypes.c_char], what: str) -> int:
    result = _call(command, attributes)
    if result < 0:
        raise _error(-result, what)
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
    return _checked(_MAP_CREATE, ctypes.create_string_buffer(packed, len(packed)), f"creating map {name}")


def map_by_id(number: int) -> int:
    """File descriptor of a map by the kernel's number. Raises NoEntry."""
    packed = struct.pack("=3I", number, 0, 0)
    return _checked(_MAP_GET_FD_BY_ID, ctypes.create_string_buffer(packed, len(packed)), f"opening map {number}")


def map_lookup(fd: int, key: bytes, value_size: int) -> bytes | None:
    """The value, or None. `value_size` counts the values of all possible CPUs where there is one for each."""
    value = ctypes.create_string_buffer(value_size)
    result = _call(_MAP_LOOKUP, _Element(fd, 0, key, ctypes.addressof(value), 0))
    if result == -errno.ENOENT:
        return None
    if result < 0:
        raise _error(-result, "reading a map")
    return value.raw


def map_update(fd: int, key: bytes, value: bytes, flags: int = ANY) -> None:
    """Raises MapFull; EntryExists (with NOEXIST), NoEntry (with EXIST)."""
    result = _call(_MAP_UPDATE, _Element(fd, 0, key, value, flags))
    if result < 0:
        raise _error(-result, "writing to a map", writes=True)


def map_delete(fd: int, key: bytes) -> bool:
    """Whether the key was there."""
    result = _call(_MAP_DELETE, _Element(fd, 0, key, None, 0))
    if result < 0 and result != -errno.ENOENT:
        raise _error(-result, "deleting from a map")
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
            result = _call(_MAP_LOOKUP_BATCH, batch)
            if result == -errno.ENOSPC:  # one hash bucket holds more than a chunk
                self._resize(2 * self._chunk)
                continue
            if result == -errno.ENOENT:
                self._done = True
            elif result < 0 and result != -errno.EAGAIN:  # again: an entry of a trie vanished under the reader
                raise _error(-result, "reading a map")
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
    result = _call(_MAP_UPDATE_BATCH, batch)
    if result < 0:
        error = _error(-result, "writing to a map", writes=True)
        if isinstance(error, MapFull):
            error.written = batch.count
        raise error


def map_delete_batch(fd: int, keys: bytes, key_size: int) -> int:
    """Delete joined keys; those that are not there are passed over. Returns how many were there."""
    total, done, deleted = len(keys) // key_size, 0, 0
    while done < total:
        batch = _Batch(0, 0, keys[done * key_size :] if done else keys, None, total - done, fd)
        result = _call(_MAP_DELETE_BATCH, batch)
        if result < 0 and result != -errno.ENOENT:
            raise _error(-result, "deleting from a map")
        deleted += batch.count
        done += batch.count + (1 if result < 0 else 0)
    return deleted


# ---- pins and information ------------------------------------------------------------------------------------


def pin(fd: int, path: Path) -> None:
    """Raises EntryExists."""
    _checked(_OBJ_PIN, _Path(os.fsencode(path), fd), f"pinning {path}")


def open_pinned(path: Path) -> int:
    """Raises NoEntry."""
    return _checked(_OBJ_GET, _Path(os.fsencode(path), 0), f"opening {path}")


class MapInfo(msgspec.Struct, frozen=True):
    type: int
    id: int
    key_size: int
    value_size: int
    max_entries: int
    flags: int


class ProgramInfo(msgspec.Struct, frozen=True):
    """`tag` is the kernel's hash of the instructions; lengths are bytes; run counts need kernel.bpf_stats_enabled."""

    type: int
    id: int
    tag: str
    name: str
    jited_bytes: int
    xlated_bytes: int
    verified_instructions: int
    map_ids: tuple[int, ...]
    run_time_ns: int
    run_count: int


def _info(fd: int, buffer: ctypes.Array[ctypes.c_char]) -> bytes:
    attributes = _Info(fd, ctypes.sizeof(buffer), ctypes.addressof(buffer))
    _checked(_OBJ_GET_INFO, attributes, "asking about a BPF object")
    return buffer.raw


def map_info(fd: int) -> MapInfo:
    return MapInfo(*struct.unpack_from("=6I", _info(fd, ctypes.create_string_buffer(24))))


class _Load(ctypes.Structure):
    """BPF_PROG_LOAD."""

    _fields_ = (
        ("prog_type", c_uint32),
        ("insn_cnt", c_uint32),
        ("insns", c_char_p),
        ("license", c_char_p),
        ("log_level", c_uint32),
        ("log_size", c_uint32),
        ("log_buf", c_uint64),
        ("kern_version", c_uint32),
        ("prog_flags", c_uint32),
        ("prog_name", c_char * 16),
        ("prog_ifindex", c_uint32),
        ("expected_attach_type", c_uint32),
    )


_INSTRUCTION_BYTES = 8
_LOG_BYTES = 4 << 20


def program_load(kind: int, name: str, instructions: bytes, attach_type: int = 0) -> int:
    """A new program's file descriptor. `name` is cut to the 15 bytes the kernel keeps. Raises ProgramRefused."""
    request = _Load(
        prog_type=kind,
        insn_cnt=len(instructions) // _INSTRUCTION_BYTES,
        insns=instructions,
        license=b"Dual BSD/GPL",
        prog_name=name.encode()[:15],
        expected_attach_type=attach_type,
    )
    result = _call(_PROG_LOAD, request)
    if result >= 0:
        return result
    log = ctypes.create_string_buffer(_LOG_BYTES)
    request.log_level, request.log_size, request.log_buf = 1, _LOG_BYTES, ctypes.addressof(log)
    if (again := _call(_PROG_LOAD, request)) >= 0:
        return again
    refused = ProgramRefused(-result, os.strerror(-result))
    refused.log = log.value.decode(errors="replace")
    raise refused


def program_info(fd: int) -> ProgramInfo:
    size = 224
    count = struct.unpack_from("=I", _info(fd, ctypes.create_string_buffer(size)), 52)[0]
    ids = (c_uint32 * max(count, 1))()
    request = ctypes.create_string_buffer(size)
    struct.pack_into("=IQ", request, 52, count, ctypes.addressof(ids))
    data = _info(fd, request)
    kind, number, tag, jited, xlated = struct.unpack_from("=II8sII", data)
    run_time_ns, run_count = struct.unpack_from("=QQ", data, 192)
    return ProgramInfo(
        type=kind,
        id=number,
        tag=tag.hex(),
        name=data[64:80].split(b"\0")[0].decode(),
        jited_bytes=jited,
        xlated_bytes=xlated,
        verified_instructions=struct.unpack_from("=I", data, 216)[0],
        map_ids=tuple(ids[:count]),
        run_time_ns=run_time_ns,
        run_count=run_count,
    )


def program_by_id(number: int) -> int:
    """File descriptor of a program by the kernel's number. Raises NoEntry."""
    packed = struct.pack("=3I", number, 0, 0)
    return _checked(_PROG_GET_FD_BY_ID, ctypes.create_string_buffer(packed, len(packed)), f"opening program {number}")


# ---- programs on cgroups -------------------------------------------------------------------------------------

_F_ALLOW_MULTI, _F_REPLACE = 2, 4
_PROGRAMS_AT_ONCE = 64  # the kernel's limit for one hook of one cgroup


def cgroup_attach(cgroup: int, program: int, attach_type: int, instead_of: int = 0) -> None:
    """Attach beside other programs, or in place of one of them: at no time is there none. Raises NoEntry where that one
    is not attached."""
    flags = _F_ALLOW_MULTI | (_F_REPLACE if instead_of else 0)
    _checked(_PROG_ATTACH, _Attach(cgroup, program, attach_type, flags, instead_of), "attaching to a cgroup")


def cgroup_detach(cgroup: int, program: int, attach_type: int) -> None:
    """Raises NoEntry where it is not attached."""
    _checked(_PROG_DETACH, _Attach(cgroup, program, attach_type), "detaching from a cgroup")


def cgroup_programs(cgroup: int, attach_type: int) -> tuple[int, ...]:
    """The kernel's numbers of the programs attached to the cgroup itself, in the order in which they run."""
    ids = (c_uint32 * _PROGRAMS_AT_ONCE)()
    query = _Query(cgroup, attach_type, 0, 0, ctypes.addressof(ids), len(ids))
    _checked(_PROG_QUERY, query, "asking for the programs of a cgroup")
    return tuple(ids[: query.prog_cnt])


# ---- links: a program on its hook for as long as the link is open or pinned --------------------------------------


class LinkInfo(msgspec.Struct, frozen=True):
    """`ifindex`: of an XDP link; 0: its device is gone."""

    program_id: int
    ifindex: int


def link_create(program: int, target: int, attach_type: int, flags: int) -> int:
    """File descriptor of the link. `target`: for XDP an interface index, and `flags` its XDP_FLAGS_*_MODE."""
    packed = struct.pack("=4I", program, target, attach_type, flags)
    return _checked(_LINK_CREATE, ctypes.create_string_buffer(packed, len(packed)), "attaching")


def link_update(link: int, program: int) -> None:
    """Another program in place of the link's: every packet meets one of them."""
    packed = struct.pack("=4I", link, program, 0, 0)
    _checked(_LINK_UPDATE, ctypes.create_string_buffer(packed, len(packed)), "replacing a program")


def link_detach(link: int) -> None:
    """Take the program off now, whoever holds the link."""
    packed = struct.pack("=I", link)
    _checked(_LINK_DETACH, ctypes.create_string_buffer(packed, len(packed)), "detaching")


def link_info(fd: int) -> LinkInfo:
    data = _info(fd, ctypes.create_string_buffer(32))
    return LinkInfo(*struct.unpack_from("=8xI4xI", data))


# ---- test runs -----------------------------------------------------------------------------------------------


class TestRun(msgspec.Struct, frozen=True):
    """What a program did with a packet. `duration_ns` is the mean over the repeats."""

    __test__ = False  # no test of pytest

    retval: int
    data: bytes
    context: bytes
    duration_ns: int


def test_run(
    program: int, packet: bytes, context: bytes = b"", repeat: int = 1, room: int = 256, flags: int = 0
) -> TestRun:
    """Run a program on a packet (BPF_PROG_TEST_RUN), `repeat` times on the same one.

    `context` is a struct __sk_buff or nothing; `room` is how many bytes the program may make the packet longer; `flags`
    are BPF_F_TEST_….
    """
    data_out = ctypes.create_string_buffer(len(packet) + room)
    context_out = ctypes.create_string_buffer(max(len(context), 1))
    attributes = _TestRun(
        prog_fd=program,
        data_size_in=len(packet),
        data_size_out=len(data_out),
        data_in=packet,
        data_out=ctypes.addressof(data_out),
        repeat=repeat,
        ctx_size_in=len(context),
        ctx_size_out=len(context),
        ctx_in=context or None,
        ctx_out=ctypes.addressof(context_out) if context else 0,
        flags=flags,
    )
    _checked(_PROG_TEST_RUN, attributes, "running a program on a packet")
    return TestRun(
        retval=attributes.retval,
        data=data_out.raw[: attributes.data_size_out],
        context=context_out.raw[: attributes.ctx_size_out],
        duration_ns=attributes.duration,
    )


test_run.__test__ = False  # type: ignore[attr-defined]

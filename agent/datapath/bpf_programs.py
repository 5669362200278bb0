"""bpf(2) for programs: loaded, attached to cgroups and by links, asked about, run on a packet."""

from __future__ import annotations

import ctypes
import os
import struct
from ctypes import c_char, c_char_p, c_uint32, c_uint64

import msgspec

from agent.datapath import bpf

_PROG_LOAD, _PROG_ATTACH, _PROG_DETACH, _PROG_TEST_RUN, _PROG_GET_FD_BY_ID, _PROG_QUERY = 5, 8, 9, 10, 13, 16
_LINK_CREATE, _LINK_UPDATE, _LINK_DETACH = 28, 29, 34


class ProgramRefused(bpf.BpfError):
    """The verifier does not accept a program; `log` is what it said."""

    log = ""


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
    result = bpf.call(_PROG_LOAD, request)
    if result >= 0:
        return result
    log = ctypes.create_string_buffer(_LOG_BYTES)
    request.log_level, request.log_size, request.log_buf = 1, _LOG_BYTES, ctypes.addressof(log)
    if (again := bpf.call(_PROG_LOAD, request)) >= 0:
        return again
    refused = ProgramRefused(-result, os.strerror(-result))
    refused.log = log.value.decode(errors="replace")
    raise refused


def program_info(fd: int) -> ProgramInfo:
    size = 224
    count = struct.unpack_from("=I", bpf.info(fd, ctypes.create_string_buffer(size)), 52)[0]
    ids = (c_uint32 * max(count, 1))()
    request = ctypes.create_string_buffer(size)
    struct.pack_into("=IQ", request, 52, count, ctypes.addressof(ids))
    data = bpf.info(fd, request)
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
    request = ctypes.create_string_buffer(packed, len(packed))
    return bpf.checked(_PROG_GET_FD_BY_ID, request, f"opening program {number}")


# ---- programs on cgroups -------------------------------------------------------------------------------------

_F_ALLOW_MULTI, _F_REPLACE = 2, 4
_PROGRAMS_AT_ONCE = 64  # the kernel's limit for one hook of one cgroup


def cgroup_attach(cgroup: int, program: int, attach_type: int, instead_of: int = 0) -> None:
    """Attach beside other programs, or in place of one of them: at no time is there none. Raises NoEntry where that one
    is not attached."""
    flags = _F_ALLOW_MULTI | (_F_REPLACE if instead_of else 0)
    bpf.checked(_PROG_ATTACH, _Attach(cgroup, program, attach_type, flags, instead_of), "attaching to a cgroup")


def cgroup_detach(cgroup: int, program: int, attach_type: int) -> None:
    """Raises NoEntry where it is not attached."""
    bpf.checked(_PROG_DETACH, _Attach(cgroup, program, attach_type), "detaching from a cgroup")


def cgroup_programs(cgroup: int, attach_type: int) -> tuple[int, ...]:
    """The kernel's numbers of the programs attached to the cgroup itself, in the order in which they run."""
    ids = (c_uint32 * _PROGRAMS_AT_ONCE)()
    query = _Query(cgroup, attach_type, 0, 0, ctypes.addressof(ids), len(ids))
    bpf.checked(_PROG_QUERY, query, "asking for the programs of a cgroup")
    return tuple(ids[: query.prog_cnt])


# ---- links: a program on its hook for as long as the link is open or pinned --------------------------------------


class LinkInfo(msgspec.Struct, frozen=True):
    """`ifindex`: of an XDP link; 0: its device is gone."""

    program_id: int
    ifindex: int


def link_create(program: int, target: int, attach_type: int, flags: int) -> int:
    """File descriptor of the link. `target`: for XDP an interface index, and `flags` its XDP_FLAGS_*_MODE."""
    packed = struct.pack("=4I", program, target, attach_type, flags)
    return bpf.checked(_LINK_CREATE, ctypes.create_string_buffer(packed, len(packed)), "attaching")


def link_update(link: int, program: int) -> None:
    """Another program in place of the link's: every packet meets one of them."""
    packed = struct.pack("=4I", link, program, 0, 0)
    bpf.checked(_LINK_UPDATE, ctypes.create_string_buffer(packed, len(packed)), "replacing a program")


def link_detach(link: int) -> None:
    """Take the program off now, whoever holds the link."""
    packed = struct.pack("=I", link)
    bpf.checked(_LINK_DETACH, ctypes.create_string_buffer(packed, len(packed)), "detaching")


def link_info(fd: int) -> LinkInfo:
    data = bpf.info(fd, ctypes.create_string_buffer(32))
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
    bpf.checked(_PROG_TEST_RUN, attributes, "running a program on a packet")
    return TestRun(
        retval=attributes.retval,
        data=data_out.raw[: attributes.data_size_out],
        context=context_out.raw[: attributes.ctx_size_out],
        duration_ns=attributes.duration,
    )


test_run.__test__ = False  # type: ignore[attr-defined]

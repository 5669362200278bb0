"""What the kernel lets one load: tiny programs that are tried and closed again."""

from __future__ import annotations

import errno
import os
import struct
from collections.abc import Iterable

from agent.datapath import bpf
from agent.datapath.bpf_programs import ProgramRefused, program_load
from agent.datapath.programs import AttachType, ProgramType
from agent.preflight.facts import Probe

ARRAY = 2
"""The kernel's BPF_MAP_TYPE_ARRAY."""

# linux/bpf.h: opcodes, and numbers of helpers
_MOV, _MOV_REGISTER, _STORE_64, _CALL, _EXIT, _JUMP_IF_EQUAL, _ADD = 0xB7, 0xBF, 0x7A, 0x85, 0x95, 0x15, 0x07
_SK_RELEASE, _SKC_LOOKUP_TCP, _SK_ASSIGN, _REDIRECT_PEER = 86, 99, 124, 155


def _code(*instructions: tuple[int, int, int, int, int]) -> bytes:
    """Of (opcode, destination register, source register, offset, number) each: struct bpf_insn."""
    return b"".join(
        struct.pack("=BBhi", op, dst | src << 4, offset, value) for op, dst, src, offset, value in instructions
    )


def _returns(value: int) -> bytes:
    return _code((_MOV, 0, 0, 0, value), (_EXIT, 0, 0, 0, 0))


_TAKES_PEER = _code(
    (_MOV, 1, 0, 0, 1),  # ifindex
    (_MOV, 2, 0, 0, 0),  # flags
    (_CALL, 0, 0, 0, _REDIRECT_PEER),
    (_EXIT, 0, 0, 0, 0),
)
_TAKES_SOCKET = _code(
    (_MOV_REGISTER, 6, 1, 0, 0),
    (_STORE_64, 10, 0, -8, 0),  # struct bpf_sock_tuple of IPv4, 12 bytes
    (_STORE_64, 10, 0, -16, 0),
    (_MOV_REGISTER, 2, 10, 0, 0),
    (_ADD, 2, 0, 0, -16),
    (_MOV, 3, 0, 0, 12),
    (_MOV, 4, 0, 0, -1),  # of this network namespace
    (_MOV, 5, 0, 0, 0),
    (_CALL, 0, 0, 0, _SKC_LOOKUP_TCP),
    (_JUMP_IF_EQUAL, 0, 0, 7, 0),
    (_MOV_REGISTER, 7, 0, 0, 0),
    (_MOV_REGISTER, 1, 6, 0, 0),
    (_MOV_REGISTER, 2, 7, 0, 0),
    (_MOV, 3, 0, 0, 0),
    (_CALL, 0, 0, 0, _SK_ASSIGN),
    (_MOV_REGISTER, 1, 7, 0, 0),
    (_CALL, 0, 0, 0, _SK_RELEASE),
    (_MOV, 0, 0, 0, 0),
    (_EXIT, 0, 0, 0, 0),
)
PROGRAMS: dict[str, tuple[int, int, bytes]] = {
    "tc": (ProgramType.SCHED_CLS, 0, _returns(0)),
    "xdp": (ProgramType.XDP, AttachType.XDP, _returns(2)),
    "cgroup_sock": (ProgramType.CGROUP_SOCK, AttachType.INET_SOCK_RELEASE, _returns(1)),
    "cgroup_sock_addr": (ProgramType.CGROUP_SOCK_ADDR, AttachType.INET4_CONNECT, _returns(1)),
    "sk_assign": (ProgramType.SCHED_CLS, 0, _TAKES_SOCKET),
    "redirect_peer": (ProgramType.SCHED_CLS, 0, _TAKES_PEER),
}
"""Name → type, expected attach type, instructions."""


def map_error() -> int:
    """0 where bpf(2) makes a map, else errno."""
    try:
        os.close(bpf.map_create(ARRAY, 4, 4, 1, 0, "preflight"))
    except OSError as error:
        return error.errno or errno.EINVAL
    return 0


def programs(names: Iterable[str] = PROGRAMS) -> dict[str, Probe]:
    return {name: _tried(*PROGRAMS[name]) for name in names}


def _tried(kind: int, attach_type: int, instructions: bytes) -> Probe:
    try:
        os.close(program_load(kind, "preflight", instructions, attach_type))
    except ProgramRefused as refused:
        return Probe(refused.errno or errno.EINVAL, refused.log)
    return Probe(0)

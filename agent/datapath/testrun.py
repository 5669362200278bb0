"""Programs run on packets without a network: for packet tables, the differential test and the bench."""

from __future__ import annotations

import ctypes
import os
import struct
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from enum import IntEnum
from pathlib import Path

import msgspec
from pyroute2 import IPRoute

from agent.datapath import bpf_programs

_CLONE_NEWNET = 0x40000000
_SKB_SIZE = 192  # struct __sk_buff, include/uapi/linux/bpf.h
_MARK_OFFSET, _INTERFACES_OFFSET, _CB_OFFSET, _GSO_SIZE_OFFSET = 8, 36, 48, 176
_CHECKSUM_COMPLETE = 1 << 2  # BPF_F_TEST_SKB_CHECKSUM_COMPLETE
_libc = ctypes.CDLL(None, use_errno=True)


class Action(IntEnum):
    """TC_ACT_… a program returns."""

    UNSPEC = -1
    OK = 0
    SHOT = 2
    REDIRECT = 7


class XdpAction(IntEnum):
    """XDP_… a program returns."""

    ABORTED = 0
    DROP = 1
    PASS = 2
    TX = 3
    REDIRECT = 4


class Result(msgspec.Struct, frozen=True):
    """`packet` is as the program left it; `duration_ns` is the mean over the repeats."""

    action: int
    packet: bytes
    mark: int
    cb: tuple[int, ...]
    duration_ns: int


def run(
    program: int,
    packet: bytes,
    *,
    ifindex: int = 0,
    ingress_ifindex: int = 0,
    mark: int = 0,
    gso_size: int = 0,
    repeat: int = 1,
) -> Result:
    """Run a tc program on an Ethernet frame of at least 14 bytes. `ifindex` (skb->ifindex; 0 is the loopback device)
    must exist in the current network namespace: see `network`. With `gso_size` the frame stands for packets of so many
    bytes of data each. A redirect is returned, not done. Raises bpf.BpfError.
    """
    return _run(program, packet, _context(ifindex, ingress_ifindex, mark, gso_size), repeat)


def run_summed(program: int, packet: bytes, *, ifindex: int, ingress_ifindex: int = 0, mark: int = 0) -> Result:
    """As `run`, on a frame that the device has summed, as some do. Raises BpfError with EBADMSG where the program
    leaves a sum that is wrong, and with EINVAL before Linux 6.17, which has no such test.
    """
    return _run(program, packet, _context(ifindex, ingress_ifindex, mark), flags=_CHECKSUM_COMPLETE)


def _context(ifindex: int, ingress_ifindex: int, mark: int = 0, gso_size: int = 0) -> bytes:
    context = bytearray(_SKB_SIZE)
    struct.pack_into("=I", context, _MARK_OFFSET, mark)
    struct.pack_into("=II", context, _INTERFACES_OFFSET, ingress_ifindex, ifindex)
    struct.pack_into("=I", context, _GSO_SIZE_OFFSET, gso_size)
    return bytes(context)


def _run(program: int, packet: bytes, context: bytes, repeat: int = 1, flags: int = 0) -> Result:
    result = bpf_programs.test_run(program, packet, context, repeat, flags=flags)
    return Result(
        action=struct.unpack("=i", struct.pack("=I", result.retval))[0],
        packet=result.data,
        mark=struct.unpack_from("=I", result.context, _MARK_OFFSET)[0],
        cb=struct.unpack_from("=5I", result.context, _CB_OFFSET),
        duration_ns=result.duration_ns,
    )


def run_xdp(program: int, packet: bytes, *, ifindex: int) -> Result:
    """Run an XDP program on an Ethernet frame that comes in by a device of the current network namespace."""
    result = bpf_programs.test_run(program, packet, struct.pack("=6I", 0, len(packet), 0, ifindex, 0, 0))
    return Result(result.retval, result.data, 0, (), result.duration_ns)


@contextmanager
def network(ifindexes: Iterable[int]) -> Iterator[None]:
    """Enter a new network namespace that has a device test<index> (a bridge, as it needs no other end) for each index,
    and leave it at the end. It belongs to the calling thread and goes when left.

    Use indexes from 100 on: below are the tunnel devices some kernels put into every namespace.
    """
    with Path("/proc/thread-self/ns/net").open() as before:
        _checked(_libc.unshare(_CLONE_NEWNET), "unshare")
        try:
            with IPRoute() as ip:
                for index in ifindexes:
                    ip.link("add", ifname=f"test{index}", kind="bridge", index=index)
            yield
        finally:
            _checked(_libc.setns(before.fileno(), _CLONE_NEWNET), "setns")


def _checked(result: int, call: str) -> None:
    if result:
        number = ctypes.get_errno()
        raise OSError(number, f"{call}: {os.strerror(number)}")

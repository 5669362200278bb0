"""Compiled programs, kept: a C file is compiled once for all agents of a machine, until it or the compiler changes.

Compiling takes seconds, loading what was compiled a tenth of one. What is kept names each map by its place in the ABI
instead of a file descriptor, which is put in when it is loaded. It is the machine's until the next boot, and root's
alone; the kernel verifies it at every load all the same.
"""

from __future__ import annotations

import hashlib
import importlib.util
import os
import platform
import shutil
import struct
import subprocess
import sys
from collections.abc import Mapping
from pathlib import Path
from tempfile import TemporaryDirectory

import msgspec

from agent.datapath.abi import load
from agent.datapath.mounts import INCLUDE

KEPT = Path("/run/gatehouse/compiled")

COMPILE_SECONDS = 300
"""An emulated machine takes ten times the usual second or two; a child that takes longer than this hangs."""

LOG_LINES = 40

PLACE = 0x40000000
"""What stands for the file descriptor of the ABI's first map; those of the others follow."""

_INSTRUCTION = struct.Struct("=BBhi")
_LOAD_64, _MAP_FD = 0x18, 1  # BPF_LD | BPF_IMM | BPF_DW, and the source register that says: a map's file descriptor

Bytecode = dict[str, bytes]
"""Instructions of each program, by name."""


class CompileFailed(Exception):
    """The datapath did not compile or the verifier refused it. `log` is all that compiler and verifier said."""

    def __init__(self, message: str, log: str) -> None:
        super().__init__(f"{message}\n{_excerpt(log)}")
        self.log = log


def bytecode(source: Path, digest: str, programs: tuple[str, ...], *, fresh: bool = False) -> Bytecode:
    """Of a C file whose source_hash is `digest`; compiled now if it is not kept, or if it is to be `fresh`.

    Raises CompileFailed.
    """
    kept = KEPT / f"{digest}-{_tools(programs)}"
    if not fresh:
        try:
            return msgspec.msgpack.decode(kept.read_bytes(), type=Bytecode)
        except (FileNotFoundError, msgspec.MsgspecError):
            pass
    KEPT.mkdir(mode=0o700, parents=True, exist_ok=True)
    with TemporaryDirectory(dir=KEPT, prefix="partial-") as folder:
        made = Path(folder) / "bytecode"
        _compile(source, made, programs)
        found = msgspec.msgpack.decode(made.read_bytes(), type=Bytecode)
        made.rename(kept)
    return found


def forget() -> None:
    """Remove all that is kept."""
    shutil.rmtree(KEPT, ignore_errors=True)


def relocated(code: bytes, maps: Mapping[str, int]) -> bytes:
    """Instructions with the file descriptors of the ABI's maps, by name, in place of their numbers."""
    names = list(load().maps)
    out = bytearray(code)
    for at in range(0, len(code), _INSTRUCTION.size):
        operation, registers, offset, value = _INSTRUCTION.unpack_from(code, at)
        if operation == _LOAD_64 and registers >> 4 == _MAP_FD:
            _INSTRUCTION.pack_into(out, at, operation, registers, offset, maps[names[value - PLACE]])
    return bytes(out)


def _tools(programs: tuple[str, ...]) -> str:
    """What the result depends on besides the source: which programs, bcc, the kernel's headers, the machine."""
    bcc = importlib.util.find_spec("bcc")
    parts: list[object] = [programs, platform.machine(), os.uname().release]
    tools = (Path(bcc.origin) if bcc and bcc.origin else None, INCLUDE / "linux" / "version.h")
    found = [(str(path), path.stat()) for path in tools if path is not None and path.exists()]
    parts += [(path, status.st_mtime_ns, status.st_size) for path, status in found]
    return hashlib.sha256(repr(parts).encode()).hexdigest()[:16]


def _compile(source: Path, made: Path, programs: tuple[str, ...]) -> None:
    """Run the child that imports bcc: what it costs in memory is given back when it ends."""
    command = [sys.executable, "-m", "agent.datapath.compile", str(source), str(made), *programs]
    try:
        result = subprocess.run(
            command, stdin=subprocess.DEVNULL, capture_output=True, timeout=COMPILE_SECONDS, check=False
        )
    except subprocess.TimeoutExpired as timeout:
        log = (timeout.stderr or b"").decode(errors="replace")
        raise CompileFailed(f"compiling {source} took more than {COMPILE_SECONDS} s and was given up", log) from None
    if result.returncode:
        summary = result.stdout.decode(errors="replace").strip() or f"the compile child ended with {result.returncode}"
        raise CompileFailed(summary, result.stderr.decode(errors="replace"))


def _excerpt(log: str) -> str:
    """The part of a log that says why: from the compiler's first error on, or the end of the verifier's."""
    lines = log.strip().splitlines()
    for index, line in enumerate(lines):
        if " error: " in line:
            return "\n".join(lines[index : index + LOG_LINES])
    return "\n".join(lines[-LOG_LINES:])

"""The datapath's programs: which there are, under what hash they are pinned, and how they get there."""

from __future__ import annotations

import argparse
import hashlib
import os
import subprocess
import sys
from collections.abc import Iterator, Mapping
from enum import IntEnum, StrEnum
from pathlib import Path

import msgspec

from agent.datapath import bpf
from agent.datapath.abi import bpf_dir
from agent.datapath.maps import Maps
from agent.datapath.mounts import Unmet, require_host
from agent.datapath.pins import Pins

COMPILE_SECONDS = 120
"""An emulated machine takes ten times the usual half second; a child that takes longer than this hangs."""

LOG_LINES = 40


class ProgramType(IntEnum):
    """The kernel's enum bpf_prog_type, as far as Gatehouse uses it."""

    SCHED_CLS = 3
    XDP = 6
    CGROUP_SOCK = 9
    CGROUP_SOCK_ADDR = 18


class Hook(StrEnum):
    """Where on the host side of a pod's veth a program sits."""

    INGRESS = "ingress"
    EGRESS = "egress"


class ProgramSpec(msgspec.Struct, frozen=True):
    name: str
    type: ProgramType
    hook: Hook | None = None  # None: not a tc program
    attach_type: int = 0  # the kernel's enum bpf_attach_type, where the verifier must know it


PROGRAMS = (
    ProgramSpec("from_pod", ProgramType.SCHED_CLS, Hook.INGRESS),
    ProgramSpec("to_pod", ProgramType.SCHED_CLS, Hook.EGRESS),
)

CFLAGS = (
    *("-Xclang", "-disable-llvm-passes"),  # bcc optimizes all of it again: once is faster, and easier on the verifier
    *("-Wall", "-Wno-macro-redefined", "-Wno-unused-function", "-Wno-address-of-packed-member"),
)


class CompileFailed(Exception):
    """The datapath did not compile or the verifier refused it. `log` is all that compiler and verifier said."""

    def __init__(self, message: str, log: str) -> None:
        super().__init__(message)
        self.log = log


class Programs(Mapping[str, int]):
    """File descriptors of loaded programs by name. Closing them leaves the pins."""

    def __init__(self, source_hash: str, fds: Mapping[str, int]) -> None:
        self.source_hash = source_hash
        self._fds = dict(fds)

    def __getitem__(self, name: str) -> int:
        return self._fds[name]

    def __iter__(self) -> Iterator[str]:
        return iter(self._fds)

    def __len__(self) -> int:
        return len(self._fds)

    def close(self) -> None:
        while self._fds:
            os.close(self._fds.popitem()[1])

    def __enter__(self) -> Programs:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()


def source_hash(source: Path) -> str:
    """16 hex digits over the C file's name, all C files and headers of its folder, and the flags."""
    digest = hashlib.sha256(repr((source.name, CFLAGS)).encode())
    for path in sorted(p for p in source.parent.rglob("*") if p.suffix in (".c", ".h")):
        digest.update(f"{path.relative_to(source.parent)} {path.stat().st_size}\n".encode())
        digest.update(path.read_bytes())
    return digest.hexdigest()[:16]


def ensure_loaded(
    maps: Maps, pins: Pins, source: Path | None = None, specs: tuple[ProgramSpec, ...] = PROGRAMS
) -> Programs:
    """Open the programs pinned for this source; compile, load and pin them first if they are not, or if they use
    maps other than `maps`. `maps` must be those pinned in `pins.maps`. Raises CompileFailed, bpf.BpfError.
    """
    source = (source or bpf_dir() / "gatehouse.c").resolve()
    digest = source_hash(source)
    folder = pins.programs(digest)
    if not _is_usable(folder, specs, maps.ids()):
        _compile(source, pins.maps, folder, specs)
    return _open(folder, digest, specs)


def _open(folder: Path, digest: str, specs: tuple[ProgramSpec, ...]) -> Programs:
    fds: dict[str, int] = {}
    try:
        for spec in specs:
            fds[spec.name] = bpf.open_pinned(folder / spec.name)
    except OSError:
        Programs(digest, fds).close()
        raise
    return Programs(digest, fds)


def _is_usable(folder: Path, specs: tuple[ProgramSpec, ...], map_ids: frozenset[int]) -> bool:
    try:
        with _open(folder, "", specs) as programs:
            return all(map_ids.issuperset(bpf.program_info(fd).map_ids) for fd in programs.values())
    except bpf.NoEntry:
        return False


def _compile(source: Path, maps: Path, folder: Path, specs: tuple[ProgramSpec, ...]) -> None:
    """Run the child that imports bcc: what it costs in memory is given back when it ends."""
    command = [sys.executable, "-m", "agent.datapath.compile", str(source), str(maps), str(folder)]
    command += [f"{spec.name}={int(spec.type)}:{spec.attach_type}" for spec in specs]
    try:
        result = subprocess.run(
            command, stdin=subprocess.DEVNULL, capture_output=True, timeout=COMPILE_SECONDS, check=False
        )
    except subprocess.TimeoutExpired as timeout:
        log = (timeout.stderr or b"").decode(errors="replace")
        raise CompileFailed(f"compiling {source} took more than {COMPILE_SECONDS} s and was given up", log) from None
    if result.returncode:
        log = result.stderr.decode(errors="replace")
        summary = result.stdout.decode(errors="replace").strip() or f"the compile child ended with {result.returncode}"
        raise CompileFailed(f"{summary}\n{_excerpt(log)}", log)


def _excerpt(log: str) -> str:
    """The part of a log that says why: from the compiler's first error on, or the end of the verifier's."""
    lines = log.strip().splitlines()
    for index, line in enumerate(lines):
        if " error: " in line:
            return "\n".join(lines[index : index + LOG_LINES])
    return "\n".join(lines[-LOG_LINES:])


def statistics(programs: Programs) -> list[tuple[str, bpf.ProgramInfo]]:
    return [(name, bpf.program_info(fd)) for name, fd in programs.items()]


def main() -> None:
    """`--stats`: load the programs under pins of their own and print what the verifier made of them."""
    parser = argparse.ArgumentParser(prog="python -m agent.datapath.programs", description=main.__doc__)
    parser.add_argument("--stats", action="store_true", required=True, help="instructions verified, bytes of code")
    parser.parse_args()
    try:
        require_host()
        pins = Pins.of(f"stats-{os.getpid()}")
    except Unmet as unmet:
        sys.exit(str(unmet))
    try:
        with Maps.open_or_create(pins.maps) as maps, ensure_loaded(maps, pins) as programs:
            sys.stdout.write(f"{'program':<16}{'verified':>10}{'xlated bytes':>14}{'jited bytes':>14}\n")
            for name, info in statistics(programs):
                sys.stdout.write(
                    f"{name:<16}{info.verified_instructions:>10}{info.xlated_bytes:>14}{info.jited_bytes:>14}\n"
                )
    except CompileFailed as failure:
        sys.exit(str(failure))
    finally:
        pins.remove()


if __name__ == "__main__":
    main()

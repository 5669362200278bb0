"""The datapath's programs: which there are, under what hash they are pinned, and how they get there."""

from __future__ import annotations

import argparse
import hashlib
import os
import shutil
import sys
from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from enum import IntEnum, StrEnum
from pathlib import Path

import msgspec

from agent.datapath import bpf, bpf_programs
from agent.datapath.abi import bpf_dir
from agent.datapath.bytecode import Bytecode, CompileFailed, bytecode, relocated
from agent.datapath.maps import Maps
from agent.datapath.mounts import Unmet, require_host
from agent.datapath.pins import Pins


class ProgramType(IntEnum):
    """The kernel's enum bpf_prog_type, as far as Gatehouse uses it."""

    SCHED_CLS = 3
    XDP = 6
    CGROUP_SOCK = 9
    CGROUP_SOCK_ADDR = 18


class AttachType(IntEnum):
    """The kernel's enum bpf_attach_type, as far as Gatehouse uses it."""

    INET4_CONNECT = 10
    INET6_CONNECT = 11
    UDP4_SENDMSG = 14
    UDP6_SENDMSG = 15
    UDP4_RECVMSG = 19
    UDP6_RECVMSG = 20
    INET4_GETPEERNAME = 29
    INET6_GETPEERNAME = 30
    INET_SOCK_RELEASE = 34
    XDP = 37


class Hook(StrEnum):
    """Where on a network device a tc program sits."""

    INGRESS = "ingress"
    EGRESS = "egress"


class ProgramSpec(msgspec.Struct, frozen=True):
    name: str
    type: ProgramType
    hook: Hook | None = None  # None: not a tc program
    attach_type: int = 0  # the kernel's enum bpf_attach_type, where the verifier must know it


class Unit(msgspec.Struct, frozen=True):
    """A C file of bpf/ that is compiled and loaded by itself: one that does not load leaves the others as they are."""

    name: str
    source: str
    programs: tuple[ProgramSpec, ...]

    def without(self, kind: ProgramType) -> Unit:
        return msgspec.structs.replace(self, programs=tuple(p for p in self.programs if p.type is not kind))


PROGRAMS = (
    ProgramSpec("from_pod", ProgramType.SCHED_CLS, Hook.INGRESS),
    ProgramSpec("to_pod", ProgramType.SCHED_CLS, Hook.EGRESS),
)
NETWORK_PROGRAMS = (
    ProgramSpec("from_network", ProgramType.SCHED_CLS, Hook.INGRESS),
    ProgramSpec("to_network", ProgramType.SCHED_CLS, Hook.EGRESS),
    ProgramSpec("xdp_network", ProgramType.XDP, None, AttachType.XDP),
)
WIREGUARD_PROGRAMS = (ProgramSpec("from_wireguard", ProgramType.SCHED_CLS, Hook.INGRESS),)
# By the beginning of their names agent.datapath.cgroup tells them from other software's programs on the same cgroup.
SOCKET_PROGRAMS = (
    ProgramSpec("gh_connect4", ProgramType.CGROUP_SOCK_ADDR, None, AttachType.INET4_CONNECT),
    ProgramSpec("gh_connect6", ProgramType.CGROUP_SOCK_ADDR, None, AttachType.INET6_CONNECT),
    ProgramSpec("gh_sendmsg4", ProgramType.CGROUP_SOCK_ADDR, None, AttachType.UDP4_SENDMSG),
    ProgramSpec("gh_sendmsg6", ProgramType.CGROUP_SOCK_ADDR, None, AttachType.UDP6_SENDMSG),
    ProgramSpec("gh_recvmsg4", ProgramType.CGROUP_SOCK_ADDR, None, AttachType.UDP4_RECVMSG),
    ProgramSpec("gh_recvmsg6", ProgramType.CGROUP_SOCK_ADDR, None, AttachType.UDP6_RECVMSG),
    ProgramSpec("gh_getpeername4", ProgramType.CGROUP_SOCK_ADDR, None, AttachType.INET4_GETPEERNAME),
    ProgramSpec("gh_getpeername6", ProgramType.CGROUP_SOCK_ADDR, None, AttachType.INET6_GETPEERNAME),
    ProgramSpec("gh_sock_release", ProgramType.CGROUP_SOCK, None, AttachType.INET_SOCK_RELEASE),
)
PODS = Unit("pods", "gatehouse.c", PROGRAMS)
NETWORK = Unit("network", "network.c", (*NETWORK_PROGRAMS, *WIREGUARD_PROGRAMS))
SOCKET = Unit("socket", "socket.c", SOCKET_PROGRAMS)
UNITS = (PODS, NETWORK, SOCKET)

CFLAGS = (
    *("-Xclang", "-disable-llvm-passes"),  # bcc optimizes all of it again: once is faster, and easier on the verifier
    *("-Wall", "-Wno-macro-redefined", "-Wno-unused-function", "-Wno-address-of-packed-member"),
)


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
        _load(source, digest, specs, maps, folder)
    return _open(folder, digest, specs)


class Loaded(Mapping[str, Programs]):
    """The programs of each unit, by its name; `failures`: why others have none. Closing them leaves the pins."""

    def __init__(self, units: Mapping[str, Programs], failures: Mapping[str, CompileFailed]) -> None:
        self._units = dict(units)
        self.failures = dict(failures)

    def __getitem__(self, name: str) -> Programs:
        return self._units[name]

    def __iter__(self) -> Iterator[str]:
        return iter(self._units)

    def __len__(self) -> int:
        return len(self._units)

    def of(self, unit: Unit) -> Programs:
        """Its programs; none where it was not wanted or did not load."""
        return self._units.get(unit.name) or Programs("", {})

    def close(self) -> None:
        for programs in self._units.values():
            programs.close()

    def __enter__(self) -> Loaded:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()


def load_units(maps: Maps, pins: Pins, units: Sequence[Unit], folder: Path | None = None) -> Loaded:
    """The same for several units of a folder (bpf/), compiled side by side where they must be.

    A unit that does not compile is in `failures`. Raises bpf.BpfError.
    """

    def load(unit: Unit) -> Programs | CompileFailed | OSError:
        try:
            return ensure_loaded(maps, pins, (folder or bpf_dir()) / unit.source, unit.programs)
        except (CompileFailed, OSError) as failure:
            return failure

    with ThreadPoolExecutor(len(units)) as threads:
        results = dict(zip((unit.name for unit in units), threads.map(load, units), strict=True))
    loaded = Loaded(
        {name: result for name, result in results.items() if isinstance(result, Programs)},
        {name: result for name, result in results.items() if isinstance(result, CompileFailed)},
    )
    for result in results.values():
        if isinstance(result, OSError):
            loaded.close()
            raise result
    return loaded


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
            return all(map_ids.issuperset(bpf_programs.program_info(fd).map_ids) for fd in programs.values())
    except bpf.NoEntry:
        return False


def _load(source: Path, digest: str, specs: tuple[ProgramSpec, ...], maps: Maps, folder: Path) -> None:
    """Into the kernel and under `folder`. What was kept and is refused is compiled once more."""
    names = tuple(spec.name for spec in specs)
    code = bytecode(source, digest, names)
    try:
        loaded = _load_all(source, code, specs, maps)
    except CompileFailed:
        loaded = _load_all(source, bytecode(source, digest, names, fresh=True), specs, maps)
    try:
        _pin_all(loaded, folder)
    finally:
        Programs(digest, loaded).close()


def _load_all(source: Path, code: Bytecode, specs: tuple[ProgramSpec, ...], maps: Maps) -> dict[str, int]:
    fds = {name: one.fd for name, one in maps.items()}
    loaded: dict[str, int] = {}
    for spec in specs:
        instructions = relocated(code[spec.name], fds)
        try:
            loaded[spec.name] = bpf_programs.program_load(spec.type, spec.name, instructions, spec.attach_type)
        except bpf_programs.ProgramRefused as refused:
            Programs("", loaded).close()
            raise CompileFailed(f"{source}: the kernel refused {spec.name}: {refused.strerror}", refused.log) from None
    return loaded


def _pin_all(loaded: Mapping[str, int], folder: Path) -> None:
    """Pin under another name first: a folder called `folder` is always complete."""
    partial = folder.with_name(f"partial-{os.getpid()}-{folder.name}")
    partial.mkdir(parents=True)
    for name, fd in loaded.items():
        bpf.pin(fd, partial / name)
    if folder.exists():  # programs that use maps which are no more
        shutil.rmtree(folder)
    partial.rename(folder)


def statistics(programs: Programs) -> list[tuple[str, bpf_programs.ProgramInfo]]:
    return [(name, bpf_programs.program_info(fd)) for name, fd in programs.items()]


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
        with Maps.open_or_create(pins.maps) as maps, load_units(maps, pins, UNITS) as loaded:
            sys.stdout.write(f"{'program':<16}{'verified':>10}{'xlated bytes':>14}{'jited bytes':>14}\n")
            for name, info in (entry for programs in loaded.values() for entry in statistics(programs)):
                sys.stdout.write(
                    f"{name:<16}{info.verified_instructions:>10}{info.xlated_bytes:>14}{info.jited_bytes:>14}\n"
                )
        if loaded.failures:
            sys.exit("\n".join(map(str, loaded.failures.values())))
    finally:
        pins.remove()


if __name__ == "__main__":
    main()

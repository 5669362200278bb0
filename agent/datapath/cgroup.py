"""The socket programs on a cgroup: attached, replaced without a gap, listed, detached.

Attached programs belong to the cgroup: they stay when the agent ends, and go with the cgroup. Ours are those whose
names begin with `gh_` and that no other instance has pinned, so that agents may share a cgroup; other software's are
left alone.
"""

from __future__ import annotations

import errno
import os
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

import msgspec

from agent.datapath import bpf, bpf_programs
from agent.datapath.mounts import ensure_cgroup2
from agent.datapath.pins import Pins
from agent.datapath.programs import SOCKET_PROGRAMS, AttachType, Programs

NAME_PREFIX = "gh_"
_ATTACH_TYPES = {spec.name: AttachType(spec.attach_type) for spec in SOCKET_PROGRAMS}
_MULTI_REFUSED = (
    "a program is attached there, or to a cgroup above it, that allows none beside it: see `bpftool cgroup tree` and "
    "detach it, or choose another folder (--cgroup)"
)
_REASONS = {
    errno.EPERM: _MULTI_REFUSED,
    errno.EBADF: "it is not a cgroup2 folder: give one with --cgroup",
    errno.E2BIG: "64 programs are attached there: detach some, or choose another folder (--cgroup)",
}


class CgroupError(OSError):
    """A program could not be attached or detached; the message says where, and what to do."""


class Attached(msgspec.Struct, frozen=True):
    """A program on a cgroup. `is_ours`: it is this instance's, of whatever version."""

    hook: AttachType
    program_id: int
    name: str
    is_ours: bool


def own_folder(instance: str) -> Path:
    """The cgroup of an instance; it is made where it is not there. Raises mounts.Unmet, CgroupError."""
    folder = folder_of(instance)
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise CgroupError(error.errno, f"making the cgroup {folder} failed: {error.strerror}") from error
    return folder


def folder_of(instance: str) -> Path:
    """Where `own_folder` makes it. Raises mounts.Unmet."""
    return ensure_cgroup2() / "gatehouse" / instance


def attach(folder: Path, programs: Programs, pins: Pins) -> int:
    """Have each program attached once. Those of another version are replaced: every call meets the old or the new one.

    `pins`: of this instance. Returns at how many hooks something changed. Raises CgroupError; hooks done before stay.
    """
    changed = 0
    with _opened(folder) as cgroup:
        ours = [a for a in _attached(cgroup, _pinned_elsewhere(pins)) if a.is_ours]
        for name, program in programs.items():
            hook = _ATTACH_TYPES[name]
            there = [a.program_id for a in ours if a.hook == hook]
            with _explained(f"attaching {name} to {folder}"):
                changed += _attach(cgroup, program, hook, there)
    return changed


def detach(folder: Path, pins: Pins) -> int:
    """Take this instance's programs off; how many there were. A folder that is gone has none. Raises CgroupError."""
    if not folder.is_dir():
        return 0
    with _opened(folder) as cgroup:
        ours = [a for a in _attached(cgroup, _pinned_elsewhere(pins)) if a.is_ours]
        for found in ours:
            with _explained(f"detaching {found.name} from {folder}"):
                _detach(cgroup, found.program_id, found.hook)
    return len(ours)


def attached(folder: Path, pins: Pins) -> list[Attached]:
    """What is attached to a cgroup at the hooks Gatehouse uses, of whoever. Raises CgroupError."""
    with _opened(folder) as cgroup:
        return _attached(cgroup, _pinned_elsewhere(pins))


def _attach(cgroup: int, program: int, hook: AttachType, there: list[int]) -> bool:
    wanted = bpf_programs.program_info(program).id
    others = [number for number in there if number != wanted]
    if wanted not in there and not (others and _replace(cgroup, program, hook, others.pop(0))):
        bpf_programs.cgroup_attach(cgroup, program, hook)
    for number in others:
        _detach(cgroup, number, hook)
    return there != [wanted]


def _replace(cgroup: int, program: int, hook: AttachType, old: int) -> bool:
    """False where the old one is gone."""
    try:
        old_fd = bpf_programs.program_by_id(old)
    except bpf.NoEntry:
        return False
    try:
        bpf_programs.cgroup_attach(cgroup, program, hook, instead_of=old_fd)
    except bpf.NoEntry:
        return False
    finally:
        os.close(old_fd)
    return True


def _detach(cgroup: int, number: int, hook: AttachType) -> None:
    try:
        program = bpf_programs.program_by_id(number)
    except bpf.NoEntry:
        return
    try:
        bpf_programs.cgroup_detach(cgroup, program, hook)
    except bpf.NoEntry:
        pass
    finally:
        os.close(program)


def _attached(cgroup: int, elsewhere: frozenset[int]) -> list[Attached]:
    found = []
    for hook in _ATTACH_TYPES.values():
        for number in bpf_programs.cgroup_programs(cgroup, hook):
            name = _name_of(number)
            found.append(Attached(hook, number, name, name.startswith(NAME_PREFIX) and number not in elsewhere))
    return found


def _name_of(number: int) -> str:
    """Empty where the program is gone."""
    try:
        program = bpf_programs.program_by_id(number)
    except bpf.NoEntry:
        return ""
    try:
        return bpf_programs.program_info(program).name
    finally:
        os.close(program)


def _pinned_elsewhere(pins: Pins) -> frozenset[int]:
    """Numbers of the socket programs that other instances have pinned."""
    numbers = set()
    for instance in _entries(pins.root.parent):
        programs = [] if instance == pins.root else [f for f in _entries(instance) if f.name.startswith("programs-")]
        for path in (path for folder in programs for path in _entries(folder)):
            if path.name.startswith(NAME_PREFIX):
                with suppress(bpf.NoEntry):
                    program = bpf.open_pinned(path)
                    numbers.add(bpf_programs.program_info(program).id)
                    os.close(program)
    return frozenset(numbers)


def _entries(folder: Path) -> list[Path]:
    """None of a folder that is gone meanwhile: other instances come and go."""
    try:
        return list(folder.iterdir())
    except (FileNotFoundError, NotADirectoryError):
        return []


@contextmanager
def _opened(folder: Path) -> Iterator[int]:
    with _explained(f"opening the cgroup {folder}"):
        descriptor = os.open(folder, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        with _explained(f"asking for the programs of {folder}"):
            bpf_programs.cgroup_programs(descriptor, AttachType.INET4_CONNECT)
        yield descriptor
    finally:
        os.close(descriptor)


@contextmanager
def _explained(what: str) -> Iterator[None]:
    try:
        yield
    except OSError as error:
        number = error.errno or 0
        raise CgroupError(number, f"{what} failed: {_REASONS.get(number, os.strerror(number))}") from error

"""Socket programs on a cgroup of the test's own, beside those of others."""

from __future__ import annotations

import errno
import os
import shutil
import subprocess
import sys
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from pathlib import Path

import pytest
from small_datapath import write_source
from socket_site import scratch_cgroup

from agent.datapath import bpf, bpf_programs, cgroup
from agent.datapath.abi import bpf_dir
from agent.datapath.maps import Maps
from agent.datapath.pins import Pins
from agent.datapath.programs import SOCKET_PROGRAMS, AttachType, Programs, ProgramSpec, ProgramType, ensure_loaded

Load = Callable[..., Programs]

SOURCE = """
#include <uapi/linux/bpf.h>
#include "abi.h"
#define MAP(name) ((uintptr_t)bpf_pseudo_fd(1, FD_##name))
static inline __attribute__((always_inline)) int allow(void)
{
	__u32 reason = VERSION;

	return bpf_map_lookup_elem_(MAP(drops), &reason) ? 1 : 1;
}
"""
FOREIGN = (ProgramSpec("other_connect4", ProgramType.CGROUP_SOCK_ADDR, None, AttachType.INET4_CONNECT),)


def source(folder: Path, specs: tuple[ProgramSpec, ...] = SOCKET_PROGRAMS, version: int = 0) -> Path:
    contexts = {ProgramType.CGROUP_SOCK_ADDR: "bpf_sock_addr", ProgramType.CGROUP_SOCK: "bpf_sock"}
    functions = [f"int {s.name}(struct {contexts[s.type]} *ctx)\n{{\n\treturn allow();\n}}\n" for s in specs]
    folder.mkdir(exist_ok=True)
    return write_source(folder, SOURCE.replace("VERSION", str(version)) + "".join(functions))


@pytest.fixture
def folder(datapath_host: None) -> Iterator[Path]:
    with scratch_cgroup() as folder:
        yield folder


@pytest.fixture
def load(maps: Maps, pins: Pins, tmp_path: Path) -> Iterator[Load]:
    """Small programs with the names and types of the real ones."""
    with ExitStack() as undo:

        def load(specs: tuple[ProgramSpec, ...] = SOCKET_PROGRAMS, version: int = 0) -> Programs:
            made = source(tmp_path / f"{specs[0].name}-{version}", specs, version)
            return undo.enter_context(ensure_loaded(maps, pins, made, specs))

        yield load


def ids(programs: Programs) -> list[int]:
    return [bpf_programs.program_info(fd).id for fd in programs.values()]


def ours(folder: Path, pins: Pins) -> list[int]:
    return [found.program_id for found in cgroup.attached(folder, pins) if found.is_ours]


def test_attach_list_detach(folder: Path, load: Load, pins: Pins) -> None:
    programs = load()
    assert cgroup.attached(folder, pins) == []
    assert cgroup.attach(folder, programs, pins) == len(SOCKET_PROGRAMS)
    found = cgroup.attached(folder, pins)
    assert [(f.hook, f.name, f.is_ours) for f in found] == [(s.attach_type, s.name, True) for s in SOCKET_PROGRAMS]
    assert [f.program_id for f in found] == ids(programs)
    assert cgroup.attach(folder, programs, pins) == 0
    assert cgroup.detach(folder, pins) == len(SOCKET_PROGRAMS)
    assert cgroup.attached(folder, pins) == []
    assert cgroup.detach(folder, pins) == 0
    assert cgroup.detach(folder / "gone", pins) == 0


def test_another_version_takes_the_place_of_the_first(folder: Path, load: Load, pins: Pins) -> None:
    first, second = load(), load(version=1)
    cgroup.attach(folder, first, pins)
    assert cgroup.attach(folder, second, pins) == len(SOCKET_PROGRAMS)
    assert ours(folder, pins) == ids(second)
    descriptor = os.open(folder, os.O_RDONLY)
    bpf_programs.cgroup_attach(
        descriptor, first["gh_connect6"], AttachType.INET6_CONNECT
    )  # as an agent that was killed leaves it
    bpf_programs.cgroup_detach(descriptor, second["gh_sendmsg4"], AttachType.UDP4_SENDMSG)
    os.close(descriptor)
    assert cgroup.attach(folder, second, pins) == 2
    assert sorted(ours(folder, pins)) == sorted(ids(second))


def test_programs_of_others_stay_and_in_their_place(folder: Path, load: Load, pins: Pins) -> None:
    foreign, first, second = load(FOREIGN), load(), load(version=1)
    descriptor = os.open(folder, os.O_RDONLY)
    (number,) = ids(foreign)
    cgroup.attach(folder, first, pins)
    bpf_programs.cgroup_attach(descriptor, foreign["other_connect4"], AttachType.INET4_CONNECT)
    cgroup.attach(folder, second, pins)
    assert bpf_programs.cgroup_programs(descriptor, AttachType.INET4_CONNECT) == (ids(second)[0], number)
    assert [(f.name, f.is_ours) for f in cgroup.attached(folder, pins)][:2] == [
        ("gh_connect4", True),
        ("other_connect4", False),
    ]
    assert cgroup.detach(folder, pins) == len(SOCKET_PROGRAMS)
    assert bpf_programs.cgroup_programs(descriptor, AttachType.INET4_CONNECT) == (number,)
    os.close(descriptor)


def test_two_instances_share_a_cgroup(folder: Path, load: Load, pins: Pins, tmp_path: Path) -> None:
    mine = load()
    cgroup.attach(folder, mine, pins)
    neighbour = Pins(pins.root.with_name(pins.root.name + "-neighbour"))
    try:
        with (
            Maps.open_or_create(neighbour.maps, {"conntrack": 64}) as maps,
            ensure_loaded(maps, neighbour, source(tmp_path / "theirs"), SOCKET_PROGRAMS) as theirs,
        ):
            assert cgroup.attach(folder, theirs, neighbour) == len(SOCKET_PROGRAMS)
            assert ours(folder, pins) == ids(mine)
            assert ours(folder, neighbour) == ids(theirs)
            assert cgroup.detach(folder, neighbour) == len(SOCKET_PROGRAMS)
            assert ours(folder, pins) == ids(mine)
    finally:
        neighbour.remove()


def test_programs_whose_pins_are_gone_are_found_by_name(folder: Path, load: Load, pins: Pins) -> None:
    cgroup.attach(folder, load(), pins)
    pins.remove()
    assert cgroup.detach(folder, pins) == len(SOCKET_PROGRAMS)


def test_programs_stay_when_who_attached_them_ends(folder: Path, load: Load, pins: Pins, tmp_path: Path) -> None:
    programs = load()
    code = (
        "import sys; from pathlib import Path; from agent.datapath import bpf, cgroup\n"
        "from agent.datapath.pins import Pins\n"
        "from agent.datapath.programs import Programs; pins, home = Pins(Path(sys.argv[2])), Path(sys.argv[3])\n"
        "programs = Programs('', {p.name: bpf.open_pinned(p) for p in sorted(home.iterdir())})\n"
        "print(cgroup.attach(Path(sys.argv[1]), programs, pins))\n"
    )
    home = pins.programs(programs.source_hash)
    argv = [sys.executable, "-c", code, str(folder), str(pins.root), str(home)]
    told = subprocess.run(argv, capture_output=True, text=True, timeout=200, check=True, cwd=bpf_dir().parent).stdout
    assert int(told) == len(SOCKET_PROGRAMS)
    expected = ids(programs)
    programs.close()
    shutil.rmtree(home)
    assert ours(folder, pins) == expected


def test_what_goes_with_the_cgroup(load: Load, pins: Pins) -> None:
    with scratch_cgroup() as folder:
        cgroup.attach(folder, load(), pins)
    assert cgroup.detach(folder, pins) == 0


def test_errors_say_what_to_do(folder: Path, load: Load, pins: Pins, tmp_path: Path) -> None:
    programs = load()
    with pytest.raises(cgroup.CgroupError, match=r"not a cgroup2 folder: give one with --cgroup"):
        cgroup.attach(tmp_path, programs, pins)
    with pytest.raises(cgroup.CgroupError, match=r"/nowhere failed: No such file") as missing:
        cgroup.attach(Path("/nowhere"), programs, pins)
    assert missing.value.errno == errno.ENOENT
    foreign = load(FOREIGN)["other_connect4"]
    descriptor = os.open(folder, os.O_RDONLY)
    alone = bpf_programs._Attach(descriptor, foreign, AttachType.INET4_CONNECT, 0)
    bpf.checked(bpf_programs._PROG_ATTACH, alone, "attaching a program that allows none beside it")
    with pytest.raises(cgroup.CgroupError, match=r"attaching gh_connect4 to .*allows none beside it.*--cgroup"):
        cgroup.attach(folder, programs, pins)
    os.close(descriptor)


def test_an_instance_has_a_folder_of_its_own(datapath_host: None) -> None:
    name = f"test-{os.getpid()}-{os.urandom(4).hex()}"
    made = cgroup.own_folder(name)
    try:
        assert made == cgroup.folder_of(name) == cgroup.own_folder(name)
        assert (made / "cgroup.procs").is_file()
    finally:
        made.rmdir()

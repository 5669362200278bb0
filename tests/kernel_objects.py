"""What an agent has in the kernel, asked of the kernel itself: bpf(2) objects of the whole machine, and a network
namespace's settings, routes and rules.

    held = KernelObjects.of(pins)     # everything that hangs together with what is pinned
    …clean up…
    assert held.left() == []
"""

from __future__ import annotations

import ctypes
import os
import re
import struct
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

import rig

from agent.datapath import bpf, bpf_programs
from agent.datapath.maps import Maps
from agent.datapath.pins import Pins

_PROG_GET_NEXT_ID, _MAP_GET_NEXT_ID, _LINK_GET_FD_BY_ID, _LINK_GET_NEXT_ID = 11, 12, 30, 31
_ID = struct.Struct("=3I")
_GONE_S = 30.0


@dataclass(frozen=True)
class KernelObjects:
    """The kernel's numbers. `links`: of those programs."""

    maps: frozenset[int]
    programs: frozenset[int]
    links: frozenset[int]

    @classmethod
    def of(cls, pins: Pins) -> KernelObjects:
        """Pinned maps and the tables in them; every program that uses one of them or is pinned; links of those."""
        with Maps.open_pinned(pins.maps) as maps:
            found = set(maps.ids())
            for key, _ in [*maps["maglev"].items()]:
                number = bpf.map_lookup(maps["maglev"].fd, key, 4)
                assert number is not None
                found.add(struct.unpack("=I", number)[0])
        programs = {number for number in _numbers(_PROG_GET_NEXT_ID) if _uses(number, found)}
        for path in pins.root.glob("programs-*/*"):
            fd = bpf.open_pinned(path)
            programs.add(bpf_programs.program_info(fd).id)
            os.close(fd)
        links = {number for number in _numbers(_LINK_GET_NEXT_ID) if _is_of(number, programs)}
        return cls(frozenset(found), frozenset(programs), frozenset(links))

    def left(self) -> list[str]:
        """Those that are still there. The kernel frees them a moment after nobody holds them."""
        seen: list[str] = []

        def gone() -> bool:
            seen[:] = [
                f"{what} {number}"
                for what, mine, command in (
                    ("map", self.maps, _MAP_GET_NEXT_ID),
                    ("program", self.programs, _PROG_GET_NEXT_ID),
                    ("link", self.links, _LINK_GET_NEXT_ID),
                )
                for number in sorted(mine.intersection(_numbers(command)))
            ]
            return not seen

        try:
            rig.wait_until(gone, _GONE_S)
        except AssertionError:
            return seen
        return []


def settings(netns: rig.Netns) -> dict[str, str]:
    """All a namespace is told about networking: its sysctls, and routes, rules and queueing disciplines as listed."""

    def read() -> dict[str, str]:
        found = {}
        for root, _, names in os.walk("/proc/sys/net"):
            for name in names:
                path = Path(root, name)
                if path.stat().st_mode & 0o400:
                    try:
                        found[str(path)] = path.read_text()
                    except OSError:
                        continue  # such as the secret that is not there yet
        return found

    shown: dict[str, str] = {}
    for family in ("-4", "-6"):
        for what, more in _LISTS:
            lines = netns.run("ip", family, what, "show", *more).stdout.splitlines()
            shown[f"{what} {family}"] = "\n".join(line for line in lines if not _LINK_LOCAL.search(line))
    return netns.call(read) | shown | {"qdisc": netns.run("tc", "qdisc", "show").stdout}


_LINK_LOCAL = re.compile(r"\b(fe80|ff00)::")
"""What the kernel makes of itself, a second or two after a device comes up."""
_LISTS = (
    ("route", ("table", "all")),
    ("rule", ()),
    ("neighbour", ("nud", "permanent")),
    ("address", ("scope", "global")),
)


def _numbers(command: int) -> Iterator[int]:
    number = 0
    while True:
        attributes = ctypes.create_string_buffer(_ID.pack(number, 0, 0), _ID.size)
        if bpf.call(command, attributes) < 0:
            return
        number = _ID.unpack(attributes.raw)[1]
        yield number


def _uses(program: int, maps: set[int]) -> bool:
    return _ask(
        lambda: bpf_programs.program_by_id(program),
        lambda fd: not maps.isdisjoint(bpf_programs.program_info(fd).map_ids),
    )


def _is_of(link: int, programs: set[int]) -> bool:
    def opened() -> int:
        attributes = ctypes.create_string_buffer(_ID.pack(link, 0, 0), _ID.size)
        return bpf.checked(_LINK_GET_FD_BY_ID, attributes, "opening a link")

    return _ask(opened, lambda fd: bpf_programs.link_info(fd).program_id in programs)


def _ask(opened: Callable[[], int], question: Callable[[int], bool]) -> bool:
    """False of what is gone meanwhile: other tests run beside this one."""
    try:
        fd = opened()
    except bpf.NoEntry:
        return False
    try:
        return question(fd)
    finally:
        os.close(fd)

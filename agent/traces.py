"""Where outside its process an agent has attached programs, on record for whoever is to take them off again."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path

import msgspec

from agent.endpoints import namespaces


class Traces(msgspec.Struct, frozen=True):
    """`netns`: cookie of the node's network namespace, `inode`: its inode; `cgroups`: folders with socket programs."""

    netns: int
    inode: int
    cgroups: tuple[str, ...] = ()


def here(cgroups: tuple[str, ...]) -> Traces:
    """Of an agent in the calling thread's network namespace."""
    netns = namespaces.open_current()
    try:
        return Traces(namespaces.cookie(netns), os.fstat(netns).st_ino, cgroups)
    finally:
        os.close(netns)


def read(path: Path) -> Traces | None:
    """None where nothing is on record."""
    try:
        return msgspec.json.decode(path.read_bytes(), type=Traces)
    except (FileNotFoundError, msgspec.MsgspecError):
        return None


def write(path: Path, traces: Traces) -> None:
    aside = path.with_suffix(".new")
    aside.write_bytes(msgspec.json.encode(traces))
    aside.replace(path)


def open_namespace(traces: Traces) -> int | None:
    """A descriptor of the node's network namespace, found by a name or a process; None where there is neither."""
    for candidate in _candidates():
        with suppress(OSError):  # it is gone meanwhile, or only the name of one
            if candidate.stat().st_ino != traces.inode:
                continue
            netns = os.open(candidate, os.O_RDONLY | os.O_CLOEXEC)
            with suppress(OSError):
                if namespaces.cookie(netns) == traces.netns:
                    return netns
            os.close(netns)
    return None


def _candidates() -> Iterator[Path]:
    yield Path(namespaces.CURRENT)
    with suppress(FileNotFoundError):
        yield from namespaces.RUN_DIR.iterdir()
    yield from (entry / "ns/net" for entry in Path("/proc").iterdir() if entry.name.isdigit())

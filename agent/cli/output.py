"""Tables for people, JSON for programs."""

from __future__ import annotations

import sys
from collections.abc import Callable, Sequence
from enum import StrEnum
from pathlib import Path
from typing import Annotated, Any, NamedTuple, TypeVar

import msgspec
import typer

from agent.config import DEFAULT_STATE_DIR
from agent.status import ProcessView

Item = TypeVar("Item")


class Format(StrEnum):
    TABLE = "table"
    JSON = "json"


Output = Annotated[Format, typer.Option("--output", "-o", help="table for people, json for programs.")]
StateDir = Annotated[
    Path,
    typer.Option("--state-dir", envvar="GATEHOUSE_STATE_DIR", help="The agent meant, by its state directory."),
]
STATE_DIR = Path(DEFAULT_STATE_DIR)


class Failure(Exception):
    """What went wrong and what to do, in one sentence; `status` is the exit status."""

    def __init__(self, sentence: str, status: int = 2) -> None:
        super().__init__(sentence)
        self.status = status


class Column(NamedTuple):
    title: str
    text: Callable[[Any], object]


def emit(items: Sequence[Item], output: Format, columns: Sequence[Column], empty: str) -> None:
    """Print a listing: one JSON array, or a table (`empty` goes to stderr where there is nothing to list)."""
    if output is Format.JSON:
        emit_json(items)
        return
    if not items:
        print(empty, file=sys.stderr)
        return
    print(table([c.title for c in columns], [[str(c.text(item)) for c in columns] for item in items]))


def emit_json(value: object) -> None:
    print(msgspec.json.format(msgspec.json.encode(value), indent=2).decode())


def table(titles: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    """Left-aligned columns two spaces apart, "-" for an empty cell."""
    cells = [list(titles), *([text or "-" for text in row] for row in rows)]
    widths = [max(len(row[i]) for row in cells) for i in range(len(titles))]
    return "\n".join(
        "  ".join(text.ljust(width) for text, width in zip(row, widths, strict=True)).rstrip() for row in cells
    )


def labels(found: dict[str, str]) -> str:
    return ",".join(f"{key}={value}" for key, value in sorted(found.items()))


def process(view: ProcessView) -> str:
    """One that runs in a container of its own has no number here."""
    pid = f", pid {view.pid}" if view.pid else ""
    return f"{view.state}{pid}, restarted {view.restarts} times"


def process_and_problem(view: ProcessView) -> str:
    return f"{process(view)}: {view.problem}" if view.problem else process(view)


def size(count: int) -> str:
    """Bytes as people say them: 512 B, 1.4 MiB."""
    number, unit = float(count), "B"
    for larger in ("KiB", "MiB", "GiB", "TiB"):
        if number < 1024:
            break
        number, unit = number / 1024, larger
    return f"{count} B" if unit == "B" else f"{number:.1f} {unit}"


def duration(seconds: float) -> str:
    """An uptime as people say it: 42s, 3m10s, 5h02m, 12d3h."""
    whole = int(seconds)
    if whole < 60:
        return f"{whole}s"
    if whole < 3600:
        return f"{whole // 60}m{whole % 60:02d}s"
    if whole < 86400:
        return f"{whole // 3600}h{whole % 3600 // 60:02d}m"
    return f"{whole // 86400}d{whole % 86400 // 3600}h"

"""Figures, with their goals: a table for people, JSON for machines."""

from __future__ import annotations

import os
from collections.abc import Iterable, Sequence
from datetime import UTC, datetime
from pathlib import Path

import msgspec


class Figure(msgspec.Struct, frozen=True):
    """`goal`: the most it may be; None where it is told for information only."""

    measure: str
    name: str
    value: float
    unit: str
    goal: float | None = None
    note: str = ""

    @property
    def verdict(self) -> str:
        if self.goal is None:
            return ""
        return "met" if self.value <= self.goal else "missed"


class Machine(msgspec.Struct, frozen=True):
    kernel: str
    cpu: str
    cpus: int
    load: float  # before the bench: of others
    date: str


def machine() -> Machine:
    models = [line for line in Path("/proc/cpuinfo").read_text().splitlines() if line.startswith("model name")]
    return Machine(
        kernel=os.uname().release,
        cpu=models[0].partition(":")[2].strip() if models else os.uname().machine,
        cpus=len(os.sched_getaffinity(0)),
        load=os.getloadavg()[0],
        date=datetime.now(UTC).isoformat(timespec="seconds"),
    )


HEADINGS = ("measure", "figure", "value", "goal", "verdict", "note")


def row(figure: Figure) -> tuple[str, ...]:
    goal = "" if figure.goal is None else f"≤ {_number(figure.goal)}"
    value = f"{_number(figure.value)} {figure.unit}".strip()
    return figure.measure, figure.name, value, goal, figure.verdict, figure.note


def table(figures: Iterable[Figure]) -> str:
    rows = [HEADINGS, *map(row, figures)]
    widths = [max(len(cells[i]) for cells in rows) for i in range(len(HEADINGS))]
    lines = ["  ".join(cell.ljust(width) for cell, width in zip(cells, widths, strict=True)).rstrip() for cells in rows]
    return "\n".join([lines[0], "-" * len(lines[0]), *lines[1:]])


def write_json(path: Path, facts: Machine, figures: Sequence[Figure]) -> None:
    path.parent.mkdir(exist_ok=True)
    found = [msgspec.to_builtins(figure) | {"verdict": figure.verdict} for figure in figures]
    content = msgspec.json.encode({"machine": facts, "figures": found})
    path.write_bytes(msgspec.json.format(content, indent=2) + b"\n")


def quantile(values: Iterable[float], share: float) -> float:
    """The smallest value that at least this share of the values do not exceed."""
    ordered = sorted(values)
    return ordered[max(0, -(-int(share * 1000 * len(ordered)) // 1000) - 1)]


def _number(value: float) -> str:
    return f"{value:.3f}" if value < 10 else f"{value:.1f}" if value < 100 else f"{value:.0f}"

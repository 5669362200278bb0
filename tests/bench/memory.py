"""Resident memory of the process of an agent that has the whole cluster, as the kernel counts it (VmRSS, and PSS)."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

from bench.report import Figure
from bench.setting import Bench

GOAL_MB = 150.0


def measure(bench: Bench) -> Iterator[Figure]:
    place = bench.large()
    yield Figure("memory", "agent, resident (VmRSS)", field(place.pid, "status", "VmRSS"), "MB", GOAL_MB)
    yield Figure("memory", "agent, resident at most (VmHWM)", field(place.pid, "status", "VmHWM"), "MB")
    yield Figure("memory", "agent, proportional (PSS)", field(place.pid, "smaps_rollup", "Pss"), "MB")
    flows = int(place.agent.status()["flows"]["process"]["pid"])
    yield Figure("memory", "flows process, resident", field(flows, "status", "VmRSS"), "MB")
    yield Figure("memory", "agent started until all is in force", bench.large_start_s, "s")


def field(pid: int, file: str, name: str) -> float:
    """MB (10^6 bytes) of a field in kB (1024 bytes)."""
    lines = Path(f"/proc/{pid}/{file}").read_text().splitlines()
    return next(int(line.split()[1]) for line in lines if line.startswith(f"{name}:")) * 1024 / 1e6

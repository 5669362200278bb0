"""Maps that only this test has, a program that puts events into their ring, and flows processes on them."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest
from flow_feed import FEED, Feed
from flow_processes import Process, Starter
from small_datapath import SMALL_SIZES, write_source

from agent.datapath.maps import Maps
from agent.datapath.pins import Pins
from agent.datapath.programs import Hook, ProgramSpec, ProgramType, ensure_loaded

SIZES = SMALL_SIZES | {"conntrack": 20_000, "nat": 1000, "affinity": 10_000, "events": 1 << 22}


@pytest.fixture
def maps(pins: Pins) -> Iterator[Maps]:
    with Maps.open_or_create(pins.maps, SIZES) as maps:
        yield maps


@pytest.fixture
def feed(maps: Maps, pins: Pins, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Feed]:
    source = write_source(tmp_path_factory.mktemp("feed"), FEED)
    specs = (ProgramSpec("feed", ProgramType.SCHED_CLS, Hook.INGRESS),)
    with ensure_loaded(maps, pins, source, specs) as programs:
        yield Feed(programs["feed"])


@pytest.fixture
def state_dir(tmp_path: Path) -> Path:
    folder = tmp_path / "state"
    folder.mkdir()
    return folder


@pytest.fixture
def start(state_dir: Path, maps: Maps, pins: Pins) -> Iterator[Starter]:
    started: list[Process] = []

    def start(*options: str) -> Process:
        process = Process(state_dir, pins.maps, *options)
        started.append(process)
        process.logged("flows process runs")
        return process

    yield start
    for process in started:
        process.close()

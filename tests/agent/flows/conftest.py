"""Maps that only this test has, and a program that puts events into their ring."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
from flow_feed import FEED, Feed
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

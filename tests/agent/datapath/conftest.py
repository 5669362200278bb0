"""Fixtures on the kernel: small maps and programs."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest
from small_datapath import SMALL_SIZES, write_source

from agent.datapath.maps import Maps
from agent.datapath.pins import Pins
from agent.datapath.programs import Programs, ensure_loaded


@pytest.fixture
def maps(pins: Pins) -> Iterator[Maps]:
    """The datapath's maps in sizes a test can fill."""
    with Maps.open_or_create(pins.maps, SMALL_SIZES) as maps:
        yield maps


@pytest.fixture
def programs(maps: Maps, pins: Pins, tmp_path: Path) -> Iterator[Programs]:
    """PROGRAM, loaded on `maps`."""
    with ensure_loaded(maps, pins, write_source(tmp_path)) as programs:
        yield programs

"""Fixtures on the kernel: pins that only this test has, small maps and programs."""

from __future__ import annotations

import itertools
import os
from collections.abc import Iterator
from pathlib import Path

import pytest
from small_datapath import SMALL_SIZES, write_source

from agent.datapath.maps import Maps
from agent.datapath.mounts import Unmet, require_host
from agent.datapath.pins import Pins
from agent.datapath.programs import Programs, ensure_loaded

_counter = itertools.count(1)


@pytest.fixture
def pins() -> Iterator[Pins]:
    """Pins of an instance that only this test has."""
    try:
        require_host()
    except Unmet as unmet:
        pytest.skip(str(unmet))
    pins = Pins.of(f"test-{os.getpid()}-{next(_counter)}")
    yield pins
    pins.remove()


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

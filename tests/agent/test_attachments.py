"""What is to be loaded and attached for which settings."""

from __future__ import annotations

from pathlib import Path

import pytest

from agent.attachments import socket_cgroups, units
from agent.config import build

OWN = Path("/cg/gatehouse/x")

UNITS = [
    ({}, {"pods": 2, "socket": 9}),
    ({"socket_lb": "off"}, {"pods": 2}),
    ({"socket_lb": "host", "cgroup": "/cg"}, {"pods": 2, "socket": 9}),
    ({"devices": "eth0", "socket_lb": "off"}, {"pods": 2, "network": 3}),
    ({"devices": "auto", "xdp": "auto"}, {"pods": 2, "network": 4, "socket": 9}),
]


@pytest.mark.parametrize(("texts", "programs"), UNITS)
def test_units(texts: dict[str, str], programs: dict[str, int]) -> None:
    wanted = units(build({"manifests": "m", **texts}))
    assert {unit.name: len(unit.programs) for unit in wanted} == programs


CGROUPS: list[tuple[str, Path | None, tuple[str, ...]]] = [
    ("", OWN, (str(OWN),)),
    ("", None, ()),
    ("/cg/other", None, ("/cg/other",)),
    ("/cg/other", OWN, ("/cg/other", str(OWN))),
    ("/cg", OWN, ("/cg",)),  # pods' lies in it
    (str(OWN), OWN, (str(OWN),)),
    ("/c", OWN, ("/c", str(OWN))),  # no part of its name is a folder above
]


@pytest.mark.parametrize(("given", "own", "folders"), CGROUPS)
def test_no_socket_is_translated_twice(given: str, own: Path | None, folders: tuple[str, ...]) -> None:
    config = build({"manifests": "m", "cgroup": given})
    assert tuple(map(str, socket_cgroups(config, own))) == folders

from __future__ import annotations

import pytest

from agent.routing import mtu

OVERHEADS = [
    ("native", True, False, 0),
    ("off", False, False, 0),
    ("vxlan", True, False, 50),
    ("vxlan", False, False, 70),
    ("native", True, True, 60),
    ("native", False, True, 80),
    ("vxlan", True, True, 60),
    ("vxlan", False, True, 80),
]


@pytest.mark.parametrize(("mode", "over_v4", "encrypted", "added"), OVERHEADS)
def test_what_is_added(mode: str, over_v4: bool, encrypted: bool, added: int) -> None:
    assert mtu.overhead(mode, over_v4, encrypted) == added


SIZES = [
    (0, (), 0, 1500),  # nothing is known
    (0, (1500,), 50, 1450),
    (0, (9000, 1500, 1450), 50, 1400),
    (0, (1300,), 50, 1280),  # IPv6 needs that
    (1400, (9000,), 50, 1400),
    (9000, (1500,), 50, 9000),  # whoever says so knows why
]


@pytest.mark.parametrize(("setting", "devices", "added", "size"), SIZES)
def test_of_pods(setting: int, devices: tuple[int, ...], added: int, size: int) -> None:
    assert mtu.of_pods(setting, devices, added) == size

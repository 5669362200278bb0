"""Which addresses are in use, as conntrack has it."""

from __future__ import annotations

import asyncio
import time
from typing import Any

import pytest
from conntrack_entries import Flow
from flow_events import C
from small_datapath import SMALL_SIZES

from agent.datapath.maps import Maps
from agent.datapath.pins import Pins
from agent.dns import lives
from agent.dns.lives import live_addresses
from policies.address import format_address, parse_address

HOUR_NS = 3600 * 10**9
POD, V4, V6 = ("10.0.0.1", 40000), ("198.51.100.1", 443), ("2001:db8::1", 443)


def live(maps: Maps, *wanted: str) -> set[str]:
    return set(map(format_address, asyncio.run(live_addresses(maps["conntrack"], set(map(parse_address, wanted))))))


@pytest.mark.parametrize(
    ("flow", "fields", "expected"),
    [
        (Flow(POD, V4), {}, {V4[0]}),
        (Flow(("fd00::1", 40000), V6), {}, {V6[0]}),
        (Flow(POD, V4, protocol=17), {}, {V4[0]}),
        (Flow(POD, V4), {"flags": C.CT_CLOSED}, set()),
        (Flow(POD, V4), {"flags": C.CT_ENDED}, set()),
        (Flow(POD, V4), {"flags": C.CT_GONE}, set()),
        (Flow(POD, V4), {"flags": C.CT_FIN}, {V4[0]}),
        (Flow(POD, V4), {"expires_ns": -1, "reply_expires_ns": -1}, set()),
        (Flow(POD, V4), {"expires_ns": -1}, {V4[0]}),  # only answers come: it lives
        (Flow(POD, V4), {"reply_expires_ns": -1}, {V4[0]}),
        (Flow(V4, POD), {}, set()),  # it comes from there
        (Flow(POD, ("198.51.100.2", 443)), {}, set()),
    ],
)
def test_what_counts_as_a_connection(pins: Pins, flow: Flow, fields: dict[str, Any], expected: set[str]) -> None:
    now_ns = time.monotonic_ns()
    times = {"expires_ns": HOUR_NS, "reply_expires_ns": HOUR_NS} | fields
    times |= {name: now_ns + times[name] for name in ("expires_ns", "reply_expires_ns")}
    with Maps.open_or_create(pins.maps, SMALL_SIZES) as maps:
        maps["conntrack"].update_many(flow.entries(**times))
        assert live(maps, V4[0], V6[0]) == expected


def test_many_entries(pins: Pins, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(lives, "CHUNK", 16)
    with Maps.open_or_create(pins.maps, SMALL_SIZES | {"conntrack": 4096}) as maps:
        for number in range(500):
            flow = Flow(POD, (f"203.0.{number // 256}.{number % 256}", 80))
            maps["conntrack"].update_many(flow.entries(expires_ns=time.monotonic_ns() + HOUR_NS))
        assert live(maps, "203.0.0.7", "203.0.1.200", "203.0.2.1") == {"203.0.0.7", "203.0.1.200"}
        assert live(maps) == set()

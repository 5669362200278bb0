"""Clients that do not come back are removed from the affinity map."""

from __future__ import annotations

import asyncio

import pytest
from flow_events import ABI

from agent.datapath.abi import be16
from agent.datapath.maps import Map, Maps
from agent.flows.affinity import NS, AffinitySweep, AffinitySweeper
from agent.flows.sweeper import GRACE_NS
from policies.address import parse_address

NOW = 10**12
KEY, VALUE = ABI.records["affinity_key"], ABI.records["affinity_value"]
FRONTEND, SERVICE = ABI.records["service_key"], ABI.records["service_value"]
BACKEND = parse_address("10.0.0.2")
LONG, SHORT, GONE = 7, 8, 9
"""Numbers of service ports; the first has a time-out of 600 s, the second of 10 s."""


def client(affinity: int, ip: str) -> bytes:
    return KEY.pack(affinity=affinity, client=parse_address(ip))


def used(age_ns: int) -> bytes:
    return VALUE.pack(used_ns=NOW - age_ns, address=BACKEND, port_be=be16(8080))


def sweep(maps: Maps) -> AffinitySweep:
    return asyncio.run(AffinitySweeper(ABI, maps["affinity"], maps["services"], lambda: NOW).sweep())


@pytest.fixture
def services(maps: Maps) -> Maps:
    """Two frontends of one service, one of another, and one without affinity."""
    for number, (affinity, timeout_s) in enumerate([(LONG, 600), (LONG, 600), (SHORT, 10), (0, 0)]):
        key = FRONTEND.pack(address=parse_address(f"10.96.0.{number}"), port_be=be16(80), protocol=6)
        maps["services"].update(key, SERVICE.pack(affinity=affinity, affinity_timeout_s=timeout_s))
    return maps


def test_each_service_has_its_own_time_out(services: Maps) -> None:
    stays = {
        client(LONG, "10.0.0.1"): used(0),
        client(LONG, "10.0.0.2"): used(600 * NS),  # within the grace for the coarser clock
        client(SHORT, "10.0.0.1"): used(9 * NS),
    }
    goes = {
        client(LONG, "10.0.0.3"): used(600 * NS + GRACE_NS),
        client(SHORT, "fd00::1"): used(11 * NS),
        client(GONE, "10.0.0.1"): used(NS),
        client(0, "10.0.0.1"): used(NS),
    }
    services["affinity"].update_many(stays | goes)
    result = sweep(services)
    assert dict(services["affinity"].items()) == stays
    assert (result.entries, result.expired) == (len(stays), len(goes))


def test_many_clients(services: Maps) -> None:
    entries = {
        client(SHORT, f"10.{number >> 8}.{number & 255}.1"): used(number % 2 * 20 * NS) for number in range(5000)
    }
    services["affinity"].update_many(entries)
    assert sweep(services) == AffinitySweep(entries=2500, expired=2500)
    assert len(list(services["affinity"].items())) == 2500


def test_a_client_that_comes_back_meanwhile_stays(services: Maps, monkeypatch: pytest.MonkeyPatch) -> None:
    services["affinity"].update(client(SHORT, "10.0.0.1"), used(20 * NS))
    lookup = Map.lookup

    def comes_back(self: Map, key: bytes) -> bytes | None:
        self.update(key, used(0))
        return lookup(self, key)

    monkeypatch.setattr(Map, "lookup", comes_back)
    assert sweep(services) == AffinitySweep(entries=1, expired=0)
    assert len(list(services["affinity"].items())) == 1

"""Transitions carried out on the kernel's maps."""

from __future__ import annotations

import msgspec
import pytest

from agent.datapath import bpf
from agent.datapath.abi import load
from agent.datapath.apply import PLANNED, apply, increase_epoch, read_epoch, read_state
from agent.datapath.maps import Maps

ABI = load()


class Step(msgspec.Struct, frozen=True):
    map: str
    updates: dict[bytes, bytes] = {}
    deletes: tuple[bytes, ...] = ()


def services(*ports: int) -> dict[bytes, bytes]:
    key, value = ABI.records["service_key"], ABI.records["service_value"]
    return {key.pack(port_be=port, protocol=6): value.pack(pool_inside=port) for port in ports}


def backends(*pools: int) -> dict[bytes, bytes]:
    key, value = ABI.records["backend_key"], ABI.records["backend_value"]
    return {key.pack(pool=pool): value.pack(port_be=pool) for pool in pools}


def test_steps_are_carried_out_and_counted(maps: Maps) -> None:
    outcome = apply(maps, [Step("backends", backends(1, 2)), Step("services", services(1, 2))], raise_epoch=False)
    assert (outcome.written, outcome.deleted, outcome.epoch, outcome.failure) == (4, 0, 0, None)
    steps = [
        Step("services", services(3), tuple(services(1))),
        Step("backends", deletes=tuple(backends(1, 7))),
    ]
    outcome = apply(maps, steps, raise_epoch=True)
    assert (outcome.written, outcome.deleted, outcome.epoch, outcome.failure) == (1, 2, 1, None)
    state = read_state(maps)
    assert set(state) == set(PLANNED)
    assert state["services"] == services(2, 3)
    assert state["backends"] == backends(2)
    assert state["ipcache"] == {}


def test_a_full_map_stops_what_follows(maps: Maps) -> None:
    """What would point at a block that did not go in is not written, what is in use is not deleted."""
    apply(maps, [Step("services", services(1))], raise_epoch=False)
    steps = [
        Step("backends", backends(*range(1, 101))),
        Step("services", services(2)),
        Step("services", deletes=tuple(services(1))),
    ]
    outcome = apply(maps, steps, raise_epoch=False)
    failure = outcome.failure
    assert failure is not None
    assert (failure.map, failure.wanted, failure.written, failure.steps_left) == ("backends", 100, 64, 2)
    assert "map backends (max_entries 64): it is full; 64 of 100 entries were written" in str(failure)
    assert outcome.written == 64
    assert outcome.epoch == 1  # raised all the same: what went in may be stricter
    assert read_state(maps, ["services"]) == {"services": services(1)}


def test_the_epoch_only_rises(maps: Maps) -> None:
    assert read_epoch(maps) == 0
    assert [increase_epoch(maps) for _ in range(3)] == [1, 2, 3]
    assert read_epoch(maps) == 3
    assert apply(maps, [], raise_epoch=True).epoch == 4
    assert apply(maps, [], raise_epoch=False).epoch == 4


def test_an_unknown_map_is_a_mistake_in_the_plan(maps: Maps) -> None:
    with pytest.raises(KeyError, match="nowhere"):
        apply(maps, [Step("nowhere", {b"": b""})], raise_epoch=False)


def test_another_refusal_raises_the_epoch_too(maps: Maps) -> None:
    with pytest.raises(bpf.BpfError) as error:
        apply(maps, [Step("services", services(1)), Step("events", {b"": b""})], raise_epoch=True)
    assert not isinstance(error.value, bpf.MapFull)
    assert read_epoch(maps) == 1

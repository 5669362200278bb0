"""Pinned maps on the kernel: made, reopened, refused; read and written in batches."""

from __future__ import annotations

import errno
import os
import struct
from pathlib import Path

import msgspec
import pytest
from small_datapath import SMALL_SIZES

from agent.datapath import bpf
from agent.datapath.abi import MapSpec, MapType, load
from agent.datapath.maps import Map, MapMismatch, Maps, possible_cpus
from agent.datapath.pins import Pins

ABI = load()


def entries(count: int) -> dict[bytes, bytes]:
    """For policy_class: 24-byte keys, 8-byte values."""
    key, value = ABI.records["policy_class_key"], ABI.records["policy_class_value"]
    return {key.pack(subject=n, remote_class=n * 7, direction=n % 2): value.pack(row=n) for n in range(count)}


def test_maps_survive_being_closed(pins: Pins) -> None:
    with Maps.open_or_create(pins.maps, SMALL_SIZES) as maps:
        ids = maps.ids()
        assert set(maps) == set(ABI.maps) == {p.name for p in pins.maps.iterdir()}
        maps["policy_class"].update_many(entries(3))
    with Maps.open_or_create(pins.maps, SMALL_SIZES) as maps:
        assert maps.ids() == ids
        assert dict(maps["policy_class"].items()) == entries(3)
    with Maps.open_pinned(pins.maps) as maps:
        assert maps.ids() == ids
        assert maps["ipcache"].spec.max_entries == SMALL_SIZES["ipcache"]


def test_a_missing_pin_is_made_anew(pins: Pins) -> None:
    Maps.open_or_create(pins.maps, SMALL_SIZES).close()
    (pins.maps / "services").unlink()
    with pytest.raises(bpf.NoEntry, match="services"):
        Maps.open_pinned(pins.maps)
    with Maps.open_or_create(pins.maps, SMALL_SIZES):
        assert (pins.maps / "services").exists()


def test_closing_gives_every_descriptor_back(pins: Pins) -> None:
    before = len(list(Path("/proc/self/fd").iterdir()))
    maps = Maps.open_or_create(pins.maps, SMALL_SIZES)
    assert len(list(Path("/proc/self/fd").iterdir())) == before + len(ABI.maps)
    maps.close()
    with pytest.raises(MapMismatch):
        Maps.open_or_create(pins.maps)
    assert len(list(Path("/proc/self/fd").iterdir())) == before


def test_every_difference_is_in_one_error(pins: Pins) -> None:
    Maps.open_or_create(pins.maps, SMALL_SIZES).close()
    (pins.maps / "services").unlink()
    fd = bpf.map_create(MapType.LRU_HASH, 8, 12, 7)
    bpf.pin(fd, pins.maps / "services")
    os.close(fd)
    with pytest.raises(MapMismatch) as error:
        Maps.open_or_create(pins.maps, SMALL_SIZES | {"backends": 65})
    message = str(error.value)
    for difference in (
        "services: type is 9, wanted 1",
        "services: key size is 8, wanted 20",
        "services: value size is 12, wanted 48",
        "services: max_entries is 7, wanted 64",
        "services: flags is 0, wanted 1",
        "backends: max_entries is 64, wanted 65",
        "start with the sizes it has, or remove the pins",
    ):
        assert difference in message
    assert message.count(" wanted ") == 6


def test_unknown_override() -> None:
    with pytest.raises(ValueError, match="no map is called servises; there are interfaces"):
        Maps.open_or_create(Path("/nonexistent"), {"servises": 1})


def test_single_entries(maps: Maps) -> None:
    table = maps["policy_class"]
    (key, value), (other, _) = entries(2).items()
    assert table.lookup(key) is None
    assert table.delete(key) is False
    table.update(key, value)
    assert table.lookup(key) == value
    with pytest.raises(bpf.EntryExists):
        table.update(key, value, bpf.NOEXIST)
    with pytest.raises(bpf.NoEntry):
        table.update(other, value, bpf.EXIST)
    assert table.delete(key) is True
    assert table.lookup(key) is None


@pytest.mark.parametrize("chunk", [1, 7, 1000, 4096])
def test_batches_of_any_size(maps: Maps, chunk: int) -> None:
    table, wanted = maps["policy_class"], entries(2000)
    table.update_many(wanted, chunk)
    assert dict(table.items(chunk)) == wanted
    assert sum(1 for _ in table.items(chunk)) == len(wanted)  # none twice
    keys = list(wanted)
    assert table.delete_many(keys[::2], chunk) == 1000
    assert table.delete_many(keys, chunk) == 1000  # every other one is gone already
    assert dict(table.items(chunk)) == {}
    assert table.delete_many([], chunk) == 0


@pytest.mark.parametrize("chunk", [1, 7, 4096])
def test_a_trie_is_read_in_chunks(maps: Maps, chunk: int) -> None:
    key, value = ABI.records["ipcache_key"], ABI.records["ipcache_value"]
    wanted = {
        key.pack(prefixlen=128 - n % 9, address=(n << 9).to_bytes(16, "big")): value.pack(identity=n)
        for n in range(500)
    }
    maps["ipcache"].update_many(wanted)
    assert dict(maps["ipcache"].items(chunk)) == wanted
    assert maps["ipcache"].delete_many(wanted, chunk) == 500


def test_a_crowded_bucket_makes_the_chunk_grow(pins: Pins) -> None:
    # The kernel rounds buckets up from max_entries: with 64 entries in 64 buckets some hold several.
    with Maps.open_or_create(pins.maps, SMALL_SIZES | {"policy_class": 64}) as maps:
        maps["policy_class"].update_many(entries(64))
        assert dict(maps["policy_class"].items(chunk=1)) == entries(64)


def test_a_full_map_tells_how_many_went_in(pins: Pins) -> None:
    with Maps.open_or_create(pins.maps, SMALL_SIZES | {"policy_class": 50, "ipcache": 50}) as maps:
        table = maps["policy_class"]
        with pytest.raises(bpf.MapFull) as full:
            table.update_many(entries(80), chunk=30)
        assert full.value.written == 50
        assert dict(table.items()) == dict(list(entries(80).items())[:50])
        with pytest.raises(bpf.MapFull):
            table.update(b"k" * 24, b"v" * 8)
        key = ABI.records["ipcache_key"]
        with pytest.raises(bpf.MapFull) as full:
            maps["ipcache"].update_many(
                {key.pack(prefixlen=128, address=n.to_bytes(16, "big")): bytes(16) for n in range(60)}
            )
        assert full.value.written == 50
        table.update_many(dict.fromkeys(entries(50), b"replaced"))  # a full map still takes new values
        assert set(dict(table.items()).values()) == {b"replaced"}


def test_wrong_sizes_are_refused_before_the_kernel_reads_them(maps: Maps) -> None:
    table, key, value = maps["policy_class"], bytes(24), bytes(8)
    for attempt in (
        lambda: table.lookup(b"short"),
        lambda: table.delete(key + b"!"),
        lambda: table.update(b"short", value),
        lambda: table.update(key, b"short"),
        lambda: table.update_many({b"short": value}),
        lambda: table.update_many({key: b"short"}),
        lambda: table.delete_many([key, b"short"]),
        lambda: maps["drops"].update(bytes(4), bytes(4)),
    ):
        with pytest.raises(ValueError, match="has keys of"):
            attempt()


def test_per_cpu_counters_are_summed(maps: Maps) -> None:
    cpus = possible_cpus()
    drops = maps["drops"]
    drops.update(struct.pack("=I", 3), struct.pack(f"={cpus}Q", *range(1, cpus + 1)))
    drops.update(struct.pack("=I", 5), struct.pack(f"={cpus}Q", *[2**40] * cpus))
    expected = [0] * ABI.constants.DROP_REASONS
    expected[3], expected[5] = cpus * (cpus + 1) // 2, cpus * 2**40
    assert drops.sums() == expected
    value = drops.lookup(struct.pack("=I", 3))
    assert value is not None
    assert len(value) == 8 * cpus


def test_the_kernels_refusal_is_no_full_map() -> None:
    spec = msgspec.structs.replace(ABI.maps["services"], max_entries=0)
    if os.geteuid():
        pytest.skip("needs root to make maps")
    with pytest.raises(bpf.BpfError, match="creating map services") as error:
        _create(spec)
    assert error.value.errno == errno.EINVAL
    assert not isinstance(error.value, bpf.MapFull)


def _create(spec: MapSpec) -> Map:
    return Map(spec, bpf.map_create(spec.type, spec.key_size, spec.value_size, spec.max_entries, spec.flags, spec.name))

"""Pinned maps: created or reopened, read and written in batches."""

from __future__ import annotations

import functools
import os
import struct
from collections.abc import Iterable, Iterator, Mapping
from contextlib import suppress
from itertools import islice
from pathlib import Path

import msgspec

from agent.datapath import bpf
from agent.datapath.abi import Abi, MapSpec, MapType, load

_F_INNER_MAP = 1 << 12
"""BPF_F_INNER_MAP: arrays of any length may take each other's place."""
WORD = 8
_TABLE_NUMBER = struct.Struct("=I")

CHUNK = 4096
"""Entries per batch call: large enough for speed, small enough to keep buffers below a megabyte."""


class MapMismatch(Exception):
    """Pinned maps are not the maps this version uses; the message lists every difference and says what to do."""


class Map:
    """One open map. Keys and values are bytes as their records pack them."""

    def __init__(self, spec: MapSpec, fd: int) -> None:
        self.spec = spec
        self.fd = fd
        self._key_size = spec.key_size
        self._value_size = spec.value_size
        if spec.is_percpu:  # one value for every possible CPU, in 8-byte slots
            self._value_size = -(-spec.value_size // 8) * 8 * possible_cpus()

    def lookup(self, key: bytes) -> bytes | None:
        self._check(1, key)
        return bpf.map_lookup(self.fd, key, self._value_size)

    def update(self, key: bytes, value: bytes, flags: int = bpf.ANY) -> None:
        """Raises bpf.MapFull."""
        self._check(1, key, value)
        bpf.map_update(self.fd, key, value, flags)

    def delete(self, key: bytes) -> bool:
        """Whether it was there."""
        self._check(1, key)
        return bpf.map_delete(self.fd, key)

    def chunks(self, chunk: int = CHUNK) -> Iterator[tuple[memoryview, memoryview]]:
        """Joined keys and joined values, a chunk at a time, for Record.iter_unpack. Views last until the next chunk."""
        reader = bpf.BatchReader(self.fd, self._key_size, self._value_size, min(chunk, self.spec.max_entries))
        while (entries := reader.read()) is not None:
            yield entries

    def items(self, chunk: int = CHUNK) -> Iterator[tuple[bytes, bytes]]:
        """All entries. What is written meanwhile may or may not be among them."""
        key_struct, value_struct = struct.Struct(f"{self._key_size}s"), struct.Struct(f"{self._value_size}s")
        for keys, values in self.chunks(chunk):
            for (key,), (value,) in zip(key_struct.iter_unpack(keys), value_struct.iter_unpack(values), strict=True):
                yield key, value

    def update_many(self, entries: Mapping[bytes, bytes], chunk: int = CHUNK) -> None:
        """Write all entries, in order. Raises bpf.MapFull, whose `written` says how many of them went in before."""
        keys, values = list(entries), list(entries.values())
        for written in range(0, len(keys), chunk):
            some_keys, some_values = keys[written : written + chunk], values[written : written + chunk]
            count, joined_keys, joined_values = len(some_keys), b"".join(some_keys), b"".join(some_values)
            self._check(count, joined_keys, joined_values)
            try:
                bpf.map_update_batch(self.fd, joined_keys, joined_values, count)
            except bpf.MapFull as full:
                full.written += written
                raise

    def _check(self, count: int, keys: bytes, values: bytes | None = None) -> None:
        """The kernel takes sizes for granted and would read beyond what is there."""
        if len(keys) != count * self._key_size or (values is not None and len(values) != count * self._value_size):
            sizes = f"{self._key_size} and values of {self._value_size} bytes"
            raise ValueError(f"map {self.spec.name} has keys of {sizes}")

    def delete_many(self, keys: Iterable[bytes], chunk: int = CHUNK) -> int:
        """Delete keys, whether or not they are there. Returns how many were."""
        deleted = 0
        remaining = iter(keys)
        while batch := tuple(islice(remaining, chunk)):
            joined = b"".join(batch)
            self._check(len(batch), joined)
            deleted += bpf.map_delete_batch(self.fd, joined, self._key_size)
        return deleted

    def sums(self) -> list[int]:
        """Of a per-CPU array of __u64: the sum over all CPUs at each index."""
        counters = [0] * self.spec.max_entries
        cells = struct.Struct(f"={possible_cpus()}Q")
        for keys, values in self.chunks():
            for (index,), counts in zip(struct.iter_unpack("=I", keys), cells.iter_unpack(values), strict=True):
                counters[index] = sum(counts)
        return counters


class TableMap(Map):
    """A map whose values are arrays of __u64, of any length each: as bytes here, as maps of their own in the kernel."""

    def lookup(self, key: bytes) -> bytes | None:
        self._check(1, key)
        number = bpf.map_lookup(self.fd, key, _TABLE_NUMBER.size)
        return None if number is None else self._read(number)

    def update(self, key: bytes, value: bytes, flags: int = bpf.ANY) -> None:
        """Raises bpf.MapFull."""
        self._check(1, key)
        inner = create_table(len(value) // WORD, self.spec.name)
        try:
            indexes = struct.pack(f"={len(value) // WORD}I", *range(len(value) // WORD))
            bpf.map_update_batch(inner, indexes, value, len(value) // WORD)
            bpf.map_update(self.fd, key, _TABLE_NUMBER.pack(inner), flags)
        finally:
            os.close(inner)

    def keys(self) -> list[bytes]:
        return [key for key, _ in super().items()]

    def items(self, chunk: int = CHUNK) -> Iterator[tuple[bytes, bytes]]:
        for key, number in super().items(chunk):
            with suppress(bpf.NoEntry):  # replaced meanwhile
                yield key, self._read(number)

    def update_many(self, entries: Mapping[bytes, bytes], chunk: int = CHUNK) -> None:  # noqa: ARG002  # one by one
        for written, (key, value) in enumerate(entries.items()):
            try:
                self.update(key, value)
            except bpf.MapFull as full:
                full.written = written
                raise

    def _read(self, number: bytes) -> bytes:
        inner = bpf.map_by_id(_TABLE_NUMBER.unpack(number)[0])
        try:
            reader = bpf.BatchReader(inner, _TABLE_NUMBER.size, WORD, bpf.map_info(inner).max_entries)
            parts = []
            while (entries := reader.read()) is not None:
                parts.append(bytes(entries[1]))
        finally:
            os.close(inner)
        return b"".join(parts)


def create_table(words: int, name: str) -> int:
    """File descriptor of an array of __u64 that a TableMap can hold."""
    return bpf.map_create(MapType.ARRAY, _TABLE_NUMBER.size, WORD, words, _F_INNER_MAP, f"{name}_table")


class Maps(Mapping[str, Map]):
    """All maps of the ABI, opened from their pins. Closing them leaves the pins."""

    def __init__(self, opened: Mapping[str, Map]) -> None:
        self._maps = dict(opened)

    @classmethod
    def open_or_create(cls, pin_dir: Path, overrides: Mapping[str, int] | None = None, abi: Abi | None = None) -> Maps:
        """Open the maps pinned in `pin_dir`; create and pin those that are not there.

        `overrides` gives other values for max_entries. Raises MapMismatch where a pinned map is another than the
        ABI's, and bpf.BpfError where the kernel refuses one.
        """
        specs = _with_sizes((abi or load()).maps, overrides or {})
        pin_dir.mkdir(parents=True, exist_ok=True)
        opened: dict[str, Map] = {}
        try:
            for spec in specs.values():
                opened[spec.name] = _map(spec, _open_pinned_or_create(spec, pin_dir / spec.name))
            _verify(opened, pin_dir)
        except (OSError, MapMismatch):
            cls(opened).close()
            raise
        return cls(opened)

    @classmethod
    def open_pinned(cls, pin_dir: Path, abi: Abi | None = None) -> Maps:
        """Open maps that must be pinned, of whatever size. Raises bpf.NoEntry, MapMismatch."""
        opened: dict[str, Map] = {}
        try:
            for spec in (abi or load()).maps.values():
                fd = bpf.open_pinned(pin_dir / spec.name)
                sized = msgspec.structs.replace(spec, max_entries=bpf.map_info(fd).max_entries)
                opened[spec.name] = _map(sized, fd)
            _verify(opened, pin_dir)
        except (OSError, MapMismatch):
            cls(opened).close()
            raise
        return cls(opened)

    def __getitem__(self, name: str) -> Map:
        return self._maps[name]

    def __iter__(self) -> Iterator[str]:
        return iter(self._maps)

    def __len__(self) -> int:
        return len(self._maps)

    def ids(self) -> frozenset[int]:
        """The kernel's numbers of these maps."""
        return frozenset(bpf.map_info(m.fd).id for m in self._maps.values())

    def close(self) -> None:
        while self._maps:
            os.close(self._maps.popitem()[1].fd)

    def __enter__(self) -> Maps:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()


@functools.cache
def possible_cpus() -> int:
    """CPUs the kernel keeps per-CPU values for."""
    text = Path("/sys/devices/system/cpu/possible").read_text().strip()
    return int(text.replace(",", "-").split("-")[-1]) + 1


def _with_sizes(specs: Mapping[str, MapSpec], overrides: Mapping[str, int]) -> dict[str, MapSpec]:
    unknown = sorted(overrides.keys() - specs.keys())
    if unknown:
        raise ValueError(f"no map is called {', '.join(unknown)}; there are {', '.join(specs)}")
    replace = msgspec.structs.replace
    return {name: replace(s, max_entries=overrides.get(name, s.max_entries)) for name, s in specs.items()}


def _map(spec: MapSpec, fd: int) -> Map:
    return TableMap(spec, fd) if spec.type is MapType.HASH_OF_MAPS else Map(spec, fd)


def _open_pinned_or_create(spec: MapSpec, path: Path) -> int:
    try:
        return bpf.open_pinned(path)
    except bpf.NoEntry:
        pass
    inner = create_table(1, spec.name) if spec.type is MapType.HASH_OF_MAPS else 0
    try:
        fd = bpf.map_create(spec.type, spec.key_size, spec.value_size, spec.max_entries, spec.flags, spec.name, inner)
    finally:
        if inner:
            os.close(inner)
    try:
        bpf.pin(fd, path)
    except OSError:
        os.close(fd)
        raise
    return fd


def _verify(opened: Mapping[str, Map], pin_dir: Path) -> None:
    """Raises MapMismatch with every difference between what is pinned and what is wanted."""
    differences = []
    for opened_map in opened.values():
        spec, info = opened_map.spec, bpf.map_info(opened_map.fd)
        pairs = {
            "type": (info.type, int(spec.type)),
            "key size": (info.key_size, spec.key_size),
            "value size": (info.value_size, spec.value_size),
            "max_entries": (info.max_entries, spec.max_entries),
            "flags": (info.flags, spec.flags),
        }
        differences += [
            f"{spec.name}: {what} is {found}, wanted {wanted}"
            for what, (found, wanted) in pairs.items()
            if found != wanted
        ]
    if differences:
        raise MapMismatch(
            f"the maps pinned in {pin_dir} cannot be used: {'; '.join(differences)}. A pinned map keeps its size: "
            "start with the sizes it has, or remove the pins (live connections are then judged as new ones)"
        )

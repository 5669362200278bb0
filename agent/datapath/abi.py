"""What kernel and user space share, read from bpf/abi.h. Pure.

abi = load()
abi.constants.CLASS_ANY             abi.constants["DROP_NONE"]      #define and enum members: int
abi.byte_strings["HAIRPIN_V4_BE_BYTES"]                             #define of a string: bytes
abi.enums["drop_reason"](3)                                         IntEnum; IntFlag where the name ends in _flags
abi.records["tuple"].pack(source=…, destination=…)                  see record.Record
abi.maps["ipcache"]                                                 MapSpec
"""

from __future__ import annotations

import functools
import hashlib
import socket
import sys
from collections.abc import Iterator, Mapping
from enum import IntEnum, IntFlag
from pathlib import Path

import msgspec

from agent.datapath.record import Record

be16 = socket.htons
"""A port as a `…_be` member holds it, and back."""
be32 = socket.htonl


class AbiError(ValueError):
    """bpf/abi.h says something that cannot be understood or would be laid out with hidden padding. Tells the line."""


class MapType(IntEnum):
    """The kernel's enum bpf_map_type, as far as Gatehouse uses it."""

    HASH = 1
    ARRAY = 2
    PERCPU_ARRAY = 6
    LRU_HASH = 9
    LPM_TRIE = 11
    HASH_OF_MAPS = 13
    RINGBUF = 27


class MapFlag(IntFlag):
    """BPF_F_… of map creation."""

    NO_PREALLOC = 1


class MapSpec(msgspec.Struct, frozen=True):
    """One row of GH_MAPS. A scalar key or value is a record of one member, `value`; None is void (ring buffers)."""

    name: str
    type: MapType
    key: Record | None
    value: Record | None
    max_entries: int
    flags: int

    @property
    def key_size(self) -> int:
        return self.key.size if self.key else 0

    @property
    def value_size(self) -> int:
        return self.value.size if self.value else 0

    @property
    def is_percpu(self) -> bool:
        return self.type is MapType.PERCPU_ARRAY


class Constants(Mapping[str, int]):
    """Numbers by name, as items or attributes."""

    def __init__(self, values: Mapping[str, int]) -> None:
        self._values = dict(values)

    def __getitem__(self, name: str) -> int:
        return self._values[name]

    def __getattr__(self, name: str) -> int:
        try:
            return self._values[name]
        except KeyError:
            raise AttributeError(f"bpf/abi.h defines no {name}") from None

    def __iter__(self) -> Iterator[str]:
        return iter(self._values)

    def __len__(self) -> int:
        return len(self._values)


class Abi(msgspec.Struct, frozen=True):
    constants: Constants
    byte_strings: Mapping[str, bytes]
    enums: Mapping[str, type[IntEnum] | type[IntFlag]]
    records: Mapping[str, Record]
    maps: Mapping[str, MapSpec]

    @property
    def abi_hash(self) -> str:
        """16 hex digits over all that gives stored bytes a meaning: not comments, formatting or map sizes."""
        lines = [f"{name}={value}" for name, value in sorted(self.constants.items())]
        lines += [f"{name}={value!r}" for name, value in sorted(self.byte_strings.items())]
        for record in self.records.values():
            lines.append(f"struct {record.name} " + " ".join(f"{f.name}@{f.offset}:{f.code}" for f in record.fields))
        for spec in self.maps.values():
            key, value = (r.name if r else "void" for r in (spec.key, spec.value))
            lines.append(f"map {spec.name} {spec.type.name} {key} {value} {spec.flags}")
        return hashlib.sha256("\n".join(sorted(lines)).encode()).hexdigest()[:16]


def bpf_dir() -> Path:
    """The folder of the C sources: beside this package in a checkout, under the prefix's share/ when installed."""
    checkout = Path(__file__).resolve().parents[2] / "bpf"
    installed = Path(sys.prefix) / "share" / "gatehouse" / "bpf"
    for folder in (checkout, installed):
        if (folder / "abi.h").is_file():
            return folder
    raise FileNotFoundError(f"bpf/abi.h is neither in {checkout} nor in {installed}: reinstall gatehouse")


@functools.cache
def load() -> Abi:
    """The ABI of this installation. Raises AbiError."""
    from agent.datapath.abi_parser import parse  # noqa: PLC0415  # it builds the types declared here

    return parse((bpf_dir() / "abi.h").read_text())

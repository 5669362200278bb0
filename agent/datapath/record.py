"""A C struct as bytes: packed and unpacked at the speed of struct.Struct."""

from __future__ import annotations

import struct
from collections import namedtuple
from collections.abc import Iterator
from typing import Any

import msgspec

SCALARS = {"__u8": "B", "__u16": "H", "__u32": "I", "__u64": "Q"}
SCALAR_SIZES = {"__u8": 1, "__u16": 2, "__u32": 4, "__u64": 8}
PADDING = frozenset({"pad", "zero"})


class Field(msgspec.Struct, frozen=True):
    """One value of a flattened struct. `code` is its struct format: an integer, `Ns` for N bytes, `Nx` for padding."""

    name: str
    offset: int
    size: int
    code: str

    @property
    def is_padding(self) -> bool:
        return self.code.endswith("x")

    @property
    def zero(self) -> int | bytes:
        return bytes(self.size) if self.code.endswith("s") else 0


class Record:
    """Layout of one C struct, flattened to plain values.

    Arrays of __u8 are bytes. A nested struct of one member takes the name of the member that holds it; members of
    larger ones are `outer_inner`, elements of other arrays `name_0`, `name_1`, …. Members called `pad` or `zero` are
    always zero and do not appear. Integers are what memory holds: for a member called `…_be` use abi.be16 or abi.be32.
    """

    def __init__(self, name: str, fields: tuple[Field, ...], align: int) -> None:
        self.name = name
        self.fields = fields
        self.align = align
        self.struct = struct.Struct("=" + "".join(f.code for f in fields))
        self.size = self.struct.size
        visible = [f for f in fields if not f.is_padding]
        self.names = tuple(f.name for f in visible)
        self._zeros = {f.name: f.zero for f in visible}
        self._lengths = tuple((f.name, f.size) for f in visible if f.code.endswith("s"))
        make: Any = namedtuple  # not typing.NamedTuple: which members there are is known at run time only
        self._tuple: Any = make(f"struct_{name}", self.names)
        self.pack_values = self.struct.pack
        """Positional pack in the order of `names`; the fast one. Raises struct.error on a wrong count or range."""
        self.unpack_values = self.struct.unpack
        self.iter_unpack = self.struct.iter_unpack
        """Plain tuples, in the order of `names`, from bytes that hold any number of records."""

    def pack(self, **values: int | bytes) -> bytes:
        """Bytes of the struct; members not given are zero. Raises TypeError on an unknown name or wrong length."""
        if not values.keys() <= self._zeros.keys():
            unknown = ", ".join(sorted(values.keys() - self._zeros.keys()))
            raise TypeError(f"struct {self.name} has no {unknown}; it has {', '.join(self.names)}")
        merged = self._zeros | values
        for name, size in self._lengths:
            value = merged[name]
            if not isinstance(value, bytes) or len(value) != size:
                raise TypeError(f"struct {self.name}: {name} is {size} bytes, not {value!r}")
        return self.struct.pack(*merged.values())

    def unpack(self, data: bytes | memoryview) -> Any:
        """A named tuple with `names` as attributes. Raises struct.error where the size does not fit."""
        return self._tuple._make(self.struct.unpack(data))

    def records(self, data: bytes | memoryview) -> Iterator[Any]:
        """Named tuples from bytes that hold any number of records."""
        return map(self._tuple._make, self.struct.iter_unpack(data))

    def offset(self, name: str) -> int:
        return next(f.offset for f in self.fields if f.name == name)

    def __repr__(self) -> str:
        return f"<struct {self.name}, {self.size} bytes: {', '.join(self.names)}>"

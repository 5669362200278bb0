"""The ABI reader: layouts worked out by hand, and texts it must refuse."""

from __future__ import annotations

import struct
from enum import IntEnum, IntFlag

import pytest

from agent.datapath.abi import AbiError, MapFlag, MapType, be16, load
from agent.datapath.abi_parser import parse

SAMPLE = """\
/* a comment
   of two lines */
#ifndef GUARD
#define GUARD
#define TEN   10   /* ten */
#define HEX   0xffffffffffffffff
#define SAME  TEN
#define BYTES "\\xa9\\x00gate"
enum colour { RED = 0, GREEN = TEN };
enum paint_flags { WET = 1, THICK = 2 };
struct inner { __u8 bytes[16]; };
struct pair { __u16 left; __u16 right_be; };
struct outer {
\t__u64 first;
\tstruct inner inner;     // named after the member
\tstruct pair pair;
\t__u32 many[2];
\tstruct pair pairs[2];
\t__u8 one;
\t__u8 pad[3];
};
#define GH_MAPS(M) \\
\tM(HASH,         table,  struct pair, struct outer, TEN, NO_PREALLOC) \\
\tM(PERCPU_ARRAY, counts, __u32,       __u64,        4,   0) \\
\tM(RINGBUF,      ring,   void,        void,         4096, 0)
#endif
"""


def test_constants_strings_and_enums() -> None:
    abi = parse(SAMPLE)
    assert dict(abi.constants) == {
        "TEN": 10,
        "HEX": 2**64 - 1,
        "SAME": 10,
        "RED": 0,
        "GREEN": 10,
        "WET": 1,
        "THICK": 2,
    }
    assert abi.constants.GREEN == 10
    assert abi.byte_strings == {"BYTES": b"\xa9\x00gate"}
    assert issubclass(abi.enums["colour"], IntEnum)
    assert abi.enums["colour"](10).name == "GREEN"
    assert issubclass(abi.enums["paint_flags"], IntFlag)
    with pytest.raises(AttributeError, match="defines no BLUE"):
        _ = abi.constants.BLUE


def test_layout_by_hand() -> None:
    outer = parse(SAMPLE).records["outer"]
    assert [(f.name, f.offset, f.code) for f in outer.fields] == [
        ("first", 0, "Q"),
        ("inner", 8, "16s"),
        ("pair_left", 24, "H"),
        ("pair_right_be", 26, "H"),
        ("many_0", 28, "I"),
        ("many_1", 32, "I"),
        ("pairs_0_left", 36, "H"),
        ("pairs_0_right_be", 38, "H"),
        ("pairs_1_left", 40, "H"),
        ("pairs_1_right_be", 42, "H"),
        ("one", 44, "B"),
        ("pad", 45, "3x"),
    ]
    assert outer.size == 48
    assert outer.offset("many_1") == 32
    assert "pad" not in outer.names


def test_pack_and_unpack() -> None:
    outer = parse(SAMPLE).records["outer"]
    data = outer.pack(first=1, inner=b"i" * 16, pair_right_be=be16(80), one=255)
    assert data == struct.pack("=Q", 1) + b"i" * 16 + b"\0\0\0\x50" + bytes(16) + b"\xff\0\0\0"
    assert outer.pack_values(*outer.unpack_values(data)) == data
    assert outer.unpack(data).inner == b"i" * 16
    assert be16(outer.unpack(data).pair_right_be) == 80
    assert [r.one for r in outer.records(data * 3)] == [255] * 3
    assert list(outer.iter_unpack(data)) == [outer.unpack_values(data)]
    with pytest.raises(TypeError, match="struct outer has no nine, ten; it has first"):
        outer.pack(nine=9, ten=10)
    with pytest.raises(TypeError, match="inner is 16 bytes"):
        outer.pack(inner=b"short")
    with pytest.raises(TypeError, match="inner is 16 bytes"):
        outer.pack(inner=5)
    with pytest.raises(struct.error):
        outer.pack(one=256)


def test_maps_of_the_table() -> None:
    maps = parse(SAMPLE).maps
    assert list(maps) == ["table", "counts", "ring"]
    table = maps["table"]
    assert (table.type, table.key_size, table.value_size, table.max_entries) == (MapType.HASH, 4, 48, 10)
    assert table.flags == MapFlag.NO_PREALLOC
    assert maps["counts"].is_percpu
    assert maps["counts"].key is not None
    assert maps["counts"].key.pack(value=3) == struct.pack("=I", 3)
    assert (maps["ring"].key, maps["ring"].key_size, maps["ring"].value_size) == (None, 0, 0)


@pytest.mark.parametrize(
    ("before", "after", "same"),
    [
        ("/* ten */", "/* a longer comment */", True),
        ("#define TEN   10", "#define TEN 10", True),
        (
            "\\\n\tM(RINGBUF,      ring,   void,        void,         4096, 0)",
            "\\\n\tM(RINGBUF, ring, void, void, 8192, 0)",
            True,
        ),
        ("WET = 1", "WET = 4", False),
        ("__u16 left;", "__u16 west;", False),
        ("__u16 left; __u16 right_be;", "__u16 right_be; __u16 left;", False),
        ("struct pair, struct outer", "struct inner, struct outer", False),
        ("TEN, NO_PREALLOC", "TEN, 0", False),
        ("\\x00gate", "\\x01gate", False),
    ],
)
def test_hash_follows_the_layout_alone(before: str, after: str, same: bool) -> None:
    assert before in SAMPLE
    changed = parse(SAMPLE.replace(before, after)).abi_hash
    assert (changed == parse(SAMPLE).abi_hash) is same
    assert len(changed) == 16


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("struct s { __u8 a; __u32 b; };", "1: struct s: 3 bytes of hidden padding before b: declare a pad"),
        ("\n\nstruct s {\n__u64 a;\n__u8 b;\n};", "5: struct s: 7 bytes of hidden padding at its end"),
        ("struct in { __u64 a; };\nstruct s { __u32 a; struct in b; };", "2: struct s: 4 bytes of hidden padding"),
        ("/*\n*/ struct s { int a; };", "2: 'int' is not one of __u8"),
        ("struct s { __u8 a : 4; };", "1: ';' expected, not ':'"),
        ("struct s { struct later a; };", "1: struct later is used before it is declared"),
        ("struct s { };", "1: struct s is empty"),
        ("struct s { __u8 a; __u8 a; };", "1: struct s has two members called a"),
        ("struct s {\n__u8 from; };", "2: struct s: from cannot be the name of an attribute"),
        ("struct i { __u8 b; __u8 c; }; struct s { struct i a; __u8 a_b; };", "1: struct s: two members have one name"),
        ("struct s { __u8 a; };\nstruct s { __u8 a; };", "2: struct s is declared twice"),
        ("struct s { __u8 a[0]; };", "1: an array needs at least one element"),
        ("struct s { __u8 a[N]; };", "1: a number or the name of one expected, not 'N'"),
        ("struct s { __u8 a;", "1: the file ends in the middle"),
        ("enum e { A, B };", "1: '=' expected, not ','"),
        ("enum e { A = 1 };\nenum f {\nA = 1 };", "3: A is defined twice"),
        ("enum e { A = 1 };\nenum e { B = 1 };", "2: enum e is declared twice"),
        ("#define A 1\n#define A 2", "2: A is defined twice"),
        ("#define A (1 << 3)", "1: a number or the name of one expected"),
        ("#define A 0x1ffffffffffffffff", "1: 0x1ffffffffffffffff does not fit into 64 bits"),
        ("#define A(x) 1", "1: A: no macro but GH_MAPS may take parameters"),
        ('#define A "\\n"', '1: "\\n" is not a string'),
        ("#if 1", "1: '#if 1' is not understood"),
        ("typedef int x;", "1: enum, struct or #define expected, not 'typedef'"),
        ("\n#define GH_MAPS(M) \\\n M(HASH, a, __u32, __u32, 1)", "3: a map has 6 columns"),
        ("#define GH_MAPS(M) M(HSAH, a, __u32, __u32, 1, 0)", "1: map a: type 'HSAH' is not one of HASH"),
        ("#define GH_MAPS(M) M(HASH, a, __u32, __u32, 1, NO)", "1: map a: flag 'NO' is not one of NO_PREALLOC"),
        ("#define GH_MAPS(M) M(HASH, a, struct k, __u32, 1, 0)", "1: 'struct k' is neither void"),
        ("#define GH_MAPS(M) M(HASH, a, __u32, __u32, MANY, 0)", "1: a number or the name of one expected, not 'MANY'"),
        (
            "#define GH_MAPS(M) M(HASH, a, __u32, __u32, 1, 0) \\\n M(HASH, a, __u32, __u32, 1, 0)",
            "2: map a is declared twice",
        ),
        ("#define GH_MAPS(M) N(HASH, a, __u32, __u32, 1, 0)", "1: GH_MAPS: 'N(HASH,' is no row"),
    ],
)
def test_what_is_not_understood_names_its_line(text: str, message: str) -> None:
    with pytest.raises(AbiError) as error:
        parse(text)
    assert str(error.value).startswith(f"bpf/abi.h:{message}")


def test_the_real_abi_reads() -> None:
    abi = load()
    assert len(abi.enums["drop_reason"]) - 1 == abi.constants.DROP_REASONS
    assert abi.maps["drops"].max_entries == abi.constants.DROP_REASONS
    assert abi.maps["tallies"].max_entries == abi.constants.TALLIES
    assert abi.constants.VERDICT_DENY == 0
    assert load() is abi

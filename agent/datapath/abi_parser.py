"""The subset of C that bpf/abi.h is written in → Abi."""

from __future__ import annotations

import ast
import re
from collections.abc import Iterator
from enum import IntEnum, IntFlag
from keyword import iskeyword

from agent.datapath.abi import Abi, AbiError, Constants, MapFlag, MapSpec, MapType
from agent.datapath.record import PADDING, SCALAR_SIZES, SCALARS, Field, Record

_COMMENT = re.compile(r"/\*.*?\*/|//[^\n]*", re.DOTALL)
_TOKEN = re.compile(r"[A-Za-z_]\w*|0[xX][0-9a-fA-F]+|\d+|[{}\[\]();,=]|\S")
_DEFINE = re.compile(r"\s*#\s*define\s+(\w+)(\([^)]*\))?\s*(.*?)\s*$", re.DOTALL)
_DIRECTIVES = ("ifndef", "endif", "include", "pragma")
_ROW = re.compile(r"M\(([^()]*)\)")
_MAP_TABLE = "GH_MAPS"
_INTEGER = re.compile(r"0[xX][0-9a-fA-F]+|\d+")
_MAX_U64 = 0xFFFFFFFFFFFFFFFF


def parse(text: str) -> Abi:
    """Read the text of abi.h. Raises AbiError, which tells the line."""
    parser = _Parser()
    parser.read(_without_comments(text))
    return Abi(
        constants=Constants(parser.numbers),
        byte_strings=parser.byte_strings,
        enums=parser.enums,
        records=parser.records,
        maps=parser.maps,
    )


def _without_comments(text: str) -> str:
    """Comments become blanks, so that lines keep their numbers."""
    return _COMMENT.sub(lambda m: " " + "\n" * m[0].count("\n"), text)


class _Tokens:
    """Tokens with the line they are on; line 0 means the end."""

    def __init__(self, source: list[tuple[str, int]]) -> None:
        self._source = source
        self._next = 0

    def __bool__(self) -> bool:
        return self._next < len(self._source)

    @property
    def line(self) -> int:
        return self._source[min(self._next, len(self._source) - 1)][1] if self._source else 0

    def peek(self) -> str:
        return self._source[self._next][0] if self else ""

    def take(self, expected: str = "") -> str:
        token = self.peek()
        if not token:
            raise _error(self.line, "the file ends in the middle of a declaration")
        if expected and token != expected:
            raise _error(self.line, f"{expected!r} expected, not {token!r}")
        self._next += 1
        return token

    def take_name(self) -> str:
        if not re.fullmatch(r"[A-Za-z_]\w*", self.peek() or "-"):
            raise _error(self.line, f"a name expected, not {self.peek()!r}")
        return self.take()

    def skip(self, token: str) -> bool:
        if self.peek() != token:
            return False
        self._next += 1
        return True


class _Parser:
    def __init__(self) -> None:
        self.numbers: dict[str, int] = {}
        self.byte_strings: dict[str, bytes] = {}
        self.enums: dict[str, type[IntEnum] | type[IntFlag]] = {}
        self.records: dict[str, Record] = {}
        self.maps: dict[str, MapSpec] = {}

    def read(self, text: str) -> None:
        tokens: list[tuple[str, int]] = []
        tables: list[tuple[str, int]] = []
        for line, statement in _statements(text):
            if statement.lstrip().startswith("#"):
                self._directive(statement, line, tables)
            else:
                tokens += [(token, line) for token in _TOKEN.findall(statement)]
        stream = _Tokens(tokens)
        while stream:
            self._declaration(stream)
        for body, line in tables:  # last: rows name structs and enum members
            self._map_table(body, line)

    def _directive(self, statement: str, line: int, tables: list[tuple[str, int]]) -> None:
        define = _DEFINE.match(statement)
        if not define:
            words = statement.replace("#", " ").split()
            if not words or words[0] not in _DIRECTIVES:
                raise _error(line, f"{statement.strip()!r} is not understood here")
            return
        name, parameters, value = define.groups()
        if name == _MAP_TABLE:
            tables.append((value, line))
        elif parameters:
            raise _error(line, f"{name}: no macro but {_MAP_TABLE} may take parameters")
        elif value.startswith('"'):
            self._new_name(name, line)
            self.byte_strings[name] = _byte_string(value, line)
        elif value:
            self._new_name(name, line)
            self.numbers[name] = self._number(value, line)

    def _new_name(self, name: str, line: int) -> None:
        if name in self.numbers or name in self.byte_strings:
            raise _error(line, f"{name} is defined twice")

    def _number(self, text: str, line: int) -> int:
        if text in self.numbers:
            return self.numbers[text]
        if not _INTEGER.fullmatch(text):
            raise _error(line, f"a number or the name of one expected, not {text!r}")
        value = int(text, 0)
        if value > _MAX_U64:
            raise _error(line, f"{text} does not fit into 64 bits")
        return value

    def _declaration(self, tokens: _Tokens) -> None:
        line = tokens.line
        keyword = tokens.take()
        if keyword == "enum":
            self._enum(tokens, line)
        elif keyword == "struct":
            self._struct(tokens, line)
        else:
            raise _error(line, f"enum, struct or #define expected, not {keyword!r}")

    def _enum(self, tokens: _Tokens, line: int) -> None:
        name = tokens.take_name()
        if name in self.enums:
            raise _error(line, f"enum {name} is declared twice")
        tokens.take("{")
        members: dict[str, int] = {}
        while not tokens.skip("}"):
            line = tokens.line
            member = tokens.take_name()
            self._new_name(member, line)
            tokens.take("=")  # every member says its number: inserting one must not move others
            members[member] = self.numbers[member] = self._number(tokens.take(), line)
            if tokens.peek() != "}":
                tokens.take(",")
        tokens.take(";")
        title = name.title().replace("_", "")
        if name.endswith("_flags"):
            self.enums[name] = IntFlag(title, members)  # type: ignore[assignment]  # a class, made by call
        else:
            self.enums[name] = IntEnum(title, members)  # type: ignore[assignment]

    def _struct(self, tokens: _Tokens, line: int) -> None:
        name = tokens.take_name()
        if name in self.records:
            raise _error(line, f"struct {name} is declared twice")
        tokens.take("{")
        fields: list[Field] = []
        members: list[str] = []
        align = 1
        while not tokens.skip("}"):
            line = tokens.line
            kind, record, member_align = self._type(tokens)
            member = tokens.take_name()
            if member in members:
                raise _error(line, f"struct {name} has two members called {member}")
            if iskeyword(member) or member.startswith("_"):
                raise _error(line, f"struct {name}: {member} cannot be the name of an attribute in Python")
            members.append(member)
            count = self._array_length(tokens)
            tokens.take(";")
            offset = fields[-1].offset + fields[-1].size if fields else 0
            missing = -offset % member_align
            if missing:
                raise _error(line, f"struct {name}: {missing} bytes of hidden padding before {member}: declare a pad")
            align = max(align, member_align)
            fields += _flatten(member, kind, record, count, offset)
        tokens.take(";")
        if not fields:
            raise _error(line, f"struct {name} is empty")
        missing = -(fields[-1].offset + fields[-1].size) % align
        if missing:
            raise _error(line, f"struct {name}: {missing} bytes of hidden padding at its end: declare a pad")
        names = [f.name for f in fields if not f.is_padding]
        if len(set(names)) < len(names):
            raise _error(line, f"struct {name}: two members have one name once nested structs are flattened")
        self.records[name] = Record(name, tuple(fields), align)

    def _type(self, tokens: _Tokens) -> tuple[str, Record | None, int]:
        line = tokens.line
        word = tokens.take()
        if word == "struct":
            name = tokens.take_name()
            if name not in self.records:
                raise _error(line, f"struct {name} is used before it is declared")
            return name, self.records[name], self.records[name].align
        if word not in SCALARS:
            raise _error(line, f"{word!r} is not one of {', '.join(SCALARS)} or a struct")
        return word, None, SCALAR_SIZES[word]

    def _array_length(self, tokens: _Tokens) -> int | None:
        if not tokens.skip("["):
            return None
        line = tokens.line
        count = self._number(tokens.take(), line)
        if count < 1:
            raise _error(line, "an array needs at least one element")
        tokens.take("]")
        return count

    def _map_table(self, body: str, line: int) -> None:
        rest = _ROW.sub("", body.replace("\\\n", "\n")).strip()
        if rest:
            raise _error(line, f"{_MAP_TABLE}: {rest.split()[0]!r} is no row M(…)")
        for row in _ROW.finditer(body):
            spec = self._map(row[1], line + body[: row.start()].count("\n"))
            if spec.name in self.maps:
                raise _error(line + body[: row.start()].count("\n"), f"map {spec.name} is declared twice")
            self.maps[spec.name] = spec

    def _map(self, row: str, line: int) -> MapSpec:
        cells = [" ".join(cell.split()) for cell in row.split(",")]
        if len(cells) != 6:
            raise _error(line, f"a map has 6 columns (type, name, key, value, max_entries, flags), not {len(cells)}")
        kind, name, key, value, max_entries, flags = cells
        if kind not in MapType.__members__:
            raise _error(line, f"map {name}: type {kind!r} is not one of {', '.join(MapType.__members__)}")
        number = 0
        for flag in flags.split("|"):
            if flag.strip() in MapFlag.__members__:
                number |= MapFlag[flag.strip()]
            elif flag.strip() != "0":
                raise _error(line, f"map {name}: flag {flag.strip()!r} is not one of {', '.join(MapFlag.__members__)}")
        key_type, value_type = self._map_type(key, line), self._map_type(value, line)
        return MapSpec(name, MapType[kind], key_type, value_type, self._number(max_entries, line), number)

    def _map_type(self, text: str, line: int) -> Record | None:
        if text == "void":
            return None
        if text in SCALARS:
            size = SCALAR_SIZES[text]
            return Record(text, (Field("value", 0, size, SCALARS[text]),), size)
        name = text.removeprefix("struct ")
        if name == text or name not in self.records:
            raise _error(line, f"{text!r} is neither void, nor a scalar, nor a struct declared in this file")
        return self.records[name]


def _statements(text: str) -> Iterator[tuple[int, str]]:
    """Physical lines, directives joined with their continuation lines. Yields (line of the start, text)."""
    lines = text.split("\n")
    index = 0
    while index < len(lines):
        start = index
        if lines[index].lstrip().startswith("#"):
            while lines[index].rstrip().endswith("\\") and index + 1 < len(lines):
                index += 1
        yield start + 1, "\n".join(lines[start : index + 1])
        index += 1


def _flatten(member: str, kind: str, record: Record | None, count: int | None, offset: int) -> Iterator[Field]:
    """Plain values of one member. `count` None: no array."""
    if member in PADDING:
        size = (record.size if record else SCALAR_SIZES[kind]) * (count or 1)
        yield Field(member, offset, size, f"{size}x")
    elif kind == "__u8" and count is not None:
        yield Field(member, offset, count, f"{count}s")
    elif count is not None:
        for index in range(count):
            step = record.size if record else SCALAR_SIZES[kind]
            yield from _flatten(f"{member}_{index}", kind, record, None, offset + index * step)
    elif record is None:
        yield Field(member, offset, SCALAR_SIZES[kind], SCALARS[kind])
    else:
        for inner in record.fields:
            name = inner.name if inner.is_padding else member if len(record.fields) == 1 else f"{member}_{inner.name}"
            yield Field(name, offset + inner.offset, inner.size, inner.code)


def _byte_string(value: str, line: int) -> bytes:
    """A C string literal of \\x escapes and plain ASCII; Python reads these alike."""
    if not re.fullmatch(r'"(\\x[0-9a-fA-F]{2}|[ !#-\[\]-~])*"', value):
        raise _error(line, f"{value} is not a string of two-digit \\x escapes and plain ASCII")
    result = ast.literal_eval("b" + value)
    assert isinstance(result, bytes)
    return result


def _error(line: int, message: str) -> AbiError:
    return AbiError(f"bpf/abi.h:{line}: {message}")

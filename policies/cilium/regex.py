r"""Regular expressions of HTTP rules: what RE2 (in Envoy) and Python's re take alike, so that what is enforced and what
is explained are the same.

A pattern is read by RE2's grammar (github.com/google/re2/wiki/Syntax). Refused is what RE2 does not compile
(look-around, back-references, possessive repetition, counts beyond 1000), and the little that only one of the two
understands, or that they understand differently (\z, \Z, \pL, \Q…\E, flags in mid-pattern). POSIX classes are written
out. Matching is meant with re.ASCII, against the whole of a value.
"""

from __future__ import annotations

import re
from functools import lru_cache

MAX_LENGTH = 1024
MAX_REPEAT = 1000
"""RE2's limit of {n,m}, of nested ones multiplied."""

MAX_SIZE = 20_000
"""RE2 instructions: what is taken compiles to no more. Envoy must be told (re2.max_program_size.error_level), which by
itself stops at 100."""

MAX_DEPTH = 100
_POSIX = {
    "alnum": "0-9A-Za-z",
    "alpha": "A-Za-z",
    "ascii": r"\x00-\x7f",
    "blank": r"\x09 ",
    "cntrl": r"\x00-\x1f\x7f",
    "digit": "0-9",
    "graph": r"!-\~",
    "lower": "a-z",
    "print": r" -\~",
    "punct": r"!-/:-@\[-`{-\~",
    "space": r"\x09\x0a\x0b\x0c\x0d ",
    "upper": "A-Z",
    "word": "0-9A-Za-z_",
    "xdigit": "0-9A-Fa-f",
}
_SPACE = r"\x09\x0a\x0c\x0d "
"""RE2's \\s, which has no vertical tab as Python's has."""

_CLASS_LETTERS = "dswDSW"
_CONTROL = {"a": 7, "f": 12, "t": 9, "n": 10, "r": 13, "v": 11}
_SPECIAL_IN_CLASS = frozenset("[]^-&|~\\")
_COUNT = re.compile(r"\{(\d+)(?:(,)(\d*))?\}")
_HALF_COUNT = re.compile(r"\{,\d+\}")
_NAME = re.compile(r"\?P<([A-Za-z_][A-Za-z0-9_]*)>")
_FLAGS = re.compile(r"\?([is]+)([:)])")
_HEX = re.compile(r"[0-9A-Fa-f]{2}")


@lru_cache(maxsize=4096)
def portable(pattern: str) -> str:
    """The pattern as both RE2 and Python's re read it alike. Raises ValueError, with a sentence for its author."""
    if len(pattern) > MAX_LENGTH:
        raise ValueError(f"must have at most {MAX_LENGTH} characters")
    if bad := next((c for c in pattern if not " " <= c <= "~"), None):
        raise ValueError(f"must be printable ASCII, without {bad!r}: a path is compared percent-encoded")
    text = _Reader(pattern).whole()
    try:
        re.compile(text, re.ASCII)
    except (re.error, OverflowError, RecursionError) as error:
        raise ValueError(f"not a regular expression: {error}") from None
    return text


class _Reader:
    """A recursive descent. Each method reads a part from where it stands and returns it as both dialects have it; the
    size of what was read is added up in `_size`."""

    def __init__(self, pattern: str) -> None:
        self._text = pattern
        self._at = 0
        self._depth = 0
        self._names: set[str] = set()
        self._size = 8  # an upper bound of RE2's instructions
        self._repeat = 1  # the largest product of counts within what was read last

    def whole(self) -> str:
        flags = _FLAGS.match(self._text, 1) if self._text.startswith("(") else None
        start = ""
        if flags is not None and flags[2] == ")":
            self._at = flags.end()
            start = f"(?{''.join(sorted(set(flags[1])))})"
        found = start + self._alternatives()
        if self._at < len(self._text):
            raise self._fault("')' without '('")
        return found

    def _fault(self, what: str) -> ValueError:
        place = min(self._at, len(self._text)) + 1
        return ValueError(f"not a regular expression that RE2 takes: {what} at character {place}")

    def _peek(self) -> str:
        return self._text[self._at : self._at + 1]

    # ---- grammar

    def _alternatives(self) -> str:
        parts = [self._sequence()]
        repeat = self._repeat
        while self._peek() == "|":
            self._at += 1
            self._size += 1
            parts.append(self._sequence())
            repeat = max(repeat, self._repeat)
        self._repeat = repeat
        return "|".join(parts)

    def _sequence(self) -> str:
        parts: list[str] = []
        repeat = 1
        while (c := self._peek()) and c not in "|)":
            before, self._repeat = self._size, 1
            atom = self._atom()
            count = self._repetition(self._size - before, anchored=atom in ("^", "$", r"\b", r"\B", r"\A"))
            parts.append(atom + count)
            repeat = max(repeat, self._repeat)
            if self._size > MAX_SIZE:
                raise ValueError(f"too large: written out, its repetitions make more than {MAX_SIZE} steps for RE2")
        self._repeat = repeat
        return "".join(parts)

    def _atom(self) -> str:
        c = self._peek()
        if c in "*+?":
            raise self._fault(f"nothing to repeat before {c!r}")
        self._at += 1
        self._size += 4 if c == "." else 2
        if c == "(":
            return self._group()
        if c == "[":
            return self._set()
        if c == "\\":
            return self._escape()
        if c == "{" and _COUNT.match(self._text, self._at - 1):
            self._at -= 1
            raise self._fault("nothing to repeat before a count")
        return rf"\{c}" if c in "{}]" else c

    def _repetition(self, size: int, *, anchored: bool) -> str:
        c = self._peek()
        count = _COUNT.match(self._text, self._at) if c == "{" else None
        if c not in ("*", "+", "?") and count is None:
            if _HALF_COUNT.match(self._text, self._at):
                raise self._fault("a count without its first number")
            return ""
        if anchored:
            raise self._fault("an anchor cannot be repeated")
        text = self._text[self._at] if count is None else count[0]
        self._size += 2
        if count is not None:
            self._multiply(count, size)
        self._at += len(text)
        if self._peek() == "?":
            self._at += 1
            text += "?"
        if self._peek() in ("*", "+", "?") or _COUNT.match(self._text, self._at):
            raise self._fault("one repetition after another")
        return text

    def _multiply(self, count: re.Match[str], size: int) -> None:
        low = int(count[1])
        high = low if count[2] is None else int(count[3]) if count[3] else None
        most = max(low, high or 0)
        if most > MAX_REPEAT or (high is not None and high < low):
            raise self._fault(f"a count must be at most {MAX_REPEAT} and in order")
        self._repeat *= max(1, most)
        if self._repeat > MAX_REPEAT:
            raise self._fault(f"nested counts must be at most {MAX_REPEAT} when multiplied")
        self._size += (size + 2) * max(0, most - 1)

    def _group(self) -> str:
        self._depth += 1
        if self._depth > MAX_DEPTH:
            raise self._fault("groups nested too deeply")
        head = ""
        if self._peek() == "?":
            head = self._group_head()
        inner = self._alternatives()
        if self._peek() != ")":
            raise self._fault("'(' without ')'")
        self._at += 1
        self._depth -= 1
        return f"({head}{inner})"

    def _group_head(self) -> str:
        if self._text.startswith("?:", self._at):
            self._at += 2
            return "?:"
        if named := _NAME.match(self._text, self._at):
            if named[1] in self._names:
                raise self._fault(f"two groups named {named[1]}")
            self._names.add(named[1])
            self._at = named.end()
            return named[0]
        flags = _FLAGS.match(self._text, self._at)
        if flags is not None and flags[2] == ":":
            self._at = flags.end()
            return f"?{''.join(sorted(set(flags[1])))}:"
        if flags is not None:
            raise self._fault("flags that are not at the start (write (?i:…) around what they are for)")
        if self._text.startswith(("?=", "?!", "?<=", "?<!"), self._at):
            raise self._fault("look-ahead and look-behind are not supported")
        raise self._fault("an unknown kind of group")

    # ---- escapes and sets

    def _escape(self) -> str:
        c = self._peek()
        if c and c in _CLASS_LETTERS:
            self._at += 1
            self._size += 8
            return {"s": f"[{_SPACE}]", "S": f"[^{_SPACE}]"}.get(c, f"\\{c}")
        if c and c in "bBA":
            self._at += 1
            return f"\\{c}"
        if c in ("C", "Q", "E", "z", "Z", "p", "P", "G"):
            raise self._fault(f"\\{c} is not supported")
        return _literal(self._character())

    def _character(self) -> int:
        """The character that what follows a backslash stands for."""
        c = self._peek()
        self._at += 1
        if not c:
            raise self._fault("a backslash at the end")
        if c in _CONTROL:
            return _CONTROL[c]
        if c == "x" and (digits := _HEX.match(self._text, self._at)):
            self._at += 2
            return int(digits[0], 16)
        if c.isdigit():
            raise self._fault("back-references are not supported")
        if c.isalnum():
            raise self._fault(f"\\{c} means nothing")
        return ord(c)

    def _set(self) -> str:
        negated = self._peek() == "^"
        self._at += negated
        parts: list[str] = []
        while (c := self._peek()) != "]" or not parts:
            if not c:
                raise self._fault("'[' without ']'")
            parts.append(self._member())
        self._at += 1
        inner = "".join(parts)
        self._size += 4 + 2 * len(inner)
        return f"[{'^' if negated else ''}{inner}]"

    def _member(self) -> str:
        text, at = self._text, self._at
        if text.startswith("[:", at) and (end := text.find(":]", at)) > 0:
            name = text[at + 2 : end]
            if name not in _POSIX:
                raise self._fault(f"no class is called [:{name}:]")
            self._at = end + 2
            return _POSIX[name]
        if text[at] == "\\" and text[at + 1 : at + 2] in tuple(_CLASS_LETTERS):
            if text[at + 1] in "S":
                raise self._fault(r"\S within a set is not supported")
            self._at += 2
            return _SPACE if text[at + 1] == "s" else text[at : at + 2]
        if text[at] == "-" and text[at + 1 : at + 2] != "]" and self._in_middle(at):
            raise self._fault("'-' in the middle of a set (write it first, last, or as \\-)")
        first = self._set_character()
        if self._peek() != "-" or self._text[self._at + 1 : self._at + 2] in ("]", ""):
            return _set_literal(first)
        self._at += 1
        if self._text.startswith("[:", self._at):
            raise self._fault("a range to a class")
        if self._peek() == "\\" and self._text[self._at + 1 : self._at + 2] in tuple(_CLASS_LETTERS):
            raise self._fault("a range to a class")
        last = self._set_character()
        if last < first:
            raise self._fault("a range in the wrong order")
        return f"{_set_literal(first)}-{_set_literal(last)}"

    def _in_middle(self, at: int) -> bool:
        return self._text[at - 1] != "[" and self._text[at - 2 : at] != "[^"

    def _set_character(self) -> int:
        c = self._peek()
        self._at += 1
        if not c:
            raise self._fault("'[' without ']'")
        if c != "\\":
            return ord(c)
        if self._peek() in ("C", "Q", "E", "z", "Z", "p", "P", "G", "b", "B", "A"):
            raise self._fault(f"\\{self._peek()} is not supported within a set")
        return self._character()


def _literal(character: int) -> str:
    c = chr(character)
    if not " " <= c <= "~":
        return f"\\x{character:02x}"
    return c if c.isalnum() or c in "_ /-,:;=@%&~!<>'\"`#" else f"\\{c}"


def _set_literal(character: int) -> str:
    c = chr(character)
    if not " " <= c <= "~":
        return f"\\x{character:02x}"
    return f"\\{c}" if c in _SPECIAL_IN_CLASS else c

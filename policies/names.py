"""Which DNS names a pattern stands for: `matchName` and `matchPattern` of cilium.io/v2 (toFQDNs, dns, serverNames).

As Cilium 1.19 documents it (Documentation/security/policy/language, "DNS based"): `*` stands for any number of the
characters a-z, 0-9, `-` and `_` within one label, none included; a leading `**.` for one or more whole labels; `*`
alone for every name, the root included. Further stars in a row mean what one (or, at the start, two) would.

Names are text as DNS libraries print it: labels joined by dots, other bytes escaped with a backslash. An escape is none
of the characters a wildcard stands for, so what is odd in a name matches `*` alone. Matching takes no more than the
product of the lengths: no pattern and no name make it explode.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator
from functools import lru_cache

from policies.l7 import NamePattern

REMEMBERED = 4096
"""Names whose answer each set of patterns remembers."""

_STARS = re.compile(r"\*+")
_EVERY = re.compile(r"\*+\.?")
_LABEL = re.compile(r"[-a-z0-9_]+")


def canonical(name: str) -> str:
    """In lower case, without the dot at the end; "" is the root."""
    return name.lower().removesuffix(".")


def matches(pattern: NamePattern, name: str) -> bool:
    """Whether the pattern stands for the name, however either is spelt. A pattern of nothing stands for none."""
    return _compiled(pattern).matches(canonical(name))


class Names:
    """A set of patterns, asked which of them stand for a name. Costs a look-up for each label of the name."""

    def __init__(self, patterns: Iterable[NamePattern]) -> None:
        self.patterns = frozenset(patterns)
        self._exact: dict[str, list[NamePattern]] = {}
        self._every: list[NamePattern] = []
        self._by_suffix: dict[str, list[_Compiled]] = {}
        self._allowed: dict[str, bool] = {}
        for pattern in self.patterns:
            compiled = _compiled(pattern)
            if compiled.every:
                self._every.append(pattern)
            elif compiled.exact:
                self._exact.setdefault(compiled.exact, []).append(pattern)
            elif compiled.labels:
                self._by_suffix.setdefault(compiled.suffix, []).append(compiled)

    def matching(self, name: str) -> frozenset[NamePattern]:
        return frozenset(self._matching(canonical(name)))

    def allow(self, name: str) -> bool:
        """Whether any of them stands for the name. Remembered: the same names are asked for again and again."""
        allowed = self._allowed.get(name)
        if allowed is None:
            if len(self._allowed) >= REMEMBERED:
                self._allowed.clear()
            allowed = self._allowed[name] = next(self._matching(canonical(name)), None) is not None
        return allowed

    def _matching(self, name: str) -> Iterator[NamePattern]:
        yield from self._every
        yield from self._exact.get(name, ())
        if not self._by_suffix:
            return
        rest = name
        while True:
            for compiled in self._by_suffix.get(rest, ()):
                if compiled.matches(name):
                    yield compiled.pattern
            if not rest:
                return
            rest = rest.partition(".")[2]


class _Compiled:
    """A pattern taken apart: labels, each as the literal pieces between its stars."""

    def __init__(self, pattern: NamePattern) -> None:
        self.pattern = pattern
        self.exact = canonical(pattern.exact)
        text = canonical(pattern.pattern)
        self.every = bool(_EVERY.fullmatch(pattern.pattern))
        self.deep = text.startswith("**") and _STARS.sub("", text).startswith(".")
        labels = text.split(".") if text else []
        self.labels = [tuple(_STARS.split(label)) for label in (labels[1:] if self.deep else labels)]
        literal = 0  # labels at the end that hold no star: what names are filed under
        while literal < len(self.labels) and len(self.labels[-1 - literal]) == 1:
            literal += 1
        self.suffix = ".".join(pieces[0] for pieces in self.labels[len(self.labels) - literal :])
        if self.labels and literal == len(self.labels) and not self.deep:
            self.exact, self.labels = self.suffix, []

    def matches(self, name: str) -> bool:
        if self.every:
            return True
        if not self.labels:
            return bool(self.exact) and name == self.exact
        found = name.split(".")
        above = len(found) - len(self.labels)
        if above < 0 or (above > 0) is not self.deep:
            return False
        return all(map(_LABEL.fullmatch, found)) and all(map(_label_matches, self.labels, found[above:]))


@lru_cache(maxsize=4096)
def _compiled(pattern: NamePattern) -> _Compiled:
    return _Compiled(pattern)


def _label_matches(pieces: tuple[str, ...], label: str) -> bool:
    """Each piece at its leftmost place after the one before: if there is any way to match, this one is."""
    first, *middle = pieces
    if not middle:
        return label == first
    last = middle.pop()
    if len(label) < len(first) + len(last) or not (label.startswith(first) and label.endswith(last)):
        return False
    at, end = len(first), len(label) - len(last)
    for piece in middle:
        found = label.find(piece, at, end)
        if found < 0:
            return False
        at = found + len(piece)
    return True

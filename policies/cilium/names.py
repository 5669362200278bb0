"""DNS names as rules give them: toFQDNs, dns rules, serverNames."""

from __future__ import annotations

import re
from sys import intern

from policies.fields import Field
from policies.l7 import NamePattern
from policies.names import canonical

MAX_LENGTH = 255

_NAME = re.compile(r"[-a-z0-9_.]+")
_PATTERN = re.compile(r"[-a-z0-9_.*]+")
_STARS = re.compile(r"\*+")
NOTHING = NamePattern()
"""Stands for no name."""


def parse_name(field: Field) -> NamePattern:
    """An object with a matchName or a matchPattern."""
    field.expect_object(("matchName", "matchPattern"))
    name, pattern = field.get("matchName"), field.get("matchPattern")
    exact, wild = name.string() or "", pattern.string() or ""
    if bool(exact) is bool(wild):
        if name.value in (None, "") and pattern.value in (None, ""):
            field.problem("must have a matchName or a matchPattern")
        elif exact:
            field.problem("must not have both a matchName and a matchPattern")
        return NOTHING
    if exact:
        if "*" in exact:
            name.problem(f"{exact!r} has a wildcard: write it as matchPattern")
            return NOTHING
        return pattern_of(name, exact)
    return pattern_of(pattern, wild)


def pattern_of(field: Field, text: str) -> NamePattern:
    """A name, or a pattern of names if it has a star; in one spelling."""
    spelt = canonical(text)
    if not spelt.strip(".") or len(text) > MAX_LENGTH or not _PATTERN.fullmatch(spelt):
        field.problem(
            f"{text!r} must be a DNS name of at most {MAX_LENGTH} letters, digits, '-', '_' and '.', "
            "or a pattern with '*' for parts of it"
        )
        return NOTHING
    if "" in spelt.split("."):
        field.problem(f"{text!r} has an empty label: no name matches it")
        return NOTHING
    if "*" not in spelt:
        return NamePattern(exact=intern(spelt))
    if not spelt.strip("*"):
        return NamePattern(pattern="*")
    first, dot, rest = spelt.partition(".")
    deep = len(first) > 1 and not first.strip("*")
    head = "**" if deep else _STARS.sub("*", first)
    return NamePattern(pattern=intern(head + dot + _STARS.sub("*", rest)))

"""Names and patterns, as cilium.io/v2 documents them."""

from __future__ import annotations

import re

import pytest
from hypothesis import given
from hypothesis import strategies as st

from policies.l7 import NamePattern
from policies.names import Names, canonical, matches

# pattern, names it stands for, names it does not
PATTERNS = [
    ("*", ["a", "a.b", "cilium.io", "", ".", "odd\\032name.local", "a\\.b.c"], []),
    ("**", ["a", "a.b.c", "."], []),
    ("*.", ["a", "a.b.c", "."], []),
    ("*.cilium.io", ["sub.cilium.io", "SUB.Cilium.IO.", "_s.cilium.io"], ["cilium.io", "a.b.cilium.io", "scilium.io"]),
    ("*cilium.io", ["cilium.io", "subcilium.io", "sub-cilium.io"], ["sub.cilium.io", "cilium.io.evil.com"]),
    ("sub*.cilium.io", ["sub.cilium.io", "subdomain.cilium.io"], ["www.cilium.io", "blog.sub.cilium.io", "cilium.io"]),
    ("part*ial.com", ["partial.com", "part-extra-ial.com"], ["partial.com.org", "part.ial.com", "parial.com"]),
    ("**.cilium.io", ["app.cilium.io", "test.app.cilium.io", "a.b.c.d.cilium.io"], ["cilium.io", "appcilium.io", "io"]),
    ("***.cilium.io", ["app.cilium.io", "test.app.cilium.io"], ["cilium.io"]),
    ("**.*.io", ["app.cilium.io", "a.app.cilium.io"], ["cilium.io"]),
    ("**cilium.io", ["cilium.io", "subcilium.io"], ["a.cilium.io"]),
    ("a.**.io", ["a.b.io"], ["a.b.c.io", "a.io"]),
    ("*.*.io", ["a.b.io"], ["b.io", "a.b.c.io"]),
    ("a*b*c.io", ["abc.io", "axxbyyc.io", "abbc.io", "abcbc.io"], ["ac.io", "acb.io", "ab.c.io"]),
    ("aa*aa.io", ["aaaa.io", "aabaa.io"], ["aaa.io", "aa.io"]),
    ("*ab*ab*.io", ["abab.io", "xabyabz.io"], ["ab.io", "aba.io"]),
    ("Cilium.io.", ["cilium.io", "CILIUM.IO."], ["www.cilium.io", "cilium.io.evil", "ciliumxio"]),
    ("www.*", ["www.x"], ["www", "www.x.y"]),
    ("**.io", ["a.io", "a.b.io"], ["io"]),
    ("**.example.com", [], ["a\\.example.com", "a\\.b.example.com", "\\000.example.com", "x y.example.com"]),
    ("*.example.com", [], ["a\\.example.com", "\\.example.com"]),
]  # fmt: skip


@pytest.mark.parametrize(("text", "yes", "no"), PATTERNS, ids=[row[0] for row in PATTERNS])
def test_pattern(text: str, yes: list[str], no: list[str]) -> None:
    pattern = NamePattern(pattern=text)
    assert [name for name in yes if not matches(pattern, name)] == []
    assert [name for name in no if matches(pattern, name)] == []
    among = Names([pattern, NamePattern(exact="other.example")])
    assert [name for name in yes if pattern not in among.matching(name)] == []
    assert [name for name in no if among.allow(name)] == []


def test_an_exact_name_is_only_itself() -> None:
    pattern = NamePattern(exact="www.cilium.io")
    assert matches(pattern, "WWW.cilium.io.")
    assert not any(matches(pattern, name) for name in ("cilium.io", "a.www.cilium.io", "wwwxcilium.io", "", "*"))


def test_a_pattern_of_nothing_stands_for_none() -> None:
    assert not matches(NamePattern(), "")
    assert not matches(NamePattern(), "a")
    assert not Names([NamePattern()]).allow("")
    assert not Names([]).allow("a.b")


def test_all_that_stand_for_a_name() -> None:
    texts = ["*", "*.b.c", "**.c", "a.*.c", "a*.b.c", "*.x.c"]
    names = Names([NamePattern(exact="a.b.c"), *(NamePattern(pattern=text) for text in texts)])
    assert {str(one) for one in names.matching("A.b.c.")} == {"a.b.c", *texts} - {"*.x.c"}


def test_a_pattern_of_many_stars_takes_no_longer() -> None:
    """Backtracking would not end."""
    pattern = NamePattern(pattern="*a" * 60 + "b.c")
    assert not matches(pattern, "a" * 63 + ".c")


LABELS = st.text("ab-_", min_size=1, max_size=4)
TEXTS = st.lists(st.text("ab*", min_size=1, max_size=4), min_size=1, max_size=4).map(".".join)


def as_expression(pattern: str) -> str:
    """The same rule as a regular expression, label by label."""
    if set(pattern) == {"*"}:
        return ".*"
    lead = ""
    if stars := re.match(r"\*{2,}\.", pattern):
        lead, pattern = r"([-a-z0-9_]+\.)+", pattern[stars.end() :]
    return lead + re.sub(r"\*+", "[-a-z0-9_]*", pattern.replace(".", r"\."))


@given(st.lists(TEXTS, max_size=5), st.lists(LABELS, min_size=1, max_size=5).map(".".join))
def test_as_regular_expressions_say(texts: list[str], name: str) -> None:
    expected = {text for text in texts if re.fullmatch(as_expression(text), name)}
    patterns = [NamePattern(pattern=text) for text in texts]
    assert {one.pattern for one in patterns if matches(one, name)} == expected
    assert {one.pattern for one in Names(patterns).matching(name)} == expected


def test_canonical() -> None:
    assert [canonical(name) for name in ("A.B.", "a", ".", "")] == ["a.b", "a", "", ""]

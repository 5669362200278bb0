"""Regular expressions of HTTP rules: what is taken, how it is spelt for both dialects, what is refused and why."""

from __future__ import annotations

import re

import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from policies.cilium.regex import MAX_LENGTH, MAX_SIZE, portable

TAKEN = [
    ("", ""),
    ("GET|HEAD", "GET|HEAD"),
    ("/public/.*", "/public/.*"),
    (r"/v\d+/item-[a-z0-9_-]+", r"/v\d+/item-[a-z0-9_\-]+"),
    ("^/exact$", "^/exact$"),
    (r"foo\.bar\.com", r"foo\.bar\.com"),
    (r"\/a\-b", "/a-b"),
    ("[[:alpha:]_][[:alnum:]_]*", "[A-Za-z_][0-9A-Za-z_]*"),
    ("[]x]", r"[\]x]"),
    ("[^]x]", r"[^\]x]"),
    ("[[x]", r"[\[x]"),
    ("[a&&b]", r"[a\&\&b]"),
    ("(?i)/Mixed", "(?i)/Mixed"),
    ("/(?i:mixed)/x", "/(?i:mixed)/x"),
    ("(?P<id>x)+?", "(?P<id>x)+?"),
    ("/{id}", r"/\{id\}"),
    ("a{2,5}b{3,}", "a{2,5}b{3,}"),
    (r"\x41[\x30-\x39]", "A[0-9]"),
    (r"\s\S", r"[\x09\x0a\x0c\x0d ][^\x09\x0a\x0c\x0d ]"),
    ("[[:punct:]][[:graph:][:blank:]]", r"[!-/:-@\[-`{-\~][!-\~\x09 ]"),
    ("(|a)|()", "(|a)|()"),
]


@pytest.mark.parametrize(("given_pattern", "spelt"), TAKEN)
def test_taken(given_pattern: str, spelt: str) -> None:
    assert portable(given_pattern) == spelt
    assert portable(spelt) == spelt


REFUSED = [
    ("a(?=b)", "look-ahead"),
    ("(?<!a)b", "look-ahead"),
    (r"(a)\1", "back-references"),
    ("(?P=x)", "unknown kind of group"),
    ("(?>a)", "unknown kind of group"),
    ("a++", "one repetition after another"),
    ("a**", "one repetition after another"),
    ("a{2}{3}", "one repetition after another"),
    ("*a", "nothing to repeat"),
    ("a|*", "nothing to repeat"),
    ("{3}", "nothing to repeat"),
    ("^*", "anchor"),
    ("a{,3}", "without its first number"),
    ("a{1001}", "at most 1000"),
    ("a{3,2}", "in order"),
    ("((a{10}){20}){30}", "nested counts"),
    ("(" * 200 + ")" * 200, "nested too deeply"),
    ("(a", "'(' without ')'"),
    ("a)", "')' without '('"),
    ("[a", "'[' without ']'"),
    ("[", "'[' without ']'"),
    ("[z-a]", "wrong order"),
    (r"[a-\d]", "a range to a class"),
    ("[a-c-e]", "in the middle"),
    ("[[:word:]-[:digit:]]", "in the middle"),
    ("[[:nope:]]", "no class is called"),
    ("\\", "a backslash at the end"),
    (r"\z", r"\z is not supported"),
    (r"\Z", r"\Z is not supported"),
    (r"\pL", r"\p is not supported"),
    (r"\Qa\E", r"\Q is not supported"),
    (r"\y", "means nothing"),
    ("a(?i)b", "flags that are not at the start"),
    ("(?P<a>x)(?P<a>y)", "two groups named"),
    ("/caf\u00e9", "printable ASCII"),
    ("/a\n", "printable ASCII"),
    ("a" * (MAX_LENGTH + 1), "at most 1024"),
    ("(.*.*.*.*.*.*.*.*){500}", "too large"),
]


@pytest.mark.parametrize(("pattern", "why"), REFUSED)
def test_refused(pattern: str, why: str) -> None:
    with pytest.raises(ValueError, match=re.escape(why)):
        portable(pattern)


PIECES = st.sampled_from(
    [*"abc/.*+?|()[]^$-{},3:\\", "(?:", "(?i)", "(?P<n>", "{2}", "{2,4}", "[a-z]", "[[:alpha:]]", r"\d", r"\S", r"\.",
     "(?=", "[^/]", "&&", "\\x2f"]
)  # fmt: skip


@settings(max_examples=500)
@given(pattern=st.lists(PIECES, max_size=12).map("".join))
@example("[[:alpha:]]{2}(?:a|b)*?$")
def test_whatever_is_written_is_refused_or_spelt_once(pattern: str) -> None:
    """What is taken compiles in Python, is taken again as it is, and stays small."""
    try:
        spelt = portable(pattern)
    except ValueError as error:
        assert str(error)
        return
    re.compile(spelt, re.ASCII)
    assert portable(spelt) == spelt
    assert len(spelt) < MAX_SIZE


SIMPLE = st.recursive(
    st.sampled_from(["a", "b", "/", ".", "[ab]", "[^a]", r"\w", "[[:alpha:]]"]),
    lambda inner: st.one_of(
        st.tuples(inner, inner).map("".join),
        st.tuples(inner, inner).map(lambda two: f"({two[0]}|{two[1]})"),
        st.tuples(inner, st.sampled_from(["*", "?", "{1,2}"])).map(lambda both: f"(?:{both[0]}){both[1]}"),
    ),
    max_leaves=6,
)


@given(pattern=SIMPLE, value=st.text("ab/_1", max_size=6))
def test_the_spelling_means_what_was_written(pattern: str, value: str) -> None:
    meant = re.compile(pattern.replace("[[:alpha:]]", "[A-Za-z]"), re.ASCII)
    assert bool(re.fullmatch(portable(pattern), value, re.ASCII)) is bool(meant.fullmatch(value))

"""What Envoy is told of names and texts says the same as policies does."""

from __future__ import annotations

import os
import random
import re

import pytest

from l7proxy.matching import NEVER, address_text, name_regex, whole
from policies.l7 import NamePattern
from policies.names import matches


def test_patterns_of_names_say_what_policies_says() -> None:
    seed = int(os.environ.get("GATEHOUSE_SEED") or random.SystemRandom().randrange(1 << 32))
    print(f"GATEHOUSE_SEED={seed}")
    rng = random.Random(seed)
    for _ in range(20_000):
        labels = ["".join(rng.choice("ab*-_") for _ in range(rng.randint(1, 3))) for _ in range(rng.randint(1, 3))]
        text = rng.choice(("", "", "**.", "*.")) + ".".join(labels)
        name = ".".join(
            "".join(rng.choice("aab-_%") for _ in range(rng.randint(1, 3))) for _ in range(rng.randint(1, 4))
        )
        pattern = NamePattern(pattern=text) if "*" in text else NamePattern(exact=text)
        assert bool(re.fullmatch(name_regex(pattern), name)) is matches(pattern, name), (text, name)


def test_pattern_with_an_empty_label_is_for_no_name() -> None:
    assert name_regex(NamePattern(pattern="a..*")) == NEVER


@pytest.mark.parametrize(
    ("expression", "kind", "value"),
    [
        ("GET", "exact", "GET"),
        ("/public/.*", "prefix", "/public/"),
        ("", "exact", ""),
        (".*", "safe_regex", None),
        ("/a.b", "safe_regex", None),
        ("/a.*b", "safe_regex", None),
        ("/a/.*.*", "safe_regex", None),
        ("/a+.*", "safe_regex", None),
        ("/a/.*?", "safe_regex", None),
        ("GET|PUT", "safe_regex", None),
        ("/a/.*|/b", "safe_regex", None),
        ("(?i)/a", "safe_regex", None),
    ],
)
def test_regular_expressions_that_need_no_engine(expression: str, kind: str, value: str | None) -> None:
    matcher = whole(expression)
    assert matcher.WhichOneof("match_pattern") == kind
    assert (matcher.safe_regex.regex if value is None else getattr(matcher, kind)) == (value or expression)


def test_addresses_are_written_as_envoy_does() -> None:
    assert address_text(bytes([192, 0, 2, 1])) == "192.0.2.1"
    assert address_text(bytes(10) + b"\xff\xff" + bytes([192, 0, 2, 1])) == "192.0.2.1"
    assert address_text(bytes.fromhex("20010db8000000000000000000000001")) == "2001:db8::1"

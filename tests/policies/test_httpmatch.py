"""The oracle of HTTP rules: what a path is taken to be, and which rule lets a request pass."""

from __future__ import annotations

import pytest

from policies.httpmatch import Request, allows, ambiguous, normalised, passes
from policies.l7 import L7, Demands, HeaderMatch, HttpRule, Mismatch, NamePattern, TlsContext

PATHS = {
    "/a": "/a",
    "/a/../b": "/b",
    "/../../a": "/a",
    "/a/./b/.": "/a/b/",
    "/a/..": "/",
    "/a//b": "/a/b",
    "/a//../b": "/a/b",
    "//": "//",
    "/%2e%2E/a": "/a",
    "/a/..;x=1/b": "/b",
    "/a/%2e%2e;/b": "/a/..;/b",
    "/%41%7E%2d": "/A~-",
    "/a%20b": "/a%20b",
    "/a\\..\\b": "/b",
    "/{a}": "/%7Ba%7D",
    "/a?b/../c%2f": "/a?b/../c%2f",
    "/%zz%": "/%zz%",
    "/...": "/...",
}
REFUSED = (
    "",
    "a",
    "*",
    "http://a/",
    "/a#b",
    "/a?b#c",
    "/a%2fb",
    "/a%5Cb",
    "/a%00",
    "/a b",
    "/a\x00",
    "/\xe9",
    "/a\x7f",
)
AMBIGUOUS = (
    "//",
    "/..;/a",
    "/a/.;x",
    "/..%3b/a",
    "/%c0%ae",
    "/%C1%9c",
    "/%e0%80%ae",
    "/%f0%80%80%ae",
    "/%252e",
    "/%255C",
)
PLAIN = ("/", "/a;v=1", "/a?//..;", "/...;x", "/%c3%a9", "/%e2%82%ac", "/%25", "/%2541", "/a/")


@pytest.mark.parametrize(("path", "judged"), PATHS.items())
def test_normalised(path: str, judged: str) -> None:
    assert normalised(path) == judged


@pytest.mark.parametrize("path", REFUSED)
def test_refused(path: str) -> None:
    assert normalised(path) is None
    assert not allows(frozenset({L7(http=frozenset({HttpRule()}))}), Request("GET", path, "a"))


def test_ambiguous() -> None:
    assert [path for path in AMBIGUOUS if not ambiguous(path)] == []
    assert [path for path in PLAIN if ambiguous(path)] == []


def http(*rules: HttpRule) -> Demands:
    return frozenset({L7(http=frozenset(rules))})


def test_all_of_a_rule_and_one_of_the_rules() -> None:
    rule = HttpRule("GET|PUT", "/v[0-9]+/.*", "api\\.test", (HeaderMatch("x-team", "a"), HeaderMatch("x-any")))
    good = Request("GET", "/v1/x", "API.test:8080", (("x-team", "a"), ("x-any", "")))
    assert allows(http(rule, HttpRule("DELETE")), good)
    assert not allows(http(rule), Request("GETX", good.path, good.host, good.headers))
    assert not allows(http(rule), Request("GET", "/x/v1/x", good.host, good.headers))
    assert not allows(http(rule), Request("GET", good.path, "api.test.evil", good.headers))
    assert not allows(http(rule), Request("GET", good.path, good.host, good.headers[:1]))
    assert not allows(http(rule), Request("GET", good.path, good.host, (*good.headers, ("x-team", "b"))))
    assert not allows(http(rule), Request("GET", good.path, good.host, (*good.headers, ("x_team", "a"))))
    assert not allows(http(), good)
    assert not allows(http(HttpRule()), Request("CONNECT", "/", "a"))


def test_ambiguous_path_passes_where_no_rule_asks_for_it() -> None:
    request = Request("GET", "/%c0%ae/x", "a")
    assert allows(http(HttpRule("GET")), request)
    assert not allows(http(HttpRule("GET", "/.*")), request)


def test_mismatch_that_is_no_refusal() -> None:
    for mismatch in Mismatch:
        rule = HttpRule(headers=(HeaderMatch("x", "1", mismatch),))
        assert allows(http(rule), Request("GET", "/", "a")) is (mismatch is not Mismatch.FAIL)


def test_within_tls_and_in_the_clear() -> None:
    context = TlsContext("default", "web")
    names = frozenset({NamePattern(pattern="*.a.test")})
    within = frozenset({L7(http=frozenset({HttpRule()}), terminating=context, server_names=names)})
    assert allows(within, Request("GET", "/", "x", encrypted=True, server_name="b.a.test"))
    assert not allows(within, Request("GET", "/", "x", encrypted=True, server_name="a.test"))
    assert not allows(within, Request("GET", "/", "x", encrypted=True))
    assert not allows(within, Request("GET", "/", "x"))
    assert not allows(http(HttpRule()), Request("GET", "/", "x", encrypted=True))


def test_tls_that_is_passed_on() -> None:
    demands: Demands = frozenset({L7(server_names=frozenset({NamePattern(exact="a.test")})), *http(HttpRule())})
    assert passes(demands, "a.test")
    assert passes(demands, "A.test")
    assert not passes(demands, "b.test")
    assert not passes(demands, "")
    assert not passes(frozenset({L7(server_names=frozenset())}), "a.test")

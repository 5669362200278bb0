"""Random HTTP rules and random requests: what a real Envoy lets through is what the oracle says, and it reaches the
server as it was judged."""

from __future__ import annotations

import os
import random
from collections.abc import Iterator

import pytest
from envoy_at import SERVER_V4, EnvoyPath
from http_client import Connection
from http_server import Server

from policies.httpmatch import Request, allows, normalised
from policies.l7 import L7, Demands, HeaderMatch, HttpRule

RULE_SETS, REQUESTS = 50, 60
FIRST_PORT = 8000

METHODS = ("", "GET", "POST", "GET|POST", "P.*", "[A-Z]+", "DELETE")
PATHS = (
    "",
    "/",
    "/.*",
    "/public",
    "/public/.*",
    "/public/[a-z]+",
    "/public/a|/admin/b",
    r"/v1/\d+(?:/.*)?",
    "/admin/(?:health|ready)",
    r"/public/[^?]*",
    r"/public/a\?x=1",
    r"/public/.*\?.*x=.*",
    "/a%20b",
    "/public/a;v=1",
    ".*admin.*",
)
HOSTS = ("", "example\\.com", ".*\\.example\\.com", "[ab]\\.test", "EXAMPLE.com", "example.com:8080", "a|b.test")
HEADERS = (
    HeaderMatch("x-token"),
    HeaderMatch("x-token", "a"),
    HeaderMatch("x-token", "a,b"),
    HeaderMatch("x-user", "me"),
    HeaderMatch("x-empty", ""),
)
SEGMENTS = (
    *("public", "admin", "a", "b", "v1", "7", "health", "ready", "..", ".", "", "%2e", "%2E%2e", "%2f", "%5C", "\\"),
    *("..;", ".;x", "..;a=b", ";x", "a;v=1", "%00", "%41", "%7e", "%3b", "..%3b", "%c0%ae%c0%ae", "%252e%252e", "%25"),
    *("a%20b", "%2e%2e%2fadmin", "#", "#x", "%", "%zz", "%2", "a|b", "[x]", "{y}", "%E0%80%AE", "...", "a..", "^", '"'),
)
QUERIES = ("", "", "", "", "?", "?x=1", "?x=1&y=..", "?/../admin", "?a=%2f", "?a?b", "?x=%00", "?#", "?%2e%2e;")
AUTHORITIES = ("example.com", "example.com:8080", "EXAMPLE.com", "www.example.com", "a.test:80", "b.test", "x", "a")
SENT_HEADERS = (
    ("x-token", "a"),
    ("x-token", "b"),
    ("x-token", "a,b"),
    ("x_token", "a"),
    ("x-user", "me"),
    ("x-user", "you"),
    ("x-empty", ""),
)


def rule(rng: random.Random) -> HttpRule:
    headers = rng.sample(HEADERS, rng.choice((0, 0, 0, 0, 0, 1, 2)))
    method, host = rng.choice((*METHODS, "", "", "")), rng.choice((*HOSTS, *[""] * 12))
    return HttpRule(method, rng.choice(PATHS), host, tuple(sorted_(headers)))


def sorted_(headers: list[HeaderMatch]) -> list[HeaderMatch]:
    return sorted(headers, key=lambda header: (header.name, header.value or ""))


def demands(rng: random.Random) -> Demands:
    return frozenset(
        L7(http=frozenset(rule(rng) for _ in range(rng.choice((0, 1, 2, 3, 5))))) for _ in range(rng.choice((1, 1, 2)))
    )


def request(rng: random.Random) -> Request:
    path = "".join(
        f"/{rng.choice(SEGMENTS[: rng.choice((4, 8, 16, len(SEGMENTS)))])}" for _ in range(rng.randint(1, 4))
    )
    headers = rng.sample(SENT_HEADERS, rng.choice((0, 0, 0, 1, 2, 3)))
    return Request(
        rng.choice(("GET", "GET", "POST", "PUT", "DELETE", "PATCH")),
        path + rng.choice(QUERIES),
        rng.choice(AUTHORITIES),
        tuple(headers),
    )


@pytest.fixture(scope="module")
def path(root: None) -> Iterator[EnvoyPath]:
    with EnvoyPath() as path:
        yield path


def test_envoy_lets_through_what_the_oracle_does(path: EnvoyPath) -> None:
    seed = int(os.environ.get("GATEHOUSE_SEED") or random.SystemRandom().randrange(1 << 32))
    print(f"GATEHOUSE_SEED={seed}")
    rng = random.Random(seed)
    sets = {FIRST_PORT + at: demands(rng) for at in range(RULE_SETS)}
    path.serve(sets)
    passed = 0
    wrong = []
    for port, asked in sets.items():
        with Server(path.server, SERVER_V4, port) as server:
            connection = Connection(path.connect(port))
            for _ in range(REQUESTS):
                sent = request(rng)
                headers = [f"{name}: {value}" for name, value in sent.headers]
                answer = connection.get(sent.path, *headers, method=sent.method, host=sent.host)
                seen = [(one.method, one.target, one.header("host")) for one in server.take()]
                expected = [(sent.method, normalised(sent.path), [sent.host])] if allows(asked, sent) else []
                passed += bool(expected)
                if seen != expected or (answer.status == 200) is not bool(expected):
                    wrong.append((sent, answer.status, seen, expected, asked))
                if answer.status == 0 or answer.header("connection") == "close":
                    connection.__exit__()
                    connection = Connection(path.connect(port))
            connection.__exit__()
    print(f"{passed} of {RULE_SETS * REQUESTS} allowed")
    assert not wrong, wrong[:5]
    assert passed > RULE_SETS * REQUESTS // 25, "hardly anything was allowed: this says little"

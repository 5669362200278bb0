"""Whether demands let a request pass: the oracle of HTTP rules, written apart from what Envoy is told.

A request is judged by what a server would make of it. What servers read in different ways is refused, as far as a rule
asks for the path at all.
"""

from __future__ import annotations

import re
from collections.abc import Iterable
from functools import lru_cache

import msgspec

from policies.l7 import L7, Demands, HttpRule, Mismatch
from policies.names import matches

UNRESERVED = frozenset(b"ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789-._~")
_ESCAPED = re.compile(r"%([0-9A-Fa-f]{2})")
_NOT_IN_PATHS = re.compile(r'["<>^`{|}]')
_DOTS = re.compile(r"(\.\.?);.*|((?:\.|%2e){1,2})", re.IGNORECASE)
_PORT = re.compile(r":[0-9]+\Z")


class Request(msgspec.Struct, frozen=True):
    """As it comes: `path` is its target in origin form, not normalised, `host` its authority, with the port if it is
    there; header names in lower case. `encrypted`: it came in TLS that the proxy ended; `server_name`: the SNI of it.
    """

    method: str
    path: str
    host: str
    headers: tuple[tuple[str, str], ...] = ()
    encrypted: bool = False
    server_name: str = ""


def allows(demands: Demands, request: Request) -> bool:
    """Whether one rule of one alternative lets the request pass. RE2 expressions are read as Python's."""
    path = normalised(request.path)
    if path is None or request.method == "CONNECT":
        return False
    if any("_" in name for name, _ in request.headers) and _judges_headers(demands):
        return False  # X_Token may be X-Token to the server
    return any(_alternative(one, request, path) for one in demands)


def passes(demands: Demands, server_name: str) -> bool:
    """Whether a TLS connection is passed on as it comes. `server_name` "": it asks for none."""
    return any(
        one.http is None and one.dns is None and one.terminating is None and _named(one, server_name)
        for one in demands
        if one.server_names is not None
    )


def normalised(target: str) -> str | None:
    """The path with its query as it is judged and sent on; None where no server is to see it.

    RFC 3986 6.2.2 (percent-encoding of unreserved characters, dot segments, those with a parameter too), what no path
    may hold percent-encoded, slashes in a row as one, backslashes as slashes. Refused: fragments, what is not printable
    ASCII, escaped slashes, backslashes and NUL, what does not begin with a slash.
    """
    if not target.startswith("/") or "#" in target or not all("!" <= char <= "~" for char in target):
        return None
    path, mark, query = target.partition("?")
    if re.search(r"%(?:2[fF]|5[cC]|00)", path):
        return None
    path = _ESCAPED.sub(_unreserved, _without_dots(path.replace("\\", "/")))
    path = _NOT_IN_PATHS.sub(lambda found: f"%{ord(found[0]):02X}", path)
    path = path[:2] if not path.strip("/") else re.sub("/+", "/", path)  # Envoy leaves slashes alone as two
    return path + mark + query


def ambiguous(path: str) -> bool:
    """Whether servers differ about a normalised path: dot segments with parameters, overlong UTF-8, double escapes, two
    slashes."""
    segments = path.partition("?")[0].split("/")
    if "" in segments[1:-1]:
        return True
    if any(re.fullmatch(r"\.\.?(?:;|%3b).*", segment, re.IGNORECASE) for segment in segments):
        return True
    octets = [int(found, 16) for found in re.findall(r"%(?=([0-9A-Fa-f]{2}))", "/".join(segments))]
    if any(octet in (0xC0, 0xC1) for octet in octets):
        return True
    text = "/".join(segments).lower()
    return bool(re.search(r"%e0%[89]|%f0%8|%25(?:00|2e|2f|5c)", text))


def _alternative(one: L7, request: Request, path: str) -> bool:
    if one.dns is not None or (one.terminating is not None) is not request.encrypted:
        return False
    if not request.encrypted and (one.server_names is not None or one.http is None):
        return False
    if one.server_names is not None and not _named(one, request.server_name):
        return False
    return one.http is None or any(_rule(rule, request, path) for rule in one.http)


def _named(one: L7, server_name: str) -> bool:
    return bool(server_name) and any(matches(pattern, server_name) for pattern in one.server_names or ())


def _rule(rule: HttpRule, request: Request, path: str) -> bool:
    if rule.method and not _regex(rule.method).fullmatch(request.method):
        return False
    if rule.path and (ambiguous(path) or not _regex(rule.path).fullmatch(path)):
        return False
    if rule.host and not any(_regex(rule.host, True).fullmatch(host) for host in _hosts(request.host)):
        return False
    return all(_header(request.headers, one.name, one.value) for one in rule.headers if one.mismatch is Mismatch.FAIL)


def _hosts(authority: str) -> Iterable[str]:
    """A rule may name the port or not."""
    return authority, _PORT.sub("", authority)


def _header(headers: tuple[tuple[str, str], ...], name: str, value: str | None) -> bool:
    """A header that is there several times is one list (RFC 9110 5.3)."""
    values = [text for known, text in headers if known == name]
    return bool(values) and (value is None or ",".join(values) == value)


def _judges_headers(demands: Demands) -> bool:
    rules = (rule for one in demands for rule in one.http or ())
    return any(header.mismatch is Mismatch.FAIL for rule in rules for header in rule.headers)


@lru_cache(maxsize=1024)
def _regex(expression: str, ignore_case: bool = False) -> re.Pattern[str]:
    return re.compile(expression, re.ASCII | (re.IGNORECASE if ignore_case else 0))


def _unreserved(found: re.Match[str]) -> str:
    octet = int(found[1], 16)
    return chr(octet) if octet in UNRESERVED else found[0]


def _without_dots(path: str) -> str:
    """RFC 3986 5.2.4 for a path that begins with a slash; a slash in a row is a segment of its own here."""
    kept: list[str] = []
    segments = path.split("/")[1:]
    for at, segment in enumerate(segments):
        if not (dots := _DOTS.fullmatch(segment)):
            kept.append(segment)
            continue
        if kept and _unescaped(dots[1] or dots[2]) == "..":
            kept.pop()
        if at == len(segments) - 1:
            kept.append("")
    return "/" + "/".join(kept)


def _unescaped(text: str) -> str:
    return _ESCAPED.sub(_unreserved, text)

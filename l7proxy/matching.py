"""Envoy's generic matching (xds.type.matcher.v3): trees whose first match decides. Pure protobuf building."""

from __future__ import annotations

import re
from collections.abc import Sequence
from ipaddress import IPv4Address, ip_address
from typing import Any

from envoy.extensions.matching.common_inputs.network.v3 import network_inputs_pb2 as network
from envoy.type.matcher.v3 import http_inputs_pb2 as http
from google.protobuf import any_pb2
from xds.core.v3 import extension_pb2
from xds.type.matcher.v3 import matcher_pb2, string_pb2

from policies.l7 import NamePattern

Predicate = matcher_pb2.Matcher.MatcherList.Predicate
OnMatch = matcher_pb2.Matcher.OnMatch
Matcher = matcher_pb2.Matcher

_PLAIN = re.compile(r"[A-Za-z0-9/_~%=&@,:;!-]*")
_MAPPED = bytes(10) + b"\xff\xff"

LABEL = "[-a-z0-9_]"
"""What a wildcard stands for within a label (policies.names)."""
NEVER = r"[^\x00-\x{10FFFF}]"
"""RE2 for what no text is."""


def packed(message: Any) -> Any:
    wrapped = any_pb2.Any()
    wrapped.Pack(message, deterministic=True)
    return wrapped


def extension(name: str, message: Any) -> Any:
    return extension_pb2.TypedExtensionConfig(name=name, typed_config=packed(message))


# ---- what is looked at ---------------------------------------------------------------------------------------


def header(name: str) -> Any:
    return extension(name, http.HttpRequestHeaderMatchInput(header_name=name))


SERVER_NAME = extension("server-name", network.ServerNameInput())
TRANSPORT = extension("transport", network.TransportProtocolInput())
SOURCE = extension("source", network.DirectSourceIPInput())
DESTINATION = extension("destination", network.DestinationIPInput())
PORT = extension("port", network.DestinationPortInput())

# ---- what it is compared with --------------------------------------------------------------------------------


def exact(text: str, *, ignore_case: bool = False) -> Any:
    return string_pb2.StringMatcher(exact=text, ignore_case=ignore_case)


def prefix(text: str) -> Any:
    return string_pb2.StringMatcher(prefix=text)


def regex(expression: str) -> Any:
    """Of the whole text (RE2)."""
    engine = string_pb2.StringMatcher().safe_regex.google_re2
    return string_pb2.StringMatcher(safe_regex={"google_re2": engine, "regex": expression})


def whole(expression: str) -> Any:
    """As `regex`, by simpler means where the expression is text, or text and anything after it: these are most."""
    if _PLAIN.fullmatch(expression):
        return exact(expression)
    head, any_rest, tail = expression.partition(".*")
    if any_rest and head and not tail and _PLAIN.fullmatch(head):
        return prefix(head)
    return regex(expression)


PRESENT = regex(r"(?s).*")


def name_regex(pattern: NamePattern) -> str:
    """The names a pattern stands for as policies.names has it, for names in lower case; the root is none."""
    if pattern.exact:
        return re.escape(pattern.exact.lower().removesuffix(".")) + r"\.?"
    text = pattern.pattern.lower()
    if re.fullmatch(r"\*+\.?", text):
        return ".+"
    text = text.removesuffix(".")
    above = re.match(r"\*\*+\.", text)
    labels = [re.sub(r"\*+", "*", label) for label in text[above.end() if above else 0 :].split(".")]
    if "" in labels:
        return NEVER
    deep = rf"(?:{LABEL}+\.)+" if above else ""
    return deep + r"\.".join(map(_label_regex, labels)) + r"\.?"


def _label_regex(label: str) -> str:
    """A label is never empty: a star alone stands for one character at least."""
    return f"{LABEL}+" if label == "*" else f"{LABEL}*".join(map(re.escape, label.split("*")))


def address_text(address: bytes) -> str:
    """As Envoy writes it."""
    if len(address) == 16 and address.startswith(_MAPPED):
        address = address[12:]
    found = ip_address(address)
    return str(found) if isinstance(found, IPv4Address) else found.compressed


# ---- predicates and trees ------------------------------------------------------------------------------------


def is_(what: Any, value: Any) -> Any:
    return Predicate(single_predicate=Predicate.SinglePredicate(input=what, value_match=value))


def not_(predicate: Any) -> Any:
    return Predicate(not_matcher=predicate)


def all_of(predicates: Sequence[Any]) -> Any:
    if len(predicates) == 1:
        return predicates[0]
    return Predicate(and_matcher=Predicate.PredicateList(predicate=predicates))


def any_of(predicates: Sequence[Any]) -> Any:
    if len(predicates) == 1:
        return predicates[0]
    return Predicate(or_matcher=Predicate.PredicateList(predicate=predicates))


def then(name: str, message: Any) -> Any:
    return OnMatch(action=extension(name, message))


def into(tree: Any) -> Any:
    return OnMatch(matcher=tree)


def when(predicate: Any, on_match: Any) -> Any:
    return Matcher.MatcherList.FieldMatcher(predicate=predicate, on_match=on_match)


def first_of(branches: Sequence[Any], otherwise: Any) -> Any:
    """The first branch whose predicate holds; none: `otherwise`. A tree of this kind always decides, so that one inside
    another never falls back to what comes after it."""
    if not branches:
        return Matcher(on_no_match=otherwise)
    return Matcher(matcher_list=Matcher.MatcherList(matchers=branches), on_no_match=otherwise)

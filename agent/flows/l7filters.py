"""What `observe` can ask of requests, names and TLS connections. Pure.

Makers take a value as it was written. They raise ValueError, whose text says what to give.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence
from typing import Any

from agent.flows.flow import Flow
from agent.flows.record import L7_EVENT
from l7proxy.records import Dns, Http, Tls
from policies.l7 import NamePattern
from policies.model import Protocol
from policies.names import canonical, matches

FlowTest = Callable[[Flow], bool]
EventTest = Callable[[Any], bool]

GRPC = "gRPC"
KINDS: dict[str, FlowTest] = {
    "HTTP": lambda flow: isinstance(flow.l7, Http),
    "GRPC": lambda flow: isinstance(flow.l7, Http) and flow.l7.protocol == GRPC,
    "DNS": lambda flow: isinstance(flow.l7, Dns),
    "TLS": lambda flow: isinstance(flow.l7, Tls) or (isinstance(flow.l7, Http) and bool(flow.l7.sni)),
}
"""What --protocol knows besides the protocols of packets."""

_CLASS = re.compile(r"([1-5])xx", re.IGNORECASE)
_NAME = re.compile(r"[A-Za-z0-9_.*-]+")
_CODES = re.compile(r"(\d{3})(?:-(\d{3}))?", re.ASCII)


def is_l7(event: Any) -> bool:
    return bool(event.type == L7_EVENT)


def by_method(text: str) -> FlowTest:
    wanted = text.upper()
    return lambda flow: isinstance(flow.l7, Http) and flow.l7.method.upper() == wanted


def by_path(text: str) -> FlowTest:
    try:
        found = re.compile(text).search
    except re.error as error:
        raise ValueError(f"give a regular expression: {error}") from None
    return lambda flow: isinstance(flow.l7, Http) and found(flow.l7.path) is not None


def by_status(text: str) -> FlowTest:
    first, last = _statuses(text)
    return lambda flow: isinstance(flow.l7, Http) and first <= flow.l7.status <= last


def _statuses(text: str) -> tuple[int, int]:
    if match := _CLASS.fullmatch(text):
        return int(match[1]) * 100, int(match[1]) * 100 + 99
    match = _CODES.fullmatch(text)
    if match is None or int(match[1]) > int(match[2] or match[1]):
        raise ValueError("give 403, 4xx or 400-499")
    return int(match[1]), int(match[2] or match[1])


def by_query(text: str) -> FlowTest:
    if not _NAME.fullmatch(text):
        raise ValueError("give a DNS name; * stands for any characters of one label, a leading **. for any labels")
    pattern = NamePattern(pattern=canonical(text)) if "*" in text else NamePattern(exact=canonical(text))
    return lambda flow: isinstance(flow.l7, Dns) and matches(pattern, flow.l7.query)


def protocols(values: Sequence[str]) -> tuple[EventTest, FlowTest | None]:
    """Tests of --protocol: packets by number, what proxies judged by kind. Of the event alone, where that will do."""
    numbers = frozenset(_number(text) for text in values if text.upper() not in KINDS)
    kinds = [KINDS[text.upper()] for text in values if text.upper() in KINDS]
    if not kinds:
        return (lambda event: event.protocol in numbers), None
    by_name = {Protocol.BY_NUMBER.get(number, str(number)) for number in numbers}
    return (
        lambda event: event.type == L7_EVENT or event.protocol in numbers,
        lambda flow: flow.protocol in by_name or any(is_kind(flow) for is_kind in kinds),
    )


def _number(text: str) -> int:
    by_name = {name.upper(): number for number, name in Protocol.BY_NUMBER.items()}
    if text.upper() in by_name:
        return by_name[text.upper()]
    if not text.isascii() or not text.isdigit() or int(text) > 255:
        raise ValueError(f"give one of {', '.join([*Protocol.BY_NUMBER.values(), *KINDS])}, or a number from 0 to 255")
    return int(text)

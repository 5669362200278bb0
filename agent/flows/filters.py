"""What `observe` can ask for. Pure.

Values of one option are alternatives, different options must all hold. Those that need no names are decided on the
event itself, before a record is built: that is what makes looking for little in a flood cheap.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Mapping, Sequence
from datetime import datetime
from typing import Any

import msgspec

from agent.datapath.abi import Abi
from agent.flows import l7filters
from agent.flows.eventfilters import event_makers
from agent.flows.flow import Flow
from agent.flows.l7filters import EventTest, FlowTest
from agent.flows.recordfilters import FLOW_TESTS, OF_L7


class FilterError(ValueError):
    """A filter that cannot be understood; the message names the option and says what it takes."""


class Filter(msgspec.Struct, frozen=True):
    """`time`, `event` and `flow` must all hold. Times are wall-clock ns, `since` inclusive, `until` exclusive."""

    event_tests: tuple[EventTest, ...] = ()
    flow_tests: tuple[FlowTest, ...] = ()
    since_ns: int | None = None
    until_ns: int | None = None

    @property
    def is_timed(self) -> bool:
        return self.since_ns is not None or self.until_ns is not None

    def time(self, wall_ns: int) -> bool:
        if self.since_ns is not None and wall_ns < self.since_ns:
            return False
        return self.until_ns is None or wall_ns < self.until_ns

    def event(self, event: Any) -> bool:
        for test in self.event_tests:  # noqa: SIM110  # three times as fast as all() over a generator
            if not test(event):
                return False
        return True

    def flow(self, flow: Flow) -> bool:
        for test in self.flow_tests:  # noqa: SIM110
            if not test(flow):
                return False
        return True


class Option(msgspec.Struct, frozen=True):
    """One option of `observe`: --NAME with `_` as `-`. All may be given several times, but since and until."""

    name: str
    metavar: str
    help: str


OPTIONS: tuple[Option, ...] = (
    Option("verdict", "VERDICT", "FORWARDED, REDIRECTED (to a proxy), DROPPED or REFUSED"),
    Option("drop_reason", "REASON", "why it was dropped, such as POLICY_INGRESS"),
    Option("type", "TYPE", "new, end, drop or l7"),
    Option("pod", "[NS/]NAME", "either side is this pod; * is a wildcard, NS/ every pod of the namespace"),
    Option("from_pod", "[NS/]NAME", "the source is this pod"),
    Option("to_pod", "[NS/]NAME", "the destination is this pod"),
    Option("namespace", "NS", "either side is a pod of this namespace"),
    Option("from_ip", "CIDR", "the source address lies in it"),
    Option("to_ip", "CIDR", "the destination address (after service translation) lies in it"),
    Option("from_label", "KEY[=VALUE]", "the source has this label; several by comma must all be there"),
    Option("to_label", "KEY[=VALUE]", "the destination has this label"),
    Option("identity", "NUMBER", "either side has this identity; host, world-ipv4 and the like are understood"),
    Option("protocol", "NAME", "TCP, UDP, SCTP, ICMP, ICMPv6 or a number; http, grpc, dns or tls"),
    Option("port", "PORT", "source or destination port"),
    Option("to_port", "PORT", "destination port (after service translation)"),
    Option("policy", "[NS/]NAME", "the policy whose rule decided"),
    Option("service", "[NS/]NAME", "the service the client spoke to"),
    Option("hook", "HOOK", "the program that saw it, such as from-pod or from-network"),
    Option("http_method", "METHOD", "of a request: GET, POST, …"),
    Option("http_path", "REGEX", "found in the path of a request; ^ and $ stand for its ends"),
    Option("http_status", "STATUS", "what a request was answered: 403, 4xx or 400-499"),
    Option("dns_query", "NAME", "the name asked for; * is any of one label, **. in front any labels, * alone any name"),
    Option("since", "TIME", "not before: 5m, 1h30m or a time such as 2026-01-31T12:00:00Z"),
    Option("until", "TIME", "before: as for since"),
)
NAMES = frozenset(option.name for option in OPTIONS)


def parse(options: Mapping[str, Sequence[str]], now_ns: int, abi: Abi) -> Filter:
    """Options by name, with their values as they were written. `now_ns`: wall clock. Raises FilterError."""
    given = {name.replace("-", "_"): values for name, values in options.items() if values}
    unknown = sorted(given.keys() - NAMES)
    if unknown:
        raise FilterError(f"there is no filter {', '.join(unknown)}; there are {', '.join(o.name for o in OPTIONS)}")
    events = event_makers(abi)
    event_tests = [_each(name, values, events[name]) for name, values in given.items() if name in events]
    flow_tests = [_each(name, values, FLOW_TESTS[name]) for name, values in given.items() if name in FLOW_TESTS]
    if given.keys() & OF_L7:
        event_tests.insert(0, l7filters.is_l7)
    if "protocol" in given:
        on_event, on_flow = _protocols(given["protocol"])
        event_tests.append(on_event)
        flow_tests += [on_flow] if on_flow is not None else []
    return Filter(
        event_tests=tuple(event_tests),
        flow_tests=tuple(flow_tests),
        since_ns=_bound("since", given, now_ns, min),
        until_ns=_bound("until", given, now_ns, max),
    )


def _each(name: str, values: Sequence[str], make: Callable[[str], Callable[[Any], bool]]) -> Callable[[Any], bool]:
    """One test that holds where that of any value does."""
    tests = []
    for value in values:
        try:
            tests.append(make(value))
        except ValueError as error:
            raise FilterError(f"--{name.replace('_', '-')} {value}: {error}") from None
    if len(tests) == 1:
        return tests[0]
    return lambda subject: any(test(subject) for test in tests)


def _protocols(values: Sequence[str]) -> tuple[EventTest, FlowTest | None]:
    try:
        return l7filters.protocols(values)
    except ValueError as error:
        raise FilterError(f"--protocol {' '.join(values)}: {error}") from None


# ---- times ---------------------------------------------------------------------------------------------------

_UNITS_NS = {"d": 86_400 * 10**9, "h": 3_600 * 10**9, "m": 60 * 10**9, "s": 10**9, "ms": 10**6}
_PART = re.compile(r"(\d+)(ms|[dhms])")


def parse_time(text: str, now_ns: int) -> int:
    """Wall-clock ns of a time, or of so long before now. A time without a zone is local. Raises ValueError."""
    if re.fullmatch(f"({_PART.pattern})+", text):
        return now_ns - sum(int(count) * _UNITS_NS[unit] for count, unit in _PART.findall(text))
    try:
        moment = datetime.fromisoformat(text).astimezone()
    except ValueError:
        raise ValueError("give 30s, 5m, 1h30m, or a time such as 2026-01-31T12:00:00Z") from None
    return int(moment.timestamp()) * 10**9 + moment.microsecond * 1000


def _bound(
    name: str, given: Mapping[str, Sequence[str]], now_ns: int, widest: Callable[[Iterable[int]], int]
) -> int | None:
    if name not in given:
        return None
    try:
        return widest([parse_time(text, now_ns) for text in given[name]])
    except ValueError as error:
        raise FilterError(f"--{name} {' '.join(given[name])}: {error}") from None

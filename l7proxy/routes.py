"""Which requests pass: demands as a tree of Envoy's generic matching, in the RouteConfiguration of a listener.

The tree stands in the RouteConfiguration and not in the listener, so that it acts on the next request of connections
that live, and its change touches none. What no branch of it allows is answered 403. Pure.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import Any

import msgspec
from envoy.config.core.v3 import base_pb2
from envoy.config.route.v3 import route_components_pb2, route_pb2

from l7proxy.listening import Override
from l7proxy.matching import (
    DESTINATION,
    PORT,
    PRESENT,
    SERVER_NAME,
    SOURCE,
    address_text,
    all_of,
    any_of,
    exact,
    first_of,
    header,
    into,
    is_,
    name_regex,
    not_,
    regex,
    then,
    when,
    whole,
)
from policies.l7 import L7, Demands, HeaderMatch, HttpRule, Mismatch, NamePattern

DENIED = "denied"
ALLOWED = "allowed"
"""Names of routes, as the access log has them; after ALLOWED the headers that were not as a rule of LOG asks:
`allowed mismatch=x-token,x-user`."""
DENIED_BODY = "Access denied\n"

ALTERED_HEADERS = 6
"""How many headers of one rule may have an action of their own (LOG, ADD, DELETE): each doubles the routes."""

AMBIGUOUS_PATH = (
    r"[^?]*(?:"
    r"//"  # slashes alone, of which Envoy leaves two
    r"|/\.{1,2}(?:;|%3[bB])"  # a dot segment with a parameter: some servers cut the parameter off first
    r"|%00"
    r"|%[cC][01]|%[eE]0%[89][0-9a-fA-F]|%[fF]0%8[0-9a-fA-F]"  # overlong UTF-8: another spelling of ASCII
    r"|%25(?:00|2[eEfF]|5[cC])"  # escaped twice: NUL, dot, slash, backslash
    r").*"
)
"""Paths that servers read in different ways, beyond what Envoy normalises or refuses: no rule that names a path allows
them."""

_INPUT_METHOD, _INPUT_PATH, _INPUT_HOST = header(":method"), header(":path"), header(":authority")

ClusterOf = Callable[[L7], str | None]
"""By which cluster requests go on that an alternative allows; None: it cannot be done, so it allows nothing."""


def route_configuration(name: str, tree: Any) -> Any:
    host = route_components_pb2.VirtualHost(name="any", domains=["*"], matcher=tree)
    return route_pb2.RouteConfiguration(name=name, virtual_hosts=[host])


def decision(
    demands: Demands, overrides: Sequence[Override], *, encrypted: bool, cluster_of: ClusterOf, direct: str
) -> Any:
    """What is decided about requests that came in TLS that we ended (`encrypted`), or in the clear.

    `direct`: the cluster by which requests go on where an override allows everything.
    """
    branches: list[Any] = []
    for override in overrides:
        if override.demands is None:
            tree = first_of((), _allowed(direct))
        else:
            tree = _rules(override.demands, encrypted=encrypted, cluster_of=cluster_of)
        if not (flow := list(_flow(override))):
            return first_of(branches, into(tree))
        branches.append(when(all_of(flow), into(tree)))
    return first_of(branches, into(_rules(demands, encrypted=encrypted, cluster_of=cluster_of)))


def in_order(demands: Iterable[L7]) -> list[L7]:
    """Always the same, so that equal demands make equal resources."""

    def content(one: L7) -> tuple[bytes, list[bytes]]:
        rest = msgspec.structs.replace(one, http=None if one.http is None else frozenset())
        return msgspec.json.encode(rest, order="deterministic"), sorted(map(msgspec.json.encode, one.http or ()))

    return sorted(demands, key=content)


def alters(rule: HttpRule) -> list[HeaderMatch]:
    """Header matches of which the outcome tells how the request goes on, not whether. To replace needs no match: what
    matches is replaced by the same."""
    return [
        one
        for one in rule.headers
        if one.mismatch is Mismatch.LOG or (one.mismatch in (Mismatch.ADD, Mismatch.DELETE) and one.value is not None)
    ]


def server_name_in(names: Iterable[NamePattern]) -> Any | None:
    """None if there are none."""
    patterns = [is_(SERVER_NAME, regex(name_regex(name))) for name in sorted(names)]
    return any_of(patterns) if patterns else None


def _rules(demands: Demands, *, encrypted: bool, cluster_of: ClusterOf) -> Any:
    branches: list[tuple[bool, Any]] = []
    for one in in_order(demands):
        if one.dns is not None or (one.terminating is not None) is not encrypted:
            continue
        if not encrypted and (one.server_names is not None or one.http is None):
            continue
        if (cluster := cluster_of(one)) is None:
            continue
        asked = [] if one.server_names is None else [server_name_in(one.server_names)]
        if None in asked:
            continue
        rules = [HttpRule()] if one.http is None else sorted(one.http, key=msgspec.json.encode)
        branches.extend(
            (not _acts(rule), when(all_of([_http(rule), *asked]), _pass(rule, cluster)))
            for rule in rules
            if len(alters(rule)) <= ALTERED_HEADERS
        )
    # What is done to headers is done whatever other rules allow as well.
    return first_of([branch for _, branch in sorted(branches, key=lambda branch: branch[0])], _DENIED)


def _acts(rule: HttpRule) -> bool:
    return any(one.mismatch is not Mismatch.FAIL for one in rule.headers)


def _flow(override: Override) -> Iterator[Any]:
    if override.source is not None:
        yield is_(SOURCE, exact(address_text(override.source)))
    if override.destination is not None:
        yield is_(DESTINATION, exact(address_text(override.destination)))
    if override.port is not None:
        yield is_(PORT, exact(str(override.port)))


def _http(rule: HttpRule) -> Any:
    """Cheap predicates first: the first that fails ends it."""
    asked = [is_(_INPUT_METHOD, whole(rule.method))] if rule.method else []
    if rule.path:
        asked.append(is_(_INPUT_PATH, whole(rule.path)))
    if rule.host:
        asked.append(is_(_INPUT_HOST, regex(rf"(?i:{rule.host})(?::[0-9]+)?")))
    asked.extend(_has(one) for one in rule.headers if one.mismatch is Mismatch.FAIL)
    if rule.path:
        asked.append(not_(is_(_INPUT_PATH, regex(AMBIGUOUS_PATH))))
    return all_of([*asked, _NOT_CONNECT])


def _has(one: HeaderMatch) -> Any:
    return is_(header(one.name), PRESENT if one.value is None else exact(one.value))


def _pass(rule: HttpRule, cluster: str) -> Any:
    """How the request goes on: by a route for each way in which headers match or do not."""
    fixed = [
        _header_option(one, base_pb2.HeaderValueOption.OVERWRITE_IF_EXISTS_OR_ADD)
        for one in rule.headers
        if one.mismatch is Mismatch.REPLACE and one.value is not None
    ]

    def below(rest: Sequence[HeaderMatch], missed: tuple[HeaderMatch, ...]) -> Any:
        if not rest:
            return _allowed(cluster, fixed, missed)
        one, *others = rest
        return into(first_of([when(_has(one), below(others, missed))], below(others, (*missed, one))))

    return below(alters(rule), ())


def _allowed(cluster: str, fixed: Sequence[Any] = (), missed: Sequence[HeaderMatch] = ()) -> Any:
    logged = ",".join(one.name for one in missed if one.mismatch is Mismatch.LOG)
    added = [
        _header_option(one, base_pb2.HeaderValueOption.APPEND_IF_EXISTS_OR_ADD)
        for one in missed
        if one.mismatch is Mismatch.ADD
    ]
    action = route_components_pb2.RouteAction(cluster=cluster)
    action.timeout.SetInParent()  # 0: none
    return _route(
        route_components_pb2.Route(
            name=f"{ALLOWED} mismatch={logged}" if logged else ALLOWED,
            route=action,
            request_headers_to_add=[*fixed, *added],
            request_headers_to_remove=[one.name for one in missed if one.mismatch is Mismatch.DELETE],
        )
    )


def _header_option(one: HeaderMatch, append: Any) -> Any:
    # A per cent sign is the start of a command in the values of Envoy's header options.
    value = base_pb2.HeaderValue(key=one.name, value=(one.value or "").replace("%", "%%"))
    return base_pb2.HeaderValueOption(header=value, append_action=append, keep_empty_value=True)


def _route(route: Any) -> Any:
    route.match.prefix = ""
    return then("route", route)


_NOT_CONNECT = not_(is_(_INPUT_METHOD, exact("CONNECT")))
_DENIED = _route(
    route_components_pb2.Route(
        name=DENIED,
        direct_response=route_components_pb2.DirectResponseAction(
            status=403, body=base_pb2.DataSource(inline_string=DENIED_BODY)
        ),
    )
)

"""Which requests pass, and how they go on: demands as the RouteConfiguration of a listener. Pure.

What passes is decided by an RBAC filter whose rules are a tree of Envoy's generic matching. They stand in the
RouteConfiguration and not in the listener, so that they act on the next request of connections that live, and a change
of theirs touches none.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from typing import Any

import msgspec
from envoy.config.core.v3 import base_pb2
from envoy.config.rbac.v3 import rbac_pb2
from envoy.config.route.v3 import route_components_pb2, route_pb2
from envoy.extensions.filters.http.rbac.v3 import rbac_pb2 as rbac_filter_pb2

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
    packed,
    regex,
    then,
    when,
    whole,
)
from policies.l7 import L7, HeaderMatch, HttpRule, Mismatch, NamePattern

RBAC_FILTER = "envoy.filters.http.rbac"
ALLOWED = "allowed"
"""Names of routes, as the access log has them: after ALLOWED the headers that were not as a rule of LOG asks, as in
`allowed mismatch=x-token,x-user`."""

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


class Way(msgspec.Struct, frozen=True, gc=False, cache_hash=True):
    """One HTTP rule of an alternative, and the cluster by which what it allows goes on."""

    rule: HttpRule
    cluster: str
    server_names: frozenset[NamePattern] | None = None

    @property
    def acts(self) -> bool:
        """Whether it changes requests, or has something of them logged."""
        return any(one.mismatch is not Mismatch.FAIL for one in self.rule.headers)


ClusterOf = Callable[[L7], str | None]
"""By which cluster requests go on that an alternative allows; None: it cannot be done, so it allows nothing."""


def in_order(demands: Iterable[L7]) -> list[L7]:
    """Always the same, so that equal demands make equal resources."""

    def content(one: L7) -> tuple[bytes, list[bytes]]:
        rest = msgspec.structs.replace(one, http=None if one.http is None else frozenset())
        return msgspec.json.encode(rest, order="deterministic"), sorted(map(msgspec.json.encode, one.http or ()))

    return sorted(demands, key=content)


def ways(demands: Iterable[L7], *, encrypted: bool, cluster_of: ClusterOf) -> list[Way]:
    """For requests that came in TLS that we ended (`encrypted`), or in the clear."""
    found: list[Way] = []
    for one in in_order(demands):
        if one.dns is not None or (one.terminating is not None) is not encrypted:
            continue
        if not encrypted and (one.server_names is not None or one.http is None):
            continue
        if (cluster := cluster_of(one)) is not None:
            rules = [HttpRule()] if one.http is None else sorted(one.http, key=msgspec.json.encode)
            found.extend(Way(rule, cluster, one.server_names) for rule in rules if len(alters(rule)) <= ALTERED_HEADERS)
    return found


def route_configuration(
    name: str, own: Sequence[Way], overrides: Sequence[tuple[Override, Sequence[Way] | None]], default: str
) -> Any:
    """`own`: the ways of the listener's own demands; with each override its ways, None: everything.

    How a request goes on (headers changed, TLS) is settled by the listener's own ways, and by the cluster `default`
    where none of them fits: routes see headers, and not whose flow it is. What an override would do otherwise has to
    wait for a new connection, and is denied on this.
    """
    branches = []
    for override, theirs in overrides:
        if theirs is None:
            tree = first_of((), _ALLOW)
        else:
            tree = _allow([way for way in theirs if way in own or (not way.acts and way.cluster == default)])
        branches.append(when(_flow(override), into(tree)))
    rbac = rbac_filter_pb2.RBAC(matcher=first_of(branches, into(_allow(own))))
    host = route_components_pb2.VirtualHost(name="any", domains=["*"])
    host.typed_per_filter_config[RBAC_FILTER].CopyFrom(packed(rbac_filter_pb2.RBACPerRoute(rbac=rbac)))
    special = [way for way in own if way.acts or way.cluster != default]
    if special:
        # What a rule does to headers it does whatever other rules allow as well.
        special.sort(key=lambda way: not way.acts)
        host.matcher.CopyFrom(first_of([when(_http(way.rule), _pass(way)) for way in special], _onward(default)))
    else:
        host.routes.append(_route(default))
    return route_pb2.RouteConfiguration(name=name, virtual_hosts=[host])


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


# ---- whether a request passes --------------------------------------------------------------------------------


def _allow(choices: Iterable[Way]) -> Any:
    branches = []
    for way in choices:
        asked = [_http(way.rule)]
        if way.server_names is not None:
            if (named := server_name_in(way.server_names)) is None:
                continue
            asked.append(named)
        branches.append(when(all_of(asked), _ALLOW))
    return first_of(branches, _DENY)


def _flow(override: Override) -> Any:
    asked = []
    if override.source is not None:
        asked.append(is_(SOURCE, exact(address_text(override.source))))
    if override.destination is not None:
        asked.append(is_(DESTINATION, exact(address_text(override.destination))))
    if override.port is not None:
        asked.append(is_(PORT, exact(str(override.port))))
    return all_of(asked or [_NOT_CONNECT])


def _http(rule: HttpRule) -> Any:
    """Cheap predicates first: the first that fails ends it."""
    asked = [is_(_METHOD, whole(rule.method))] if rule.method else []
    if rule.path:
        asked.append(is_(_PATH, whole(rule.path)))
    if rule.host:
        asked.append(is_(_HOST, regex(rf"(?i:{rule.host})(?::[0-9]+)?")))
    asked.extend(_has(one) for one in rule.headers if one.mismatch is Mismatch.FAIL)
    if rule.path:
        asked.append(not_(is_(_PATH, regex(AMBIGUOUS_PATH))))
    return all_of([*asked, _NOT_CONNECT])


def _has(one: HeaderMatch) -> Any:
    return is_(header(one.name), PRESENT if one.value is None else exact(one.value))


# ---- how it goes on ------------------------------------------------------------------------------------------


def _pass(way: Way) -> Any:
    """A route for each way in which headers match or do not."""
    fixed = [
        _header_option(one, base_pb2.HeaderValueOption.OVERWRITE_IF_EXISTS_OR_ADD)
        for one in way.rule.headers
        if one.mismatch is Mismatch.REPLACE and one.value is not None
    ]

    def below(rest: Sequence[HeaderMatch], missed: tuple[HeaderMatch, ...]) -> Any:
        if not rest:
            return _onward(way.cluster, fixed, missed)
        one, *others = rest
        return into(first_of([when(_has(one), below(others, missed))], below(others, (*missed, one))))

    return below(alters(way.rule), ())


def _onward(cluster: str, fixed: Sequence[Any] = (), missed: Sequence[HeaderMatch] = ()) -> Any:
    return then("route", _route(cluster, fixed, missed))


def _route(cluster: str, fixed: Sequence[Any] = (), missed: Sequence[HeaderMatch] = ()) -> Any:
    logged = ",".join(one.name for one in missed if one.mismatch is Mismatch.LOG)
    added = [
        _header_option(one, base_pb2.HeaderValueOption.APPEND_IF_EXISTS_OR_ADD)
        for one in missed
        if one.mismatch is Mismatch.ADD
    ]
    route = route_components_pb2.Route(
        name=f"{ALLOWED} mismatch={logged}" if logged else ALLOWED,
        route=route_components_pb2.RouteAction(cluster=cluster),
        request_headers_to_add=[*fixed, *added],
        request_headers_to_remove=[one.name for one in missed if one.mismatch is Mismatch.DELETE],
    )
    route.match.prefix = ""
    route.route.timeout.SetInParent()  # 0: none
    return route


def _header_option(one: HeaderMatch, append: Any) -> Any:
    # A per cent sign is the start of a command in the values of Envoy's header options.
    value = base_pb2.HeaderValue(key=one.name, value=(one.value or "").replace("%", "%%"))
    return base_pb2.HeaderValueOption(header=value, append_action=append, keep_empty_value=True)


_METHOD, _PATH, _HOST = header(":method"), header(":path"), header(":authority")
_NOT_CONNECT = not_(is_(_METHOD, exact("CONNECT")))
_ALLOW = then("allow", rbac_pb2.Action(name="allow", action=rbac_pb2.RBAC.ALLOW))
_DENY = then("deny", rbac_pb2.Action(name="deny", action=rbac_pb2.RBAC.DENY))

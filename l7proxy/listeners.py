"""One listener: which connections it ends, passes on or refuses, by chains of filters. Pure protobuf building.

A listener never changes while it lives (its name is a hash of what it asks), so no connection of it is ever drained.
What may change is in its RouteConfigurations: `name` for requests in the clear, `name.tls0` and so on for those in TLS
that ends here, one for each way they go on.
"""

from __future__ import annotations

import socket
from collections.abc import Iterable, Iterator, Mapping, Sequence
from functools import cached_property
from typing import Any

import msgspec
from envoy.config.core.v3 import address_pb2, socket_option_pb2
from envoy.config.listener.v3 import listener_components_pb2, listener_pb2
from envoy.config.rbac.v3 import rbac_pb2 as rules_pb2
from envoy.extensions.filters.common.set_filter_state.v3 import value_pb2
from envoy.extensions.filters.listener.original_dst.v3 import original_dst_pb2
from envoy.extensions.filters.listener.original_src.v3 import original_src_pb2
from envoy.extensions.filters.listener.tls_inspector.v3 import tls_inspector_pb2
from envoy.extensions.filters.network.direct_response.v3 import config_pb2 as direct_response_pb2
from envoy.extensions.filters.network.rbac.v3 import rbac_pb2
from envoy.extensions.filters.network.set_filter_state.v3 import set_filter_state_pb2
from envoy.extensions.filters.network.tcp_proxy.v3 import tcp_proxy_pb2
from envoy.extensions.transport_sockets.tls.v3 import common_pb2, tls_pb2
from google.protobuf import wrappers_pb2

from l7proxy import clusters
from l7proxy.http import STAT_PREFIX, connection_manager, tcp_log
from l7proxy.listening import Listening, Override, ProxySettings, TlsMaterial
from l7proxy.matching import DESTINATION, TRANSPORT, any_of, exact, first_of, into, is_, packed, prefix, then, when
from l7proxy.material import to_end_with, to_trust
from l7proxy.resource import CLUSTER, LISTENER, ROUTES, Key, Resource, resource
from l7proxy.routes import Way, in_order, route_configuration, server_name_in, ways
from policies.l7 import L7, Mismatch, TlsContext

SO_MARK = 36
Materials = Mapping[TlsContext, TlsMaterial]

_LISTENER_FILTERS_S = 10
_EARLY_BYTES = 1 << 16
_LOOPBACK, _REFUSED, _CLEAR, _PASSED = "loopback", "refused", "clear", "passed"


class _Ended(msgspec.Struct, frozen=True):
    """TLS that ends here: a chain. `cluster`: how it goes on. `alternatives`: with HTTP rules, else just one."""

    chain: str
    cluster: str
    alternatives: tuple[L7, ...]

    @property
    def http(self) -> bool:
        return self.alternatives[0].http is not None


class Listener:
    """The resources of one listener. Alternatives that it cannot serve (a Secret that is not there, say) allow nothing;
    `problems` says why."""

    def __init__(
        self, asked: Listening, overrides: Sequence[Override], materials: Materials, settings: ProxySettings
    ) -> None:
        self._asked = asked
        self._overrides = tuple(overrides)
        self._materials = materials
        self._settings = settings
        self._needs: set[Key] = {(CLUSTER, clusters.DIRECT), (CLUSTER, clusters.REFUSED)}
        self._more: dict[Key, Resource] = {}
        self.problems: list[str] = []

    def resources(self) -> list[Resource]:
        name, demands = self._asked.name, self._asked.demands
        routes = [self._routes(name, demands, clusters.DIRECT, encrypted=False)] if self._has_clear() else []
        routes += [
            self._routes(f"{name}.{one.chain}", one.alternatives, one.cluster, encrypted=True)
            for one in self._ended
            if one.http
        ]
        listener = self._listener()
        ports = frozenset({self._asked.port})
        needs = self._needs | {one.key for one in routes}
        return [resource(LISTENER, name, listener, frozenset(needs), ports), *routes, *self._more.values()]

    # ---- alternatives ----------------------------------------------------------------------------------------

    def _has_clear(self) -> bool:
        return any(one.http is not None and one.terminating is None for one in self._asked.demands)

    def _passed(self) -> list[L7]:
        """TLS that is passed on as it comes, by its name."""
        return [
            one
            for one in in_order(self._asked.demands)
            if one.server_names is not None and one.terminating is None and one.http is None and one.dns is None
        ]

    @cached_property
    def _ended(self) -> list[_Ended]:
        """Alternatives without HTTP rules allow all that is said within, so they go first. Of those with rules a chain
        for each way to go on, and for each set of names whose rules change headers: routes see no names. Where names
        meet, the first chain decides."""
        tcp, groups = [], dict[tuple[str, Any], list[L7]]()
        for one in in_order(self._asked.demands):
            if one.terminating is None or one.dns is not None or not self._certificate(one.terminating):
                continue
            if (cluster := self._cluster(one)) is None:
                continue
            if one.http is None:
                tcp.append((cluster, (one,)))
            else:
                acts = any(header.mismatch is not Mismatch.FAIL for rule in one.http for header in rule.headers)
                groups.setdefault((cluster, one.server_names if acts else None), []).append(one)
        chains = [*tcp, *((cluster, tuple(alternatives)) for (cluster, _), alternatives in groups.items())]
        return [_Ended(f"tls{at}", cluster, alternatives) for at, (cluster, alternatives) in enumerate(chains)]

    def _certificate(self, context: TlsContext) -> str | None:
        material = self._materials.get(context, TlsMaterial())
        if problem := to_end_with(material):
            self._problem(f"Secret {context.namespace}/{context.name} {problem}: no TLS can be ended with it")
            return None
        self._add(clusters.certificate(context, material))
        return clusters.certificate_name(context)

    def _cluster(self, one: L7) -> str | None:
        if (context := one.originating) is None:
            return clusters.DIRECT
        material = self._materials.get(context, TlsMaterial())
        mine = to_end_with(material) if material.certificate or material.private_key else ""
        if problem := to_trust(material) or mine:
            self._problem(f"Secret {context.namespace}/{context.name} {problem}: no TLS can be begun with it")
            return None
        for made in clusters.origination(context, material, self._settings):
            self._add(made)
        return clusters.origination_name(context)

    def _add(self, one: Resource) -> None:
        self._more[one.key] = one
        self._needs.add(one.key)

    def _problem(self, text: str) -> None:
        if text not in self.problems:
            self.problems.append(text)

    # ---- resources -------------------------------------------------------------------------------------------

    def _routes(self, name: str, own: Iterable[L7], default: str, *, encrypted: bool) -> Resource:
        def of(demands: Iterable[L7]) -> list[Way]:
            return ways(demands, encrypted=encrypted, cluster_of=self._cluster)

        overrides = [(one, None if one.demands is None else of(one.demands)) for one in self._overrides]
        return resource(ROUTES, name, route_configuration(name, of(own), overrides, default))

    def _listener(self) -> Any:
        settings, asked = self._settings, self._asked
        listener = listener_pb2.Listener(
            name=asked.name,
            address=_loopback("127.0.0.1", asked.port),
            stat_prefix=STAT_PREFIX,
            filter_chains=self._chains(),
            filter_chain_matcher=self._chooser(),
            listener_filters=self._listener_filters(),
            listener_filters_timeout={"seconds": _LISTENER_FILTERS_S},
            socket_options=[
                _option(socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1),
                _option(socket.IPPROTO_TCP, socket.TCP_KEEPIDLE, clusters.KEEPALIVE_S),
            ],
        )
        listener.enable_reuse_port.value = settings.reuse_port
        if settings.ipv6:
            listener.additional_addresses.add(address=_loopback("::1", asked.port))
        if settings.transparent:
            listener.transparent.value = True
            listener.socket_options.append(_option(socket.SOL_SOCKET, SO_MARK, settings.mark_answers))
        return listener

    def _listener_filters(self) -> Iterator[Any]:
        if self._settings.transparent:
            mark = self._settings.mark_from(self._asked.direction)
            yield _listener_filter("original_dst", original_dst_pb2.OriginalDst())
            yield _listener_filter("original_src", original_src_pb2.OriginalSrc(mark=mark))
        if self._passed() or self._ended:
            yield _listener_filter("tls_inspector", tls_inspector_pb2.TlsInspector())

    def _chooser(self) -> Any:
        """Which chain a connection takes. To this machine's own loopback: a connection that was not given to us but
        made to us, which would go round in circles."""
        looped = any_of([is_(DESTINATION, prefix("127.")), is_(DESTINATION, exact("::1"))])
        branches = [when(looped, _chain_named(_LOOPBACK))] if self._settings.transparent else []
        encrypted = [*self._passed_branches(), *self._ended_branches()]
        if encrypted:
            tree = first_of(encrypted, _chain_named(_REFUSED))
            branches.append(when(is_(TRANSPORT, exact("tls")), into(tree)))
        return first_of(branches, _chain_named(_CLEAR if self._has_clear() else _REFUSED))

    def _passed_branches(self) -> Iterator[Any]:
        names = {name for one in self._passed() for name in one.server_names or ()}
        if asked := server_name_in(names):
            yield when(asked, _chain_named(_PASSED))

    def _ended_branches(self) -> Iterator[Any]:
        for ended in self._ended:
            for one in ended.alternatives:
                if one.server_names is None:
                    yield when(is_(TRANSPORT, exact("tls")), _chain_named(ended.chain))
                elif asked := server_name_in(one.server_names):
                    yield when(asked, _chain_named(ended.chain))

    def _chains(self) -> Iterator[Any]:
        asked, settings = self._asked, self._settings
        yield _chain(_LOOPBACK, _filter("direct_response", direct_response_pb2.Config()))
        nobody = rbac_pb2.RBAC(rules=rules_pb2.RBAC(), stat_prefix=STAT_PREFIX)
        yield _chain(_REFUSED, _filter("rbac", nobody), self._tcp_proxy(clusters.REFUSED))
        if self._has_clear():
            manager = connection_manager(asked.log_name, asked.name, asked.demands, settings)
            yield _chain(_CLEAR, _filter("http_connection_manager", manager))
        if self._passed():
            yield _chain(_PASSED, self._tcp_proxy(clusters.DIRECT))
        for ended in self._ended:
            if ended.http:
                manager = connection_manager(asked.log_name, f"{asked.name}.{ended.chain}", asked.demands, settings)
                filters = [_filter("http_connection_manager", manager)]
            else:
                filters = [_name_as_asked(), self._tcp_proxy(ended.cluster)]
            tls = self._tls(ended.alternatives, ("h2", "http/1.1") if ended.http else ())
            yield _chain(ended.chain, *filters, tls=tls)

    def _tls(self, ended: Sequence[L7], protocols: Sequence[str]) -> Any:
        """Which of several certificates is shown depends on the name that is asked for."""
        names = sorted({name for one in ended if one.terminating and (name := self._certificate(one.terminating))})
        common = tls_pb2.CommonTlsContext(
            tls_certificate_sds_secret_configs=[clusters.sds(name) for name in names], alpn_protocols=protocols
        )
        common.tls_params.tls_minimum_protocol_version = common_pb2.TlsParameters.TLSv1_2
        return packed(tls_pb2.DownstreamTlsContext(common_tls_context=common))

    def _tcp_proxy(self, cluster: str) -> Any:
        proxy = tcp_proxy_pb2.TcpProxy(
            stat_prefix=STAT_PREFIX, cluster=cluster, access_log=[tcp_log(self._asked.log_name, self._settings)]
        )
        proxy.idle_timeout.SetInParent()  # 0: none
        if cluster == clusters.REFUSED:  # the RBAC filter before it is asked with the first data
            proxy.upstream_connect_mode = tcp_proxy_pb2.ON_DOWNSTREAM_DATA
            proxy.max_early_data_bytes.value = _EARLY_BYTES
        return _filter("tcp_proxy", proxy)


def _name_as_asked() -> Any:
    """TLS to the destination asks for, and believes, the name the client asked for."""
    values = [
        value_pb2.FilterStateValue(
            object_key=key, format_string={"text_format_source": {"inline_string": "%REQUESTED_SERVER_NAME%"}}
        )
        for key in ("envoy.network.upstream_server_name", "envoy.network.upstream_subject_alt_names")
    ]
    return _filter("set_filter_state", set_filter_state_pb2.Config(on_new_connection=values))


def _option(level: int, name: int, value: int) -> Any:
    """Of the listening socket; those that are accepted have it from there."""
    return socket_option_pb2.SocketOption(level=level, name=name, int_value=value)


def _loopback(address: str, port: int) -> Any:
    return address_pb2.Address(socket_address=address_pb2.SocketAddress(address=address, port_value=port))


def _listener_filter(name: str, config: Any) -> Any:
    return listener_components_pb2.ListenerFilter(name=f"envoy.filters.listener.{name}", typed_config=packed(config))


def _filter(name: str, config: Any) -> Any:
    return listener_components_pb2.Filter(name=f"envoy.filters.network.{name}", typed_config=packed(config))


def _chain(name: str, *filters: Any, tls: Any = None) -> Any:
    chain = listener_components_pb2.FilterChain(name=name, filters=filters)
    if tls is not None:
        chain.transport_socket.name = "tls"
        chain.transport_socket.typed_config.CopyFrom(tls)
    return chain


def _chain_named(name: str) -> Any:
    return then("chain", wrappers_pb2.StringValue(value=name))

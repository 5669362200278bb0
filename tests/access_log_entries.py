"""Entries of Envoy's access log, and a client that sends them as Envoy does."""

from __future__ import annotations

from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import grpc
from envoy.data.accesslog.v3 import accesslog_pb2
from envoy.service.accesslog.v3 import als_pb2
from google.protobuf import json_format

from l7proxy.accesslog import METHOD, SERVICE
from l7proxy.logname import LogName

COMMON: dict[str, Any] = {
    "downstream_direct_remote_address": {"socket_address": {"address": "10.0.0.1", "port_value": 40000}},
    "downstream_remote_address": {"socket_address": {"address": "6.6.6.6", "port_value": 1}},
    "downstream_local_address": {"socket_address": {"address": "10.0.0.2", "port_value": 8080}},
    "start_time": "2023-11-14T22:13:20.5Z",
    "duration": "0.0012s",
}
REQUEST: dict[str, Any] = {"request_method": "GET", "authority": "web.shop:80", "path": "/api"}
OK: dict[str, Any] = {"response_code": 200, "response_code_details": "via_upstream"}
REFUSED: dict[str, Any] = {
    "response_code": 403,
    "response_code_details": "rbac_access_denied_matched_policy[none]",
}


def http_entry(
    request: dict[str, Any] | None = None,
    response: dict[str, Any] | None = None,
    common: dict[str, Any] | None = None,
    version: str = "HTTP11",
) -> Any:
    values = {
        "common_properties": COMMON | (common or {}),
        "protocol_version": version,
        "request": REQUEST | (request or {}),
        "response": response or OK,
    }
    return json_format.ParseDict(values, accesslog_pb2.HTTPAccessLogEntry())


def tcp_entry(**common: Any) -> Any:
    values = {"common_properties": COMMON | common, "connection_properties": {"received_bytes": 517, "sent_bytes": 9}}
    return json_format.ParseDict(values, accesslog_pb2.TCPAccessLogEntry())


def message(*entries: Any, log: LogName | None = None) -> bytes:
    made = als_pb2.StreamAccessLogsMessage()
    if log is not None:
        made.identifier.log_name = str(log)
    for entry in entries:
        logs = made.http_logs if isinstance(entry, accesslog_pb2.HTTPAccessLogEntry) else made.tcp_logs
        logs.log_entry.append(entry)
    data: bytes = made.SerializeToString()
    return data


async def send(address: Path, messages: list[bytes]) -> None:
    """As Envoy does, but that the stream ends."""

    async def stream() -> AsyncIterator[bytes]:
        for data in messages:
            yield data

    async with grpc.aio.insecure_channel(f"unix:{address}") as channel:
        await channel.stream_unary(f"/{SERVICE}/{METHOD}")(stream(), wait_for_ready=True, timeout=30)

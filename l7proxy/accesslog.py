"""Envoy's access log, taken in over gRPC (envoy.service.accesslog.v3) and made into plain records.

Of an entry only what records have is read; of its headers only :method, content-type and grpc-status. l7proxy.http has
listeners log these, and SNI_TAG. Importing this costs 20 MB.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Iterator
from itertools import islice
from typing import Any, Protocol

import grpc
from envoy.config.core.v3 import base_pb2
from envoy.data.accesslog.v3 import accesslog_pb2
from envoy.service.accesslog.v3 import als_pb2
from google.protobuf.message import DecodeError

from l7proxy import redact
from l7proxy.logname import LogName
from l7proxy.records import Http, L7Record, Tls

SERVICE, METHOD = "envoy.service.accesslog.v3.AccessLogService", "StreamAccessLogs"
SNI_TAG, GRPC_STATUS = "sni", "grpc-status"
FLAGS_SHOWN = 8
TEXT_LENGTH = 128
GRPC_TYPE = "application/grpc"
MESSAGE_BYTES = 4 << 20

_VERSIONS = {
    accesslog_pb2.HTTPAccessLogEntry.HTTP10: "HTTP/1.0",
    accesslog_pb2.HTTPAccessLogEntry.HTTP11: "HTTP/1.1",
    accesslog_pb2.HTTPAccessLogEntry.HTTP2: "HTTP/2",
    accesslog_pb2.HTTPAccessLogEntry.HTTP3: "HTTP/3",
}
_METHODS = {number: name for name, number in base_pb2.RequestMethod.items() if number}

REFUSALS = (
    "rbac_access_denied",
    "absolute_path_rejected",
    "direct_response",
    "http1.",
    "http2.",
    "http3.",
    "invalid_",
    "low_version",
    "missing_host_header",
    "missing_path_rejected",
    "path_normalization_failed",
    "request_headers_",
    "route_configuration_not_found",
    "route_not_found",
    "upgrade_failed",
)
"""How the details of answers begin that Envoy gave by itself because of the request, which went to nobody. Others (an
upstream that cannot be reached, time-outs, clients that leave) say nothing about what is allowed."""


def of_http(entry: Any, log: LogName, *, redacted: bool = True) -> L7Record:
    """Of an HTTPAccessLogEntry. Raises ValueError where it does not tell whose request it was."""
    request, response, common = entry.request, entry.response, entry.common_properties
    shown_host, shown_path = (redact.host, redact.path) if redacted else (_host, _path)
    headers = request.request_headers
    http = Http(
        protocol=_protocol(entry.protocol_version, headers),
        method=_METHODS.get(request.request_method) or _text(headers.get(":method", "")),
        host=shown_host(request.authority),
        path=shown_path(request.path),
        status=response.response_code.value,
        grpc_status=_grpc_status(response),
        latency_ns=_latency_ns(common),
        request_bytes=request.request_body_bytes,
        response_bytes=response.response_body_bytes,
        sni=_sni(common),
        flags=_flags(common),
        details=_text(response.response_code_details),
    )
    return _record(common, log, http, denied=http.details.startswith(REFUSALS))


def of_tcp(entry: Any, log: LogName) -> L7Record:
    """Of a TCPAccessLogEntry. Raises ValueError where it does not tell whose connection it was."""
    common, connection = entry.common_properties, entry.connection_properties
    tls = Tls(
        sni=_sni(common),
        latency_ns=_latency_ns(common),
        request_bytes=connection.received_bytes,
        response_bytes=connection.sent_bytes,
        flags=_flags(common),
        details=_text(common.connection_termination_details),
    )
    return _record(common, log, tls, denied=tls.details.startswith(REFUSALS))


def of_message(message: Any, log: LogName, *, redacted: bool = True) -> Iterator[L7Record | None]:
    """Of each entry of a StreamAccessLogsMessage; None for those of which no record can be made."""
    for entry in message.http_logs.log_entry:
        try:
            yield of_http(entry, log, redacted=redacted)
        except ValueError:
            yield None
    for entry in message.tcp_logs.log_entry:
        try:
            yield of_tcp(entry, log)
        except ValueError:
            yield None


def _record(common: Any, log: LogName, l7: Http | Tls, *, denied: bool) -> L7Record:
    # Not downstream_remote_address: a client can change that by a header.
    source = common.downstream_direct_remote_address.socket_address
    if not source.address:
        source = common.downstream_remote_address.socket_address
    destination = common.downstream_local_address.socket_address
    if not source.address or not destination.address:
        raise ValueError("the entry names no addresses")
    return L7Record(
        listener=log.listener,
        direction=log.direction,
        time_ns=_ns(common.start_time) + l7.latency_ns,
        source=source.address,
        source_port=source.port_value,
        destination=destination.address,
        destination_port=destination.port_value,
        l7=l7,
        denied=denied,
    )


def _protocol(version: int, headers: Any) -> str:
    if headers and headers.get("content-type", "").lower().startswith(GRPC_TYPE):
        return "gRPC"
    return _VERSIONS.get(version, "HTTP")


def _grpc_status(response: Any) -> int | None:
    """In the trailers, or where there is no body in the headers."""
    for fields in (response.response_trailers, response.response_headers):
        text = fields.get(GRPC_STATUS, "")
        if text.isascii() and text.isdigit() and len(text) < 10:
            return int(text)
    return None


def _latency_ns(common: Any) -> int:
    for name in ("duration", "time_to_last_downstream_tx_byte"):
        if common.HasField(name):
            return max(_ns(getattr(common, name)), 0)
    return 0


def _sni(common: Any) -> str:
    name = common.custom_tags.get(SNI_TAG, "") or common.tls_properties.tls_sni_hostname
    return "" if name == "-" else redact.shortened(name, redact.HOST_LENGTH)


def _flags(common: Any) -> tuple[str, ...]:
    return tuple(field.name for field, _ in common.response_flags.ListFields())[:FLAGS_SHOWN]


def _ns(moment: Any) -> int:
    """Of a protobuf Timestamp or Duration."""
    return int(moment.seconds * 1_000_000_000 + moment.nanos)


def _text(text: str) -> str:
    return redact.shortened(text, TEXT_LENGTH)


def _host(text: str) -> str:
    return redact.shortened(text, redact.HOST_LENGTH)


def _path(text: str) -> str:
    return redact.shortened(text, redact.PATH_LENGTH)


# ---- the server ----------------------------------------------------------------------------------------------


class Sink(Protocol):
    """Who keeps the records. Called in the server's event loop."""

    def admit(self, count: int) -> int:
        """For how many of so many records there is room now. The others are counted, and not even made."""

    def take(self, records: list[L7Record]) -> None: ...

    def lose(self, count: int) -> None: ...


class AccessLog:
    """The service. `redacted` False shows queries as they are."""

    def __init__(self, sink: Sink, *, redacted: bool = True) -> None:
        self._sink = sink
        self._redacted = redacted
        self._server: Any = None

    async def start(self, address: str) -> None:
        """At a UNIX socket, which must not be there. Raises OSError."""
        self._server = grpc.aio.server(options=[("grpc.max_receive_message_length", MESSAGE_BYTES)])
        handler = grpc.stream_unary_rpc_method_handler(
            self._stream, _decode, als_pb2.StreamAccessLogsResponse.SerializeToString
        )
        self._server.add_generic_rpc_handlers((grpc.method_handlers_generic_handler(SERVICE, {METHOD: handler}),))
        try:
            self._server.add_insecure_port(f"unix:{address}")
        except RuntimeError as error:
            raise OSError(f"no access log can be taken in at {address}: {error}") from error
        await self._server.start()

    async def stop(self) -> None:
        await self._server.stop(None)

    async def _stream(self, messages: AsyncIterator[Any], _context: Any) -> Any:
        log = LogName()
        async for message in messages:
            if message is _UNREADABLE:
                self._sink.lose(1)
                continue
            if message.HasField("identifier"):  # only the first of a stream has it
                log = LogName.parse(message.identifier.log_name)
            self._receive(message, log)
            await asyncio.sleep(0)
        return als_pb2.StreamAccessLogsResponse()

    def _receive(self, message: Any, log: LogName) -> None:
        count = len(message.http_logs.log_entry) + len(message.tcp_logs.log_entry)
        admitted = self._sink.admit(count)
        made = list(islice(of_message(message, log, redacted=self._redacted), admitted))
        records = [record for record in made if record is not None]
        if records:
            self._sink.take(records)
        if len(records) < len(made):
            self._sink.lose(len(made) - len(records))


_UNREADABLE = object()


def _decode(data: bytes) -> Any:
    """A message that is none must not end the stream, and with it the log of everybody else."""
    try:
        return als_pb2.StreamAccessLogsMessage.FromString(data)
    except DecodeError:
        return _UNREADABLE

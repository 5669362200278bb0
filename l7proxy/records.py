"""What a proxy says of one request, name or TLS connection that it judged. Plain values, as they go over sockets.

They hold nothing that may be a secret: the proxies' converters (l7proxy.accesslog) leave it out.
"""

from __future__ import annotations

from typing import Literal

import msgspec


class Http(msgspec.Struct, frozen=True, gc=False, tag_field="type", tag="http"):
    """One request. `status` 0: none was sent. `protocol`: HTTP/1.0, HTTP/1.1, HTTP/2, HTTP/3; gRPC by content type."""

    protocol: str
    method: str
    host: str
    path: str  # with its query, whose values are left out: /x?…
    status: int = 0
    grpc_status: int | None = None
    latency_ns: int = 0  # from its first byte to the answer's last
    request_bytes: int = 0  # of the body
    response_bytes: int = 0
    sni: str = ""
    flags: tuple[str, ...] = ()  # what went wrong at the proxy, in Envoy's words: upstream_connection_failure, …
    details: str = ""  # why the proxy answered by itself


class Dns(msgspec.Struct, frozen=True, gc=False, tag_field="type", tag="dns"):
    """One query and what it was answered. `rcode` "": no answer came."""

    query: str  # the name, in lower case, without the dot at the end
    qtype: str  # A, AAAA, …
    rcode: str = ""  # NOERROR, NXDOMAIN, REFUSED, …
    answers: tuple[str, ...] = ()  # addresses and names, as they stand in the answer
    ttl_s: int = 0  # the smallest of the answers'
    latency_ns: int = 0


class Tls(msgspec.Struct, frozen=True, gc=False, tag_field="type", tag="tls"):
    """One connection judged by the name it asks for. `sni` "": it asked for none, or is not TLS."""

    sni: str
    latency_ns: int = 0  # how long it lasted
    request_bytes: int = 0
    response_bytes: int = 0
    flags: tuple[str, ...] = ()
    details: str = ""


L7 = Http | Dns | Tls


class L7Record(msgspec.Struct, frozen=True, gc=False):
    """`time_ns` (wall clock): when it was answered or refused. Addresses and ports are those of the flow that came to
    the proxy, from the one who began it."""

    listener: int  # number of what was asked; 0: not known
    time_ns: int
    source: str
    source_port: int
    destination: str
    destination_port: int
    l7: L7
    direction: Literal["", "egress", "ingress"] = ""  # whose rules were asked: the source's, the destination's
    denied: bool = False
    transport: Literal["TCP", "UDP"] = "TCP"

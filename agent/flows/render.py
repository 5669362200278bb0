"""A flow as one line for people. Pure.

    05:10:11.123 FORWARDED new  egress  shop/c-1:40000 → shop/web-1:8080 TCP SYN by shop/c egress[1] via shop/web:80
    05:10:11.124 DROPPED   drop ingress 192.0.2.7:99 (world-ipv4) → shop/web-1:22 TCP SYN POLICY_INGRESS by default-deny
    05:10:11.125 DROPPED   l7   egress  shop/c-1:40000 → shop/web-1:8080 HTTP/1.1 GET /api 403 1.2ms PROXY_DENIED by …
    05:10:11.126 FORWARDED l7   egress  shop/c-1:5353 → kube-system/dns:53 DNS A shop.example.com NOERROR 10.0.0.9 310µs

Times are UTC. What comes from a request is shown without the characters that could mean something to a terminal.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import msgspec

from agent.flows.flow import Endpoint, Flow, Lost, ServicePort, Verdict
from l7proxy.records import L7, Dns, Http, Tls

COLORS = {
    Verdict.FORWARDED: "\x1b[32m",
    Verdict.DROPPED: "\x1b[31m",
    Verdict.REFUSED: "\x1b[33m",
    Verdict.REDIRECTED: "\x1b[36m",
}
LOSSES = {
    "kernel": "the kernel's ring was full",
    "proxy": "more requests than are recorded",
    "observer": "this reader is too slow",
}
LOST_COLOR, RESET = "\x1b[35m", "\x1b[0m"


def decode(value: Mapping[str, Any]) -> Flow | Lost:
    """One value of the `observe` stream, typed."""
    if value.get("type") == "lost":
        return msgspec.convert(value, Lost)
    return msgspec.convert(value, Flow)


def line(value: Mapping[str, Any] | Flow | Lost, *, color: bool = False) -> str:
    """One line without its end. Ask for colour only where the output is a terminal."""
    item = value if isinstance(value, (Flow, Lost)) else decode(value)
    if isinstance(item, Lost):
        return _lost_line(item, color=color)
    verdict = f"{item.verdict:<9}"
    words = [
        item.time[11:23],
        f"{COLORS[item.verdict]}{verdict}{RESET}" if color else verdict,
        f"{item.type:<4} {item.direction:<7}",
        f"{_endpoint(item.source)} → {_endpoint(item.destination)}",
        *([item.protocol] if item.l7 is None else _l7(item.l7)),
        *_details(item),
    ]
    return " ".join(words)


def _details(flow: Flow) -> list[str]:
    words = []
    if flow.tcp_flags:
        words.append("+".join(flow.tcp_flags))
    if flow.icmp is not None:
        words.append(f"type {flow.icmp.type} code {flow.icmp.code}")
    if flow.packets is not None:
        words.append(f"{flow.packets} packets {flow.bytes} bytes")
    if flow.drop_reason:
        words.append(flow.drop_reason)
    if flow.policy is not None:
        words.append(f"by {flow.policy}")
    if flow.service is not None:
        words.append(f"via {_service(flow.service)}")
    return words


def _l7(l7: L7) -> list[str]:
    latency = _duration(l7.latency_ns)
    match l7:
        case Http():
            words = [l7.protocol, l7.method, l7.path, str(l7.status or "no answer"), latency]
            words += [f"grpc-status {l7.grpc_status}"] if l7.grpc_status is not None else []
            words += [f"host {l7.host}"] if l7.host else []
            words += l7.flags
        case Dns():
            words = ["DNS", l7.qtype, l7.query or ".", l7.rcode or "no answer", ",".join(l7.answers), latency]
        case Tls():
            words = ["TLS", l7.sni or "without a name", latency, *l7.flags]
    return [_plain(word) for word in words if word]


def _plain(text: str) -> str:
    """Neither control characters nor others that cannot be seen."""
    return "".join(c if c.isprintable() else c.encode("unicode_escape").decode() for c in text)


def _duration(ns: int) -> str:
    for unit, size_ns in (("s", 10**9), ("ms", 10**6)):
        if ns >= size_ns:
            return f"{ns / size_ns:.1f}{unit}"
    return f"{ns // 1000}µs"


def _endpoint(side: Endpoint) -> str:
    if side.pod:
        return _with_port(f"{side.namespace}/{side.pod}", side.port)
    text = _with_port(_address(side.ip), side.port)
    reserved = [label.removeprefix("reserved:") for label in side.labels if label.startswith("reserved:")]
    return f"{text} ({', '.join(reserved)})" if reserved else text


def _service(service: ServicePort) -> str:
    name = f"{service.namespace}/{service.name}" if service.name else _address(service.ip)
    text = _with_port(name, service.port)
    return f"{text} ({service.port_name})" if service.port_name else text


def _address(ip: str) -> str:
    return f"[{ip}]" if ":" in ip else ip


def _with_port(name: str, port: int | None) -> str:
    return name if port is None else f"{name}:{port}"


def _lost_line(lost: Lost, *, color: bool) -> str:
    why = LOSSES[lost.where]
    kinds = ", ".join(f"{count} {kind}" for kind, count in lost.summary.items())
    text = f"{lost.time[11:23]} LOST      {lost.count} events: {why}" + (f" ({kinds})" if kinds else "")
    return f"{LOST_COLOR}{text}{RESET}" if color else text

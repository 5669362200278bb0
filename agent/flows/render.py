"""A flow as one line for people. Pure.

    05:10:11.123 FORWARDED new  egress  shop/c-1:40000 → shop/web-1:8080 TCP SYN by shop/c egress[1] via shop/web:80
    05:10:11.124 DROPPED   drop ingress 192.0.2.7:99 (world-ipv4) → shop/web-1:22 TCP SYN POLICY_INGRESS by default-deny

Times are UTC.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import msgspec

from agent.flows.flow import Endpoint, Flow, Lost, ServicePort, Verdict

COLORS = {Verdict.FORWARDED: "\x1b[32m", Verdict.DROPPED: "\x1b[31m", Verdict.REFUSED: "\x1b[33m"}
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
        item.protocol,
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
    why = {"kernel": "the kernel's ring was full", "observer": "this reader is too slow"}[lost.where]
    kinds = ", ".join(f"{count} {kind}" for kind, count in lost.summary.items())
    text = f"{lost.time[11:23]} LOST      {lost.count} events: {why}" + (f" ({kinds})" if kinds else "")
    return f"{LOST_COLOR}{text}{RESET}" if color else text

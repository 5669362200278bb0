"""Rows of `gatehouse services`: what people read of a service."""

from __future__ import annotations

from typing import Any

import msgspec
import pytest

from agent.cli.services import TITLES, service_rows
from agent.status import BackendView, FrontendView, LastChangeView, ServiceView


def backend(number: int, **fields: Any) -> BackendView:
    return BackendView(address=f"10.0.0.{number}", port=80, **fields)


FRONTEND = FrontendView(address="10.96.0.1", protocol="TCP", port=80, name="http", backends=(backend(1),))
SERVICE = ServiceView(
    namespace="shop", name="web", type="ClusterIP", ips=("10.96.0.1",), frontends=(FRONTEND,), origin="s:1", problem=""
)


def cells(title: str, frontend: dict[str, Any] | None = None, **service: Any) -> list[str]:
    """Of a column, where frontend and service differ in these fields from those above."""
    frontends = (msgspec.structs.replace(FRONTEND, **(frontend or {})),)
    view = msgspec.structs.replace(SERVICE, **({"frontends": frontends} | service))
    return [row[TITLES.index(title)] for row in service_rows(view)]


@pytest.mark.parametrize(
    ("frontend", "text"),
    [
        ({}, "10.0.0.1:80"),
        ({"backends": tuple(map(backend, range(5)))}, "10.0.0.0:80,10.0.0.1:80,10.0.0.2:80 and 2 more"),
        ({"backends": ()}, "none: refused"),
        ({"backends": (), "without_inside": "dropped", "without_outside": "dropped"}, "none: dropped"),
        ({"backends": (backend(1, state="serving"),)}, "10.0.0.1:80 (serving)"),
        ({"unused": (backend(2), backend(3))}, "10.0.0.1:80 (2 unused)"),
        (
            {"backends": (backend(1), backend(2, outside=False))},
            "inside 10.0.0.1:80,10.0.0.2:80; outside 10.0.0.1:80",
        ),
        (
            {"backends": (backend(2, outside=False),), "without_outside": "dropped"},
            "inside 10.0.0.2:80; outside none: dropped",
        ),
    ],
)
def test_backends(frontend: dict[str, Any], text: str) -> None:
    assert cells("BACKENDS", frontend) == [text]


@pytest.mark.parametrize(
    ("frontend", "service", "text"),
    [
        ({}, {}, ""),
        ({"affinity_timeout_s": 10800}, {}, "affinity 3h00m"),
        ({"algorithm": "maglev", "forwarding": "dsr"}, {}, "maglev, dsr"),
        ({"source_ranges": ("192.0.2.0/24",)}, {}, "from 192.0.2.0/24"),
        ({}, {"internal_traffic_policy": "Local"}, "local"),
        ({}, {"external_traffic_policy": "Local"}, ""),
        ({"kind": "NodePort"}, {"external_traffic_policy": "Local"}, "local"),
        ({"kind": "LoadBalancer"}, {"health_check_node_port": 31000}, "health check 31000"),
    ],
)
def test_options(frontend: dict[str, Any], service: dict[str, Any], text: str) -> None:
    frontends = (msgspec.structs.replace(FRONTEND, **frontend),)
    assert cells("OPTIONS", None, frontends=frontends, **service) == [text]


def test_a_row_for_each_port_and_kind() -> None:
    def frontend(address: str, kind: str = "ClusterIP", port: int = 80, name: str = "http") -> FrontendView:
        return msgspec.structs.replace(FRONTEND, address=address, kind=kind, port=port, name=name)

    frontends = (
        frontend("10.96.0.1"),
        frontend("192.0.2.1", "NodePort", 30080),
        frontend("fd00::1"),
        frontend("10.96.0.1", port=443, name="https"),
        frontend("2001:db8::1", "NodePort", 30080),
        frontend("127.0.0.1", "Loopback", 30080),
    )
    assert cells("FRONTEND", None, frontends=frontends) == [
        "10.96.0.1:80/TCP +1",
        "10.96.0.1:443/TCP",
        "192.0.2.1:30080/TCP +2",
    ]


def test_a_problem_is_said_once() -> None:
    frontends = (FRONTEND, msgspec.structs.replace(FRONTEND, port=81, name="alt"))
    assert cells("PROBLEM", None, frontends=frontends, problem="bad") == ["bad", ""]


def test_the_newest_change_of_a_row_is_shown() -> None:
    old, new = (LastChangeView(time=f"2026-11-23T08:00:0{n}.000Z", text=f"change {n}") for n in (1, 2))
    frontends = tuple(msgspec.structs.replace(FRONTEND, last_change=change) for change in (old, new, None))
    assert cells("LAST CHANGE", None, frontends=frontends) == ["2026-11-23T08:00:02Z change 2"]


@pytest.mark.parametrize(
    ("kind", "ips", "shown"), [("ExternalName", (), "ExternalName"), ("ClusterIP", ("None",), "headless")]
)
def test_services_without_frontends(kind: str, ips: tuple[str, ...], shown: str) -> None:
    assert cells("KIND", None, frontends=(), type=kind, ips=ips) == [shown]

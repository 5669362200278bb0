"""Flows as lines."""

from __future__ import annotations

from typing import Any

import msgspec
import pytest
from flow_events import ABI, EVENT, C, drop, event, known_names

from agent.datapath.abi import be16
from agent.flows.clock import WallClock
from agent.flows.flow import Flow, Lost
from agent.flows.record import Recorder
from agent.flows.render import decode, line
from policies.address import parse_address

TIME = "22:13:20.000"
LINES: list[tuple[dict[str, Any], str]] = [
    (
        event(ingress_judged=0, service=parse_address("10.96.0.9"), service_port_be=be16(80)),
        "FORWARDED new  egress  shop/client-1:40000 → shop/web-1:8080 TCP SYN by shop/client egress[1]"
        " via shop/web:80 (http)",
    ),
    (
        drop(source=parse_address("192.0.2.7"), source_identity=9),
        "DROPPED   drop ingress 192.0.2.7:40000 (world-ipv4) → shop/web-1:8080 TCP SYN POLICY_INGRESS by default-deny",
    ),
    (
        drop(C.DROP_NO_BACKEND, rule_egress=0, tcp_flags=0, protocol=17, destination=parse_address("fd00::9")),
        "REFUSED   drop egress  shop/client-1:40000 → [fd00::9]:8080 UDP NO_BACKEND",
    ),
    (
        event(type=C.EVENT_END, egress_judged=0, packets=3, bytes=300, rule_ingress=C.RULE_HOST),
        "FORWARDED end  ingress shop/client-1:40000 → shop/web-1:8080 TCP 3 packets 300 bytes by node",
    ),
    (
        event(protocol=1, icmp_type=8, ingress_judged=0, rule_egress=C.RULE_NOT_ISOLATED),
        "FORWARDED new  egress  shop/client-1 → shop/web-1 ICMP type 8 code 0 by not-isolated",
    ),
]


def as_json(values: dict[str, Any]) -> dict[str, Any]:
    recorder = Recorder(ABI, known_names(), WallClock(0, 1_700_000_000 * 10**9))
    (flow,) = recorder.flows(0, EVENT.unpack(EVENT.pack(**values)))
    decoded: dict[str, Any] = msgspec.json.decode(msgspec.json.encode(flow))
    return decoded


@pytest.mark.parametrize(("values", "expected"), LINES, ids=range(len(LINES)))
def test_a_flow_is_one_line(values: dict[str, Any], expected: str) -> None:
    assert line(as_json(values)) == f"{TIME} {expected}"


def test_colour_is_only_where_asked_for() -> None:
    value = as_json(LINES[1][0])
    assert "\x1b" not in line(value)
    colored = line(value, color=True)
    assert "\x1b[31mDROPPED" in colored
    assert colored.replace("\x1b[31m", "").replace("\x1b[0m", "") == line(value)


def test_values_of_the_stream_are_decoded_to_what_they_were() -> None:
    assert isinstance(decode(as_json(LINES[0][0])), Flow)
    lost = Lost("2023-11-14T22:13:20.000000000Z", "observer", 7, {"drop POLICY_INGRESS": 5, "new": 2})
    value = msgspec.json.decode(msgspec.json.encode(lost))
    assert value["type"] == "lost"
    assert decode(value) == lost
    text = "22:13:20.000 LOST      7 events: this reader is too slow (5 drop POLICY_INGRESS, 2 new)"
    assert line(value) == text
    assert line(Lost(lost.time, "kernel", 9), color=True).startswith(
        "\x1b[35m22:13:20.000 LOST      9 events: the kernel"
    )

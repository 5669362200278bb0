"""Filters of observe, as a table: the record they are asked about is one of four."""

from __future__ import annotations

from datetime import datetime

import pytest
from flow_events import ABI, EVENT, C, drop, event, known_names

from agent.datapath.abi import be16
from agent.flows.clock import WallClock
from agent.flows.filters import OPTIONS, FilterError, parse, parse_time
from agent.flows.flow import Flow
from agent.flows.record import Recorder
from agent.flows.recordfilters import OF_L7
from policies.address import parse_address

NOW = 1_700_000_000 * 10**9

EVENTS = {
    # client-1 → web-1 through the service, allowed
    "new": event(egress_judged=0, rule_egress=0, service=parse_address("10.96.0.9"), service_port_be=be16(80)),
    # client-1 → web-1, no ingress rule allows it
    "drop": drop(destination_port_be=be16(22)),
    # client-1 → a service without backends
    "refused": drop(C.DROP_NO_BACKEND, destination=parse_address("10.96.0.77"), destination_identity=0),
    # an IPv6 address of the world pings an unnamed pod, and is done
    "end": event(
        type=C.EVENT_END, protocol=58, source=parse_address("2001:db8::7"), source_identity=10, rule_ingress=1,
        destination=parse_address("fd00::9"), destination_identity=500, egress_judged=0,
        hook=C.HOOK_FROM_NETWORK, time_ns=3600 * 10**9,
    ),
}  # fmt: skip

ALL = "new drop refused end"
CASES: list[tuple[str, list[str], str]] = [
    ("verdict", ["FORWARDED"], "new end"),
    ("verdict", ["dropped"], "drop"),
    ("verdict", ["DROPPED", "REFUSED"], "drop refused"),
    ("drop_reason", ["POLICY_INGRESS"], "drop"),
    ("drop-reason", ["drop_no_backend"], "refused"),
    ("hook", ["from-pod"], "new drop refused"),
    ("hook", ["FROM_NETWORK", "xdp"], "end"),
    ("type", ["new"], "new"),
    ("type", ["new", "End"], "new end"),
    ("pod", ["shop/client-1"], "new drop refused"),
    ("pod", ["web-1"], "new drop"),
    ("pod", ["shop/"], "new drop refused"),
    ("pod", ["shop/web-*"], "new drop"),
    ("pod", ["prod/web-1"], ""),
    ("from_pod", ["shop/client-1"], "new drop refused"),
    ("from_pod", ["shop/web-1"], ""),
    ("to_pod", ["shop/web-1"], "new drop"),
    ("to_pod", ["shop/client-1", "shop/web-1"], "new drop"),
    ("namespace", ["shop"], "new drop refused"),
    ("namespace", ["sho"], ""),
    ("from_ip", ["10.0.0.1"], "new drop refused"),
    ("from_ip", ["10.0.0.0/8"], "new drop refused"),
    ("from_ip", ["0.0.0.0/0"], "new drop refused"),
    ("from_ip", ["::/0"], "end"),
    ("from_ip", ["10.0.0.1", "2001:db8::/32"], ALL),
    ("to_ip", ["10.96.0.0/16"], "refused"),
    ("to_ip", ["fd00::9"], "end"),
    ("from_label", ["app=client"], "new drop refused"),
    ("from_label", ["app=client,tier=front"], "new drop refused"),
    ("from_label", ["app=client,tier=back"], ""),
    ("from_label", ["app"], "new drop refused"),
    ("from_label", ["ap"], ""),
    ("from_label", ["reserved:world-ipv6"], "end"),
    ("to_label", ["app=web"], "new drop"),
    ("to_label", ["app=client"], ""),
    ("identity", ["300"], "new drop refused"),
    ("identity", ["400", "500"], "new drop end"),
    ("identity", ["world-ipv6"], "end"),
    ("identity", ["0"], "refused"),
    ("protocol", ["tcp"], "new drop refused"),
    ("protocol", ["ICMPv6"], "end"),
    ("protocol", ["58", "6"], ALL),
    ("port", ["40000"], "new drop refused"),
    ("port", ["22"], "drop"),
    ("to_port", ["40000"], ""),
    ("to_port", ["22", "8080"], "new drop refused"),
    ("policy", ["shop/web"], "new"),
    ("policy", ["web"], "new"),
    ("policy", ["shop/"], "new"),
    ("policy", ["default-deny"], "drop"),
    ("policy", ["not-isolated"], "end"),
    ("service", ["shop/web"], "new"),
    ("service", ["dns"], ""),
    ("since", ["10m"], "end"),
    ("since", ["3h"], ALL),
    ("until", ["10m"], "new drop refused"),
    ("until", ["3h"], ""),
]


def matched(options: dict[str, list[str]]) -> str:
    """The events whose record the filter lets through. The clock began an hour before NOW."""
    clock = WallClock(0, NOW - 3600 * 10**9)
    recorder = Recorder(ABI, known_names(), clock)
    wanted = parse(options, NOW, ABI)

    def passes(name: str) -> bool:
        unpacked = EVENT.unpack(EVENT.pack(**EVENTS[name]))
        flows: tuple[Flow, ...] = recorder.flows(0, unpacked)
        assert len(flows) == 1
        assert wanted.is_timed or wanted.time(0)
        return wanted.time(clock.wall_ns(unpacked.time_ns)) and wanted.event(unpacked) and wanted.flow(flows[0])

    return " ".join(name for name in EVENTS if passes(name))


@pytest.mark.parametrize(("option", "values", "expected"), CASES, ids=str)
def test_each_filter(option: str, values: list[str], expected: str) -> None:
    assert matched({option: values}) == expected


def test_the_table_tries_every_option() -> None:
    assert {case[0].replace("-", "_") for case in CASES} == {option.name for option in OPTIONS} - OF_L7


@pytest.mark.parametrize(
    ("options", "expected"),
    [
        ({}, ALL),
        ({"verdict": []}, ALL),
        ({"verdict": ["DROPPED", "REFUSED"], "to_pod": ["web-1"]}, "drop"),
        ({"from_pod": ["shop/client-1"], "to_ip": ["fd00::/8"]}, ""),
        ({"since": ["3h"], "until": ["10m"], "type": ["new"]}, "new"),
    ],
)
def test_kinds_are_combined_by_and_values_by_or(options: dict[str, list[str]], expected: str) -> None:
    assert matched(options) == expected


BAD = [
    ({"verdict": ["MAYBE"]}, "--verdict MAYBE: give one of FORWARDED, DROPPED, REFUSED, REDIRECTED"),
    ({"drop_reason": ["BORED"]}, "--drop-reason BORED: give one of UNKNOWN_ENDPOINT, "),
    (
        {"hook": ["tc"]},
        "--hook tc: give one of from-pod, to-pod, from-network, to-network, xdp, socket, from-wireguard, proxy",
    ),
    ({"type": ["lost"]}, "--type lost: give one of new, end, drop, l7"),
    ({"pod": ["a/b/c"]}, "--pod a/b/c: give NAME or NAMESPACE/NAME"),
    ({"pod": [""]}, "--pod : give NAME"),
    ({"from_ip": ["10.0.0.300"]}, "--from-ip 10.0.0.300: "),
    ({"from_label": ["a=b,"]}, "--from-label a=b,: give KEY=VALUE"),
    ({"identity": ["-1"]}, "--identity -1: give a number from 0"),
    (
        {"protocol": ["QUIC"]},
        "--protocol QUIC: give one of TCP, UDP, SCTP, ICMP, ICMPv6, HTTP, GRPC, DNS, TLS, or a number",
    ),
    ({"port": ["0"]}, "--port 0: give a number from 1 to 65535"),
    ({"to_port": ["http"]}, "--to-port http: give a number"),
    ({"port": ["²"]}, "--port ²: give a number"),
    ({"since": ["yesterday"]}, "--since yesterday: give 30s, 5m"),
    ({"until": ["5 m"]}, "--until 5 m: give 30s, 5m"),
    ({"color": ["red"]}, "there is no filter color; there are verdict,"),
]


@pytest.mark.parametrize(("options", "text"), BAD, ids=lambda value: str(value)[:30])
def test_a_filter_that_is_not_understood_says_what_it_takes(options: dict[str, list[str]], text: str) -> None:
    with pytest.raises(FilterError) as caught:
        parse(options, NOW, ABI)
    assert str(caught.value).startswith(text)


@pytest.mark.parametrize(
    ("text", "before_s"),
    [("30s", 30), ("5m", 300), ("1h30m", 5400), ("2d", 172800), ("500ms", 0.5), ("2023-11-14T22:13:10Z", 10)],
)
def test_times(text: str, before_s: float) -> None:
    assert parse_time(text, NOW) == NOW - int(before_s * 10**9)


def test_a_time_without_a_zone_is_local() -> None:
    local = datetime.fromtimestamp(NOW // 10**9)
    assert parse_time(local.isoformat(), NOW) == NOW

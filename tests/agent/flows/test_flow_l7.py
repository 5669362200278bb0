"""What proxies report, on its way into the store: whose it was, which rule sent it there, how much of it is kept."""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator
from contextlib import aclosing
from typing import Any

import msgspec
import pytest
from conntrack_entries import FLOWS, TUPLE, Flow
from flow_events import ABI, EVENT, C, drop, event, known_names
from l7_records import CALL, FORBIDDEN, GET, HELLO, LISTENER, QUERY, REFUSED, WALL_NS, record

from agent.datapath.maps import Maps
from agent.flows.clock import WallClock
from agent.flows.filters import FilterError, parse
from agent.flows.flow import Flow as FlowRecord
from agent.flows.flow import Lost
from agent.flows.l7 import BURST, RECORDS_PER_S, L7Intake
from agent.flows.names import Names
from agent.flows.observe import Observer
from agent.flows.record import Recorder
from agent.flows.recordfilters import OF_L7
from agent.flows.render import line
from agent.flows.store import Store
from l7proxy.records import L7Record
from policies.address import parse_address

CLOCK = WallClock(0, WALL_NS - 10**9)
ENDPOINT, PREFIX, KNOWN = ABI.records["endpoint"], ABI.records["ipcache_key"], ABI.records["ipcache_value"]
HOUR = 3600 * 10**9


class Bench:
    """An intake over real maps, and what an observer sees of it."""

    def __init__(self, maps: Maps, names: Names | None = None, capacity: int = 1000) -> None:
        self.maps = maps
        self.now_ns = 0
        self.store = Store(ABI, capacity)
        self.names = names or known_names()
        self.intake = L7Intake(ABI, maps, self.store, CLOCK, lambda: self.now_ns)

    def track(self, flow: Flow, leg: int = 0, **fields: Any) -> None:
        entries = flow.entries(expires_ns=time.monotonic_ns() + HOUR, **({"listener": LISTENER} | fields))
        for key, value in entries.items():
            values = TUPLE.unpack(key)._replace(leg=leg)
            self.maps["conntrack"].update(TUPLE.pack_values(*values), value)

    def observed(self, **filters: list[str]) -> list[FlowRecord | Lost]:
        wanted = parse(filters, WALL_NS, ABI)
        observer = Observer(ABI, self.store, Recorder(ABI, self.names, CLOCK), CLOCK, wanted)

        async def all_of() -> list[FlowRecord | Lost]:
            batches: AsyncIterator[Any] = observer.run(None, follow=False)
            return [item async for batch in batches for item in batch]

        return asyncio.run(all_of())

    def flows(self, **filters: list[str]) -> list[FlowRecord]:
        return [item for item in self.observed(**filters) if isinstance(item, FlowRecord)]

    def take(self, *records: L7Record) -> list[FlowRecord]:
        self.intake.take(records)
        return self.flows()


@pytest.fixture
def bench(maps: Maps) -> Bench:
    return Bench(maps)


def test_the_json_of_a_request_is_as_promised(bench: Bench) -> None:
    bench.track(FLOWS["service"], rule_ingress=0)
    bench.intake.take([record(FORBIDDEN, source_port=40002, denied=True)])
    (flow,) = bench.flows()
    assert msgspec.json.decode(msgspec.json.encode(flow)) == {
        "time": "2023-11-14T22:13:20.000000000Z",
        "seq": 0,
        "type": "l7",
        "verdict": "DROPPED",
        "drop_reason": "PROXY_DENIED",
        "direction": "egress",
        "source": {
            "identity": 300, "namespace": "shop", "pod": "client-1", "ip": "10.0.0.1", "port": 40002,
            "labels": ["app=client", "tier=front"],
        },
        "destination": {
            "identity": 400, "namespace": "shop", "pod": "web-1", "ip": "10.0.0.2", "port": 8080, "labels": ["app=web"],
        },
        "protocol": "TCP",
        "l7": {
            "type": "http", "protocol": "HTTP/2", "method": "POST", "host": "web.shop", "path": "/admin?…",
            "status": 403, "grpc_status": None, "latency_ns": 90000, "request_bytes": 0, "response_bytes": 0, "sni": "",
            "flags": [], "details": "rbac_access_denied[none]",
        },
        "policy": {"kind": "NetworkPolicy", "namespace": "shop", "name": "client", "rule": "egress[1]"},
        "service": {"namespace": "shop", "name": "web", "ip": "10.96.0.9", "port": 80, "port_name": "http"},
        "node": "n1",
        "packets": None,
        "bytes": None,
        "tcp_flags": None,
        "icmp": None,
        "encrypted": False,
        "hook": "proxy",
        "ifindex": 0,
    }  # fmt: skip


def test_names_and_connections_have_fields_of_their_own(bench: Bench) -> None:
    dns, tls = bench.take(record(QUERY, transport="UDP", destination_port=53), record(HELLO))
    assert msgspec.to_builtins(dns.l7) == {
        "type": "dns", "query": "db.example.com", "qtype": "AAAA", "rcode": "NOERROR",
        "answers": ("c.example.net", "2001:db8::7"), "ttl_s": 30, "latency_ns": 310_000,
    }  # fmt: skip
    assert (dns.protocol, dns.destination.port) == ("UDP", 53)
    assert msgspec.to_builtins(tls.l7) == {
        "type": "tls", "sni": "api.example.com", "latency_ns": 5_000_000, "request_bytes": 517, "response_bytes": 0,
        "flags": ("upstream_connection_failure",), "details": "",
    }  # fmt: skip


PLAIN = FLOWS["plain"]
ONLY_EGRESS, ONLY_INGRESS = {"rule_ingress": 0}, {"rule_egress": 0}
# what conntrack has, as (leg, changes); whose rules the proxy says it asked → direction and rule of the record
RULES: list[tuple[str, list[tuple[int, dict[str, Any]]], str, str, str]] = [
    ("by egress", [(0, ONLY_EGRESS)], "egress", "egress", "shop/client egress[1]"),
    ("by ingress", [(0, ONLY_INGRESS)], "ingress", "ingress", "shop/web ingress[0]"),
    ("a proxy that does not say: egress", [(0, ONLY_EGRESS)], "", "egress", "shop/client egress[1]"),
    ("a proxy that does not say: ingress", [(0, ONLY_INGRESS)], "", "ingress", "shop/web ingress[0]"),
    ("both sides judged, the destination asks", [(0, {})], "ingress", "ingress", "shop/web ingress[0]"),
    ("both sides judged, the source asks", [(0, {})], "egress", "egress", "shop/client egress[1]"),
    (
        "two proxies, one after the other: here the second",
        [(0, ONLY_EGRESS | {"listener": 1}), (1, ONLY_INGRESS)],
        "ingress", "ingress", "shop/web ingress[0]",
    ),
    (
        "two proxies, one after the other: here the first",
        [(0, ONLY_EGRESS), (1, ONLY_INGRESS | {"listener": 1})],
        "", "egress", "shop/client egress[1]",
    ),
    ("not tracked any more", [], "egress", "egress", ""),
    ("not tracked any more, ingress", [], "ingress", "ingress", ""),
]  # fmt: skip


@pytest.mark.parametrize(("tracked", "said", "direction", "rule"), [r[1:] for r in RULES], ids=[r[0] for r in RULES])
def test_the_rule_is_that_by_which_the_flow_came_to_the_proxy(
    bench: Bench, tracked: list[tuple[int, dict[str, Any]]], said: str, direction: str, rule: str
) -> None:
    for leg, fields in tracked:
        bench.track(PLAIN, leg, **fields)
    (flow,) = bench.take(record(GET, direction=said))
    assert (flow.direction, str(flow.policy) if flow.policy else "") == (direction, rule)
    assert (flow.verdict, flow.drop_reason) == ("FORWARDED", None)


@pytest.mark.parametrize("encrypted", [False, True])
def test_a_request_goes_as_its_flow_does(bench: Bench, encrypted: bool) -> None:
    bench.track(PLAIN, flags=C.CT_TO_PROXY | C.CT_ENCRYPTED * encrypted)
    (flow,) = bench.take(record(GET))
    assert flow.encrypted is encrypted


def test_without_an_entry_addresses_say_who_it_was(bench: Bench) -> None:
    bench.maps["endpoints"].update(parse_address("10.0.0.1"), ENDPOINT.pack(identity=300))
    world = PREFIX.pack(prefixlen=96, address=parse_address("0.0.0.0"))
    bench.maps["ipcache"].update(world, KNOWN.pack(remote_class=9, identity=9))
    (out, back) = bench.take(
        record(GET, destination="192.0.2.7", direction=""),
        record(GET, source="192.0.2.7", destination="10.0.0.1", direction=""),
    )
    assert (out.source.identity, out.destination.identity, out.direction) == (300, 9, "egress")
    assert (back.source.identity, back.destination.identity, back.direction) == (9, 300, "ingress")
    (unknown,) = bench.take(record(GET, source="fd00::1", destination="fd00::2"))[2:]
    assert (unknown.source.identity, unknown.destination.identity) == (0, 0)


def test_pods_that_are_gone_keep_their_names(bench: Bench) -> None:
    """A record tells of a moment before it came: the name is that of its own time."""
    bench.names.apply({"t": "pod", "ip": "10.0.0.2", "gone": True}, 5 * 10**9)
    bench.names.apply({"t": "pod", "ip": "10.0.0.2", "namespace": "prod", "name": "other"}, 6 * 10**9)
    before, after = bench.take(record(GET), record(GET, time_ns=WALL_NS + 8 * 10**9))
    assert (str(before.destination), str(after.destination)) == ("shop/web-1", "prod/other")


def test_what_led_to_a_record_is_before_it(bench: Bench) -> None:
    new = EVENT.pack(**event(verdict=C.VERDICT_REDIRECT, ingress_judged=0, rule_ingress=0))
    bench.intake.catch_up = lambda: bench.store.append(new)
    flows = bench.take(record(GET))
    assert [(f.type, f.verdict) for f in flows] == [("new", "REDIRECTED"), ("l7", "FORWARDED")]


@pytest.mark.parametrize("changes", [{"source": "nobody"}, {"destination": ""}, {"source_port": 65536}])
def test_a_record_of_no_flow_is_counted(bench: Bench, changes: dict[str, Any]) -> None:
    assert len(bench.take(record(GET), record(GET, **changes), record(GET))) == 2
    assert (bench.intake.taken, bench.intake.lost) == (2, 1)


# ---- floods --------------------------------------------------------------------------------------------------


def test_more_than_is_recorded_is_counted(bench: Bench) -> None:
    assert bench.intake.admit(BURST - 5) == BURST - 5
    assert bench.intake.admit(20) == 5
    assert bench.intake.admit(1) == 0
    bench.now_ns += 10**9 // 1000
    assert bench.intake.admit(RECORDS_PER_S) == RECORDS_PER_S // 1000
    bench.now_ns += HOUR
    assert bench.intake.admit(10 * BURST) == BURST
    lost = 15 + 1 + RECORDS_PER_S - RECORDS_PER_S // 1000 + 9 * BURST
    assert bench.intake.lost == lost
    assert not bench.observed()
    bench.intake.take([record(GET)])
    bench.intake.say_lost()
    bench.intake.say_lost()
    _, told = bench.observed()
    assert isinstance(told, Lost)
    assert (told.where, told.count, told.summary) == ("proxy", lost, {})
    assert "LOST" in line(told)
    assert "more requests than are recorded" in line(told)


def test_a_flood_takes_the_room_of_its_store_and_no_more(maps: Maps) -> None:
    bench = Bench(maps, capacity=50)
    for number in range(40):
        bench.intake.take([record(msgspec.structs.replace(GET, path=f"/{number}/{n}")) for n in range(7)])
    flows = bench.flows()
    assert [flow.l7.path for flow in flows] == [f"/{n // 7}/{n % 7}" for n in range(230, 280)]  # type: ignore[union-attr]
    assert len(bench.store._l7) == 50


def test_what_an_observer_passes_over_is_counted_by_kind(maps: Maps) -> None:
    bench = Bench(maps, capacity=4)
    observer = Observer(ABI, bench.store, Recorder(ABI, bench.names, CLOCK), CLOCK, parse({}, WALL_NS, ABI))

    async def slow_reader() -> Any:
        bench.intake.take([record(GET)])
        async with aclosing(observer.run(1, follow=True)) as batches:
            assert len(await anext(batches)) == 1
            bench.intake.take([record(GET), record(GET), *[record(REFUSED, transport="UDP", denied=True)] * 6])
            return (await anext(batches))[0]

    lost = asyncio.run(slow_reader())
    assert isinstance(lost, Lost)
    assert (lost.where, lost.summary) == ("observer", {"l7 PROXY_DENIED": 6, "l7": 2})


# ---- filters -------------------------------------------------------------------------------------------------

RECORDS = {
    "get": record(GET),
    "forbidden": record(FORBIDDEN, denied=True),
    "call": record(CALL, source="10.0.0.2", destination="10.0.0.1", direction="ingress"),
    "query": record(QUERY, transport="UDP", destination_port=53),
    "refused": record(REFUSED, transport="TCP", destination_port=53, denied=True),
    "hello": record(HELLO, destination="192.0.2.7", destination_port=443),
}
ALL = "new drop get forbidden call query refused hello"
CASES: list[tuple[dict[str, list[str]], str]] = [
    ({}, ALL),
    ({"type": ["l7"]}, "get forbidden call query refused hello"),
    ({"type": ["new", "L7"]}, "new get forbidden call query refused hello"),
    ({"http_method": ["GET"]}, "get"),
    ({"http-method": ["post"]}, "forbidden call"),
    ({"http_method": ["GET", "POST"]}, "get forbidden call"),
    ({"http_method": ["G"]}, ""),
    ({"http_path": ["^/api/"]}, "get"),
    ({"http_path": ["admin"]}, "forbidden"),
    ({"http_path": ["^admin"]}, ""),
    ({"http_path": [""]}, "get forbidden call"),
    ({"http_path": [r"/v\d$", "^/shop[.]"]}, "get call"),
    ({"http_status": ["403"]}, "forbidden"),
    ({"http_status": ["4xx"]}, "forbidden"),
    ({"http_status": ["2XX", "403"]}, "get forbidden call"),
    ({"http_status": ["200-399"]}, "get call"),
    ({"http_status": ["5xx"]}, ""),
    ({"dns_query": ["db.example.com"]}, "query"),
    ({"dns_query": ["DB.Example.COM."]}, "query"),
    ({"dns_query": ["example.com"]}, ""),
    ({"dns_query": ["*.example.com"]}, "query"),
    ({"dns_query": ["*.com"]}, ""),
    ({"dns_query": ["**.com"]}, "query"),
    ({"dns_query": ["*"]}, "query refused"),
    ({"dns_query": ["evil.*", "d*.example.com"]}, "query refused"),
    ({"protocol": ["http"]}, "get forbidden call"),
    ({"protocol": ["gRPC"]}, "call"),
    ({"protocol": ["DNS"]}, "query refused"),
    ({"protocol": ["tls"]}, "call hello"),
    ({"protocol": ["udp"]}, "query"),
    ({"protocol": ["UDP", "http"]}, "get forbidden call query"),
    ({"protocol": ["6"]}, "new drop get forbidden call refused hello"),
    ({"protocol": ["dns", "tcp"]}, ALL),
    ({"verdict": ["DROPPED"]}, "drop forbidden refused"),
    ({"verdict": ["REDIRECTED"]}, "new"),
    ({"drop_reason": ["PROXY_DENIED"]}, "forbidden refused"),
    ({"hook": ["proxy"]}, "get forbidden call query refused hello"),
    ({"to_port": ["53"]}, "query refused"),
    ({"to_ip": ["192.0.2.0/24"]}, "hello"),
    ({"from_pod": ["shop/web-1"]}, "call"),
    ({"http_status": ["4xx"], "verdict": ["FORWARDED"]}, ""),
    ({"http_status": ["4xx"], "verdict": ["DROPPED"], "to_pod": ["shop/web-1"]}, "forbidden"),
    ({"protocol": ["http"], "from_pod": ["web-1"], "type": ["l7"]}, "call"),
    ({"dns_query": ["*"], "http_method": ["GET"]}, ""),
    ({"dns_query": ["*"], "protocol": ["udp"]}, "query"),
    ({"since": ["1h"], "http_method": ["GET"]}, "get"),
    ({"until": ["1h"], "http_method": ["GET"]}, ""),
]


@pytest.mark.parametrize(("filters", "expected"), CASES, ids=str)
def test_filters_of_requests_names_and_connections(bench: Bench, filters: dict[str, list[str]], expected: str) -> None:
    bench.store.append(EVENT.pack(**event(verdict=C.VERDICT_REDIRECT, ingress_judged=0)))
    bench.store.append(EVENT.pack(**drop()))
    bench.intake.take(list(RECORDS.values()))
    names = ["new", "drop", *RECORDS]
    assert " ".join(names[flow.seq] for flow in bench.flows(**filters)) == expected


def test_the_table_tries_every_option_of_l7() -> None:
    assert {name.replace("-", "_") for filters, _ in CASES for name in filters} >= OF_L7


BAD = [
    ({"http_path": ["("]}, "--http-path (: give a regular expression: "),
    ({"http_status": ["6xx"]}, "--http-status 6xx: give 403, 4xx or 400-499"),
    ({"http_status": ["40"]}, "--http-status 40: give 403"),
    ({"http_status": ["499-400"]}, "--http-status 499-400: give 403"),
    ({"http_status": ["²00"]}, "--http-status ²00: give 403"),
    ({"dns_query": ["a b"]}, "--dns-query a b: give a DNS name"),
    ({"dns_query": [""]}, "--dns-query : give a DNS name"),
]


@pytest.mark.parametrize(("filters", "text"), BAD, ids=str)
def test_a_filter_that_is_not_understood_says_what_it_takes(filters: dict[str, list[str]], text: str) -> None:
    with pytest.raises(FilterError) as caught:
        parse(filters, WALL_NS, ABI)
    assert str(caught.value).startswith(text)


# ---- lines ---------------------------------------------------------------------------------------------------

FROM = "l7   egress  shop/client-1:40000 → shop/web-1:"
LINES = {
    "get": f"FORWARDED {FROM}8080 HTTP/1.1 GET /api/v1 200 1.2ms host web.shop by shop/client egress[1]",
    "forbidden": f"DROPPED   {FROM}8080 HTTP/2 POST /admin?… 403 90µs host web.shop PROXY_DENIED"
    " by shop/client egress[1]",
    "call": "FORWARDED l7   ingress shop/web-1:40000 → shop/client-1:8080 gRPC POST /shop.Cart/Add 200 2.3s"
    " grpc-status 7 host cart.shop",
    "query": f"FORWARDED {FROM}53 DNS AAAA db.example.com NOERROR c.example.net,2001:db8::7 310µs",
    "refused": f"DROPPED   {FROM}53 DNS A evil.test REFUSED 0µs PROXY_DENIED",
    "hello": "FORWARDED l7   egress  shop/client-1:40000 → 192.0.2.7:443 (unknown) TLS api.example.com 5.0ms"
    " upstream_connection_failure",
}


def test_a_request_is_one_line(bench: Bench) -> None:
    bench.track(PLAIN, rule_ingress=0)
    bench.intake.take(list(RECORDS.values()))
    shown = [line(msgspec.json.decode(msgspec.json.encode(flow))) for flow in bench.flows()]
    assert shown == [f"22:13:20.000 {text}" for text in LINES.values()]


def test_what_a_client_sends_means_nothing_to_a_terminal(bench: Bench) -> None:
    evil = msgspec.structs.replace(GET, path="/\x1b[2J\n\u202e\x9b", host="h\r", method="\x07")
    (flow,) = bench.take(record(evil))
    assert all(character.isprintable() for character in line(flow))
    assert "/\\x1b[2J\\n\\u202e\\x9b" in line(flow)

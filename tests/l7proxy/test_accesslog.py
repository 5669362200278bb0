"""Envoy's access log: entries → records, and a stream of them from a client written by hand."""

from __future__ import annotations

import asyncio
from pathlib import Path
from typing import Any

import pytest
from access_log_entries import OK, REFUSED, http_entry, message, send, tcp_entry

from l7proxy import redact
from l7proxy.accesslog import AccessLog, of_http, of_tcp
from l7proxy.logname import LogName
from l7proxy.records import Http, L7Record, Tls

LOG = LogName(0x00DEADBEEF001122, "egress")
BASE = Http(
    protocol="HTTP/1.1",
    method="GET",
    host="web.shop:80",
    path="/api",
    status=200,
    latency_ns=1_200_000,
    details="via_upstream",
)


def changed(**changes: Any) -> Http:
    return Http(**({name: getattr(BASE, name) for name in BASE.__struct_fields__} | changes))


GRPC_HEADERS = {"request_headers": {"content-type": "application/grpc+proto", ":method": "POST"}}
# what the entry says besides → the request, and whether it was denied
ROWS: list[tuple[str, Any, Http, bool]] = [
    ("plain", http_entry(), BASE, False),
    ("HTTP/1.0", http_entry(version="HTTP10"), changed(protocol="HTTP/1.0"), False),
    ("HTTP/2", http_entry(version="HTTP2"), changed(protocol="HTTP/2"), False),
    ("HTTP/3", http_entry(version="HTTP3"), changed(protocol="HTTP/3"), False),
    ("no version", http_entry(version="PROTOCOL_UNSPECIFIED"), changed(protocol="HTTP"), False),
    (
        "refused by rule",
        http_entry(response=REFUSED),
        changed(status=403, details="rbac_access_denied_matched_policy[none]"),
        True,
    ),
    (
        "refused before any rule: a path nobody can be sure of",
        http_entry(response={"response_code": 400, "response_code_details": "path_normalization_failed"}),
        changed(status=400, details="path_normalization_failed"),
        True,
    ),
    (
        "not HTTP at all",
        http_entry(
            {"request_method": 0, "authority": "", "path": ""},
            {"response_code": 400, "response_code_details": "http1.codec_error"},
            {"response_flags": {"downstream_protocol_error": True}},
        ),
        changed(
            method="", host="", path="", status=400, details="http1.codec_error", flags=("downstream_protocol_error",)
        ),
        True,
    ),
    (
        "a 403 of the server's own is no refusal of ours",
        http_entry(response={"response_code": 403, "response_code_details": "via_upstream"}),
        changed(status=403),
        False,
    ),
    (
        "nobody listens behind",
        http_entry(
            response={"response_code": 503, "response_code_details": "upstream_reset_before_response_started{x}"},
            common={"response_flags": {"upstream_connection_failure": True, "no_healthy_upstream": True}},
        ),
        changed(
            status=503,
            details="upstream_reset_before_response_started{x}",
            flags=("no_healthy_upstream", "upstream_connection_failure"),
        ),
        False,
    ),
    (
        "the client left before there was an answer",
        http_entry(response={"response_code_details": "downstream_remote_disconnect"}),
        changed(status=0, details="downstream_remote_disconnect"),
        False,
    ),
    (
        "gRPC, by its content type",
        http_entry(
            {"request_method": "POST", "path": "/shop.Cart/Add", **GRPC_HEADERS},
            OK | {"response_trailers": {"grpc-status": "7"}},
            version="HTTP2",
        ),
        changed(protocol="gRPC", method="POST", path="/shop.Cart/Add", grpc_status=7),
        False,
    ),
    (
        "gRPC that says all in its headers",
        http_entry(
            {"request_method": "POST", **GRPC_HEADERS},
            OK | {"response_headers": {"grpc-status": "12"}},
            version="HTTP2",
        ),
        changed(protocol="gRPC", method="POST", grpc_status=12),
        False,
    ),
    (
        "a gRPC status that is none",
        http_entry({}, OK | {"response_trailers": {"grpc-status": "seven"}}),
        BASE,
        False,
    ),
    (
        "a method Envoy has no number for",
        http_entry({"request_method": 0, "request_headers": {":method": "PROPFIND"}}),
        changed(method="PROPFIND"),
        False,
    ),
    (
        "bytes of bodies",
        http_entry({"request_body_bytes": 3, "request_headers_bytes": 99}, OK | {"response_body_bytes": 4}),
        changed(request_bytes=3, response_bytes=4),
        False,
    ),
    (
        "TLS that ends at the proxy",
        http_entry(common={"tls_properties": {"tls_sni_hostname": "web.shop"}}),
        changed(sni="web.shop"),
        False,
    ),
    (
        "headers are not shown, whatever is logged of them",
        http_entry(
            {
                "request_headers": {"authorization": "Bearer s3cret", "cookie": "s3cret"},
                "user_agent": "s3cret", "referer": "http://h/?s3cret", "forwarded_for": "s3cret",
                "request_id": "s3cret", "original_path": "/?s3cret",
            },
            OK | {"response_headers": {"set-cookie": "s3cret"}},
        ),
        BASE,
        False,
    ),
    (
        "lengths have bounds",
        http_entry({"path": "/" + "x" * 9000, "authority": "h" * 9000}),
        changed(path="/" + "x" * 510 + "…", host="h" * 254 + "…"),
        False,
    ),
]  # fmt: skip


@pytest.mark.parametrize(("entry", "expected", "denied"), [row[1:] for row in ROWS], ids=[row[0] for row in ROWS])
def test_an_entry_becomes_a_record(entry: Any, expected: Http, denied: bool) -> None:
    assert of_http(entry, LOG) == L7Record(
        listener=LOG.listener,
        direction="egress",
        time_ns=1_700_000_000_501_200_000,
        source="10.0.0.1",
        source_port=40000,
        destination="10.0.0.2",
        destination_port=8080,
        l7=expected,
        denied=denied,
    )


@pytest.mark.parametrize(
    ("common", "sni", "denied"),
    [
        ({"custom_tags": {"sni": "api.example.com"}}, "api.example.com", False),
        ({"tls_properties": {"tls_sni_hostname": "api.example.com"}}, "api.example.com", False),
        ({"custom_tags": {"sni": "-"}}, "", False),
        ({"connection_termination_details": "rbac_access_denied_matched_policy[none]"}, "", True),
        ({"connection_termination_details": "idle_timeout"}, "", False),
    ],
)
def test_a_connection_becomes_a_record(common: dict[str, Any], sni: str, denied: bool) -> None:
    record = of_tcp(tcp_entry(**common), LOG)
    details = common.get("connection_termination_details", "")
    assert record.l7 == Tls(sni, 1_200_000, request_bytes=517, response_bytes=9, details=details)
    assert (record.denied, record.transport, record.source_port) == (denied, "TCP", 40000)


def test_times_without_a_duration_come_from_what_else_is_known() -> None:
    entry = http_entry(common={"time_to_last_downstream_tx_byte": "0.5s"})
    entry.common_properties.ClearField("duration")
    assert of_http(entry, LOG).l7.latency_ns == 500_000_000
    entry.common_properties.ClearField("time_to_last_downstream_tx_byte")
    assert of_http(entry, LOG).l7.latency_ns == 0


def test_an_entry_without_addresses_is_refused() -> None:
    entry = http_entry()
    entry.common_properties.downstream_local_address.pipe.path = "/run/x"
    with pytest.raises(ValueError, match="names no addresses"):
        of_http(entry, LOG)


@pytest.mark.parametrize(
    ("text", "name"),
    [
        (str(LOG), LOG),
        ("00deadbeef001122/ingress", LogName(LOG.listener, "ingress")),
        ("00deadbeef001122", LogName(LOG.listener)),
        ("", LogName()),
        ("deadbeef/egress", LogName(0, "egress")),
        ("x" * 16 + "/up", LogName()),
    ],
)
def test_the_log_is_named_after_its_listener(text: str, name: LogName) -> None:
    assert LogName.parse(text) == name


# ---- redaction -----------------------------------------------------------------------------------------------

SHOWN = [
    ("/", "/"),
    ("/api/v1/users", "/api/v1/users"),
    ("/a%20b/%41/%C3%A9", "/a%20b/%41/%C3%A9"),
    ("/@scope/package", "/@scope/package"),
    ("/users/bob@example.com", "/users/bob@example.com"),
    ("/x?", "/x?"),
    ("/x?a=b", "/x?…"),
    ("*", "*"),
    ("web.shop:443", "web.shop:443"),  # CONNECT
    ("http://web.shop/x?a", "http://web.shop/x?…"),
    ("//web.shop/x", "//web.shop/x"),
    ("/..%2f..%5cetc", "/..%2f..%5cetc"),
]


@pytest.mark.parametrize(("path", "expected"), SHOWN)
def test_paths_are_shown_without_what_may_be_secret(path: str, expected: str) -> None:
    assert redact.path(path) == expected


SECRET = "s3cret"
HIDING = [
    "/x?token={}",
    "/x?{}",
    "/x?a=b&{}=c",
    "/x?a=b;token={}",
    "/x??{}",
    "/?/path/{}",
    "/x#access_token={}",
    "/x#?{}",
    "/x;jsessionid={}",
    "/x;jsessionid=a/{}",
    "/;{}/y",
    "/x%3Ftoken={}",
    "/x%3ftoken={}",
    "/x%23{}",
    "/x%3b{}",
    "/x%253Ftoken={}",
    "/x%25253ftoken={}",
    "/x%2525252523{}",
    "/x%c0%bftoken={}",  # overlong ?
    "/x%C0%A3{}",
    "/x%e0%80%bf{}",
    "/x%f0%80%80%bf{}",
    "/x%f8%80%80%80%bf{}",
    "/x%u003f{}",
    "/x%%3f{}",
    "/x%3%3f{}",
    "/x%?{}",
    "http://user:{}@web.shop/x",
    "HTTP://{}@web.shop/x",
    "http://web.shop@{}@x/",
    "http://user:p?w{}@web.shop/",
    "http://user:p#w{}@web.shop/",
    "http://user:p/w{}@web.shop/",
    "http:user:{}@web.shop/",
    "http:/\\user:{}@web.shop/",
    "//user:{}@web.shop/x",
    "/\\user:{}@web.shop/x",
    "/%2fuser:{}@web.shop/x",
    "/%252fuser:{}@web.shop/x",
    "\\\\user:{}@web.shop/x",
    "user:{}@web.shop:443",
    "user:{}%40web.shop:443",
    " http://user:{}@web.shop/",
    "http://web.shop/x?t=a@{}",
    "/x?" + "a" * 600 + "{}",
    "/" + "a" * 600 + "?{}",
]


@pytest.mark.parametrize("form", HIDING)
def test_no_spelling_gets_a_secret_through(form: str) -> None:
    entry = http_entry({"path": form.format(SECRET)})
    assert SECRET not in repr(of_http(entry, LOG))
    assert SECRET in form.format(SECRET)
    if len(form) < 500:
        assert SECRET in repr(of_http(entry, LOG, redacted=False))


@pytest.mark.parametrize("authority", ["user:{}@web.shop", "{}@web.shop:80", "web.shop?{}", "user:{}%40web", "h#{}"])
def test_no_user_stands_in_a_host(authority: str) -> None:
    assert SECRET not in repr(of_http(http_entry({"authority": authority.format(SECRET)}), LOG))


# ---- the stream ----------------------------------------------------------------------------------------------


class Keeper:
    def __init__(self, room: int = 1000) -> None:
        self.room = room
        self.records: list[L7Record] = []
        self.lost = 0

    def admit(self, count: int) -> int:
        admitted = min(self.room, count)
        self.room -= admitted
        self.lose(count - admitted)
        return admitted

    def take(self, records: list[L7Record]) -> None:
        self.records += records

    def lose(self, count: int) -> None:
        self.lost += count


def received(folder: Path, messages: list[bytes], keeper: Keeper, *, redacted: bool = True) -> Keeper:
    async def run() -> None:
        log = AccessLog(keeper, redacted=redacted)
        await log.start(str(folder / "a.sock"))
        try:
            await send(folder / "a.sock", messages)
        finally:
            await log.stop()

    asyncio.run(run())
    return keeper


def test_a_stream_becomes_records_of_its_listener(tmp_path: Path) -> None:
    messages = [message(http_entry(), log=LOG), message(tcp_entry()), message(http_entry({"path": "/second?x=y"}))]
    keeper = received(tmp_path, messages, Keeper())
    assert [(r.listener, getattr(r.l7, "path", None)) for r in keeper.records] == [
        (LOG.listener, "/api"),
        (LOG.listener, None),
        (LOG.listener, "/second?…"),
    ]
    assert keeper.lost == 0


def test_queries_are_shown_only_where_that_is_wanted(tmp_path: Path) -> None:
    messages = [message(http_entry({"path": "/x?a=b"}), log=LOG)]
    (record,) = received(tmp_path, messages, Keeper(), redacted=False).records
    assert record.l7.path == "/x?a=b"  # type: ignore[union-attr]


def test_what_there_is_no_room_for_is_counted(tmp_path: Path) -> None:
    keeper = received(tmp_path, [message(*[http_entry()] * 10, log=LOG)] * 3, Keeper(room=12))
    assert (len(keeper.records), keeper.lost) == (12, 18)


def test_what_cannot_be_read_ends_nothing(tmp_path: Path) -> None:
    """A path that is no UTF-8 makes the whole message unreadable: one client must not blind the log for the others."""
    bad = message(http_entry({"path": "/bad"})).replace(b"/bad", b"/b\xffd")
    nobody = http_entry()
    nobody.common_properties.ClearField("downstream_local_address")
    messages = [message(http_entry(), log=LOG), bad, b"\xff\xff", message(nobody), message(http_entry())]
    keeper = received(tmp_path, messages, Keeper())
    assert (len(keeper.records), keeper.lost) == (2, 3)

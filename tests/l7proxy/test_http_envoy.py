"""HTTP through a real Envoy: what no request may get past, and what a change of rules does to connections that live."""

from __future__ import annotations

import json
import socket
import sys
from collections.abc import Iterator
from contextlib import suppress

import pytest
import rig
from envoy_at import CLIENT_V4, CLIENT_V6, SERVER_V4, SERVER_V6, SETTINGS, EnvoyPath
from http_client import Answer, Connection
from http_server import Server

from l7proxy.listening import Override
from policies.httpmatch import ambiguous, normalised
from policies.l7 import L7, Demands, HeaderMatch, HttpRule, Mismatch
from policies.model import Direction

PUBLIC = HttpRule("GET|POST|HEAD|OPTIONS", "/public(?:/.*)?")


def http(*rules: HttpRule) -> Demands:
    return frozenset({L7(http=frozenset(rules))})


@pytest.fixture(scope="module")
def path(root: None) -> Iterator[EnvoyPath]:
    with EnvoyPath() as path:
        yield path


def raw(line: str, *headers: str, body: bytes = b"", host: str | None = "Host: example.com") -> bytes:
    lines = [line, *([host] if host else []), *headers]
    return "".join(f"{one}\r\n" for one in lines).encode("latin-1") + b"\r\n" + body


# ---- the path corpus -----------------------------------------------------------------------------------------

DENIED_TARGETS = (
    *("/secret", "/public/../secret", "/public/./../secret", "/public/a/../../secret", "/publicx", "/Public/a"),
    *("/public/%2e%2e/secret", "/public/%2E%2E/secret", "/public/.%2e/secret", "/public/%2e./secret"),
    *("/public%2f..%2fsecret", "/public/..%2fsecret", "/public/%2e%2e%2fsecret", "/public%2Fa", "/public/a%5c..%5cb"),
    *("//secret", "/public/..//secret", "//public/../secret", "/public//../secret/../../secret", "/public\\..\\secret"),
    *("/public/..;/secret", "/public/..;a=b/secret", "/public/%2e%2e;/secret", "/public/..%3b/secret", "/public;/a"),
    *(
        "/secret;/../public/../secret",
        "/public/;/../../secret",
        "/secret#/public/",
        "/public/#/../../secret",
        "/public#",
    ),
    *("/public/%00", "/public%00/../secret", "/public/\x00", "/secret%00/public", "/public/%c0%ae%c0%ae/secret"),
    *(
        "/public/%c0%afsecret",
        "/public/%e0%80%ae%e0%80%ae/secret",
        "/public/%f0%80%80%ae/x",
        "/public/\xc0\xae\xc0\xae/s",
    ),
    *("/public/%252e%252e/secret", "/public/%252e%252e%252fsecret", "/public/%255c..", "/public/%2500", "secret", "*"),
    *("/secret?/public/", "/secret?x=/public/a", "/%2e%2e/secret", "/../secret", "/..", "/.", "/", "//", "", " ", "?"),
    *("http://example.com/secret", "http://example.com/public/../secret", "http://other/secret", "https://e/secret"),
    *("http://example.com/secret#/public/", "HTTP://example.com/secret", "http://public/secret", "http:///public/a"),
    *("/public/" + "../" * 2000 + "secret", "/public/" + "a" * 70_000, "/" + "public/" * 9000, "/secret\t/public/"),
)
ALLOWED_TARGETS = {
    "/public": "/public",
    "/public/a": "/public/a",
    "/secret/../public/a": "/public/a",
    "//public//a": "/public/a",
    "/public/%61": "/public/a",
    "/%70ublic/a": "/public/a",
    "/public/a;v=1": "/public/a;v=1",
    "/public/a/..": "/public/",
    "/public/a?next=/../secret": "/public/a?next=/../secret",
    "/public/a?x=%2f%00": "/public/a?x=%2f%00",
    "http://example.com/public/a": "/public/a",
    "http://other.test/public/a": "/public/a",
    "/public/a%20b": "/public/a%20b",
    "/public/caf%C3%A9": "/public/caf%C3%A9",
    "/public/" + "a" * 30_000: "/public/" + "a" * 30_000,
}


@pytest.fixture(scope="module")
def corpus(path: EnvoyPath) -> Iterator[Server]:
    path.serve({8080: http(PUBLIC)})
    with Server(path.server, SERVER_V4, 8080) as server:
        yield server


@pytest.mark.parametrize("version", ["HTTP/1.1", "HTTP/1.0"])
@pytest.mark.parametrize("target", DENIED_TARGETS, ids=lambda target: repr(target)[:40])
def test_denied_target_reaches_nobody(path: EnvoyPath, corpus: Server, target: str, version: str) -> None:
    with Connection(path.connect(8080)) as connection:
        answer = connection.send(raw(f"GET {target} {version}"))
    assert answer.status in (0, 400, 403, 404, 431)
    assert b"ok" not in answer.body
    path.settle(corpus)
    assert corpus.take() == []


@pytest.mark.parametrize(("target", "sent"), ALLOWED_TARGETS.items(), ids=lambda target: repr(target)[:40])
def test_allowed_target_reaches_the_server_as_it_was_judged(
    path: EnvoyPath, corpus: Server, target: str, sent: str
) -> None:
    with Connection(path.connect(8080)) as connection:
        assert connection.send(raw(f"GET {target} HTTP/1.1")).status == 200
    assert [(one.method, one.target) for one in corpus.take()] == [("GET", sent)]


def test_the_oracle_denies_what_the_corpus_does() -> None:
    for target in DENIED_TARGETS:
        judged = normalised(target)
        fits = judged and (judged == "/public" or judged.startswith(("/public/", "/public?"))) and not ambiguous(judged)
        assert not fits or len(target) > 60_000, target


HTTP_2_CLIENT = """
import json, sys
import grpc
said = {}
with grpc.insecure_channel(sys.argv[1]) as channel:
    for target in json.load(sys.stdin):
        try:
            channel.unary_unary(target)(b"", timeout=30)
            said[target] = "OK"
        except grpc.RpcError as error:
            said[target] = error.code().name
print(json.dumps(said))
"""


def test_denied_targets_of_http_2_reach_nobody(path: EnvoyPath, corpus: Server) -> None:
    """Any target can be the method of a gRPC client. The server is not even connected to."""
    targets = [target for target in DENIED_TARGETS if target.isascii() and target.isprintable() and len(target) < 100]
    targets = [target for target in targets if target.startswith("/")]  # others end the connection
    before = corpus.accepted
    command = (sys.executable, "-c", HTTP_2_CLIENT, f"{SERVER_V4}:8080")
    said = json.loads(path.client.run(*command, input=json.dumps(targets)).stdout)
    assert said.keys() == set(targets)
    assert {target: code for target, code in said.items() if code not in ("PERMISSION_DENIED", "INTERNAL")} == {}
    assert corpus.accepted == before
    assert len(said) > 40


@pytest.mark.parametrize(
    "header",
    [
        "X-Envoy-Original-Dst-Host: 127.0.0.1:1",
        "X-Envoy-Original-Path: /public",
        "X-Original-URL: /public",
        "X-Rewrite-URL: /public",
    ],
)
def test_headers_do_not_speak_for_the_path_or_the_destination(path: EnvoyPath, corpus: Server, header: str) -> None:
    with Connection(path.connect(8080)) as connection:
        assert connection.get("/public", header).status == 200
        assert connection.get("/secret", header).status == 403
    assert [one.target for one in corpus.take()] == ["/public"]


ANSWERED_S = 0.3
"""How long a client waits for one more answer before it closes; what reaches the server later is seen, too."""

SMUGGLED = b"GET /secret HTTP/1.1\r\nHost: example.com\r\n\r\n"
PAIRS = {
    "TE and CL": raw(
        "POST /public HTTP/1.1", "Transfer-Encoding: chunked", "Content-Length: 4", body=b"0\r\n\r\n" + SMUGGLED
    ),
    "CL and TE": raw(
        "POST /public HTTP/1.1", "Content-Length: 50", "Transfer-Encoding: chunked", body=b"0\r\n\r\n" + SMUGGLED
    ),
    "two CL": raw("POST /public HTTP/1.1", "Content-Length: 0", "Content-Length: 44", body=SMUGGLED),
    "CL list": raw("POST /public HTTP/1.1", "Content-Length: 0, 44", body=SMUGGLED),
    "CL plus": raw("POST /public HTTP/1.1", "Content-Length: +44", body=SMUGGLED),
    "CL negative": raw("POST /public HTTP/1.1", "Content-Length: -1", body=SMUGGLED),
    "CL space": raw("POST /public HTTP/1.1", "Content-Length : 44", body=SMUGGLED),
    "TE space": raw("POST /public HTTP/1.1", "Transfer-Encoding : chunked", body=b"0\r\n\r\n" + SMUGGLED),
    "TE tab": raw("POST /public HTTP/1.1", "Transfer-Encoding:\tchunked\x0b", body=b"0\r\n\r\n" + SMUGGLED),
    "TE unknown": raw("POST /public HTTP/1.1", "Transfer-Encoding: xchunked", body=b"0\r\n\r\n" + SMUGGLED),
    "TE identity": raw("POST /public HTTP/1.1", "Transfer-Encoding: identity", "Content-Length: 44", body=SMUGGLED),
    "TE not last": raw("POST /public HTTP/1.1", "Transfer-Encoding: chunked, identity", body=b"0\r\n\r\n" + SMUGGLED),
    "two TE": raw("POST /public HTTP/1.1", "Transfer-Encoding: identity", "Transfer-Encoding: chunked", body=SMUGGLED),
    "TE in 1.0": raw("POST /public HTTP/1.0", "Transfer-Encoding: chunked", body=b"0\r\n\r\n" + SMUGGLED),
    "chunk size": raw("POST /public HTTP/1.1", "Transfer-Encoding: chunked", body=b"0x2c\r\n" + SMUGGLED),
    "chunk size overflow": raw(
        "POST /public HTTP/1.1", "Transfer-Encoding: chunked", body=b"ffffffffffffffff1\r\n" + SMUGGLED
    ),
    "chunk end": raw("POST /public HTTP/1.1", "Transfer-Encoding: chunked", body=b"1\r\naXX0\r\n\r\n" + SMUGGLED),
    "folded": raw("GET /public HTTP/1.1", "X: a", " Host: other", "\tTransfer-Encoding: chunked", body=SMUGGLED),
    "bare CR": raw("GET /public HTTP/1.1", "X: a\rTransfer-Encoding: chunked", body=SMUGGLED),
    "NUL in header": raw("GET /public HTTP/1.1", "X: a\x00b"),
    "two hosts": raw("GET /public HTTP/1.1", "Host: other"),
    "no host": raw("GET /public HTTP/1.1", host=None),
    "bad host": raw("GET /public HTTP/1.1", host="Host: a/../b"),
    "bad version": raw("GET /public HTTP/1.2"),
    "HTTP/0.9": b"GET /public\r\n\r\n",
    "HTTP/3.0": raw("GET /public HTTP/3.0"),
    "line with spaces": raw("GET /public HTTP/1.1 /secret HTTP/1.1"),
    "no colon": raw("GET /public HTTP/1.1", "Transfer-Encoding chunked"),
    "method of another": raw("G\x00ET /public HTTP/1.1"),
    "CONNECT": raw("CONNECT example.com:443 HTTP/1.1"),
    "CONNECT to a path": raw("CONNECT /public HTTP/1.1"),
    "h2c": raw(
        *(
            "GET /public HTTP/1.1",
            "Connection: Upgrade, HTTP2-Settings",
            "Upgrade: h2c",
            "HTTP2-Settings: AAMAAABkAARAAAAAAAIAAAAA",
        ),
        body=b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n",
    ),
    "upgrade to another": raw("GET /public HTTP/1.1", "Connection: Upgrade", "Upgrade: tls/1.0", body=SMUGGLED),
}


@pytest.mark.parametrize("name", PAIRS)
def test_smuggled_request_reaches_nobody(path: EnvoyPath, corpus: Server, name: str) -> None:
    """Whatever becomes of the first, the second is judged by itself or never seen."""
    with Connection(path.connect(8080)) as connection:
        connection.socket.sendall(PAIRS[name])
        connection.socket.settimeout(ANSWERED_S)
        with suppress(TimeoutError):  # waits for the rest of what the first was said to be
            while connection.answer().status:
                pass
    path.settle(corpus)
    seen = corpus.take()
    assert all(one.target == "/public" and b"secret" not in one.target.encode() for one in seen)
    assert len(seen) <= 1
    for one in seen:  # what got through is one request, with framing no server can read in two ways
        framing = [*one.header("content-length"), *one.header("transfer-encoding")]
        assert len(framing) <= 1, one
        assert not one.header("upgrade"), one
        assert len(one.header("host")) == 1


def test_second_request_of_a_pipeline_is_judged(path: EnvoyPath, corpus: Server) -> None:
    with Connection(path.connect(8080)) as connection:
        connection.socket.sendall(
            raw("GET /public/1 HTTP/1.1") + raw("GET /secret HTTP/1.1") + raw("GET /public/2 HTTP/1.1")
        )
        assert [connection.answer().status for _ in range(2)] == [200, 403]
        assert connection.answer().status in (0, 200)
    path.settle(corpus)
    assert [one.target for one in corpus.take()] in (["/public/1"], ["/public/1", "/public/2"])


def test_http_10_is_served_and_answered_once(path: EnvoyPath, corpus: Server) -> None:
    with Connection(path.connect(8080)) as connection:
        assert connection.send(raw("GET /public/old HTTP/1.0", host=None)).status == 200
        assert connection.ends()
    (seen,) = corpus.take()
    assert seen.header("host") == ["localhost"]


# ---- what is seen at both ends -------------------------------------------------------------------------------


@pytest.mark.parametrize(("server_at", "client_at"), [(SERVER_V4, CLIENT_V4), (SERVER_V6, CLIENT_V6)])
def test_the_proxy_is_not_seen(path: EnvoyPath, server_at: str, client_at: str) -> None:
    path.serve({8081: http(PUBLIC)})
    with Server(path.server, server_at, 8081) as server, Connection(path.connect(8081, server_at)) as connection:
        answer = connection.get("/public", "X-Forwarded-Proto: ftp", "X-Forwarded-For: 192.0.2.9", "X-Request-Id: mine")
        assert answer.header("server") == "tests"
        assert not [name for name, _ in answer.headers if name.startswith("x-") or name == "via"]
        (seen,) = server.take()
    assert seen.peer[0] == client_at
    assert dict(seen.headers) == {
        "host": "example.com",
        "x-forwarded-proto": "ftp",
        "x-forwarded-for": "192.0.2.9",
        "x-request-id": "mine",
    }


def test_refusals_name_nothing_internal(path: EnvoyPath) -> None:
    path.serve({8082: http(PUBLIC)})
    with Connection(path.connect(8082)) as connection:
        denied, failed = connection.get("/secret"), connection.get("/public")  # nobody listens there
    assert (denied.status, denied.body) == (403, b"Access denied\n")
    assert (failed.status, failed.body) == (503, b"The request could not be served (503)\n")
    assert {name for answer in (denied, failed) for name, _ in answer.headers} <= {
        "content-length",
        "content-type",
        "date",
    }


def test_connection_to_the_listener_itself_is_refused(path: EnvoyPath) -> None:
    listening = path.serve({8083: http(HttpRule())})[8083]
    for address in ("127.0.0.1", "::1"):
        with Connection(path.node.call(socket.create_connection, (address, listening.port), 5.0)) as connection:
            assert connection.get("/") == Answer(0)


def test_each_client_has_a_connection_of_its_own_to_the_server(path: EnvoyPath) -> None:
    """Clients do not share connections, so none meets an error that another's idle connection has."""
    path.serve({8084: http(PUBLIC)})
    used: set[tuple[str, int]] = set()
    with Server(path.server, SERVER_V4, 8084) as server:
        for _ in range(3):
            with Connection(path.connect(8084)) as connection:
                assert [connection.get("/public").status for _ in range(3)] == [200] * 3
            peers = {one.peer for one in server.take()}
            assert not peers & used
            used |= peers
        rig.wait_until(lambda: server.open == 0, 10, "connections to the server end after their clients'")


@pytest.mark.parametrize(
    ("direction", "mark"),
    [(Direction.EGRESS, SETTINGS.mark_from_egress), (Direction.INGRESS, SETTINGS.mark_from_ingress)],
)
def test_sockets_are_marked(path: EnvoyPath, direction: Direction, mark: int) -> None:
    """By these the datapath knows whose packets it sees."""
    port = 8086 if direction is Direction.EGRESS else 8087
    path.serve({port: http(HttpRule())}, direction=direction)
    with Server(path.server, SERVER_V4, port), Connection(path.connect(port)) as connection:
        assert connection.get("/").status == 200
        sockets = path.node.run("ss", "-tnHe").stdout.splitlines()
    to_server = [line for line in sockets if line.split()[4] == f"{SERVER_V4}:{port}"]
    to_client = [line for line in sockets if line.split()[3] == f"{SERVER_V4}:{port}"]
    assert [f"fwmark:{mark:#x}" in line for line in to_server] == [True]
    assert [f"fwmark:{SETTINGS.mark_answers:#x}" in line for line in to_client] == [True]


# ---- rules ---------------------------------------------------------------------------------------------------


def test_empty_rules_deny_everything(path: EnvoyPath) -> None:
    path.serve({8085: http()})
    with Server(path.server, SERVER_V4, 8085) as server, Connection(path.connect(8085)) as connection:
        assert connection.get("/").status == 403
        assert server.take() == []


MISMATCHES: list[tuple[Mismatch, list[str], list[str]]] = [
    (Mismatch.ADD, [], ["v"]),
    (Mismatch.ADD, ["v"], ["v"]),
    (Mismatch.ADD, ["other"], ["other", "v"]),
    (Mismatch.REPLACE, [], ["v"]),
    (Mismatch.REPLACE, ["v"], ["v"]),
    (Mismatch.REPLACE, ["other", "more"], ["v"]),
    (Mismatch.DELETE, [], []),
    (Mismatch.DELETE, ["v"], ["v"]),
    (Mismatch.DELETE, ["other"], []),
    (Mismatch.LOG, ["other"], ["other"]),
    (Mismatch.LOG, [], []),
]


def test_mismatch_changes_the_header_and_lets_the_request_pass(path: EnvoyPath) -> None:
    ports = {mismatch: 8090 + at for at, mismatch in enumerate(Mismatch)}
    path.serve(
        {
            port: http(HttpRule(path="/a", headers=(HeaderMatch("x-tag", "v", mismatch),)), HttpRule(path="/a"))
            for mismatch, port in ports.items()
        }
    )
    for mismatch, sent, expected in MISMATCHES:
        port = ports[mismatch]
        with Server(path.server, SERVER_V4, port) as server, Connection(path.connect(port)) as connection:
            assert connection.get("/a", *(f"X-Tag: {value}" for value in sent)).status == 200
            (seen,) = server.take()
            assert seen.header("x-tag") == expected, (mismatch, sent)


def test_several_headers_change_by_themselves(path: EnvoyPath) -> None:
    changes = (HeaderMatch("x-a", "1", Mismatch.ADD), HeaderMatch("x-d", "1%", Mismatch.DELETE))
    more = (HeaderMatch("x-l", None, Mismatch.LOG), HeaderMatch("x-r", "50%", Mismatch.REPLACE))
    path.serve({8097: http(HttpRule(headers=(*changes, *more)))})
    with Server(path.server, SERVER_V4, 8097) as server, Connection(path.connect(8097)) as connection:
        assert connection.get("/", "X-A: 1", "X-D: no").status == 200
        assert connection.get("/", "X-D: 1%", "X-L: here").status == 200
        first, second = server.take()
    assert [first.header(name) for name in ("x-a", "x-d", "x-r")] == [["1"], [], ["50%"]]
    assert [second.header(name) for name in ("x-a", "x-d", "x-r")] == [["1"], ["1%"], ["50%"]]


# ---- changes under live connections --------------------------------------------------------------------------


def test_revoked_path_is_denied_on_the_next_request_and_others_go_on(path: EnvoyPath) -> None:
    """An override for the flows that are now judged by other demands; a WebSocket and a stream do not notice."""
    everything = http(PUBLIC, HttpRule("GET", "/admin"), HttpRule("GET", "/stream"), HttpRule("GET", "/socket"))
    less = http(PUBLIC, HttpRule("GET", "/stream"), HttpRule("GET", "/socket"))
    path.serve({8100: everything})
    with (
        Server(path.server, SERVER_V4, 8100) as server,
        Connection(path.connect(8100)) as live,
        Connection(path.connect(8100)) as stream,
        Connection(path.connect(8100)) as websocket,
    ):
        assert live.get("/admin").status == 200
        stream.socket.sendall(raw("GET /stream HTTP/1.1"))
        assert stream.answer(body=False).status == 200
        assert websocket.get("/socket", "Connection: Upgrade", "Upgrade: websocket").status == 101
        for round_ in range(5):
            narrowed = Override(less, socket.inet_aton(CLIENT_V4), socket.inet_aton(SERVER_V4), 8100)
            path.serve({}, {8100: [narrowed]} if round_ % 2 == 0 else {})
            assert live.get("/admin").status == (403 if round_ % 2 == 0 else 200)
            assert live.get("/public").status == 200
            server.send_chunk()
            assert stream.chunk() == b"more"
            websocket.socket.sendall(b"hello")
            assert websocket.read(5) == b"hello"
        assert server.accepted == 3


@pytest.mark.parametrize(
    ("override", "hits"),
    [
        (Override(frozenset({L7(http=frozenset())})), True),
        (Override(http(), source=socket.inet_aton(CLIENT_V4)), True),
        (Override(http(), source=socket.inet_aton("10.9.9.9")), False),
        (Override(http(), source=bytes(10) + b"\xff\xff" + socket.inet_aton(CLIENT_V4)), True),
        (Override(http(), destination=socket.inet_aton(SERVER_V4)), True),
        (Override(http(), destination=socket.inet_aton(CLIENT_V4)), False),
        (Override(http(), port=8101), True),
        (Override(http(), port=8102), False),
    ],
)
def test_override_is_for_the_flows_it_names(path: EnvoyPath, override: Override, hits: bool) -> None:
    path.serve({8101: http(HttpRule())}, {8101: [override]})
    with Server(path.server, SERVER_V4, 8101), Connection(path.connect(8101)) as connection:
        assert connection.get("/").status == (403 if hits else 200)


def test_first_override_that_fits_decides_and_may_allow_everything(path: EnvoyPath) -> None:
    overrides = [Override(None, port=8103), Override(http())]
    path.serve({8103: http(PUBLIC)}, {8103: overrides})
    with Server(path.server, SERVER_V4, 8103), Connection(path.connect(8103)) as connection:
        assert connection.get("/secret").status == 200
        path.serve({}, {8103: overrides[1:]})
        assert connection.get("/public").status == 403


def test_v6_override(path: EnvoyPath) -> None:
    address = socket.inet_pton(socket.AF_INET6, CLIENT_V6)
    path.serve({8104: http(HttpRule())}, {8104: [Override(http(), source=address)]})
    with Server(path.server, SERVER_V6, 8104), Connection(path.connect(8104, SERVER_V6)) as connection:
        assert connection.get("/").status == 403


def test_each_change_acts_on_the_next_request_of_every_live_connection(path: EnvoyPath) -> None:
    path.serve({8105: http(HttpRule())})
    name = path.serve({})[8105].name
    with (
        Server(path.server, SERVER_V4, 8105),
        Connection(path.connect(8105)) as first,
        Connection(path.connect(8105)) as second,
    ):
        for round_ in range(100):
            path.apply({8105: [Override(http())]} if round_ % 2 else {})
            assert path.standing([name]).acked == {name}
            assert [one.get("/").status for one in (first, second)] == [403 if round_ % 2 else 200] * 2, round_

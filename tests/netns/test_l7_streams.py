"""What lasts longer than a request: WebSockets, long answers and gRPC. Changes of rules that do not concern them leave
them be."""

from __future__ import annotations

import socket
from collections.abc import Iterator
from contextlib import contextmanager

import pytest
import rig
from agents import Document, RunningAgent, pod, policy
from grpc_calls import GrpcClient, GrpcServer
from http_client import Connection
from http_server import Server
from l7_policies import CLIENT, OTHER, PORT, WEB, cnp, http
from web import TIMEOUT_S

GRPC_PORT = 9090
FAMILIES = ("v4", "v6")
UPGRADE = (
    "Connection: Upgrade",
    "Upgrade: websocket",
    "Sec-WebSocket-Version: 13",
    "Sec-WebSocket-Key: AAAAAAAAAAAAAAAAAAAAAA==",
)
LASTING = ("/socket", "/stream", "/a")
UNARY, CHAT = "/shop.Orders/Get", "/shop.Orders/Chat"
UNARY_DENIED, CHAT_DENIED = "/shop.Admin/Get", "/shop.Admin/Chat"


@pytest.fixture(scope="module")
def running(datapath_host: None, tmp_path_factory: pytest.TempPathFactory) -> Iterator[RunningAgent]:
    with rig.Node() as node, RunningAgent(node, tmp_path_factory.mktemp("streams")) as agent:
        agent.write("pods.yaml", pod(WEB, app="web"), pod(CLIENT, app="client"), pod(OTHER, app="other"))
        agent.write("policies.yaml", web(*LASTING))
        agent.write("grpc.yaml", grpc_rules(UNARY, CHAT))
        agent.start()
        agent.await_listeners()
        yield agent


def rules(app: str, *paths: str, port: int = PORT) -> Document:
    return {
        "fromEndpoints": [{"matchLabels": {"app": app}}],
        "toPorts": http(*({"path": path} for path in paths), port=port),
    }


def web(*paths: str) -> Document:
    return cnp("shop/web", {"app": "web"}, ingress=[rules("client", *paths)])


def grpc_rules(*paths: str) -> Document:
    return cnp("shop/grpc", {"app": "web"}, ingress=[rules("client", *paths, port=GRPC_PORT)])


def other(*ingress: Document) -> Document:
    """Another policy about the same pod."""
    return cnp("shop/more", {"app": "web"}, ingress=list(ingress))


ALL = web(*LASTING)
ANYTHING = rules("client") | {"toPorts": [{"ports": [{"port": str(PORT), "protocol": "TCP"}]}]}
ELSEWHERE = policy("shop/other", {"app": "other"}, policyTypes=["Ingress"], ingress=[])
# Changes that take away nothing of what lasts: what is written, and whether /more is allowed then.
CHANGES: list[tuple[str, list[Document], bool]] = [
    ("a path is added", [web(*LASTING, "/more")], True),
    ("a path is taken away", [web("/socket", "/stream")], False),
    ("and back as it was", [ALL], False),
    ("another client's rules", [ALL, other(rules("other", "/more"))], False),
    ("these change", [ALL, other(rules("other", "/less"))], False),
    ("another port", [ALL, other(rules("client", "/more", port=8081))], False),
    ("of another pod", [ALL, ELSEWHERE], False),
    ("another policy allows more here", [ALL, other(rules("client", "/more"))], True),
    ("anything is allowed", [ALL, other(ANYTHING)], True),
    ("and no more", [ALL], False),
]


def put(agent: RunningAgent, file: str, *documents: Document) -> None:
    agent.write(file, *documents)
    agent.settle()
    agent.await_listeners()


@contextmanager
def connected(agent: RunningAgent, pod: str, address: str) -> Iterator[Connection]:
    def connect() -> socket.socket:
        return socket.create_connection((address, PORT), timeout=TIMEOUT_S)

    with Connection(agent.netns(pod).call(connect)) as connection:
        yield connection


@pytest.mark.parametrize("family", FAMILIES)
def test_web_sockets_and_streams_outlive_changes_of_other_rules(running: RunningAgent, family: str) -> None:
    put(running, "policies.yaml", web(*LASTING))
    address = next(ip for ip in running.endpoint(WEB)["ips"] if (":" in ip) == (family == "v6"))
    with (
        Server(running.netns(WEB), address, PORT) as server,
        connected(running, CLIENT, address) as web_socket,
        connected(running, CLIENT, address) as stream,
        connected(running, CLIENT, address) as kept,
    ):
        assert web_socket.get("/socket", *UPGRADE).status == 101
        stream.socket.sendall(b"GET /stream HTTP/1.1\r\nHost: web\r\n\r\n")
        assert stream.answer(body=False).status == 200
        accepted = server.accepted
        for what, documents, more in CHANGES:
            put(running, "policies.yaml", *documents)
            web_socket.socket.sendall(what.encode())
            assert web_socket.read(len(what)) == what.encode(), what
            server.send_chunk()
            assert stream.chunk() == b"more", what
            assert kept.get("/more").status == (200 if more else 403), what
        assert server.accepted <= accepted + 1, "nobody had to connect again; `kept` did at its first request"


def test_what_is_revoked_is_refused_at_the_next_request(running: RunningAgent) -> None:
    put(running, "policies.yaml", web(*LASTING))
    address = running.ip(WEB)
    with (
        Server(running.netns(WEB), address, PORT) as server,
        connected(running, CLIENT, address) as first,
        connected(running, CLIENT, address) as second,
        connected(running, CLIENT, address) as third,
    ):
        for connection in (first, second, third):
            assert connection.get("/a").status == 200
        put(running, "policies.yaml", web("/a"))
        assert first.get("/socket", *UPGRADE).status == 403
        assert second.get("/stream").status == 403
        assert third.get("/a").status == 200
        assert {one.target for one in server.take()} == {"/a"}
        put(running, "policies.yaml", cnp("shop/web", {"app": "web"}, ingress=[rules("other", "/a")]))
        third.socket.settimeout(1)
        with pytest.raises(TimeoutError):
            third.get("/a")  # who may not reach the port at all gets no answer
        assert server.take() == []


def test_a_stream_ends_when_its_pod_may_not_reach_the_port_any_more(running: RunningAgent) -> None:
    put(running, "policies.yaml", web(*LASTING))
    address = running.ip(WEB)
    with Server(running.netns(WEB), address, PORT) as server, connected(running, CLIENT, address) as web_socket:
        assert web_socket.get("/socket", *UPGRADE).status == 101
        web_socket.socket.sendall(b"before")
        assert web_socket.read(6) == b"before"
        put(running, "policies.yaml", cnp("shop/web", {"app": "web"}, ingress=[rules("other", "/a")]))
        web_socket.socket.settimeout(1)
        web_socket.socket.sendall(b"after")
        with pytest.raises((TimeoutError, ConnectionResetError)):
            assert web_socket.read(5) == b""
            raise ConnectionResetError
        assert server.take()


# ---- gRPC


def test_grpc_methods_are_paths(running: RunningAgent) -> None:
    put(running, "grpc.yaml", grpc_rules(UNARY, CHAT))
    with GrpcServer(running.netns(WEB), GRPC_PORT):
        for address in running.endpoint(WEB)["ips"]:
            with GrpcClient(running.netns(CLIENT), address, GRPC_PORT) as calls:
                assert calls.unary(UNARY) == "OK"
                assert calls.unary(UNARY_DENIED) == "PERMISSION_DENIED"
                assert calls.open(CHAT_DENIED) == "PERMISSION_DENIED"
                assert calls.open(CHAT) == "OK"
                assert calls.exchange() == "OK"
    seen = running.await_flows(lambda flow: flow["l7"]["path"] == UNARY_DENIED, 2, "--protocol", "grpc")
    assert {flow["verdict"] for flow in seen} == {"DROPPED"}
    assert {flow["l7"]["protocol"] for flow in seen} == {"gRPC"}
    (flow, *_) = running.await_flows(lambda flow: flow["l7"]["path"] == UNARY, 2, "--protocol", "grpc")
    assert (flow["verdict"], flow["l7"]["grpc_status"]) == ("FORWARDED", 0)
    ports = {flow["source"]["port"] for flow in seen}
    assert flow["source"]["port"] in ports, "allowed and refused on one connection"


def test_grpc_streams_outlive_changes_and_revoked_methods_are_refused_on_their_connection(
    running: RunningAgent,
) -> None:
    put(running, "grpc.yaml", grpc_rules(UNARY, CHAT))
    with (
        GrpcServer(running.netns(WEB), GRPC_PORT),
        GrpcClient(running.netns(CLIENT), running.ip(WEB), GRPC_PORT) as calls,
    ):
        assert calls.open(CHAT) == "OK"
        for paths, status in (
            ((UNARY, CHAT, UNARY_DENIED), "OK"),
            ((CHAT, UNARY_DENIED), "PERMISSION_DENIED"),
            ((CHAT, UNARY), "OK"),
            ((CHAT,), "PERMISSION_DENIED"),
        ):
            put(running, "grpc.yaml", grpc_rules(*paths))
            assert calls.exchange() == "OK", paths
            assert calls.unary(UNARY) == status, paths

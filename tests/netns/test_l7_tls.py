"""TLS end to end: names that are asked for, rules within, Secrets from manifests, and keys that nobody gets to see."""

from __future__ import annotations

import base64
import json
import socket
import ssl
import stat
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

import envoy_admin
import pytest
import rig
from agents import Document, RunningAgent, pod
from certificates import Authority, Pair
from cryptography import x509
from http_client import Connection
from http_server import Server
from l7_policies import CLIENT, WEB, cnp
from web import TIMEOUT_S

NAMED, ENDED, LATER = 8443, 9443, 9444
"""Ports: TLS by its name, TLS that is looked into, and the same by a Secret that comes later."""
NAMES = ["api.test", "*.more.test"]
INSIDE, OUTSIDE = Authority("inside"), Authority("outside")
"""Whom clients trust where TLS ends at the proxy, and who signs for servers."""
SHOWN = INSIDE.pair("api.test")
SERVES = OUTSIDE.pair("api.test", "a.more.test", "other.test")


@pytest.fixture(scope="module")
def running(datapath_host: None, tmp_path_factory: pytest.TempPathFactory) -> Iterator[RunningAgent]:
    with rig.Node() as node, RunningAgent(node, tmp_path_factory.mktemp("tls")) as agent:
        agent.write("pods.yaml", pod(WEB, app="web"), pod(CLIENT, app="client"))
        agent.write("secrets.yaml", secret("shown", SHOWN), authority("trusted", OUTSIDE))
        agent.write("policies.yaml", policy())
        agent.start()
        agent.await_listeners()
        yield agent


def secret(name: str, pair: Pair) -> Document:
    return _secret(name, {"tls.crt": pair.certificate, "tls.key": pair.private_key})


def authority(name: str, signs: Authority) -> Document:
    return _secret(name, {"ca.crt": signs.pem})


def _secret(name: str, data: dict[str, bytes]) -> Document:
    encoded = {key: base64.b64encode(value).decode() for key, value in data.items()}
    return {"apiVersion": "v1", "kind": "Secret", "metadata": {"name": name, "namespace": "shop"}, "data": encoded}


def policy() -> Document:
    def at(port: int, **asked: Any) -> Document:
        return {"ports": [{"port": str(port), "protocol": "TCP"}], **asked}

    def within(name: str) -> Document:
        return {
            "rules": {"http": [{"method": "GET", "path": "/public/.*"}]},
            "terminatingTLS": {"secret": {"namespace": "shop", "name": name}},
            "originatingTLS": {"secret": {"namespace": "shop", "name": "trusted"}},
        }

    ports = [at(NAMED, serverNames=NAMES), at(ENDED, **within("shown")), at(LATER, **within("later"))]
    egress = [{"toEndpoints": [{"matchLabels": {"app": "web"}}], "toPorts": ports}]
    return cnp("shop/client", {"app": "client"}, egress=egress)


@contextmanager
def plain(agent: RunningAgent, address: str, port: int) -> Iterator[socket.socket]:
    def connect() -> socket.socket:
        return socket.create_connection((address, port), timeout=TIMEOUT_S)

    with agent.netns(CLIENT).call(connect) as made:
        yield made


@contextmanager
def encrypted(
    agent: RunningAgent, address: str, port: int, trusts: Authority, name: str | None = "api.test"
) -> Iterator[Connection]:
    """Raises OSError (ssl.SSLError is one) where no TLS comes about."""
    context = trusts.client_context()
    context.check_hostname = name is not None
    with (
        plain(agent, address, port) as made,
        context.wrap_socket(made, server_hostname=name) as wrapped,
        Connection(wrapped) as connection,
    ):
        yield connection


def is_refused(agent: RunningAgent, port: int, trusts: Authority, name: str | None = "api.test") -> bool:
    with suppress(OSError), encrypted(agent, agent.ip(WEB), port, trusts, name):
        return False
    return True


def shown(connection: Connection) -> int:
    """The serial number of the certificate that the client was shown."""
    assert isinstance(connection.socket, ssl.SSLSocket)
    certificate = connection.socket.getpeercert(binary_form=True)
    assert certificate
    return x509.load_der_x509_certificate(certificate).serial_number


def serial(pair: Pair) -> int:
    return x509.load_pem_x509_certificate(pair.certificate).serial_number


@contextmanager
def serving(agent: RunningAgent, address: str, port: int) -> Iterator[Server]:
    with Server(agent.netns(WEB), address, port, tls=SERVES.server_context()) as server:
        yield server


def test_server_names_are_enforced_and_tls_passes_as_it_is(running: RunningAgent) -> None:
    for address in running.endpoint(WEB)["ips"]:
        with serving(running, address, NAMED) as server:
            for name in ("api.test", "a.more.test"):
                with encrypted(running, address, NAMED, OUTSIDE, name) as connection:
                    assert shown(connection) == serial(SERVES), "the server's own"
                    assert connection.get("/any").status == 200
            assert [one.server_name for one in server.seen] == ["api.test", "a.more.test"]
            assert {one.peer[0] for one in server.seen} <= set(running.endpoint(CLIENT)["ips"])
            accepted = server.accepted
            for other in ("other.test", "a.b.more.test", None):
                with pytest.raises(OSError), encrypted(running, address, NAMED, OUTSIDE, other):
                    pass
            with plain(running, address, NAMED) as made, Connection(made) as connection:
                assert connection.get("/").status == 0
            assert server.accepted == accepted, "nothing of what is refused reaches the server"


def test_names_are_flows(running: RunningAgent) -> None:
    with serving(running, running.ip(WEB), NAMED):
        assert is_refused(running, NAMED, OUTSIDE, "refused.test")
        with encrypted(running, running.ip(WEB), NAMED, OUTSIDE) as connection:
            assert connection.get("/any").status == 200
    verdicts = {"refused.test": "DROPPED", "api.test": "FORWARDED"}
    seen = running.await_flows(lambda flow: flow["l7"]["sni"] in verdicts, len(verdicts), "--protocol", "tls")
    assert {(flow["l7"]["sni"], flow["verdict"]) for flow in seen} >= set(verdicts.items())
    assert {(flow["source"]["pod"], flow["destination"]["pod"]) for flow in seen} == {("client", "web")}


def test_rules_judge_within_tls_and_what_goes_on_is_tls(running: RunningAgent) -> None:
    for address in running.endpoint(WEB)["ips"]:
        with serving(running, address, ENDED) as server:
            with encrypted(running, address, ENDED, INSIDE) as connection:
                assert shown(connection) == serial(SHOWN), "the Secret's"
                assert connection.get("/public/a", host="api.test").status == 200
                assert connection.get("/private", host="api.test").status == 403
                assert connection.get("/public/b", host="api.test").status == 200, "on the same connection"
            assert [(one.target, one.server_name) for one in server.seen] == [
                ("/public/a", "api.test"),
                ("/public/b", "api.test"),
            ]
            assert {one.peer[0] for one in server.seen} <= set(running.endpoint(CLIENT)["ips"])
    paths = {"/public/a": "FORWARDED", "/private": "DROPPED"}
    seen = running.await_flows(lambda flow: flow["l7"].get("path") in paths, 4, "--type", "l7")
    assert {(flow["l7"]["path"], flow["verdict"]) for flow in seen} == set(paths.items())


def test_a_server_whom_the_secret_does_not_trust_gets_nothing(running: RunningAgent) -> None:
    stranger = Authority("stranger").pair("api.test")
    with Server(running.netns(WEB), running.ip(WEB), ENDED, tls=stranger.server_context()) as server:
        with encrypted(running, running.ip(WEB), ENDED, INSIDE) as connection:
            assert connection.get("/public/a", host="api.test").status == 503
        assert server.seen == []


def test_a_secret_that_is_not_there_is_denied_and_said(running: RunningAgent) -> None:
    problem = "Secret shop/later holds no certificate and key"
    assert is_refused(running, LATER, INSIDE)
    assert any(problem in text for text in running.json("status")["proxies"]["envoy"]["problems"])
    with serving(running, running.ip(WEB), LATER) as server:
        running.write("later.yaml", secret("later", SHOWN))
        running.settle()
        rig.wait_until(lambda: not is_refused(running, LATER, INSIDE), what="the Secret is there")
        with encrypted(running, running.ip(WEB), LATER, INSIDE) as connection:
            assert connection.get("/public/a", host="api.test").status == 200
            assert connection.get("/private", host="api.test").status == 403
        assert not any(problem in text for text in running.json("status")["proxies"]["envoy"]["problems"])
        running.delete("later.yaml")
        running.settle()
        rig.wait_until(lambda: is_refused(running, LATER, INSIDE), what="the Secret is gone")
        assert any(problem in text for text in running.json("status")["proxies"]["envoy"]["problems"])
        assert {one.target for one in server.seen} == {"/public/a"}


def test_a_new_certificate_is_shown_to_new_connections(running: RunningAgent) -> None:
    fresh = INSIDE.pair("api.test")
    address = running.ip(WEB)

    def served() -> int:
        with encrypted(running, address, ENDED, INSIDE) as connection:
            return shown(connection)

    with serving(running, address, ENDED), encrypted(running, address, ENDED, INSIDE) as before:
        assert before.get("/public/a", host="api.test").status == 200
        running.write("secrets.yaml", secret("shown", fresh), authority("trusted", OUTSIDE))
        running.settle()
        rig.wait_until(lambda: served() == serial(fresh), what="the new certificate is shown")
        assert before.get("/public/a", host="api.test").status == 200, "connections that live go on"
        assert before.get("/private", host="api.test").status == 403
    running.write("secrets.yaml", secret("shown", SHOWN), authority("trusted", OUTSIDE))
    running.settle()
    rig.wait_until(lambda: served() == serial(SHOWN), what="and the one before")


def test_keys_are_for_nobodys_eyes(running: RunningAgent) -> None:
    assert not is_refused(running, ENDED, INSIDE), "the key is in use"
    lines = SHOWN.private_key.decode().splitlines()[1:-1]
    forms = [line.encode() for line in lines]
    forms += [SHOWN.private_key[40:80], base64.b64encode(SHOWN.private_key)[40:80]]
    forms += [json.dumps(SHOWN.private_key.decode()).encode()[40:80]]

    def tells(content: bytes) -> bool:
        return any(form in content for form in forms)

    assert tells(SHOWN.private_key)
    said = [running.cli(*words).stdout for words in (["status", "-o", "json"], ["status"], ["policy", "list"])]
    assert not any(tells(text.encode()) for text in said)
    state = running.instance.state_dir
    assert stat.S_IMODE(running.instance.envoy_socket.stat().st_mode) == 0o600
    dump = envoy_admin.ask(running.instance.envoy_socket, "/config_dump")
    assert b"shown" in dump
    assert not tells(dump)
    holders = [path for path in state.rglob("*") if path.is_file() and tells(path.read_bytes())]
    assert all(is_private(path, state) for path in holders), holders
    assert not tells(running.log_path.read_bytes())
    for process in running.node.pids():
        with suppress(FileNotFoundError):
            assert not tells(
                Path(f"/proc/{process}/cmdline").read_bytes() + Path(f"/proc/{process}/environ").read_bytes()
            )


def is_private(path: Path, state: Path) -> bool:
    """Whether nobody but root can read a file below the state directory."""
    assert path.stat().st_uid == 0
    own = not path.stat().st_mode & 0o077
    return own and "log" not in path.name and path.is_relative_to(state)

"""HTTP rules end to end: manifests, agent, a real Envoy, and what reaches the server."""

from __future__ import annotations

import json
import socket
from pathlib import Path
from typing import Any

from agents import Document, RunningAgent, pod, service
from l7_policies import CLIENT, OTHER, PORT, WEB, cnp, egress, ingress
from probes import Server, tcp
from web import Client, WebServer, fetch

from agent.privileges import NET_RAW, USER, capabilities


def begin(agent: RunningAgent, *policies: Document) -> None:
    agent.write("pods.yaml", pod(WEB, app="web"), pod(CLIENT, app="client"), pod(OTHER, app="other"))
    agent.write("policies.yaml", *policies)
    agent.start()
    agent.await_listeners()


def flows(agent: RunningAgent, *flags: str) -> list[dict[str, Any]]:
    return [json.loads(line) for line in agent.cli("observe", "-o", "json", *flags).stdout.splitlines()]


def addresses(agent: RunningAgent, name: str) -> list[str]:
    return list(agent.endpoint(name)["ips"])


def test_rules_at_the_receiver_decide_each_request(agent: RunningAgent) -> None:
    begin(agent, cnp("shop/web", {"app": "web"}, ingress=ingress({"method": "GET", "path": "/public/.*"})))
    client, other = agent.netns(CLIENT), agent.netns(OTHER)
    with WebServer(agent.netns(WEB), PORT) as web:
        for address in addresses(agent, WEB):
            with Client(client, address, PORT) as connection:
                allowed = connection.get("/public/a")
                assert (allowed.status, allowed.json()["path"]) == (200, "/public/a")
                assert allowed.json()["source"] in addresses(agent, CLIENT), "the server sees the pod's own address"
                refused = connection.get("/private")
                assert refused.status == 403
                assert "envoy" not in (refused.body + str(refused.headers)).lower()
                assert connection.request("POST", "/public/a").status == 403
                assert connection.get("/public/b").status == 200, "on the same connection"
            assert fetch(other, address, PORT, "/public/a").status == 0, "who may not reach the port gets no answer"
        assert set(web.paths()) == {"/public/a", "/public/b"}


def test_rules_at_the_sender(agent: RunningAgent) -> None:
    begin(agent, cnp("shop/client", {"app": "client"}, egress=egress({"path": "/a"})))
    with WebServer(agent.netns(WEB), PORT) as web:
        for address in addresses(agent, WEB):
            with Client(agent.netns(CLIENT), address, PORT) as connection:
                assert connection.get("/a").json()["source"] in addresses(agent, CLIENT)
                assert connection.get("/b").status == 403
            assert fetch(agent.netns(OTHER), address, PORT, "/b").status == 200, "of others nothing is asked"
        assert set(web.paths()) == {"/a", "/b"}
        assert {seen.path for seen in web.seen if seen.source in addresses(agent, CLIENT)} == {"/a"}


def test_rules_at_both_ends_through_a_service(agent: RunningAgent) -> None:
    """Lesson 5: where both ends are on one node, neither is passed by."""
    agent.write("service.yaml", service("shop/web", {"app": "web"}, 80, PORT))
    begin(
        agent,
        cnp("shop/client", {"app": "client"}, egress=egress({"path": "/(a|b)"})),
        cnp("shop/web", {"app": "web"}, ingress=ingress({"path": "/(b|c)"})),
    )
    with WebServer(agent.netns(WEB), PORT) as web:
        for address in agent.json("services")[0]["ips"]:
            with Client(agent.netns(CLIENT), address, 80) as connection:
                got = {path: connection.get(path).status for path in ("/a", "/b", "/c", "/d")}
            assert got == {"/a": 403, "/b": 200, "/c": 403, "/d": 403}
        assert set(web.paths()) == {"/b"}


def test_requests_are_flows(agent: RunningAgent) -> None:
    begin(agent, cnp("shop/web", {"app": "web"}, ingress=ingress({"path": "/public/.*"})))
    with WebServer(agent.netns(WEB), PORT), Client(agent.netns(CLIENT), agent.ip(WEB), PORT) as connection:
        assert connection.get("/public/a?token=secret").status == 200
        assert connection.get("/private").status == 403
    seen = agent.await_flows(lambda flow: (flow.get("l7") or {}).get("status") in (200, 403), 2, "--type", "l7")
    by_status = {flow["l7"]["status"]: flow for flow in seen}
    assert by_status[403]["verdict"] == "DROPPED"
    assert by_status[200]["verdict"] == "FORWARDED"
    assert by_status[403]["source"]["pod"] == "client"
    assert by_status[403]["destination"]["pod"] == "web"
    assert by_status[403]["policy"]["name"] == "web"
    assert "secret" not in json.dumps(seen)


def test_a_revoked_path_is_refused_at_the_next_request_of_a_live_connection(agent: RunningAgent) -> None:
    begin(agent, cnp("shop/web", {"app": "web"}, ingress=ingress({"path": "/a"}, {"path": "/stream"})))
    client, address = agent.netns(CLIENT), agent.ip(WEB)
    with (
        WebServer(agent.netns(WEB), PORT) as web,
        Client(client, address, PORT) as connection,
        Client(client, address, PORT) as streaming,
    ):
        stream = streaming.open_stream()
        assert connection.get("/a").status == 200
        for paths, status in ((("/b", "/stream"), 403), (("/a", "/b", "/stream"), 200), (("/c", "/stream"), 403)):
            rules = ingress(*({"path": path} for path in paths))
            agent.write("policies.yaml", cnp("shop/web", {"app": "web"}, ingress=rules))
            agent.settle()
            agent.await_listeners()
            assert connection.get("/a").status == status, f"with {paths}"
            web.push()
            assert stream.readline() == b"line\n", "a stream that is still allowed goes on"


def test_a_connection_that_was_denied_meanwhile_goes_on_by_the_rules_of_the_day(agent: RunningAgent) -> None:
    def rules(path: str, client: str) -> Document:
        return cnp(f"shop/{client}", {"app": "web"}, ingress=ingress({"path": path}, client=client))

    begin(agent, rules("/a", "client"))
    with (
        WebServer(agent.netns(WEB), PORT) as web,
        Client(agent.netns(CLIENT), agent.ip(WEB), PORT) as connection,
    ):
        assert connection.get("/a").status == 200
        for meanwhile in (rules("/z", "nobody"), rules("/a", "other")):  # its listener is gone, or another's
            agent.write("policies.yaml", meanwhile)
            agent.settle()
            connection.ask("/a")  # denied for now: it is sent again until it gets through
            agent.write("policies.yaml", meanwhile, rules("/b", "client"))
            agent.settle()
            agent.await_listeners()
            assert connection.answer() == 403
            assert connection.get("/b").status == 200
        assert web.paths() == ["/a", "/b", "/b"]


def test_without_envoy_only_l7_flows_are_denied(agent: RunningAgent) -> None:
    plain = {"toPorts": [{"ports": [{"port": "9000", "protocol": "TCP"}]}]}
    begin(agent, cnp("shop/web", {"app": "web"}, ingress=[*ingress({"path": "/a"}), plain]))
    client, address = agent.netns(CLIENT), agent.ip(WEB)
    with WebServer(agent.netns(WEB), PORT), Server(agent.netns(WEB), "tcp", 9000):
        assert fetch(client, address, PORT, "/a").status == 200
        agent.kill_proxy("envoy")
        assert fetch(client, address, PORT, "/b").status != 200
        assert tcp(client, address, 9000)
        agent.await_listeners()
        assert fetch(client, address, PORT, "/a").status == 200
        assert fetch(client, address, PORT, "/b").status == 403


def test_connections_outlive_the_agent(agent: RunningAgent) -> None:
    begin(agent, cnp("shop/web", {"app": "web"}, ingress=ingress({"path": "/a"})))
    client = agent.netns(CLIENT)
    with WebServer(agent.netns(WEB), PORT), Client(client, agent.ip(WEB), PORT) as connection:
        assert connection.get("/a").status == 200
        address = agent.ip(WEB)
        agent.kill()
        assert connection.get("/a").status == 200
        assert connection.get("/b").status == 403
        assert fetch(client, address, PORT, "/a").status == 200, "new ones, too"
        agent.start()
        assert connection.get("/a").status == 200
        assert connection.get("/b").status == 403


def test_envoy_has_no_privilege_but_to_speak_for_pods(agent: RunningAgent) -> None:
    begin(agent, cnp("shop/web", {"app": "web"}, ingress=ingress({"path": "/a"})))
    pid = agent.status()["proxies"]["envoy"]["process"]["pid"]
    assert Path(f"/proc/{pid}").stat().st_uid == USER
    assert set(capabilities(pid).values()) == {1 << NET_RAW}


def test_rules_that_change_while_there_is_no_agent_hold_from_its_start_on(agent: RunningAgent) -> None:
    kept = cnp("shop/other", {"app": "other"}, egress=egress({"path": "/a"}))
    begin(agent, cnp("shop/client", {"app": "client"}, egress=egress({"path": "/(a|b)"})), kept)
    with (
        WebServer(agent.netns(WEB), PORT) as web,
        Client(agent.netns(CLIENT), agent.ip(WEB), PORT) as changed,
        Client(agent.netns(OTHER), agent.ip(WEB), PORT) as other,
    ):
        assert changed.get("/b").status == other.get("/a").status == 200
        agent.kill()
        agent.write("policies.yaml", cnp("shop/client", {"app": "client"}, egress=egress({"path": "/a"})), kept)
        agent.start()
        assert changed.get("/b").status != 200
        assert other.get("/a").status == 200, "what did not change goes on"
        assert web.paths().count("/b") == 1
        agent.await_listeners()
        assert fetch(agent.netns(CLIENT), agent.ip(WEB), PORT, "/a").status == 200
        assert fetch(agent.netns(CLIENT), agent.ip(WEB), PORT, "/b").status == 403


def test_a_port_is_used_again_at_once_after_envoy_has_closed(agent: RunningAgent) -> None:
    """Its side of the old connection lingers (TIME_WAIT) and must not swallow the new one."""
    begin(agent, cnp("shop/web", {"app": "web"}, ingress=ingress({"path": "/a"})))
    client = agent.netns(CLIENT)

    def ask(address: str) -> bytes:
        family = socket.AF_INET6 if ":" in address else socket.AF_INET
        with socket.socket(family, socket.SOCK_STREAM) as made:
            made.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            made.settimeout(10)
            made.bind(("", 40404))
            made.connect((address, PORT))
            made.sendall(b"GET /a HTTP/1.1\r\nhost: web\r\nconnection: close\r\n\r\n")
            return b"".join(iter(lambda: made.recv(4096), b""))

    with WebServer(agent.netns(WEB), PORT):
        for address in addresses(agent, WEB):
            for _ in range(3):
                assert client.call(ask, address).startswith(b"HTTP/1.1 200")

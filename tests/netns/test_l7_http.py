"""HTTP rules end to end: manifests, agent, a real Envoy, and what reaches the server."""

from __future__ import annotations

import json
import socket
from collections.abc import Iterator
from pathlib import Path

import pytest
import rig
from agents import Document, RunningAgent, pod, service
from l7_policies import CLIENT, OTHER, PORT, WEB, cnp, egress, ingress
from probes import Server, tcp
from web import TIMEOUT_S, Client, WebServer, fetch

from agent.privileges import NET_RAW, USER, capabilities

SHORT_S = 0.4
"""How long silence must last to be silence."""


@pytest.fixture(scope="module")
def running(datapath_host: None, tmp_path_factory: pytest.TempPathFactory) -> Iterator[RunningAgent]:
    """With three pods, for all tests that leave Envoy alone. Each begins with policies of its own."""
    with rig.Node() as node, RunningAgent(node, tmp_path_factory.mktemp("http")) as agent:
        agent.write("pods.yaml", pod(WEB, app="web"), pod(CLIENT, app="client"), pod(OTHER, app="other"))
        agent.write("service.yaml", service("shop/web", {"app": "web"}, 80, PORT))
        agent.start()
        yield agent


def put(agent: RunningAgent, *policies: Document) -> None:
    """In force, and judged by an Envoy that runs."""
    agent.write("policies.yaml", *policies)
    if agent.process is None or agent.process.poll() is not None:
        agent.start()
    agent.settle()
    agent.await_listeners()


def addresses(agent: RunningAgent, name: str) -> list[str]:
    return list(agent.endpoint(name)["ips"])


def test_rules_at_the_receiver_decide_each_request(running: RunningAgent) -> None:
    put(running, cnp("shop/web", {"app": "web"}, ingress=ingress({"method": "GET", "path": "/public/.*"})))
    client, other = running.netns(CLIENT), running.netns(OTHER)
    with WebServer(running.netns(WEB), PORT) as web:
        for address in addresses(running, WEB):
            with Client(client, address, PORT) as connection:
                allowed = connection.get("/public/a")
                assert (allowed.status, allowed.json()["path"]) == (200, "/public/a")
                assert allowed.json()["source"] in addresses(running, CLIENT), "the server sees the pod's own address"
                refused = connection.get("/private")
                assert refused.status == 403
                assert "envoy" not in (refused.body + str(refused.headers)).lower()
                assert connection.request("POST", "/public/a").status == 403
                assert connection.get("/public/b").status == 200, "on the same connection"
            assert fetch(other, address, PORT, "/public/a", timeout_s=SHORT_S).status == 0, (
                "who may not reach the port gets no answer"
            )
        assert set(web.paths()) == {"/public/a", "/public/b"}


def test_rules_at_the_sender(running: RunningAgent) -> None:
    put(running, cnp("shop/client", {"app": "client"}, egress=egress({"path": "/a"})))
    with WebServer(running.netns(WEB), PORT) as web:
        for address in addresses(running, WEB):
            with Client(running.netns(CLIENT), address, PORT) as connection:
                assert connection.get("/a").json()["source"] in addresses(running, CLIENT)
                assert connection.get("/b").status == 403
            assert fetch(running.netns(OTHER), address, PORT, "/b").status == 200, "of others nothing is asked"
        assert set(web.paths()) == {"/a", "/b"}
        assert {seen.path for seen in web.seen if seen.source in addresses(running, CLIENT)} == {"/a"}


def test_rules_at_both_ends_through_a_service(running: RunningAgent) -> None:
    """Lesson 5: where both ends are on one node, neither is passed by."""
    put(
        running,
        cnp("shop/client", {"app": "client"}, egress=egress({"path": "/(a|b)"})),
        cnp("shop/web", {"app": "web"}, ingress=ingress({"path": "/(b|c)"})),
    )
    with WebServer(running.netns(WEB), PORT) as web:
        for address in running.json("services")[0]["ips"]:
            with Client(running.netns(CLIENT), address, 80) as connection:
                got = {path: connection.get(path).status for path in ("/a", "/b", "/c", "/d")}
            assert got == {"/a": 403, "/b": 200, "/c": 403, "/d": 403}
        assert set(web.paths()) == {"/b"}


def test_requests_are_flows(running: RunningAgent) -> None:
    put(running, cnp("shop/web", {"app": "web"}, ingress=ingress({"path": "/seen/.*"})))
    with WebServer(running.netns(WEB), PORT), Client(running.netns(CLIENT), running.ip(WEB), PORT) as connection:
        assert connection.get("/seen/a?token=secret").status == 200
        assert connection.get("/unseen").status == 403
    seen = running.await_flows(lambda _: True, 2, "--type", "l7", "--http-path", "/(un)?seen")
    by_status = {flow["l7"]["status"]: flow for flow in seen}
    assert by_status[403]["verdict"] == "DROPPED"
    assert by_status[200]["verdict"] == "FORWARDED"
    assert by_status[403]["source"]["pod"] == "client"
    assert by_status[403]["destination"]["pod"] == "web"
    assert by_status[403]["policy"]["name"] == "web"
    assert "secret" not in json.dumps(seen)


def test_a_revoked_path_is_refused_at_the_next_request_of_a_live_connection(running: RunningAgent) -> None:
    put(running, cnp("shop/web", {"app": "web"}, ingress=ingress({"path": "/a"}, {"path": "/stream"})))
    client, address = running.netns(CLIENT), running.ip(WEB)
    with (
        WebServer(running.netns(WEB), PORT) as web,
        Client(client, address, PORT) as connection,
        Client(client, address, PORT) as streaming,
    ):
        stream = streaming.open_stream()
        assert connection.get("/a").status == 200
        for paths, status in ((("/b", "/stream"), 403), (("/a", "/b", "/stream"), 200), (("/c", "/stream"), 403)):
            rules = ingress(*({"path": path} for path in paths))
            running.write("policies.yaml", cnp("shop/web", {"app": "web"}, ingress=rules))
            running.settle()
            running.await_listeners()
            assert connection.get("/a").status == status, f"with {paths}"
            web.push()
            assert stream.readline() == b"line\n", "a stream that is still allowed goes on"


def test_a_connection_that_was_denied_meanwhile_goes_on_by_the_rules_of_the_day(running: RunningAgent) -> None:
    def rules(path: str, client: str) -> Document:
        return cnp(f"shop/{client}", {"app": "web"}, ingress=ingress({"path": path}, client=client))

    put(running, rules("/a", "client"))
    with (
        WebServer(running.netns(WEB), PORT) as web,
        Client(running.netns(CLIENT), running.ip(WEB), PORT) as connection,
    ):
        assert connection.get("/a").status == 200
        for meanwhile in (rules("/z", "nobody"), rules("/a", "other")):  # its listener is gone, or another's
            running.write("policies.yaml", meanwhile)
            running.settle()
            connection.ask("/a")  # denied for now: it is sent again until it gets through
            running.write("policies.yaml", meanwhile, rules("/b", "client"))
            running.settle()
            running.await_listeners()
            assert connection.answer() == 403
            assert connection.get("/b").status == 200
        assert web.paths() == ["/a", "/b", "/b"]


def test_without_envoy_only_l7_flows_are_denied(agent: RunningAgent) -> None:
    plain = {"toPorts": [{"ports": [{"port": "9000", "protocol": "TCP"}]}]}
    agent.write("pods.yaml", pod(WEB, app="web"), pod(CLIENT, app="client"))
    put(agent, cnp("shop/web", {"app": "web"}, ingress=[*ingress({"path": "/a"}), plain]))
    client, address = agent.netns(CLIENT), agent.ip(WEB)
    with WebServer(agent.netns(WEB), PORT), Server(agent.netns(WEB), "tcp", 9000):
        assert fetch(client, address, PORT, "/a").status == 200
        agent.kill_proxy("envoy")
        assert fetch(client, address, PORT, "/b").status != 200
        assert tcp(client, address, 9000)
        agent.await_listeners()
        assert fetch(client, address, PORT, "/a").status == 200
        assert fetch(client, address, PORT, "/b").status == 403


def test_connections_outlive_the_agent(running: RunningAgent) -> None:
    put(running, cnp("shop/web", {"app": "web"}, ingress=ingress({"path": "/a"})))
    client = running.netns(CLIENT)
    with WebServer(running.netns(WEB), PORT), Client(client, running.ip(WEB), PORT) as connection:
        assert connection.get("/a").status == 200
        address = running.ip(WEB)
        running.kill()
        assert connection.get("/a").status == 200
        assert connection.get("/b").status == 403
        assert fetch(client, address, PORT, "/a").status == 200, "new ones, too"
        running.start()
        assert connection.get("/a").status == 200
        assert connection.get("/b").status == 403


def test_envoy_has_no_privilege_but_to_speak_for_pods(running: RunningAgent) -> None:
    put(running, cnp("shop/web", {"app": "web"}, ingress=ingress({"path": "/a"})))
    pid = running.status()["proxies"]["envoy"]["process"]["pid"]
    assert Path(f"/proc/{pid}").stat().st_uid == USER
    assert set(capabilities(pid).values()) == {1 << NET_RAW}


def test_rules_that_change_while_there_is_no_agent_hold_from_its_start_on(running: RunningAgent) -> None:
    kept = cnp("shop/other", {"app": "other"}, egress=egress({"path": "/a"}))
    put(running, cnp("shop/client", {"app": "client"}, egress=egress({"path": "/(a|b)"})), kept)
    with (
        WebServer(running.netns(WEB), PORT) as web,
        Client(running.netns(CLIENT), running.ip(WEB), PORT) as changed,
        Client(running.netns(OTHER), running.ip(WEB), PORT) as other,
    ):
        assert changed.get("/b").status == other.get("/a").status == 200
        running.kill()
        running.write("policies.yaml", cnp("shop/client", {"app": "client"}, egress=egress({"path": "/a"})), kept)
        running.start()
        assert changed.get("/b").status != 200
        assert other.get("/a").status == 200, "what did not change goes on"
        assert web.paths().count("/b") == 1
        running.await_listeners()
        assert fetch(running.netns(CLIENT), running.ip(WEB), PORT, "/a").status == 200
        assert fetch(running.netns(CLIENT), running.ip(WEB), PORT, "/b").status == 403


def test_a_port_is_used_again_at_once_after_envoy_has_closed(running: RunningAgent) -> None:
    """Its side of the old connection lingers (TIME_WAIT) and must not swallow the new one."""
    put(running, cnp("shop/web", {"app": "web"}, ingress=ingress({"path": "/a"})))
    client = running.netns(CLIENT)

    def ask(address: str) -> bytes:
        family = socket.AF_INET6 if ":" in address else socket.AF_INET
        with socket.socket(family, socket.SOCK_STREAM) as made:
            made.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            made.settimeout(TIMEOUT_S)
            made.bind(("", 40404))
            made.connect((address, PORT))
            made.sendall(b"GET /a HTTP/1.1\r\nhost: web\r\nconnection: close\r\n\r\n")
            return b"".join(iter(lambda: made.recv(4096), b""))

    with WebServer(running.netns(WEB), PORT):
        for address in addresses(running, WEB):
            for _ in range(3):
                assert client.call(ask, address).startswith(b"HTTP/1.1 200")


def lent_ports(running: RunningAgent, address: str) -> set[int]:
    """From which Envoy has connections in the client's name."""
    theirs = addresses(running, CLIENT)
    there = f"[{address}]:{PORT}" if ":" in address else f"{address}:{PORT}"
    shown = running.node.run("ss", "-Htn", "state", "established", "dst", there).stdout
    ends = (line.split()[2].rpartition(":") for line in shown.splitlines())
    return {int(port) for ip, _, port in ends if ip.strip("[]") in theirs}


def test_a_port_that_envoy_has_in_a_pods_name_is_the_pods_as_well(running: RunningAgent) -> None:
    """Rules at the other end would have one connection taken for the other."""
    put(
        running,
        cnp("shop/client", {"app": "client"}, egress=egress({"path": "/a"})),
        cnp("shop/web", {"app": "web"}, ingress=ingress({"path": "/a"})),
    )
    client = running.netns(CLIENT)
    with WebServer(running.netns(WEB), PORT):
        for address in addresses(running, WEB):
            before = lent_ports(running, address)
            with Client(client, address, PORT) as first:

                def lent() -> set[int]:
                    """Asks, for such connections end when they are idle."""
                    assert first.get("/a").status == 200
                    return lent_ports(running, address) - before  # noqa: B023

                rig.wait_until(lambda: len(lent()) == 2, what="towards the other end's, and towards the server")
                for port in lent():
                    with Client(client, address, PORT, source_port=port) as second:
                        for connection in (second, first, second):
                            assert connection.get("/a").status == 200
                            assert connection.get("/b").status == 403

"""What load balancers are told: ports of services, /healthz and /livez, from a client outside the node."""

from __future__ import annotations

import http.client
import json
import socket
from collections.abc import Mapping
from typing import Any

import pytest
import rig
from agents import Document, RunningAgent, pod
from prometheus_client.parser import text_string_to_metric_families

WAIT_S = 30.0
HEALTHZ = 10256
CHECK = 30_500
METRICS = 9965
Found = tuple[int, Mapping[str, str], Any]
"""Status, headers, body."""


def ask(netns: rig.Netns, address: str, port: int, path: str = "/") -> Found:
    """Raises OSError where nobody listens."""
    with netns.call(socket.create_connection, (address, port), WAIT_S) as made:
        connection = http.client.HTTPConnection(address, port)
        connection.sock = made
        connection.request("GET", path)
        answer = connection.getresponse()
        return answer.status, dict(answer.getheaders()), json.loads(answer.read())


def balanced(name: str = "web", check: int = CHECK, **spec: Any) -> Document:
    ports = [{"port": 80, "targetPort": 8080}]
    defaults = {"type": "LoadBalancer", "externalTrafficPolicy": "Local", "healthCheckNodePort": check}
    if spec.get("externalTrafficPolicy") == "Cluster":
        del defaults["healthCheckNodePort"]
    return {
        "apiVersion": "v1",
        "kind": "Service",
        "metadata": {"name": name, "namespace": "shop"},
        "spec": defaults | {"selector": {"app": name}, "ports": ports} | spec,
    }


def begin(agent: RunningAgent, *documents: Document) -> None:
    agent.write("services.yaml", *documents)
    agent.start("--healthz", f"0.0.0.0:{HEALTHZ}")


def reached(netns: rig.Netns, address: str, port: int) -> Found | None:
    try:
        return ask(netns, address, port)
    except ConnectionError:
        return None


def listens(netns: rig.Netns, address: str, port: int) -> Found:
    """The agent says that it is settled before a port is open."""
    found = rig.wait_until(lambda: reached(netns, address, port), WAIT_S, f"port {port}")
    assert found is not None
    return found


def test_service_port_follows_its_endpoints(agent: RunningAgent, outside: rig.Outside) -> None:
    begin(agent, balanced())
    for address in (rig.NODE_V4, rig.NODE_V6):
        status, headers, body = listens(outside, address, CHECK)
        assert (status, headers["X-Load-Balancing-Endpoint-Weight"]) == (503, "0")
        assert body == {
            "service": {"namespace": "shop", "name": "web"},
            "localEndpoints": 0,
            "serviceProxyHealthy": True,
        }
    agent.write("pods.yaml", pod("shop/a", app="web"), pod("shop/b", app="web"))
    agent.settle()
    status, headers, body = ask(outside, rig.NODE_V4, CHECK)
    assert (status, headers["X-Load-Balancing-Endpoint-Weight"], body["localEndpoints"]) == (200, "2", 2)
    assert headers["Content-Type"] == "application/json"
    assert headers["X-Content-Type-Options"] == "nosniff"
    elsewhere = pod("shop/a", app="web")
    elsewhere["spec"]["nodeName"] = "other"
    elsewhere["status"] = {"podIPs": [{"ip": "10.244.9.9"}]}
    agent.write("pods.yaml", elsewhere)
    agent.settle()
    assert ask(outside, rig.NODE_V4, CHECK)[0] == 503


def test_ports_are_opened_and_closed_as_services_come_and_go(agent: RunningAgent, outside: rig.Outside) -> None:
    begin(agent, balanced())
    listens(outside, rig.NODE_V4, CHECK)
    agent.write("services.yaml", balanced(check=CHECK + 1))
    listens(outside, rig.NODE_V4, CHECK + 1)
    rig.wait_until(lambda: reached(outside, rig.NODE_V4, CHECK) is None, WAIT_S)
    agent.write("services.yaml", balanced(externalTrafficPolicy="Cluster"))
    rig.wait_until(lambda: reached(outside, rig.NODE_V4, CHECK + 1) is None, WAIT_S)


def test_a_port_in_use_is_a_problem_until_it_is_free(agent: RunningAgent, outside: rig.Outside) -> None:
    with agent.node.call(socket.create_server, (rig.NODE_V4, CHECK)):
        begin(agent, balanced())
        said = rig.wait_until(lambda: [r for r in agent.status()["reasons"] if str(CHECK) in r], WAIT_S)
        assert "Service shop/web: health check port 30500 cannot be opened" in said[0]
        (service,) = agent.json("services", "--problems")
        assert "cannot be opened" in service["problem"]
    listens(outside, rig.NODE_V4, CHECK)
    assert not [r for r in agent.status()["reasons"] if str(CHECK) in r]


def test_node_port_addresses(agent: RunningAgent, outside: rig.Outside) -> None:
    agent.flags = ("--node-port-addresses", f"{rig.NODE_V4}/32")
    begin(agent, balanced())
    listens(outside, rig.NODE_V4, CHECK)
    assert reached(outside, rig.NODE_V6, CHECK) is None


@pytest.mark.parametrize("path", ["/healthz", "/livez"])
def test_healthz(agent: RunningAgent, outside: rig.Outside, path: str) -> None:
    begin(agent)
    listens(outside, rig.NODE_V4, HEALTHZ)
    status, headers, body = ask(outside, rig.NODE_V4, HEALTHZ, path)
    assert (status, headers["Content-Type"], body["lastUpdated"]) == (200, "application/json", body["currentTime"])
    assert ("nodeEligible" in body) == (path == "/healthz")
    assert ask(outside, rig.NODE_V4, HEALTHZ, "/metrics")[0] == 404
    assert agent.stop() == 0
    assert reached(outside, rig.NODE_V4, HEALTHZ) is None


def test_metrics(agent: RunningAgent) -> None:
    """What `gatehouse status` says, as monitoring reads it."""
    agent.write("pods.yaml", pod("shop/web", app="web"))
    agent.start("--metrics", f"0.0.0.0:{METRICS}")
    rig.wait_until(lambda: "gatehouse_ready 1.0" in scrape(agent.node)[1], WAIT_S, "the agent says that it is ready")
    kind, text = scrape(agent.node)
    families = {family.name: family for family in text_string_to_metric_families(text)}
    assert kind.startswith("text/plain; version=0.0.4")
    (ready,) = [s for s in families["gatehouse_endpoints"].samples if s.labels == {"state": "ready"}]
    assert ready.value == 1
    assert families["gatehouse_revision_realized"].samples[0].value == agent.status()["revision"]["realized"]
    maps = {sample.labels["map"] for sample in families["gatehouse_map_capacity"].samples}
    assert maps == {one["name"] for one in agent.status()["datapath"]["maps"]}
    assert ask(agent.node, "127.0.0.1", METRICS, "/other")[0] == http.HTTPStatus.NOT_FOUND


def scrape(netns: rig.Netns) -> tuple[str, str]:
    """Content type and text of /metrics; nothing where nobody listens."""
    try:
        with netns.call(socket.create_connection, ("127.0.0.1", METRICS), WAIT_S) as made:
            connection = http.client.HTTPConnection("127.0.0.1", METRICS)
            connection.sock = made
            connection.request("GET", "/metrics")
            answer = connection.getresponse()
            return answer.getheader("Content-Type") or "", answer.read().decode()
    except ConnectionError:
        return "", ""

"""Services and slices that cannot be: each is reported by `gatehouse status`, and a good service answers throughout."""

from __future__ import annotations

import json
from collections.abc import Iterator
from contextlib import ExitStack

import probes
import pytest
from agents import RunningAgent, pod, service
from given_slices import slices
from probes import STREAM, Connection, Server
from traffic import Pulse, objects

GOOD, CLIENT = "shop/good", "shop/client"
NODE_PORT, CLUSTER_IP = 31000, "10.96.7.7"
BAD = {
    "no ports": (objects("Service", "bad/none: {selector: {app: web}}"), ["Service bad/none", "spec.ports"]),
    "overlapping node ports": (
        objects(
            "Service",
            f"""
            bad/one: {{type: NodePort, selector: {{app: web}}, ports: [{{port: 80, nodePort: {NODE_PORT}}}]}}
            bad/other: {{type: NodePort, selector: {{app: web}}, ports: [{{port: 80, nodePort: {NODE_PORT}}}]}}
            """,
        ),
        ["Service bad/other", f"node port {NODE_PORT}", "bad/one"],
    ),
    "unknown family": (
        objects("Service", "bad/family: {ipFamilies: [IPX], selector: {app: web}, ports: [{port: 80}]}"),
        ["Service bad/family", "spec.ipFamilies", "IPX"],
    ),
    "slices for nobody": (
        slices("bad/nobody", 8080, ("10.244.0.99", "ready"), ("fd00:10:244::99", "ready")),
        ["EndpointSlice bad/nobody-ipv4", "there is no Service bad/nobody"],
    ),
    "the cluster address of another": (
        objects(
            "Service",
            f"""
            bad/first: {{clusterIP: {CLUSTER_IP}, selector: {{app: web}}, ports: [{{port: 80}}]}}
            bad/second: {{clusterIP: {CLUSTER_IP}, selector: {{app: web}}, ports: [{{port: 80}}]}}
            """,
        ),
        ["Service bad/second", CLUSTER_IP, "bad/first"],
    ),
    "the cluster address of the good one": (
        objects("Service", "bad/thief: {clusterIP: GOOD, selector: {app: web}, ports: [{port: 80}]}"),
        ["Service bad/thief", "GOOD", GOOD],
    ),
}


@pytest.fixture
def pulse(agent: RunningAgent) -> Iterator[Pulse]:
    agent.write("pods.yaml", pod(GOOD, app="web"), pod(CLIENT, app="client"))
    agent.write("good.yaml", service(GOOD, {"app": "web"}, 80, 8080))
    agent.start()
    with ExitStack() as stack:
        stack.enter_context(Server(agent.netns(GOOD), "tcp", 8080, GOOD))
        connection = Connection(agent.netns(CLIENT), STREAM, good_ip(agent), 80)
        yield stack.enter_context(Pulse(connection))


def good_ip(agent: RunningAgent) -> str:
    (good,) = (s for s in agent.json("services") if f"{s['namespace']}/{s['name']}" == GOOD)
    return next(str(ip) for ip in good["ips"] if ":" not in ip)


def test_what_cannot_be_is_reported_and_the_rest_goes_on(agent: RunningAgent, pulse: Pulse) -> None:
    address, client = good_ip(agent), agent.netns(CLIENT)
    for number, (what, (documents, words)) in enumerate(BAD.items()):
        agent.write(f"bad{number}.yaml", json.dumps(documents[0]).replace("GOOD", address), *documents[1:])
        agent.settle()
        status = agent.cli("status")
        assert status.returncode == 1, "as where something is degraded"
        shown = status.stdout
        wanted = [f"bad{number}.yaml:", *(word.replace("GOOD", address) for word in words)]
        assert any(all(word in line for word in wanted) for line in shown.splitlines()), (what, shown)
        assert probes.tcp(client, address, 80).label == GOOD, what
    problems = agent.status()["problems"]
    assert {problem["file"] for problem in problems} == {f"bad{number}.yaml" for number in range(len(BAD))}
    for number in range(len(BAD)):
        agent.delete(f"bad{number}.yaml")
    agent.settle()
    assert (agent.status()["state"], agent.status()["problems"]) == ("ready", [])
    assert probes.tcp(client, address, 80).label == GOOD
    assert pulse.lost == []

"""Services at the socket under a whole agent: processes of pods, of `gatehouse exec` and of the node."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

import pytest
import rig
from agents import RunningAgent, pod, service
from probes import Server

from agent.datapath import cgroup
from agent.datapath.programs import SOCKET_PROGRAMS

WEB, CLIENT = "shop/web", "shop/client"

# Says whom the process takes for its peer, and whom the kernel sends its packets to.
ASK = """
import json, re, socket, sys
client = socket.create_connection((sys.argv[1], 80), 30)
client.send(b"?")
answer = client.recv(100).decode()
mine = "%04X" % client.getsockname()[1]
rows = [line.split() for line in open("/proc/self/net/tcp")]
true = next(row[2] for row in rows if row[1].endswith(":" + mine))
address, port = true.split(":")
peer = ".".join(str(byte) for byte in reversed(bytes.fromhex(address)))
print(json.dumps([answer.split()[0], client.getpeername()[0], peer, int(port, 16)]), flush=True)
"""


def begin(agent: RunningAgent, *flags: str) -> None:
    agent.write("pods.yaml", pod(WEB, app="web"), pod(CLIENT, app="client"))
    agent.write("service.yaml", service("shop/web", {"app": "web"}, 80, 8080))
    agent.start(*flags)


def frontend(agent: RunningAgent) -> str:
    (web,) = (s for s in agent.json("services") if s["name"] == "web")
    return next(str(ip) for ip in web["ips"] if ":" not in ip)


def from_pod(agent: RunningAgent) -> Any:
    return json.loads(agent.cli("exec", CLIENT, "--", sys.executable, "-c", ASK, frontend(agent), check=True).stdout)


def from_node(agent: RunningAgent) -> Any:
    return json.loads(agent.run_as_node(sys.executable, "-c", ASK, frontend(agent)).stdout)


def test_the_node_and_pods_are_translated_at_the_socket_whoever_lives(agent: RunningAgent) -> None:
    begin(agent)
    with Server(agent.netns(WEB), "tcp", 8080, "web"):
        address = frontend(agent)
        expected = ["web", address, agent.ip(WEB), 8080]
        assert from_pod(agent) == expected
        assert from_node(agent) == expected
        assert {s["name"] for s in services_of_flows(agent)} == {"web"}, "flows name their service as ever"
        ask = f"exec {sys.executable} -c '{ASK}' {address}"
        agent.write("late.yaml", pod("shop/late", command=ask, app="late"))
        log = agent.instance.pods / "shop/late/main.log"
        rig.wait_until(lambda: "\n" in (log.read_text() if log.exists() else ""))
        assert json.loads(log.read_text().splitlines()[0]) == expected
        agent.kill()
        assert json.loads(agent.run_as_node(sys.executable, "-c", ASK, address).stdout) == expected
        agent.start()
        assert (from_pod(agent), from_node(agent)) == (expected, expected)


def services_of_flows(agent: RunningAgent) -> list[dict[str, Any]]:
    """Of the new flows to the backend: from the pod, and from the node."""

    def found() -> list[dict[str, Any]]:
        lines = agent.cli("observe", "-o", "json", "--to-pod", WEB, "--type", "NEW", check=True).stdout.splitlines()
        return [service for line in lines if (service := json.loads(line)["service"])]

    return rig.wait_until(lambda: flows if len(flows := found()) >= 2 else [])


@pytest.mark.parametrize("setting", ["host", "off"])
def test_elsewhere_packets_are_translated(agent: RunningAgent, other_cgroup: Path, setting: str) -> None:
    begin(agent, "--socket-lb", setting, "--cgroup", str(other_cgroup))
    with Server(agent.netns(WEB), "tcp", 8080, "web"):
        assert from_pod(agent) == ["web", frontend(agent), frontend(agent), 80]


def test_cleanup_leaves_no_program_and_no_cgroup(agent: RunningAgent) -> None:
    begin(agent)
    folder = cgroup.folder_of(agent.instance.name)
    found = cgroup.attached(folder, agent.instance.pins)
    assert [(f.name, f.is_ours) for f in found] == [(spec.name, True) for spec in SOCKET_PROGRAMS]
    agent.stop()
    assert len(cgroup.attached(folder, agent.instance.pins)) == len(SOCKET_PROGRAMS)
    agent.cli("cleanup", check=True)
    assert not folder.exists()

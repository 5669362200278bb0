"""Helpers in containers of their own: PID namespaces and few privileges, as the chart's DaemonSet has them."""

from __future__ import annotations

import os
import signal
from collections.abc import Iterator
from pathlib import Path

import pytest
import rig
from agents import SETTLE_S, RunningAgent, kill, pod, policy
from helper_containers import MAY, HelperContainers
from l7_policies import CLIENT, PORT, WEB, cnp, ingress
from web import Client, WebServer

from agent.privileges import NET_RAW, ROOT, USER, capabilities
from agent.proxy.envoy import UNLOGGED

FLAGS = ("--helpers", "containers", "--l7-proxy", "on", "--dns-proxy", "on", "--healthz", "127.0.0.1:10256")


@pytest.fixture
def containers(agent: RunningAgent, tmp_path: Path) -> Iterator[HelperContainers]:
    with HelperContainers(agent, tmp_path) as made:
        yield made


HELPERS = ("flows", "dns", "envoy")


def begin(agent: RunningAgent, containers: HelperContainers, *names: str) -> None:
    """`names`: of those that are there; then the others are not waited for."""
    agent.write("pods.yaml", pod(WEB, app="web"), pod(CLIENT, app="client"))
    agent.write("policies.yaml", cnp("shop/web", {"app": "web"}, ingress=ingress({"path": "/public/.*"})))
    containers.start(*(names or HELPERS))  # before there is an agent: they wait for it
    rig.wait_until(lambda: "for the agent" in containers.said("envoy"), SETTLE_S, "it waits for the agent")
    agent.start(*FLAGS)
    agent.await_listeners()
    if not names:
        containers.await_all()


def test_they_help(agent: RunningAgent, containers: HelperContainers) -> None:
    begin(agent, containers)
    with WebServer(agent.netns(WEB), PORT), Client(agent.netns(CLIENT), agent.ip(WEB), PORT) as connection:
        assert [connection.get(path).status for path in ("/public/a", "/private")] == [200, 403]
    agent.await_flows(lambda flow: bool(flow["l7"]), 2)

    for name, user in (("dns", ROOT), ("envoy", USER)):
        sets = capabilities(containers.pid(name))
        assert sets["CapEff"] == 1 << NET_RAW, name
        assert sets["CapBnd"] == 1 << NET_RAW, name
        assert Path(f"/proc/{containers.pid(name)}").stat().st_uid == user
    assert "pid" not in next(line for line in agent.cli("status").stdout.splitlines() if line.startswith("Flows"))

    assert agent.json("config")["helpers"] == {"value": "containers", "origin": "--helpers"}
    ports = {row["name"]: row for row in agent.json("preflight", *FLAGS, "--manifests", str(agent.manifests))}
    assert ports["settings"]["result"] == "ok"


def test_requests_that_nobody_records_yet_are_said(agent: RunningAgent, containers: HelperContainers) -> None:
    """They are judged all the same."""
    begin(agent, containers, "dns", "envoy")
    rig.wait_until(lambda: UNLOGGED in str(agent.status()["reasons"]), SETTLE_S, "that there is no log")
    with WebServer(agent.netns(WEB), PORT), Client(agent.netns(CLIENT), agent.ip(WEB), PORT) as connection:
        assert [connection.get(path).status for path in ("/public/a", "/private")] == [200, 403]
        containers.start("flows")
        containers.await_all()
        assert connection.get("/public/b").status == 200
    (flow,) = agent.await_flows(lambda flow: bool(flow["l7"]), 1)
    assert flow["l7"]["path"] == "/public/b"


def test_one_that_ends_is_missed_and_taken_back(agent: RunningAgent, containers: HelperContainers) -> None:
    begin(agent, containers)
    for name, says in (("envoy", "envoy does not run"), ("flows", "the flows process does not run")):
        containers.stop(name)
        rig.wait_until(lambda: says in str(agent.status()["reasons"]), SETTLE_S, f"{name} is missed")  # noqa: B023
        assert f"gatehouse helper {name}" in str(agent.status()["reasons"])
        containers.start(name)
        containers.await_all()
    kill(containers.pid("dns"))  # its container ends with it, for the kubelet to start it again
    assert containers.ended("dns") != 0
    containers.start("dns")
    containers.await_all()
    with WebServer(agent.netns(WEB), PORT), Client(agent.netns(CLIENT), agent.ip(WEB), PORT) as connection:
        assert connection.get("/public/a").status == 200


def test_an_agent_that_starts_anew_finds_them(agent: RunningAgent, containers: HelperContainers) -> None:
    begin(agent, containers)
    before = {name: containers.pid(name) for name in ("flows", "dns", "envoy")}
    with WebServer(agent.netns(WEB), PORT), Client(agent.netns(CLIENT), agent.ip(WEB), PORT) as connection:
        agent.kill()
        assert connection.get("/public/a").status == 200
        agent.start(*FLAGS)
        containers.await_all()
        assert {name: containers.pid(name) for name in before} == before
        assert connection.get("/public/b").status == 200
        agent.kill()
        agent.start(*FLAGS, "--flows-ring", "1000")  # the flows process is to have other settings
        containers.await_all()
        rig.wait_until(lambda: containers.pid("flows") not in (0, before["flows"]), SETTLE_S, "it was started anew")
        assert containers.pid("envoy") == before["envoy"]


def test_one_that_nothing_asks_for_is_ended(agent: RunningAgent, containers: HelperContainers) -> None:
    begin(agent, containers)
    assert agent.stop() == 0
    agent.write("policies.yaml", policy("shop/web", {"app": "web"}))
    agent.start("--helpers", "containers")
    for name in ("envoy", "dns"):
        rig.wait_until(lambda: containers.pid(name) == 0, SETTLE_S, f"{name} has ended")  # noqa: B023
        assert containers.running[name].poll() is None, "its container waits"
        assert not agent.instance.order(name).exists()
    assert containers.pid("flows")


def test_a_container_that_may_not_end_it_ends_itself(
    agent: RunningAgent, containers: HelperContainers, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(MAY, "envoy", MAY["envoy"].removeprefix("kill "))
    begin(agent, containers)
    agent.instance.order("envoy").unlink()
    assert containers.ended("envoy") == 1
    assert containers.pid("envoy") == 0


def test_told_to_end_they_do(agent: RunningAgent, containers: HelperContainers) -> None:
    begin(agent, containers)
    inside = {name: parent_of(containers.pid(name)) for name in containers.running}
    for name, pid in inside.items():
        os.kill(pid, signal.SIGTERM)
        assert containers.ended(name) == 0
        assert containers.pid(name) == 0


def parent_of(pid: int) -> int:
    return int(Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[1])

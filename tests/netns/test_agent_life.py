"""The agent is stopped, killed and started again; what it manages goes on, and nothing is left when it is to go."""

from __future__ import annotations

import os
import re
import signal
import threading
import time
from pathlib import Path

import probes
import pytest
import rig
from agents import RunningAgent, allow_from, pod, policy, service
from probes import STREAM, Connection, Server

from agent.supervisor import listener_pid

WEB, CLIENT, OTHER = "shop/web", "shop/client", "shop/other"


def begin(agent: RunningAgent) -> None:
    agent.write("web.yaml", pod(WEB, command="exec sleep 1000", app="web"))
    agent.write("clients.yaml", pod(CLIENT, app="client"), pod(OTHER, app="other"))
    agent.write("policy.yaml", policy("shop/web", {"app": "web"}, ingress=allow_from(app="client")))
    agent.write("service.yaml", service("shop/web", {"app": "web"}, 80, 8080))
    agent.start()


def flows_pid(agent: RunningAgent) -> int:
    """Never 0, which means everybody to kill(2)."""
    return rig.wait_until(lambda: listener_pid(agent.instance.flows_socket))


def writes_at_start(agent: RunningAgent) -> int:
    return int(re.findall(r"event=\"kernel holds the plan\".* writes=(\d+)", agent.log())[-1])


def test_restart_adopts_everything_and_writes_nothing(agent: RunningAgent) -> None:
    begin(agent)
    before = {name: agent.endpoint(name) for name in (WEB, CLIENT, OTHER)}
    inside = agent.netns(WEB)
    pids, flows = inside.pids(), flows_pid(agent)
    services, programs = agent.json("services"), agent.status()["datapath"]["programs"]
    agent.kill()
    agent.start()
    assert {name: agent.endpoint(name) | {"policy_revision": 0} for name in before} == {
        name: endpoint | {"policy_revision": 0} for name, endpoint in before.items()
    }
    assert (inside.pids(), flows_pid(agent)) == (pids, flows)
    assert agent.json("services") == services
    assert agent.status()["datapath"]["programs"] == programs, "nothing is compiled again"
    assert writes_at_start(agent) == 0


def test_changes_made_meanwhile_are_realized(agent: RunningAgent) -> None:
    begin(agent)
    client, other, ip = agent.netns(CLIENT), agent.netns(OTHER), agent.ip(WEB)
    gone = agent.endpoint(OTHER)
    with Server(agent.netns(WEB), "tcp", 8080), Connection(client, STREAM, ip, 8080) as lasting:
        agent.kill()
        assert lasting.exchange(), "the datapath goes on without its agent"
        assert not probes.tcp(other, ip, 8080, timeout_s=0.3)
        agent.write("policy.yaml", policy("shop/web", {"app": "web"}, ingress=allow_from(app="late")))
        agent.write("clients.yaml", pod(CLIENT, app="client"), pod("shop/late", app="late"))
        assert lasting.exchange(), "nobody has read the new policy"
        agent.start()
        assert probes.tcp(agent.netns("shop/late"), ip, 8080)
        assert not lasting.exchange(0.3)
    assert not Path(gone["netns"]).exists()
    assert gone["interface"] not in agent.node.run("ip", "link").stdout


def test_orderly_stop_keeps_and_cleanup_removes(agent: RunningAgent) -> None:
    begin(agent)
    inside, ip = agent.netns(WEB), agent.ip(WEB)
    client, other = agent.netns(CLIENT), agent.netns(OTHER)
    with Server(inside, "tcp", 8080):
        assert agent.stop() == 0
        assert probes.tcp(client, ip, 8080)
        assert not probes.tcp(other, ip, 8080, timeout_s=0.3)
    assert agent.leftovers()
    refused = agent.cli("status")
    assert refused.returncode == 2
    assert "no agent answers at" in refused.stderr
    agent.cli("cleanup", check=True)
    assert agent.leftovers() == []
    assert inside.pids() == []


def test_remove_on_exit_leaves_nothing(agent: RunningAgent) -> None:
    agent.flags = ("--remove-on-exit",)
    begin(agent)
    assert agent.stop() == 0
    assert agent.leftovers() == []


def test_stopped_in_the_middle_of_a_flood_of_pods(agent: RunningAgent) -> None:
    begin(agent)
    agent.write("flood.yaml", *(pod(f"shop/flood-{number}", app="flood") for number in range(60)))
    rig.wait_until(lambda: any("flood" in e["name"] for e in agent.json("endpoints")))
    assert agent.stop() == 0
    agent.start()
    assert agent.status()["endpoints"] == {"ready": 63}


def test_cleanup_refuses_while_the_agent_runs_and_there_is_one_agent_a_state_directory(agent: RunningAgent) -> None:
    begin(agent)
    refused = agent.cli("cleanup")
    assert refused.returncode == 2
    assert "stop it" in refused.stderr
    second = agent.cli("agent", "--manifests", str(agent.manifests))
    assert second.returncode != 0
    assert re.search(r"an agent \(pid \d+\) runs on", second.stderr)
    agent.settle()


def test_damaged_state_is_put_aside_and_running_pods_keep_their_addresses(agent: RunningAgent) -> None:
    begin(agent)
    before = {name: agent.endpoint(name)["ips"] for name in (WEB, CLIENT, OTHER)}
    agent.kill()
    agent.instance.state.write_bytes(b'{"version": 1, "alloc')
    agent.start()
    assert {name: agent.endpoint(name)["ips"] for name in before} == before
    status = agent.status()
    assert status["state"] == "degraded"
    assert any("put aside" in reason for reason in status["reasons"])


def test_flows_process_is_started_again(agent: RunningAgent) -> None:
    begin(agent)
    first = flows_pid(agent)
    os.kill(first, signal.SIGKILL)
    rig.wait_until(lambda: listener_pid(agent.instance.flows_socket) not in (0, first))
    rig.wait_until(lambda: agent.status()["flows"]["process"]["state"] == "running")
    assert agent.status()["flows"]["process"]["restarts"] == 1
    assert not probes.tcp(agent.netns(OTHER), agent.ip(WEB), 8080, timeout_s=0.2)
    shown = rig.wait_until(lambda: agent.cli("observe", "--from-pod", OTHER).stdout)
    assert "DROPPED" in shown
    assert "default-deny" in shown


@pytest.mark.timeout(300)
def test_sigkill_again_and_again_under_traffic(agent: RunningAgent) -> None:
    """No connection is lost, no denied probe succeeds, what is changed meanwhile is in force after the restart."""
    begin(agent)
    client, other, ip = agent.netns(CLIENT), agent.netns(OTHER), agent.ip(WEB)
    done = threading.Event()
    lost: list[str] = []
    tries = {"allowed": 0, "denied": 0}

    def allowed() -> None:
        with Connection(client, STREAM, ip, 8080) as lasting:
            while not done.wait(0.002):
                tries["allowed"] += 1
                if not (answer := lasting.exchange()):
                    lost.append(f"exchange {tries['allowed']}: {answer}")
                    return

    def denied() -> None:
        while not done.wait(0.01):
            tries["denied"] += 1
            if answer := probes.tcp(other, ip, 8080, timeout_s=0.05):
                lost.append(f"denied probe {tries['denied']} got {answer}")
                return

    with Server(agent.netns(WEB), "tcp", 8080):
        threads = [threading.Thread(target=work) for work in (allowed, denied)]
        for thread in threads:
            thread.start()
        for number in range(20):
            agent.kill()
            agent.write("extra.yaml", policy("shop/extra", {"app": "client"}, ingress=allow_from(round=str(number))))
            agent.start(settle=number % 4 == 3)  # also killed while it starts
            if number % 4 == 3:
                (extra,) = (p for p in agent.json("policies") if p["name"] == "extra")
                assert extra["endpoints"] == [CLIENT]
                assert agent.endpoint(CLIENT)["isolated"] == ["ingress"]
            else:
                time.sleep(0.1 * (number % 3))
        done.set()
        for thread in threads:
            thread.join()
    assert lost == []
    assert tries["allowed"] > 100
    assert tries["denied"] > 20

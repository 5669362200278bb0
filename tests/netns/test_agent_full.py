"""Maps that run full: what is in force holds, the failure is shown, and what finds room goes on."""

from __future__ import annotations

import probes
import rig
from agents import RunningAgent, allow_from, pod, policy
from probes import STREAM, Connection, Server

WEB, CLIENT, OTHER = "shop/web", "shop/client", "shop/other"


def ports(number: int) -> list[dict[str, object]]:
    """A rule with so many single ports: as many entries of a row."""
    return [{"ports": [{"port": 20000 + 2 * n} for n in range(number)]}]


def test_rows_without_room_leave_the_old_in_force(agent: RunningAgent) -> None:
    agent.flags = ("--map-sizes", "policy_row=64")
    agent.write("pods.yaml", pod(WEB, app="web"), pod(CLIENT, app="client"), pod(OTHER, app="other"))
    agent.write("web.yaml", policy(WEB, {"app": "web"}, ingress=allow_from(app="client")))
    agent.start()
    client, other, ip = agent.netns(CLIENT), agent.netns(OTHER), agent.ip(WEB)
    with Server(agent.netns(WEB), "tcp", 8080), Connection(client, STREAM, ip, 8080) as lasting:
        agent.write("large.yaml", policy("shop/large", {"app": "web"}, ingress=ports(200)))
        status = rig.wait_until(lambda: (s := agent.status())["map_full"] and s)
        assert status["state"] == "degraded"
        assert any("policy_row" in reason for reason in status["reasons"])
        assert status["revision"]["realized"] < status["revision"]["desired"]
        assert lasting.exchange()
        assert not probes.tcp(other, ip, 8080, timeout_s=0.3)
        agent.write("small.yaml", policy("shop/small", {"app": "client"}, policyTypes=["Egress"]))
        rig.wait_until(lambda: agent.endpoint(CLIENT)["isolated"] == ["egress"])
        assert not lasting.exchange(0.5), "what finds room is in force"
        agent.delete("small.yaml")
        agent.delete("large.yaml")
        agent.settle()
        rig.wait_until(lambda: agent.status()["state"] == "ready")
        assert probes.tcp(client, ip, 8080)


def test_a_pod_that_finds_no_room_is_denied_until_there_is(agent: RunningAgent) -> None:
    agent.flags = ("--map-sizes", "endpoints=4")
    agent.write("pods.yaml", pod(WEB, app="web"), pod(CLIENT, app="client"))
    agent.start()
    ip = agent.ip(WEB)
    with Server(agent.netns(WEB), "tcp", 8080):
        agent.write("more.yaml", pod(OTHER, app="other"))
        rig.wait_until(lambda: agent.status()["map_full"])
        late = rig.wait_until(lambda: agent.endpoint(OTHER)["netns"] and agent.netns(OTHER))
        assert not probes.tcp(late, ip, 8080, timeout_s=0.3)
        assert probes.tcp(agent.netns(CLIENT), ip, 8080)
        agent.write("pods.yaml", pod(WEB, app="web"))
        agent.settle()
        assert probes.tcp(late, ip, 8080)
        rig.wait_until(lambda: agent.status()["state"] == "ready")

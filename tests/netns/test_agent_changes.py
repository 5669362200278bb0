"""Manifests are added, changed and removed while the agent runs, and traffic follows."""

from __future__ import annotations

import probes
from agents import RunningAgent, allow_from, pod, policy, service
from probes import STREAM, Connection, Server

WEB, CLIENT, OTHER = "shop/web", "shop/client", "shop/other"


def begin(agent: RunningAgent) -> None:
    agent.write("web.yaml", pod(WEB, ports={"http": 8080}, app="web"))
    agent.write("clients.yaml", pod(CLIENT, app="client"), pod(OTHER, app="other"))
    agent.start()


def test_policies_come_change_and_go(agent: RunningAgent) -> None:
    begin(agent)
    client, other, ip = agent.netns(CLIENT), agent.netns(OTHER), agent.ip(WEB)
    with Server(agent.netns(WEB), "tcp", 8080):
        assert probes.tcp(client, ip, 8080)
        with Connection(client, STREAM, ip, 8080) as lasting:
            assert lasting.exchange()
            agent.write("policy.yaml", policy("shop/web", {"app": "web"}, ingress=allow_from(app="client")))
            agent.settle()
            assert lasting.exchange(), "a live connection that is still allowed goes on"
            assert probes.tcp(client, ip, 8080)
            assert probes.tcp(other, ip, 8080, timeout_s=0.3).result == "timeout"
            agent.write("policy.yaml", policy("shop/web", {"app": "web"}, ingress=allow_from(app="other")))
            agent.settle()
            assert lasting.exchange(0.3).result == "timeout", "a live connection that is denied now stops"
            assert probes.tcp(other, ip, 8080)
        agent.delete("policy.yaml")
        agent.settle()
        assert probes.tcp(client, ip, 8080)


def test_relabelling_a_pod_changes_what_it_may(agent: RunningAgent) -> None:
    begin(agent)
    agent.write("policy.yaml", policy("shop/web", {"app": "web"}, ingress=allow_from(app="client")))
    agent.settle()
    other, ip = agent.netns(OTHER), agent.ip(WEB)
    with Server(agent.netns(WEB), "tcp", 8080):
        assert not probes.tcp(other, ip, 8080, timeout_s=0.3)
        agent.write("clients.yaml", pod(CLIENT, app="client"), pod(OTHER, app="client"))
        agent.settle()
        assert probes.tcp(other, ip, 8080)
        assert agent.endpoint(OTHER)["identity"] == agent.endpoint(CLIENT)["identity"]


def test_pods_come_and_go_behind_a_service(agent: RunningAgent) -> None:
    begin(agent)
    agent.write("service.yaml", service("shop/web", {"app": "web"}, 80, 8080))
    agent.settle()
    client = agent.netns(CLIENT)
    (ip, _) = agent.json("services")[0]["ips"]
    with Server(agent.netns(WEB), "tcp", 8080, label="first"):
        assert probes.tcp(client, ip, 80).label == "first"
        agent.write("more.yaml", pod("shop/web-2", app="web"))
        agent.settle()
        with Server(agent.netns("shop/web-2"), "tcp", 8080, label="second"):
            assert {probes.tcp(client, ip, 80).label for _ in range(40)} == {"first", "second"}
            agent.delete("web.yaml")
            agent.settle()
            assert {probes.tcp(client, ip, 80).label for _ in range(20)} == {"second"}
    agent.delete("more.yaml")
    agent.settle()
    assert probes.tcp(client, ip, 80).result == "refused"
    agent.delete("service.yaml")
    agent.settle()
    assert agent.json("services") == []


def test_revisions_tell_what_is_in_force(agent: RunningAgent) -> None:
    """A change that is written is desired from the first answer on, before it has been read; then realized."""
    begin(agent)
    for number in range(20):
        before = agent.endpoint(WEB)["policy_revision"]
        assert before["desired"] == before["realized"] > 0
        agent.write("policy.yaml", policy("shop/web", {"app": "web"}, ingress=allow_from(round=str(number))))
        after = agent.endpoint(WEB)["policy_revision"]
        assert after["desired"] > before["desired"]
        agent.settle()
        settled = agent.endpoint(WEB)["policy_revision"]
        assert settled["realized"] == settled["desired"] >= after["desired"]


def test_what_is_desired_stays_desired_where_nothing_had_changed(agent: RunningAgent) -> None:
    begin(agent)
    seen = [agent.status()["revision"]["desired"]]
    for _ in range(10):
        agent.write("web.yaml", pod(WEB, ports={"http": 8080}, app="web"))
        seen.append(agent.endpoint(WEB)["policy_revision"]["desired"])
        agent.settle()
        seen.append(agent.status()["revision"]["desired"])
    assert seen == sorted(seen)
    agent.settle()
    assert agent.status()["revision"] == {"desired": seen[-1], "realized": seen[-1]}


def test_bad_manifest_leaves_the_last_good_in_force(agent: RunningAgent) -> None:
    begin(agent)
    agent.write("policy.yaml", policy("shop/web", {"app": "web"}, ingress=allow_from(app="client")))
    agent.settle()
    client, other, ip = agent.netns(CLIENT), agent.netns(OTHER), agent.ip(WEB)
    with Server(agent.netns(WEB), "tcp", 8080):
        agent.write("policy.yaml", "# a comment\nkind: NetworkPolicy\n  broken: [")
        agent.settle()
        assert probes.tcp(client, ip, 8080)
        assert not probes.tcp(other, ip, 8080, timeout_s=0.3)
        status = agent.cli("status")
        assert status.returncode == 1
        assert "policy.yaml:3" in status.stdout
        (problem,) = agent.json("status")["problems"]
        assert (problem["file"], problem["line"], problem["warning"]) == ("policy.yaml", 3, False)
        assert "policy.yaml:3" in agent.log()
        agent.delete("policy.yaml")
        agent.settle()
        assert probes.tcp(other, ip, 8080)
    assert agent.cli("status").returncode == 0


def test_commands_of_containers_run_in_the_pod(agent: RunningAgent) -> None:
    agent.write("pod.yaml", pod(WEB, command="echo started; exec sleep 300", app="web"))
    agent.start()
    inside = agent.netns(WEB)
    (sleeper,) = inside.pids()
    shown = agent.cli("exec", WEB, "--", "ip", "-o", "-4", "address", "show", "eth0")
    assert agent.ip(WEB) in shown.stdout
    assert agent.cli("exec", WEB, "--", "sh", "-c", "exit 7").returncode == 7
    agent.write("pod.yaml", pod(WEB, command="exec sleep 301", app="web"))
    agent.settle()
    (changed,) = inside.pids()
    assert changed != sleeper, "another command is another process, in the same network"
    agent.delete("pod.yaml")
    agent.settle()
    assert inside.pids() == []

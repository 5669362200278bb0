"""An agent on the node's devices and cgroups: attached at its start, kept over restarts, taken off by settings and by
clean-up, from wherever that is called."""

from __future__ import annotations

import re
import socket
from pathlib import Path
from typing import Any

import probes
import pytest
import rig
from agents import RunningAgent, pod
from kernel_objects import KernelObjects, settings
from probes import Server
from traffic import objects, pods

from agent import traces
from agent.datapath import cgroup, xdp
from agent.datapath.abi import load
from agent.datapath.maps import Maps

POD = "shop/web"


def filters(agent: RunningAgent, device: str) -> list[str]:
    """Names of the programs on its ingress and egress."""
    shown = [agent.node.run("tc", "filter", "show", "dev", device, hook).stdout for hook in ("ingress", "egress")]
    return re.findall(r"gatehouse/(\w+)/", "".join(shown))


def xdp_mode(agent: RunningAgent, device: str) -> str:
    found = re.search(r"\b(xdp|xdpgeneric)\b", agent.node.run("ip", "link", "show", "dev", device).stdout)
    return found[1] if found else ""


def attached(agent: RunningAgent) -> dict[str, int]:
    return {program["name"]: program["attached"] for program in agent.status()["datapath"]["programs"]}


def sockets(agent: RunningAgent, folder: Path | None = None) -> int:
    """How many of this agent's socket programs are on a cgroup; by default on that of its pods."""
    found = cgroup.attached(folder or cgroup.folder_of(agent.instance.name), agent.instance.pins)
    return sum(one.is_ours for one in found)


def reserved(agent: RunningAgent) -> str:
    return agent.node.run("cat", "/proc/sys/net/ipv4/ip_local_reserved_ports").stdout.strip()


def await_reasons(agent: RunningAgent, *reasons: str) -> None:
    """Until it is degraded by these and no others. That a process of its own is being started is one, too."""
    shown: list[str] = []

    def are_all() -> bool:
        shown[:] = agent.status()["reasons"]
        return shown == [*reasons]

    try:
        rig.wait_until(are_all)
    except AssertionError:
        assert shown == [*reasons]
        raise


@pytest.fixture
def device(outside: rig.Outside) -> str:
    return outside.link


def test_a_node_with_everything_on_and_all_of_it_off_again(
    agent: RunningAgent, device: str, other_cgroup: Path
) -> None:
    agent.write("web.yaml", pod(POD, command="exec sleep 1000"))
    agent.start("--devices", device, "--xdp", "auto", "--masquerade")
    await_reasons(agent)
    assert agent.status()["state"] == "ready"
    counts = attached(agent)
    assert {name: counts[name] for name in ("from_pod", "to_pod", "from_network", "to_network", "xdp_network")} == {
        "from_pod": 1,
        "to_pod": 1,
        "from_network": 1,
        "to_network": 1,
        "xdp_network": 1,
    }
    assert {counts[name] for name in counts if name.startswith("gh_")} == {1}
    assert sockets(agent) == sum(name.startswith("gh_") for name in counts) == 9
    assert filters(agent, device) == ["from_network", "to_network"]
    assert xdp_mode(agent, device) == "xdpgeneric", "so `auto` has it on a veth"
    assert reserved(agent) == "30000-32767"
    folders = {path.name for path in agent.instance.pins.root.glob("programs-*")}
    assert len(folders) == 3

    assert agent.stop() == 0
    assert (len(filters(agent, device)), xdp_mode(agent, device), sockets(agent)) == (2, "xdpgeneric", 9), (
        "all of it stays"
    )
    agent.start("--devices", device, "--xdp", "off", "--socket-lb", "host", "--cgroup", str(other_cgroup))
    assert (len(filters(agent, device)), xdp_mode(agent, device), sockets(agent)) == (2, "", 0)
    agent.kill()
    agent.start("--socket-lb", "off")
    assert (filters(agent, device), sockets(agent), sockets(agent, other_cgroup)) == ([], 0, 0)
    assert "clsact" not in agent.node.run("tc", "qdisc", "show", "dev", device).stdout
    assert set(attached(agent)) == {"from_pod", "to_pod"}
    assert len(list(agent.instance.pins.root.glob("programs-*"))) == 1
    with Maps.open_pinned(agent.instance.pins.maps) as maps:
        assert list(maps["devices"].items()) == []


EVERYTHING = (
    *("--xdp", "native", "--socket-lb", "all", "--masquerade", "--external-ips"),
    *("--algorithm", "maglev", "--maglev-size", "251", "--forwarding", "hybrid", "--healthz", "127.0.0.1:10256"),
)
SERVED = """
c/web: {type: LoadBalancer, selector: {app: web}, ports: [{port: 80, targetPort: 8080}], sessionAffinity: ClientIP,
  externalIPs: [198.51.100.10], externalTrafficPolicy: Local, loadBalancerSourceRanges: [192.0.2.0/24]}
"""


def test_cleanup_from_another_namespace_leaves_nothing_of_anything(
    agent: RunningAgent, outside: rig.Outside, other_cgroup: Path
) -> None:
    """Every feature on and in use; then as the machine's administrator calls it after a crash: in the machine's own
    namespace, by the state directory's name."""
    device = outside.link
    agent.node.sysctl(ipv4__ip_local_reserved_ports="8080")
    before = settings(agent.node)
    agent.write(
        "pods.yaml", *pods(f"{POD}: {{labels: {{app: web}}, ports: [{{containerPort: 8080, hostPort: 8888}}]}}")
    )
    agent.write("web.yaml", *objects("Service", SERVED.replace("c/web", POD)))
    agent.start("--devices", device, "--cgroup", str(other_cgroup), *EVERYTHING)
    (web,) = (s for s in agent.json("services") if s["type"] == "LoadBalancer")
    (node_port,) = {f["port"] for f in web["frontends"] if f["kind"] == "NodePort"}
    with Server(agent.netns(POD), "tcp", 8080):
        for number in (node_port, 8888):
            assert probes.tcp(outside, rig.NODE_V4, number)
    assert (len(filters(agent, device)), xdp_mode(agent, device)) == (2, "xdp")
    assert (sockets(agent), sockets(agent, other_cgroup)) == (9, 9)
    assert reserved(agent).startswith("8080,30000-32767")
    held = KernelObjects.of(agent.instance.pins)
    assert (len(held.programs), len(held.links)) == (15, 1)
    assert len(held.maps) > len(load().maps), "with Maglev tables"
    with Maps.open_pinned(agent.instance.pins.maps) as maps:
        assert {name for name in ("conntrack", "nat", "affinity") if not list(maps[name].items())} == set()
    folder = cgroup.folder_of(agent.instance.name)
    agent.kill()
    said = agent.cli("cleanup", check=True).stdout
    for what in ("1 devices", "1 XDP programs", "18 socket programs", "1 cgroups"):
        assert what in said
    assert held.left() == []
    assert cgroup.attached(other_cgroup, agent.instance.pins) == []
    assert (filters(agent, device), xdp_mode(agent, device), folder.exists()) == ([], "", False)
    agent.gone()
    after = settings(agent.node)
    assert {key: after.get(key) for key in before if after.get(key) != before[key]} == {}
    assert "nothing to remove" in agent.cli("cleanup", check=True).stdout


def test_settings_taken_back_at_a_restart(agent: RunningAgent, outside: rig.Outside) -> None:
    """Masquerade and externalIPs: flows of before go on as they were, new ones are not translated any more."""
    external, device = "198.51.100.10", ("--devices", outside.link)
    agent.write("pods.yaml", *pods(f"{POD}: {{labels: {{app: web}}}}"))
    agent.write("web.yaml", *objects("Service", SERVED.replace("c/web", POD)))
    agent.start(*device, "--masquerade", "--external-ips")
    web = agent.netns(POD)
    with Server(web, "tcp", 8080), Server(outside, "tcp", 9090):
        assert probes.tcp(outside, external, 80)
        assert probes.tcp(web, rig.OUTSIDE_V4, 9090).seen_from == rig.NODE_V4
        with probes.Connection(web, probes.STREAM, rig.OUTSIDE_V4, 9090) as lasting:
            assert lasting.exchange()
            agent.kill()
            agent.start(*device)
            assert lasting.exchange().seen_from == rig.NODE_V4
        await_reasons(agent)
        assert probes.tcp(web, rig.OUTSIDE_V4, 9090).seen_from == agent.ip(POD)
        assert not probes.tcp(outside, external, 80, timeout_s=0.3)
    (service,) = (s for s in agent.json("services") if s["type"] == "LoadBalancer")
    assert {f["kind"] for f in service["frontends"]} == {"ClusterIP", "NodePort", "Loopback"}


def test_remove_on_exit_takes_all_of_it_off(agent: RunningAgent, device: str) -> None:
    agent.start("--devices", device, "--xdp", "auto", "--remove-on-exit")
    folder = cgroup.folder_of(agent.instance.name)
    assert len(filters(agent, device)) == 2
    assert agent.stop() == 0
    assert (filters(agent, device), xdp_mode(agent, device), folder.exists(), reserved(agent)) == ([], "", False, "")


def test_killed_while_it_starts(agent: RunningAgent, device: str) -> None:
    """At whatever moment: the next start ends with everything in its place, once."""
    agent.write("web.yaml", pod(POD, command="exec sleep 1000"))
    flags = ("--devices", device, "--xdp", "native")
    for milestone in ("traces.json", "agent.sock"):
        agent.start(*flags, settle=False)
        rig.wait_until((agent.instance.state_dir / milestone).exists, 60, milestone)
        agent.kill()
        (agent.instance.state_dir / milestone).unlink(missing_ok=milestone == "agent.sock")
    agent.start(*flags)
    await_reasons(agent)
    assert (filters(agent, device), xdp_mode(agent, device)) == (["from_network", "to_network"], "xdp")
    assert sockets(agent) == 9
    assert len(xdp.attached(agent.instance.pins.links)) == 1
    known = traces.read(agent.instance.traces)
    assert known is not None
    assert known.cgroups == (str(cgroup.folder_of(agent.instance.name)),)


def test_what_is_missing_is_said_until_it_is_there(agent: RunningAgent, device: str) -> None:
    agent.start("--devices", f"{device},late0", "--xdp", "native")
    agent.node.ip("link add plain0 type bridge")
    await_reasons(agent, "device late0 is not there: it is used as soon as it appears")
    assert agent.status()["state"] == "degraded"
    agent.node.ip("link set plain0 name late0")
    (refused,) = rig.wait_until(
        lambda: [r for r in agent.status()["reasons"] if "native" in r], what="the bridge to refuse native XDP"
    )
    assert refused.startswith("device late0 does not take XDP (native: Operation not supported)")
    assert attached(agent)["from_network"] == 2
    assert attached(agent)["xdp_network"] == 1


def test_a_cgroup_of_the_users(agent: RunningAgent, other_cgroup: Path) -> None:
    agent.start("--cgroup", str(other_cgroup), "--socket-lb", "host")
    assert sockets(agent, other_cgroup) == 9
    agent.kill()
    agent.start("--cgroup", str(other_cgroup))
    assert (sockets(agent, other_cgroup), sockets(agent)) == (9, 9), "that of pods is not below it"
    agent.kill()
    agent.start()
    assert (sockets(agent, other_cgroup), sockets(agent)) == (0, 9)
    agent.kill()
    agent.start("--cgroup", str(other_cgroup.parent / "nowhere"), settle=False)
    assert agent.process is not None
    assert agent.process.wait(30) != 0
    assert "is not a folder of a cgroup2 file system" in agent.log().splitlines()[-1]
    agent.start("--cgroup", str(other_cgroup))
    agent.kill()
    agent.cli("cleanup", check=True)
    assert sockets(agent, other_cgroup) == 0


def test_a_start_beside_kube_proxy_says_so(agent: RunningAgent) -> None:
    with agent.node.call(socket.create_server, ("", 10249)):
        agent.start()
        status: dict[str, Any] = agent.status()
        assert status["state"] == "degraded"
        assert any("kube-proxy runs here" in reason for reason in status["reasons"])
        assert "another service proxy" in agent.log()
        assert "! kube-proxy runs here" in agent.cli("status").stdout

"""The WireGuard program in a container of its own (--helpers containers): whoever ends, nothing goes in plain text, and
what can go on does."""

from __future__ import annotations

import socket
from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path

import pytest
import rig
from agents import SETTLE_S, START_S, kill
from datagrams import Datagrams
from encrypted_cluster import OFF, ON, PATIENT_S, STRICT, has_met, listen, meet, plaintext, status, use, uses_kernel
from helper_containers import HelperContainers
from kube_cluster import FAMILIES, KubeAgent, KubeCluster, KubePod
from patience import SLOWER
from probes import Server, ping, tcp, udp
from steady import Steady
from wireguard_backends import need, need_all

from agent.helpers.names import Name

PORT = 8080
SHORT_S = 0.4 * SLOWER
HELPERS = (Name.FLOWS, Name.WIREGUARD)


class Nodes:
    """Two, and their containers. `client` and `web` are on one each."""

    def __init__(self, cluster: KubeCluster, containers: dict[str, HelperContainers]) -> None:
        self.cluster, self.containers = cluster, containers
        self.flags: tuple[str, ...] = STRICT
        self.client: KubePod = cluster.add("n1/shop/client", app="client")
        self.web: KubePod = cluster.add("n2/shop/web", app="web")
        self.agent: KubeAgent = cluster.agents["n2"]
        self.helpers = containers["n2"]

    def pid(self) -> int:
        """Of n2's program."""
        return self.helpers.pid(Name.WIREGUARD)

    def have(self, flags: tuple[str, ...]) -> None:
        """Other agents, one after another, where they are to have other settings; their containers are as they are."""
        if flags != self.flags:
            self.flags = flags
            for agent in self.cluster.agents.values():
                agent.stop()
                agent.start(*flags)
                assert tcp(self.client.netns, self.web.ip(), PORT, PATIENT_S)  # the other has heard of it

    def next(self, *more: str) -> None:
        """Another agent on n2."""
        self.agent.stop()
        self.agent.start(*self.flags, *more)

    def met(self) -> None:
        """The programs run, and there were handshakes."""
        meet(self.cluster)
        for helpers in self.containers.values():
            helpers.await_all()

    def link(self) -> bool:
        """Whether n2 has the device."""
        return "ghwg" in self.agent.node.run("ip", "-o", "link").stdout

    def reasons(self) -> str:
        return str(self.agent.status()["reasons"])

    def handshake(self) -> str:
        """When n2 made the last one."""
        return self.agent.node.run("wg", "show", status(self.agent)["device"], "latest-handshakes").stdout


@pytest.fixture(scope="module")
def nodes(datapath_host: None, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Nodes]:
    need_all("userspace")
    folder = tmp_path_factory.mktemp("kube")
    with KubeCluster(folder, "n1", "n2", flags=("--helpers", "containers")) as cluster, ExitStack() as stack:
        use(cluster, "userspace")
        containers = {
            name: stack.enter_context(HelperContainers(agent, folder / name)) for name, agent in cluster.agents.items()
        }
        for one in containers.values():
            one.start(*HELPERS)
        cluster.start(*STRICT)
        made = Nodes(cluster, containers)
        with Server(made.web.netns, "tcp", PORT, "web"), Server(made.web.netns, "udp", PORT, "web"):
            made.met()
            yield made


@pytest.mark.parametrize("family", FAMILIES)
def test_an_agent_is_killed_and_replaced(nodes: Nodes, family: str) -> None:
    """Program, device and sessions go on, and not one packet is lost."""
    assert udp(nodes.client.netns, nodes.web.ip(family), PORT, PATIENT_S)
    before = nodes.pid(), nodes.handshake()
    assert before[0]
    with listen(nodes.cluster) as seen, Datagrams(nodes.client.netns, nodes.web.ip(family), PORT) as datagrams:
        datagrams.go_on()
        nodes.agent.kill()
        datagrams.go_on(50)
        nodes.agent.start(*nodes.flags)
        nodes.helpers.await_all()
        datagrams.go_on()
    assert not datagrams.lost, datagrams
    assert (nodes.pid(), nodes.handshake()) == before
    assert seen.encrypted
    assert (seen.seen(), plaintext(nodes.cluster)) == ([], 0)
    process = status(nodes.agent)["process"]
    assert (process["state"], process["pid"], process["problem"]) == ("running", 0, "")


@pytest.mark.parametrize("flags", [STRICT, ON], ids=["strict", "lenient"])
def test_its_container_is_killed(nodes: Nodes, flags: tuple[str, ...]) -> None:
    """With it the device goes; what is sent until there is another is dropped, and sent in plain text by nobody."""
    nodes.have(flags)
    nodes.met()
    web, client = nodes.web, nodes.client
    with listen(nodes.cluster) as seen, Steady(client.netns, web.ip(), PORT) as steady:
        steady.go_on()
        nodes.helpers.stop(Name.WIREGUARD)
        rig.wait_until(lambda: not nodes.link(), SETTLE_S, "the device is gone")
        for probe in (tcp, udp):
            assert probe(client.netns, web.ip(), PORT, SHORT_S).result == "timeout"
        assert not ping(web.netns, client.ip("v6"), SHORT_S)
        rig.wait_until(lambda: "gatehouse helper wireguard" in nodes.reasons(), SETTLE_S, "it is missed")
        assert "/var/run/wireguard" in nodes.reasons()
        shown = [nodes.agent.cli(*words).stdout for words in (("status",), ("encryption", "status"))]
        assert all("restarting" in text for text in shown), shown
        nodes.helpers.start(Name.WIREGUARD)
        steady.go_on()
        nodes.met()
        assert tcp(web.netns, web.ip(), PORT, PATIENT_S)
    assert (seen.seen(), plaintext(nodes.cluster)) == ([], 0)
    assert status(nodes.agent)["process"]["restarts"] >= 1


def test_its_container_is_killed_while_there_is_no_agent(nodes: Nodes) -> None:
    """The next one makes the device by the order that stands, without a key; the next agent gives it one."""
    web, client = nodes.web, nodes.client
    with listen(nodes.cluster) as seen:
        nodes.agent.kill()
        nodes.helpers.stop(Name.WIREGUARD)
        nodes.helpers.start(Name.WIREGUARD)
        rig.wait_until(lambda: nodes.pid() and nodes.link(), SETTLE_S, "there is a device")
        assert not tcp(client.netns, web.ip(), PORT, SHORT_S)
        assert not ping(web.netns, client.ip("v6"), SHORT_S)
        nodes.agent.start(*nodes.flags)
        assert tcp(client.netns, web.ip(), PORT, PATIENT_S)
        nodes.met()
    assert (seen.seen(), plaintext(nodes.cluster)) == ([], 0)


def test_off_and_on_again(nodes: Nodes) -> None:
    """The container stays, and runs nothing. Of a socket that nobody listens at (a program leaves it that was killed
    with the agent's container, as its child) nothing is left."""
    path = nodes.helpers.socket(Name.WIREGUARD)
    with Steady(nodes.client.netns, nodes.web.ip(), PORT) as steady:
        nodes.have(ON)
        steady.go_on()
        nodes.have(OFF)
        gone = (0, False, False)  # once the other sends nothing there
        rig.wait_until(lambda: (nodes.pid(), nodes.link(), path.exists()) == gone, START_S, "all of it is gone")
        assert not nodes.agent.instance.order(Name.WIREGUARD).exists()
        assert nodes.helpers.running[Name.WIREGUARD].poll() is None
        steady.go_on()
        leave(path)
        nodes.next()
        assert not path.exists()
        leave(path)
        nodes.have(ON)
        nodes.met()
        steady.go_on()


def leave(path: Path) -> None:
    with socket.socket(socket.AF_UNIX) as dead:
        dead.bind(str(path))


def test_the_kernels_takes_over(nodes: Nodes) -> None:
    """As where its module is loaded later: the container idles. And back."""
    need("kernel")
    nodes.next("--wireguard", "auto")
    meet(nodes.cluster)
    assert (uses_kernel(nodes.agent), nodes.pid(), status(nodes.agent)["process"]) == (True, 0, None)
    assert nodes.helpers.running[Name.WIREGUARD].poll() is None
    assert tcp(nodes.client.netns, nodes.web.ip(), PORT, PATIENT_S)
    nodes.next()
    nodes.met()
    assert not uses_kernel(nodes.agent)
    assert tcp(nodes.client.netns, nodes.web.ip(), PORT, PATIENT_S)


def test_an_agent_that_runs_it_itself_and_back(nodes: Nodes) -> None:
    """A program is taken over where it can be seen; else its container waits until the other has gone."""
    nodes.next("--helpers", "children")
    rig.wait_until(lambda: has_met(nodes.agent, 1), START_S, "it has met the other")
    child = nodes.pid()
    assert status(nodes.agent)["process"]["pid"] == child
    assert not nodes.agent.instance.order(Name.WIREGUARD).exists()
    assert tcp(nodes.client.netns, nodes.web.ip(), PORT, PATIENT_S)
    nodes.next()
    rig.wait_until(lambda: "to leave" in nodes.helpers.said(Name.WIREGUARD), SETTLE_S, "it waits")
    assert nodes.pid() == child
    assert tcp(nodes.client.netns, nodes.web.ip(), PORT, PATIENT_S)
    kill(child)
    rig.wait_until(lambda: nodes.pid() not in (0, child), SETTLE_S, "the container's runs")
    nodes.met()
    assert tcp(nodes.client.netns, nodes.web.ip(), PORT, PATIENT_S)


def test_cleanup(nodes: Nodes) -> None:
    """What the container runs goes, and the container stays: the last, as it ends an agent for good."""
    path = nodes.helpers.socket(Name.WIREGUARD)
    nodes.agent.stop()
    said = nodes.agent.cli("cleanup", check=True).stdout
    assert "1 flows process" in said and "1 WireGuard devices" in said
    assert (nodes.pid(), nodes.link(), path.exists()) == (0, False, False)
    assert all(one.poll() is None for one in nodes.helpers.running.values())

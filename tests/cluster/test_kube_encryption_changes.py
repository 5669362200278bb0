"""Keys that change and settings that change, under connections that never rest."""

from __future__ import annotations

import json
import subprocess
from collections.abc import Iterator
from functools import partial

import pytest
import rig
from agents import START_S
from encrypted_cluster import OFF, ON, PATIENT_S, STRICT, listen, meet, plaintext, status, use
from kube_cluster import FAMILIES, KubeAgent, KubeCluster, KubePod, node_ips
from patience import SLOWER
from probes import Server, ping, tcp
from steady import AT_MOST, Steady

PORT = 8080
ROTATED_S = 90.0 * SLOWER
OVERLAP = ("--key-overlap-s", "2")


@pytest.fixture(scope="module")
def cluster(backends: str, tmp_path_factory: pytest.TempPathFactory) -> Iterator[KubeCluster]:
    """Tests say with which settings agents run."""
    with KubeCluster(tmp_path_factory.mktemp("kube"), "n1", "n2", flags=OVERLAP) as cluster:
        use(cluster, backends)
        cluster.start(*ON)
        client, web = cluster.add("n1/shop/client", app="client"), cluster.add("n2/shop/web", app="web")
        with Server(web.netns, "tcp", PORT, "web"):
            assert tcp(client.netns, web.ip(), PORT, PATIENT_S)
            yield cluster


def pods(cluster: KubeCluster) -> tuple[KubePod, KubePod]:
    return cluster.pods["n1/shop/client"], cluster.pods["n2/shop/web"]


def begin(cluster: KubeCluster, *flags: str) -> None:
    """All agents have these settings, and have met: whatever an earlier test left."""
    cluster.api.faults.clear()
    others = [agent for agent in cluster.agents.values() if not runs(agent, flags)]
    for agent in others:
        if agent in cluster.running():
            agent.stop()
    for agent in others:
        agent.start(*flags, settle=False)
    for agent in others:
        agent.settle(START_S)
    meet(cluster)


def runs(agent: KubeAgent, flags: tuple[str, ...]) -> bool:
    process = agent.process
    if process is None or process.poll() is not None:
        return False
    return isinstance(process.args, list) and tuple(process.args[-len(flags) :]) == flags


def again(agent: KubeAgent, *flags: str) -> None:
    """Another agent, with other settings."""
    agent.stop()
    agent.start(*flags)


def has_no_device(node: rig.Netns) -> bool:
    return "ghwg" not in node.run("ip", "link").stdout


def audit(agent: KubeAgent) -> list[dict[str, str]]:
    return [json.loads(line) for line in (agent.instance.state_dir / "audit.jsonl").read_text().splitlines()]


def test_both_nodes_change_their_keys(cluster: KubeCluster) -> None:
    """At once. No connection stands still for longer than it takes TCP to send a packet again."""
    begin(cluster, *ON)
    client, web = pods(cluster)
    agents = cluster.agents.values()
    before = {agent.name: status(agent)["public_key"] for agent in agents}
    plain = plaintext(cluster)
    with (
        listen(cluster) as seen,
        Steady(client.netns, web.ip("v4"), PORT) as one,
        Steady(client.netns, web.ip("v6"), PORT) as two,
    ):
        calls = [
            subprocess.Popen(agent.command("encryption", "rotate"), env=agent.env, stdout=-3, stderr=-3)
            for agent in agents
        ]
        assert [call.wait(ROTATED_S) for call in calls] == [0, 0]
        for steady in (one, two):
            steady.go_on()
            assert steady.retransmits <= AT_MOST, steady
    assert seen.seen() == []
    assert plaintext(cluster) == plain
    for agent in agents:
        assert status(agent)["public_key"] not in before.values()
        assert [entry["event"] for entry in audit(agent)] == ["key rotation begun", "key swapped", "old key destroyed"]
        keys = sorted(path.name for path in (agent.instance.state_dir / "wireguard").glob("*.key"))
        assert len(keys) == 1, keys
    shown = cluster.nodes["n1"].run("wg", "show", status(cluster.agents["n1"])["device"], "peers").stdout.split()
    assert shown == [status(cluster.agents["n2"])["public_key"]]


def test_off_and_on_again(cluster: KubeCluster) -> None:
    """Not strict, node after node: while one does not encrypt it is counted; once both do, nothing is plain."""
    begin(cluster, *ON)
    client, web = pods(cluster)
    with Steady(client.netns, web.ip(), PORT) as steady:
        for flags in (OFF, ON):
            for agent in cluster.agents.values():
                again(agent, *flags)
                steady.go_on()
            if flags is OFF:
                with listen(cluster) as seen:
                    steady.go_on()
                    assert client.ip() in "".join(seen.seen()), "it is off"
        meet(cluster)
        with listen(cluster) as seen:
            before = plaintext(cluster)
            steady.go_on()
            assert tcp(client.netns, web.ip("v6"), PORT, PATIENT_S)
            assert (seen.seen(), plaintext(cluster)) == ([], before)
        assert steady.retransmits <= AT_MOST, steady


def test_the_other_node_hears_of_it_late(cluster: KubeCluster) -> None:
    """That a node encrypts no more, or does so again: until the other one knows, each takes what the other sends."""
    begin(cluster, *ON)
    client, web = pods(cluster)

    def believes(encrypts: bool) -> bool:
        return bool(status(cluster.agents["n1"])["peers"][0]["ready"]) is encrypts

    with Steady(client.netns, web.ip(), PORT) as steady:
        for flags, encrypts in ((OFF, False), (ON, True)):
            cluster.api.faults.stall("nodeendpoints")
            again(cluster.agents["n2"], *flags)
            steady.go_on()
            assert believes(not encrypts)
            cluster.api.faults.flow("nodeendpoints")
            rig.wait_until(partial(believes, encrypts), START_S, "it is known")
            steady.go_on()
            if flags is OFF:
                rig.wait_until(partial(has_no_device, cluster.nodes["n2"]), START_S, "nobody sends there any more")
                steady.go_on()
        assert steady.retransmits <= AT_MOST, steady


def test_strict_and_back(cluster: KubeCluster) -> None:
    """Nothing passes in plain text from the first node's start on, whatever the other one does."""
    begin(cluster, *ON)
    client, web = pods(cluster)
    with Steady(client.netns, web.ip(), PORT) as steady, listen(cluster) as seen:
        for flags in (STRICT, ON):
            for agent in cluster.agents.values():
                again(agent, *flags)
                steady.go_on()
        assert steady.retransmits <= AT_MOST, steady
        assert seen.seen() == []


def test_strict_against_a_node_that_does_not_encrypt(cluster: KubeCluster) -> None:
    """Nothing passes, either way; and all goes on once it does."""
    begin(cluster, *STRICT)
    client, web = pods(cluster)
    again(cluster.agents["n2"], *OFF)
    with listen(cluster, "n1") as seen:
        rig.wait_until(lambda: not status(cluster.agents["n1"])["peers"][0]["ready"], START_S, "it is known")
        assert not tcp(client.netns, web.ip(), PORT, 0.4)
        assert not ping(client.netns, web.ip("v6"), 0.4)
        assert seen.seen() == []
    again(cluster.agents["n2"], *STRICT)
    meet(cluster)
    assert tcp(client.netns, web.ip(), PORT, PATIENT_S)


@pytest.mark.parametrize("flags", [STRICT, (*STRICT, "--node-encryption")], ids=["pods", "nodes, too"])
def test_nodes_and_pods(cluster: KubeCluster, flags: tuple[str, ...]) -> None:
    """What a node itself and a pod of another send each other is encrypted by a setting of its own."""
    begin(cluster, *flags)
    _, web = pods(cluster)
    node = cluster.nodes["n1"]
    for family in FAMILIES:
        with listen(cluster) as seen:
            assert ping(node, web.ip(family), PATIENT_S)
            assert tcp(node, web.ip(family), PORT, PATIENT_S).seen_from == node_ips(1)[family]
            assert ping(web.netns, node_ips(1)[family], PATIENT_S)
            assert (seen.seen() == []) is (flags != STRICT)

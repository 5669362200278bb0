"""The API server goes away, and comes back: what is known goes on, what is new waits, and nothing breaks on return."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path

import pytest
import rig
from agents import START_S, allow_from, policy
from kube_cluster import EitherCluster, KubeAgent, KubeCluster
from probes import Server, tcp

PORT = 8080
SILENT_S = 0.5
FLAGS = ("--api-wait-s", "1")


@pytest.fixture
def cluster(datapath_host: None, over: type[EitherCluster], tmp_path: Path) -> Iterator[EitherCluster]:
    with over(tmp_path, "n1", "n2", flags=FLAGS) as cluster:
        cluster.start()
        cluster.apply(policy("shop/web", {"app": "web"}, ingress=allow_from(app="client")))
        yield cluster


@pytest.fixture
def faulty(datapath_host: None, tmp_path: Path) -> Iterator[KubeCluster]:
    """Over the server that can be told to refuse."""
    with KubeCluster(tmp_path, "n1", flags=FLAGS) as cluster:
        cluster.start()
        yield cluster


def test_node_goes_on_without_the_api_server(cluster: EitherCluster) -> None:
    web = cluster.add("n2/shop/web", app="web")
    client, other = cluster.add("n1/shop/client", app="client"), cluster.add("n1/shop/other", app="other")
    told = cluster.add("n2/shop/client-2", attach=False, app="client")
    cluster.agents["n2"].await_pod(told.name)
    with Server(web.netns, "tcp", PORT, "web"):
        assert tcp(client.netns, web.ip(), PORT)
        cluster.api.stop()
        told.attach()  # its identity is known
        for netns in (client.netns, told.netns):
            assert tcp(netns, web.ip(), PORT)
        assert not tcp(other.netns, web.ip(), PORT, SILENT_S)
        for agent in cluster.running():  # from what is on disk
            agent.kill()
            agent.start()
            assert agent.status()["cluster"]["from_disk"]
        for netns in (client.netns, told.netns):
            assert tcp(netns, web.ip(), PORT)
        assert not tcp(other.netns, web.ip(), PORT, SILENT_S)
        web.agent.cni("DEL", told)
        cluster.api.start()
        cluster.api.delete("networkpolicies", "web", "shop")
        rig.wait_until(lambda: tcp(other.netns, web.ip(), PORT, 1.0), START_S, "what has changed is in force")
        for agent in cluster.running():
            await_synced(agent)


def await_synced(agent: KubeAgent) -> None:
    """Until all is as the API server has it."""
    status = agent.status()

    def synced() -> bool:
        status.update(agent.status())
        return status["state"] == "ready" and not status["cluster"]["from_disk"]

    try:
        rig.wait_until(synced, START_S)
    except AssertionError:
        raise AssertionError(f"{status['reasons']}, {status['problems']}, {status['cluster']}") from None


def test_new_pod_of_unknown_identity_waits_for_the_api_server(faulty: KubeCluster) -> None:
    """Where the runtime gives up meanwhile, nothing is left of it."""
    faulty.api.faults.refuse(503, verbs=["create"], resources=["securityidentities"])
    pod = faulty.add("n1/shop/new", attach=False, app="new", tier="never-seen")
    agent = faulty.agents["n1"]
    agent.await_pod(pod.name)
    adding = agent.begin("ADD", pod)
    rig.wait_until(agent.links, START_S, "its link is made")
    assert adding.poll() is None
    assert agent.endpoint(pod.name)["state"] == "creating"
    adding.kill()
    adding.communicate()
    rig.wait_until(lambda: not agent.links(), START_S, "nothing is left of it")
    adding = agent.begin("ADD", pod)
    rig.wait_until(agent.links, START_S, "its link is made")
    faulty.api.faults.clear()
    output, _ = adding.communicate(timeout=START_S)
    assert json.loads(output)["ips"]

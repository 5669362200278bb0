"""Clusters whose nodes encrypt: the wire between them, and what agents say of it."""

from __future__ import annotations

from typing import Any

import rig
from agents import START_S
from kube_cluster import CLUSTER_CIDRS, FAMILIES, KubeAgent, KubeCluster, node_ips
from patience import SLOWER
from wire import Wire
from wireguard_backends import of_nodes

from agent.api import client

ON = ("--encryption", "wireguard", "--mtu", "0")
STRICT = (*ON, "--strict-encryption", "--cluster-cidrs", CLUSTER_CIDRS)
OFF = ("--encryption", "off", "--mtu", "0")
PATIENT_S = 30.0 * SLOWER
"""For an answer that must come, on a busy machine."""


def use(cluster: KubeCluster, backends: str) -> None:
    """Whose WireGuard the nodes have: one of wireguard_backends.CLUSTERS. Before they are started."""
    for agent, backend in zip(cluster.agents.values(), of_nodes(backends, len(cluster.agents)), strict=True):
        agent.flags = (*agent.flags, "--wireguard", backend)


def uses_kernel(agent: KubeAgent) -> bool:
    return bool(status(agent)["kernel"])


def listen(cluster: KubeCluster, *nodes: str) -> Wire:
    """To the links of these nodes, or all."""
    addresses = [node_ips(number)[family] for number in cluster.numbers.values() for family in FAMILIES]
    links = [f"p-{name}" for name in nodes or cluster.nodes]
    return Wire(cluster.network, links, CLUSTER_CIDRS.split(","), addresses)


def status(agent: KubeAgent) -> dict[str, Any]:
    """As `gatehouse encryption status -o json` shows it, without the time that a command takes."""
    return dict(client.call(agent.instance.agent_socket, "encryption"))


def plaintext(cluster: KubeCluster) -> int:
    """Packets between pods that were not encrypted, as the nodes count them."""
    return sum(int(status(agent)["plaintext_packets"]) for agent in cluster.running())


def has_met(agent: KubeAgent, others: int) -> bool:
    """All others, by handshakes."""
    peers = [peer for peer in status(agent)["peers"] if peer["ready"] and peer["last_handshake_s"] is not None]
    return len(peers) == others


def meet(cluster: KubeCluster) -> None:
    """Until all agents that run have had a handshake with all others."""
    agents = cluster.running()
    for agent in agents:
        rig.wait_until(lambda a=agent: has_met(a, len(agents) - 1), START_S, f"{agent.name} has met all")  # type: ignore[misc]


def start(cluster: KubeCluster, *flags: str) -> None:
    cluster.start(*flags)
    meet(cluster)

"""Pods of a KubeCluster whose routed veths another CNI plugin makes: ptp, and Gatehouse chained behind it."""

from __future__ import annotations

import json
import os
from functools import partial
from pathlib import Path
from typing import Any

import rig
from agents import START_S
from kube_cluster import EitherCluster, KubePod, blocks, node_ips
from probes import ping

PLUGINS = Path("/usr/lib/cni")
FIRST = "10-ptp.conf"
CONFIGURATION = {"cniVersion": "1.0.0", "name": "chain", "type": "ptp", "ipam": {"type": "static"}}
NO_DAD = {"ipv6__conf__default__dad_transmits": "0"}
"""Addresses can be used at once: ptp and the kernel would wait for seconds otherwise."""


def missing() -> str:
    """Why there can be no such pods; "" if there can."""
    there = (PLUGINS / "ptp").exists()
    return "" if there else f"the CNI plugins of Debian's containernetworking-plugins are not in {PLUGINS}"


class Chain:
    """A node where pods' veths are ptp's. Made before its agent is started."""

    def __init__(self, cluster: EitherCluster, node: str = "n1") -> None:
        self.cluster, self._name, self._number = cluster, node, cluster.numbers[node]
        self.agent, self.node = cluster.agents[node], cluster.nodes[node]
        (self.agent.conf / FIRST).write_text(json.dumps(CONFIGURATION))
        self.agent.flags = (*self.agent.flags, "--cni-chain", FIRST)
        self.node.sysctl(**NO_DAD)
        self._numbers = iter(range(2, 250))

    def await_written(self) -> None:
        """Until runtimes find the chain."""
        rig.wait_until(lambda: len(list(self.agent.conf.iterdir())) > 1, START_S, "the chain is written")

    def add(self, name: str, **labels: str) -> KubePod:
        pod = self.cluster.add(f"{self._name}/shop/{name}", attach=False, spec=None, **labels)
        number = next(self._numbers)
        v4, v6 = (block.partition("/")[0] for block in blocks(self._number).values())
        ipam = {
            "type": "static",
            "addresses": [
                {"address": f"{v4.removesuffix('0')}{number}/24", "gateway": v4.removesuffix("0") + "1"},
                {"address": f"{v6}{number:x}/64", "gateway": f"{v6}1"},
            ],
            "routes": [{"dst": "0.0.0.0/0"}, {"dst": "::/0"}],
        }
        pod.netns.sysctl(**NO_DAD)
        self._ptp("ADD", pod, ipam)
        done = self.agent.cni("ADD", pod, version="1.0.0", name="chain", prevResult=pod.result)
        assert (done.status, done.json) == (0, pod.result), (done.output, done.errors, self.agent.log())
        for address in node_ips(self._number).values():  # ptp does not wait until the gateway may use it
            rig.wait_until(partial(ping, pod.netns, address, 0.2), START_S, "the gateway answers")
        return pod

    def remove(self, pod: KubePod) -> None:
        done = self.agent.cni("DEL", pod, version="1.0.0", name="chain", prevResult=pod.result)
        assert done.status == 0, (done.output, done.errors)
        self._ptp("DEL", pod, {"type": "static"})

    def _ptp(self, command: str, pod: KubePod, ipam: dict[str, Any]) -> None:
        called = {
            **os.environ,
            "CNI_COMMAND": command,
            "CNI_CONTAINERID": pod.container,
            "CNI_NETNS": pod.netns.path,
            "CNI_IFNAME": "eth0",
            "CNI_PATH": str(PLUGINS),
        }
        done = self.node.run(str(PLUGINS / "ptp"), input=json.dumps(CONFIGURATION | {"ipam": ipam}), env=called)
        pod.result = json.loads(done.stdout or "{}")

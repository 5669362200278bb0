"""Signs of a kube-proxy, each made in a namespace of the test's own; and none where there is none."""

from __future__ import annotations

import shutil
import socket

import pytest
import rig

from agent import kubeproxy
from agent.config import build

TCP_TABLE = """\
  sl  local_address rem_address   st tx_queue rx_queue tr tm->when retrnsmt   uid  timeout inode
   0: 00000000:2810 00000000:0000 0A 00000000:00000000 00:00000000 00000000     0        0 1 1 0 100 0 0 10 0
   1: 0100007F:2809 0100007F:2810 01 00000000:00000000 00:00000000 00000000     0        0 1 1 0 100 0 0 10 0
   2: 00000000000000000000000000000000:0016 00000000000000000000000000000000:0000 0A 0:0 0:0 0 0 0 1 1 0 1 0 0 1 0
"""


def test_who_listens() -> None:
    assert kubeproxy.listening(TCP_TABLE) == {10256, 22}
    assert kubeproxy.listening("") == set()


def test_none(node: rig.Node) -> None:
    assert node.call(kubeproxy.signs) == []
    assert kubeproxy.sentence([]) == ""


RULES = [
    ("iptables-legacy", "-t nat -N KUBE-SERVICES", "iptables chain KUBE-SERVICES"),
    ("ip6tables-legacy", "-t nat -N KUBE-SERVICES", "iptables chain KUBE-SERVICES"),
    ("iptables-nft", "-t nat -N KUBE-SERVICES", "iptables chain KUBE-SERVICES"),
    ("ip6tables-nft", "-t nat -N KUBE-SERVICES", "iptables chain KUBE-SERVICES"),
    ("nft", "add table ip kube-proxy", "nftables table ip kube-proxy"),
    ("nft", "add table ip6 kube-proxy", "nftables table ip6 kube-proxy"),
    ("ip", "link add kube-ipvs0 type bridge", "device kube-ipvs0"),
]


@pytest.mark.parametrize(("tool", "arguments", "sign"), RULES)
def test_rules_and_devices(node: rig.Node, tool: str, arguments: str, sign: str) -> None:
    if shutil.which(tool) is None:
        pytest.skip(f"{tool} is not installed: it plays kube-proxy here")
    node.run(tool, *arguments.replace("KUBE-SERVICES", "KUBE-SERVICES-OF-OTHERS").replace("kube-", "cube-").split())
    assert node.call(kubeproxy.signs) == []
    node.run(tool, *arguments.split())
    assert node.call(kubeproxy.signs) == [sign]


@pytest.mark.parametrize("family", [socket.AF_INET, socket.AF_INET6])
def test_listeners_come_and_go(node: rig.Node, family: socket.AddressFamily) -> None:
    watch = kubeproxy.Watch(build({"manifests": "m"}))
    own = kubeproxy.Watch(build({"manifests": "m", "healthz": "0.0.0.0:10256"}))
    with node.call(socket.create_server, ("", 10256), family=family):
        for looking in (watch, own):
            node.call(looking.look)
        assert "(a listener on port 10256)" in watch.problem
        assert "delete its DaemonSet" in watch.problem
        assert own.problem == "", "that is this agent's"
    node.call(watch.look)
    assert watch.problem == ""

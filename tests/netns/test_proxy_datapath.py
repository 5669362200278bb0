"""The way to proxies and back, with real traffic: rows that an agent has made are turned into REDIRECT by hand, and a
proxy that lets everything through stands in for Envoy and the DNS proxy."""

from __future__ import annotations

import socket
import struct
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import probes
import pytest
import rig
from agents import Document
from probes import Server
from traffic import ANSWERED_S, Cluster, objects, pods
from transparent_proxy import TransparentProxy

from agent.datapath import abi, apply
from agent.datapath.abi import be16
from agent.datapath.maps import Maps
from agent.plan.ids import rule_id
from agent.proxy.feature import Feature
from policies.model import Direction, ObjectRef, RuleRef

ABI = abi.load()
NUMBERS = ABI.constants
PORT = 8080
EGRESS, INGRESS = 0xE000_0000_0000_0001, 0x1000_0000_0000_0002
RULES = {
    EGRESS: RuleRef(ObjectRef("NetworkPolicy", "shop", "out"), Direction.EGRESS, 0),
    INGRESS: RuleRef(ObjectRef("NetworkPolicy", "shop", "in"), Direction.INGRESS, 0),
}
"""Listeners, and the rules whose rows are made to lead to them."""
DOCUMENTS: list[Document] = [
    *pods("""
    shop/client: {labels: {app: client}}
    shop/web: {labels: {app: web}, ports: [{containerPort: 8080}]}
    shop/other: {labels: {app: other}}
    """),
    *objects("NetworkPolicy", """
    shop/out:
      podSelector: {matchLabels: {app: client}}
      policyTypes: [Egress]
      egress:
      - {ports: [{port: 8080, protocol: TCP}, {port: 8080, protocol: UDP}]}
      - {ports: [{port: 9090, protocol: TCP}]}
    shop/in:
      podSelector: {matchLabels: {app: web}}
      policyTypes: [Ingress]
      ingress:
      - {ports: [{port: 8080, protocol: TCP}, {port: 8080, protocol: UDP}]}
      - {ports: [{port: 9090, protocol: TCP}]}
    """),
    {"apiVersion": "v1", "kind": "Service", "metadata": {"namespace": "shop", "name": "web"},
     "spec": {"type": "NodePort", "selector": {"app": "web"}, "ipFamilyPolicy": "RequireDualStack", "ports": [
         {"name": "tcp", "port": 80, "targetPort": 8080, "nodePort": 30080},
         {"name": "udp", "port": 80, "targetPort": 8080, "nodePort": 30080, "protocol": "UDP"}]}},
]  # fmt: skip
FAMILIES = ("v4", "v6")
PROBES = {"tcp": (probes.tcp, socket.SOCK_STREAM), "udp": (probes.udp, socket.SOCK_DGRAM)}


class Redirected:
    """A cluster whose rows lead to proxies; what they say is put back at the end."""

    def __init__(self, cluster: Cluster, maps: Maps) -> None:
        self.cluster = cluster
        self.maps = maps

    def serve(self, listener: int, proxy: TransparentProxy | None) -> None:
        """Where its proxy listens; None: nowhere."""
        key = struct.pack("=Q", listener)
        if proxy is None:
            self.maps["listeners"].delete(key)
            return
        ports = {"tcp_port_be": be16(proxy.tcp_port), "udp_port_be": be16(proxy.udp_port)}
        self.maps["listeners"].update(key, ABI.records["listener_value"].pack(**ports))

    def judge(self, listener: int, verdict: int) -> None:
        """What the cells of its rule say from now on."""
        record, rule = ABI.records["policy_row_value"], rule_id(RULES[listener])
        found = 0
        for key, data in list(self.maps["policy_row"].items()):
            if record.unpack(data).rule == rule:
                redirected = listener if verdict == NUMBERS.VERDICT_REDIRECT else 0
                self.maps["policy_row"].update(key, record.pack(rule=rule, verdict=verdict, listener=redirected))
                found += 1
        assert found, RULES[listener]
        apply.increase_epoch(self.maps)

    @contextmanager
    def by(self, *listeners: int) -> Iterator[list[TransparentProxy]]:
        """Flows of these listeners' rules go by proxies."""
        proxies = [TransparentProxy(self.cluster.node, ingress=listener == INGRESS) for listener in listeners]
        try:
            for listener, proxy in zip(listeners, proxies, strict=True):
                self.serve(listener, proxy)
                self.judge(listener, NUMBERS.VERDICT_REDIRECT)
            yield proxies
        finally:
            for listener, proxy in zip(listeners, proxies, strict=True):
                self.judge(listener, NUMBERS.VERDICT_ALLOW)
                self.serve(listener, None)
                proxy.close()

    def drops(self, reason: str) -> int:
        return self.maps["drops"].sums()[NUMBERS[f"DROP_{reason}"]]

    def ip(self, name: str, family: str) -> str:
        return self.cluster.ip(name, family)


@pytest.fixture(scope="module")
def redirected(datapath_host: None, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Redirected]:
    folder: Path = tmp_path_factory.mktemp("proxy-datapath")
    with Cluster(folder, "--masquerade", exposed=True) as cluster:
        cluster.write("shop.yaml", *DOCUMENTS)
        with Maps.open_pinned(cluster.agent.instance.pins.maps) as maps:
            redirected = Redirected(cluster, maps)
            cluster.node.call(Feature(maps["config"]).turn_on)
            yield redirected


@pytest.fixture(scope="module")
def servers(redirected: Redirected) -> Iterator[dict[str, rig.Netns]]:
    """Answer on the port in a pod and outside."""
    places = {"shop/web": redirected.cluster.netns("shop/web"), "outside": redirected.cluster.outside}
    made = [Server(places["shop/web"], kind, PORT, "shop/web") for kind in PROBES]
    for address in (rig.OUTSIDE_V4, rig.OUTSIDE_V6):  # of its many addresses it answers from the one that was asked
        made += (Server(places["outside"], kind, PORT, "outside", address) for kind in PROBES)
    made.append(Server(places["shop/web"], "tcp", 9090, "plain"))
    try:
        yield places
    finally:
        for server in made:
            server.close()


WAYS = [
    # from, to, who is asked
    ("shop/client", "shop/web", (EGRESS,)),
    ("shop/client", "outside", (EGRESS,)),
    ("shop/client", "shop/web", (INGRESS,)),
    ("shop/other", "shop/web", (INGRESS,)),
    ("outside", "shop/web", (INGRESS,)),
    ("shop/client", "shop/web", (EGRESS, INGRESS)),
]


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize("kind", PROBES)
@pytest.mark.parametrize(("source", "to", "listeners"), WAYS)
def test_there_and_back(
    redirected: Redirected,
    servers: dict[str, rig.Netns],
    source: str,
    to: str,
    listeners: tuple[int, ...],
    kind: str,
    family: str,
) -> None:
    netns, here, there = redirected.cluster.netns(source), redirected.ip(source, family), redirected.ip(to, family)
    masked = {"v4": rig.NODE_V4, "v6": rig.NODE_V6}[family] if to == "outside" else ""
    with redirected.by(*listeners) as proxies:
        answer = PROBES[kind][0](netns, there, PORT, ANSWERED_S, (here, 0))
        assert answer == probes.Answer("ok", to, masked or here), "the server sees who asked, and the answer finds back"
        for proxy in proxies:
            (seen,) = proxy.take()
            assert (seen.protocol, seen.source, seen.destination, seen.port) == (kind, here, there, PORT)
    assert PROBES[kind][0](netns, there, PORT, ANSWERED_S).label == to, "and without proxies"

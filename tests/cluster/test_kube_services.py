"""Services over the API server: pods of both nodes behind them, as EndpointSlices tell; for pods, for processes of the
node, and for clients outside."""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterator, Mapping
from contextlib import ExitStack, contextmanager
from functools import partial
from pathlib import Path

import pytest
import rig
from agents import START_S, Document
from kube_cluster import FAMILIES, EitherCluster, KubePod, node_ips
from probes import Answer, Server, tcp, udp

from agent.datapath.mounts import ensure_cgroup2

PORT, TARGET = 80, 8080
NODE_PORT = 30080
HOST_PORT = 18080
SHORT_S = 0.4
TRIES = 40
"""So many connections meet both of two backends, but for one time in 10^12."""
CLUSTER_IPS = {"v4": "10.96.7.7", "v6": "fd00:10:96::77"}
OUTSIDE_IPS = {"v4": "192.0.2.100", "v6": "2001:db8:0:1::100"}
WEBS = {"n1": "near", "n2": "far"}
READY, NOT_READY = {"ready": True}, {"ready": False}
ENDING = {"ready": False, "serving": True, "terminating": True}
ENDED = {"ready": False, "serving": False, "terminating": True}

Probe = Callable[..., Answer]

ASK = """
import socket, sys
with socket.create_connection((sys.argv[1], int(sys.argv[2])), 2) as client:
    client.send(b"?")
    print(client.recv(100).decode().split()[0], client.getpeername()[0])
"""


@pytest.fixture(scope="module")
def cluster(
    datapath_host: None, over: type[EitherCluster], tmp_path_factory: pytest.TempPathFactory
) -> Iterator[EitherCluster]:
    with (
        over(
            tmp_path_factory.mktemp("kube"), "n1", "n2", flags=("--service-cidrs", "10.96.0.0/16,fd00:10:96::/112")
        ) as cluster,
        ExitStack() as stack,
    ):
        cluster.outside.ip(f"address add {OUTSIDE_IPS['v6']}/64 dev eth0 nodad")
        agent = cluster.agents["n1"]
        stack.enter_context(processes(agent.instance.name))
        agent.flags = (*agent.flags, "--cgroup", str(folder_of(agent.instance.name)))
        cluster.start()
        for node, name in WEBS.items():
            web = cluster.add(f"{node}/shop/{name}", app="web")
            for kind in ("tcp", "udp"):
                stack.enter_context(Server(web.netns, kind, TARGET, name))
        cluster.add("n1/shop/client", app="client")
        cluster.apply(service("web"), service("local", NODE_PORT + 1, externalTrafficPolicy="Local"))
        tell(cluster, {"near": READY, "far": READY}, "web", "local")
        yield cluster


def folder_of(instance: str) -> Path:
    return ensure_cgroup2() / f"gatehouse-processes-{instance}"


@contextmanager
def processes(instance: str) -> Iterator[None]:
    """The cgroup below which all of the node's processes are, as far as --cgroup tells."""
    folder = folder_of(instance)
    (folder / "some").mkdir(parents=True)
    try:
        yield
    finally:
        (folder / "some").rmdir()
        folder.rmdir()


def pod(cluster: EitherCluster, name: str) -> KubePod:
    return next(one for one in cluster.pods.values() if one.short == name)


def service(name: str, node_port: int = NODE_PORT, **spec: object) -> Document:
    ips = {family: ip + str(node_port % 10) for family, ip in CLUSTER_IPS.items()}
    ports = [
        {"name": kind, "protocol": kind.upper(), "port": PORT, "targetPort": TARGET, "nodePort": node_port}
        for kind in ("tcp", "udp")
    ]
    families = {"ipFamilies": ["IPv4", "IPv6"], "ipFamilyPolicy": "RequireDualStack"}
    addresses = {"clusterIP": ips["v4"], "clusterIPs": list(ips.values())}
    return {
        "apiVersion": "v1",
        "kind": "Service",
        "metadata": {"name": name, "namespace": "shop"},
        "spec": {"type": "NodePort", "selector": {"app": "web"}, "ports": ports, **families, **addresses, **spec},
    }


def ip_of(name: str, family: str) -> str:
    return CLUSTER_IPS[family] + {"web": "0", "local": "1"}[name]


def tell(cluster: EitherCluster, states: Mapping[str, Mapping[str, bool]], *services: str) -> None:
    """Slices of a family each, as the API server's controller writes them: pods of either node and their states."""
    cluster.apply(*(slice_of(cluster, name, family, states) for name in services or ("web",) for family in FAMILIES))


def slice_of(cluster: EitherCluster, name: str, family: str, states: Mapping[str, Mapping[str, bool]]) -> Document:
    pods = {one: pod(cluster, one) for one in states}
    endpoints = [
        {
            "addresses": [pods[one].ip(family)],
            "conditions": dict(conditions),
            "nodeName": pods[one].agent.name,
            "targetRef": {"kind": "Pod", "namespace": "shop", "name": one},
        }
        for one, conditions in states.items()
    ]
    return {
        "apiVersion": "discovery.k8s.io/v1",
        "kind": "EndpointSlice",
        "metadata": {"name": f"{name}-{family}", "namespace": "shop", "labels": {"kubernetes.io/service-name": name}},
        "addressType": "IPv4" if family == "v4" else "IPv6",
        "endpoints": endpoints,
        "ports": [{"name": kind, "protocol": kind.upper(), "port": TARGET} for kind in ("tcp", "udp")],
    }


def answers(netns: rig.Netns, ip: str, port: int, probe: Probe = tcp) -> dict[str, Answer]:
    """By who answers, of many connections."""
    found = [probe(netns, ip, port, SHORT_S) for _ in range(TRIES)]
    assert all(found), found
    return {answer.label: answer for answer in found}


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize("probe", [tcp, udp])
def test_cluster_ip_for_pods(cluster: EitherCluster, family: str, probe: Probe) -> None:
    """Backends see the pod's own address, on either node."""
    client = pod(cluster, "client")
    met = answers(client.netns, ip_of("web", family), PORT, probe)
    assert {label: answer.seen_from for label, answer in met.items()} == dict.fromkeys(WEBS.values(), client.ip(family))


@pytest.mark.parametrize("family", FAMILIES)
def test_cluster_ip_for_processes_of_the_node(cluster: EitherCluster, family: str) -> None:
    """They are translated when they connect, which they do not notice."""
    ip = ip_of("web", family)
    met = {as_node(cluster, sys.executable, "-c", ASK, ip, str(PORT)) for _ in range(TRIES // 2)}
    assert met == {f"{name} {ip}\n" for name in WEBS.values()}


def as_node(cluster: EitherCluster, *argv: str) -> str:
    folder = folder_of(cluster.agents["n1"].instance.name) / "some"
    script = f'echo $$ > {folder}/cgroup.procs && exec "$@"'
    return cluster.nodes["n1"].run("sh", "-c", script, "sh", *argv).stdout


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize("probe", [tcp, udp])
def test_node_port_from_outside(cluster: EitherCluster, family: str, probe: Probe) -> None:
    """The other node's pod sees the node that was asked, for the answers must come back by it."""
    node_ip = node_ips(1)[family]
    met = answers(cluster.outside, node_ip, NODE_PORT, probe)
    assert {label: answer.seen_from for label, answer in met.items()} == {"near": OUTSIDE_IPS[family], "far": node_ip}
    met = answers(cluster.outside, node_ip, NODE_PORT + 1, probe)
    assert {label: answer.seen_from for label, answer in met.items()} == {"near": OUTSIDE_IPS[family]}


@pytest.mark.parametrize("family", FAMILIES)
def test_backends_come_and_go_as_slices_tell(cluster: EitherCluster, family: str) -> None:
    client, ip = pod(cluster, "client"), ip_of("web", family)
    ask = partial(answers, client.netns, ip, PORT)
    outside = partial(answers, cluster.outside, node_ips(1)[family], NODE_PORT)
    for states, expected in (
        ({"near": READY, "far": NOT_READY}, {"near"}),
        ({"near": ENDING, "far": READY}, {"far"}),
        ({"near": ENDED, "far": ENDING}, {"far"}),
        ({"near": ENDING}, {"near"}),
        ({"near": READY, "far": READY}, {"near", "far"}),
    ):
        tell(cluster, states)
        assert (set(ask()), set(outside())) == (expected, expected), states
    for states in ({"near": ENDED, "far": NOT_READY}, {}):
        tell(cluster, states)
        assert tcp(client.netns, ip, PORT).result == "refused"
    tell(cluster, {"near": READY, "far": READY})
    assert set(ask()) == {"near", "far"}


def test_a_service_that_is_deleted_is_served_no_more(cluster: EitherCluster) -> None:
    name = {"apiVersion": "v1", "kind": "Service", "metadata": {"name": "brief", "namespace": "shop"}}
    ports = [{"name": "tcp", "protocol": "TCP", "port": PORT, "targetPort": TARGET}]
    cluster.apply(name | {"spec": {"selector": {"app": "web"}, "clusterIP": "10.96.7.90", "ports": ports}})
    client = pod(cluster, "client")
    one = slice_of(cluster, "brief", "v4", {"far": READY})
    cluster.apply(one)
    assert tcp(client.netns, "10.96.7.90", PORT).label == "far"
    cluster.api.delete("services", "brief", "shop")
    rig.wait_until(lambda: not tcp(client.netns, "10.96.7.90", PORT, SHORT_S), START_S, "it is gone")
    cluster.api.delete("endpointslices", "brief-v4", "shop")


@pytest.mark.parametrize("family", FAMILIES)
def test_host_port(cluster: EitherCluster, family: str) -> None:
    ports = [{"containerPort": TARGET, "hostPort": HOST_PORT, "protocol": "TCP"}]
    spec = {"containers": [{"name": "main", "image": "none", "ports": ports}]}
    exposed = cluster.add("n1/shop/exposed", spec=spec, app="exposed")
    node_ip = node_ips(1)[family]
    with Server(exposed.netns, "tcp", TARGET, "exposed"):
        answer = tcp(cluster.outside, node_ip, HOST_PORT)
        assert (answer.label, answer.seen_from) == ("exposed", OUTSIDE_IPS[family])
        assert tcp(pod(cluster, "far").netns, node_ip, HOST_PORT).label == "exposed"
        cluster.remove("n1/shop/exposed")
        rig.wait_until(lambda: not tcp(cluster.outside, node_ip, HOST_PORT, SHORT_S), START_S, "its port is nobody's")


def test_what_services_shows(cluster: EitherCluster) -> None:
    tell(cluster, {"near": READY, "far": READY})
    for agent in cluster.agents.values():
        shown = {one["name"]: one for one in agent.json("services")}
        assert shown["web"]["ips"] == [ip_of("web", family) for family in FAMILIES]
        frontends = [one for one in shown["web"]["frontends"] if one["kind"] == "ClusterIP"]
        assert len(frontends) == 2 * len(FAMILIES)
        for frontend in frontends:
            assert {(b["pod"], b["node"], b["state"]) for b in frontend["backends"]} == {
                (f"shop/{name}", node, "ready") for node, name in WEBS.items()
            }
        assert shown["web"]["problem"] == shown["local"]["problem"] == ""

"""What the conformance tests of Kubernetes ask of a service proxy (test/e2e/network/service.go there), on real sockets.

Each behaviour is tried from where clients are: a pod whose packets are translated (tc), a pod's process whose socket is
(socket), a process of the node (node), and a client outside the cluster (outside).
"""

from __future__ import annotations

import json
import subprocess
import sys
from collections import Counter
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any

import probes
import pytest
import rig
from probes import Connection
from traffic import ANSWERED_S, FAMILIES, Cluster, objects, pods

FILE = "conformance.yaml"
INSIDE, EVERYWHERE = ("tc", "socket", "node"), ("tc", "socket", "node", "outside")
NODE_PORT, OTHER_NODE_PORT = 31000, 31001
DIALS = 30
"""That one of two backends is never chosen has a chance of 2^-30."""

# Of each line dials again and again; prints who answered (or `refused`, `timeout`), in a line.
CLIENT = """
import json, socket, sys
for line in sys.stdin:
    kind, address, port, count, timeout = json.loads(line)
    found = []
    for _ in range(count):
        family = socket.AF_INET6 if ":" in address else socket.AF_INET
        with socket.socket(family, socket.SOCK_STREAM if kind == "TCP" else socket.SOCK_DGRAM) as s:
            s.settimeout(timeout)
            try:
                s.connect((address, port))
                s.send(b"probe")
                found.append(s.recv(200).decode().split()[0])
            except TimeoutError:
                found.append("timeout")
            except OSError:
                found.append("refused")
    print(*found, flush=True)
"""


class Process:
    """A process that dials: its cgroup is what makes the difference."""

    def __init__(self, process: subprocess.Popen[bytes]) -> None:
        self._process = process

    def dial(self, *order: Any) -> Counter[str]:
        assert self._process.stdin is not None and self._process.stdout is not None
        self._process.stdin.write(json.dumps(order).encode() + b"\n")
        self._process.stdin.flush()
        return Counter(self._process.stdout.readline().decode().split())

    def close(self) -> None:
        self._process.communicate(timeout=ANSWERED_S)  # the end of its input ends it


class Clients:
    """Who dials, and how."""

    def __init__(self, cluster: Cluster, stack: ExitStack) -> None:
        self.cluster = cluster
        agent, command = cluster.agent, (sys.executable, "-c", CLIENT)
        piped: dict[str, Any] = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE}
        self._processes = {
            "socket": Process(
                subprocess.Popen(agent.command("exec", "c/client", "--", *command), env=agent.env, **piped)
            ),
            "node": Process(cluster.node.popen(*agent.as_node(*command), **piped)),
        }
        for process in self._processes.values():
            stack.callback(process.close)

    def dial(self, who: str, address: str, port: int, protocol: str = "TCP", count: int = 1) -> Counter[str]:
        """Who answered how many of the connections."""
        if process := self._processes.get(who):
            found = process.dial(protocol, address, port, count, ANSWERED_S)
        else:
            netns = self.cluster.outside if who == "outside" else self.cluster.netns("c/client")
            probe = probes.tcp if protocol == "TCP" else probes.udp
            answers = [probe(netns, address, port, ANSWERED_S) for _ in range(count)]
            found = Counter(answer.label or answer.result for answer in answers)
        assert found.total() == count
        return found


@pytest.fixture(scope="module")
def cluster(root: None, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Cluster]:
    with Cluster(tmp_path_factory.mktemp("conformance"), exposed=True) as cluster, ExitStack() as stack:
        cluster.write("pods.yaml", *pods(PODS))
        for pod in ("c/one", "c/two"):
            cluster.serve(f"{pod} TCP/8080 TCP/8081 UDP/8080", stack=stack)
        yield cluster


@pytest.fixture(scope="module")
def dialing(cluster: Cluster) -> Iterator[Clients]:
    with ExitStack() as stack:
        yield Clients(cluster, stack)


PODS = """
c/client: {labels: {app: client}}
c/one: {labels: {app: server, name: one}}
c/two: {labels: {app: server, name: two}}
"""


@pytest.fixture
def clients(dialing: Clients) -> Iterator[Clients]:
    yield dialing
    dialing.cluster.delete(FILE)


def targets(cluster: Cluster, who: str, family: str) -> list[tuple[str, int]]:
    """Where a service with a node port is reached from there."""
    node = rig.NODE_V4 if family == "v4" else rig.NODE_V6
    found = [(node, NODE_PORT)]
    return found if who == "outside" else [(cluster.ip("service:c/web", family), 80), *found]


def service(**spec: Any) -> str:
    """YAML of the service c/web, of type NodePort unless given, for the pods that serve."""
    fields = {"type": "NodePort", "selector": {"app": "server"}, "ports": [port()]} | spec
    return f"c/web: {json.dumps(fields)}"


def port(**fields: Any) -> dict[str, Any]:
    return {"port": 80, "targetPort": 8080, "nodePort": NODE_PORT} | fields


def put(cluster: Cluster, **spec: Any) -> None:
    cluster.write(FILE, *objects("Service", service(**spec)))


# ---- rows


@pytest.mark.parametrize("who", EVERYWHERE)
@pytest.mark.parametrize("family", FAMILIES)
def test_cluster_address_and_node_port_lead_to_every_endpoint(clients: Clients, who: str, family: str) -> None:
    put(clients.cluster)
    for address, number in targets(clients.cluster, who, family):
        found = clients.dial(who, address, number, count=DIALS)
        assert set(found) == {"c/one:8080", "c/two:8080"}, (address, number)


@pytest.mark.parametrize("who", EVERYWHERE)
def test_endpoints_come_and_go(clients: Clients, who: str) -> None:
    """Each set of endpoints serves as soon as it is in force; none at all is refused."""
    cluster = clients.cluster
    for name, expected in ((["one"], {"c/one:8080"}), (["two"], {"c/two:8080"}), (["nobody"], {"refused"})):
        put(cluster, selector={"name": name[0]})
        for address, number in targets(cluster, who, "v4"):
            assert set(clients.dial(who, address, number, count=4)) == expected


@pytest.mark.parametrize("who", EVERYWHERE)
def test_ports_of_a_service_lead_each_to_its_own(clients: Clients, who: str) -> None:
    put(clients.cluster, ports=[
        port(name="first"), port(name="second", port=81, targetPort=8081, nodePort=OTHER_NODE_PORT),
    ])  # fmt: skip
    numbers = {80: "8080", 81: "8081"} if who != "outside" else {}
    for number, target in numbers.items():
        found = clients.dial(who, clients.cluster.ip("service:c/web"), number, count=4)
        assert {label.partition(":")[2] for label in found} == {target}
    for number, target in {NODE_PORT: "8080", OTHER_NODE_PORT: "8081"}.items():
        found = clients.dial(who, rig.NODE_V4, number, count=4)
        assert {label.partition(":")[2] for label in found} == {target}


@pytest.mark.parametrize("who", EVERYWHERE)
@pytest.mark.parametrize("family", FAMILIES)
def test_one_port_with_two_protocols_lesson_19(clients: Clients, who: str, family: str) -> None:
    put(clients.cluster, ports=[
        port(name="t", targetPort=8081), port(name="u", protocol="UDP"),
    ])  # fmt: skip
    for address, number in targets(clients.cluster, who, family):
        for protocol, target in (("TCP", "8081"), ("UDP", "8080")):
            found = clients.dial(who, address, number, protocol, count=4)
            assert {label.partition(":")[2] for label in found} == {target}, (address, number, protocol)


EXTERNAL_NAME: dict[str, Any] = {"type": "ExternalName", "externalName": "example.test", "selector": None, "ports": []}
CLUSTER_IP: dict[str, Any] = {"type": "ClusterIP", "ports": [{"port": 80, "targetPort": 8080}]}
CHANGES = {
    "ExternalName to ClusterIP": (EXTERNAL_NAME, CLUSTER_IP),
    "ExternalName to NodePort": (EXTERNAL_NAME, {}),
    "ClusterIP to ExternalName": (CLUSTER_IP, EXTERNAL_NAME),
    "NodePort to ExternalName": ({}, EXTERNAL_NAME),
    "ClusterIP to NodePort": (CLUSTER_IP, {}),
    "NodePort to ClusterIP": ({}, CLUSTER_IP),
}


@pytest.mark.parametrize("change", CHANGES)
def test_a_service_changes_its_type(clients: Clients, change: str) -> None:
    cluster = clients.cluster
    for spec in CHANGES[change]:
        put(cluster, **spec)
        kind = spec.get("type", "NodePort")
        if kind != "ExternalName":
            assert clients.dial("tc", cluster.ip("service:c/web"), 80)["timeout"] == 0
            assert set(clients.dial("socket", cluster.ip("service:c/web"), 80, count=4)) <= {"c/one:8080", "c/two:8080"}
        else:
            assert cluster.place("service:c/web")[1] == ()
        for who in EVERYWHERE:
            found = clients.dial(who, rig.NODE_V4, NODE_PORT)
            answered = set(found) <= {"c/one:8080", "c/two:8080"}
            assert answered is (kind == "NodePort"), (kind, who, found)


@pytest.mark.parametrize("who", EVERYWHERE)
@pytest.mark.parametrize("family", FAMILIES)
def test_affinity_is_turned_on_and_off(clients: Clients, who: str, family: str) -> None:
    cluster = clients.cluster
    for affinity, backends in (("ClientIP", 1), ("None", 2), ("ClientIP", 1)):
        put(cluster, sessionAffinity=affinity)
        for address, number in targets(cluster, who, family):
            found = clients.dial(who, address, number, count=DIALS)
            assert len(found) == backends, (affinity, address, number, found)
            assert not found.keys() & {"refused", "timeout"}


def test_affinity_is_the_same_at_the_socket_and_at_the_packet(clients: Clients) -> None:
    put(clients.cluster, sessionAffinity="ClientIP")
    address = clients.cluster.ip("service:c/web")
    found = Counter[str]()
    for _ in range(6):
        for who in ("tc", "socket"):
            found += clients.dial(who, address, 80, count=2)
    assert len(found) == 1, found


@contextmanager
def leaving(cluster: Cluster, pod: str) -> Iterator[None]:
    """The pod terminates: it serves on, and is not ready."""
    (document,) = [d for d in pods(PODS) if d["metadata"]["name"] == pod]
    others = [d for d in pods(PODS) if d["metadata"]["name"] != pod]
    document["metadata"]["deletionTimestamp"] = "2026-01-01T00:00:00Z"
    cluster.write("pods.yaml", *others, document)
    try:
        yield
    finally:
        cluster.write("pods.yaml", *pods(PODS))


@pytest.mark.parametrize("who", ["tc", "outside"])
def test_sessions_to_a_terminating_endpoint_go_on_lesson_21(clients: Clients, who: str) -> None:
    """New ones go elsewhere, or to it while there is nobody else."""
    cluster = clients.cluster
    put(cluster, selector={"name": "one"})
    address, number = targets(cluster, who, "v4")[0]
    netns = cluster.outside if who == "outside" else cluster.netns("c/client")
    with Connection(netns, probes.STREAM, address, number) as session:
        assert session.exchange(ANSWERED_S).label == "c/one:8080"
        with leaving(cluster, "one"):
            assert session.exchange(ANSWERED_S).label == "c/one:8080"
            assert set(clients.dial(who, address, number, count=4)) == {"c/one:8080"}, "it is all there is"
            put(cluster)
            assert set(clients.dial(who, address, number, count=DIALS)) == {"c/two:8080"}, "a ready one goes first"
            answer = session.exchange(ANSWERED_S)
            assert answer.label == "c/one:8080", answer


def test_the_folder_has_nothing_but_this(clients: Clients) -> None:
    """What the rows above leave would make them pass or fail by their order."""
    assert sorted(p.name for p in Path(clients.cluster.agent.manifests).iterdir()) == ["pods.yaml"]

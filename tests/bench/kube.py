"""A node of a large cluster: 1,000 nodes with 30 pods each, 6,000 identities, 30,000 NetworkPolicies; and CNI ADD.

The API server is the in-test one. Cold start: from the agent's command line until it is ready and every pod of the
other nodes is known to the kernel, compiling and loading on the way. A change is timed from the API server's taking it
in until the entry is in the map, or the epoch has risen.
"""

from __future__ import annotations

import os
import shutil
import tempfile
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path

import cni_plugin
from agents import Document
from kube_cluster import KubeAgent, KubePod, MeasuredCluster

from agent.datapath import abi, apply
from agent.datapath.bpf import NoEntry
from agent.datapath.maps import Map, Maps
from agent.identity.labels import identity_key, key_digest
from bench.memory import field
from bench.report import Figure, quantile
from bench.setting import Bench, wait_for
from policies.address import parse_address

NODES, PODS_EACH, LABELS, POLICIES, NAMESPACES = 1000, 30, 6000, 30_000, 300
OWN_PODS = 30
FIRST_NUMBER = 1000
GOAL_SYNC_S, GOAL_MB, GOAL_POD_MS, GOAL_POLICY_MS, GOAL_ADD_MS = 20.0, 400.0, 25.0, 50.0, 60.0
CHANGES, ADDS, AT_ONCE = 200, 200, 10
SYNC_S = 300.0
POLL_S = 0.05


def measure(bench: Bench) -> Iterator[Figure]:
    yield from additions(bench)
    nodes = NODES // 10 if bench.quick else NODES
    shape = f"{nodes:,} nodes × {PODS_EACH} pods, {LABELS:,} identities, {POLICIES:,} policies"
    with cluster_of() as cluster:
        cluster.api.load(objects(nodes))
        agent = cluster.agents["n1"]
        began = time.monotonic()
        agent.start(settle=False)
        with _maps(agent) as maps:
            wait_for(lambda: synced(maps, nodes), "every pod of other nodes is known to the kernel", SYNC_S)
            agent.settle(SYNC_S)
            took_s = time.monotonic() - began
            yield Figure("kube", f"{shape}: cold start", took_s, "s", GOAL_SYNC_S)
            agent.await_plugin()
            pods = cluster.add_many([f"n1/ns-{n % NAMESPACES}/own-{n}" for n in range(OWN_PODS)], app="app-1")
            assert len(pods) == OWN_PODS
            agent.settle(SYNC_S)
            moved = list(pod_changes(cluster, maps, bench.samples(CHANGES)))
            yield Figure("kube", "a pod of another node appears, p50", quantile(moved, 0.5), "ms", GOAL_POD_MS)
            yield Figure("kube", "a pod of another node appears, p99", quantile(moved, 0.99), "ms", GOAL_POD_MS)
            changed = list(policy_changes(cluster, maps, bench.samples(CHANGES)))
            yield Figure("kube", "a policy of a pod here changes, p50", quantile(changed, 0.5), "ms", GOAL_POLICY_MS)
            yield Figure("kube", "a policy of a pod here changes, p99", quantile(changed, 0.99), "ms", GOAL_POLICY_MS)
            assert agent.process is not None
            yield Figure("kube", "agent, resident", field(agent.process.pid, "status", "VmRSS"), "MB", GOAL_MB)


@contextmanager
def cluster_of() -> Iterator[MeasuredCluster]:
    """One node with an agent, not started."""
    folder = Path(tempfile.mkdtemp(prefix="gatehouse-bench-"))
    try:
        with MeasuredCluster(folder, "n1", flags=("--routing", "off")) as cluster:
            yield cluster
    finally:
        shutil.rmtree(folder, ignore_errors=True)


# ---- CNI


def additions(bench: Bench) -> Iterator[Figure]:
    """The plugin's process, from its start to its end, ten at a time; every pod has been published by then."""
    with cluster_of() as cluster:
        cluster.start()
        count, agent = bench.samples(ADDS), cluster.agents["n1"].process
        assert agent is not None
        pods = [cluster.add(f"n1/shop/p{number}", False, app=f"app-{number % 10}") for number in range(count)]
        before_ns = used_ns(agent.pid)
        with ThreadPoolExecutor(AT_ONCE) as pool:
            took = list(pool.map(added_ms, pods))
        used_ms = (used_ns(agent.pid) - before_ns) / 1e6 / count
        note = f"{AT_ONCE} at a time, of {count}; with what starting the process costs"
        yield Figure("kube", "CNI ADD, p50", quantile(took, 0.5), "ms", GOAL_ADD_MS, note)
        yield Figure("kube", "CNI ADD, p99", quantile(took, 0.99), "ms", GOAL_ADD_MS, note)
        yield Figure(
            "kube", "CNI ADD, the agent's CPU", used_ms, "ms", None, "each; what else runs changes the waiting more"
        )


def used_ns(pid: int) -> int:
    """CPU that the threads of a process have used by now; its own times are counted in ticks of some milliseconds."""
    threads = Path(f"/proc/{pid}/task").iterdir()
    return sum(int((thread / "schedstat").read_text().split()[0]) for thread in threads)


def added_ms(pod: KubePod) -> float:
    """Milliseconds. Without subprocess, with which ten threads at once take longer to start the plugin than to wait."""
    agent = pod.agent
    plugin, variables = str(agent.bin / "gatehouse-cni"), agent.variables("ADD", pod)
    descriptor = os.memfd_create("config", 0)
    os.pwrite(descriptor, cni_plugin.config(agent.socket), 0)
    files = [(os.POSIX_SPAWN_DUP2, descriptor, 0), (os.POSIX_SPAWN_OPEN, 1, os.devnull, os.O_WRONLY, 0)]
    began = time.monotonic()
    process = os.posix_spawn(plugin, [plugin], variables, file_actions=files)
    _, status = os.waitpid(process, 0)
    took_ms = (time.monotonic() - began) * 1000
    os.close(descriptor)
    assert status == 0, agent.log()
    return took_ms


# ---- the large cluster


def objects(nodes: int) -> Iterator[Document]:
    for number in range(NAMESPACES):
        labels = {"team": f"team-{number % 50}"}
        yield {"apiVersion": "v1", "kind": "Namespace", "metadata": {"name": f"ns-{number}", "labels": labels}}
    for number in range(LABELS):
        spec = {"namespace": f"ns-{number % NAMESPACES}", "serviceAccount": "default", "labels": labels_of(number)}
        yield _own("SecurityIdentity", str(FIRST_NUMBER + number), spec)
    for number in range(nodes):
        yield node_endpoints(number, PODS_EACH)
    for number in range(POLICIES):
        yield policy(number)


def labels_of(number: int) -> dict[str, str]:
    return {"app": f"app-{number // NAMESPACES}", "tier": ("front", "back", "data")[number % 3]}


def node_endpoints(node: int, pods: int, extra: int = 0) -> Document:
    """`extra`: this many pods more."""
    endpoints = []
    for number in (*range(pods), *range(200, 200 + extra)):
        identity = (node * PODS_EACH + number) % LABELS
        namespace = f"ns-{identity % NAMESPACES}"
        endpoints.append(
            {
                "pod": f"{namespace}/pod-{node}-{number}",
                "ips": [pod_ip(node, number)],
                "identity": FIRST_NUMBER + identity,
                "digest": key_digest(identity_key(namespace, labels_of(identity), "default")),
            }
        )
    spec = {
        "addresses": [f"198.18.{node >> 8}.{node & 255}"],
        "podCIDRs": [f"10.{64 + (node >> 8)}.{node & 255}.0/24"],
        "endpoints": endpoints,
    }
    return _own("NodeEndpoints", f"node-{node}", spec)


def pod_ip(node: int, number: int) -> str:
    return f"10.{64 + (node >> 8)}.{node & 255}.{number + 2}"


def policy(number: int, port: int = 8080) -> Document:
    """As people write them: an application, from one tier of a team's namespaces, at a port."""
    peer = {
        "namespaceSelector": {"matchLabels": {"team": f"team-{number % 50}"}},
        "podSelector": {"matchLabels": {"tier": "front"}},
    }
    return {
        "apiVersion": "networking.k8s.io/v1",
        "kind": "NetworkPolicy",
        "metadata": {"name": f"policy-{number}", "namespace": f"ns-{number % NAMESPACES}"},
        "spec": {
            "podSelector": {"matchLabels": {"app": f"app-{number // NAMESPACES % 20}"}},
            "ingress": [{"from": [peer], "ports": [{"port": port}]}],
        },
    }


def _own(kind: str, name: str, spec: Document) -> Document:
    return {"apiVersion": "gatehouse.io/v1alpha1", "kind": kind, "metadata": {"name": name}, "spec": spec}


# ---- what is in the kernel


@contextmanager
def _maps(agent: KubeAgent) -> Iterator[Maps]:
    """The agent's maps, as soon as they are pinned."""
    maps: Maps | None = None
    while maps is None:
        try:
            maps = Maps.open_pinned(agent.instance.pins.maps)
        except NoEntry:
            assert agent.process is not None and agent.process.poll() is None, agent.log()
            time.sleep(POLL_S)
    with maps:
        yield maps


def synced(maps: Maps, nodes: int) -> bool:
    return all(known(maps["ipcache"], pod_ip(node, PODS_EACH - 1)) for node in reversed(range(nodes)))


def known(ipcache: Map, ip: str) -> bool:
    """Whether the address itself is in the map: who asks for it gets the entry of its block otherwise."""
    found = ipcache.lookup(abi.load().records["ipcache_key"].pack(prefixlen=128, address=parse_address(ip)))
    return found is not None and abi.load().records["ipcache_value"].unpack(found).identity >= FIRST_NUMBER


def pod_changes(cluster: MeasuredCluster, maps: Maps, count: int) -> Iterator[float]:
    """Milliseconds each."""
    for number in range(count):
        document = node_endpoints(number % 90, PODS_EACH, 1 + number // 90)
        ip = pod_ip(number % 90, 200 + number // 90)
        assert not known(maps["ipcache"], ip)
        began_ns = time.monotonic_ns()
        cluster.api.put(document)
        ended_ns = wait_for(lambda ip=ip: known(maps["ipcache"], ip), "the pod is known")  # type: ignore[misc]
        yield (ended_ns - began_ns) / 1e6


def policy_changes(cluster: MeasuredCluster, maps: Maps, count: int) -> Iterator[float]:
    """Milliseconds each; the policy selects one of this node's pods."""
    own = NAMESPACES + 1  # app-1 in ns-1
    for number in range(count):
        epoch = apply.read_epoch(maps)
        began_ns = time.monotonic_ns()
        cluster.api.put(policy(own, 9000 + number))
        ended_ns = wait_for(lambda epoch=epoch: apply.read_epoch(maps) > epoch, "the epoch has risen")  # type: ignore[misc]
        yield (ended_ns - began_ns) / 1e6
        cluster.agents["n1"].settle()

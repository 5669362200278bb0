"""A cluster on one machine: an API server and nodes on one network, each node with a real agent; pods come by CNI.

with KubeCluster(folder, "n1", "n2") as cluster:
    cluster.apply(policy("shop/web", ...))
    cluster.start()
    web = cluster.add("n2/shop/web", app="web")        # the Pod at the API server, its sandbox, CNI ADD
    probes.tcp(client.netns, web.ip("v4"), 8080)

The network is a bridge in a namespace of its own, the API server listens in another. The in-test API server stands for
the real one (tests/apiserver says how far), and this module for scheduler, kubelet and runtime. RealCluster is the same
over a kube-apiserver; the fixture `over` of tests/cluster gives the one, then the other.
"""

from __future__ import annotations

import contextlib
import re
import subprocess
import sys
from collections.abc import Callable, Mapping
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack
from ipaddress import ip_address, ip_network
from pathlib import Path
from typing import Any, Generic, Self, TypeVar

import cni_plugin
import rig
from agents import START_S, Document, RunningAgent, environment
from apiserver import TABLE, ApiServer
from apiserver.real import RealServer
from apiserver.remote import RemoteApi
from patience import SLOWER

from agent.cni import build

SERVER_IP = "192.0.2.100"
Api = TypeVar("Api", ApiServer, RealServer, RemoteApi)
FAMILIES = ("v4", "v6")
CLUSTER_CIDRS = "10.244.0.0/16,fd00:10:244::/48"


def node_ips(number: int) -> dict[str, str]:
    return {"v4": f"192.0.2.{10 + number}", "v6": f"2001:db8:0:1::{10 + number:x}"}


def blocks(number: int) -> dict[str, str]:
    return {"v4": f"10.244.{number}.0/24", "v6": f"fd00:10:244:{number}::/64"}


class KubeAgent(RunningAgent):
    """An agent over the API server and CNI. `conf`, `bin`: where it puts the plugin."""

    def __init__(self, node: rig.Netns, name: str, folder: Path, *flags: str) -> None:
        super().__init__(node, folder, *flags)
        self.name = name
        self.conf, self.bin = folder / "net.d", folder / "bin"
        self.conf.mkdir()
        self.socket = self.instance.state_dir / "cni.sock"

    def start(self, *flags: str, settle: bool = True) -> None:
        command = [sys.executable, "-m", "agent.cli.main", "agent", "--source", "kubernetes", "--node", self.name]
        command += ["--state-dir", str(self.instance.state_dir), "--cni-conf-dir", str(self.conf)]
        command += ["--cni-bin-dir", str(self.bin), *self.flags, *flags]
        with self.log_path.open("ab") as log:
            self.process = self.node.popen(*command, stdout=log, stderr=log, env=environment())
        if settle:
            self.settle(START_S)
            self.await_plugin()

    def await_plugin(self) -> None:
        """Until runtimes find it."""
        rig.wait_until(lambda: any(self.conf.iterdir()), START_S, f"the CNI configuration is there\n{self.log()}")

    def links(self) -> list[str]:
        """Host sides of pods' veths."""
        shown = self.node.run("ip", "-o", "link").stdout
        return re.findall(r"\bgh[0-9a-f]{12}\b", shown)

    def await_pod(self, name: str) -> None:
        """Until the API server has told of it."""

        def told() -> bool:
            return any(f"{e['namespace']}/{e['name']}" == name for e in self.json("endpoints"))

        rig.wait_until(told, START_S, f"pod {name} is known\n{self.log()}")

    def await_versions(self, versions: Mapping[str, int]) -> None:
        """Until the agent has been told of these resourceVersions by resource, and all of it is in force."""

        def told() -> bool:
            seen = {one["name"]: one["version"] for one in self.status()["cluster"]["resources"]}
            return all(int(seen[name] or "0") >= version for name, version in versions.items())

        rig.wait_until(told, START_S, f"{self.name} is told of {versions}\n{self.log()}")
        self.settle()

    def cni(self, command: str, pod: KubePod, **more: Any) -> cni_plugin.Run:
        """One call of the plugin, as the runtime of this node makes it."""
        env, config = self.variables(command, pod), cni_plugin.config(self.socket, **more)
        return cni_plugin.run(env, config, self.bin / "gatehouse-cni", timeout_s=120 * SLOWER)

    def begin(self, command: str, pod: KubePod) -> subprocess.Popen[bytes]:
        """The same, under way."""
        pipe = subprocess.PIPE
        process = subprocess.Popen(
            [self.bin / "gatehouse-cni"], env=self.variables(command, pod), stdin=pipe, stdout=pipe, stderr=pipe
        )
        assert process.stdin is not None
        process.stdin.write(cni_plugin.config(self.socket))
        process.stdin.close()
        process.stdin = None  # communicate() would flush it
        return process

    def variables(self, command: str, pod: KubePod) -> dict[str, str]:
        """What the runtime of this node tells the plugin by its environment."""
        args = f"IgnoreUnknown=1;K8S_POD_NAMESPACE={pod.namespace};K8S_POD_NAME={pod.short};K8S_POD_UID={pod.uid}"
        return cni_plugin.environment(command, pod.container, netns=pod.netns.path, args=args)


class KubePod:
    """A pod with its sandbox. `result`: what ADD printed."""

    def __init__(self, agent: KubeAgent, namespace: str, short: str, uid: str, netns: rig.Netns) -> None:
        self.agent, self.namespace, self.short, self.uid, self.netns = agent, namespace, short, uid, netns
        self.container = f"{short}-{netns.name}"
        self.result: dict[str, Any] = {}

    @property
    def name(self) -> str:
        return f"{self.namespace}/{self.short}"

    @property
    def ips(self) -> list[str]:
        return [str(one["address"]).partition("/")[0] for one in self.result["ips"]]

    def ip(self, family: str = "v4") -> str:
        return next(ip for ip in self.ips if (":" in ip) == (family == "v6"))

    def attach(self) -> None:
        done = self.agent.cni("ADD", self)
        assert done.status == 0, (done.output, done.errors, self.agent.log())
        self.result = done.json

    def detach(self) -> None:
        done = self.agent.cni("DEL", self)
        assert done.status == 0, (done.output, done.errors, self.agent.log())


class Served(Generic[Api]):
    """`api`: what `serve` starts in a namespace, to answer at SERVER_IP. `agents`, `nodes`: by node name."""

    def __init__(
        self, folder: Path, *names: str, serve: Callable[[rig.Netns], Api], flags: tuple[str, ...] = ()
    ) -> None:
        self.agents: dict[str, KubeAgent] = {}
        self.nodes: dict[str, rig.Netns] = {}
        self.pods: dict[str, KubePod] = {}
        self.numbers = {name: number for number, name in enumerate(names, 1)}
        _build_plugin()
        with ExitStack() as stack:
            self.network = stack.enter_context(rig.Netns("network"))
            self.network.ip("link add br0 type bridge", "link set br0 up")
            outside = self.outside = stack.enter_context(rig.Netns("api"))
            self.plug(outside, "api", f"{SERVER_IP}/24")
            self.api: Api = stack.enter_context(serve(outside))
            for name, number in self.numbers.items():
                node = self.nodes[name] = stack.enter_context(rig.Netns(name))
                ips = node_ips(number)
                self.plug(node, name, f"{ips['v4']}/24", f"{ips['v6']}/64")
                self.api.put(node_document(name, number))
                own = folder / name
                own.mkdir()
                kubeconfig = self.api.kubeconfig(own / "kubeconfig", own / "token")
                settings = ("--kubeconfig", str(kubeconfig), "--ipam", "node", "--devices", "eth0", *flags)
                agent = self.agents[name] = KubeAgent(node, name, own, *settings)
                stack.enter_context(agent)
            self._stack = stack.pop_all()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        with ExitStack() as stack:
            stack.push(self._stack)
            for pod in self.pods.values():
                stack.callback(pod.netns.close)

    def plug(self, netns: rig.Netns, port: str, *addresses: str) -> None:
        """An interface eth0 on the network."""
        self.network.ip(
            f"link add p-{port} type veth peer name eth0 netns {netns.name}",
            f"link set p-{port} master br0",
            f"link set p-{port} up",
        )
        netns.sysctl(ipv6__conf__eth0__accept_ra="0")
        given = (f"address add {a} dev eth0 {'nodad' if ':' in a else ''}" for a in addresses)
        netns.ip("link set eth0 up", *given)

    def cut(self, cut: bool) -> None:
        """Whether nothing comes from the API server or goes to it: connections stay, and are silent."""
        self.network.ip(f"link set p-api {'down' if cut else 'up'}")

    # ---- agents

    def start(self, *flags: str) -> None:
        """All of them."""
        for agent in self.agents.values():
            agent.start(*flags, settle=False)
        for agent in self.agents.values():
            agent.settle(START_S)
            agent.await_plugin()

    # ---- objects

    def apply(self, *documents: Document) -> None:
        """Put objects at the API server, and wait until every agent that runs has them in force."""
        versions: dict[str, int] = {}
        for document in documents:
            made = self.api.put(document)
            group = document["apiVersion"].rpartition("/")[0]
            resource = next(one for one in TABLE if (one.group, one.kind) == (group, document["kind"]))
            versions[resource.qualified] = int(made["metadata"]["resourceVersion"])
        for agent in self.running():
            agent.await_versions(versions)

    def running(self) -> list[KubeAgent]:
        return [a for a in self.agents.values() if a.process is not None and a.process.poll() is None]

    # ---- pods

    def add(self, where: str, attach: bool = True, spec: Document | None = None, **labels: str) -> KubePod:
        """`where`: NODE/NAMESPACE/NAME. `spec`: what else the Pod's says."""
        node, namespace, short = where.split("/")
        document = pod_document(node, namespace, short, labels)
        document["spec"] |= spec or {}
        made = self.api.put(document)
        pod = KubePod(self.agents[node], namespace, short, made["metadata"]["uid"], rig.Netns("pod"))
        self.pods[where] = pod
        if attach:
            pod.attach()
        return pod

    def remove(self, where: str) -> None:
        """As when a pod ends: the runtime's DEL, and then the Pod object."""
        pod = self.pods.pop(where)
        pod.detach()
        with contextlib.suppress(KeyError):
            self.api.delete("pods", pod.short, pod.namespace)
        pod.netns.close()

    def add_many(self, wheres: list[str], at_once: int = 10, **labels: str) -> list[KubePod]:
        with ThreadPoolExecutor(at_once) as pool:
            return list(pool.map(lambda where: self.add(where, True, None, **labels), wheres))


class KubeCluster(Served[ApiServer]):
    """With the API server in this process. `server`: see ApiServer."""

    def __init__(self, folder: Path, *names: str, flags: tuple[str, ...] = (), **server: Any) -> None:
        def serve(outside: rig.Netns) -> ApiServer:
            return ApiServer(netns=outside, host=SERVER_IP, **server)

        super().__init__(folder, *names, serve=serve, flags=flags)


class RealCluster(Served[RealServer]):
    """With a kube-apiserver, where there are binaries of one (apiserver.real.missing)."""

    def __init__(self, folder: Path, *names: str, flags: tuple[str, ...] = ()) -> None:
        def serve(outside: rig.Netns) -> RealServer:
            own = folder / "kube-apiserver"
            own.mkdir()
            return RealServer(own, outside, SERVER_IP)

        super().__init__(folder, *names, serve=serve, flags=flags)


EitherCluster = KubeCluster | RealCluster


class MeasuredCluster(Served[RemoteApi]):
    """With the API server in a process of its own: what it does is not taken from whoever asks."""

    def __init__(self, folder: Path, *names: str, flags: tuple[str, ...] = ()) -> None:
        def serve(outside: rig.Netns) -> RemoteApi:
            return RemoteApi(netns_path=outside.path, host=SERVER_IP)

        super().__init__(folder, *names, serve=serve, flags=flags)


def node_document(name: str, number: int) -> Document:
    cidrs = list(blocks(number).values())
    addresses = [{"type": "InternalIP", "address": ip} for ip in node_ips(number).values()]
    return {
        "apiVersion": "v1",
        "kind": "Node",
        "metadata": {"name": name, "labels": {"kubernetes.io/hostname": name}},
        "spec": {"podCIDR": cidrs[0], "podCIDRs": cidrs},
        "status": {"addresses": [*addresses, {"type": "Hostname", "address": name}]},
    }


def pod_document(node: str, namespace: str, name: str, labels: dict[str, str]) -> Document:
    return {
        "apiVersion": "v1",
        "kind": "Pod",
        "metadata": {"name": name, "namespace": namespace, "labels": labels},
        "spec": {"nodeName": node, "containers": [{"name": "main", "image": "none"}]},
        "status": {"phase": "Pending"},
    }


def namespace_document(name: str, **labels: str) -> Document:
    return {"apiVersion": "v1", "kind": "Namespace", "metadata": {"name": name, "labels": labels}}


def block_of(address: str) -> int:
    """The number of the node from whose block an address is; 0 for none."""
    for number in range(1, 255):
        if any(ip_address(address) in ip_network(block) for block in blocks(number).values()):
            return number
    return 0


def _build_plugin() -> None:
    """Where an agent installs it from."""
    source = max(path.stat().st_mtime_ns for path in build.SOURCE.parent.glob("*.[ch]"))
    if not build.BINARY.exists() or build.BINARY.stat().st_mtime_ns < source:
        build.build()

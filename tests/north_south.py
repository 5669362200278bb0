"""Two nodes and a client outside on one network, each node with a real agent; services of every sort between them.

with NorthSouth(folder) as cluster:
    cluster.write("services.yaml", *documents)
    cluster.run("--xdp", "off")
    with cluster.served("n2/shop/web"):
        probes.tcp(cluster.outside, routed_ip("n1", 1, "v4"), 80)

The network is a bridge in a namespace of its own. The client sends addresses of 203.0.113.0/24 and 2001:db8:113::/64 to
n1, and those of 198.51.100.0/24 and 2001:db8:100::/64 to n2, as a router before a cluster does. Pods run on either node
and answer with who they are and whom they see.
"""

from __future__ import annotations

import ctypes
import fcntl
import socket
import struct
from collections.abc import Iterator, Mapping
from contextlib import ExitStack, contextmanager
from pathlib import Path

import rig
from agents import START_S, Document, RunningAgent
from probes import Server

NODES = ("n1", "n2")
FAMILIES = ("v4", "v6")
NODE_IPS = {"n1": {"v4": "192.0.2.11", "v6": "2001:db8:0:1::11"}, "n2": {"v4": "192.0.2.12", "v6": "2001:db8:0:1::12"}}
CLIENT_IPS = {"v4": "192.0.2.2", "v6": "2001:db8:0:1::2"}
OTHER_CLIENT_IPS = {"v4": "192.0.2.3", "v6": "2001:db8:0:1::3"}
"""Of the client, too. Pods go there with their own addresses, to everybody else outside with their node's."""
ROUTED = {
    "n1": {"v4": "203.0.113.0/24", "v6": "2001:db8:113::/64"},
    "n2": {"v4": "198.51.100.0/24", "v6": "2001:db8:100::/64"},
}
"""Blocks the client sends to each node."""
POD_CIDRS = {
    "n1": {"v4": "10.244.1.0/24", "v6": "fd00:10:244:1::/64"},
    "n2": {"v4": "10.244.2.0/24", "v6": "fd00:10:244:2::/64"},
}
CLUSTER_CIDRS = "10.244.0.0/16,fd00:10:244::/48"
TARGET = 8080
PROTOCOLS = ("TCP", "UDP")
_SIOCETHTOOL, _ETHTOOL_STXCSUM = 0x8946, 0x17
PREFIX_BITS = {"v4": 24, "v6": 64}


def routed_ip(node: str, number: int, family: str) -> str:
    """An address that the client sends to a node. `number`: 1 to 254."""
    network = ROUTED[node][family].partition("/")[0]
    return network.removesuffix("0") + str(number) if family == "v4" else f"{network}{number:x}"


def pod_ip(node: str, number: int, family: str) -> str:
    network = POD_CIDRS[node][family].partition("/")[0]
    return network.removesuffix("0") + str(number) if family == "v4" else f"{network}{number:x}"


def node_document(name: str) -> Document:
    addresses = [{"type": "InternalIP", "address": ip} for ip in NODE_IPS[name].values()]
    blocks = list(POD_CIDRS[name].values())
    return {
        "apiVersion": "v1",
        "kind": "Node",
        "metadata": {"name": name, "labels": {"topology.kubernetes.io/zone": f"zone-of-{name}"}},
        "spec": {"podCIDR": blocks[0], "podCIDRs": blocks},
        "status": {"addresses": [*addresses, {"type": "Hostname", "address": name}]},
    }


def pod(name: str, node: str, number: int, **labels: str) -> Document:
    """`name`: NAMESPACE/NAME. Both agents are told its addresses, and one of them runs it."""
    namespace, _, short = name.partition("/")
    return {
        "apiVersion": "v1",
        "kind": "Pod",
        "metadata": {"name": short, "namespace": namespace, "labels": labels},
        "spec": {"nodeName": node, "containers": [{"name": "main"}]},
        "status": {"podIPs": [{"ip": pod_ip(node, number, family)} for family in FAMILIES]},
    }


def _set(device: str, feature: int, on: bool) -> None:
    """A feature of a network device, by ethtool's ioctl (include/uapi/linux/ethtool.h)."""
    command = ctypes.create_string_buffer(struct.pack("=II", feature, on))
    request = struct.pack("=16sQ16x", device.encode(), ctypes.addressof(command))
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as any_socket:
        fcntl.ioctl(any_socket, _SIOCETHTOOL, request)


class NorthSouth:
    """`outside`: the client's namespace; `nodes`, `agents`: by node name. `routed`: nodes have routes to each other's
    pods, which nobody has to make. `flags`: of both agents, always."""

    def __init__(self, folder: Path, *flags: str, routed: bool = True) -> None:
        self._always = flags
        self.manifests = folder / "manifests"
        self.manifests.mkdir()
        self.nodes: dict[str, rig.Netns] = {}
        self.agents: dict[str, RunningAgent] = {}
        self._pods: dict[str, rig.Netns] = {}
        self._flags: tuple[str, ...] = ()
        with ExitStack() as stack:
            self.network = stack.enter_context(rig.Netns("network"))
            self.network.ip("link add br0 type bridge", "link set br0 up")
            self.outside = stack.enter_context(rig.Netns("client"))
            self._plug(self.outside, CLIENT_IPS, OTHER_CLIENT_IPS)
            # Its packets have their checksums, as on a wire: what a veth pair leaves out XDP would leave to tc.
            self.outside.call(_set, "eth0", _ETHTOOL_STXCSUM, False)
            for name in NODES:
                self.nodes[name] = stack.enter_context(rig.Netns(name))
                self._plug(self.nodes[name], NODE_IPS[name])
            self._route(routed)
            for name in NODES:
                self.agents[name] = stack.enter_context(self._agent(name, folder))
            self.write("nodes.yaml", *map(node_document, NODES))
            self._stack = stack.pop_all()

    def __enter__(self) -> NorthSouth:
        return self

    def __exit__(self, *_: object) -> None:
        self._stack.close()

    # ---- the network

    def _plug(self, netns: rig.Netns, *addresses: Mapping[str, str]) -> None:
        """An interface eth0 on the bridge."""
        own = [(family, each[family]) for each in addresses for family in FAMILIES]
        port = f"p{len(self.nodes)}" if netns is not self.outside else "client"
        self.network.ip(
            f"link add {port} type veth peer name eth0 netns {netns.name}",
            f"link set {port} master br0",
            f"link set {port} up",
        )
        netns.sysctl(ipv6__conf__eth0__accept_ra="0")
        netns.ip(
            "link set eth0 up",
            *(f"address add {ip}/{PREFIX_BITS[f]} dev eth0 {'nodad' if f == 'v6' else ''}" for f, ip in own),
        )

    def _route(self, routed: bool) -> None:
        for name, other in (NODES, NODES[::-1]):
            self.outside.ip(*(f"route add {ROUTED[name][f]} via {NODE_IPS[name][f]}" for f in FAMILIES))
            if routed:
                self.nodes[name].ip(*(f"route add {POD_CIDRS[other][f]} via {NODE_IPS[other][f]}" for f in FAMILIES))

    # ---- agents and pods

    def _agent(self, name: str, folder: Path) -> RunningAgent:
        own = folder / name
        own.mkdir()
        settings = {
            "--node": name,
            "--pod-cidrs": ",".join(POD_CIDRS[name].values()),
            "--cluster-cidrs": CLUSTER_CIDRS,
            "--devices": "eth0",
            "--masquerade-exclude": ",".join(f"{ip}/{32 if '.' in ip else 128}" for ip in OTHER_CLIENT_IPS.values()),
        }
        words = [word for setting in settings.items() for word in setting]
        agent = RunningAgent(self.nodes[name], own, *words, "--external-ips", "--masquerade", *self._always)
        agent.manifests = self.manifests
        return agent

    def run(self, *flags: str) -> None:
        """With these settings, begun anew where they were others. Pods and what runs in them stay."""
        running = [agent for agent in self.agents.values() if agent.process is not None]
        if running and flags != self._flags:
            for agent in running:
                assert agent.stop() == 0, agent.log()
            running = []
        self._flags = flags
        for agent in self.agents.values():
            if agent not in running:
                agent.start(*flags, settle=False)
        for agent in self.agents.values():
            agent.settle(START_S)

    def write(self, file: str, *documents: Document | str) -> None:
        """Put manifests in force on both nodes."""
        self.agents["n1"].write(file, *documents)
        for agent in self.agents.values():
            if agent.process is not None:
                agent.settle()

    def netns(self, node: str, pod: str) -> rig.Netns:
        """Of a pod NAMESPACE/NAME."""
        if pod not in self._pods:
            self._pods[pod] = self.agents[node].netns(pod)
        return self._pods[pod]

    @contextmanager
    def served(self, *pods: str) -> Iterator[None]:
        """Servers in pods NODE/NAMESPACE/NAME that answer NAME, by TCP and UDP."""
        with ExitStack() as stack:
            for text in pods:
                node, _, name = text.partition("/")
                netns = self.netns(node, name)
                for protocol in PROTOCOLS:
                    label = name.partition("/")[2]
                    stack.enter_context(Server(netns, protocol.lower(), TARGET, label))
            yield

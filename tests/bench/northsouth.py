"""Packets from outside to a node port whose backend is on another node: tc and XDP against iptables and nftables.

Four nodes on one bridge forward the same small UDP packets to the same backend, each its own way, with SNAT. Sender and
forwarding run on one core, which is busy with nothing else, so the time divided by the packets that arrived is the CPU
time of a packet's path, and its inverse the packets per second of a core. What it sends faster than it forwards is
lost, and paid for. Runs are interleaved; a ratio is the median over the rounds.
"""

from __future__ import annotations

import array
import ctypes
import fcntl
import os
import shutil
import socket
import struct
import subprocess
import tempfile
import time
from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path
from statistics import median

import msgspec
import rig
from agents import Document, RunningAgent

from agent.datapath import bpf_programs
from agent.datapath.programs import AttachType, ProgramType
from bench.report import Figure
from bench.setting import Bench, apart, check

NODE_PORT, PORT = 30080, 8080
OUTSIDE, BACKEND_NODE, BACKEND = "198.18.0.2", "198.18.0.3", "10.245.0.5"
FLOWS, PACKETS, ROUNDS = 64, 320_000, 9
RUN_S, STILL_S = 60.0, 0.05
PEER = "iptables"
GATEHOUSE = {"tc": (), "XDP": ("--xdp", "native")}
_SIOCETHTOOL, _ETHTOOL_STXCSUM = 0x8946, 0x17
_SYS_BPF, _PROG_LOAD, _XDP_PASS = 321, 5, 2  # x86-64
NFT = f"""
table ip peer {{
  chain prerouting {{ type nat hook prerouting priority -100; udp dport {NODE_PORT} dnat to {BACKEND}:{PORT}; }}
  chain postrouting {{ type nat hook postrouting priority 100; ip daddr {BACKEND} masquerade; }}
}}
"""


def measure(bench: Bench) -> Iterator[Figure]:
    core = max(os.sched_getaffinity(0))
    with apart(core), ExitStack() as stack:
        arena = Arena(stack, compile_sender(), core)
        found: dict[str, list[float]] = {name: [] for name in arena.nodes}
        for number in range(-1, bench.samples(ROUNDS)):
            for name, address in arena.nodes.items():
                took_ns = arena.run(address)
                if number >= 0:  # the first round warms up, and makes the flows
                    found[name].append(took_ns)
    peer = found.get(PEER, [])
    for name, taken in found.items():
        rate = f"{1e3 / median(taken):.2f} M packets/s of a core"
        yield Figure("northsouth", f"node port by {name}, CPU per packet", median(taken), "ns", note=rate)
    for name in GATEHOUSE:
        if peer:
            ratio = median(a / b for a, b in zip(found[name], peer, strict=True))
            yield Figure("northsouth", f"node port by {name}, against {PEER}", ratio, "×", 1.0)
    if not peer:
        yield Figure("northsouth", f"no {PEER} to compare with", 0, "", note=f"apt-get install {PEER}")


class Arena:
    """`nodes`: address of each forwarding node by its way of doing it."""

    def __init__(self, stack: ExitStack, sender: Path, core: int) -> None:
        self.nodes: dict[str, str] = {}
        self._stack = stack
        self._command = ("taskset", "-c", str(core), str(sender))
        self._network = stack.enter_context(rig.Netns("net"))
        self._network.ip("link add br0 type bridge", "link set br0 up")
        self._outside = self._plug(stack.enter_context(rig.Netns("outside")), OUTSIDE)
        self._backend = self._plug(stack.enter_context(rig.Netns("backend")), BACKEND_NODE)
        self._backend.ip(f"address add {BACKEND}/32 dev eth0")
        self._backend.sysctl(ipv4__conf__all__rp_filter="0")
        sink = stack.enter_context(self._backend.call(socket.socket, socket.AF_INET, socket.SOCK_DGRAM))
        sink.bind((BACKEND, PORT))  # nobody reads: what finds no room in its buffer has arrived all the same
        for name, flags in GATEHOUSE.items():
            self._start(self._node(name), flags)
        for name, command, rules in (
            ("iptables", "iptables-restore", _iptables()),
            ("nftables", "nft", NFT),
        ):
            if shutil.which(command):
                node = self._node(name)
                node.run(command, *(("-f", "-") if command == "nft" else ()), input=rules)

    def run(self, address: str) -> float:
        """Nanoseconds a packet that arrives."""
        before = self._received()
        words = (*self._command, address, str(NODE_PORT), str(FLOWS), str(PACKETS))
        took_ns = float(self._outside.run(*words, timeout_s=RUN_S).stdout)
        return took_ns * PACKETS / (self._settled() - before)

    def _settled(self) -> int:
        """Packets received, once no more come."""
        received = -1
        while received != (received := self._received()):
            time.sleep(STILL_S)
        return received

    def _received(self) -> int:
        text = self._backend.run("cat", "/proc/net/dev").stdout
        return int(next(line for line in text.splitlines() if line.strip().startswith("eth0:")).split()[2])

    def _plug(self, netns: rig.Netns, address: str) -> rig.Netns:
        """Onto the bridge."""
        port = f"p{len(self._network.run('ip', '-o', 'link').stdout.splitlines())}"
        self._network.ip(
            f"link add {port} type veth peer name eth0 netns {netns.name}",
            f"link set {port} master br0 up",
        )
        netns.ip("link set eth0 up", f"address add {address}/24 dev eth0")
        self._network.call(_take_frames, port, self._stack)
        netns.call(_fill_in_checksums, "eth0")
        return netns

    def _node(self, name: str) -> rig.Node:
        address = f"198.18.0.{11 + len(self.nodes)}"
        self.nodes[name] = address
        node = self._stack.enter_context(rig.Node(addresses=()))
        self._plug(node, address)
        node.sysctl(ipv4__ip_forward="1", ipv4__conf__all__rp_filter="0")
        node.ip(f"route add {BACKEND}/32 via {BACKEND_NODE}")
        return node

    def _start(self, node: rig.Node, flags: tuple[str, ...]) -> None:
        folder = Path(tempfile.mkdtemp(prefix="gatehouse-bench-"))
        self._stack.callback(shutil.rmtree, folder, ignore_errors=True)
        agent = self._stack.enter_context(RunningAgent(node, folder))
        (agent.manifests / "service.json").write_bytes(msgspec.json.encode(_service()))
        agent.start("--devices", "eth0", *flags)
        check(agent)


def _fill_in_checksums(device: str) -> None:
    """As on a wire. What a veth pair leaves out of them, XDP would leave to tc."""
    value = array.array("I", (_ETHTOOL_STXCSUM, 0))
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as sock:
        fcntl.ioctl(sock, _SIOCETHTOOL, struct.pack("16sP16x", device.encode(), value.buffer_info()[0]))


def _take_frames(device: str, held: ExitStack) -> None:
    """A veth takes frames that XDP at its peer sends only if it has a program itself: one that passes everything."""
    instructions = struct.pack("=BBhi", 0xB7, 0, 0, _XDP_PASS) + struct.pack("=BBhi", 0x95, 0, 0, 0)  # r0 = PASS; exit
    code, licence = ctypes.create_string_buffer(instructions), ctypes.create_string_buffer(b"GPL")
    attributes = struct.pack("=IIQQ", ProgramType.XDP, 2, ctypes.addressof(code), ctypes.addressof(licence))
    call = ctypes.CDLL(None, use_errno=True).syscall
    program = call(_SYS_BPF, _PROG_LOAD, attributes, len(attributes))
    assert program >= 0, os.strerror(ctypes.get_errno())
    held.callback(os.close, bpf_programs.link_create(program, socket.if_nametoindex(device), AttachType.XDP, 0))
    os.close(program)


def _service() -> Document:
    service = {
        "apiVersion": "v1",
        "kind": "Service",
        "metadata": {"namespace": "shop", "name": "web"},
        "spec": {
            "type": "NodePort",
            "ports": [{"protocol": "UDP", "port": PORT, "targetPort": PORT, "nodePort": NODE_PORT}],
        },
    }
    endpoints = {
        "apiVersion": "discovery.k8s.io/v1",
        "kind": "EndpointSlice",
        "metadata": {"namespace": "shop", "name": "web-x", "labels": {"kubernetes.io/service-name": "web"}},
        "addressType": "IPv4",
        "ports": [{"protocol": "UDP", "port": PORT}],
        "endpoints": [{"addresses": [BACKEND], "nodeName": "other"}],
    }
    return {"apiVersion": "v1", "kind": "List", "items": [service, endpoints]}


def _iptables() -> str:
    return "\n".join(
        (
            "*nat",
            f"-A PREROUTING -p udp --dport {NODE_PORT} -j DNAT --to-destination {BACKEND}:{PORT}",
            f"-A POSTROUTING -d {BACKEND} -j MASQUERADE",
            "COMMIT",
            "",
        )
    )


def compile_sender() -> Path:
    program = Path("build/blast").absolute()
    program.parent.mkdir(exist_ok=True)
    source = Path(__file__).with_name("blast.c")
    subprocess.run(["gcc", "-O2", "-Wall", "-o", str(program), str(source)], check=True)
    return program

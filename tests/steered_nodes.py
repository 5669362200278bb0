"""WireGuard between the two nodes of a NorthSouth cluster, made by hand, and the wire between them looked at.

with Encrypted(cluster) as encrypted, Wire(cluster.network) as wire:
    encrypted.turn_on("ENCRYPT STRICT")
    …
    assert wire.seen() == []

No agent runs: the map and the settings of the datapath are written here, and the devices configured by the stock `wg`.
"""

from __future__ import annotations

import os
import socket
import subprocess
from contextlib import ExitStack
from itertools import count
from pathlib import Path
from types import TracebackType

import rig
import wire
import wireguard_backends
from north_south import CLUSTER_CIDRS, FAMILIES, NODE_IPS, NODES, OTHER_CLIENT_IPS, POD_CIDRS, NorthSouth
from patience import SLOWER

from agent.config import build
from agent.datapath import abi
from agent.datapath.abi import bpf_dir
from agent.datapath.maps import Maps
from agent.datapath.network import Network
from agent.datapath.programs import NETWORK, ProgramType, ensure_loaded
from agent.encryption.steering import Steering
from agent.plan.encryption import entries
from agent.world.nodes import Peer
from policies.address import Prefix, parse_address

LINKS = ("p1", "p2")
"""Of the network, to the nodes."""
MADE_S = 60.0 * SLOWER
_ABI = abi.load()
_CONFIG = _ABI.records["config"]
_numbers = count(1)


class WireGuard:
    """A device of one node: the kernel's, or that of `wireguard-go` in the foreground."""

    def __init__(self, node: rig.Netns, backend: str) -> None:
        self._node, self._backend = node, backend
        self.name = f"ght{os.getpid()}x{next(_numbers)}"
        self._key = _wg("genkey")
        self.public = _wg("pubkey", self._key)
        self.ifindex = 0
        self._process: subprocess.Popen[bytes] | None = None

    def make(self, *peers: str) -> None:
        """`peers`: further words to `wg set`."""
        if self._backend == "kernel":
            self._node.ip(f"link add {self.name} type wireguard")
        else:
            self._process = self._node.popen("wireguard-go", "-f", self.name, stdout=-3, stderr=-3)
            rig.wait_until(self._answers, MADE_S, "wireguard-go makes its socket")
        mark = str(_ABI.constants.MARK_WIREGUARD)
        words = ["private-key", "/dev/stdin", "listen-port", str(wire.PORT), "fwmark", mark, *peers]
        self._node.run("wg", "set", self.name, *words, input=self._key)
        self._node.ip(f"link set {self.name} mtu 1420 up")
        self.ifindex = self._node.call(socket.if_nametoindex, self.name)

    def keep_alive(self, public: str, interval: str) -> None:
        """From no interval to one: the peer is sent a packet at once, and greeted first."""
        self._node.run("wg", "set", self.name, "peer", public, "persistent-keepalive", interval)

    def has_met(self) -> bool:
        """There has been a handshake with its peer."""
        shown = self._node.run("wg", "show", self.name, "latest-handshakes").stdout
        return int(shown.split()[1]) > 0

    def _answers(self) -> bool:
        with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as asked:
            return asked.connect_ex(f"/var/run/wireguard/{self.name}.sock") == 0

    def remove(self) -> None:
        """A program's device goes with its process."""
        if self._backend == "kernel":
            self._node.run("ip", "link", "delete", self.name, check=False)
        if self._process is not None:
            self._process.kill()
            self._process.wait()
            self._process = None
        Path(f"/var/run/wireguard/{self.name}.sock").unlink(missing_ok=True)


class Encrypted:
    """Of a cluster whose agents have ended. `devices`: by node, made or not. At the end all is as it was. `backends`:
    one of wireguard_backends.CLUSTERS."""

    def __init__(self, cluster: NorthSouth, backends: str = "userspace", underlay: str = "v4") -> None:
        self._cluster, self._underlay = cluster, underlay
        kinds = zip(NODES, wireguard_backends.of_nodes(backends, len(NODES)), strict=True)
        self.devices = {name: WireGuard(cluster.nodes[name], kind) for name, kind in kinds}
        self._networks: dict[str, Network] = {}
        self._steering: dict[str, Steering] = {}
        self._maps: dict[str, Maps] = {}
        self._stack = ExitStack()

    def __enter__(self) -> Encrypted:
        with ExitStack() as stack:
            for name in NODES:
                self._open(name, stack)
            stack.callback(self._undo)
            self._stack = stack.pop_all()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._stack.close()

    def _open(self, name: str, stack: ExitStack) -> None:
        pins = self._cluster.agents[name].instance.pins
        maps = self._maps[name] = stack.enter_context(Maps.open_pinned(pins.maps))
        unit = NETWORK.without(ProgramType.XDP)
        programs = stack.enter_context(ensure_loaded(maps, pins, bpf_dir() / unit.source, unit.programs))
        texts = {
            "manifests": "m",
            "devices": "eth0",
            "cluster_cidrs": CLUSTER_CIDRS,
            "masquerade": "true",
            "masquerade_exclude": ",".join(f"{ip}/{32 if '.' in ip else 128}" for ip in OTHER_CLIENT_IPS.values()),
            "pod_cidrs": ",".join(POD_CIDRS[name].values()),
        }
        addresses = [parse_address(ip) for ip in NODE_IPS[name].values()]
        network = self._cluster.nodes[name].call(Network, build(texts), maps, pins, programs, addresses)
        self._networks[name] = network
        stack.callback(network.close)
        self._steering[name] = Steering(maps["encryption"])

    # ---- what an agent does

    def make(self) -> None:
        """Devices that have met, and programs on them. Nothing is steered to them yet."""
        for name, other in (NODES, NODES[::-1]):
            self.devices[name].make(*self.peer(other))
            self._cluster.nodes[name].call(self._networks[name].set_wireguard, self.devices[name].ifindex)
            assert self._networks[name].problems == []
        self._meet()

    def _meet(self) -> None:
        """So that no test's first packet waits for a handshake, which when it is lost is tried again after 5 s."""
        first, second = (self.devices[name] for name in NODES)
        first.keep_alive(second.public, "1")
        for device in (first, second):
            rig.wait_until(device.has_met, MADE_S, f"{device.name}: a handshake")
        first.keep_alive(second.public, "off")

    def peer(self, name: str) -> tuple[str, ...]:
        """As `wg set` is told of a node."""
        blocks = [*POD_CIDRS[name].values(), *(f"{ip}/{32 if '.' in ip else 128}" for ip in NODE_IPS[name].values())]
        ip = NODE_IPS[name][self._underlay]
        endpoint = f"{ip}:{wire.PORT}" if "." in ip else f"[{ip}]:{wire.PORT}"
        return "peer", self.devices[name].public, "allowed-ips", ",".join(blocks), "endpoint", endpoint

    def remove(self) -> None:
        for name in NODES:
            self._cluster.nodes[name].call(self._networks[name].set_wireguard, 0)
            self.devices[name].remove()

    def set(self, name: str, features: str, *, ready: bool = True) -> None:
        """`features`: names of those that are on. On: entries, then features; off: the other way round."""
        if features:
            self._steer(name, ready=ready)
        self._features(name, features)
        if not features:
            self._steering[name].update({})

    def turn_on(self, features: str = "ENCRYPT", *, ready: bool = True) -> None:
        for name in NODES:
            self.set(name, features, ready=ready)

    def turn_off(self) -> None:
        for name in NODES:
            self.set(name, "")

    def plaintext(self) -> int:
        """Packets between pods that were not encrypted, as the datapath counts them."""
        return sum(maps["tallies"].sums()[_ABI.constants.TALLY_PLAINTEXT] for maps in self._maps.values())

    def dropped(self) -> int:
        return sum(maps["drops"].sums()[_ABI.constants.DROP_UNENCRYPTED] for maps in self._maps.values())

    def _steer(self, name: str, *, ready: bool) -> None:
        (other,) = set(NODES) - {name}
        peer = Peer(other, _addresses(other), _blocks(other))
        places = tuple(map(Prefix.parse, CLUSTER_CIDRS.split(",")))
        wanted = entries(_blocks(name), _addresses(name), [peer], {other} if ready else (), places)
        self._steering[name].update(wanted)

    def _features(self, name: str, features: str) -> None:
        ours = sum(_ABI.constants[f"FEATURE_{one}"] for one in ("ENCRYPT", "STRICT", "NODE_ENCRYPTION"))
        on = sum(_ABI.constants[f"FEATURE_{one}"] for one in features.split())
        table = self._maps[name]["config"]
        value = table.lookup(bytes(4))
        assert value is not None
        config = _CONFIG.unpack(value)
        table.update(bytes(4), _CONFIG.pack_values(*config._replace(features=(config.features & ~ours) | on)))

    def _undo(self) -> None:
        self.turn_off()
        self.remove()


def _blocks(name: str) -> tuple[Prefix, ...]:
    return tuple(map(Prefix.parse, POD_CIDRS[name].values()))


def _addresses(name: str) -> tuple[bytes, ...]:
    return tuple(parse_address(NODE_IPS[name][family]) for family in FAMILIES)


def _wg(command: str, given: str = "") -> str:
    return subprocess.run(["wg", command], input=given, capture_output=True, text=True, check=True).stdout.strip()


class Wire(wire.Wire):
    """Of the network, by its links to the nodes."""

    def __init__(self, netns: rig.Netns, links: tuple[str, ...] = LINKS) -> None:
        nodes = [NODE_IPS[name][family] for name in NODES for family in FAMILIES]
        super().__init__(netns, links, CLUSTER_CIDRS.split(","), nodes)

"""Real sockets under the socket programs: parties in network namespaces of their own, and a cgroup for all of them.

    site.party("pod").socket(shape, "tcp")     a socket of a process there, to use from here

Each party has all addresses of SERVERS on its lo, and servers at them that answer `NAME SOURCE PORT`: so a client
learns whether it reached a backend, or what it asked for itself.
"""

from __future__ import annotations

import os
import socket
import subprocess
import sys
import threading
from collections.abc import Iterator, Mapping
from contextlib import ExitStack, contextmanager
from pathlib import Path

import probes
import rig
from frames import ADDRESSES, FAMILIES, UDP, Family
from map_content import SIZES, Content

from agent.datapath import cgroup
from agent.datapath.abi import be16, bpf_dir
from agent.datapath.maps import Maps
from agent.datapath.mounts import ensure_cgroup2
from agent.datapath.pins import Pins
from agent.datapath.programs import SOCKET_PROGRAMS, Programs, ensure_loaded
from agent.datapath.ring import Ring
from agent.endpoints import cgroups, namespaces

BACKEND_PORT = 8080
SO_COOKIE = 57
SERVERS = (("a", 8080), ("b", 8080), ("c", 8080), ("web", 80), ("dns", 80), ("node", 30080), ("loopback", 30080))
PARTIES = ("node", "pod", "stranger")
"""A process of the node, of a pod at address `a`, and one in a namespace that Gatehouse does not know."""

SHAPES: Mapping[str, tuple[socket.AddressFamily, Family]] = {
    "v4": (socket.AF_INET, 4),
    "v6": (socket.AF_INET6, 6),
    "mapped": (socket.AF_INET6, 4),
}
"""How a socket speaks: its own family, and that of its packets."""

# Makes sockets for whoever holds the other end of its input: they belong to its cgroup and network namespace.
_MAKER = """
import ctypes, os, socket, sys
open(sys.argv[1], "w").write("0")
if ctypes.CDLL(None).setns(os.open(sys.argv[2], os.O_RDONLY), 0x40000000): sys.exit("cannot enter " + sys.argv[2])
asks = socket.socket(fileno=0)
while data := asks.recv(64):
    with socket.socket(*map(int, data.split())) as made: socket.send_fds(asks, [b"."], [made.fileno()])
    asks.send(b".")
"""


def sockaddr(name: str, port: int, shape: str) -> tuple[str, int]:
    text = ADDRESSES[name][0 if SHAPES[shape][1] == 4 else 1]
    return ("::ffff:" + text if shape == "mapped" else text), port


def cookie_of(client: socket.socket) -> int:
    """The kernel's number of a socket."""
    return int.from_bytes(client.getsockopt(socket.SOL_SOCKET, SO_COOKIE, 8), sys.byteorder)


class Maker:
    """A process in a cgroup and a network namespace."""

    def __init__(self, folder: Path, netns: rig.Netns) -> None:
        folder.mkdir(exist_ok=True)
        self._asks, theirs = socket.socketpair()
        self._asks.settimeout(20)
        self._one_at_a_time = threading.Lock()
        with theirs:
            argv = [sys.executable, "-I", "-S", "-c", _MAKER, str(folder / cgroups.PROCESSES), netns.path]
            self._process = subprocess.Popen(argv, stdin=theirs.fileno())

    def socket(self, family: int, kind: int) -> socket.socket:
        with self._one_at_a_time:
            self._asks.send(f"{int(family)} {int(kind)}".encode())
            _, fds, _, _ = socket.recv_fds(self._asks, 1, 1)
            assert self._asks.recv(1) == b".", "from now on it is closed with ours"
        return socket.socket(fileno=fds[0])

    def close(self) -> None:
        self._asks.close()
        self._process.wait(20)


class Party:
    def __init__(self, folder: Path, role: str) -> None:
        self._undo = ExitStack()
        self.netns = self._undo.enter_context(rig.Netns(role))
        names = {name for name, _ in SERVERS} - {"loopback"}
        texts = [text for name in names for text in ADDRESSES[name]]
        self.netns.ip(*(f"address add {t} dev lo {'nodad' if ':' in t else ''}" for t in texts))
        for name, port in SERVERS:
            for family in FAMILIES:
                for kind in ("tcp", "udp"):
                    address = ADDRESSES[name][0 if family == 4 else 1]
                    self._undo.enter_context(probes.Server(self.netns, kind, port, name, address))
        self._maker = Maker(folder / role, self.netns)
        self._undo.callback(self._maker.close)
        self.cookie = namespaces.cookie(self.netns.fd)

    def socket(self, shape: str, kind: str, timeout_s: float = 5.0) -> socket.socket:
        made = self._maker.socket(SHAPES[shape][0], socket.SOCK_STREAM if kind == "tcp" else socket.SOCK_DGRAM)
        made.settimeout(timeout_s)
        return made

    def close(self) -> None:
        self._undo.close()


class Site(Content):
    """The programs on a cgroup of the test's own, and the maps they read."""

    def __init__(self, maps: Maps, programs: Programs, pins: Pins, folder: Path) -> None:
        super().__init__(maps)
        self.programs, self.pins, self.folder = programs, pins, folder
        self.ring = Ring(maps["events"].fd)
        self._parties: dict[str, Party] = {}

    def party(self, role: str) -> Party:
        if role not in self._parties:
            self._parties[role] = Party(self.folder, role)
        return self._parties[role]

    def reset(self, family: Family) -> None:
        """As Content.reset; besides, the node and the pod are known."""
        self.ring.drain(1 << 30)
        super().reset(family)
        here = {"ipv4" if family == 4 else "ipv6": self.address("node")}
        self.config(host_netns=self.party("node").cookie, features=self.abi.constants.FEATURE_SOCKET_PODS, **here)
        self.namespace(self.party("pod").cookie, "a")

    def entries(self) -> dict[str, int]:
        """How many entries there are of sockets."""
        return {name: sum(1 for _ in self.maps[name].items()) for name in ("socket_frontends", "socket_backends")}

    def retire(self, client: socket.socket, frontend: tuple[str, int], backend: tuple[str, int]) -> None:
        """Have a UDP socket forget a backend, as the agent does when that is gone."""
        ends = {"socket_backends": frontend, "socket_frontends": backend}
        for table, (name, port) in ends.items():
            key = self.pack(
                "socket_key", cookie=cookie_of(client), address=self.address(name), port_be=be16(port), protocol=UDP
            )
            assert self.maps[table].delete(key)

    def close(self) -> None:
        for party in self._parties.values():
            party.close()
        self.ring.close()


@contextmanager
def scratch_cgroup() -> Iterator[Path]:
    """A cgroup of this test's own; gone at the end, with what was attached."""
    folder = ensure_cgroup2() / f"gh-test-{os.getpid()}-{os.urandom(4).hex()}"
    folder.mkdir()
    try:
        yield folder
    finally:
        cgroups.remove_tree(folder)


@contextmanager
def load_site(instance: str) -> Iterator[Site]:
    """Loaded and attached."""
    pins = Pins.of(instance)
    with ExitStack() as undo:
        undo.callback(pins.remove)
        folder = undo.enter_context(scratch_cgroup())
        maps = undo.enter_context(Maps.open_or_create(pins.maps, SIZES))
        programs = undo.enter_context(ensure_loaded(maps, pins, bpf_dir() / "socket.c", SOCKET_PROGRAMS))
        cgroup.attach(folder, programs, pins)
        site = Site(maps, programs, pins, folder)
        undo.callback(site.close)
        yield site

"""Pod to pod between nodes with encryption, against bare WireGuard between the same nodes; and a thousand peers.

Bare: a device of the same program in each node, configured by the stock tool, and plain routing between a namespace of
one node and one of the other. Clients of both ways stand ready and take short turns: bare, ours, bare, … A ratio is the
median over the rounds. What makes round trips is pinned to one core; the devices' programs run where they like.
"""

from __future__ import annotations

import base64
import os
import socket
import subprocess
import tempfile
import threading
import time
from collections.abc import Iterator, Sequence
from contextlib import ExitStack
from pathlib import Path
from queue import SimpleQueue
from statistics import median

import rig
import wire
import wireguard_nodes
from encrypted_cluster import STRICT, meet
from kube_cluster import KubeCluster, node_ips
from wireguard_backends import missing, stock_missing

from agent.encryption.device import Device, PeerChange, Settings
from agent.encryption.keys import PrivateKey, shown
from agent.encryption.userspace import PROGRAM, socket_of
from agent.world.nodes import Peer
from bench.report import Figure
from bench.roundtrips import SHAPES, WARM_UP, _turn, compile_client, figure
from bench.setting import Bench
from policies.address import Prefix, parse_address

PORT, SINK_PORT, BARE_PORT = 5201, 5202, wire.PORT + 1
ROUNDS, STREAMS = 300, 60
STREAM_BYTES = 16 << 20
LATENCY, THROUGHPUT = 1.05, 0.95
PEERS, COLD_S, CHANGED_MS, CHANGES = 1000, 2.0, 10.0, 20
WAIT_S = 60.0


def measure(bench: Bench) -> Iterator[Figure]:
    if lacking := missing("userspace") or stock_missing():
        bench.say(f"encryption: {lacking}: not measured")
        return
    with tempfile.TemporaryDirectory() as folder:
        with Ways(Path(folder)) as ways:
            found = ways.round_trips(bench.samples(ROUNDS))
            yield figure("encryption", "TCP one-byte exchange between nodes", found, "ours", LATENCY)
            yield _throughput(ways.streams(bench.samples(STREAMS)))
        yield from _peers(Path(folder), bench.samples(CHANGES))


def _throughput(found: dict[str, list[float]]) -> Figure:
    rates = {way: STREAM_BYTES * 8 / median(taken) / 1e6 for way, taken in found.items()}
    ratio = median(ours / bare for ours, bare in zip(found["ours"], found["bare"], strict=True))
    note = (
        f"{rates['ours']:.0f} Mbit/s, bare {rates['bare']:.0f}: {1 / ratio:.2f} × its throughput; goal {THROUGHPUT} ×"
    )
    return Figure(
        "encryption", f"TCP stream of {STREAM_BYTES >> 20} MiB between nodes", ratio, "×", 1 / THROUGHPUT, note
    )


class Ways:
    """A cluster of two nodes that encrypt, and bare WireGuard between the same. Servers run at the far ends."""

    def __init__(self, folder: Path) -> None:
        self._program, self._core = compile_client(), max(os.sched_getaffinity(0))
        with ExitStack() as stack:
            cluster = stack.enter_context(KubeCluster(folder, "n1", "n2", flags=STRICT))
            cluster.start()
            client, server = cluster.add("n1/bench/client"), cluster.add("n2/bench/server")
            meet(cluster)
            bare = _bare(cluster, stack)
            self._ends = {"bare": (bare[0], bare[1], "10.99.2.2"), "ours": (client.netns, server.netns, server.ip())}
            for _, far, address in self._ends.values():
                serving = far.popen(*self._pinned("server", str(PORT)), stdout=subprocess.PIPE)
                stack.callback(_end, serving)
                assert serving.stdout is not None and serving.stdout.readline() == b"listening\n"
                stack.enter_context(Sink(far, address))
            self._stack = stack.pop_all()

    def __enter__(self) -> Ways:
        return self

    def __exit__(self, *_: object) -> None:
        self._stack.close()

    def round_trips(self, rounds: int) -> dict[str, list[float]]:
        """Of each way the median of each turn, in ns. Under the names that bench.roundtrips.figure reads."""
        with ExitStack() as stack:
            clients = {}
            for way, (near, _, address) in self._ends.items():
                words = self._pinned("client", address, str(PORT), str(SHAPES["rr"].count), "rr")
                name = "plain" if way == "bare" else way
                clients[name] = stack.enter_context(near.popen(*words, stdin=subprocess.PIPE, stdout=subprocess.PIPE))
            found: dict[str, list[float]] = {name: [] for name in clients}
            for _ in range(WARM_UP + rounds):
                for name, client in clients.items():
                    found[name].append(_turn(client))
        return {name: taken[WARM_UP:] for name, taken in found.items()}

    def streams(self, rounds: int) -> dict[str, list[float]]:
        """Seconds that each took. Who is first changes from turn to turn."""
        found: dict[str, list[float]] = {way: [] for way in self._ends}
        ends = list(self._ends.items())
        for _ in range(1 + rounds):
            for way, (near, _, address) in ends:
                found[way].append(_send(near, address))
            ends.reverse()
        return {way: taken[1:] for way, taken in found.items()}

    def _pinned(self, *words: str) -> tuple[str, ...]:
        return ("taskset", "-c", str(self._core), str(self._program), *words)


class Sink:
    """Takes streams one after another, and says when it has all of one."""

    def __init__(self, netns: rig.Netns, address: str) -> None:
        self._listener = netns.call(socket.create_server, (address, SINK_PORT))
        self._thread = threading.Thread(target=self._take, daemon=True)
        self._thread.start()

    def __enter__(self) -> Sink:
        return self

    def __exit__(self, *_: object) -> None:
        self._listener.shutdown(socket.SHUT_RDWR)
        self._thread.join()
        self._listener.close()

    def _take(self) -> None:
        buffer = bytearray(1 << 20)
        while True:
            try:
                taken, _ = self._listener.accept()
            except OSError:  # it is over
                return
            with taken:
                left = STREAM_BYTES
                while left and (got := taken.recv_into(buffer)):
                    left -= got
                taken.send(b".")


def _send(netns: rig.Netns, address: str) -> float:
    data = bytes(1 << 20)
    with netns.call(socket.create_connection, (address, SINK_PORT), WAIT_S) as sending:
        began = time.perf_counter()
        for _ in range(STREAM_BYTES // len(data)):
            sending.sendall(data)
        assert sending.recv(1) == b"."
        return time.perf_counter() - began


def _bare(cluster: KubeCluster, stack: ExitStack) -> list[rig.Netns]:
    """A namespace at each node, its device, and routes."""
    keys = {name: PrivateKey.generate() for name in cluster.nodes}
    ends = []
    for (name, node), other in zip(cluster.nodes.items(), ("n2", "n1"), strict=True):
        number, far = cluster.numbers[name], cluster.numbers[other]
        end = stack.enter_context(rig.Netns("bare"))
        device = f"ghb{os.getpid()}x{number}"
        process = node.popen(PROGRAM, "-f", device, stdout=-3, stderr=-3)
        stack.callback(socket_of(device).unlink, missing_ok=True)
        stack.callback(_end, process)
        rig.wait_until(socket_of(device).exists, WAIT_S, "its socket is there")
        key = base64.b64encode(keys[name].reveal()).decode()
        words = ["private-key", "/dev/stdin", "listen-port", str(BARE_PORT), "peer", shown(keys[other].public)]
        words += ["allowed-ips", f"10.99.{far}.0/24", "endpoint", f"{node_ips(far)['v4']}:{BARE_PORT}"]
        node.run("wg", "set", device, *words, input=key)
        node.ip(
            f"link set {device} mtu 1440 up",
            f"link add bare0 type veth peer name eth0 netns {end.name}",
            "link set bare0 mtu 1440 up",
            f"address add 10.99.{number}.1/24 dev bare0",
            f"route add 10.99.{far}.0/24 dev {device}",
        )
        end.ip(
            "link set eth0 mtu 1440 up",
            f"address add 10.99.{number}.2/24 dev eth0",
            f"route add default via 10.99.{number}.1",
        )
        ends.append(end)
    return ends


def _end(process: subprocess.Popen[bytes]) -> None:
    process.kill()
    process.wait()


# ---- a thousand peers


def _node(number: int, at: int, key: bytes) -> Peer:
    here = parse_address(f"172.16.{number >> 8}.{number & 255}"), parse_address(f"2001:db8::{at:x}:{number:x}")
    blocks = Prefix.parse(f"10.{number >> 8}.{number & 255}.0/24"), Prefix.parse(f"fd01:{number:x}::/64")
    return Peer(f"node-{number}", here, blocks, key)


def _peers(folder: Path, changes: int) -> Iterator[Figure]:
    keys = [PrivateKey.generate().public for _ in range(PEERS)]
    peers = [_node(number, 0, key) for number, key in enumerate(keys, 1)]
    with wireguard_nodes.Wire(folder) as between, between.node(1, "userspace") as one:
        one.addresses = ["172.20.0.1"]
        one.start()
        assert one.encryption
        began = time.perf_counter()
        one.hear(peers)
        rig.wait_until(lambda: one.ready and len(one.ready[-1]) == PEERS, WAIT_S, "all are configured")
        note = f"{PEERS} of them, by {PROGRAM}"
        yield Figure("encryption", "peers reconciled from cold", time.perf_counter() - began, "s", COLD_S, note)
        tunnel = one.encryption._tunnel
        rig.wait_until(lambda: not tunnel.greets, 2 * WAIT_S, "all have been greeted")
        assert tunnel.device
        configured = _told(tunnel.device)
        taken = []
        for round_ in range(1, changes + 1):
            peers[500] = _node(501, round_, keys[500])
            began = time.perf_counter()
            one.hear(list(peers))
            taken.append((configured.get(timeout=WAIT_S) - began) * 1000)
        yield Figure(
            "encryption", "one of these peers changed", median(taken), "ms", CHANGED_MS, f"of {changes} changes"
        )


def _told(device: Device) -> SimpleQueue[float]:
    """When the device has answered to each change of peers, from now on."""
    times: SimpleQueue[float] = SimpleQueue()
    configure = device.configure

    def timed(settings: Settings, changes: Sequence[PeerChange] = ()) -> None:
        configure(settings, changes)
        if any(change.allowed for change in changes):
            times.put(time.perf_counter())

    device.configure = timed  # type: ignore[method-assign]
    return times

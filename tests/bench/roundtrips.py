"""Round trips pod → pod: through Gatehouse with 1,000 rules in force, against plain kernel routing.

The same two pods, interleaved (plain, Gatehouse, plain, …): for the plain runs the programs and their qdisc are taken
off both veths. Each run is one connection of one-byte exchanges (rr), or a connection for each (crr). A run's figure
is its median; the ratio is the median over the pairs of neighbouring runs, so that what else goes on drops out.

Both ends are pinned to one core: the path is the same, but for waking another core, which on virtual machines takes
several times as long as the path and varies by more than what is to be seen.
"""

from __future__ import annotations

import os
import subprocess
from collections.abc import Iterator
from contextlib import closing
from pathlib import Path
from statistics import median
from typing import Any

import probes
from agents import Document

from agent.datapath.programs import ensure_loaded
from agent.datapath.tc import Hooks
from bench import cluster
from bench.cluster import NAMESPACE
from bench.report import Figure
from bench.setting import Bench, Site, apart, site

RULES = 1000
RULES_IN_A_POLICY = 10
PORT, CLOSED_PORT, SERVICE_PORT, SERVICE_IP = 5201, 5999, 80, "10.96.0.80"
PAIRS = 21
EXCHANGES, CONNECTIONS = 6000, 2000
RUN_TIMEOUT_S = 60.0
GOAL = 1.05


def measure(bench: Bench) -> Iterator[Figure]:
    program = compile_client()
    core = max(os.sched_getaffinity(0))
    with apart(core), site(manifests()) as place:
        pair = Pair(place, program, core)
        with closing(pair):
            yield from compare(pair, bench.samples(PAIRS))


SHAPES = {"rr": ("one-byte exchange", EXCHANGES), "crr": ("connect, exchange, close", CONNECTIONS)}


def compare(pair: Pair, rounds: int) -> Iterator[Figure]:
    pair.verify()
    target = pair.place.agent.ip(f"{NAMESPACE}/server")
    paths = (("plain", target, PORT), ("ours", target, PORT), ("service", SERVICE_IP, SERVICE_PORT))
    found: dict[tuple[str, str], list[float]] = {}
    for number in range(-1, rounds):
        for path, address, port in paths:
            (pair.detach if path == "plain" else pair.attach)()
            for shape, (_, count) in SHAPES.items():
                took_ns = pair.run(address, port, count, shape)
                if number >= 0:  # the first round warms up
                    found.setdefault((path, shape), []).append(took_ns)
    for path, by, goal in (("ours", "", GOAL), ("service", ", by ClusterIP", None)):
        for shape, (what, _) in SHAPES.items():
            plain, taken = found["plain", shape], found[path, shape]
            ratio = median(a / b for a, b in zip(taken, plain, strict=True))
            note = f"{median(taken) / 1000:.1f} µs, plain {median(plain) / 1000:.1f} µs; both ends on one core"
            yield Figure("roundtrips", f"TCP {what}{by}", ratio, "×", goal, note)


class Pair:
    """Two pods and the hooks of their veths; the server runs."""

    def __init__(self, place: Site, program: Path, core: int) -> None:
        self.place = place
        self._pinned = ("taskset", "-c", str(core), str(program))
        self.client, self.server = (place.agent.netns(f"{NAMESPACE}/{name}") for name in ("client", "server"))
        self._links = [place.agent.endpoint(f"{NAMESPACE}/{name}")["interface"] for name in ("client", "server")]
        self._indexes = [self._index(link) for link in self._links]
        self._programs = ensure_loaded(place.maps, place.agent.instance.pins)
        self._hooks = place.node.call(Hooks, self._programs)
        serving = self.server.popen(*self._pinned, "server", str(PORT), stdout=subprocess.PIPE)
        assert serving.stdout is not None and serving.stdout.readline() == b"listening\n"

    def close(self) -> None:
        self._hooks.close()
        self._programs.close()

    def attach(self) -> None:
        for index in self._indexes:
            self._hooks.attach(index)

    def detach(self) -> None:
        for index, link in zip(self._indexes, self._links, strict=True):
            self._hooks.detach(index)
            self.place.node.run("tc", "qdisc", "del", "dev", link, "clsact")

    def verify(self) -> None:
        """Attached, what no rule allows is dropped; detached, it reaches the closed port and is refused."""
        target = self.place.agent.ip(f"{NAMESPACE}/server")
        assert probes.tcp(self.client, target, CLOSED_PORT, timeout_s=0.3).result == "timeout"
        self.detach()
        assert probes.tcp(self.client, target, CLOSED_PORT, timeout_s=0.3).result == "refused"
        self.attach()
        assert probes.tcp(self.client, target, CLOSED_PORT, timeout_s=0.3).result == "timeout"

    def run(self, address: str, port: int, count: int, shape: str) -> float:
        """The median exchange of a run, in ns."""
        words = (*self._pinned, "client", address, str(port), str(count), shape)
        return float(self.client.run(*words, timeout_s=RUN_TIMEOUT_S).stdout.split()[0])

    def _index(self, link: str) -> int:
        return int(self.place.node.run("ip", "-o", "link", "show", "dev", link).stdout.partition(":")[0])


def manifests() -> Iterator[tuple[str, Document]]:
    """Half the rules judge what the server receives, half what the client sends; one of each lets the bench pass."""
    pods = [cluster.pod(NAMESPACE, name, {"app": name}) for name in ("client", "server")]
    yield from cluster.files("pods", "Pod", pods)
    half = range(RULES // RULES_IN_A_POLICY // 2)
    judged = [
        *(_policy("server", n, policyTypes=["Ingress"], ingress=rules("from", "client", n)) for n in half),
        *(_policy("client", n, policyTypes=["Egress"], egress=rules("to", "server", n)) for n in half),
    ]
    yield from cluster.files("policies", "NetworkPolicy", judged)
    yield "service.json", {
        "apiVersion": "v1",
        "kind": "Service",
        "metadata": {"namespace": NAMESPACE, "name": "server"},
        "spec": {
            "clusterIP": SERVICE_IP, "selector": {"app": "server"},
            "ports": [{"port": SERVICE_PORT, "targetPort": PORT}],
        },
    }  # fmt: skip


def _policy(app: str, number: int, **spec: Any) -> Document:
    return cluster.policy(NAMESPACE, f"{app}-{number}", {"app": app}, **spec)


def rules(side: str, app: str, number: int) -> list[Document]:
    """Rules about ports of their own, half of them for the other pod and half for addresses outside."""
    first = PORT + 1000 + number * RULES_IN_A_POLICY
    ports = [PORT if number == 0 and n == 0 else first + n for n in range(RULES_IN_A_POLICY)]
    outside = {"ipBlock": {"cidr": f"198.51.{number}.0/24"}}
    inside = {"podSelector": {"matchLabels": {"app": app}}}
    return [
        {side: [outside if n % 2 else inside], "ports": [{"protocol": "TCP", "port": port}]}
        for n, port in enumerate(ports)
    ]


def compile_client() -> Path:
    source = Path(__file__).with_name("rr.c")
    program = Path("build/rr").absolute()
    program.parent.mkdir(exist_ok=True)
    subprocess.run(["gcc", "-O2", "-Wall", "-o", str(program), str(source)], check=True)
    return program

"""Round trips pod → pod: through Gatehouse with 1,000 rules in force, against plain kernel routing.

Two pairs of pods on one node; off the veths of the plain pair the programs and their qdisc are taken. Clients of all
paths stand ready and take short turns: plain, Gatehouse, plain, … A turn is one connection of one-byte exchanges (rr),
or a connection for each (crr), and its figure is its median. The ratio is the median over the rounds. A machine that
is slowed down from outside is slow for many turns in a row, and so is what a ratio compares.

Both ends are pinned to one core: the path is the same, but for waking another core, which on virtual machines takes
several times as long as the path and varies by more than what is to be seen. Each client has a cgroup of its own, as a
pod's processes have: the scheduler's work at changing from one to another is no part of the path.
"""

from __future__ import annotations

import os
import subprocess
from collections.abc import Iterable, Iterator, Mapping
from contextlib import ExitStack, contextmanager
from pathlib import Path
from statistics import median
from typing import Any

import msgspec
import probes
from agents import Document

from agent.datapath.mounts import ensure_cgroup2
from agent.endpoints import cgroups
from bench import cluster
from bench.cluster import NAMESPACE
from bench.report import Figure
from bench.setting import Bench, Site, apart, site, without_programs

RULES = 1000
RULES_IN_A_POLICY = 10
PORT, CLOSED_PORT, SERVICE_PORT, SERVICE_IP = 5201, 5999, 80, "10.96.0.80"
PODS = ("client", "server", "plain-client", "plain-server")
ROUNDS = 600
WARM_UP = 5
GOAL = 1.05


class Shape(msgspec.Struct, frozen=True):
    what: str
    count: int
    """In a turn, which so takes some 5 ms."""


SHAPES = {
    "rr": Shape("one-byte exchange", 300),
    "crr": Shape("connect, exchange, close", 50),
    "connect": Shape("connect() alone", 100),
}
PATHS = ("plain", "ours", "service")


def measure(bench: Bench) -> Iterator[Figure]:
    core = max(os.sched_getaffinity(0))
    with apart(core), site(manifests()) as place, Pairs(place, compile_client(), core) as pairs:
        for name in ("rr", "crr"):
            found = pairs.compare(PATHS, name, bench.samples(ROUNDS))
            for path, by, goal in (("ours", "", GOAL), ("service", ", by ClusterIP", None)):
                yield figure("roundtrips", f"TCP {SHAPES[name].what}{by}", found, path, goal)


def figure(measured: str, name: str, found: Mapping[str, list[float]], path: str, goal: float | None) -> Figure:
    plain, taken = found["plain"], found[path]
    ratio = median(a / b for a, b in zip(taken, plain, strict=True))
    note = f"{median(taken) / 1000:.1f} µs, plain {median(plain) / 1000:.1f} µs; both ends on one core"
    return Figure(measured, name, ratio, "×", goal, note)


class Pairs:
    """The two pairs of pods. Both servers run."""

    def __init__(self, place: Site, program: Path, core: int) -> None:
        agent = place.agent
        self._place = place
        self._pinned = ("taskset", "-c", str(core), str(program))
        self._pods = {name: agent.netns(f"{NAMESPACE}/{name}") for name in PODS}
        for name in ("server", "plain-server"):
            serving = self._pods[name].popen(*self._pinned, "server", str(PORT), stdout=subprocess.PIPE)
            assert serving.stdout is not None and serving.stdout.readline() == b"listening\n"
        self._cgroup = ensure_cgroup2() / f"gatehouse-bench-{os.getpid()}" / "bench"
        server = agent.ip(f"{NAMESPACE}/server")
        self._targets = {
            "plain": (agent.ip(f"{NAMESPACE}/plain-server"), PORT),
            "ours": (server, PORT),
            "service": (SERVICE_IP, SERVICE_PORT),
            "socket": (SERVICE_IP, SERVICE_PORT),
        }
        without_programs(self._place, [f"{NAMESPACE}/plain-client", f"{NAMESPACE}/plain-server"])
        self._verify()

    def __enter__(self) -> Pairs:
        return self

    def __exit__(self, *_: object) -> None:
        cgroups.remove_tree(self._cgroup)

    def compare(self, paths: Iterable[str], shape: str, rounds: int) -> dict[str, list[float]]:
        """Of each path the median of each turn, in ns."""
        with ExitStack() as stack:
            clients = {path: stack.enter_context(self._client(path, shape)) for path in paths}
            found: dict[str, list[float]] = {path: [] for path in clients}
            for _ in range(WARM_UP + rounds):
                for path, client in clients.items():
                    found[path].append(_turn(client))
        return {path: taken[WARM_UP:] for path, taken in found.items()}

    @contextmanager
    def _client(self, path: str, shape: str) -> Iterator[subprocess.Popen[bytes]]:
        """Of path "socket": a process of the pod, in whose cgroup the socket programs are. Of others: in a cgroup that
        has none, as far down."""
        address, port = self._targets[path]
        words = (*self._pinned, "client", address, str(port), str(SHAPES[shape].count), shape)
        pipes: dict[str, Any] = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE}
        agent = self._place.agent
        if path == "socket":
            client = subprocess.Popen(
                agent.command("exec", f"{NAMESPACE}/client", "--", *words), env=agent.env, **pipes
            )
        else:
            folder = self._cgroup / "pods" / path
            folder.mkdir(parents=True, exist_ok=True)
            join = ("sh", "-c", f'echo $$ > {folder}/{cgroups.PROCESSES} && exec "$@"', "sh")
            client = self._pods["plain-client" if path == "plain" else "client"].popen(*join, *words, **pipes)
        with client:  # the end of its input is its own
            yield client

    def _verify(self) -> None:
        """What no rule allows is dropped; of the plain pair it reaches the closed port and is refused."""
        for client, server, result in (("client", "server", "timeout"), ("plain-client", "plain-server", "refused")):
            target = self._place.agent.ip(f"{NAMESPACE}/{server}")
            found = probes.tcp(self._pods[client], target, CLOSED_PORT, timeout_s=0.3)
            assert found.result == result, (client, found)


def _turn(client: subprocess.Popen[bytes]) -> float:
    assert client.stdin is not None and client.stdout is not None
    client.stdin.write(b".")
    client.stdin.flush()
    return float(client.stdout.readline())


def manifests() -> Iterator[tuple[str, Document]]:
    """Half the rules judge what the server receives, half what the client sends; one of each lets the bench pass."""
    pods = [cluster.pod(NAMESPACE, name, {"app": name}) for name in PODS]
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

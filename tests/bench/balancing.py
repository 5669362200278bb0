"""A connection through a service, pod → ClusterIP → pod, among 10 to 50,000 services, against plain kernel routing.

As in bench.roundtrips: the same two pods, interleaved runs, one core; for the plain runs nothing is attached to the
veths and the client dials the server itself. "tc": the client is a process that the socket hooks do not see, so its
packets are translated. "socket": it runs in the pod's cgroup, where the connection is translated once.
"""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import closing
from statistics import median

from agents import Document

from bench import cluster, roundtrips
from bench.cluster import NAMESPACE
from bench.report import Figure
from bench.roundtrips import PORT, SERVICE_IP, SERVICE_PORT, Pair
from bench.setting import Bench, apart, site

SIZES = (10, 1_000, 10_000, 50_000)
ROUNDS = 11
GOALS = {"tc": 1.10, "socket": 1.00}
SHAPES = {"crr": ("connect, request, response, close", 2000), "connect": ("connect() alone", 2000)}
JUDGED = "crr"


def measure(bench: Bench) -> Iterator[Figure]:
    program = roundtrips.compile_client()
    core = max(os.sched_getaffinity(0))
    for size in SIZES[:1] if bench.quick else SIZES:
        with apart(core), site(manifests(size)) as place, closing(InPod(place, program, core)) as pair:
            yield from compare(pair, size, bench.samples(ROUNDS))


class InPod(Pair):
    def run_in_pod(self, address: str, port: int, count: int, shape: str) -> float:
        """As `run`, by a process that belongs to the pod."""
        words = (*self._pinned, "client", address, str(port), str(count), shape)
        done = self.place.agent.cli("exec", f"{NAMESPACE}/client", "--", *words, check=True)
        return float(done.stdout.split()[0])


def compare(pair: InPod, size: int, rounds: int) -> Iterator[Figure]:
    pair.verify()
    target = pair.place.agent.ip(f"{NAMESPACE}/server")
    found: dict[tuple[str, str], list[float]] = {}
    for number in range(-1, rounds):
        for shape, (_, count) in SHAPES.items():
            pair.detach()
            took = {"plain": pair.run(target, PORT, count, shape)}
            pair.attach()
            took["tc"] = pair.run(SERVICE_IP, SERVICE_PORT, count, shape)
            took["socket"] = pair.run_in_pod(SERVICE_IP, SERVICE_PORT, count, shape)
            if number >= 0:  # the first round warms up
                for path, took_ns in took.items():
                    found.setdefault((path, shape), []).append(took_ns)
    for path, goal in GOALS.items():
        for shape, (what, _) in SHAPES.items():
            plain, taken = found["plain", shape], found[path, shape]
            ratio = median(a / b for a, b in zip(taken, plain, strict=True))
            note = f"{median(taken) / 1000:.1f} µs, plain {median(plain) / 1000:.1f} µs"
            name = f"{what} by {path}, {size:,} services"
            yield Figure("balancing", name, ratio, "×", goal if shape == JUDGED else None, note)


def manifests(size: int) -> Iterator[tuple[str, Document]]:
    yield from roundtrips.manifests()
    yield from cluster.files("namespaces", "Namespace", cluster.namespaces())
    yield from cluster.load_balancing(size)

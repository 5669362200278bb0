"""A connection through a service, pod → ClusterIP → pod, among 10 to 50,000 services, against plain kernel routing.

As in bench.roundtrips: two pairs of pods, clients by turns, one core; the plain client dials its server itself.
"tc": the client is a process that the socket hooks do not see, so its packets are translated. "socket": it runs in the
pod's cgroup, where the connection is translated once.
"""

from __future__ import annotations

import os
from collections.abc import Iterator

from agents import Document

from bench import cluster, roundtrips
from bench.report import Figure
from bench.roundtrips import SHAPES, Pairs
from bench.setting import Bench, apart, site

SIZES = (10, 1_000, 10_000, 50_000)
ROUNDS = 250
PATHS = {"tc": "service", "socket": "socket"}
GOALS = {("tc", "crr"): 1.10, ("socket", "crr"): 1.00}


def measure(bench: Bench) -> Iterator[Figure]:
    program = roundtrips.compile_client()
    core = max(os.sched_getaffinity(0))
    for size in SIZES[:1] if bench.quick else SIZES:
        with apart(core), site(manifests(size)) as place, Pairs(place, program, core) as pairs:
            yield from compare(pairs, size, bench.samples(ROUNDS))


def compare(pairs: Pairs, size: int, rounds: int) -> Iterator[Figure]:
    for shape in ("crr", "connect"):
        found = pairs.compare(("plain", *PATHS.values()), shape, rounds)
        for way, path in PATHS.items():
            name = f"{SHAPES[shape].what} by {way}, {size:,} services"
            yield roundtrips.figure("balancing", name, found, path, GOALS.get((way, shape)))


def manifests(size: int) -> Iterator[tuple[str, Document]]:
    yield from roundtrips.manifests()
    yield from cluster.files("namespaces", "Namespace", cluster.namespaces())
    yield from cluster.load_balancing(size)

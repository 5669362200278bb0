"""Services at scale: 10,000 with 5 backends each, from files to the kernel, and one backend changed at that size.

Seen from outside by looking at the pinned maps. The files appear as a directory that is renamed into the manifests'; a
service is there when its frontend has an entry with its backends (which are written before), so the last one found
ends the clock. For the change a slice in a file of its own is replaced, and its frontend watched for another pool.
"""

from __future__ import annotations

import time
from collections.abc import Iterator
from pathlib import Path
from statistics import median

import msgspec

from agent.datapath import abi
from agent.datapath.maps import Map
from bench import cluster
from bench.report import Figure, quantile
from bench.setting import Bench, site, wait_for
from policies.address import parse_address

ABI = abi.load()
KEY, VALUE, BACKEND = (ABI.records[name] for name in ("service_key", "service_value", "backend_key"))
TCP = 6
CHANGES = 200
LOADS = 3
GOAL_LOAD_S, GOAL_CHANGE_MS = 3.0, 5.0


def measure(bench: Bench) -> Iterator[Figure]:
    loads = [load() for _ in range(1 if bench.quick else LOADS)]
    note = f"median of {len(loads)} loads; files written before, renamed into place"
    yield Figure("services", "10,000 services × 5 backends, files → kernel", median(loads), "s", GOAL_LOAD_S, note)
    took = list(changes(bench, bench.samples(CHANGES)))
    yield Figure("services", "one backend changes, p50", quantile(took, 0.5), "ms", GOAL_CHANGE_MS)
    yield Figure("services", "one backend changes, p99", quantile(took, 0.99), "ms", GOAL_CHANGE_MS, f"of {len(took)}")


def load() -> float:
    """Seconds."""
    with site(cluster.files("namespaces", "Namespace", cluster.namespaces())) as place:
        fresh = place.agent.manifests / ".services"
        write(fresh)
        pending = [key(number) for number in range(cluster.SERVICES)]
        started_ns = time.monotonic_ns()
        fresh.rename(place.agent.manifests / "services")

        def all_there() -> bool:
            while pending and backends(place.maps["services"], pending[-1]) == cluster.BACKENDS:
                pending.pop()
            return not pending

        ended_ns = wait_for(all_there, "every service is in the kernel")
        return (ended_ns - started_ns) / 1e9


def write(folder: Path) -> None:
    folder.mkdir()
    for name, document in cluster.load_balancing():
        (folder / name).write_bytes(msgspec.json.encode(document))


def changes(bench: Bench, count: int) -> Iterator[float]:
    """Milliseconds each."""
    place = bench.large()
    services, changed = place.maps["services"], key(0)
    for version in range(1, count + 1):
        before = services.lookup(changed)
        started_ns = place.put("slice-0.json", cluster.endpoint_slice(0, version))
        ended_ns = wait_for(lambda before=before: services.lookup(changed) != before, "the backend has changed")  # type: ignore[misc]
        assert backends(services, changed) == cluster.BACKENDS
        yield (ended_ns - started_ns) / 1e6
    place.agent.settle()


def key(number: int) -> bytes:
    return KEY.pack_values(parse_address(cluster.cluster_ip(number)), abi.be16(80), TCP)


def backends(services: Map, frontend: bytes) -> int:
    value = services.lookup(frontend)
    return 0 if value is None else int(VALUE.unpack(value).count_inside)

"""Services at the largest: 50,000 with 5 backends each, and 5,000 with 50 each.

The cold start is that of the agent: from its command line until the last frontend is in the kernel, the datapath
compiled and loaded on the way. Then, at 50,000: one endpoint changed (as in bench.services), a service created until a
connection to it succeeds, and what the agent holds in memory.
"""

from __future__ import annotations

import shutil
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import msgspec
import probes
import rig
from agents import Document, RunningAgent

from agent.datapath.bpf import NoEntry
from agent.datapath.maps import Maps
from bench import cluster
from bench.memory import field
from bench.report import Figure, quantile
from bench.services import backends, key
from bench.setting import Bench, Site, check, wait_for

SHAPES = ((50_000, 5), (5_000, 50))
GOAL_LOAD_S, GOAL_CHANGE_MS, GOAL_CREATED_MS, GOAL_MB = 15.0, 10.0, 20.0, 250.0
CHANGES, CREATED = 100, 100
LOAD_S = 180.0
PORT = 5201
POLL_S = 0.05
IDLE_S, IDLE_CPU = 0.5, 0.1
"""An agent is idle if for so long it has used less than this part of a CPU."""
CONNECT_S = 0.005
"""A connection that is refused or unanswered for so long is tried again."""


def measure(bench: Bench) -> Iterator[Figure]:
    for services, members in SHAPES:
        with started(services, members) as (place, took_s):
            name = f"{services:,} services × {members} backends, cold start"
            note = f"agent's command → last frontend in the kernel; {place.cpu_s:.1f} s of CPU"
            yield Figure("scale", name, took_s, "s", GOAL_LOAD_S, note)
            wait_until_idle(place)
            used_s = place.cpu_s
            changed = list(changes(place, members, bench.samples(CHANGES)))
            note = f"{(place.cpu_s - used_s) / len(changed) * 1000:.1f} ms of CPU each"
            at = f"of {services:,} × {members}"
            yield Figure("scale", f"one endpoint {at} changes, p50", quantile(changed, 0.5), "ms", GOAL_CHANGE_MS, note)
            yield Figure("scale", f"one endpoint {at} changes, p99", quantile(changed, 0.99), "ms", GOAL_CHANGE_MS)
            if members == SHAPES[0][1]:
                created = list(first_connects(place, bench.samples(CREATED)))
                note = f"p50 {quantile(created, 0.5):.1f} ms, of {len(created)}"
                what = "service created → first connection, p99"
                yield Figure("scale", what, quantile(created, 0.99), "ms", GOAL_CREATED_MS, note)
                began = time.monotonic()
                place.agent.cli("services", check=True)
                yield Figure("scale", f"`gatehouse services` at {services:,}", time.monotonic() - began, "s")
            resident = field(place.pid, "status", "VmRSS")
            yield Figure("scale", f"agent with {services:,} × {members}, resident", resident, "MB", GOAL_MB)


@contextmanager
def started(services: int, members: int) -> Iterator[tuple[Site, float]]:
    """An agent in front of that many services, and a client and a server pod; seconds it took."""
    folder = Path(tempfile.mkdtemp(prefix="gatehouse-bench-"))
    try:
        with rig.Node() as node, RunningAgent(node, folder) as agent:
            for name, document in manifests(services, members):
                (agent.manifests / name).write_bytes(msgspec.json.encode(document))
            began = time.monotonic()
            agent.start("--pod-cidrs", cluster.POD_CIDRS, "--service-cidrs", cluster.SERVICE_CIDRS, settle=False)
            with _maps(agent) as maps:
                ended_ns = wait_for_services(maps, services, members)
                agent.settle(LOAD_S)
                check(agent)
                yield Site(node, agent, maps), ended_ns / 1e9 - began
    finally:
        shutil.rmtree(folder, ignore_errors=True)


def manifests(services: int, members: int) -> Iterator[tuple[str, Document]]:
    yield from cluster.files("namespaces", "Namespace", cluster.namespaces())
    yield from cluster.load_balancing(services, members)
    pods = [cluster.pod(cluster.NAMESPACE, name, {"app": name}) for name in ("client", "server")]
    yield from cluster.files("pods", "Pod", pods)


@contextmanager
def _maps(agent: RunningAgent) -> Iterator[Maps]:
    """The agent's maps, as soon as they are pinned."""
    deadline = time.monotonic() + LOAD_S
    maps: Maps | None = None
    while maps is None:
        try:
            maps = Maps.open_pinned(agent.instance.pins.maps)
        except NoEntry:
            assert time.monotonic() < deadline, agent.log()
            time.sleep(POLL_S)
    with maps:
        yield maps


def wait_for_services(maps: Maps, services: int, members: int) -> int:
    pending = [key(number) for number in range(services)]

    def all_there() -> bool:
        while pending and backends(maps["services"], pending[-1]) == members:
            pending.pop()
        return not pending

    return wait_for(all_there, "every service is in the kernel", LOAD_S)


def wait_until_idle(place: Site) -> None:
    """Until what an agent does after a start (names for the flows process, what serves whom) is done."""
    used_s = -1.0
    while (now_s := place.cpu_s) - used_s > IDLE_CPU * IDLE_S:
        used_s = now_s
        time.sleep(IDLE_S)


def changes(place: Site, members: int, count: int) -> Iterator[float]:
    """Milliseconds each."""
    services, changed = place.maps["services"], key(0)
    for version in range(1, count + 1):
        before = services.lookup(changed)
        document = cluster.endpoint_slice(0, version, backends=members)
        started_ns = place.put(cluster.SLICE_FILE, document)
        ended_ns = wait_for(lambda before=before: services.lookup(changed) != before, "the backend has changed")  # type: ignore[misc]
        yield (ended_ns - started_ns) / 1e6
    place.agent.settle()


def first_connects(place: Site, count: int) -> Iterator[float]:
    """Milliseconds from the manifest's appearance until a pod's connection through the service succeeds."""
    client, server = (place.agent.netns(f"{cluster.NAMESPACE}/{name}") for name in ("client", "server"))
    serving = probes.Server(server, "tcp", PORT)
    with serving:
        for number in range(count):
            address = f"10.111.{number >> 8}.{number & 255}"
            document = _service(number, address)
            started_ns = place.put(f"created-{number}.json", document)
            deadline = time.monotonic() + 10
            while (answer := probes.tcp(client, address, 80, timeout_s=CONNECT_S)).result != "ok":
                assert time.monotonic() < deadline, answer
            yield (time.monotonic_ns() - started_ns) / 1e6


def _service(number: int, address: str) -> Document:
    return {
        "apiVersion": "v1",
        "kind": "Service",
        "metadata": {"namespace": cluster.NAMESPACE, "name": f"created-{number}"},
        "spec": {
            "clusterIP": address, "selector": {"app": "server"}, "ports": [{"port": 80, "targetPort": PORT}],
        },
    }  # fmt: skip

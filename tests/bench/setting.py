"""Where measures run: agents in scratch nodes, one of them in front of the whole cluster of bench.cluster."""

from __future__ import annotations

import os
import shutil
import tempfile
import time
from collections.abc import Callable, Iterable, Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path

import msgspec
import rig
from agents import Document, RunningAgent

from agent.datapath.maps import Maps
from agent.datapath.programs import ensure_loaded
from agent.datapath.tc import Hooks
from bench import cluster

START_S = 120.0
WAIT_S = 20.0
POLL_S = 50e-6
"""Between two looks: what a look costs is not to be taken from the agent, what it adds is a tenth of a millisecond."""


class Site:
    """An agent, its node, and its maps as seen from outside."""

    def __init__(self, node: rig.Node, agent: RunningAgent, maps: Maps) -> None:
        self.node = node
        self.agent = agent
        self.maps = maps

    @property
    def pid(self) -> int:
        assert self.agent.process is not None
        return self.agent.process.pid

    @property
    def cpu_s(self) -> float:
        """What the agent's process has used by now, in user mode and in the kernel."""
        fields = Path(f"/proc/{self.pid}/stat").read_text().rpartition(")")[2].split()
        return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")

    def put(self, file: str, document: Document) -> int:
        """Have a manifest appear, whole; when it did (CLOCK_MONOTONIC, ns)."""
        fresh = self.agent.manifests / f".{file}.new"
        fresh.write_bytes(msgspec.json.encode(document))
        now_ns = time.monotonic_ns()
        fresh.rename(self.agent.manifests / file)
        return now_ns


class Bench:
    """`quick`: fewer samples. `say`: progress, a line at a time."""

    def __init__(self, quick: bool, say: Callable[[str], None]) -> None:
        self.quick = quick
        self.say = say
        self._undo = ExitStack()
        self._large: Site | None = None
        self.large_start_s = 0.0

    def __enter__(self) -> Bench:
        return self

    def __exit__(self, *_: object) -> None:
        self._undo.close()

    def samples(self, wanted: int) -> int:
        return max(3, wanted // 10) if self.quick else wanted

    def large(self) -> Site:
        """The whole cluster; started once, for all measures that need it."""
        if self._large is None:
            self.say("starting an agent with 200 pods, 5,000 identities, 5,000 policies and 10,000 services")
            started = time.monotonic()
            self._large = self._undo.enter_context(site(cluster.large()))
            self.large_start_s = time.monotonic() - started
        return self._large


@contextmanager
def site(files: Iterable[tuple[str, Document]], *flags: str) -> Iterator[Site]:
    """An agent that has realized these manifests."""
    folder = Path(tempfile.mkdtemp(prefix="gatehouse-bench-"))
    try:
        with rig.Node() as node, RunningAgent(node, folder, *flags) as agent:
            for name, document in files:
                (agent.manifests / name).write_bytes(msgspec.json.encode(document))
            agent.start("--pod-cidrs", cluster.POD_CIDRS, "--service-cidrs", cluster.SERVICE_CIDRS, settle=False)
            agent.settle(START_S)
            check(agent)
            with Maps.open_pinned(agent.instance.pins.maps) as maps:
                yield Site(node, agent, maps)
    finally:
        shutil.rmtree(folder, ignore_errors=True)


def check(agent: RunningAgent) -> None:
    """A figure of an agent that is not well means nothing."""
    status = agent.status()
    if status["state"] != "ready" or status["problems"] or status["map_full"]:
        raise AssertionError(f"the agent is {status['state']}: {status['reasons']} {status['problems'][:3]}")


def without_programs(place: Site, pods: Iterable[str]) -> None:
    """Take the programs and their qdisc off the veths of these pods (NAMESPACE/NAME): plain routing is left."""
    with ensure_loaded(place.maps, place.agent.instance.pins) as programs:
        hooks = place.node.call(Hooks, programs)
        for pod in pods:
            link = place.agent.endpoint(pod)["interface"]
            hooks.detach(int(place.node.run("ip", "-o", "link", "show", "dev", link).stdout.partition(":")[0]))
            place.node.run("tc", "qdisc", "del", "dev", link, "clsact")
        hooks.close()


def wait_for(condition: Callable[[], bool], what: str, timeout_s: float = WAIT_S) -> int:
    """When the condition was first seen to hold (CLOCK_MONOTONIC, ns)."""
    deadline = time.monotonic() + timeout_s
    while not condition():
        if time.monotonic() > deadline:
            raise AssertionError(f"not within {timeout_s:g} s: {what}")
        time.sleep(POLL_S)
    return time.monotonic_ns()


@contextmanager
def apart(core: int) -> Iterator[None]:
    """This process keeps off a core."""
    before = os.sched_getaffinity(0)
    os.sched_setaffinity(0, before - {core} or before)
    try:
        yield
    finally:
        os.sched_setaffinity(0, before)

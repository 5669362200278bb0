"""The DNS proxy: what a query costs, and by how much it is later than without.

One pod asks a resolver outside for 200 names that a rule allows and toFQDNs rules name, so every answer is read and its
addresses looked up; the resolver's TTLs run down, so answers change each second. The proxy has one core. Without the
proxy the same packets are routed through the same node.
"""

from __future__ import annotations

import os
import sys
import tempfile
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from pathlib import Path
from statistics import median

import msgspec
import rig
from dns_site import DnsSite
from small_datapath import SMALL_SIZES

from agent.api import client
from agent.api.protocol import ApiError
from agent.datapath.maps import Maps
from agent.datapath.pins import Pins
from agent.dns import configuration
from agent.dns.configuration import Configuration, Listening, Standing
from bench.dnsload import Seen
from bench.report import Figure, quantile
from bench.setting import Bench
from policies.l7 import NamePattern

PORT = 14001
PROXY_CPU, CLIENT_CPU, RESOLVER_CPU = 1, 2, 3
RATE = 5000
COUNT, WINDOW = 25_000, 64
ROUNDS = 3
GOAL_ADDED_MS = 5.0
GOAL_CPU_US = 1e6 / RATE
NAMES = NamePattern(pattern="*.team.example")
TESTS = Path(__file__).resolve().parents[1]


def measure(bench: Bench) -> Iterator[Figure]:
    bench.say("DNS: one pod, one resolver, without and with the proxy")
    with ExitStack() as stack:
        place = Place(stack)
        count = COUNT // 5 if bench.quick else COUNT
        bare = [place.ask(RATE, count) for _ in range(ROUNDS)]
        place.start()
        place.ask(RATE, count // 5)  # all names are learned now
        through = [place.ask(RATE, count) for _ in range(ROUNDS)]
        full, cpu_us = zip(*(place.spent(lambda: place.ask(0, count)) for _ in range(ROUNDS)), strict=True)
        counted = place.status()
    for share, goal in ((0.5, None), (0.99, GOAL_ADDED_MS)):
        before, after = (median(quantile(seen.latency_us, share) for seen in found) / 1e3 for found in (bare, through))
        note = f"{before:.3f} ms without, {after:.3f} ms with; {RATE} queries/s"
        yield Figure("dns", f"added by the proxy, p{share * 100:.0f}", after - before, "ms", goal, note)
    rates = [seen.answered / seen.took_s for seen in full]
    note = f"{median(rates):.0f} queries/s with {WINDOW} under way"
    yield Figure("dns", "CPU time of the proxy for one query", median(cpu_us), "µs", GOAL_CPU_US, note)
    asked, answered = (sum(getattr(seen, field) for seen in (*through, *full)) for field in ("asked", "answered"))
    yield Figure("dns", "queries without an answer", asked - answered, "", 0, f"of {asked}; {counted}")


class Place:
    def __init__(self, stack: ExitStack) -> None:
        self._stack = stack
        self._site = stack.enter_context(DnsSite())
        self._state = Path(stack.enter_context(tempfile.TemporaryDirectory()))
        command = self._on(RESOLVER_CPU, "-m", "bench.dnsload", "resolver", rig.OUTSIDE_V4)
        ends = self._site.outside.popen(*command, stdout=-1, cwd=TESTS, env=_environment())
        assert ends.stdout is not None and ends.stdout.readline() == b"ready\n", "the resolver did not start"

    def start(self) -> None:
        """The proxy, and the pod's way through it."""
        pins = Pins.of(f"bench-dns-{os.getpid()}")
        self._stack.callback(pins.remove)
        self._stack.enter_context(Maps.open_or_create(pins.maps, SMALL_SIZES))
        served = {f"{1:016x}": Listening((NAMES,), PORT)}
        # The addresses count as the cluster's, which nobody has to enter into the kernel: that is the agent's time.
        standing = Standing(inside=("198.51.100.0/24", "203.0.113.0/24"))
        configuration.save(self._state / configuration.FILE, Configuration(served, (NAMES,), standing))
        command = self._on(
            PROXY_CPU, "-m", "agent.dns.process", "--state-dir", str(self._state), "--pin-dir", str(pins.maps)
        )
        self._proxy = self._site.node.popen(*command)
        rig.wait_until(self._runs, 20, "the proxy answers")
        self._site.redirect(PORT)

    def ask(self, rate: int, count: int) -> Seen:
        words = ("-m", "bench.dnsload", "client", rig.OUTSIDE_V4, str(rate), str(count), str(WINDOW))
        run = self._site.pod.run(*self._on(CLIENT_CPU, *words), timeout_s=60, cwd=TESTS, env=_environment())
        return msgspec.json.decode(run.stdout, type=Seen)

    def spent(self, load: Callable[[], Seen]) -> tuple[Seen, float]:
        """What the proxy's process used for each query, in microseconds."""
        before = self._cpu_s()
        seen = load()
        return seen, (self._cpu_s() - before) / seen.asked * 1e6

    def status(self) -> str:
        found = client.call(self._state / "dns.sock", "status")
        return ", ".join(f"{number} {what}" for what, number in found["queries"].items() if number)

    def _runs(self) -> bool:
        try:
            return bool(client.call(self._state / "dns.sock", "status"))
        except ApiError:
            return False

    def _cpu_s(self) -> float:
        fields = Path(f"/proc/{self._proxy.pid}/stat").read_text().rpartition(")")[2].split()
        return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")

    def _on(self, cpu: int, *words: str) -> list[str]:
        """On a core of its own, where there are as many."""
        cores = sorted(os.sched_getaffinity(0))
        return ["taskset", "-c", str(cores[cpu % len(cores)]), sys.executable, *words]


def _environment() -> dict[str, str]:
    return os.environ | {"PYTHONPATH": f"{TESTS.parent}:{TESTS}"}

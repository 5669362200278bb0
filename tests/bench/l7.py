"""HTTP rules by Envoy: requests through a policy, against a plain Envoy with the same filter, and with nothing between.

Two pairs of pods on one node. One is judged at the receiver by a CiliumNetworkPolicy. Off the veths of the other the
programs are taken; its client talks to an Envoy in the node that was written by hand: a listener with the same rule,
which connects on to the server. Paths take short turns; a ratio is the median over the rounds. Then: how long a policy
that changes takes until the datapath judges by it, and how many listeners many pods with few rule sets make.
"""

from __future__ import annotations

import json
import subprocess
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from statistics import median
from typing import Any

import rig
from agents import Document
from web import fetch

from bench import cluster
from bench.cluster import NAMESPACE
from bench.report import Figure, quantile
from bench.setting import Bench, Site, site, wait_for, without_programs
from l7proxy.envoy import binary

PORT, PLAIN_PORT = 8080, 18080
PODS = ("client", "server", "plain-client", "plain-server")
PATH, RULE = "/bench/a", "/bench/.*"
CONNECTIONS = 16
REQUESTS = 2000
ROUNDS = 40
THREADS = 2
RULE_SETS, CHANGES = 500, 100
MANY_PODS, FEW_SETS = 1000, 10
PATHS = ("bare", "plain", "ours")


def measure(bench: Bench) -> Iterator[Figure]:
    with site(manifests(), "--envoy-threads", str(THREADS)) as place, Web(place) as web:
        found = web.compare(bench.samples(ROUNDS))
        yield from requests(found)
    yield from changes(bench)
    yield from sharing()


def requests(found: dict[str, list[tuple[float, float, float]]]) -> Iterator[Figure]:
    rate = {path: median(REQUESTS / taken[0] for taken in rounds) for path, rounds in found.items()}
    pairs = list(zip(found["plain"], found["ours"], strict=True))
    slower = median(ours[0] / plain[0] for plain, ours in pairs)
    note = f"{rate['ours']:.0f}/s, plain Envoy {rate['plain']:.0f}/s, nothing between {rate['bare']:.0f}/s"
    yield Figure("l7", "HTTP, time for requests against plain Envoy", slower, "×", 1 / 0.9, note)
    p99 = {path: median(taken[2] for taken in rounds) for path, rounds in found.items()}
    ratio = median(ours[2] / plain[2] for plain, ours in pairs)
    note = f"p99 {p99['ours']:.0f} µs, plain Envoy {p99['plain']:.0f} µs, nothing between {p99['bare']:.0f} µs"
    yield Figure("l7", "HTTP, p99 of the latency against plain Envoy", ratio, "×", 1.15, note)


class Web:
    """The pairs of pods, both servers, and the plain Envoy."""

    def __init__(self, place: Site) -> None:
        self._place = place
        self._undo = ExitStack()
        self._program = compile_program()
        self._pods = {name: place.agent.netns(f"{NAMESPACE}/{name}") for name in PODS}
        self._ip = {name: place.agent.ip(f"{NAMESPACE}/{name}") for name in PODS}

    def __enter__(self) -> Web:
        for name in ("server", "plain-server"):
            serving = self._pods[name].popen(str(self._program), "server", str(PORT), stdout=subprocess.PIPE)
            assert serving.stdout is not None and serving.stdout.readline() == b"listening\n"
        self._place.agent.await_listeners()
        without_programs(self._place, [f"{NAMESPACE}/plain-client", f"{NAMESPACE}/plain-server"])
        self._start_plain_envoy()
        self._verify()
        return self

    def __exit__(self, *_: object) -> None:
        self._undo.close()

    def compare(self, rounds: int) -> dict[str, list[tuple[float, float, float]]]:
        """Of each path and round: seconds, p50 and p99 in µs."""
        found: dict[str, list[tuple[float, float, float]]] = {path: [] for path in PATHS}
        with ExitStack() as stack:
            clients = {path: stack.enter_context(self._client(path)) for path in PATHS}
            for _ in range(2 + rounds):
                for path, client in clients.items():
                    found[path].append(_turn(client))
        return {path: taken[2:] for path, taken in found.items()}

    def _target(self, path: str) -> tuple[str, str, int]:
        """The pod that asks, the address and the port."""
        return {
            "bare": ("plain-client", self._ip["plain-server"], PORT),
            "plain": ("plain-client", rig.NODE_V4, PLAIN_PORT),
            "ours": ("client", self._ip["server"], PORT),
        }[path]

    @contextmanager
    def _client(self, path: str) -> Iterator[subprocess.Popen[bytes]]:
        pod, address, port = self._target(path)
        words = (str(self._program), "client", address, str(port), PATH, str(CONNECTIONS), str(REQUESTS))
        with self._pods[pod].popen(*words, stdin=subprocess.PIPE, stdout=subprocess.PIPE) as client:
            yield client

    def _verify(self) -> None:
        for path, refused in (("bare", 200), ("plain", 403), ("ours", 403)):
            pod, address, port = self._target(path)
            for url, status in ((PATH, 200), ("/other", refused)):
                got = fetch(self._pods[pod], address, port, url)
                assert got.status == status, (path, url, got)

    def _start_plain_envoy(self) -> None:
        config = plain_envoy(self._ip["plain-server"])
        words = [str(binary()), "--config-yaml", json.dumps(config), "--concurrency", str(THREADS)]
        words += ["--disable-hot-restart", "--log-level", "error"]
        process = self._place.node.popen(*words)
        self._undo.callback(process.wait)
        self._undo.callback(process.kill)
        pod, address, port = self._target("plain")
        wait_for(lambda: fetch(self._pods[pod], address, port, PATH).status == 200, "the plain Envoy answers")


def _turn(client: subprocess.Popen[bytes]) -> tuple[float, float, float]:
    assert client.stdin is not None and client.stdout is not None
    client.stdin.write(b".")
    client.stdin.flush()
    seconds, p50, p99 = map(float, client.stdout.readline().split())
    return seconds, p50, p99


def compile_program() -> Path:
    source = Path(__file__).with_name("web.c")
    program = Path("build/web").absolute()
    program.parent.mkdir(exist_ok=True)
    subprocess.run(["gcc", "-O2", "-Wall", "-o", str(program), str(source)], check=True)
    return program


def plain_envoy(server: str) -> Document:
    """What one would write by hand: a proxy in front of one server, with one rule on paths."""
    kind = "type.googleapis.com/envoy.extensions.filters"
    rule = {
        "permissions": [{"url_path": {"path": {"safe_regex": {"regex": RULE}}}}],
        "principals": [{"any": True}],
    }
    rbac = {
        "name": "rbac",
        "typed_config": {
            "@type": f"{kind}.http.rbac.v3.RBAC",
            "rules": {"action": "ALLOW", "policies": {"bench": rule}},
        },
    }
    router = {"name": "router", "typed_config": {"@type": f"{kind}.http.router.v3.Router"}}
    route = {"match": {"prefix": "/"}, "route": {"cluster": "server", "timeout": "0s"}}
    manager = {
        "@type": f"{kind}.network.http_connection_manager.v3.HttpConnectionManager",
        "stat_prefix": "plain",
        "normalize_path": True,
        "merge_slashes": True,
        "route_config": {"virtual_hosts": [{"name": "all", "domains": ["*"], "routes": [route]}]},
        "http_filters": [rbac, router],
    }
    return {
        "static_resources": {
            "listeners": [
                {
                    "address": _address("0.0.0.0", PLAIN_PORT),
                    "filter_chains": [{"filters": [{"name": "http", "typed_config": manager}]}],
                }
            ],
            "clusters": [
                {
                    "name": "server",
                    "type": "STATIC",
                    "load_assignment": {
                        "cluster_name": "server",
                        "endpoints": [{"lb_endpoints": [{"endpoint": {"address": _address(server, PORT)}}]}],
                    },
                }
            ],
        }
    }


def _address(address: str, port: int) -> Document:
    return {"socket_address": {"address": address, "port_value": port}}


# ---- changes and sharing


def changes(bench: Bench) -> Iterator[Figure]:
    """A policy whose HTTP rule changes, among many rule sets: until the kernel's rows lead to its new listener."""
    with site(rule_sets()) as place:
        place.agent.await_listeners(60)
        took = []
        for number in range(1 + bench.samples(CHANGES)):
            before = dict(place.maps["listeners"].items())
            started_ns = place.put("changing.json", judged("pod-0", "changing", f"/version/{number}"))
            ended_ns = wait_for(lambda before=before: bool(_new(place, before)), "the new rules are served")  # type: ignore[misc]
            place.agent.settle()
            if number:
                took.append((ended_ns - started_ns) / 1e6)
        yield Figure("l7", f"an HTTP rule changes, {RULE_SETS} rule sets, p50", quantile(took, 0.5), "ms")
        yield Figure("l7", f"an HTTP rule changes, {RULE_SETS} rule sets, p99", quantile(took, 0.99), "ms", 150.0)


def _new(place: Site, before: dict[bytes, bytes]) -> bool:
    return any(key not in before for key, _ in place.maps["listeners"].items())


def sharing() -> Iterator[Figure]:
    with site(many_pods()) as place:
        place.agent.await_listeners(60)
        count = sum(1 for _ in place.maps["listeners"].items())
        yield Figure("l7", f"listeners for {MANY_PODS} policies of {FEW_SETS} rule sets", count, "", FEW_SETS)


def manifests() -> Iterator[tuple[str, Document]]:
    yield from cluster.files("pods", "Pod", [cluster.pod(NAMESPACE, name, {"app": name}) for name in PODS])
    yield "policy.json", judged("server", "server", RULE)


def rule_sets() -> Iterator[tuple[str, Document]]:
    pods = [cluster.pod(NAMESPACE, f"pod-{number}", {"app": f"pod-{number}"}) for number in range(10)]
    yield from cluster.files("pods", "Pod", pods)
    for number in range(RULE_SETS):
        policy = judged(f"pod-{number % 10}", f"set-{number}", f"/set/{number}", port=10_000 + number)
        yield f"set-{number}.json", policy


def many_pods() -> Iterator[tuple[str, Document]]:
    """Policies enough for so many pods; 100 of them are here, each judged by ten."""
    pods = [cluster.pod(NAMESPACE, f"pod-{number}", {"app": f"pod-{number}"}) for number in range(MANY_PODS // 10)]
    yield from cluster.files("pods", "Pod", pods)
    for number in range(MANY_PODS):
        rule = f"/set/{number % FEW_SETS}"
        yield f"p-{number}.json", judged(f"pod-{number // 10}", f"p-{number}", rule, port=9000 + number % FEW_SETS)


def judged(app: str, name: str, path: str, port: int = PORT) -> Document:
    ports: dict[str, Any] = {"ports": [{"port": str(port), "protocol": "TCP"}], "rules": {"http": [{"path": path}]}}
    return {
        "apiVersion": "cilium.io/v2",
        "kind": "CiliumNetworkPolicy",
        "metadata": {"name": name, "namespace": NAMESPACE},
        "spec": {
            "endpointSelector": {"matchLabels": {"app": app}},
            "ingress": [{"fromEndpoints": [{}], "toPorts": [ports]}],
        },
    }

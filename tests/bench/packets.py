"""What a packet costs in the programs: BPF_PROG_TEST_RUN, mean over many repetitions of from_pod on one packet.

The maps hold a whole plan (World → Plan → Realizer), at 10 and at 10,000 services and identities. Three pods here: `a`
sends to `b` and `c`, which are also frontends that forward to each other, with another port. So a packet to either is
translated into a packet to the other, and is ready to be translated again: each repetition does all of the work.
Without the service it goes unchanged from `a` to `b`.

A new flow: all time-outs are 0, so that the conntrack entries of one repetition are dead to the next. That each of
them was new, judged and reported is checked by the events.
"""

from __future__ import annotations

import os
from collections.abc import Iterator, Mapping
from contextlib import ExitStack, contextmanager

import msgspec
from frames import FAMILIES, Family, Packet, address, host_mac, pod_mac, tcp

from agent.datapath import abi, testrun
from agent.datapath.maps import Maps
from agent.datapath.pins import Pins
from agent.datapath.programs import Programs, ensure_loaded
from agent.datapath.ring import Ring
from agent.objects import Change, EndpointSlice, Interface, Namespace, Object, Pod, Service, ServicePort
from agent.objects import SliceEndpoint as Member
from agent.objects import SlicePort as Port
from agent.plan.plan import Plan
from agent.realize import Realizer
from agent.world.config import NodeConfig
from agent.world.world import World
from bench.report import Figure
from bench.setting import Bench
from policies import networkpolicy
from policies.address import Prefix, parse_address
from policies.model import ObjectRef, Origin

SMALL, LARGE = 10, 10_000
SIZES = ((SMALL, SMALL), (LARGE, SMALL), (SMALL, LARGE), (LARGE, LARGE))
Size = tuple[int, int]
"""Services, identities."""
GOAL_ESTABLISHED_NS, GOAL_NEW_NS, GOAL_GROWTH = 200, 800, 1.2
RUNS = 45
"""Many short ones: the least of them is then free of what slows the machine down for a while."""
REPEATS = {"established": 50_000, "new": 4_000}
TIMEOUTS_NS = {"established": 600 * 10**9, "new": 0}

TCP = 6
NAMESPACE = "busy"
PODS = {"a": 101, "b": 102, "c": 103}
"""Names of tests/bpf/frames.py, with the indexes of their devices."""
PORTS = {"b": 80, "c": 8080}
SOURCE_PORT, OTHER_PORT = 40000, 443
GROUPS = 20
ORIGIN = Origin("bench", 0)


def measure(bench: Bench) -> Iterator[Figure]:
    with ExitStack() as undo:
        undo.enter_context(testrun.network(PODS.values()))
        kernels = {size: undo.enter_context(loaded(*size)) for size in SIZES}
        for family in FAMILIES:
            for kind, goal in (("established", GOAL_ESTABLISHED_NS), ("new", GOAL_NEW_NS)):
                for service in (False, True):
                    flow = Flow(kind, service, family)
                    costs = compare(kernels, flow, bench.samples(RUNS))
                    note = "at services, identities: " + ", ".join(f"{s}, {i}: {c:.0f}" for (s, i), c in costs.items())
                    yield Figure("packets", str(flow), max(costs.values()), "ns", goal, note)
                    growth = max(costs.values()) / costs[SIZES[0]]
                    yield Figure("packets", f"{flow}, growth", growth, "×", GOAL_GROWTH, "dearest size by smallest")


def compare(kernels: Mapping[Size, Kernel], flow: Flow, runs: int) -> dict[Size, float]:
    """The cheapest run at each size: what disturbs a run only ever adds to it. Sizes take turns."""
    for kernel in kernels.values():
        kernel.prepare(flow)
    costs: dict[Size, list[float]] = {size: [] for size in kernels}
    for _ in range(runs):
        for size, kernel in kernels.items():
            costs[size].append(kernel.cost(flow))
    return {size: min(found) for size, found in costs.items()}


class Flow(msgspec.Struct, frozen=True):
    kind: str
    service: bool
    family: Family

    def __str__(self) -> str:
        return f"{self.kind} flow{' with service' if self.service else ''}, IPv{self.family}"


class Kernel:
    """The programs on maps of their own, in a namespace that has the devices."""

    def __init__(self, maps: Maps, programs: Programs) -> None:
        self._maps = maps
        self._programs = programs
        self._ring = Ring(maps["events"].fd)
        self._event = abi.load().records["event"]

    def close(self) -> None:
        self._ring.close()

    def prepare(self, flow: Flow) -> None:
        conntrack = self._maps["conntrack"]
        conntrack.delete_many([key for key, _ in conntrack.items()])
        timeouts = {f"timeout_{name}_ns": TIMEOUTS_NS[flow.kind] for name in ("tcp", "syn", "close", "udp", "other")}
        self._maps["config"].update(bytes(4), abi.load().records["config"].pack(**timeouts))
        if flow.kind == "established":
            self._establish(flow.service, flow.family)
        self._ring.drain(1 << 30)

    def cost(self, flow: Flow) -> float:
        """Mean ns of a packet."""
        port = PORTS["b"] if flow.service else OTHER_PORT
        packet = tcp("a", "b", SOURCE_PORT, port, "S" if flow.kind == "new" else "PA")
        cost = self._run("a", packet, flow.family, REPEATS[flow.kind])
        self._verify(REPEATS["new"] if flow.kind == "new" else 0)
        return cost

    def _establish(self, service: bool, family: Family) -> None:
        there = (("b", PORTS["b"], "c", PORTS["c"]), ("c", PORTS["c"], "b", PORTS["b"]))
        ends = there if service else (("b", OTHER_PORT, "b", OTHER_PORT),)
        for frontend, port, backend, target in ends:
            for flags in ("S", "A"):
                self._run("a", tcp("a", frontend, SOURCE_PORT, port, flags), family, 1)
                self._run(backend, tcp(backend, "a", target, SOURCE_PORT, "SA" if flags == "S" else "A"), family, 1)

    def _verify(self, new_flows: int) -> None:
        events = [event for data in self._ring.drain(1 << 30) for event in self._event.records(data)]
        new = abi.load().constants.EVENT_NEW
        assert [event.type for event in events] == [new] * new_flows, f"{len(events)} events for {new_flows} new flows"

    def _run(self, pod: str, packet: Packet, family: Family, repeat: int) -> float:
        frame = packet.encode(family, host_mac(pod), pod_mac(pod))
        result = testrun.run(self._programs["from_pod"], frame, ifindex=PODS[pod], repeat=repeat)
        assert result.action == testrun.Action.REDIRECT, result.action
        return result.duration_ns


@contextmanager
def loaded(services: int, identities: int) -> Iterator[Kernel]:
    pins = Pins.of(f"bench-{os.getpid()}-{services}-{identities}")
    try:
        with Maps.open_or_create(pins.maps) as maps, ensure_loaded(maps, pins) as programs:
            Realizer(maps, Plan()).start(world(services, identities), lambda: None)
            kernel = Kernel(maps, programs)
            yield kernel
            kernel.close()
    finally:
        pins.remove()


# ---- content


def world(services: int, identities: int) -> World:
    made = World(
        NodeConfig(
            name="here",
            pod_cidrs=(Prefix.parse("10.0.0.0/24"), Prefix.parse("fd00::/64")),
            service_cidrs=(Prefix.parse("10.96.0.0/12"), Prefix.parse("fd00:10:96::/112")),
            addresses=(address("node", 4), address("node", 6)),
        )
    )
    for found in objects(services, identities):
        made.apply(Change(found.ref, found))
    for name, index in PODS.items():
        made.set_interface(_ref("Pod", name), Interface(index, f"test{index}", pod_mac(name), host_mac(name), ""))
    return made


def objects(services: int, identities: int) -> Iterator[Object]:
    yield Namespace(ObjectRef("Namespace", "", NAMESPACE), ORIGIN, {"kubernetes.io/metadata.name": NAMESPACE})
    for name in PODS:
        labels = {"app": name, "group": f"group-{0 if name == 'a' else name}"}
        yield Pod(_ref("Pod", name), ORIGIN, labels, addresses=(address(name, 4), address(name, 6)))
    for number in range(identities - len(PODS)):
        labels = {"app": f"app-{number}", "group": f"group-{number % GROUPS}"}
        yield Pod(_ref("Pod", f"pod-{number}"), ORIGIN, labels, "there", addresses=_addresses(1, number))
    yield from policies()
    for name, backend in (("b", "c"), ("c", "b")):
        frontends = (address(name, 4), address(name, 6))
        yield from _service(name, frontends, PORTS[name], [_members(backend)], PORTS[backend])
    for number in range(services - 2):
        members = [_addresses(1, number * 5 + n) for n in range(5)]
        yield from _service(f"service-{number}", _addresses(2, number), 80, members, 8080)


def policies() -> Iterator[Object]:
    """Each pod here is isolated both ways; every identity finds a row of its group in the policies of b and c."""
    for name in PODS:
        for group in range(GROUPS):
            peer = [{"podSelector": {"matchLabels": {"group": f"group-{group}"}}}]
            ports = [{"port": port} for port in (443, 80, 8080, 9000 + group)]
            yield _policy(f"{name}-{group}", name, {"ingress": [{"from": peer, "ports": ports}]})
        anyone: list[dict[str, object]] = [{"podSelector": {}}]
        outside = [{"ipBlock": {"cidr": "203.0.113.0/24"}}]
        egress = [{"to": anyone, "ports": [{"port": p} for p in (443, 80, 8080)]}, {"to": outside}]
        yield _policy(name, name, {"policyTypes": ["Egress"], "egress": egress})


def _policy(name: str, app: str, spec: dict[str, object]) -> Object:
    raw = {
        "apiVersion": networkpolicy.API_VERSION,
        "kind": networkpolicy.KIND,
        "metadata": {"namespace": NAMESPACE, "name": name},
        "spec": {"podSelector": {"matchLabels": {"app": app}}, **spec},
    }
    return networkpolicy.parse(raw, ORIGIN)


def _service(
    name: str, frontends: tuple[bytes, ...], port: int, members: list[tuple[bytes, ...]], target: int
) -> Iterator[Object]:
    ref = _ref("Service", name)
    yield Service(ref, ORIGIN, "ClusterIP", None, frontends, False, (ServicePort("", TCP, port, target),))
    for family, place in (("v4", 0), ("v6", 1)):
        endpoints = tuple(Member((addresses[place],)) for addresses in members)
        yield EndpointSlice(
            _ref("EndpointSlice", f"{name}-{family}"), ORIGIN, name, (Port("", TCP, target),), endpoints
        )


def _members(name: str) -> tuple[bytes, ...]:
    return address(name, 4), address(name, 6)


def _addresses(kind: int, number: int) -> tuple[bytes, ...]:
    return tuple(
        parse_address(text)
        for text in (
            f"10.{kind * 48 + (number >> 16)}.{number >> 8 & 255}.{number & 255}",
            f"fd00:{kind}::{number + 1:x}",
        )
    )


def _ref(kind: str, name: str) -> ObjectRef:
    return ObjectRef(kind, NAMESPACE, name)

"""Random clusters in the real maps, random flows through the real programs: the kernel must judge as the oracle does.
Policies are of every kind; what they leave to proxies is dropped, as none is there.

Each example loads a cluster, sends flows, moves to a second cluster by one transition, and sends the same flows again,
so that live flows are judged anew; and it sends what the other end would answer. A judgement is one packet whose fate
(and the rule named for it) is compared. `--judgements N --timeout 0` asks for more; a failing example is printed whole.
"""

from __future__ import annotations

import math
import os
import struct
from collections.abc import Iterator

import drawn_policies
import msgspec
import pytest
import strategies as drawn
import worlds
from frames import checksum
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from planned import compile_dirty

from agent.datapath import apply, testrun
from agent.datapath.abi import load
from agent.datapath.maps import Maps
from agent.datapath.pins import Pins
from agent.datapath.programs import Programs, ensure_loaded
from agent.datapath.ring import Ring
from agent.datapath.testrun import Action
from agent.plan.plan import Plan
from agent.realize import Realizer
from agent.world.world import World
from policies.address import format_address, is_v4, parse_address
from policies.evaluate import Decision, evaluate
from policies.facts import HOST, Flow
from policies.model import DEFAULT_DENY, Policy, Verdict

ABI = load()
SHARDS = 4
FLOWS = 200
SECOND_NS = 1_000_000_000
OUTSIDE_DEVICE = 120
TCP, UDP, SCTP = 6, 17, 132
SYN, SYN_ACK = 0x02, 0x12
ECHO = {1: (8, 0), 58: (128, 129)}


class Rig:
    """The programs on maps of this worker's own."""

    def __init__(self, maps: Maps, programs: Programs) -> None:
        self.maps, self.programs = maps, programs
        self.ring = Ring(maps["events"].fd)
        timeouts = {f"timeout_{name}_ns": 600 * SECOND_NS for name in ("tcp", "syn", "close", "udp", "other")}
        maps["config"].update(bytes(4), ABI.records["config"].pack(**timeouts))

    def forget_flows(self) -> None:
        for name in ("conntrack", "conntrack_host"):
            self.maps[name].delete_many([key for key, _ in self.maps[name].items()])

    def passes(self, hook: str, device: int, frame: bytes, forwarded: bool) -> bool:
        result = testrun.run(
            self.programs[hook], frame, ifindex=device, ingress_ifindex=OUTSIDE_DEVICE if forwarded else 0
        )
        assert result.action in (Action.OK, Action.REDIRECT, Action.SHOT), result
        return result.action != Action.SHOT

    def events(self) -> list[tuple[int, int, int, int]]:
        """(type, reason, egress rule, ingress rule) of what was reported since the last call."""
        return [
            (e.type, e.reason, e.rule_egress, e.rule_ingress)
            for e in ABI.records["event"].records(b"".join(self.ring.drain(1 << 30)))
        ]


@pytest.fixture(scope="module")  # not longer: this thread is in another network namespace meanwhile
def rig(datapath_host: None) -> Iterator[Rig]:
    pins = Pins.of(f"test-differential-{os.getpid()}")
    devices = [worlds.interface_of(pod).index for pod in _pods()] + [OUTSIDE_DEVICE]
    try:
        with (
            testrun.network(devices),
            Maps.open_or_create(pins.maps, {"events": 1 << 18, "conntrack": 4096}) as maps,
            ensure_loaded(maps, pins) as programs,
        ):
            rig = Rig(maps, programs)
            yield rig
            rig.ring.close()
    finally:
        pins.remove()


def _pods() -> list[drawn.PodSpec]:
    return [drawn.PodSpec("blue", f"pod-{n}", {}, (), ()) for n in range(6)]


# ---- packets


def frame(flow: Flow, source_port: int, answer: bool = False) -> bytes:
    """The first packet of a flow, or what its destination says to it."""
    source, destination = flow.source.address, flow.destination.address
    ports = (source_port, flow.port)
    if answer:
        source, destination, ports = destination, source, (flow.port, source_port)
    v4 = is_v4(source)
    packed = struct.pack("!HH", *ports)
    if flow.protocol == TCP:
        l4 = packed + struct.pack("!IIBBHHH", 1, 1, 5 << 4, SYN_ACK if answer else SYN, 1000, 0, 0)
    elif flow.protocol == UDP:
        l4 = packed + struct.pack("!HH", 8, 0)
    elif flow.protocol == SCTP:
        l4 = packed + bytes(8)
    else:
        l4 = struct.pack("!BBHHH", ECHO[flow.protocol][answer], 0, 0, source_port, 1)
    if v4:
        head = (
            struct.pack("!BBHHHBBH", 0x45, 0, 20 + len(l4), 1, 0, 64, flow.protocol, 0) + source[12:] + destination[12:]
        )
        head = head[:10] + struct.pack("!H", checksum(head)) + head[12:]
    else:
        head = struct.pack("!IHBB", 6 << 28, len(l4), flow.protocol, 64) + source + destination
    return bytes(12) + struct.pack("!H", 0x0800 if v4 else 0x86DD) + head + l4


# ---- judgements


class Judge:
    """One cluster in the maps; counts what it compared."""

    def __init__(self, rig: Rig) -> None:
        self.rig = rig
        self.compared = 0
        self.world, self.plan = World(worlds.CONFIG), Plan()
        self.scene: worlds.Scene | None = None
        self.policies: list[Policy] = []
        self.devices: dict[bytes, int] = {}

    def load(self, cluster: drawn.Cluster) -> None:
        """The first replaces whatever the maps held, as a starting agent does; the next is a transition."""
        scene = worlds.Scene(cluster)
        worlds.change_world(self.world, self.scene, scene)
        if self.scene is None:
            realizer = Realizer(self.rig.maps, self.plan)
            realizer.start(self.world, lambda: None)
            assert realizer.failure is None
        else:
            steps = compile_dirty(self.world, self.plan)
            assert apply.apply(self.rig.maps, steps.steps, raise_epoch=steps.raises_epoch).failure is None
            assert apply.apply(self.rig.maps, steps.cleanup, raise_epoch=False).failure is None
        self.scene = scene
        self.policies = drawn.policies_of(cluster)
        self.devices = worlds.interfaces_of(cluster)

    def hook(self, flow: Flow, answer: bool = False) -> tuple[str, int] | None:
        """Where a packet of a flow is seen; None where it does not come by this node's pods."""
        source, destination = flow.source.address, flow.destination.address
        if answer:
            source, destination = destination, source
        if source in self.devices:
            return "from_pod", self.devices[source]
        return ("to_pod", self.devices[destination]) if destination in self.devices else None

    def decide(self, flow: Flow) -> Decision:
        assert self.scene is not None
        return evaluate(self.policies, self.scene.cluster.namespaces, flow)

    def is_allowed(self, flow: Flow, decision: Decision) -> bool:
        """By the ends that live here: the other node judges the others."""
        egress = flow.source.address not in self.devices or decision.egress.verdict is Verdict.ALLOW
        ingress = flow.destination.address not in self.devices or decision.ingress.verdict is Verdict.ALLOW
        return egress and ingress

    def leaves_to_proxy(self, flow: Flow) -> bool:
        decision = self.decide(flow)
        ends = ((flow.source, decision.egress), (flow.destination, decision.ingress))
        return any(end.address in self.devices and side.verdict is Verdict.REDIRECT for end, side in ends)

    def check(self, flow: Flow, source_port: int, known: bool) -> bool:
        """Send a flow's first packet, and compare. Returns whether it passed."""
        seen = self.hook(flow)
        assert seen is not None
        decision = self.decide(flow)
        wanted = self.is_allowed(flow, decision)
        got = self.rig.passes(*seen, frame(flow, source_port), forwarded=flow.source.entity != HOST)
        events = self.rig.events()
        note = f"{flow.source} → {flow.destination} {flow.protocol}/{flow.port}: {decision}; {events}"
        assert got == wanted, note
        self.compared += 1
        if got and not known:
            self.check_rules(flow, decision, events, note)
        elif not known:
            self.check_drop(decision, events, note)
        return got

    def check_rules(self, flow: Flow, decision: Decision, events: list[tuple[int, int, int, int]], note: str) -> None:
        """The rule named for each end that lives here is one of those that allow it."""
        assert [e[0] for e in events] == [ABI.constants.EVENT_NEW], note
        _, _, egress, ingress = events[0]
        if flow.source.address in self.devices:
            assert self.plan.rule(egress) in decision.egress.allowed_by, note
        if flow.destination.address in self.devices:
            assert self.plan.rule(ingress) in decision.ingress.allowed_by, note

    def check_drop(self, decision: Decision, events: list[tuple[int, int, int, int]], note: str) -> None:
        """The rule named for the end that dropped it is the first that denies it. No proxy is ready here."""
        kind, reason, egress, ingress = events[-1]
        assert kind == ABI.constants.EVENT_DROP, note
        if reason == ABI.constants.DROP_POLICY_EGRESS:
            assert self.plan.rule(egress) == (*decision.egress.denied_by, DEFAULT_DENY)[0], note
        elif reason == ABI.constants.DROP_POLICY_INGRESS:
            assert self.plan.rule(ingress) == (*decision.ingress.denied_by, DEFAULT_DENY)[0], note
        else:
            assert reason == ABI.constants.DROP_PROXY_UNREADY, note
            assert Verdict.REDIRECT in (decision.egress.verdict, decision.ingress.verdict), note

    def check_answer(self, flow: Flow, source_port: int) -> None:
        """Of a flow that is tracked: its answers pass exactly as long as the flow itself is allowed."""
        seen = self.hook(flow, answer=True)
        if seen is None:
            return
        decision = self.decide(flow)
        wanted = self.is_allowed(flow, decision)
        got = self.rig.passes(*seen, frame(flow, source_port, answer=True), forwarded=flow.destination.entity != HOST)
        note = f"answer to {flow.source} → {flow.destination} {flow.protocol}/{flow.port}: {decision}"
        assert got == wanted, f"{note}; {self.rig.events()}"
        self.rig.events()
        self.compared += 1


def usable(judge: Judge, flows: list[Flow]) -> list[Flow]:
    """Those that this node sees. A pod's packets to itself never leave it."""
    return [f for f in flows if judge.hook(f) is not None and f.source.address != f.destination.address]


def compare(rig: Rig, first: drawn.Cluster, second: drawn.Cluster, seed: int) -> int:
    """Returns the number of judgements."""
    rig.forget_flows()
    judge = Judge(rig)
    judge.load(first)
    flows = usable(judge, drawn.flows_of(first, seed, FLOWS))
    tracked = []
    for port, flow in enumerate(flows, 1024):
        if judge.check(flow, port, known=False):
            judge.check_answer(flow, port)
            tracked.append((flow, port))
    judge.load(second)
    for flow, port in tracked:
        if judge.leaves_to_proxy(flow):
            continue  # what becomes of a live flow then is asked in tests/netns, with proxies
        judge.check_answer(flow, port)
        judge.check(flow, port, known=True)
    return judge.compared


FACTS = {address: drawn.Facts(HOST, node={}) for address in drawn.HOST_ADDRESSES}
"""Little is known of addresses but whose they are: tests/agent/world asks for the rest."""
CLUSTERS = drawn.clusters() | drawn_policies.clusters()


@st.composite
def successors(draw: st.DrawFn) -> tuple[drawn.Cluster, drawn.Cluster]:
    """A cluster, and the same pods with other policies and namespace labels."""
    first, other = draw(CLUSTERS), draw(CLUSTERS)
    first = msgspec.structs.replace(first, facts=FACTS)
    return first, drawn.Cluster(other.namespaces, first.pods, other.policies, other.values, FACTS)


@pytest.mark.parametrize("shard", range(SHARDS))
def test_kernel_judges_as_the_oracle(rig: Rig, shard: int, request: pytest.FixtureRequest) -> None:
    wanted = math.ceil(request.config.getoption("judgements") / SHARDS)
    compared = 0

    @settings(
        max_examples=1 + wanted // FLOWS,  # some 1.5 judgements a flow
        database=None,
        suppress_health_check=list(HealthCheck),
    )
    @given(successors(), st.integers(0, 1 << 30))
    def examples(pair: tuple[drawn.Cluster, drawn.Cluster], seed: int) -> None:
        nonlocal compared
        compared += compare(rig, *pair, seed)

    examples()
    assert compared >= wanted, f"only {compared} of {wanted} judgements: draw more flows an example"


def test_addresses_of_the_strategies_fit_the_node() -> None:
    """Or the flows above would test nothing."""
    pods = [parse_address(a) for n in range(6) for a in (f"10.1.{n % 2}.{n + 1}", f"fd00:1::{n + 1:x}")]
    for address in pods:
        assert any(block.contains(address) for block in worlds.CONFIG.pod_cidrs), format_address(address)

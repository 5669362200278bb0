"""Full maps, a full ring, time-outs, and two CPUs at once."""

from __future__ import annotations

import os
import time
from collections import Counter
from concurrent.futures import ThreadPoolExecutor

import pytest
from frames import SCTP, TCP, UDP, Packet, echo, echo_reply, flow, host_mac, pod_mac, tcp, udp
from kernel import ANY, CLOSED, INTERFACES, SECONDS, Kernel, Network
from table import STACK, arrives, arrives_new, do, dropped, entry, new, policy, run, sent, stopped

from agent.datapath import bpf_programs, testrun

SYN, SYN_ACK, ACK = tcp("a", "b", 1000, 80, "S"), tcp("b", "a", 80, 1000, "SA"), tcp("a", "b", 1000, 80)


@pytest.mark.parametrize("leave", [0, 1])
def test_conntrack_full(kernel: Kernel, leave: int) -> None:
    """New flows are refused and counted; live ones and denies hold. One free entry is not enough for a flow of two."""
    run(
        kernel,
        [
            new("a", SYN, "b"),
            policy("c", "ingress", ANY, CLOSED),
            do("fill_conntrack", leave),
            dropped("a", tcp("a", "b", 1, 80, "S"), "CONNTRACK_FULL", "CONNTRACK_FULL", source="a", destination="b"),
            entry(tcp("a", "b", 1, 80)),
            entry(tcp("b", "a", 80, 1)),
            stopped("a", udp("world", "a", 1, 80), "CONNTRACK_FULL", tally="CONNTRACK_FULL"),
            dropped("a", tcp("a", "c", 1, 80, "S"), "POLICY_INGRESS"),
            sent("b", SYN_ACK, "a", tally="REJUDGED"),
            sent("a", ACK, "b", tally="REJUDGED"),
            sent("a", tcp("a", "b", 1000, 80, "R"), "b", events=({"type": "EVENT_END"},)),
            new("a", SYN, "b"),  # in the place of the flow that is over
        ],
    )


def test_lesson_17_the_node_reaches_its_pods_when_conntrack_is_full(kernel: Kernel) -> None:
    run(
        kernel,
        [
            policy("a", "ingress", ANY, CLOSED),
            policy("a", "egress", ANY, CLOSED),
            do("fill_conntrack"),
            arrives_new("a", tcp("node", "a", 1, 80, "S"), via=0),
            sent("a", tcp("a", "node", 80, 1, "SA"), STACK),
            arrives("a", tcp("node", "a", 1, 80), via=0),
        ],
    )


def test_lesson_17_no_number_of_flows_of_the_node_is_too_many(kernel: Kernel) -> None:
    """Its map forgets the oldest; the newest still has its answers."""
    kernel.policy("a", "ingress", ANY, CLOSED)
    kernel.policy("a", "egress", ANY, CLOSED)
    for port in range(1, 2 * kernel.maps["conntrack_host"].spec.max_entries):
        run(
            kernel,
            [
                arrives_new("a", tcp("node", "a", port, 80, "S"), via=0),
                sent("a", tcp("a", "node", 80, port, "SA"), STACK),
            ],
        )


def test_half_of_what_the_verifier_bears(loaded: Kernel) -> None:
    """It gives up at 1,000,000 instructions walked, and how many it walks differs from kernel to kernel."""
    for name, program in loaded.programs.items():
        assert 0 < bpf_programs.program_info(program).verified_instructions < 500_000, name


def test_ring_full(kernel: Kernel) -> None:
    """Traffic does not depend on it, and what is lost is counted."""
    program, device = kernel.programs["from_pod"], INTERFACES["a"]
    denied = udp("a", "nobody", 1, 2).encode(kernel.family, host_mac("a"), pod_mac("a"))
    fitting = kernel.maps["events"].spec.max_entries // kernel.abi.records["event"].size
    for _ in range(fitting):
        kernel.network.run(testrun.run, program, denied, ifindex=device)
    lost = kernel.counters("tallies", "tally")["TALLY_EVENTS_LOST"]
    begins = SYN.encode(kernel.family, host_mac("a"), pod_mac("a"))
    assert kernel.network.run(testrun.run, program, begins, ifindex=device).action == 7
    assert kernel.counters("tallies", "tally")["TALLY_EVENTS_LOST"] == lost + 1
    kernel.ring.drain(1 << 30)
    run(kernel, [new("a", tcp("a", "b", 1, 2, "S"), "b")])


TIMEOUTS: list[tuple[str, list[tuple[str, Packet]], Packet, int]] = [
    ("SYN", [("a", SYN)], SYN, 60),
    ("answered SYN", [("a", SYN), ("b", SYN_ACK)], SYN_ACK, 600),
    ("established", [("a", SYN), ("b", SYN_ACK), ("a", ACK)], ACK, 600),
    ("one FIN", [("a", SYN), ("b", SYN_ACK), ("a", tcp("a", "b", 1000, 80, "FA"))], ACK, 600),
    ("RST", [("a", SYN), ("b", tcp("b", "a", 80, 1000, "R"))], SYN, 10),
    ("RST, its own entry", [("a", SYN), ("b", tcp("b", "a", 80, 1000, "R"))], SYN_ACK, 10),
    ("after RST", [("a", SYN), ("b", tcp("b", "a", 80, 1000, "R")), ("a", ACK)], ACK, 10),
    ("mid-stream", [("a", ACK)], ACK, 60),
    ("UDP", [("a", udp("a", "b", 1, 2))], udp("a", "b", 1, 2), 30),
    ("answered UDP", [("a", udp("a", "b", 1, 2)), ("b", udp("b", "a", 2, 1))], udp("b", "a", 2, 1), 120),
    ("SCTP", [("a", flow(SCTP, "a", "b", 1, 2))], flow(SCTP, "a", "b", 1, 2), 30),
    (
        "answered SCTP",
        [("a", flow(SCTP, "a", "b", 1, 2)), ("b", flow(SCTP, "b", "a", 2, 1))],
        flow(SCTP, "b", "a", 2, 1),
        120,
    ),
]


@pytest.mark.parametrize(("packets", "met", "seconds"), [t[1:] for t in TIMEOUTS], ids=[t[0] for t in TIMEOUTS])
def test_timeout(kernel: Kernel, packets: list[tuple[str, Packet]], met: Packet, seconds: int) -> None:
    before = time.monotonic_ns()
    for pod, packet in packets:
        assert kernel.send(pod, packet).action == 7
    found, after = kernel.entry(met), time.monotonic_ns()
    slack = SECONDS // 10  # the coarse clock is behind by a tick
    assert before - slack <= found.expires_ns - seconds * SECONDS <= after


def test_timeout_of_ping(kernel: Kernel) -> None:
    """Answered or not, it is short: an id is used once."""
    before = time.monotonic_ns()
    kernel.send("a", echo("a", "b"))
    kernel.send("b", echo_reply("b", "a"))
    for found in kernel.entries():
        assert found.expires_ns - before < 31 * SECONDS


def test_counters_of_a_flow(kernel: Kernel) -> None:
    for _ in range(3):
        kernel.send("a", ACK)
    kernel.send("b", SYN_ACK)
    length = len(ACK.encode(kernel.family, bytes(6), bytes(6)))
    there, back = kernel.entry(ACK), kernel.entry(SYN_ACK)
    assert (there.packets, there.bytes, back.packets, back.bytes) == (3, 3 * length, 1, length)
    end = kernel.send("a", tcp("a", "b", 1000, 80, "R")).events[0]
    assert (end.packets, end.bytes) == (5, 5 * length)


@pytest.mark.parametrize("protocol", [TCP, UDP])
@pytest.mark.parametrize("destination", ["b", "web"])
def test_one_flow_begun_on_two_cpus_at_once(kernel: Kernel, protocol: int, destination: str) -> None:
    """All packets pass and go to one backend, or one is dropped because the other CPU was between the flow's two
    entries: never two backends for one flow, never a flow that stays broken."""
    cpus = sorted(os.sched_getaffinity(0))
    if len(cpus) < 2:
        pytest.skip("needs two CPUs")
    kernel.service("web", 80, [("b", 80), ("c", 80)], protocol)
    conntrack, program = kernel.maps["conntrack"], kernel.programs["from_pod"]

    def send(cpu: int, frame: bytes) -> testrun.Result:
        os.sched_setaffinity(0, {cpu})
        return testrun.run(program, frame, ifindex=INTERFACES["a"])

    networks = [Network(), Network()]
    try:
        with ThreadPoolExecutor(2) as pool:
            actions: Counter[int] = Counter()
            for port in range(1, 400):
                packet = flow(protocol, "a", destination, port, 80)
                frame = packet.encode(kernel.family, host_mac("a"), pod_mac("a"))
                futures = [pool.submit(n.run, send, cpu, frame) for n, cpu in zip(networks, cpus, strict=False)]
                results = [future.result() for future in futures]
                passed = [r.packet for r in results if r.action == 7]
                actions.update(r.action for r in results)
                assert passed
                assert len(set(passed)) == 1
                assert kernel.network.run(testrun.run, program, frame, ifindex=INTERFACES["a"]).packet == passed[0]
                assert len(kernel.entries()) == 2
                conntrack.delete_many([key for key, _ in conntrack.items()])
            assert actions[2] <= actions[7] / 10, actions
    finally:
        for network in networks:
            network.close()

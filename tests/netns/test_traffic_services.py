"""ClusterIP services on real packets: who answers, backends that come and go, refusals, hairpin, policy behind them."""

from __future__ import annotations

import os
import signal
import socket
import struct
from collections import Counter
from collections.abc import Iterator
from contextlib import ExitStack

import probes
import pytest
import rig
from agents import RunningAgent
from given_slices import both, plain, slices
from probes import Connection, Server
from traffic import ANSWERED_S, DROPPED_S, FAMILIES, Cluster, Pulse, objects, parse, pods

from agent.supervisor import listener_pid

CAST, LIVE = "services-cast.yaml", "services-live.yaml"
PODS = """
shop/b1: {labels: {app: back, one: b1}, ports: [{name: http, containerPort: 8080}, {name: old, containerPort: 9090}]}
shop/b2: {labels: {app: back}, ports: [{name: http, containerPort: 8080}]}
shop/b3: {labels: {app: back}, ports: [{name: http, containerPort: 8081}]}
shop/client: {labels: {app: client}}
shop/other: {labels: {app: other}}
"""
SERVICES = """
shop/numbers:
  selector: {app: back}
  ports: [{name: web, port: 80, targetPort: 8080}, {name: alt, port: 81, targetPort: 9090}]
shop/names: {selector: {app: back}, ports: [{port: 80, targetPort: http}]}
shop/some: {selector: {app: back}, ports: [{port: 80, targetPort: old}]}
shop/same:
  selector: {app: back}
  ports:
  - {name: tcp, port: 53, targetPort: 9090}
  - {name: udp, port: 53, targetPort: 5353, protocol: UDP}
  - {name: sctp, port: 53, targetPort: 53, protocol: SCTP}
shop/direct: {selector: {app: back}, ports: [{port: 8080}]}
shop/one:
  selector: {one: b1}
  ports: [{name: t, port: 80, targetPort: 8080}, {name: u, port: 80, targetPort: 5353, protocol: UDP}]
shop/empty:
  selector: {app: nobody}
  ports: [{name: t, port: 80}, {name: u, port: 80, protocol: UDP}, {name: s, port: 80, protocol: SCTP}]
shop/v4only: {selector: {one: b1}, ipFamilies: [IPv4], ports: [{port: 80, targetPort: 8080}]}
"""
ALL = ("shop/b1", "shop/b2", "shop/b3")


@pytest.fixture(scope="module")
def cast(cluster: Cluster) -> Iterator[Cluster]:
    with cluster.written(CAST, *pods(PODS), *objects("Service", SERVICES)), ExitStack() as stack:
        for pod in ALL:
            cluster.serve(f"{pod} TCP/8080 TCP/8081 TCP/9090 UDP/5353 SCTP/53", stack=stack)
        cluster.serve("outside TCP/8080 UDP/5353", stack=stack)
        yield cluster
        cluster.delete(LIVE)


def labels(
    cast: Cluster, service: str, port: int, count: int, family: str = "v4", protocol: str = "TCP"
) -> Counter[str]:
    """Who answers so many new connections of the client; "timeout" and "refused" for those nobody answered."""
    exchange = probes.tcp if protocol == "TCP" else probes.udp
    client, target = cast.netns("shop/client"), cast.ip(f"service:{service}", family)
    answers = [client.call(exchange, client, target, port, ANSWERED_S) for _ in range(count)]
    return Counter(answer.label or answer.result for answer in answers)


# ---- who answers

ANSWERS = [
    ("shop/numbers", "TCP", 80, {"shop/b1:8080", "shop/b2:8080", "shop/b3:8080"}),
    ("shop/numbers", "TCP", 81, {"shop/b1:9090", "shop/b2:9090", "shop/b3:9090"}),
    ("shop/names", "TCP", 80, {"shop/b1:8080", "shop/b2:8080", "shop/b3:8081"}),  # as each pod numbers the name
    ("shop/some", "TCP", 80, {"shop/b1:9090"}),  # only those that declare it
    ("shop/same", "TCP", 53, {"shop/b1:9090", "shop/b2:9090", "shop/b3:9090"}),
    ("shop/same", "UDP", 53, {"shop/b1:5353", "shop/b2:5353", "shop/b3:5353"}),
    ("shop/direct", "TCP", 8080, {"shop/b1:8080", "shop/b2:8080", "shop/b3:8080"}),
]


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize(
    ("service", "protocol", "port", "expected"), ANSWERS, ids=[f"{s}_{p}_{n}" for s, p, n, _ in ANSWERS]
)
def test_who_answers_lesson_19(
    cast: Cluster, service: str, protocol: str, port: int, expected: set[str], family: str
) -> None:
    """40 connections: that one of three backends is never chosen has a chance of 3 · (2/3)^40 = 3e-7."""
    assert set(labels(cast, service, port, 40, family, protocol)) == expected


def test_protocols_and_families(cast: Cluster) -> None:
    cast.check("""
        shop/client  service:shop/same    SCTP/53     answered  not-isolated
        shop/client  service:shop/same    UDP/53      answered  not-isolated
        shop/client  service:shop/v4only  TCP/80/v4   answered
        shop/b1      service:shop/names   TCP/80      answered
    """)
    (address,) = cast.place("service:shop/v4only")[1]
    assert ":" not in address


def test_connections_spread_over_the_backends(cast: Cluster) -> None:
    """300 connections, 100 expected for each (σ = 8.2): fewer than 55 has a chance of about 1e-8."""
    counts = labels(cast, "shop/numbers", 80, 300)
    assert len(counts) == 3
    assert min(counts.values()) > 55, counts


def test_a_service_sees_the_clients_own_address(cast: Cluster) -> None:
    client = cast.netns("shop/client")
    for family in FAMILIES:
        answer = probes.tcp(client, cast.ip("service:shop/one", family), 80, ANSWERED_S)
        assert answer.seen_from == cast.ip("shop/client", family)


@pytest.mark.parametrize("family", FAMILIES)
def test_a_source_port_is_used_again_at_once(cast: Cluster, family: str) -> None:
    """A connection that ended by RST leaves nothing that a new one from the same port could fall over."""
    client, target = cast.netns("shop/client"), cast.ip("service:shop/numbers", family)
    for number in range(20):
        with Connection(client, probes.STREAM, target, 80, (cast.ip("shop/client", family), 9999)) as connection:
            assert connection.exchange(ANSWERED_S), number
            connection.socket.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))


# ---- nobody there


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize("protocol", ["TCP", "UDP", "SCTP"])
def test_without_backends_the_client_is_refused_at_once(cast: Cluster, protocol: str, family: str) -> None:
    (row,) = parse(f"shop/client service:shop/empty {protocol}/80/{family} refused")
    before = refused(cast)
    answer = cast.probe(row, ANSWERED_S, 9998)
    assert answer.result == "refused", answer
    assert refused(cast) == before + 1, "by its first packet"


def refused(cast: Cluster) -> int:
    return int(cast.agent.status()["drops"].get("NO_BACKEND", 0))


def test_a_backend_appears_and_goes(cast: Cluster) -> None:
    client = "shop/client  service:shop/empty"
    cast.check(f"{client} TCP/80 refused NO_BACKEND\n {client} UDP/80 refused NO_BACKEND")
    with cast.written(LIVE, *pods("shop/late: {labels: {app: nobody}}")), ExitStack() as stack:
        cast.serve("shop/late TCP/80 UDP/80 SCTP/80", stack=stack)
        cast.check(f"{client} TCP/80 answered\n {client} UDP/80 answered\n {client} SCTP/80 answered")
    cast.check(f"{client} TCP/80 refused NO_BACKEND\n {client} UDP/80 refused NO_BACKEND")


# ---- live changes


def test_no_new_connection_goes_to_a_backend_that_was_removed(cast: Cluster) -> None:
    with ExitStack() as stack:
        extra = pods("shop/b4: {labels: {app: back}, ports: [{name: http, containerPort: 8080}]}")
        cast.write(LIVE, *extra)
        stack.callback(cast.delete, LIVE)
        cast.serve("shop/b4 TCP/8080", stack=stack)
        assert "shop/b4:8080" in labels(cast, "shop/names", 80, 60)
        cast.write(LIVE, *pods("shop/b4: {labels: {app: retired}}"))
        counts = labels(cast, "shop/names", 80, 200)
        assert set(counts) == {"shop/b1:8080", "shop/b2:8080", "shop/b3:8081"}
        cast.write(LIVE, *extra)
        assert "shop/b4:8080" in labels(cast, "shop/names", 80, 60)


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize("protocol", ["TCP", "UDP"])
def test_established_flows_of_a_terminating_backend_live_on_lesson_21(
    cast: Cluster, protocol: str, family: str
) -> None:
    target = {"TCP": 8080, "UDP": 5353}[protocol]
    first, second = f"shop/b1:{target}", f"shop/b2:{target}"

    def write(*endpoints: tuple[str, str]) -> None:
        cast.write(
            LIVE, *plain("shop/leaving", protocol), *slices("shop/leaving", target, *endpoints, protocol=protocol)
        )

    (row,) = parse(f"shop/client service:shop/leaving {protocol}/80/{family} answered")
    with ExitStack() as stack:
        stack.callback(cast.delete, LIVE)
        write(*both(cast, "shop/b1", "ready"))
        pulse = stack.enter_context(Pulse(cast.connect(row)))
        asked = stack.enter_context(cast.connect(row))
        assert asked.exchange(ANSWERED_S).label == first
        write(*both(cast, "shop/b1", "terminating"), *both(cast, "shop/b2", "ready"))
        assert asked.exchange(ANSWERED_S).label == first
        assert set(labels(cast, "shop/leaving", 80, 40, family, protocol)) == {second}
        write(*both(cast, "shop/b1", "terminating"))
        assert asked.exchange(ANSWERED_S).label == first
        assert set(labels(cast, "shop/leaving", 80, 10, family, protocol)) == {first}, "better than nobody"
        pulse.stop()
        assert pulse.sent > 1
        assert not pulse.lost
        write(*both(cast, "shop/b1", "gone"))
        assert set(labels(cast, "shop/leaving", 80, 3, family, protocol)) == {"refused"}


@pytest.mark.parametrize("family", FAMILIES)
def test_a_udp_client_leaves_a_backend_that_is_removed_lesson_20(cast: Cluster, family: str) -> None:
    """The same socket, in the same flow: its next messages go to a backend that is there."""

    def write(*endpoints: tuple[str, str]) -> None:
        cast.write(LIVE, *plain("shop/udp", "UDP"), *slices("shop/udp", 5353, *endpoints, protocol="UDP"))

    (row,) = parse(f"shop/client service:shop/udp UDP/80/{family} answered")
    with ExitStack() as stack:
        stack.callback(cast.delete, LIVE)
        write(*both(cast, "shop/b1", "ready"))
        with cast.connect(row) as connection:
            assert connection.exchange(ANSWERED_S).label == "shop/b1:5353"
            write(*both(cast, "shop/b2", "ready"))
            moved_to(connection, "shop/b2:5353")


def test_a_udp_client_leaves_a_pod_that_is_gone_lesson_20(cast: Cluster) -> None:
    late = pods("shop/late: {labels: {app: late}}")
    service = objects(
        "Service", "shop/late: {selector: {app: late}, ports: [{port: 80, targetPort: 5353, protocol: UDP}]}"
    )
    with ExitStack() as stack:
        stack.callback(cast.delete, LIVE)
        cast.write(LIVE, *late, *service)
        (row,) = parse("shop/client service:shop/late UDP/80/v4 answered")
        connection = stack.enter_context(cast.connect(row))
        with ExitStack() as servers:
            cast.serve("shop/late UDP/5353", stack=servers)
            assert connection.exchange(ANSWERED_S).label == "shop/late:5353"
        cast.write(LIVE, *service)
        rig.wait_until(lambda: connection.exchange(DROPPED_S).result == "refused", ANSWERED_S)
        cast.write(LIVE, *pods("shop/later: {labels: {app: late}}"), *service)
        cast.serve("shop/later UDP/5353", stack=stack)
        moved_to(connection, "shop/later:5353")


def test_the_flows_process_hears_of_it_when_it_is_back_lesson_20(agent: RunningAgent) -> None:
    """It is killed just before the backend goes."""
    ports = "[{port: 53, targetPort: 5353, protocol: UDP}]"
    service = objects("Service", f"shop/dns: {{selector: {{app: dns}}, ports: {ports}}}")
    cast = pods("shop/client: {}\nshop/old: {labels: {app: dns}}\nshop/new: {labels: {app: none}}")
    agent.write("cast.yaml", *service, *cast)
    agent.start()
    flows = rig.wait_until(lambda: listener_pid(agent.instance.flows_socket), 30)
    (address, _) = agent.json("services")[0]["ips"]
    with ExitStack() as stack:
        for pod in ("shop/old", "shop/new"):
            stack.enter_context(Server(agent.netns(pod), "udp", 5353, pod))
        client = stack.enter_context(Connection(agent.netns("shop/client"), probes.DATAGRAM, address, 53))
        assert client.exchange(ANSWERED_S).label == "shop/old"
        os.kill(flows, signal.SIGKILL)
        cast = pods("shop/client: {}\nshop/old: {labels: {app: none}}\nshop/new: {labels: {app: dns}}")
        agent.write("cast.yaml", *service, *cast)
        agent.settle()
        moved_to(client, "shop/new")


def moved_to(connection: Connection, label: str) -> None:
    """Its entry is removed just after the backend is."""
    rig.wait_until(lambda: connection.exchange(DROPPED_S).label == label, ANSWERED_S)


def test_other_connections_lose_nothing_while_backends_come_and_go(cast: Cluster) -> None:
    rows = list(parse("shop/other service:shop/one TCP/80 answered\n shop/other service:shop/one UDP/80 answered"))
    with ExitStack() as stack:
        stack.callback(cast.delete, LIVE)
        pulses = [stack.enter_context(Pulse(cast.connect(row))) for row in rows]
        for number in range(10):
            cast.write(LIVE, *pods(f"shop/x{number}: {{labels: {{app: back, one: b1}}}}"))
        for pulse in pulses:
            pulse.stop()
            assert pulse.sent > 1
            assert not pulse.lost


# ---- who may

POLICIES = """
shop/back:
  podSelector: {matchLabels: {app: back}}
  policyTypes: [Ingress, Egress]
  ingress:
  - {from: [{podSelector: {matchLabels: {app: client}}}], ports: [{port: http}, {port: 5353, protocol: UDP}]}
shop/client:
  podSelector: {matchLabels: {app: client}}
  policyTypes: [Egress]
  egress: [{to: [{podSelector: {matchLabels: {app: back}}}], ports: [{port: 8080}, {port: 5353, protocol: UDP}]}]
"""


def test_policy_is_about_the_backend_not_the_frontend(cast: Cluster) -> None:
    with cast.written(LIVE, *objects("NetworkPolicy", POLICIES)):
        cast.check("""
            shop/client  service:shop/one      TCP/80   answered  NetworkPolicy shop/back ingress[0]
            shop/client  service:shop/one      UDP/80   answered  NetworkPolicy shop/client egress[0]
            shop/client  service:shop/some     TCP/80   dropped   # 9090 behind it
            shop/client  service:shop/empty    TCP/80   refused   NO_BACKEND
            shop/other   service:shop/one      TCP/80   dropped
            shop/other   service:shop/one      UDP/80   dropped
            shop/b1      service:shop/one      TCP/80   answered  # itself
            shop/b1      service:shop/one      UDP/80   answered
            shop/b2      service:shop/one      TCP/80   dropped
        """)


def test_a_pod_reaches_itself_through_its_service(cast: Cluster) -> None:
    """It sees the hairpin address as its peer: its own would be taken for spoofed."""
    cast.check("""
        shop/b1  service:shop/one   TCP/80   answered  self
        shop/b1  service:shop/one   UDP/80   answered  self
    """)
    pod = cast.netns("shop/b1")
    assert probes.tcp(pod, cast.ip("service:shop/one"), 80, ANSWERED_S).seen_from == "169.254.42.1"
    assert probes.tcp(pod, cast.ip("service:shop/one", "v6"), 80, ANSWERED_S).seen_from == "fdff:6761:7465::1"


def test_backends_outside_the_node(cast: Cluster) -> None:
    """A service without selector, whose slices name addresses that are no pods."""
    outside = [(rig.OUTSIDE_V4, "ready"), (rig.OUTSIDE_V6, "ready")]
    documents = [
        *plain("shop/far"), *slices("shop/far", 8080, *outside),
        *plain("shop/fardns", "UDP"), *slices("shop/fardns", 5353, *outside, protocol="UDP"),
    ]  # fmt: skip
    reach = "shop/client  service:shop/far  TCP/80  {}\n shop/client  service:shop/fardns  UDP/80  {}"
    with cast.written(LIVE, *documents):
        cast.check(reach.format("answered", "answered"))
        allowed = """
            shop/p: {podSelector: {matchLabels: {app: client}}, egress: [{to: [{ipBlock: {cidr: 192.0.2.2/32}}]}]}
        """
        cast.write(LIVE, *documents, *objects("NetworkPolicy", allowed))
        for row in ("service:shop/far TCP/80", "service:shop/fardns UDP/80"):
            cast.check(f"shop/client {row}/v4 answered NetworkPolicy shop/p egress[0]\n shop/client {row}/v6 dropped")

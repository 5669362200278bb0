"""What becomes of live flows when the backends of their service change, on real packets.

A test's own sockets are in no cgroup of an agent's: tc translates their packets. Processes of pods have theirs
translated when they connect.
"""

from __future__ import annotations

import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import ExitStack

import probes
import pytest
import rig
from agents import RunningAgent, environment, pod
from given_slices import both, plain, slices
from probes import DATAGRAM, STREAM, Connection, Server
from talker import MOVED, Talker, await_reset
from traffic import ANSWERED_S, FAMILIES, Cluster, Pulse, objects, parse, pods

from agent.api import client
from agent.flows.flow import FlowType

CAST, LIVE = "changes-cast.yaml", "changes-live.yaml"
PORTS = {"TCP": 8080, "UDP": 5353}


@pytest.fixture(scope="module")
def cast(cluster: Cluster) -> Iterator[Cluster]:
    with cluster.written(CAST, *pods("turn/b1: {}\nturn/b2: {}\nturn/client: {}")), ExitStack() as stack:
        cluster.serve("turn/b1 TCP/8080 UDP/5353", "turn/b2 TCP/8080 UDP/5353", stack=stack)
        yield cluster


@pytest.fixture
def live(cast: Cluster) -> Iterator[Cluster]:
    yield cast
    cast.delete(LIVE)


def write(cast: Cluster, protocol: str, **services: dict[str, str]) -> None:
    """Services by name, each with the states of its backends: web={"b1": "ready"}."""
    cast.write(
        LIVE,
        *(
            document
            for name, backends in services.items()
            for document in (
                *plain(f"turn/{name}", protocol),
                *slices(
                    f"turn/{name}",
                    PORTS[protocol],
                    *(end for backend, state in backends.items() for end in both(cast, f"turn/{backend}", state)),
                    protocol=protocol,
                ),
            )
        ),
    )


def connect(cast: Cluster, service: str, protocol: str, family: str) -> Connection:
    (row,) = parse(f"turn/client service:turn/{service} {protocol}/80/{family} answered")
    return cast.connect(row)


ENDS = {
    "removed": {"b2": "ready"},
    "terminated": {"b1": "gone", "b2": "ready"},
    "unready": {"b1": "unready", "b2": "ready"},
}


@pytest.mark.parametrize("end", ENDS)
@pytest.mark.parametrize("family", FAMILIES)
def test_a_udp_client_that_never_stops_is_on_the_new_backend_within_a_second_lesson_20(
    live: Cluster, family: str, end: str
) -> None:
    write(live, "UDP", dns={"b1": "ready"}, other={"b1": "ready"})
    with (
        Talker(connect(live, "dns", "UDP", family)) as talker,
        Talker(connect(live, "other", "UDP", family)) as other,
    ):
        talker.first("turn/b1:5353")
        other.first("turn/b1:5353")
        write(live, "UDP", dns=ENDS[end], other={"b1": "ready"})
        in_force = talker.sent
        assert talker.first("turn/b2:5353") - in_force < MOVED
        assert set(talker.heard(50)) == {"turn/b2:5353"}
        assert set(other.heard(50)) == {"turn/b1:5353"}, "another service has that backend still"


@pytest.mark.parametrize("family", FAMILIES)
def test_a_udp_client_whose_backend_falls_silent_moves_as_fast_lesson_20(live: Cluster, family: str) -> None:
    """Its pod goes with it, and nobody answers from there."""
    with ExitStack() as stack:
        live.write("changes-late.yaml", *pods("turn/late: {}"))
        stack.callback(live.delete, "changes-late.yaml")
        servers = stack.enter_context(ExitStack())
        live.serve("turn/late UDP/5353", stack=servers)
        write(live, "UDP", dns={"late": "ready"})
        talker = stack.enter_context(Talker(connect(live, "dns", "UDP", family)))
        talker.first("turn/late:5353")
        servers.close()
        write(live, "UDP", dns={"b2": "ready"})
        live.delete("changes-late.yaml")
        in_force = talker.sent
        assert talker.first("turn/b2:5353") - in_force < MOVED


@pytest.mark.parametrize("state", ["terminating", "unready", "gone"])
@pytest.mark.parametrize("family", FAMILIES)
def test_a_connection_lives_until_its_backend_is_listed_no_more_lesson_21(
    live: Cluster, family: str, state: str
) -> None:
    write(live, "TCP", web={"b1": "ready"}, other={"b1": "ready"}, leaves={"b1": "ready"})
    with ExitStack() as stack:
        ours, idle, others, left = (
            stack.enter_context(connect(live, name, "TCP", family)) for name in ("web", "web", "other", "leaves")
        )
        direct = stack.enter_context(
            Connection(live.netns("turn/client"), STREAM, live.ip("turn/b1", family), PORTS["TCP"])
        )
        for connection in (ours, idle, others, left, direct):
            assert connection.exchange(ANSWERED_S).label == "turn/b1:8080"
        port = ours.socket.getsockname()[1]
        write(live, "TCP", web={"b1": state, "b2": "ready"}, other={"b1": "ready"}, leaves={})
        await_reset(left)
        client.call(live.agent.instance.flows_socket, "forget", ips=[])  # answered after the next whole sweep
        assert ours.exchange(ANSWERED_S).label == "turn/b1:8080", "not dropped at once"
        with connect(live, "web", "TCP", family) as fresh:
            assert fresh.exchange(ANSWERED_S).label == "turn/b2:8080", "not used by others"
        write(live, "TCP", web={"b2": "ready"}, other={"b1": "ready"})
        await_reset(ours, idle)
        drop, *_ = rig.wait_until(lambda: live.verdicts.flows(port, "TCP", FlowType.DROP), ANSWERED_S)
        assert drop.service is not None
        assert (drop.verdict, drop.drop_reason, drop.service.name) == ("REFUSED", "BACKEND_GONE", "web")
        assert others.exchange(ANSWERED_S).label == "turn/b1:8080"
        assert direct.exchange(ANSWERED_S).label == "turn/b1:8080"


@pytest.mark.parametrize("family", FAMILIES)
def test_a_service_that_is_deleted_ends_its_connections(live: Cluster, family: str) -> None:
    write(live, "TCP", web={"b1": "ready"}, other={"b1": "ready"})
    with connect(live, "web", "TCP", family) as ours, connect(live, "other", "TCP", family) as others:
        assert ours.exchange(ANSWERED_S)
        assert others.exchange(ANSWERED_S)
        write(live, "TCP", other={"b1": "ready"})
        await_reset(ours)
        assert others.exchange(ANSWERED_S)


@pytest.mark.parametrize("family", FAMILIES)
def test_the_ports_of_a_refused_connection_begin_another(live: Cluster, family: str) -> None:
    """A client that comes back from the same port, while the backend is gone, and when it is back."""
    write(live, "TCP", web={"b1": "ready"})
    source = live.ip("turn/client", family), 21234
    target = live.ip("service:turn/web", family), 80
    netns = live.netns("turn/client")
    for states, expected in (({"b1": "ready"}, "b1"), ({"b2": "ready"}, "b2"), ({"b1": "ready"}, "b1")):
        write(live, "TCP", web=states)
        with Connection(netns, STREAM, *target, source) as connection:
            assert connection.exchange(ANSWERED_S).label == f"turn/{expected}:8080"
            write(live, "TCP", web={})
            rig.wait_until(lambda: not connection.exchange(ANSWERED_S), ANSWERED_S)  # called at once


def test_flows_to_backends_that_come_and_go_lose_nothing_elsewhere(live: Cluster) -> None:
    write(live, "TCP", web={"b1": "ready"}, other={"b1": "ready"})
    with ExitStack() as stack:
        pulses = [stack.enter_context(Pulse(connect(live, "other", "TCP", family))) for family in FAMILIES]
        for _ in range(5):
            write(live, "TCP", web={"b2": "ready"}, other={"b1": "ready"})
            write(live, "TCP", web={"b1": "ready"}, other={"b1": "ready", "b2": "terminating"})
        for pulse in pulses:
            pulse.stop()
            assert pulse.sent > 1
            assert not pulse.lost


# ---- agents of their own

NODE_CAST = """
shop/client: {}
shop/old: {labels: {app: OLD}}
shop/new: {labels: {app: NEW}}
"""
SERVICE = """
shop/both:
  selector: {app: back}
  ports: [{name: u, port: 53, targetPort: 5353, protocol: UDP}, {name: t, port: 80, targetPort: 8080}]
"""


def put(agent: RunningAgent, old: str, new: str, service: str = SERVICE) -> None:
    cast = NODE_CAST.replace("OLD", old).replace("NEW", new)
    agent.write("cast.yaml", *pods(cast), *(objects("Service", service) if service else []))


@pytest.mark.parametrize("gone", ["backend", "service"])
def test_what_goes_while_no_agent_runs_is_not_missed(agent: RunningAgent, gone: str) -> None:
    put(agent, "back", "none")
    agent.start()
    (service,) = agent.json("services")
    address = service["ips"][0]
    with ExitStack() as stack:
        for name in ("shop/old", "shop/new"):
            for kind, port in (("udp", 5353), ("tcp", 8080)):
                stack.enter_context(Server(agent.netns(name), kind, port, name))
        netns = agent.netns("shop/client")
        tcp = stack.enter_context(Connection(netns, STREAM, address, 80))
        udp = stack.enter_context(Connection(netns, DATAGRAM, address, 53))
        assert [c.exchange(ANSWERED_S).label for c in (tcp, udp)] == ["shop/old", "shop/old"]
        agent.kill()
        assert [c.exchange(ANSWERED_S).label for c in (tcp, udp)] == ["shop/old", "shop/old"]
        put(agent, "none", "back", SERVICE if gone == "backend" else "")
        agent.start()
        await_reset(tcp)
        if gone == "backend":
            rig.wait_until(lambda: udp.exchange(0.3).label == "shop/new", ANSWERED_S)
        else:
            rig.wait_until(lambda: not udp.exchange(0.3), ANSWERED_S)


AFFINE = """
shop/sticky:
  selector: {app: back}
  sessionAffinity: ClientIP
  sessionAffinityConfig: {clientIP: {timeoutSeconds: SECONDS}}
  ports: [{port: 80, targetPort: 8080}]
"""


def test_without_room_for_affinity_new_connections_fail_and_old_ones_live_lesson_17(agent: RunningAgent) -> None:
    """Two clients have room; a third has none, until one of the others has not come back for its service's time-out."""
    agent.flags = ("--map-sizes", "affinity=2")
    clients = [f"shop/c{number}" for number in range(3)]
    agent.write("cast.yaml", pod("shop/back", app="back"), *map(pod, clients))
    agent.write("sticky.yaml", *objects("Service", AFFINE.replace("SECONDS", "10800")))
    agent.start()
    (service,) = agent.json("services")
    address = next(ip for ip in service["ips"] if ":" not in ip)
    flows = agent.instance.flows_socket
    with ExitStack() as stack:
        stack.enter_context(Server(agent.netns("shop/back"), "tcp", 8080, "back"))
        lasting = [stack.enter_context(Connection(agent.netns(name), STREAM, address, 80)) for name in clients[:2]]
        assert all(connection.exchange(ANSWERED_S) for connection in lasting)
        late = agent.netns(clients[2])
        assert probes.tcp(late, address, 80, 0.3).result == "timeout"
        assert agent.status()["drops"]["AFFINITY_FULL"] >= 1
        assert agent.status()["tallies"]["affinity_full"] >= 1
        assert all(connection.exchange(ANSWERED_S) for connection in lasting)
        agent.write("sticky.yaml", *objects("Service", AFFINE.replace("SECONDS", "1")))
        rig.wait_until(lambda: probes.tcp(late, address, 80, 0.3), 60)
        assert all(connection.exchange(ANSWERED_S) for connection in lasting)
        swept = client.call(flows, "stats")["maps"]["affinity"]
        assert (swept["capacity"], swept["expired"] + swept["entries"] > 0) == (2, True)
        assert next(m for m in agent.status()["datapath"]["maps"] if m["name"] == "affinity")["capacity"] == 2


# ---- translated sockets

TALK = """
import errno, socket, sys, time
kind, address, port = sys.argv[1], sys.argv[2], int(sys.argv[3])
family = socket.AF_INET6 if ":" in address else socket.AF_INET
last, ends, s = "", time.monotonic() + 100, None

def say(what):
    global last
    if what != last:
        print(what, time.monotonic(), flush=True)
        last = what

while time.monotonic() < ends:
    try:
        if s is None:
            s = socket.socket(family, socket.SOCK_DGRAM)
            s.settimeout(0.02)
            if kind == "connected":
                s.connect((address, port))
        s.send(b"talk") if kind == "connected" else s.sendto(b"talk", (address, port))
        say(s.recv(200).split()[0].decode())
        time.sleep(0.002)
    except TimeoutError:
        pass
    except OSError as error:
        say(errno.errorcode[error.errno])
        s.close()
        s = None
"""
WAIT = """
import errno, socket, sys, time
s = socket.create_connection((sys.argv[2], int(sys.argv[3])), 30)
s.settimeout(100)
s.send(b"talk")
print(s.recv(200).split()[0].decode(), time.monotonic(), flush=True)
try:
    s.recv(200)
except OSError as error:
    print(errno.errorcode[error.errno], time.monotonic(), flush=True)
"""
"""Both print what happens, with the time (CLOCK_MONOTONIC): who answers, or the name of an error."""


DISCONNECTED = "ECONNABORTED", "EDESTADDRREQ"
"""What receiving from and sending to a connected UDP socket says that the kernel was told to end."""


class Inside:
    """A process of a pod, whose sockets are translated."""

    def __init__(self, cast: Cluster, place: str, script: str, *arguments: str) -> None:
        words = [sys.executable, "-m", "agent.cli.main", "exec", place, "--", sys.executable, "-c", script, *arguments]
        env = environment() | {"GATEHOUSE_STATE_DIR": str(cast.agent.instance.state_dir)}
        self._process = subprocess.Popen(words, stdout=subprocess.PIPE, env=env, text=True)

    def says(self) -> tuple[str, float]:
        assert self._process.stdout is not None
        line = self._process.stdout.readline()
        assert line, "it has ended"
        what, when = line.split()
        return what, float(when)

    def __enter__(self) -> Inside:
        return self

    def __exit__(self, *_: object) -> None:
        self._process.kill()
        self._process.wait()
        assert self._process.stdout is not None
        self._process.stdout.close()


@pytest.mark.parametrize("kind", ["connected", "sendto"])
@pytest.mark.parametrize("family", FAMILIES)
def test_a_translated_udp_socket_leaves_a_backend_that_is_gone_lesson_20(live: Cluster, family: str, kind: str) -> None:
    """A connected one is told so, and connects anew; one that is not need not know."""
    write(live, "UDP", dns={"b1": "ready"}, other={"b1": "ready"})
    targets = [live.ip(f"service:turn/{name}", family) for name in ("dns", "other")]
    with (
        Inside(live, "turn/client", TALK, kind, targets[0], "80") as talker,
        Inside(live, "turn/client", TALK, kind, targets[1], "80") as other,
    ):
        assert talker.says()[0] == other.says()[0] == "turn/b1:5353"
        write(live, "UDP", dns={"b2": "ready"}, other={"b1": "ready"})
        if kind == "connected":
            assert talker.says()[0] in DISCONNECTED
        assert talker.says()[0] == "turn/b2:5353"
        write(live, "UDP", dns={"b2": "ready"}, other={"b2": "ready"})
        after = DISCONNECTED if kind == "connected" else ("turn/b2:5353",)
        assert other.says()[0] in after, "until now it stayed"


@pytest.mark.parametrize("family", FAMILIES)
def test_a_translated_connection_ends_once_its_backend_is_listed_no_more_lesson_21(live: Cluster, family: str) -> None:
    """A client that only waits for an answer hears of it."""
    write(live, "TCP", web={"b1": "ready"}, other={"b1": "ready"})
    targets = [live.ip(f"service:turn/{name}", family) for name in ("web", "other")]
    with (
        Inside(live, "turn/client", WAIT, "", targets[0], "80") as ours,
        Inside(live, "turn/client", WAIT, "", targets[1], "80") as others,
    ):
        assert ours.says()[0] == others.says()[0] == "turn/b1:8080"
        write(live, "TCP", web={"b1": "terminating", "b2": "ready"}, other={"b1": "ready"})
        before = time.monotonic()
        write(live, "TCP", web={"b2": "ready"}, other={"b1": "ready"})
        what, when = ours.says()
        assert what == "ECONNABORTED"
        assert when > before, "until now it stayed"
        before = time.monotonic()
        write(live, "TCP")
        what, when = others.says()
        assert (what, when > before) == ("ECONNABORTED", True), "until now it stayed"

"""What becomes of live flows of clients outside when the backends of their node port change, on real packets.

Backends are pods of the node, reached through its stack, or addresses elsewhere, to which it translates both ends.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path

import probes
import pytest
import rig
from agents import Document, RunningAgent
from given_slices import slices
from probes import DATAGRAM, STREAM, Connection, Server
from talker import MOVED, Talker, await_reset
from traffic import ANSWERED_S, EXTRA_V4, EXTRA_V6, FAMILIES, Cluster, objects, pods

LIVE = "changes-live.yaml"
NODE_PORT = {"TCP": 31080, "UDP": 31053}
TARGET = {"TCP": 8080, "UDP": 5353}
AWAY = {"x1": (EXTRA_V4[0], EXTRA_V6[0]), "x2": (EXTRA_V4[1], EXTRA_V6[1])}
"""Backends elsewhere."""
SETS = [("b1", "b2"), ("x1", "x2")]
NODE = {"v4": rig.NODE_V4, "v6": rig.NODE_V6}


@pytest.fixture(scope="module")
def cluster(root: None, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Cluster]:
    with Cluster(tmp_path_factory.mktemp("outside"), exposed=True) as cluster, ExitStack() as stack:
        cluster.write("pods.yaml", *pods("turn/b1: {}\nturn/b2: {}"))
        for pod in ("b1", "b2"):
            for protocol, port in TARGET.items():
                stack.enter_context(Server(cluster.netns(f"turn/{pod}"), protocol.lower(), port, pod))
        for name, addresses in AWAY.items():
            for address in addresses:
                for protocol, port in TARGET.items():
                    stack.enter_context(Server(cluster.outside, protocol.lower(), port, name, address))
        yield cluster


@pytest.fixture
def live(cluster: Cluster) -> Iterator[Cluster]:
    yield cluster
    cluster.delete(LIVE)


def service(cluster: Cluster, protocol: str, *backends: str, state: str = "ready") -> list[Document]:
    node_port = f"{{port: 80, nodePort: {NODE_PORT[protocol]}, protocol: {protocol}}}"
    ends = [
        (address, state)
        for name in backends
        for address in (AWAY[name] if name in AWAY else cluster.place(f"turn/{name}")[1])
    ]
    return [
        *objects("Service", f"turn/web: {{type: NodePort, ports: [{node_port}]}}"),
        *slices("turn/web", TARGET[protocol], *ends, protocol=protocol),
    ]


@pytest.mark.parametrize("backends", SETS, ids=["pods", "elsewhere"])
@pytest.mark.parametrize("family", FAMILIES)
def test_a_udp_client_outside_is_on_the_new_backend_within_a_second_lesson_20(
    live: Cluster, family: str, backends: tuple[str, str]
) -> None:
    old, new = backends
    live.write(LIVE, *service(live, "UDP", old))
    with Talker(Connection(live.outside, DATAGRAM, NODE[family], NODE_PORT["UDP"])) as talker:
        talker.first(old)
        live.write(LIVE, *service(live, "UDP", new))
        in_force = talker.sent
        assert talker.first(new) - in_force < MOVED
        assert set(talker.heard(50)) == {new}


@pytest.mark.parametrize("backends", SETS, ids=["pods", "elsewhere"])
@pytest.mark.parametrize("family", FAMILIES)
def test_a_connection_from_outside_lives_until_its_backend_is_listed_no_more_lesson_21(
    live: Cluster, family: str, backends: tuple[str, str]
) -> None:
    old, new = backends
    live.write(LIVE, *service(live, "TCP", old))
    with ExitStack() as stack:
        ours, idle = (
            stack.enter_context(Connection(live.outside, STREAM, NODE[family], NODE_PORT["TCP"])) for _ in range(2)
        )
        assert ours.exchange(ANSWERED_S).label == idle.exchange(ANSWERED_S).label == old
        live.write(LIVE, *service(live, "TCP", old, state="terminating"))
        assert ours.exchange(ANSWERED_S).label == old, "not dropped at once"
        live.write(LIVE, *service(live, "TCP", new))
        await_reset(ours, idle)
        with Connection(live.outside, STREAM, NODE[family], NODE_PORT["TCP"]) as fresh:
            assert fresh.exchange(ANSWERED_S).label == new


def test_without_room_for_translations_new_connections_fail_and_old_ones_live_lesson_17(
    node: rig.Node, outside: rig.Outside, tmp_path: Path
) -> None:
    """Room for two; the third finds some once one of them has ended and its entries are removed."""
    with RunningAgent(node, tmp_path, "--map-sizes", "nat=4", "--timeouts", "close=0.5") as agent, ExitStack() as stack:
        node_port = f"{{port: 80, nodePort: {NODE_PORT['TCP']}, targetPort: 8080}}"
        web = f"shop/web: {{type: NodePort, selector: {{app: web}}, ports: [{node_port}]}}"
        agent.write("cast.yaml", *pods("shop/web: {labels: {app: web}}"), *objects("Service", web))
        agent.start("--devices", outside.link)
        stack.enter_context(Server(agent.netns("shop/web"), "tcp", 8080, "web"))
        lasting = [stack.enter_context(Connection(outside, STREAM, rig.NODE_V4, NODE_PORT["TCP"])) for _ in range(2)]
        assert all(connection.exchange(ANSWERED_S) for connection in lasting)
        assert probes.tcp(outside, rig.NODE_V4, NODE_PORT["TCP"], 0.3).result == "timeout"
        status = agent.status()
        assert status["drops"]["NAT_FULL"] >= 1
        assert all(connection.exchange(ANSWERED_S) for connection in lasting)
        lasting[1].socket.close()
        rig.wait_until(lambda: probes.tcp(outside, rig.NODE_V4, NODE_PORT["TCP"], 0.3), 60)
        assert lasting[0].exchange(ANSWERED_S)

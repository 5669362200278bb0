"""The way to proxies and back, with real traffic: rows that an agent has made are turned into REDIRECT by hand, and a
proxy that lets everything through stands in for Envoy and the DNS proxy."""

from __future__ import annotations

import random
import socket
import struct
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path

import probes
import pytest
import rig
from agents import Document
from probes import Connection, Server
from traffic import ANSWERED_S, DROPPED_S, EXTRA_V4, EXTRA_V6, Cluster, objects, pods
from transparent_proxy import TransparentProxy

from agent.datapath import abi, apply
from agent.datapath.abi import be16
from agent.datapath.maps import Maps
from agent.plan.ids import rule_id
from agent.proxy.feature import Feature
from policies.model import Direction, ObjectRef, RuleRef

ABI = abi.load()
NUMBERS = ABI.constants
PORT = 8080
EGRESS, INGRESS = 0xE000_0000_0000_0001, 0x1000_0000_0000_0002
RULES = {
    EGRESS: RuleRef(ObjectRef("NetworkPolicy", "shop", "out"), Direction.EGRESS, 0),
    INGRESS: RuleRef(ObjectRef("NetworkPolicy", "shop", "in"), Direction.INGRESS, 0),
}
"""Listeners, and the rules whose rows are made to lead to them."""
DOCUMENTS: list[Document] = [
    *pods("""
    shop/client: {labels: {app: client}}
    shop/web: {labels: {app: web}, ports: [{containerPort: 8080}]}
    shop/other: {labels: {app: other}}
    """),
    *objects("NetworkPolicy", """
    shop/out:
      podSelector: {matchLabels: {app: client}}
      policyTypes: [Egress]
      egress:
      - {ports: [{port: 8080, protocol: TCP}, {port: 8080, protocol: UDP}]}
      - {ports: [{port: 9090, protocol: TCP}]}
    shop/in:
      podSelector: {matchLabels: {app: web}}
      policyTypes: [Ingress]
      ingress:
      - {ports: [{port: 8080, protocol: TCP}, {port: 8080, protocol: UDP}]}
      - {ports: [{port: 9090, protocol: TCP}]}
    """),
    {"apiVersion": "v1", "kind": "Service", "metadata": {"namespace": "shop", "name": "web"},
     "spec": {"type": "NodePort", "selector": {"app": "web"}, "ipFamilyPolicy": "RequireDualStack", "ports": [
         {"name": "tcp", "port": 80, "targetPort": 8080, "nodePort": 30080},
         {"name": "udp", "port": 80, "targetPort": 8080, "nodePort": 30080, "protocol": "UDP"}]}},
]  # fmt: skip
FAMILIES = ("v4", "v6")
PROBES = {"tcp": (probes.tcp, socket.SOCK_STREAM), "udp": (probes.udp, socket.SOCK_DGRAM)}


class Redirected:
    """A cluster whose rows lead to proxies; what they say is put back at the end."""

    def __init__(self, cluster: Cluster, maps: Maps) -> None:
        self.cluster = cluster
        self.maps = maps

    def serve(self, listener: int, proxy: TransparentProxy | None) -> None:
        """Where its proxy listens; None: nowhere."""
        key = struct.pack("=Q", listener)
        if proxy is None:
            self.maps["listeners"].delete(key)
            return
        ports = {"tcp_port_be": be16(proxy.tcp_port), "udp_port_be": be16(proxy.udp_port)}
        self.maps["listeners"].update(key, ABI.records["listener_value"].pack(**ports))

    def judge(self, listener: int, verdict: int) -> None:
        """What the cells of its rule say from now on."""
        record, rule = ABI.records["policy_row_value"], rule_id(RULES[listener])
        found = 0
        for key, data in list(self.maps["policy_row"].items()):
            if record.unpack(data).rule == rule:
                redirected = listener if verdict == NUMBERS.VERDICT_REDIRECT else 0
                self.maps["policy_row"].update(key, record.pack(rule=rule, verdict=verdict, listener=redirected))
                found += 1
        assert found, RULES[listener]
        apply.increase_epoch(self.maps)

    @contextmanager
    def by(self, *listeners: int, keeps_port: bool = False) -> Iterator[list[TransparentProxy]]:
        """Flows of these listeners' rules go by proxies."""
        proxies = [TransparentProxy(self.cluster.node, listener == INGRESS, keeps_port) for listener in listeners]
        try:
            for listener, proxy in zip(listeners, proxies, strict=True):
                self.serve(listener, proxy)
                self.judge(listener, NUMBERS.VERDICT_REDIRECT)
            yield proxies
        finally:
            for listener, proxy in zip(listeners, proxies, strict=True):
                self.judge(listener, NUMBERS.VERDICT_ALLOW)
                self.serve(listener, None)
                proxy.close()

    def drops(self, reason: str) -> int:
        return self.maps["drops"].sums()[NUMBERS[f"DROP_{reason}"]]

    def ip(self, name: str, family: str) -> str:
        return self.cluster.ip(name, family)


@pytest.fixture(scope="module")
def redirected(datapath_host: None, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Redirected]:
    folder: Path = tmp_path_factory.mktemp("proxy-datapath")
    with Cluster(folder, "--masquerade", exposed=True) as cluster:
        cluster.write("shop.yaml", *DOCUMENTS)
        with Maps.open_pinned(cluster.agent.instance.pins.maps) as maps:
            redirected = Redirected(cluster, maps)
            cluster.node.call(Feature(maps["config"]).turn_on)
            yield redirected


@pytest.fixture(scope="module")
def servers(redirected: Redirected) -> Iterator[dict[str, rig.Netns]]:
    """Answer on the port in a pod, outside, and in the node at all addresses: what is for others must not get there."""
    places = {"shop/web": redirected.cluster.netns("shop/web"), "outside": redirected.cluster.outside}
    made = [Server(places["shop/web"], kind, PORT, "shop/web") for kind in PROBES]
    made += (Server(redirected.cluster.node, kind, PORT, "node") for kind in PROBES)
    for address in (rig.OUTSIDE_V4, rig.OUTSIDE_V6):  # of its many addresses it answers from the one that was asked
        made += (Server(places["outside"], kind, PORT, "outside", address) for kind in PROBES)
    made.append(Server(places["shop/web"], "tcp", 9090, "plain"))
    try:
        yield places
    finally:
        for server in made:
            server.close()


WAYS = [
    # from, to, who is asked
    ("shop/client", "shop/web", (EGRESS,)),
    ("shop/client", "outside", (EGRESS,)),
    ("shop/client", "node", (EGRESS,)),
    ("shop/client", "shop/web", (INGRESS,)),
    ("shop/other", "shop/web", (INGRESS,)),
    ("outside", "shop/web", (INGRESS,)),
    ("shop/client", "shop/web", (EGRESS, INGRESS)),
]


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize("kind", PROBES)
@pytest.mark.parametrize(("source", "to", "listeners"), WAYS)
def test_there_and_back(
    redirected: Redirected,
    servers: dict[str, rig.Netns],
    source: str,
    to: str,
    listeners: tuple[int, ...],
    kind: str,
    family: str,
) -> None:
    netns, here, there = redirected.cluster.netns(source), redirected.ip(source, family), redirected.ip(to, family)
    masked = {"v4": rig.NODE_V4, "v6": rig.NODE_V6}[family] if to == "outside" else ""
    with redirected.by(*listeners) as proxies:
        answer = PROBES[kind][0](netns, there, PORT, ANSWERED_S, (here, 0))
        assert answer == probes.Answer("ok", to, masked or here), "the server sees who asked, and the answer finds back"
        for proxy in proxies:
            (seen,) = proxy.take()
            assert (seen.protocol, seen.source, seen.destination, seen.port) == (kind, here, there, PORT)
    assert PROBES[kind][0](netns, there, PORT, ANSWERED_S).label == to, "and without proxies"


THROUGH = [
    # from, to, port, who is asked
    ("shop/client", "service:shop/web", 80, (EGRESS,)),
    ("shop/client", "service:shop/web", 80, (INGRESS,)),
    ("shop/client", "service:shop/web", 80, (EGRESS, INGRESS)),
    ("outside", "node", 30080, (INGRESS,)),
]


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize("kind", PROBES)
@pytest.mark.parametrize(("source", "to", "port", "listeners"), THROUGH)
def test_through_a_service(
    redirected: Redirected,
    servers: dict[str, rig.Netns],
    source: str,
    to: str,
    port: int,
    listeners: tuple[int, ...],
    kind: str,
    family: str,
) -> None:
    """The proxy sees the backend; who asked is answered by whom he asked."""
    netns, here = redirected.cluster.netns(source), redirected.ip(source, family)
    with redirected.by(*listeners) as proxies:
        answer = PROBES[kind][0](netns, redirected.ip(to, family), port, ANSWERED_S, (here, 0))
        assert answer == probes.Answer("ok", "shop/web", here)
        for proxy in proxies:
            (seen,) = proxy.take()
            assert (seen.source, seen.destination, seen.port) == (here, redirected.ip("shop/web", family), PORT)


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize("kind", PROBES)
@pytest.mark.parametrize(("source", "to", "listeners"), [way for way in WAYS if way[1] != "node"])
def test_a_proxy_may_get_the_port_of_who_asked(
    redirected: Redirected,
    servers: dict[str, rig.Netns],
    source: str,
    to: str,
    listeners: tuple[int, ...],
    kind: str,
    family: str,
) -> None:
    """The kernel, which gives it one, does not know the pod's. Two proxies may get it, of which one asks the other."""
    netns, there, client = redirected.cluster.netns(source), redirected.ip(to, family), redirected.ip(source, family)
    with redirected.by(*listeners, keeps_port=True) as proxies:
        with Connection(netns, PROBES[kind][1], there, PORT, (client, 0)) as connection:
            assert connection.exchange(ANSWERED_S).label == to
            assert connection.exchange(ANSWERED_S).label == to
        assert all(proxy.take() for proxy in proxies)


NOBODY = ["shop/other", "elsewhere"]
"""Where no server listens."""


def address_of(redirected: Redirected, name: str, family: str) -> str:
    if name == "elsewhere":
        return (EXTRA_V4 if family == "v4" else EXTRA_V6)[0]
    return redirected.ip(name, family)


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize("to", NOBODY)
def test_icmp_errors_find_the_proxy(redirected: Redirected, to: str, family: str) -> None:
    there = address_of(redirected, to, family)
    with redirected.by(EGRESS) as (proxy,):
        with Connection(redirected.cluster.netns("shop/client"), probes.DATAGRAM, there, PORT) as connection:
            assert connection.exchange(DROPPED_S).result == "timeout", "they are the proxy's to deal with"
        rig.wait_until(lambda: proxy.refused == [there], ANSWERED_S, "an error that reaches the proxy")
        assert probes.tcp(redirected.cluster.netns("shop/client"), there, PORT, ANSWERED_S).result == "refused"


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize("to", NOBODY)
def test_answers_in_fragments(redirected: Redirected, to: str, family: str) -> None:
    there = address_of(redirected, to, family)
    netns = redirected.cluster.netns(to) if to != "elsewhere" else redirected.cluster.outside
    message = random.Random(7).randbytes(4000)
    af = socket.AF_INET6 if family == "v6" else socket.AF_INET
    with redirected.by(EGRESS), netns.call(socket.socket, af, socket.SOCK_DGRAM) as server:
        server.bind((there, PORT))
        server.settimeout(ANSWERED_S)
        with redirected.cluster.netns("shop/client").call(socket.socket, af, socket.SOCK_DGRAM) as client:
            client.settimeout(ANSWERED_S)
            client.sendto(b"x", (there, PORT))
            server.sendto(message, server.recvfrom(100)[1])
            assert client.recv(65536) == message


SIZE = 3_000_000


def received(sock: socket.socket, size: int) -> bytes:
    """Less, where the other end has closed."""
    got = bytearray()
    while len(got) < size and (part := sock.recv(65536)):
        got += part
    return bytes(got)


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize("to", NOBODY)
def test_much_at_once(redirected: Redirected, to: str, family: str) -> None:
    """Segments that are joined on the way, and windows that fill."""
    there = address_of(redirected, to, family)
    netns = redirected.cluster.netns(to) if to != "elsewhere" else redirected.cluster.outside
    message = random.Random(7).randbytes(SIZE)
    af = socket.AF_INET6 if family == "v6" else socket.AF_INET

    def serve(listener: socket.socket) -> bytes:
        with listener.accept()[0] as sock:
            sock.settimeout(ANSWERED_S)
            got = received(sock, SIZE)
            sock.sendall(got)
        return got

    with redirected.by(EGRESS) as (proxy,), netns.call(socket.socket, af) as listener, ThreadPoolExecutor(1) as thread:
        listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        listener.bind((there, PORT))
        listener.listen()
        listener.settimeout(ANSWERED_S)
        served = thread.submit(serve, listener)
        with redirected.cluster.netns("shop/client").call(socket.socket, af) as client:
            client.settimeout(ANSWERED_S)
            client.connect((there, PORT))
            client.sendall(message)
            assert received(client, SIZE) == message
        assert served.result(ANSWERED_S) == message
        assert len(proxy.take()) == 1


LIVE = [
    ("shop/client", "shop/web", (EGRESS,)),
    ("shop/other", "shop/web", (INGRESS,)),
    ("outside", "shop/web", (INGRESS,)),
    ("shop/client", "shop/web", (EGRESS, INGRESS)),
    ("shop/client", "outside", (EGRESS,)),
]


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize(("source", "to", "listeners"), LIVE)
def test_nothing_passes_when_the_proxy_is_gone(
    redirected: Redirected,
    servers: dict[str, rig.Netns],
    source: str,
    to: str,
    listeners: tuple[int, ...],
    family: str,
) -> None:
    netns, there, client = redirected.cluster.netns(source), redirected.ip(to, family), redirected.ip(source, family)
    with redirected.by(*listeners) as proxies:
        with Connection(netns, probes.STREAM, there, PORT, (client, 0)) as connection:
            assert connection.exchange(ANSWERED_S)
            before = redirected.drops("PROXY_UNREADY")
            redirected.judge(listeners[0], NUMBERS.VERDICT_DENY)  # so that a pod does not hear it of the proxy itself
            for proxy in proxies:
                proxy.close()
            redirected.judge(listeners[0], NUMBERS.VERDICT_REDIRECT)
            assert connection.exchange(ANSWERED_S).result == "refused"
        assert probes.tcp(netns, there, PORT, ANSWERED_S, (client, 0)).result == "refused"
        assert probes.udp(netns, there, PORT, ANSWERED_S, (client, 0)).result == "refused"
        assert redirected.drops("PROXY_UNREADY") >= before + 2
        assert to == "outside" or probes.tcp(netns, there, 9090, ANSWERED_S).label == "plain", "others go on"
        with TransparentProxy(redirected.cluster.node, ingress=listeners[0] == INGRESS) as fresh:
            for listener in listeners[:1]:
                redirected.serve(listener, fresh)
            if len(listeners) == 1:
                assert probes.tcp(netns, there, PORT, ANSWERED_S, (client, 0)), "another takes its place"


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize(("source", "to", "listeners"), LIVE)
def test_a_listener_that_is_not_ready_yet_is_waited_for(
    redirected: Redirected,
    servers: dict[str, rig.Netns],
    source: str,
    to: str,
    listeners: tuple[int, ...],
    family: str,
) -> None:
    netns, there, client = redirected.cluster.netns(source), redirected.ip(to, family), redirected.ip(source, family)
    with redirected.by(*listeners) as proxies:
        redirected.serve(listeners[0], None)
        before = redirected.drops("PROXY_UNREADY")
        for kind in PROBES:
            assert PROBES[kind][0](netns, there, PORT, DROPPED_S, (client, 0)).result == "timeout"
        assert redirected.drops("PROXY_UNREADY") >= before + 2
        assert all(not proxy.take() for proxy in proxies)
        redirected.serve(listeners[0], proxies[0])
        assert probes.tcp(netns, there, PORT, ANSWERED_S, (client, 0))


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize("kind", PROBES)
@pytest.mark.parametrize(("source", "to", "listeners"), LIVE)
def test_a_new_deny_stops_what_goes_by_a_proxy(
    redirected: Redirected,
    servers: dict[str, rig.Netns],
    source: str,
    to: str,
    listeners: tuple[int, ...],
    kind: str,
    family: str,
) -> None:
    netns, there, client = redirected.cluster.netns(source), redirected.ip(to, family), redirected.ip(source, family)
    with redirected.by(*listeners):
        for denied in listeners:
            with Connection(netns, PROBES[kind][1], there, PORT, (client, 0)) as connection:
                assert connection.exchange(ANSWERED_S)
                redirected.judge(denied, NUMBERS.VERDICT_DENY)
                assert connection.exchange(DROPPED_S).result == "timeout"
                assert PROBES[kind][0](netns, there, PORT, DROPPED_S, (client, 0)).result == "timeout"
                redirected.judge(denied, NUMBERS.VERDICT_REDIRECT)
                assert PROBES[kind][0](netns, there, PORT, ANSWERED_S, (client, 0))


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize(("source", "to", "listeners"), LIVE)
def test_a_connection_stays_with_whom_it_began(
    redirected: Redirected,
    servers: dict[str, rig.Netns],
    source: str,
    to: str,
    listeners: tuple[int, ...],
    family: str,
) -> None:
    """By the proxy, or not: one that now must be judged by a proxy cannot be, and ends at once."""
    netns, there, client = redirected.cluster.netns(source), redirected.ip(to, family), redirected.ip(source, family)
    with Connection(netns, probes.STREAM, there, PORT, (client, 0)) as plain:
        assert plain.exchange(ANSWERED_S)
        with redirected.by(*listeners) as proxies:
            assert plain.exchange(ANSWERED_S).result == "refused"
            assert all(not proxy.take() for proxy in proxies)
            with Connection(netns, probes.STREAM, there, PORT, (client, 0)) as judged:
                assert judged.exchange(ANSWERED_S)
                for listener in listeners:
                    redirected.judge(listener, NUMBERS.VERDICT_ALLOW)
                assert judged.exchange(ANSWERED_S)
                assert probes.tcp(netns, there, PORT, ANSWERED_S, (client, 0))
                assert [len(proxy.take()) for proxy in proxies] == [1] * len(proxies)
                for proxy in proxies:
                    proxy.close()
                assert judged.exchange(ANSWERED_S).result == "refused"


@pytest.mark.parametrize("family", FAMILIES)
def test_the_node_itself_is_not_judged(redirected: Redirected, servers: dict[str, rig.Netns], family: str) -> None:
    with redirected.by(INGRESS) as (proxy,):
        for kind in PROBES:
            assert PROBES[kind][0](redirected.cluster.node, redirected.ip("shop/web", family), PORT, ANSWERED_S)
        assert not proxy.take()
        redirected.judge(INGRESS, NUMBERS.VERDICT_DENY)
        assert probes.tcp(redirected.cluster.node, redirected.ip("shop/web", family), PORT, ANSWERED_S)


# ---- what a pod may try


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize(
    "mark",
    [
        NUMBERS.MARK_TO_PROXY,
        NUMBERS.MARK_FROM_EGRESS,
        NUMBERS.MARK_FROM_INGRESS,
        NUMBERS.MARK_PROXY_ANSWERS,
        NUMBERS.MARK_HAND_ON,
        NUMBERS.MARK_HAND_ON + PORT,
    ],
)
def test_a_mark_set_in_a_pod_means_nothing(
    redirected: Redirected, servers: dict[str, rig.Netns], mark: int, family: str
) -> None:
    """Nor does one set outside."""
    there = redirected.ip("shop/web", family)
    with redirected.by(INGRESS) as (proxy,):
        for name in ("shop/other", "outside"):
            here = redirected.ip(name, family)
            with redirected.cluster.netns(name).call(
                socket.socket, socket.AF_INET6 if family == "v6" else socket.AF_INET, socket.SOCK_DGRAM
            ) as sock:
                sock.setsockopt(socket.SOL_SOCKET, socket.SO_MARK, mark)
                sock.bind((here, 0))
                sock.settimeout(ANSWERED_S)
                sock.sendto(b"x", (there, PORT))
                assert sock.recv(100).startswith(b"shop/web")
            (seen,) = proxy.take()
            assert seen.source == here
        redirected.judge(INGRESS, NUMBERS.VERDICT_DENY)
        with redirected.cluster.netns("shop/other").call(
            socket.socket, socket.AF_INET6 if family == "v6" else socket.AF_INET, socket.SOCK_DGRAM
        ) as sock:
            sock.setsockopt(socket.SOL_SOCKET, socket.SO_MARK, mark)
            sock.settimeout(DROPPED_S)
            sock.sendto(b"x", (there, PORT))
            with pytest.raises(TimeoutError):
                sock.recv(100)
        assert not proxy.take()


@pytest.mark.parametrize("family", FAMILIES)
def test_a_pod_does_not_reach_the_listener_itself(
    redirected: Redirected, servers: dict[str, rig.Netns], family: str
) -> None:
    with redirected.by(EGRESS) as (proxy,):
        for kind, port in (("tcp", proxy.tcp_port), ("udp", proxy.udp_port)):
            answer = PROBES[kind][0](redirected.cluster.netns("shop/other"), redirected.ip("node", family), port)
            assert answer.result == "refused"

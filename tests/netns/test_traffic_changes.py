"""What changes takes effect on live connections (lesson 18), and on no others: not one of their messages is lost."""

from __future__ import annotations

import socket
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack
from dataclasses import dataclass, field
from typing import TypeVar

import pytest
from agents import Document
from probes import Answer, Connection
from traffic import ANSWERED_S, DROPPED_S, Cluster, Pulse, Row, namespaces, objects, parse, pods

T = TypeVar("T")
FILE = "changes.yaml"
SERVERS = "TCP/8080 UDP/5353"
WEB_ALLOWS_API = """
east/p: {podSelector: {matchLabels: {app: web}}, ingress: [{from: [{podSelector: {matchLabels: {app: api}}}]}]}
"""


@dataclass(frozen=True)
class Scene:
    """What is written: the cast, with these labels of pods and namespaces, ports and policies instead of the usual."""

    policies: str = ""
    labels: dict[str, dict[str, str]] = field(default_factory=dict)
    namespaces: dict[str, dict[str, str]] = field(default_factory=dict)
    http: int = 8080

    def documents(self) -> list[Document]:
        labels = {
            "east/web": {"app": "web"},
            "east/api": {"app": "api"},
            "east/db": {"app": "db"},
            "west/api": {"app": "api"},
            "west/db": {"app": "db"},
        } | self.labels
        text = "\n".join(
            f"{name}: {{labels: {given}, ports: [{{name: http, containerPort: {self.http}}}]}}"
            for name, given in labels.items()
        )
        teams = {"east": {"team": "east"}, "west": {"team": "west"}} | self.namespaces
        return [*namespaces(**teams), *pods(text), *objects("NetworkPolicy", self.policies)]


@dataclass(frozen=True)
class Case:
    """Every row is a connection that is open before; `rows` say what becomes of it after."""

    name: str
    before: Scene
    after: Scene
    rows: str


BYSTANDERS = """
    west/api  west/db  TCP/8080  answered
    west/api  west/db  UDP/5353  answered
    outside   west/db  TCP/8080  answered
    node      east/db  TCP/8080  answered
"""
CASES = [
    Case("a policy is added", Scene(), Scene("east/p: {podSelector: {matchLabels: {app: web}}}"), """
        east/api  east/web  TCP/8080  dropped
        east/api  east/web  UDP/5353  dropped
        west/api  east/web  TCP/8080  dropped
        outside   east/web  TCP/8080  dropped
        outside   east/web  UDP/5353  dropped
        node      east/web  TCP/8080  answered
        east/web  east/db   TCP/8080  answered
        east/web  outside   UDP/5353  answered
    """),
    Case("an egress policy is added",
         Scene(), Scene("east/p: {podSelector: {matchLabels: {app: web}}, policyTypes: [Egress]}"), """
        east/web  east/db   TCP/8080  dropped
        east/web  west/db   UDP/5353  dropped
        east/web  outside   TCP/8080  dropped
        east/web  node      TCP/8080  dropped
        east/api  east/web  TCP/8080  answered
        outside   east/web  UDP/5353  answered
    """),
    Case("a policy that allowed is removed while one that isolates stays",
         Scene(WEB_ALLOWS_API + "east/deny: {podSelector: {}}"), Scene("east/deny: {podSelector: {}}"), """
        east/api  east/web  TCP/8080  dropped
        east/api  east/web  UDP/5353  dropped
        east/web  outside   TCP/8080  answered
    """),
    Case("a policy's peers change",
         Scene("east/p: {podSelector: {matchLabels: {app: web}}, ingress: [{from: [{podSelector: {}}]}]}"),
         Scene(WEB_ALLOWS_API), """
        east/db   east/web  TCP/8080  dropped
        east/db   east/web  UDP/5353  dropped
        east/api  east/web  TCP/8080  answered
        east/api  east/web  UDP/5353  answered
    """),
    Case("a policy's ports change",
         Scene("east/p: {podSelector: {}, ingress: [{ports: [{port: 8080}, {port: 5353, protocol: UDP}]}]}"),
         Scene("east/p: {podSelector: {}, ingress: [{ports: [{port: 8081}, {port: 5353, protocol: UDP}]}]}"), """
        east/db   east/web  TCP/8080  dropped
        outside   east/web  TCP/8080  dropped
        east/db   east/web  UDP/5353  answered
        outside   east/web  UDP/5353  answered
    """),
    Case("a block gets an except",
         Scene("east/p: {podSelector: {}, ingress: [{from: [{ipBlock: {cidr: 198.51.100.0/24}}]}]}"),
         Scene("east/p: {podSelector: {}, ingress: [{from: [{ipBlock: {cidr: 198.51.100.0/24, "
               "except: [198.51.100.64/27]}}]}]}"), """
        198.51.100.66  east/web  TCP/8080  dropped
        198.51.100.66  east/web  UDP/5353  dropped
        198.51.100.10  east/web  TCP/8080  answered
        198.51.100.10  east/web  UDP/5353  answered
    """),
    Case("a pod is relabelled so that a policy isolates it",
         Scene("east/p: {podSelector: {matchLabels: {tier: locked}}}"),
         Scene("east/p: {podSelector: {matchLabels: {tier: locked}}}",
               labels={"east/web": {"app": "web", "tier": "locked"}}), """
        east/api  east/web  TCP/8080  dropped
        west/api  east/web  UDP/5353  dropped
        outside   east/web  TCP/8080  dropped
        node      east/web  TCP/8080  answered
        east/web  east/db   TCP/8080  answered
    """),
    Case("a peer is relabelled so that it is no longer allowed",
         Scene(WEB_ALLOWS_API), Scene(WEB_ALLOWS_API, labels={"east/api": {"app": "other"}}), """
        east/api  east/web  TCP/8080  dropped
        east/api  east/web  UDP/5353  dropped
        east/api  east/db   TCP/8080  answered
        east/web  east/api  TCP/8080  answered
    """),
    Case("a peer of an egress rule is relabelled",
         Scene("east/p: {podSelector: {matchLabels: {app: web}}, policyTypes: [Egress], "
               "egress: [{to: [{podSelector: {matchLabels: {app: db}}}]}]}"),
         Scene("east/p: {podSelector: {matchLabels: {app: web}}, policyTypes: [Egress], "
               "egress: [{to: [{podSelector: {matchLabels: {app: db}}}]}]}",
               labels={"east/db": {"app": "other"}}), """
        east/web  east/db   TCP/8080  dropped
        east/web  east/db   UDP/5353  dropped
        east/api  east/db   TCP/8080  answered
        east/api  east/web  UDP/5353  answered
    """),
    Case("a peer's namespace is relabelled",
         Scene("east/p: {podSelector: {}, ingress: [{from: [{namespaceSelector: {matchLabels: {team: west}}}]}]}"),
         Scene("east/p: {podSelector: {}, ingress: [{from: [{namespaceSelector: {matchLabels: {team: west}}}]}]}",
               namespaces={"west": {"team": "gone"}}), """
        west/api  east/web  TCP/8080  dropped
        west/db   east/web  UDP/5353  dropped
        east/web  west/db   TCP/8080  answered
    """),
    Case("a namespace that was allowed passes its label to another",
         Scene("east/p: {podSelector: {matchLabels: {app: web}}, ingress: "
               "[{from: [{namespaceSelector: {matchLabels: {team: west}}}]}]}"),
         Scene("east/p: {podSelector: {matchLabels: {app: web}}, ingress: "
               "[{from: [{namespaceSelector: {matchLabels: {team: west}}}]}]}",
               namespaces={"west": {"team": "east"}, "east": {"team": "west"}}), """
        west/api  east/web  TCP/8080  dropped
        west/api  east/web  UDP/5353  dropped
        west/api  east/db   TCP/8080  answered
    """),
    Case("a named port gets another number",
         Scene("east/p: {podSelector: {matchLabels: {app: web}}, ingress: [{ports: [{port: http}]}]}"),
         Scene("east/p: {podSelector: {matchLabels: {app: web}}, ingress: [{ports: [{port: http}]}]}", http=9090), """
        east/api  east/web  TCP/8080  dropped
        outside   east/web  TCP/8080  dropped
        east/api  east/db   TCP/8080  answered
    """),
]  # fmt: skip


@pytest.fixture(scope="module")
def cast(cluster: Cluster) -> Iterator[Cluster]:
    with cluster.written(FILE, *Scene().documents()), ExitStack() as stack:
        cluster.serve(*(f"{pod} {SERVERS}" for pod in ("east/web", "east/api", "east/db", "west/db")), stack=stack)
        cluster.serve("outside TCP/8080 UDP/5353", "node TCP/8080", stack=stack)
        yield cluster


@pytest.mark.parametrize("case", CASES, ids=lambda case: case.name.replace(" ", "_"))
def test_live_connections_lesson_18(cast: Cluster, case: Case) -> None:
    rows = list(parse(case.rows))
    cast.write(FILE, *case.before.documents())
    with ExitStack() as stack:
        live = {row: stack.enter_context(cast.connect(row)) for row in rows if row.expected == "dropped"}
        assert not [row for row, answer in exchange(live, ANSWERED_S) if not answer]
        others = [*parse(BYSTANDERS), *(row for row in rows if row.expected == "answered")]
        pulses = {row: stack.enter_context(Pulse(cast.connect(row))) for row in others}
        cast.write(FILE, *case.after.documents())
        assert not [row for row, answer in exchange(live, DROPPED_S) if answer.result != "timeout"], "still alive"
        cast.check(case.rows)
        cast.write(FILE, *case.before.documents())
        assert not [row for row, answer in exchange(live, ANSWERED_S) if not answer], "not alive again"
        for row, pulse in pulses.items():
            pulse.stop()
            assert pulse.sent > 1
            assert not pulse.lost, row


def exchange(live: dict[Row, Connection], timeout_s: float) -> list[tuple[Row, Answer]]:
    """A message each, all at once."""
    return list(zip(live, at_once(lambda c: c.exchange(timeout_s), live.values()), strict=True))


def at_once(function: Callable[[Connection], T], connections: Iterable[Connection]) -> list[T]:
    with ThreadPoolExecutor(64) as pool:
        return list(pool.map(function, connections))


@pytest.mark.parametrize("kind", [socket.SOCK_STREAM, socket.SOCK_DGRAM], ids=["TCP", "UDP"])
@pytest.mark.parametrize("family", ["v4", "v6"])
def test_what_the_server_sends_of_itself_stops_too_lesson_18(
    cast: Cluster, kind: socket.SocketKind, family: str
) -> None:
    """A connection that is denied is denied in both directions, whoever speaks first."""
    cast.write(FILE, *Scene().documents())
    with ExitStack() as stack:
        near, far = socket_pair(cast, stack, "east/api", "east/web", kind, family)
        assert speaks(far, near)
        cast.write(FILE, *Scene("east/p: {podSelector: {matchLabels: {app: web}}}").documents())
        assert not speaks(far, near, DROPPED_S)
        cast.write(FILE, *Scene(WEB_ALLOWS_API).documents())
        assert speaks(far, near)
        assert speaks(near, far)


def socket_pair(
    cast: Cluster, stack: ExitStack, source: str, destination: str, kind: socket.SocketKind, family: str
) -> tuple[socket.socket, socket.socket]:
    """Both ends of a connection whose first message has come through."""
    number = socket.AF_INET if family == "v4" else socket.AF_INET6
    server = stack.enter_context(cast.netns(destination).call(socket.socket, number, kind))
    server.bind((cast.ip(destination, family), 0))
    server.settimeout(ANSWERED_S)
    near = stack.enter_context(cast.netns(source).call(socket.socket, number, kind))
    if kind == socket.SOCK_STREAM:
        server.listen()
    near.connect(server.getsockname()[:2])
    near.send(b"hello")
    if kind == socket.SOCK_STREAM:
        far = stack.enter_context(server.accept()[0])
        far.settimeout(ANSWERED_S)
        far.recv(5)
        return near, far
    server.connect(server.recvfrom(5)[1][:2])
    return near, server


def speaks(sender: socket.socket, receiver: socket.socket, timeout_s: float = ANSWERED_S) -> bool:
    receiver.settimeout(timeout_s)
    sender.send(b"news")
    try:
        return receiver.recv(4) == b"news"
    except TimeoutError:
        return False


def test_a_pod_that_comes_back_is_another_pod_lesson_18(cast: Cluster) -> None:
    """What was allowed to a pod is not allowed to its successor of that name, if its labels are not."""
    cast.write(FILE, *Scene(WEB_ALLOWS_API).documents())
    cast.check("east/api east/web TCP/8080 answered NetworkPolicy east/p ingress[0]")
    cast.write(FILE, *(d for d in Scene(WEB_ALLOWS_API).documents() if d["metadata"]["name"] != "api"))
    cast.write(FILE, *Scene(WEB_ALLOWS_API, labels={"east/api": {"app": "other"}}).documents())
    cast.check("east/api east/web TCP/8080 dropped")
    cast.write(FILE, *Scene(WEB_ALLOWS_API).documents())
    cast.check("east/api east/web TCP/8080 answered NetworkPolicy east/p ingress[0]")


STANDING = """
east/web:
  podSelector: {matchLabels: {app: web}}
  ingress:
  - from: [{ipBlock: {cidr: 10.244.0.0/16, except: [10.244.0.0/17]}}, {podSelector: {matchLabels: {app: api}}}]
east/db: {podSelector: {matchLabels: {app: db}}, ingress: [{from: [{ipBlock: {cidr: 10.244.0.0/16}}]}]}
east/api:
  podSelector: {matchLabels: {app: api}}
  ingress: [{ports: [{port: http}]}]
  egress: [{ports: [{port: http}]}]
"""


def test_pods_that_come_find_the_policies_that_stand(cast: Cluster) -> None:
    """Judged by the same rules as those that were there when the rules came."""
    scene = Scene(STANDING)
    cast.write(FILE, *scene.documents())
    come = pods("""
    east/stranger: {labels: {app: stranger}}
    east/api-2: {labels: {app: api}, ports: [{name: http, containerPort: 8081}]}
    west/api-2: {labels: {app: api}}
    """)
    cast.write(FILE, *scene.documents(), *come)
    with ExitStack() as stack:
        cast.serve("east/api-2 TCP/8080 TCP/8081", "east/stranger TCP/8080", stack=stack)
        cast.check("""
            east/stranger  east/web    TCP/8080     dropped   # its address is in the except
            east/stranger  east/db     TCP/8080/v4  answered  NetworkPolicy east/db ingress[0]
            east/stranger  east/db     TCP/8080/v6  dropped
            west/api-2     east/web    TCP/8080     dropped
            west/api-2     east/api-2  TCP/8081     answered  NetworkPolicy east/api ingress[0]
            west/api-2     east/api-2  TCP/8080     dropped
            east/api-2     east/web    TCP/8080     answered  NetworkPolicy east/web ingress[0]
            east/api-2     east/stranger  TCP/8080  dropped   # it has no port of that name
            east/web       east/api-2  TCP/8081     answered  NetworkPolicy east/api ingress[0]
        """)
    cast.write(FILE, *scene.documents())

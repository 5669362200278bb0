"""HTTP rules that change under load: no request is judged by anything weaker than the rules of its time, or denied by
anything stronger."""

from __future__ import annotations

import random
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager

import msgspec
import pytest
from agents import Document, RunningAgent, pod
from l7_policies import CLIENT, PORT, WEB, cnp, egress, ingress
from rig import Netns
from web import Client, Reply, WebServer

CHANGES = 200
PATHS = ("/a", "/b", "/c", "/never")
CLIENTS = 4

pytestmark = pytest.mark.timeout(240)


class Asked(msgspec.Struct, frozen=True):
    """One request. `fresh`: on a connection of its own. Times are of CLOCK_MONOTONIC, in seconds."""

    path: str
    began: float
    ended: float
    status: int
    fresh: bool
    why: str


class Version(msgspec.Struct):
    """Rules that may be in force from when they are written until others are said to be."""

    allowed: frozenset[str]
    begins: float
    ends: float = float("inf")


class Load:
    """Clients that ask for random paths, each on a connection that lasts and on fresh ones."""

    def __init__(self, client: Netns, addresses: list[str], seed: int) -> None:
        self.asked: list[Asked] = []
        self._stop = threading.Event()
        self._threads = [
            threading.Thread(target=self._run, args=(client, addresses[n % len(addresses)], random.Random(seed + n)))
            for n in range(CLIENTS)
        ]

    def _run(self, client: Netns, address: str, drawn: random.Random) -> None:
        lasting: Client | None = None
        while not self._stop.is_set():
            path, fresh = drawn.choice(PATHS), drawn.random() < 0.3
            began = time.monotonic()
            try:
                with Client(client, address, PORT, timeout_s=3) if fresh else _kept(lasting, client, address) as used:
                    lasting = lasting if fresh else used
                    reply = used.get(path)
            except OSError as error:
                reply = Reply(0, type(error).__name__)
            self.asked.append(Asked(path, began, time.monotonic(), reply.status, fresh, reply.body[:60]))
            if not fresh and reply.status == 0 and lasting is not None:
                lasting.close()
                lasting = None
        if lasting is not None:
            lasting.close()

    @contextmanager
    def running(self) -> Iterator[None]:
        for thread in self._threads:
            thread.start()
        try:
            yield
        finally:
            self._stop.set()
            for thread in self._threads:
                thread.join()


@contextmanager
def _kept(lasting: Client | None, client: Netns, address: str) -> Iterator[Client]:
    yield lasting or Client(client, address, PORT, timeout_s=3)


def judge(asked: list[Asked], versions: list[Version]) -> list[str]:
    """Requests that were answered by rules that cannot have been in force, or not answered at all in a quiet time."""
    wrong = []
    for one in asked:
        then = [v for v in versions if v.begins <= one.ended and one.began <= v.ends]
        allowed = {one.path in version.allowed for version in then}
        if one.status == 200 and allowed == {False}:
            wrong.append(f"weaker: {one}")
        if one.status == 403 and allowed == {True}:
            wrong.append(f"stronger: {one}")
        if one.status == 0 and len(then) == 1 and one.fresh:
            wrong.append(f"no answer: {one}")
    return wrong


@pytest.mark.parametrize("side", ["ingress", "egress"])
def test_no_request_sees_other_rules_than_those_of_its_time(agent: RunningAgent, side: str) -> None:
    seed = random.randrange(2**32)
    print(f"seed {seed}")
    drawn = random.Random(seed)
    agent.write("pods.yaml", pod(WEB, app="web"), pod(CLIENT, app="client"))
    versions = [Version(frozenset({"/a"}), 0.0)]
    agent.write("policies.yaml", policy(side, versions[0].allowed))
    agent.start()
    agent.await_listeners()
    addresses = list(agent.endpoint(WEB)["ips"])
    with WebServer(agent.netns(WEB), PORT) as web:
        load = Load(agent.netns(CLIENT), addresses, seed)
        with load.running():
            for _ in range(CHANGES):
                allowed = frozenset(path for path in PATHS[:-1] if drawn.random() < 0.5)
                versions.append(Version(allowed, time.monotonic()))
                agent.write("policies.yaml", policy(side, allowed))
                agent.settle()
                versions[-2].ends = time.monotonic()
        reached = {seen.path for seen in web.seen}
    assert reached == set(PATHS[:-1])
    assert judge(load.asked, versions) == []
    assert len(load.asked) > CHANGES


def policy(side: str, paths: frozenset[str]) -> Document:
    rules = [{"path": path} for path in sorted(paths)]
    if side == "ingress":
        return cnp(
            "shop/web", {"app": "web"}, ingress=ingress(*rules) if rules else _nothing("fromEndpoints", "client")
        )
    return cnp("shop/client", {"app": "client"}, egress=egress(*rules) if rules else _nothing("toEndpoints", "web"))


def _nothing(side: str, app: str) -> list[Document]:
    """A rule set that lets nobody through, at the same port: still requests are answered."""
    port = {"ports": [{"port": str(PORT), "protocol": "TCP"}], "rules": {"http": [{"path": "/nothing"}]}}
    return [{side: [{"matchLabels": {"app": app}}], "toPorts": [port]}]

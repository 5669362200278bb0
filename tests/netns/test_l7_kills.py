"""Envoy, the DNS proxy and the agent are killed in turn under load: no request sees a weaker policy, L4 goes on, and
all is answered again. Whoever is killed disturbs nobody who does not need it."""

from __future__ import annotations

import itertools
import json
import random
import threading
import time
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager

import msgspec
import pytest
from agents import Document, RunningAgent, kill, pod
from dnsrig import Asking, Resolver
from l7_load import Asked, Load, Version, judge
from l7_policies import CLIENT, PORT, WEB, cnp, http, ingress
from probes import STREAM, Connection, Server, tcp
from rig import Netns, wait_until
from web import WebServer, fetch

ROUNDS = 3
ALLOWED = frozenset({"/a", "/b"})
DNS, NAME, ADDRESS = "kube-system/dns", "www.allowed.example", "198.51.100.10"
L4_PORT = 9000
LOST_S = 30.0
"""Silence of the processor, not of the network, is shorter than that."""
PAUSE_S = 0.005
TRY_S, AGAIN_S = 5.0, 60.0
"""A connection may have to wait for its port, which one of the Envoy before had."""

pytestmark = pytest.mark.timeout(400)


class Outage(msgspec.Struct, frozen=True):
    """Of a process, by the clock of the load."""

    who: str
    begins: float
    ends: float


class L4:
    """Connections to a port of which only L4 rules speak: one that lasts to each address, and fresh ones."""

    def __init__(self, client: Netns, addresses: list[str]) -> None:
        self.failed: list[str] = []
        self.exchanges = 0
        self._stop = threading.Event()
        self._threads = [threading.Thread(target=self._run, args=(client, address)) for address in addresses]

    def _run(self, client: Netns, address: str) -> None:
        with Connection(client, STREAM, address, L4_PORT) as lasting:
            while not self._stop.wait(PAUSE_S):
                for answer in (lasting.exchange(LOST_S), tcp(client, address, L4_PORT, LOST_S)):
                    self.exchanges += 1
                    if not answer:
                        self.failed.append(f"{time.monotonic()}: {address} {answer}")

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


def policies() -> Iterator[Document]:
    """Both ends ask for the same paths; names are asked for at the resolver."""
    paths = [{"path": path} for path in sorted(ALLOWED)]
    plain = [{"ports": [{"port": str(L4_PORT), "protocol": "TCP"}]}]
    clients, webs = {"matchLabels": {"app": "client"}}, {"matchLabels": {"app": "web"}}
    yield cnp("shop/web", {"app": "web"}, ingress=[*ingress(*paths), {"fromEndpoints": [clients], "toPorts": plain}])
    resolver = {"matchLabels": {"app": "dns", "k8s:io.kubernetes.pod.namespace": "kube-system"}}
    names = [{"ports": [{"port": "53", "protocol": "ANY"}], "rules": {"dns": [{"matchName": NAME}]}}]
    yield cnp(
        "shop/client",
        {"app": "client"},
        egress=[
            {"toEndpoints": [webs], "toPorts": [*http(*paths), *plain]},
            {"toEndpoints": [resolver], "toPorts": names},
        ],
    )


class Scene:
    def __init__(self, agent: RunningAgent, stack: ExitStack) -> None:
        self.agent = agent
        agent.write("pods.yaml", pod(WEB, app="web"), pod(CLIENT, app="client"), pod(DNS, app="dns"))
        agent.write("policies.yaml", *policies())
        agent.start()
        agent.await_listeners()
        self.client, self.web = agent.netns(CLIENT), list(agent.endpoint(WEB)["ips"])
        self.resolver = agent.ip(DNS)
        stack.enter_context(WebServer(agent.netns(WEB), PORT))
        stack.enter_context(Server(agent.netns(WEB), "tcp", L4_PORT))
        records = stack.enter_context(Resolver(agent.netns(DNS))).records
        records[NAME] = (ADDRESS,)
        self.outages: list[Outage] = []

    @contextmanager
    def outage(self, who: str) -> Iterator[None]:
        begins = time.monotonic()
        yield
        self.outages.append(Outage(who, begins, time.monotonic()))

    def kill(self, who: str, load: Load) -> None:
        """Until all is as before."""
        with self.outage(who):
            if who == "agent":
                self.agent.kill()
                self.is_as_before()  # without it
                load.go_on()
                self.agent.start()
            else:
                self.agent.kill_proxy(who)
                load.go_on()
            self.agent.await_listeners()
        self.is_as_before()

    def is_as_before(self) -> None:
        for address in self.web:
            for path, status in (("/a", 200), ("/never", 403)):
                wait_until(lambda: self.status(address, path) == status, AGAIN_S, path)  # noqa: B023
        for transport in (False, True):
            with Asking(self.client, self.resolver, tcp=transport) as asking:
                assert asking.ask(NAME).addresses == (ADDRESS,)
                assert asking.ask("www.denied.example").rcode == "REFUSED"

    def status(self, address: str, path: str) -> int:
        return fetch(self.client, address, PORT, path, timeout_s=TRY_S).status

    def dropped(self) -> list[Document]:
        """Packets between the client and whom it may ask: what is sent again is answered all the same."""
        shown = self.agent.cli("observe", "-o", "json", "--type", "drop", "--pod", CLIENT, "--since", "1h")
        ports = {PORT, L4_PORT, 53}
        flows = map(json.loads, shown.stdout.splitlines())
        return [f for f in flows if {f["source"]["port"], f["destination"]["port"]} & ports]

    def lost(self, asked: list[Asked]) -> list[str]:
        """Requests without an answer, before Envoy was killed."""
        until = min(outage.begins for outage in self.outages if outage.who == "envoy")
        return [
            f"{one} during {[o.who for o in self.outages if o.begins <= one.ended and one.opened <= o.ends]}"
            for one in asked
            if one.status not in (200, 403) and one.ended < until
        ]


def test_no_kill_weakens_policy_or_disturbs_others(agent: RunningAgent) -> None:
    seed = random.randrange(2**32)
    print(f"seed {seed}")
    turns = ["dns", "agent"]
    drawn = random.Random(seed)
    with ExitStack() as stack:
        scene = Scene(agent, stack)
        load, l4 = Load(scene.client, scene.web, seed), L4(scene.client, scene.web)
        with load.running(), l4.running():
            for _ in range(ROUNDS):
                drawn.shuffle(turns)
                for who in turns:
                    scene.kill(who, load)
            assert scene.dropped() == [], "of what is allowed, while Envoy lives"
            # Connections of Envoy's end with it, and others for a while find their ports taken: so it comes last.
            for _ in range(ROUNDS):
                scene.kill("envoy", load)
    assert judge([one for one in load.asked if one.status in (200, 403)], [Version(ALLOWED, 0.0)]) == []
    lost = scene.lost(load.asked)
    assert lost == [], "\n".join(lost)
    assert l4.failed == [], scene.outages
    assert l4.exchanges > 100


def test_without_agent_and_envoy_requests_are_denied_and_nothing_else(agent: RunningAgent) -> None:
    """Nobody is there to start Envoy again."""
    with ExitStack() as stack:
        scene = Scene(agent, stack)
        l4 = L4(scene.client, scene.web)
        with l4.running():
            pid = agent.proxy_pid("envoy")
            agent.kill()
            kill(pid)
            for address, path in itertools.product(scene.web, ("/a", "/never")):
                assert fetch(scene.client, address, PORT, path).status == 0
            agent.start()
            agent.await_listeners()
            scene.is_as_before()
        assert l4.failed == []

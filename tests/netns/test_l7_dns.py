"""Names end to end: manifests, agent, DNS proxy, a resolver in a pod, and what may be reached by name outside."""

from __future__ import annotations

import itertools
import json
import threading
import time
from collections.abc import Collection, Iterator
from contextlib import ExitStack, suppress
from functools import partial

import pytest
import rig
from agents import Document, RunningAgent, kill, pod
from dnsrig import TRY_S, Asking, Raw, Reply, Resolver, Wire, ask, exchange, query, rrset, says
from probes import STREAM, TIMEOUT_S, Connection, Server, tcp

from agent.api import client as api
from agent.privileges import NET_RAW, capabilities
from l7proxy.dns.streams import IDLE_S

CLIENT, TWIN, OTHER, DNS = "shop/client", "shop/twin", "shop/other", "kube-system/dns"
PORT = 9000
ROTATING, ROTATING_TOO = (tuple(f"198.18.{net}.{i}" for i in range(1, 201)) for net in range(2))
"""Of names whose addresses change all the time."""
V4_OF_TEST, V6_OF_TEST, TESTS = 5, 2, 40
SHORT_S = 0.4
"""How long silence must last to be silence."""
AGAIN_S = FORGOTTEN_S = 60.0
PAUSE_S = 0.005
"""Of threads that make a load: what is under test needs a processor, too."""
FAMILIES = ("v4", "v6")
TRANSPORTS = ("udp", "tcp")


def v4_of(number: int) -> tuple[str, ...]:
    return tuple(f"198.51.100.{1 + number * V4_OF_TEST + i}" for i in range(V4_OF_TEST))


def v6_of(number: int) -> tuple[str, ...]:
    return tuple(f"2001:db8:100::{1 + number * V6_OF_TEST + i:x}" for i in range(V6_OF_TEST))


class Names:
    """A client that may ask for some names at a resolver, and reach `*.allowed.example` outside. What one test asks
    for, others do not: names are remembered.

    `www` and `fresh` may be reached, `other` asked for, `late` and `secret` not; `v4` and `v6` are addresses outside.
    """

    def __init__(self, node: rig.Node, agent: RunningAgent) -> None:
        self.agent = agent
        self._stack = ExitStack()
        known = (address for number in range(TESTS) for address in (*v4_of(number), *v6_of(number)))
        self.outside = self._stack.enter_context(rig.Outside(node, (*known, *ROTATING, *ROTATING_TOO)))
        self._numbers = iter(range(TESTS))
        self._given_up = 0

    def start(self, *flags: str, listening: bool = True) -> None:
        self.agent.write("pods.yaml", *PODS)
        self.agent.write("service.yaml", SERVICE)
        self.agent.write("policy.yaml", cnp())
        self.agent.start(*flags)
        if listening:
            self.agent.await_listeners()
        self.client, self.dns_pod = self.agent.netns(CLIENT), self.agent.netns(DNS)
        self.resolver = self._stack.enter_context(Resolver(self.dns_pod))
        self._stack.enter_context(Server(self.outside, "tcp", PORT))
        (service,) = self.agent.json("services")
        self.address = {"v6" if ":" in ip else "v4": ip for ip in service["ips"]}
        self.begin()

    def anew(self) -> None:
        """For the next test, whatever the last one left."""
        self.agent.write("policy.yaml", cnp())
        with suppress(FileNotFoundError):
            self.agent.delete("more.yaml")
        if self.agent.process is None or self.agent.process.poll() is not None:
            self.agent.start()
        self.agent.settle()
        self.agent.await_listeners()
        self.begin()

    def begin(self) -> None:
        number = next(self._numbers)
        self.v4, self.v6 = v4_of(number), v6_of(number)
        self.www, self.fresh = f"www{number}.allowed.example", f"fresh{number}.allowed.example"
        self.other, self.late = f"www{number}.else.example", f"api{number}.late.example"
        self.secret = f"secret{number}.denied.example"
        self.resolver.forget()

    def close(self) -> None:
        self._stack.close()

    def ask(
        self, name: str, qtype: str = "A", *, family: str = "v4", tcp: bool = False, timeout_s: float | None = None
    ) -> Reply:
        """Without a time given it is asked again where the proxy gave up."""
        asked = partial(ask, self.client, self.address[family], name, qtype, tcp=tcp)
        return asked(timeout_s=TRY_S, gave_up=self.gave_up) if timeout_s is None else asked(timeout_s=timeout_s)

    def gave_up(self) -> bool:
        """Whether the proxy says that it has given up an answer since it was last asked that: its agent did not do its
        part in time."""
        before = self._given_up
        self._given_up = api.call(self.agent.instance.dns_socket, "status")["learning"]["given_up"]
        return self._given_up > before

    def reaches(self, address: str, timeout_s: float = TIMEOUT_S) -> bool:
        return bool(tcp(self.client, address, PORT, timeout_s))

    def dropped(self, addresses: Collection[str]) -> list[Document]:
        """Packets of pods to these."""
        lines = self.agent.cli("observe", "-o", "json", "--type", "drop", "--since", "1h").stdout.splitlines()
        return [flow for flow in map(json.loads, lines) if flow["destination"]["ip"] in addresses]

    def known(self, name: str) -> set[str]:
        """Addresses the proxy has for a name."""
        found = api.call(self.agent.instance.dns_socket, "names")
        return {one["address"] for one in found if one["name"] == name}

    def pid(self) -> int:
        return int(self.agent.status()["proxies"]["dns"]["process"]["pid"])


@pytest.fixture(scope="module")
def running(datapath_host: None, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Names]:
    with rig.Node() as node, RunningAgent(node, tmp_path_factory.mktemp("names")) as agent:
        running = Names(node, agent)
        try:
            running.start()
            yield running
        finally:
            running.close()


@pytest.fixture
def names(running: Names) -> Names:
    running.anew()
    return running


@pytest.fixture
def own(node: rig.Node, agent: RunningAgent) -> Iterator[Names]:
    """With an agent of its own, which is not started yet."""
    own = Names(node, agent)
    try:
        yield own
    finally:
        own.close()


PODS = (
    pod(CLIENT, app="client", of="one"),
    pod(TWIN, app="client", of="two"),
    pod(OTHER, app="other"),
    pod(DNS, app="dns"),
)
SERVICE: Document = {
    "apiVersion": "v1",
    "kind": "Service",
    "metadata": {"name": "dns", "namespace": "kube-system"},
    "spec": {
        "selector": {"app": "dns"},
        "ipFamilyPolicy": "PreferDualStack",
        "ports": [{"name": p.lower(), "protocol": p, "port": 53, "targetPort": 53} for p in ("UDP", "TCP")],
    },
}


def cnp(*allowed: dict[str, str], asked: tuple[dict[str, str], ...] = (), **labels: str) -> Document:
    """Pods with these labels may ask for what it may reach, and for `*.else.example`."""
    reached = list(allowed) or [{"matchPattern": "*.allowed.example"}]
    resolver = {"matchLabels": {"app": "dns", "k8s:io.kubernetes.pod.namespace": "kube-system"}}
    rules = [*reached, {"matchPattern": "*.else.example"}, *asked]
    egress = [
        {
            "toEndpoints": [resolver],
            "toPorts": [{"ports": [{"port": "53", "protocol": "ANY"}], "rules": {"dns": rules}}],
        },
        {"toFQDNs": reached, "toPorts": [{"ports": [{"port": str(PORT), "protocol": "TCP"}]}]},
    ]
    return {
        "apiVersion": "cilium.io/v2",
        "kind": "CiliumNetworkPolicy",
        "metadata": {"name": "-".join(["client", *labels.values()]), "namespace": "shop"},
        "spec": {"endpointSelector": {"matchLabels": {"app": "client", **labels}}, "egress": egress},
    }


# ---- what names decide


def test_an_allowed_name_resolves_and_its_address_can_be_reached_at_once(names: Names) -> None:
    addresses = {"A": iter(names.v4), "AAAA": iter(names.v6)}
    for family, transport, qtype in itertools.product(FAMILIES, TRANSPORTS, ("A", "AAAA")):
        name = f"{family}-{transport}-{qtype}.allowed.example".lower()
        address = names.v6[transport == "tcp"] if qtype == "AAAA" else next(addresses["A"])
        names.resolver.records[name] = (address,)
        reply = names.ask(name, qtype, family=family, tcp=transport == "tcp")
        assert (reply.rcode, reply.addresses) == ("NOERROR", (address,)), (family, transport, qtype)
        assert names.reaches(address), f"{name} at once"
    assert {asked.transport for asked in names.resolver.asked} == {"UDP", "TCP"}
    assert {asked.source for asked in names.resolver.asked} == set(names.agent.endpoint(CLIENT)["ips"]), "the pod's own"


@pytest.mark.parametrize("transport", TRANSPORTS)
@pytest.mark.parametrize("family", FAMILIES)
def test_a_refused_name_never_leaves(names: Names, family: str, transport: str) -> None:
    names.resolver.records |= {names.secret: (names.v4[0],), names.www: (names.v4[1],)}
    with Wire(names.dns_pod) as inside, Wire(names.outside) as outside:
        reply = names.ask(names.secret, family=family, tcp=transport == "tcp")
        assert (reply.rcode, reply.addresses) == ("REFUSED", ())
        assert names.ask(names.www, family=family, tcp=transport == "tcp").addresses == (names.v4[1],)
        assert not inside.carries(names.secret)
        assert not outside.carries(names.secret)
    assert set(names.resolver.names()) == {names.www}
    assert not names.reaches(names.v4[0], SHORT_S)


def test_addresses_of_names_that_may_only_be_asked_for_are_denied(names: Names) -> None:
    names.resolver.records |= {names.other: (names.v4[0], names.v6[0]), names.www: (names.v4[1],)}
    for qtype, address in (("A", names.v4[0]), ("AAAA", names.v6[0])):
        assert names.ask(names.other, qtype).addresses == (address,)
        assert not names.reaches(address, SHORT_S)
    assert names.ask(names.www).addresses == (names.v4[1],)
    assert names.reaches(names.v4[1])
    assert not names.reaches(names.v4[2], SHORT_S), "one that no name has"
    rig.wait_until(lambda: names.dropped(names.v4[:1]), what="what is dropped is seen")


def test_a_name_by_way_of_others_is_the_one_that_was_asked_for(names: Names) -> None:
    names.resolver.aliases |= {names.www: "cdn.third.example"}
    names.resolver.records |= {"cdn.third.example": (names.v4[0],)}
    assert names.ask(names.www).addresses == (names.v4[0],)
    assert names.reaches(names.v4[0])


def test_of_others_nothing_is_asked(names: Names) -> None:
    names.resolver.records |= {names.secret: (names.v4[0],)}
    other = names.agent.netns(OTHER)
    assert ask(other, names.address["v4"], names.secret).addresses == (names.v4[0],)
    assert tcp(other, names.v4[0], PORT)
    assert not names.reaches(names.v4[0], SHORT_S), "it binds nobody else"


def test_rules_that_change_hold_for_what_is_known(names: Names) -> None:
    names.resolver.records |= {names.www: (names.v4[0],), names.late: (names.v4[1],)}
    late = {"matchName": names.late}
    assert names.ask(names.www).addresses == (names.v4[0],)
    assert names.ask(names.late).rcode == "REFUSED"
    names.agent.write("policy.yaml", cnp({"matchName": names.www}, asked=(late,)))
    names.agent.settle()
    names.agent.await_listeners()
    assert names.ask(names.late).addresses == (names.v4[1],)
    assert names.reaches(names.v4[0])
    assert not names.reaches(names.v4[1], SHORT_S)
    names.agent.write("policy.yaml", cnp(late))
    names.agent.settle()
    names.agent.await_listeners()
    assert names.reaches(names.v4[1]), "it has been asked for before"
    assert not names.reaches(names.v4[0], SHORT_S)
    assert names.ask(names.www).rcode == "REFUSED"


@pytest.mark.parametrize("stays", [False, True], ids=["gone", "of-a-twin"])
@pytest.mark.parametrize("transport", TRANSPORTS)
def test_rules_that_change_hold_for_a_socket_that_lives(names: Names, transport: str, stays: bool) -> None:
    """A resolver in a pod keeps its sockets. TCP may be closed on it: then it asks again by a new one (RFC 7766).
    `stays`: the rules it began by are those of another pod yet, whose socket goes on."""
    names.resolver.records |= {names.www: (names.v4[0],), names.late: (names.v4[1],)}
    asks = partial(Asking, server=names.address["v4"], tcp=transport == "tcp", timeout_s=TRY_S, gave_up=names.gave_up)
    with asks(names.client) as asking, asks(names.agent.netns(TWIN)) as twin:
        assert asking.ask(names.www).addresses == twin.ask(names.www).addresses == (names.v4[0],)
        last_s = time.monotonic()
        assert asking.ask(names.late).rcode == "REFUSED"
        names.resolver.asked.clear()
        names.agent.write("policy.yaml", cnp({"matchName": names.late}, of="one"), *([cnp(of="two")] if stays else ()))
        names.agent.settle()
        names.agent.await_listeners()
        assert asking.ask(names.www).rcode == "REFUSED"
        assert names.resolver.names() == []
        assert asking.ask(names.late).addresses == (names.v4[1],)
        assert names.reaches(names.v4[1])
        if stays:
            assert twin.ask(names.www).addresses == (names.v4[0],)
            assert twin.renewed == 0 or time.monotonic() - last_s > IDLE_S


def test_a_name_with_ever_other_addresses_is_reached_without_a_drop(names: Names) -> None:
    """Lesson 16."""
    turn = itertools.count()

    def other_each_time(wire: bytes) -> list[bytes]:
        return says(rrset(names.www, "A", ROTATING[next(turn) % len(ROTATING)], ttl_s=1))(wire)

    names.resolver.raw[names.www] = other_each_time
    failed: list[str] = []
    reached: set[str] = set()

    def work() -> None:
        for _ in range(100):
            reply = names.ask(names.www)
            if not reply.addresses or not names.reaches(reply.addresses[0]):
                failed.append(str(reply))
            reached.update(reply.addresses)

    threads = [threading.Thread(target=work) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert failed == []
    assert reached == set(ROTATING)
    assert all(names.reaches(address) for address in ROTATING[::10]), "those of before, too"
    assert names.dropped(ROTATING) == []


def test_names_are_learned_of_pods_that_nothing_else_isolates(names: Names) -> None:
    """enableDefaultDeny: any name may be asked for, and is known to other rules."""
    names.resolver.records |= {names.secret: (names.v4[0],), names.www: (names.v4[1],)}
    watched = cnp({"matchPattern": "*"})
    watched["metadata"]["name"] = "watched"
    watched["spec"] |= {
        "endpointSelector": {"matchLabels": {"app": "other"}},
        "enableDefaultDeny": {"egress": False, "ingress": False},
    }
    names.agent.write("more.yaml", watched)
    names.agent.settle()
    names.agent.await_listeners()
    other = names.agent.netns(OTHER)
    assert ask(other, names.address["v4"], names.www).addresses == (names.v4[1],)
    assert ask(other, names.address["v4"], names.secret).addresses == (names.v4[0],)
    assert tcp(other, names.v4[2], PORT), "it is not isolated"
    assert names.known(names.www) == {names.v4[1]}
    assert names.reaches(names.v4[1]), "a name is one of everybody"


def test_without_the_proxy_by_setting_names_are_denied_and_it_is_said(own: Names) -> None:
    own.start("--dns-proxy", "off", listening=False)
    own.resolver.records |= {own.www: (own.v4[0],)}
    assert not own.ask(own.www, timeout_s=SHORT_S)
    assert own.resolver.asked == []
    status = own.agent.status()
    assert status["state"] == "degraded"
    assert any("turned off" in reason for reason in status["reasons"]), status["reasons"]
    assert status["proxies"]["dns"]["process"]["state"] == "stopped"


# ---- what is gone for a while


def test_without_the_proxy_known_names_go_on_and_it_comes_back_with_them(names: Names) -> None:
    names.resolver.records |= {names.www: (names.v4[0],), names.fresh: (names.v4[1],)}
    assert names.ask(names.www).addresses == (names.v4[0],)
    names.agent.kill_proxy("dns")
    assert names.reaches(names.v4[0])
    rig.wait_until(lambda: names.ask(names.fresh, timeout_s=1.0).addresses == (names.v4[1],), AGAIN_S)
    assert names.known(names.www) == {names.v4[0]}
    assert names.reaches(names.v4[0])
    assert names.reaches(names.v4[1])
    assert names.ask(names.secret).rcode == "REFUSED"


def test_names_go_on_while_the_agent_restarts(names: Names) -> None:
    """Lesson 16."""
    names.resolver.records |= {
        names.www: (names.v4[0],),
        names.fresh: (names.v4[1], names.v6[1]),
        names.secret: (names.v4[4],),
    }
    assert names.ask(names.www).addresses == (names.v4[0],)
    pid = names.pid()
    names.agent.kill()
    assert names.ask(names.fresh).addresses == (names.v4[1],)
    assert names.reaches(names.v4[1]), "an address that is new, of a name that no agent has heard of"
    assert names.ask(names.fresh, "AAAA").addresses == (names.v6[1],)
    assert names.reaches(names.v6[1])
    names.resolver.records[names.www] = (names.v4[2],)
    assert names.ask(names.www, tcp=True).addresses == (names.v4[2],)
    assert names.reaches(names.v4[2])
    assert names.ask(names.secret).rcode == "REFUSED"

    learned = (names.v4[0], names.v4[1], names.v4[2], names.v6[1])
    dropped: list[str] = []
    over = threading.Event()

    def connect() -> None:
        while not over.wait(PAUSE_S):
            dropped.extend(address for address in learned if not names.reaches(address))

    connecting = threading.Thread(target=connect)
    connecting.start()
    try:
        names.agent.start()
        names.agent.await_listeners()
    finally:
        over.set()
        connecting.join()
    assert dropped == [], "at no time while the new agent starts"
    assert names.dropped(learned) == []
    assert names.pid() == pid
    assert names.known(names.fresh) == {names.v4[1], names.v6[1]}
    names.resolver.records[names.www] = (names.v4[3],)
    assert names.ask(names.www).addresses == (names.v4[3],)
    assert names.reaches(names.v4[3])


def test_names_are_known_after_both_have_gone(names: Names) -> None:
    names.resolver.records |= {names.www: (names.v4[0],)}
    assert names.ask(names.www).addresses == (names.v4[0],)
    pid = names.pid()
    names.agent.kill()
    kill(pid)
    assert not names.ask(names.www, timeout_s=SHORT_S)
    assert names.reaches(names.v4[0])
    names.agent.start()
    assert names.reaches(names.v4[0])
    names.agent.await_listeners()
    assert names.reaches(names.v4[0])
    assert names.known(names.www) == {names.v4[0]}


def test_each_is_killed_in_turn_under_load(names: Names) -> None:
    turn = itertools.count()

    def other_each_time(wire: bytes) -> list[bytes]:
        return says(rrset(names.www, "A", ROTATING_TOO[next(turn) % len(ROTATING_TOO)], ttl_s=1))(wire)

    names.resolver.raw[names.www] = other_each_time
    names.resolver.records |= {names.secret: (names.v4[4],), names.fresh: (names.v4[0],)}
    assert names.ask(names.fresh).addresses == (names.v4[0],)
    wrong: list[str] = []
    answered = threading.Semaphore(0)
    over = threading.Event()

    def resolve() -> None:
        while not over.wait(PAUSE_S):
            reply = names.ask(names.www, timeout_s=1.0)
            if reply.addresses and not names.reaches(reply.addresses[0]):
                wrong.append(f"{reply.addresses} was answered and not reached")
            if reply:
                answered.release()

    def stay() -> None:
        while not over.wait(PAUSE_S):
            if not names.reaches(names.v4[0]):
                wrong.append("what was known was not reached")
            if names.ask(names.secret, timeout_s=0.2).rcode not in {"REFUSED", ""}:
                wrong.append("a name that is refused was answered")

    def goes_on() -> None:
        while answered.acquire(blocking=False):
            pass
        for _ in range(10):
            assert answered.acquire(timeout=AGAIN_S), "names are not answered any more"

    threads = [threading.Thread(target=work) for work in (resolve, resolve, stay)]
    for thread in threads:
        thread.start()
    try:
        for _ in range(2):
            names.agent.kill_proxy("dns")
            goes_on()
            names.agent.kill()
            goes_on()
            names.agent.start()
            goes_on()
    finally:
        over.set()
        for thread in threads:
            thread.join()
    assert wrong == []
    assert names.dropped((names.v4[0], *ROTATING_TOO)) == []
    assert names.secret not in names.resolver.names()


def test_an_address_lives_as_long_as_its_connection(own: Names) -> None:
    own.start("--dns-min-ttl", "6")  # longer than the machine may stand still before the connection is made
    own.resolver.ttl_s = 1
    own.resolver.records |= {own.www: (own.v4[0],), own.fresh: (own.v4[1],)}
    assert own.ask(own.www).addresses == (own.v4[0],)
    with Connection(own.client, STREAM, own.v4[0], PORT) as connection:
        assert connection.exchange()
        own.resolver.records[own.www] = (own.v4[2],)
        assert own.ask(own.www).addresses == (own.v4[2],)
        assert own.ask(own.fresh).addresses == (own.v4[1],)
        rig.wait_until(lambda: not own.known(own.fresh), FORGOTTEN_S)
        assert own.v4[0] in own.known(own.www)
        assert connection.exchange()
        rig.wait_until(lambda: not own.reaches(own.v4[1], SHORT_S), FORGOTTEN_S)  # told first, then written
    rig.wait_until(lambda: own.v4[0] not in own.known(own.www), FORGOTTEN_S)
    rig.wait_until(lambda: not own.reaches(own.v4[0], SHORT_S), FORGOTTEN_S)


# ---- resolvers that lie


def lies(www: str, address: str) -> dict[str, Raw]:
    return {
        "nothing at all": lambda _: [b""],
        "one byte": lambda _: [b"\0"],
        "another id": lambda wire: [_with(says(rrset(www, "A", address))(wire)[0], 0, bytes(2))],
        "cut off in an address": lambda wire: [says(rrset(www, "A", address))(wire)[0][:-13]],
        "a name that points to itself": lambda wire: [_looping(wire, www)],
        "another name's address": says(rrset("evil.example", "A", address)),
        "additional records": says(rrset(www, "A", address), section="additional"),
        "aliases in a circle": says(rrset(www, "CNAME", "b.example."), rrset("b.example", "CNAME", f"{www}.")),
        "64 KiB": lambda wire: [wire[:2] + b"\x81\x80" + bytes(60_000)],
        "counts that are none": lambda wire: [_with(wire, 2, b"\x81\x80\xff\xff\xff\xff\xff\xff\xff\xff")],
    }


def _with(wire: bytes, at: int, part: bytes) -> bytes:
    return wire[:at] + part + wire[at + len(part) :]


def _looping(wire: bytes, www: str) -> bytes:
    head = _with(says()(wire)[0], 6, b"\0\1")
    end = len(query(www).to_wire()) - 11
    return head[:end] + bytes((0xC0, end)) + b"\0\1\0\1" + bytes(4) + b"\0\4" + bytes(4)


def test_a_lying_resolver_neither_ends_the_proxy_nor_widens_policy(names: Names) -> None:
    pid = names.pid()
    for transport in TRANSPORTS:
        for what, lie in lies(names.www, names.v4[4]).items():
            names.resolver.raw[names.www] = lie
            with suppress(OSError, EOFError):
                exchange(
                    names.client, names.address["v4"], query(names.www).to_wire(), tcp=transport == "tcp", timeout_s=0.2
                )
            assert names.known(names.www) == set(), what
        assert not names.reaches(names.v4[4], SHORT_S), transport
    del names.resolver.raw[names.www]
    names.resolver.records |= {names.www: (names.v4[0],)}
    rig.wait_until(lambda: names.ask(names.www, timeout_s=1.0).addresses == (names.v4[0],), AGAIN_S)
    assert names.reaches(names.v4[0])
    assert names.pid() == pid


def test_a_name_opens_nothing_inside_the_cluster(names: Names) -> None:
    other, node = names.agent.ip(OTHER), rig.NODE_V4
    names.resolver.records |= {names.www: (other, node, names.v4[0])}
    with Server(names.agent.netns(OTHER), "tcp", PORT), Server(names.agent.node, "tcp", PORT):
        assert set(names.ask(names.www).addresses) == {other, node, names.v4[0]}
        assert names.reaches(names.v4[0])
        assert not names.reaches(other, SHORT_S)
        assert not names.reaches(node, SHORT_S)


# ---- what is seen


def test_queries_are_flows(names: Names) -> None:
    names.resolver.records |= {names.www: (names.v4[0],)}
    assert names.ask(names.www).addresses == (names.v4[0],)
    assert names.ask(names.secret).rcode == "REFUSED"

    def of(name: str) -> Document:
        flows = names.agent.await_flows(lambda f: (f.get("l7") or {}).get("query") == name, 1, "--dns-query", name)
        return flows[0]

    allowed, refused = of(names.www), of(names.secret)
    assert (allowed["verdict"], allowed["l7"]["rcode"]) == ("FORWARDED", "NOERROR")
    assert names.v4[0] in allowed["l7"]["answers"]
    assert (refused["verdict"], refused["l7"]["rcode"]) == ("DROPPED", "REFUSED")
    for flow in (allowed, refused):
        assert flow["source"]["pod"] == "client"
        assert flow["destination"]["pod"] == "dns"
        assert flow["policy"]["name"] == "client"


def test_the_proxy_has_no_privilege_but_to_speak_for_pods(names: Names) -> None:
    assert set(capabilities(names.pid()).values()) == {1 << NET_RAW}

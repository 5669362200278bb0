"""Names end to end: manifests, agent, DNS proxy, a resolver in a pod, and what may be reached by name outside."""

from __future__ import annotations

import itertools
import os
import signal
import threading
from collections.abc import Iterator
from contextlib import ExitStack, suppress
from pathlib import Path
from typing import Any

import pytest
import rig
from agents import Document, RunningAgent, pod
from dnsrig import Asking, Raw, Reply, Resolver, Wire, ask, exchange, query, rrset, says
from probes import STREAM, Connection, Server, tcp

from agent.api import client as api
from agent.privileges import NET_RAW, capabilities

CLIENT, TWIN, OTHER, DNS = "shop/client", "shop/twin", "shop/other", "kube-system/dns"
PORT = 9000
WWW, ELSE, LATE, SECRET = "www.allowed.example", "www.else.example", "api.late.example", "secret.denied.example"
V4 = tuple(f"198.51.100.{i}" for i in range(1, 201))
V6 = ("2001:db8:100::10", "2001:db8:100::66")
SHORT_S = 0.4
"""How long silence must last to be silence."""
FORGOTTEN_S = 30.0
FAMILIES = ("v4", "v6")
TRANSPORTS = ("udp", "tcp")


class Names:
    """A client that may ask for some names at a resolver, and reach `*.allowed.example` outside."""

    def __init__(self, node: rig.Node, agent: RunningAgent) -> None:
        self.agent = agent
        self._stack = ExitStack()
        self.outside = self._stack.enter_context(rig.Outside(node, (*V4, *V6)))

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

    def close(self) -> None:
        self._stack.close()

    def ask(self, name: str, qtype: str = "A", *, family: str = "v4", tcp: bool = False, **how: Any) -> Reply:
        return ask(self.client, self.address[family], name, qtype, tcp=tcp, **how)

    def reaches(self, address: str, timeout_s: float = 1.0) -> bool:
        return bool(tcp(self.client, address, PORT, timeout_s))

    def known(self, name: str) -> set[str]:
        """Addresses the proxy has for a name."""
        found = api.call(self.agent.instance.dns_socket, "names")
        return {one["address"] for one in found if one["name"] == name}

    def pid(self) -> int:
        return int(self.agent.status()["proxies"]["dns"]["process"]["pid"])


@pytest.fixture
def names(node: rig.Node, tmp_path: Path) -> Iterator[Names]:
    with RunningAgent(node, tmp_path) as agent:
        names = Names(node, agent)
        try:
            yield names
        finally:
            names.close()


PODS = pod(CLIENT, app="client", of="one"), pod(OTHER, app="other"), pod(DNS, app="dns")
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
    rules = [*reached, {"matchName": ELSE}, *asked]
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
    names.start()
    addresses = {"A": iter(V4), "AAAA": iter(V6)}
    for family, transport, qtype in itertools.product(FAMILIES, TRANSPORTS, ("A", "AAAA")):
        name = f"{family}-{transport}-{qtype}.allowed.example".lower()
        address = V6[transport == "tcp"] if qtype == "AAAA" else next(addresses["A"])
        names.resolver.records[name] = (address,)
        reply = names.ask(name, qtype, family=family, tcp=transport == "tcp")
        assert (reply.rcode, reply.addresses) == ("NOERROR", (address,)), (family, transport, qtype)
        assert names.reaches(address), f"{name} at once"
    assert {asked.transport for asked in names.resolver.asked} == {"UDP", "TCP"}
    assert {asked.source for asked in names.resolver.asked} == set(names.agent.endpoint(CLIENT)["ips"]), "the pod's own"


@pytest.mark.parametrize("transport", TRANSPORTS)
@pytest.mark.parametrize("family", FAMILIES)
def test_a_refused_name_never_leaves(names: Names, family: str, transport: str) -> None:
    names.start()
    names.resolver.records |= {SECRET: (V4[0],), WWW: (V4[1],)}
    with Wire(names.dns_pod) as inside, Wire(names.outside) as outside:
        reply = names.ask(SECRET, family=family, tcp=transport == "tcp")
        assert (reply.rcode, reply.addresses) == ("REFUSED", ())
        assert names.ask(WWW, family=family, tcp=transport == "tcp").addresses == (V4[1],)
        assert not inside.carries(SECRET)
        assert not outside.carries(SECRET)
    assert set(names.resolver.names()) == {WWW}
    assert not names.reaches(V4[0], SHORT_S)


def test_addresses_of_names_that_may_only_be_asked_for_are_denied(names: Names) -> None:
    names.start()
    names.resolver.records |= {ELSE: (V4[0], V6[0]), WWW: (V4[1],)}
    for qtype, address in (("A", V4[0]), ("AAAA", V6[0])):
        assert names.ask(ELSE, qtype).addresses == (address,)
        assert not names.reaches(address, SHORT_S)
    assert names.ask(WWW).addresses == (V4[1],)
    assert names.reaches(V4[1])
    assert not names.reaches(V4[2], SHORT_S), "one that no name has"


def test_a_name_by_way_of_others_is_the_one_that_was_asked_for(names: Names) -> None:
    names.start()
    names.resolver.aliases |= {WWW: "cdn.third.example"}
    names.resolver.records |= {"cdn.third.example": (V4[0],)}
    assert names.ask(WWW).addresses == (V4[0],)
    assert names.reaches(V4[0])


def test_of_others_nothing_is_asked(names: Names) -> None:
    names.start()
    names.resolver.records |= {SECRET: (V4[0],)}
    other = names.agent.netns(OTHER)
    assert ask(other, names.address["v4"], SECRET).addresses == (V4[0],)
    assert tcp(other, V4[0], PORT)
    assert not names.reaches(V4[0], SHORT_S), "it binds nobody else"


def test_rules_that_change_hold_for_what_is_known(names: Names) -> None:
    names.start()
    names.resolver.records |= {WWW: (V4[0],), LATE: (V4[1],)}
    late = {"matchName": LATE}
    assert names.ask(WWW).addresses == (V4[0],)
    assert names.ask(LATE).rcode == "REFUSED"
    names.agent.write("policy.yaml", cnp({"matchName": WWW}, asked=(late,)))
    names.agent.settle()
    names.agent.await_listeners()
    assert names.ask(LATE).addresses == (V4[1],)
    assert names.reaches(V4[0])
    assert not names.reaches(V4[1], SHORT_S)
    names.agent.write("policy.yaml", cnp(late))
    names.agent.settle()
    names.agent.await_listeners()
    assert names.reaches(V4[1]), "it has been asked for before"
    assert not names.reaches(V4[0], SHORT_S)
    assert names.ask(WWW).rcode == "REFUSED"


@pytest.mark.parametrize("stays", [False, True], ids=["gone", "of-a-twin"])
@pytest.mark.parametrize("transport", TRANSPORTS)
def test_rules_that_change_hold_for_a_socket_that_lives(names: Names, transport: str, stays: bool) -> None:
    """A resolver in a pod keeps its sockets. TCP may be closed on it: then it asks again by a new one (RFC 7766).
    `stays`: the rules it began by are those of another pod yet, whose socket goes on."""
    names.agent.write("twin.yaml", pod(TWIN, app="client", of="two"))
    names.start()
    names.resolver.records |= {WWW: (V4[0],), LATE: (V4[1],)}
    how = {"server": names.address["v4"], "tcp": transport == "tcp"}
    with Asking(names.client, **how) as asking, Asking(names.agent.netns(TWIN), **how) as twin:
        assert asking.ask(WWW).addresses == twin.ask(WWW).addresses == (V4[0],)
        assert asking.ask(LATE).rcode == "REFUSED"
        names.resolver.asked.clear()
        names.agent.write("policy.yaml", cnp({"matchName": LATE}, of="one"), *([cnp(of="two")] if stays else ()))
        names.agent.settle()
        names.agent.await_listeners()
        assert asking.ask(WWW).rcode == "REFUSED"
        assert names.resolver.names() == []
        assert asking.ask(LATE).addresses == (V4[1],)
        assert names.reaches(V4[1])
        if stays:
            assert twin.ask(WWW).addresses == (V4[0],)
            assert twin.renewed == 0


def test_a_name_with_ever_other_addresses_is_reached_without_a_drop(names: Names) -> None:
    """Lesson 16."""
    names.start()
    turn = itertools.count()

    def other_each_time(wire: bytes) -> list[bytes]:
        return says(rrset(WWW, "A", V4[next(turn) % len(V4)], ttl_s=1))(wire)

    names.resolver.raw[WWW] = other_each_time
    failed: list[str] = []
    reached: set[str] = set()

    def work() -> None:
        for _ in range(100):
            reply = names.ask(WWW)
            if not reply.addresses or not names.reaches(reply.addresses[0], 3.0):
                failed.append(str(reply))
            reached.update(reply.addresses)

    threads = [threading.Thread(target=work) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert failed == []
    assert reached == set(V4)
    assert all(names.reaches(address) for address in V4[::10]), "those of before, too"


def test_names_are_learned_of_pods_that_nothing_else_isolates(names: Names) -> None:
    """enableDefaultDeny: any name may be asked for, and is known to other rules."""
    names.start()
    names.resolver.records |= {SECRET: (V4[0],), WWW: (V4[1],)}
    watched = cnp({"matchPattern": "*"})
    watched["metadata"]["name"] = "watched"
    watched["spec"] |= {
        "endpointSelector": {"matchLabels": {"app": "other"}},
        "enableDefaultDeny": {"egress": False, "ingress": False},
    }
    names.agent.write("watched.yaml", watched)
    names.agent.settle()
    names.agent.await_listeners()
    other = names.agent.netns(OTHER)
    assert ask(other, names.address["v4"], WWW).addresses == (V4[1],)
    assert ask(other, names.address["v4"], SECRET).addresses == (V4[0],)
    assert tcp(other, V4[5], PORT), "it is not isolated"
    assert names.known(WWW) == {V4[1]}
    assert names.reaches(V4[1]), "a name is one of everybody"


def test_without_the_proxy_by_setting_names_are_denied_and_it_is_said(names: Names) -> None:
    names.start("--dns-proxy", "off", listening=False)
    names.resolver.records |= {WWW: (V4[0],)}
    assert not names.ask(WWW, timeout_s=SHORT_S)
    assert names.resolver.asked == []
    status = names.agent.status()
    assert status["state"] == "degraded"
    assert any("turned off" in reason for reason in status["reasons"]), status["reasons"]
    assert status["proxies"]["dns"]["process"]["state"] == "stopped"


# ---- what is gone for a while


def test_without_the_proxy_known_names_go_on_and_it_comes_back_with_them(names: Names) -> None:
    names.start()
    names.resolver.records |= {WWW: (V4[0],), "new.allowed.example": (V4[1],)}
    assert names.ask(WWW).addresses == (V4[0],)
    names.agent.kill_proxy("dns")
    assert not names.ask(WWW, timeout_s=SHORT_S)
    assert names.reaches(V4[0])
    rig.wait_until(lambda: names.ask("new.allowed.example", timeout_s=1.0).addresses == (V4[1],), 20)
    assert names.known(WWW) == {V4[0]}
    assert names.reaches(V4[0])
    assert names.reaches(V4[1])
    assert names.ask(SECRET).rcode == "REFUSED"


def test_names_go_on_while_the_agent_restarts(names: Names) -> None:
    """Lesson 16."""
    names.start()
    names.resolver.records |= {WWW: (V4[0],), "new.allowed.example": (V4[1], V6[1]), SECRET: (V4[9],)}
    assert names.ask(WWW).addresses == (V4[0],)
    pid = names.pid()
    names.agent.kill()
    assert names.ask("new.allowed.example").addresses == (V4[1],)
    assert names.reaches(V4[1]), "an address that is new, of a name that no agent has heard of"
    assert names.ask("new.allowed.example", "AAAA").addresses == (V6[1],)
    assert names.reaches(V6[1])
    names.resolver.records[WWW] = (V4[2],)
    assert names.ask(WWW, tcp=True).addresses == (V4[2],)
    assert names.reaches(V4[2])
    assert names.ask(SECRET).rcode == "REFUSED"

    dropped: list[str] = []
    over = threading.Event()

    def connect() -> None:
        while not over.is_set():
            dropped.extend(a for a in (V4[0], V4[1], V4[2], V6[1]) if not names.reaches(a))

    connecting = threading.Thread(target=connect)
    connecting.start()
    try:
        names.agent.start()
        names.agent.await_listeners()
    finally:
        over.set()
        connecting.join()
    assert dropped == [], "at no time while the new agent starts"
    assert names.pid() == pid
    assert names.known("new.allowed.example") == {V4[1], V6[1]}
    names.resolver.records[WWW] = (V4[3],)
    assert names.ask(WWW).addresses == (V4[3],)
    assert names.reaches(V4[3])


def test_names_are_known_after_both_have_gone(names: Names) -> None:
    names.start()
    names.resolver.records |= {WWW: (V4[0],)}
    assert names.ask(WWW).addresses == (V4[0],)
    pid = names.pid()
    names.agent.kill()
    os.kill(pid, signal.SIGKILL)
    assert names.reaches(V4[0])
    names.agent.start()
    assert names.reaches(V4[0])
    names.agent.await_listeners()
    assert names.reaches(V4[0])
    assert names.known(WWW) == {V4[0]}


def test_each_is_killed_in_turn_under_load(names: Names) -> None:
    names.start()
    turn = itertools.count()

    def other_each_time(wire: bytes) -> list[bytes]:
        return says(rrset(WWW, "A", V4[next(turn) % len(V4)], ttl_s=1))(wire)

    names.resolver.raw[WWW] = other_each_time
    names.resolver.records |= {SECRET: (V4[9],), "fixed.allowed.example": (V4[0],)}
    assert names.ask("fixed.allowed.example").addresses == (V4[0],)
    wrong: list[str] = []
    answered = threading.Semaphore(0)
    over = threading.Event()

    def resolve() -> None:
        while not over.is_set():
            reply = names.ask(WWW, timeout_s=0.5)
            if reply.addresses and not names.reaches(reply.addresses[0], 3.0):
                wrong.append(f"{reply.addresses} was answered and not reached")
            if reply:
                answered.release()

    def stay() -> None:
        while not over.is_set():
            if not names.reaches(V4[0], 3.0):
                wrong.append("what was known was not reached")
            if names.ask(SECRET, timeout_s=0.2).rcode not in {"REFUSED", ""}:
                wrong.append("a name that is refused was answered")

    def goes_on() -> None:
        while answered.acquire(blocking=False):
            pass
        for _ in range(10):
            assert answered.acquire(timeout=20), "names are not answered any more"

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
    assert SECRET not in names.resolver.names()


def test_an_address_lives_as_long_as_its_connection(names: Names) -> None:
    names.start("--dns-min-ttl", "1")
    names.resolver.ttl_s = 1
    names.resolver.records |= {WWW: (V4[0],), "short.allowed.example": (V4[1],)}
    assert names.ask(WWW).addresses == (V4[0],)
    with Connection(names.client, STREAM, V4[0], PORT) as connection:
        assert connection.exchange()
        names.resolver.records[WWW] = (V4[2],)
        assert names.ask(WWW).addresses == (V4[2],)
        assert names.ask("short.allowed.example").addresses == (V4[1],)
        rig.wait_until(lambda: not names.known("short.allowed.example"), FORGOTTEN_S)
        assert V4[0] in names.known(WWW)
        assert connection.exchange()
        rig.wait_until(lambda: not names.reaches(V4[1], SHORT_S), FORGOTTEN_S)  # told first, then written
    rig.wait_until(lambda: V4[0] not in names.known(WWW), FORGOTTEN_S)
    rig.wait_until(lambda: not names.reaches(V4[0], SHORT_S), FORGOTTEN_S)


# ---- resolvers that lie

LIES: dict[str, Raw] = {
    "nothing at all": lambda _: [b""],
    "one byte": lambda _: [b"\0"],
    "another id": lambda wire: [_with(says(rrset(WWW, "A", V4[9]))(wire)[0], 0, bytes(2))],
    "cut off in an address": lambda wire: [says(rrset(WWW, "A", V4[9]))(wire)[0][:-13]],
    "a name that points to itself": lambda wire: [_looping(wire)],
    "another name's address": says(rrset("evil.example", "A", V4[9])),
    "additional records": says(rrset(WWW, "A", V4[9]), section="additional"),
    "aliases in a circle": says(rrset(WWW, "CNAME", "b.example."), rrset("b.example", "CNAME", f"{WWW}.")),
    "64 KiB": lambda wire: [wire[:2] + b"\x81\x80" + bytes(60_000)],
    "counts that are none": lambda wire: [_with(wire, 2, b"\x81\x80\xff\xff\xff\xff\xff\xff\xff\xff")],
}


def _with(wire: bytes, at: int, part: bytes) -> bytes:
    return wire[:at] + part + wire[at + len(part) :]


def _looping(wire: bytes) -> bytes:
    head = _with(says()(wire)[0], 6, b"\0\1")
    end = len(query(WWW).to_wire()) - 11
    return head[:end] + bytes((0xC0, end)) + b"\0\1\0\1" + bytes(4) + b"\0\4" + bytes(4)


def test_a_lying_resolver_neither_ends_the_proxy_nor_widens_policy(names: Names) -> None:
    names.start()
    pid = names.pid()
    for transport in TRANSPORTS:
        for what, lie in LIES.items():
            names.resolver.raw[WWW] = lie
            with suppress(OSError, EOFError):
                exchange(names.client, names.address["v4"], query(WWW).to_wire(), tcp=transport == "tcp", timeout_s=0.2)
            assert names.known(WWW) == set(), what
            assert not names.reaches(V4[9], SHORT_S), what
    del names.resolver.raw[WWW]
    names.resolver.records |= {WWW: (V4[0],)}
    rig.wait_until(lambda: names.ask(WWW, timeout_s=1.0).addresses == (V4[0],), 10)
    assert names.reaches(V4[0])
    assert names.pid() == pid


def test_a_name_opens_nothing_inside_the_cluster(names: Names) -> None:
    names.start()
    other, node = names.agent.ip(OTHER), rig.NODE_V4
    names.resolver.records |= {WWW: (other, node, V4[0])}
    with Server(names.agent.netns(OTHER), "tcp", PORT), Server(names.agent.node, "tcp", PORT):
        assert set(names.ask(WWW).addresses) == {other, node, V4[0]}
        assert names.reaches(V4[0])
        assert not names.reaches(other, SHORT_S)
        assert not names.reaches(node, SHORT_S)


# ---- what is seen


def test_queries_are_flows(names: Names) -> None:
    names.start()
    names.resolver.records |= {WWW: (V4[0],)}
    assert names.ask(WWW).addresses == (V4[0],)
    assert names.ask(SECRET).rcode == "REFUSED"

    def of(name: str) -> Document:
        flows = names.agent.await_flows(lambda f: (f.get("l7") or {}).get("query") == name, 1, "--dns-query", name)
        return flows[0]

    allowed, refused = of(WWW), of(SECRET)
    assert (allowed["verdict"], allowed["l7"]["rcode"]) == ("FORWARDED", "NOERROR")
    assert V4[0] in allowed["l7"]["answers"]
    assert (refused["verdict"], refused["l7"]["rcode"]) == ("DROPPED", "REFUSED")
    for flow in (allowed, refused):
        assert flow["source"]["pod"] == "client"
        assert flow["destination"]["pod"] == "dns"
        assert flow["policy"]["name"] == "client"


def test_the_proxy_has_no_privilege_but_to_speak_for_pods(names: Names) -> None:
    names.start()
    assert set(capabilities(names.pid()).values()) == {1 << NET_RAW}

"""The proxy with real sockets: pods that ask anything, resolvers that answer anything."""

from __future__ import annotations

import random
import socket
import struct
from collections.abc import Iterator
from contextlib import suppress
from itertools import pairwise
from pathlib import Path
from types import SimpleNamespace

import dns.flags
import dns.message
import dns.rcode
import pytest
from dns_site import NUMBER, POD_V4, POD_V6, DnsSite, Running
from dnsrig import LENGTH, TIMEOUT_S, Resolver, ask, exchange, query, rrset, says
from rig import OUTSIDE_V4, OUTSIDE_V6, wait_until

from l7proxy.dns import datagrams, rules, streams
from l7proxy.dns.learning import Learning
from l7proxy.dns.proxy import Wanted
from l7proxy.dns.rules import Rules
from l7proxy.dns.store import Store
from l7proxy.dns.table import Table
from l7proxy.records import Dns
from policies.address import parse_address
from policies.l7 import NamePattern

ALLOWED = [NamePattern(pattern="*.ok"), NamePattern(exact="one.example")]
SERVERS = {OUTSIDE_V4: POD_V4, OUTSIDE_V6: POD_V6}
ADDRESS = "198.51.100.10"


@pytest.fixture
def site(root: None) -> Iterator[DnsSite]:
    with DnsSite() as site:
        yield site


@pytest.fixture
def resolver(site: DnsSite) -> Iterator[Resolver]:
    with Resolver(site.outside) as resolver:
        resolver.records |= {
            "a.ok": (ADDRESS, "2001:db8:100::10"),
            "evil.example": (ADDRESS,),
            "one.example": (ADDRESS,),
        }
        yield resolver


@pytest.fixture
def proxy(site: DnsSite, tmp_path: Path) -> Iterator[Running]:
    with Running(site, ALLOWED, tmp_path) as proxy:
        yield proxy
    assert proxy.left == []
    assert proxy.judge.pending == 0


@pytest.mark.parametrize("server", SERVERS)
@pytest.mark.parametrize("tcp", [False, True])
def test_allowed_and_refused(site: DnsSite, resolver: Resolver, proxy: Running, server: str, tcp: bool) -> None:
    assert ask(site.pod, server, "A.ok", tcp=tcp).addresses == (ADDRESS,)
    assert ask(site.pod, server, "a.ok", "AAAA", tcp=tcp).addresses == ("2001:db8:100::10",)
    assert ask(site.pod, server, "none.ok", tcp=tcp).rcode == "NXDOMAIN"
    assert ask(site.pod, server, "evil.example", tcp=tcp).rcode == "REFUSED"
    assert resolver.names() == ["a.ok", "a.ok", "none.ok"]
    assert {asked.source for asked in resolver.asked} == {SERVERS[server]}  # the pod's own address
    assert {asked.transport for asked in resolver.asked} == {"TCP" if tcp else "UDP"}
    found = [(r.listener, r.source, r.destination, r.destination_port, r.transport, r.denied) for r in proxy.records]
    expected = (NUMBER, SERVERS[server], server, 53, "TCP" if tcp else "UDP")
    assert found == [(*expected, False)] * 3 + [(*expected, True)]
    said = [(r.l7.query, r.l7.qtype, r.l7.rcode, r.l7.answers) for r in proxy.records if isinstance(r.l7, Dns)]
    assert said == [
        ("a.ok", "A", "NOERROR", (ADDRESS,)),
        ("a.ok", "AAAA", "NOERROR", ("2001:db8:100::10",)),
        ("none.ok", "A", "NXDOMAIN", ()),
        ("evil.example", "A", "REFUSED", ()),
    ]


def test_refused_as_nxdomain(site: DnsSite, resolver: Resolver, proxy: Running) -> None:
    proxy.call(lambda: setattr(proxy.judge, "refuse", "nxdomain"))
    assert ask(site.pod, OUTSIDE_V4, "evil.example").rcode == "NXDOMAIN"
    assert resolver.asked == []


def test_rules_change_in_place(site: DnsSite, resolver: Resolver, proxy: Running) -> None:
    before = proxy.proxy.ports
    fresh = Wanted(Rules.of(NUMBER, [NamePattern(exact="evil.example")]), before[NUMBER])
    assert proxy.call(lambda: proxy.proxy.serve({NUMBER: fresh})) == {}
    assert proxy.proxy.ports == before
    assert ask(site.pod, OUTSIDE_V4, "a.ok").rcode == "REFUSED"
    assert ask(site.pod, OUTSIDE_V4, "evil.example").addresses == (ADDRESS,)
    taken = proxy.call(lambda: proxy.proxy.serve({NUMBER: fresh, 7: Wanted(Rules.of(7, []), before[NUMBER])}))
    assert list(taken) == [7]  # one port cannot be two listeners
    assert ask(site.pod, OUTSIDE_V4, "evil.example")
    proxy.call(lambda: proxy.proxy.serve({}))
    assert not ask(site.pod, OUTSIDE_V4, "evil.example", timeout_s=0.3)
    assert not ask(site.pod, OUTSIDE_V4, "evil.example", tcp=True, timeout_s=0.3)


def test_edns_goes_there_and_back(site: DnsSite, resolver: Resolver, proxy: Running) -> None:
    seen: list[bytes] = []

    def answer(wire: bytes) -> list[bytes]:
        seen.append(wire)
        made = dns.message.make_response(dns.message.from_wire(wire), our_payload=1400)
        return [made.to_wire()]

    resolver.raw["a.ok"] = answer
    sent = query("a.ok").to_wire()
    back = dns.message.from_wire(exchange(site.pod, OUTSIDE_V4, sent))
    assert back.payload == 1400
    assert seen[0][2:] == sent[2:]
    assert seen[0][:2] != sent[:2] or exchange(site.pod, OUTSIDE_V4, sent)  # a fresh id: one in 65,536 is the same


def test_ids_and_ports_are_not_those_of_the_pod(site: DnsSite, resolver: Resolver, proxy: Running) -> None:
    seen: list[int] = []

    def answer(wire: bytes) -> list[bytes]:
        seen.append(int.from_bytes(wire[:2], "big"))
        return [dns.message.make_response(dns.message.from_wire(wire)).to_wire()]

    resolver.raw["a.ok"] = answer
    sent = query("a.ok")
    for number in range(100):
        sent.id = number
        assert dns.message.from_wire(exchange(site.pod, OUTSIDE_V4, sent.to_wire())).id == number
    assert len(set(seen)) > 90
    assert sum(a + 1 == b for a, b in pairwise(seen)) < 5


NOT_PLAIN = {
    "a zone": dns.message.make_query("a.ok.", "AXFR").to_wire(),
    "another class": dns.message.make_query("a.ok.", "A", rdclass="CH").to_wire(),
    "two questions": struct.pack("!6H", 9, 0x0100, 2, 0, 0, 0) + b"\1a\2ok\0\0\1\0\1" + b"\4evil\7example\0\0\1\0\1",
    "an update": struct.pack("!6H", 9, 0x2800, 1, 0, 0, 0) + b"\1a\2ok\0\0\6\0\1",
    "a notification": struct.pack("!6H", 9, 0x2000, 1, 0, 0, 0) + b"\1a\2ok\0\0\6\0\1",
    "more behind it": query("a.ok").to_wire() + b"evil.example",
}


@pytest.mark.parametrize("tcp", [False, True])
@pytest.mark.parametrize("case", NOT_PLAIN)
def test_all_but_plain_queries_are_refused(
    site: DnsSite, resolver: Resolver, proxy: Running, case: str, tcp: bool
) -> None:
    wire = NOT_PLAIN[case]
    reply = exchange(site.pod, OUTSIDE_V4, wire, tcp=tcp)
    assert reply[:2] == wire[:2]
    assert reply[3] & 15 in (1, 4, 5)
    assert resolver.asked == []


def lies(*wrong: bytes | None) -> object:
    """First these, None being a copy with another id; then the truth."""

    def answer(wire: bytes) -> list[bytes]:
        made = dns.message.make_response(dns.message.from_wire(wire))
        made.answer.append(rrset("a.ok", "A", ADDRESS))
        right = made.to_wire()
        other = bytes([right[0] ^ 1]) + right[1:]
        renamed = right.replace(b"\1a\2ok", b"\1b\2ok", 1)
        return [*(one if one is not None else other for one in wrong), renamed, right]

    return answer


def test_answers_that_belong_to_no_query_are_passed_over(site: DnsSite, resolver: Resolver, proxy: Running) -> None:
    resolver.raw["a.ok"] = lies(None, b"", b"x", bytes(11), bytes(12), bytes(512), b"\xff" * 9000)  # type: ignore[assignment]
    assert ask(site.pod, OUTSIDE_V4, "a.ok").addresses == (ADDRESS,)
    assert proxy.judge.counters.foreign_answers == 8


def test_who_guesses_for_long_gets_nothing_through(site: DnsSite, resolver: Resolver, proxy: Running) -> None:
    resolver.raw["a.ok"] = lies(*[None] * 40)  # type: ignore[assignment]
    assert not ask(site.pod, OUTSIDE_V4, "a.ok", timeout_s=0.5)
    resolver.raw.clear()
    assert ask(site.pod, OUTSIDE_V4, "a.ok").addresses == (ADDRESS,)


HOSTILE = {
    "a record cut short": b"\xc0\x0c\0\1\0\1\0\0\0\x3c\0\4\1\2",
    "pointers in a circle": b"\xc0\x16\xc0\x14\0\1\0\1\0\0\0\x3c\0\4\1\2\3\4",
    "60,000 bytes of pointers": b"\xc0\x0c" * 30_000,
    "60,000 names that do not end": b"\1a" * 30_000,
}


@pytest.mark.parametrize("tcp", [False, True])
@pytest.mark.parametrize("case", HOSTILE)
def test_hostile_answers_stay_out(site: DnsSite, resolver: Resolver, proxy: Running, case: str, tcp: bool) -> None:
    def answer(wire: bytes) -> list[bytes]:
        question = wire[12 : 12 + 6 + 4]
        return [wire[:2] + b"\x81\x80\0\1\1\x90\0\0\0\0" + question + HOSTILE[case]]

    resolver.raw["a.ok"] = answer
    assert not ask(site.pod, OUTSIDE_V4, "a.ok", tcp=tcp, timeout_s=0.3)
    wait_until(lambda: proxy.judge.counters.bad_answers == 1, what="it is known to be bad")
    assert len(proxy.learning.table) == 0
    assert [one.l7.rcode for one in proxy.records if isinstance(one.l7, Dns)] == [""]
    assert ask(site.pod, OUTSIDE_V4, "one.example", tcp=tcp).addresses == (ADDRESS,)


def test_learned_are_addresses_of_the_name_that_was_asked(site: DnsSite, resolver: Resolver, proxy: Running) -> None:
    resolver.raw["a.ok"] = says(
        rrset("a.ok", "CNAME", "cdn.example."), rrset("cdn.example", "A", ADDRESS), rrset("other.ok", "A", "192.0.2.99")
    )
    assert ask(site.pod, OUTSIDE_V4, "a.ok")
    assert {name: list(held) for name, held in proxy.learning.table.items()} == {"a.ok": [parse_address(ADDRESS)]}


def test_a_refused_query_teaches_nothing(site: DnsSite, resolver: Resolver, proxy: Running) -> None:
    ask(site.pod, OUTSIDE_V4, "evil.example")
    assert len(proxy.learning.table) == 0


def test_what_a_pod_that_is_a_resolver_answers_teaches_nothing(
    site: DnsSite, resolver: Resolver, proxy: Running
) -> None:
    port = proxy.proxy.ports[NUMBER]
    ingress = Wanted(Rules.of(NUMBER, ALLOWED, ingress=True), port)
    assert proxy.call(lambda: proxy.proxy.serve({NUMBER: ingress})) == {}
    assert ask(site.pod, OUTSIDE_V4, "a.ok").addresses == (ADDRESS,)
    assert ask(site.pod, OUTSIDE_V4, "evil.example").rcode == "REFUSED"
    assert [one.direction for one in proxy.records] == ["ingress", "ingress"]
    assert len(proxy.learning.table) == 0


def test_an_error_teaches_nothing(site: DnsSite, resolver: Resolver, proxy: Running) -> None:
    def answer(wire: bytes) -> list[bytes]:
        made = dns.message.make_response(dns.message.from_wire(wire))
        made.set_rcode(dns.rcode.NXDOMAIN)
        made.answer.append(rrset("a.ok", "A", ADDRESS))
        return [made.to_wire()]

    resolver.raw["a.ok"] = answer
    assert ask(site.pod, OUTSIDE_V4, "a.ok").rcode == "NXDOMAIN"
    assert len(proxy.learning.table) == 0


def test_an_answer_too_long_for_the_way_is_truncated(site: DnsSite, resolver: Resolver, proxy: Running) -> None:
    many = [f"198.51.{n // 250}.{n % 250}" for n in range(200)]

    def answer(wire: bytes) -> list[bytes]:
        made = dns.message.make_response(dns.message.from_wire(wire))
        made.answer.append(rrset("a.ok", "A", *many))
        return [made.to_wire(max_size=65535)]

    resolver.raw["a.ok"] = answer
    short = dns.message.from_wire(exchange(site.pod, OUTSIDE_V4, query("a.ok").to_wire()))
    assert short.flags & dns.flags.TC
    assert short.answer == []
    assert len(ask(site.pod, OUTSIDE_V4, "a.ok", tcp=True).addresses) == 200


def test_an_answer_is_held_until_its_addresses_are_settled(site: DnsSite, resolver: Resolver, tmp_path: Path) -> None:
    with Running(site, ALLOWED, tmp_path, needed=ALLOWED) as proxy:
        proxy.settles = False
        assert not ask(site.pod, OUTSIDE_V4, "a.ok", timeout_s=0.5)
        assert proxy.records == []
        proxy.settles = True
        assert ask(site.pod, OUTSIDE_V4, "a.ok").addresses == (ADDRESS,)


def test_a_silent_resolver(site: DnsSite, resolver: Resolver, proxy: Running, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(datagrams, "TIMEOUT_S", 0.2)
    monkeypatch.setattr(datagrams, "SOCKET_S", 0.2)
    resolver.raw["a.ok"] = lambda _wire: []
    assert not ask(site.pod, OUTSIDE_V4, "a.ok", timeout_s=0.1)
    wait_until(lambda: proxy.judge.counters.timeouts == 1, what="given up")
    assert proxy.judge.pending == 0


def test_one_pod_cannot_use_up_all(
    site: DnsSite, resolver: Resolver, proxy: Running, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(rules, "MAX_PENDING_OF_POD", 5)
    resolver.raw["a.ok"] = lambda _wire: []
    with site.pod.call(socket.socket, socket.AF_INET, socket.SOCK_DGRAM) as pod:
        pod.connect((OUTSIDE_V4, 53))
        for number in range(20):
            asked = query("a.ok")
            asked.id = number
            pod.send(asked.to_wire())
        wait_until(lambda: proxy.judge.counters.over_limit == 15, what="fifteen over the limit")
        assert ask(site.pod, OUTSIDE_V6, "one.example").addresses == (ADDRESS,)  # by its other address: another client


def test_a_pod_that_asks_many_resolvers(
    site: DnsSite, resolver: Resolver, proxy: Running, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(datagrams, "MAX_SOCKETS_OF_POD", 3)
    monkeypatch.setattr(datagrams, "SOCKET_S", 0.2)
    servers = [f"198.51.100.{n}" for n in range(1, 6)]  # nobody answers there
    site.node.ip(*(f"route add {server}/32 dev {site.outside.link}" for server in servers))
    assert not any(ask(site.pod, server, "a.ok", timeout_s=0.1) for server in servers[:3])
    assert {ask(site.pod, server, "a.ok").rcode for server in servers[3:]} == {"SERVFAIL"}
    assert ask(site.pod, OUTSIDE_V6, "a.ok")  # by its other address: another client
    monkeypatch.setattr(datagrams, "TIMEOUT_S", 0.2)
    wait_until(lambda: ask(site.pod, OUTSIDE_V4, "a.ok", timeout_s=1).addresses, what="room again")


def test_the_loudest_is_not_heard_when_it_is_too_much(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(rules, "BUSY", 10)
    table, store = Table(), Store(tmp_path / "names.json")
    store.load(table, 0.0)
    absent = SimpleNamespace(settle=lambda _address, _names: True)
    learning = Learning(table, store, absent, clock=lambda: 0.0, monotonic=lambda: 0.0)
    judge = rules.Judge(learning, lambda _record: None)
    loud, quiet = ((parse_address(text), 1) for text in ("10.0.0.1", "10.0.0.2"))
    wire, server = query("a.ok").to_wire(), (parse_address(OUTSIDE_V4), 53)

    def heard(pod: rules.Endpoint, times: int) -> int:
        asked = [judge.ask(Rules.of(1, ALLOWED), wire, pod, server, "UDP") for _ in range(times)]
        return sum(isinstance(one, rules.Asked) for one in asked)

    assert heard(loud, 50) == 50  # nobody else asks
    assert heard(quiet, 20) == 20
    assert heard(loud, 50) == 0
    assert heard(quiet, 20) == 20
    judge.sweep()
    assert heard(loud, 10) == 10
    store.close()


def test_pipelined_queries_are_answered_in_any_order(site: DnsSite, resolver: Resolver, proxy: Running) -> None:
    names = ["a.ok", "evil.example", "one.example"] * 30
    with site.pod.call(socket.socket, socket.AF_INET, socket.SOCK_STREAM) as pod:
        pod.settimeout(TIMEOUT_S)
        pod.connect((OUTSIDE_V4, 53))
        batch = b""
        for number, name in enumerate(names):
            asked = query(name)
            asked.id = number
            batch += LENGTH.pack(len(asked.to_wire())) + asked.to_wire()
        pod.sendall(batch)
        pod.shutdown(socket.SHUT_WR)  # it has no more to ask, and still gets all
        found: dict[int, int] = {}
        with pod.makefile("rb") as stream:
            while head := stream.read(2):
                answer = dns.message.from_wire(stream.read(*LENGTH.unpack(head)))
                found[answer.id] = answer.rcode()
    refused = dns.rcode.REFUSED
    assert found == {n: refused if name == "evil.example" else dns.rcode.NOERROR for n, name in enumerate(names)}


def test_a_stream_of_junk_is_closed(site: DnsSite, resolver: Resolver, proxy: Running) -> None:
    for junk in (b"\0\0", b"\xff\xff" + bytes(70_000), b"\0\5abcde", LENGTH.pack(500) + b"half"):
        with site.pod.call(socket.socket, socket.AF_INET, socket.SOCK_STREAM) as pod:
            pod.settimeout(TIMEOUT_S)
            pod.connect((OUTSIDE_V4, 53))
            with suppress(ConnectionError):
                pod.sendall(junk)
                with suppress(OSError):  # it may be closed already
                    pod.shutdown(socket.SHUT_WR)
                assert pod.recv(100) == b""
    assert ask(site.pod, OUTSIDE_V4, "a.ok", tcp=True)


def test_connections_of_one_pod_are_bounded(
    site: DnsSite, resolver: Resolver, proxy: Running, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(streams, "MAX_CONNECTIONS_OF_POD", 2)
    made = [site.pod.call(socket.create_connection, (OUTSIDE_V4, 53)) for _ in range(5)]
    wait_until(lambda: proxy.judge.counters.over_limit == 3, what="three over the limit")
    for one in made:
        one.close()
    wait_until(lambda: ask(site.pod, OUTSIDE_V4, "a.ok", tcp=True), what="room again")


def test_a_resolver_that_nobody_reaches(site: DnsSite, proxy: Running) -> None:
    """Nothing listens there: the pod hears of nothing, or of a broken connection, and the proxy goes on."""
    assert not ask(site.pod, OUTSIDE_V4, "a.ok", timeout_s=0.3)
    assert not ask(site.pod, OUTSIDE_V4, "a.ok", tcp=True)
    with Resolver(site.outside) as resolver:
        resolver.records["a.ok"] = (ADDRESS,)
        wait_until(lambda: ask(site.pod, OUTSIDE_V4, "a.ok", timeout_s=1).addresses, what="an answer")


def test_what_processes_of_the_node_send_to_the_port_itself_goes_nowhere(site: DnsSite, proxy: Running) -> None:
    port = proxy.proxy.ports[NUMBER]
    for server in ("127.0.0.1", "::1"):
        assert not ask(site.node, server, "a.ok", port=port, timeout_s=0.2)
        assert not ask(site.node, server, "a.ok", port=port, tcp=True)
    assert proxy.judge.counters.queries == 0


def test_random_bytes_never_stop_it(site: DnsSite, resolver: Resolver, proxy: Running) -> None:
    seed = random.randrange(2**32)
    print(f"seed {seed}")
    draw = random.Random(seed)
    good = query("a.ok").to_wire()

    def scrambled(wire: bytes) -> bytes:
        if draw.random() < 0.3:
            return draw.randbytes(draw.randrange(600))
        changed = bytearray(wire)
        for _ in range(draw.randrange(1, 6)):
            changed[draw.randrange(len(changed))] = draw.randrange(256)
        return bytes(changed[: draw.randrange(len(changed) + 1)])

    def answer(wire: bytes) -> list[bytes]:
        made = dns.message.make_response(dns.message.from_wire(wire))
        made.answer.append(rrset("a.ok", "A", ADDRESS))
        kept = made.to_wire()
        return [kept[:2] + scrambled(kept[2:]) for _ in range(3)]

    resolver.raw["a.ok"] = answer
    with site.pod.call(socket.socket, socket.AF_INET, socket.SOCK_DGRAM) as pod:
        pod.connect((OUTSIDE_V4, 53))
        for _ in range(150):
            pod.send(scrambled(good))
            pod.send(good)
    # What is under way on a socket at which many lies arrive is lost with it.
    wait_until(lambda: ask(site.pod, OUTSIDE_V4, "one.example", timeout_s=1).addresses == (ADDRESS,), TIMEOUT_S)
    resolver.raw.clear()
    wait_until(lambda: ask(site.pod, OUTSIDE_V4, "a.ok", timeout_s=1).addresses == (ADDRESS,), TIMEOUT_S)
    addresses = {address for _, held in proxy.learning.table.items() for address in held}
    names = {name for name, _ in proxy.learning.table.items()}
    assert names <= {name for name in names if name.endswith(".ok")} | {"one.example"}
    assert addresses

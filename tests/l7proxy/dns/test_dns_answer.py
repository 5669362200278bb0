"""Answers, honest and hostile: what is passed on, and which addresses are believed."""

from __future__ import annotations

import struct
import time
from contextlib import suppress

import dns.flags
import dns.message
import dns.rrset
import pytest
from dnsrig import rrset
from hypothesis import given
from hypothesis import strategies as st

from l7proxy.dns.answer import MAX_TTL_S, NOTHING, Answer, Bad, Reader, belongs, parse
from l7proxy.dns.query import Query, read
from policies.address import format_address

V4, V6, OTHER = "198.51.100.1", "2001:db8::1", "198.51.100.66"


def asked(name: str = "www.example", qtype: str = "A") -> tuple[dns.message.Message, Query]:
    message = dns.message.make_query(f"{name}.", qtype, use_edns=0)
    return message, read(message.to_wire())


def says(*records: dns.rrset.RRset, name: str = "www.example", qtype: str = "A", section: str = "answer") -> Answer:
    message, query = asked(name, qtype)
    answer = dns.message.make_response(message)
    getattr(answer, section).extend(records)
    return parse(answer.to_wire(), query)


def texts(answer: Answer) -> list[str]:
    return [format_address(address) for address in answer.addresses]


# what it holds besides the question for www.example A, addresses learned
CHAINS = {
    "an address": ([rrset("www.example", "A", V4)], [V4]),
    "several": ([rrset("www.example", "A", V4, OTHER)], [V4, OTHER]),
    "another case": ([rrset("WWW.Example", "A", V4)], [V4]),
    "both families": ([rrset("www.example", "A", V4), rrset("www.example", "AAAA", V6)], [V4, V6]),
    "an alias": ([rrset("www.example", "CNAME", "a.cdn."), rrset("a.cdn", "A", V4)], [V4]),
    "aliases in no order": (
        [rrset("b.cdn", "A", V4), rrset("a.cdn", "CNAME", "b.cdn."), rrset("www.example", "CNAME", "a.cdn.")],
        [V4],
    ),
    "nothing": ([], []),
    "another name": ([rrset("evil.example", "A", OTHER)], []),
    "a name below": ([rrset("a.www.example", "A", OTHER)], []),
    "another name beside it": ([rrset("www.example", "A", V4), rrset("evil.example", "A", OTHER)], [V4]),
    "an alias to nowhere": ([rrset("www.example", "CNAME", "a.cdn."), rrset("b.cdn", "A", OTHER)], []),
    "an address beside an alias": (
        [rrset("www.example", "CNAME", "a.cdn."), rrset("www.example", "A", OTHER), rrset("a.cdn", "A", V4)],
        [V4],
    ),
    "an alias of itself": ([rrset("www.example", "CNAME", "www.example.")], []),
    "a loop": ([rrset("www.example", "CNAME", "a.cdn."), rrset("a.cdn", "CNAME", "www.example.")], []),
    "a loop with addresses": (
        [rrset("www.example", "CNAME", "a.cdn."), rrset("a.cdn", "CNAME", "www.example."), rrset("a.cdn", "A", V4)],
        [],
    ),
    "text": ([rrset("www.example", "TXT", '"198.51.100.66"')], []),
    "a hint": ([rrset("www.example", "HTTPS", f"1 . ipv4hint={OTHER}")], []),
    "a dotted label": ([dns.rrset.from_text("www\\.example.", 60, "IN", "A", OTHER)], []),
    "private and loopback": ([rrset("www.example", "A", "127.0.0.1", "10.0.0.1")], ["127.0.0.1", "10.0.0.1"]),
}  # fmt: skip


@pytest.mark.parametrize("case", CHAINS)
def test_only_the_end_of_the_chain_is_learned(case: str) -> None:
    records, addresses = CHAINS[case]
    assert sorted(texts(says(*records))) == sorted(addresses)


@pytest.mark.parametrize("section", ["authority", "additional"])
def test_other_sections_teach_nothing(section: str) -> None:
    assert not says(rrset("www.example", "A", OTHER), section=section).addresses


def test_the_shortest_ttl_along_the_way() -> None:
    alias, end = rrset("www.example", "CNAME", "a.cdn.", ttl_s=30), rrset("a.cdn", "A", V4, ttl_s=300)
    assert says(alias, end).ttl_s == 30
    assert says(end, rrset("www.example", "CNAME", "a.cdn.", ttl_s=900)).ttl_s == 300
    assert says(rrset("www.example", "A", V4, ttl_s=0)).ttl_s == 0
    assert says(rrset("www.example", "A", V4, ttl_s=2**31 - 1)).ttl_s == MAX_TTL_S


@pytest.mark.parametrize("ttl", [2**31, 2**32 - 1])
def test_a_ttl_with_the_highest_bit_is_none(ttl: int) -> None:
    message, query = asked()
    answer = dns.message.make_response(message)
    answer.answer.append(rrset("www.example", "A", V4, ttl_s=12345))
    wire = answer.to_wire().replace(struct.pack("!I", 12345), struct.pack("!I", ttl))
    assert parse(wire, query).ttl_s in (0, 2**32)


def test_an_ipv4_mapped_address_is_refused() -> None:
    with pytest.raises(Bad):
        says(rrset("www.example", "AAAA", "::ffff:10.0.0.1"), qtype="AAAA")


def test_too_long_a_chain_is_refused() -> None:
    records = [rrset(f"n{i}.example", "CNAME", f"n{i + 1}.example.") for i in range(40)]
    with pytest.raises(Bad):
        says(rrset("www.example", "CNAME", "n0.example."), *records, rrset("n40.example", "A", V4))


def test_two_aliases_of_one_name_are_refused() -> None:
    with pytest.raises(Bad):
        says(rrset("www.example", "CNAME", "a.example."), rrset("www.example", "CNAME", "b.example."))


def test_belongs() -> None:
    message, query = asked("Www.example")
    answer = dns.message.make_response(message)
    wire = answer.to_wire()
    assert belongs(wire, query, message.id)
    assert belongs(wire.replace(b"\3Www", b"\3www"), query, message.id)
    other, _ = asked("wwx.example")
    other.id = message.id
    wrong = {
        "another id": (wire, message.id ^ 1),
        "a query": (message.to_wire(), message.id),
        "another name": (dns.message.make_response(other).to_wire(), message.id),
        "another type": (wire.replace(b"\0\1\0\1", b"\0\x1c\0\1", 1), message.id),
        "a type that differs by a bit of case": (wire.replace(b"\0\1\0\1", b"\0\x21\0\1", 1), message.id),
        "nothing": (b"", 0),
        "a header cut short": (wire[:11], message.id),
        "a question cut short": (wire[:20], message.id),
        "another operation": (wire[:2] + bytes([wire[2] | 0x28]) + wire[3:], message.id),
        "no question, no error": (wire[:4] + bytes(8), message.id),
        "no question, an error, records": (wire[:3] + b"\x82\0\0\0\1\0\0\0\0", message.id),
        "two questions": (wire[:4] + b"\0\2" + wire[6:], message.id),
    }
    assert [why for why, (bytes_, number) in wrong.items() if belongs(bytes_, query, number)] == []
    assert belongs(wire[:3] + b"\x81" + bytes(8), query, message.id)  # FORMERR alone


def hostile(tail: bytes, answers: int = 1) -> tuple[bytes, Query]:
    message, query = asked()
    return struct.pack("!6H", message.id, 0x8180, 1, answers, 0, 0) + query.question + tail, query


A_RECORD = struct.pack("!HHIH4s", 1, 1, 60, 4, b"1234")
HOSTILE = {
    "no record": (b"", 1),
    "a record cut short": (b"\xc0\x0c" + A_RECORD[:-1], 1),
    "more records than there are": (b"\xc0\x0c" + A_RECORD, 7),
    "a pointer to itself": (b"\xc0\x1d" + A_RECORD, 1),
    "pointers in a circle": (b"\xc0\x1f\xc0\x1d" + A_RECORD, 1),
    "a pointer ahead": (b"\xff\xff" + A_RECORD, 1),
    "a label of an unknown kind": (b"\x80abc\0" + A_RECORD, 1),
    "an A record of five bytes": (b"\xc0\x0c" + struct.pack("!HHIH5s", 1, 1, 60, 5, b"12345"), 1),
    "an AAAA record of four bytes": (b"\xc0\x0c" + struct.pack("!HHIH4s", 28, 1, 60, 4, b"1234"), 1),
    "a CNAME without end": (b"\xc0\x0c" + struct.pack("!HHIH3s", 5, 1, 60, 3, b"\2ab"), 1),
    "65535 records": (b"\xc0\x0c" + A_RECORD, 65535),
    "64 KiB of zeros": (bytes(65_000), 500),
    "64 KiB of pointers": (b"\xc0\x0c" * 32_000, 500),
}


@pytest.mark.parametrize("case", HOSTILE)
def test_hostile_answers_are_refused(case: str) -> None:
    wire, query = hostile(*HOSTILE[case])
    reader = Reader()
    for _ in range(2):
        try:
            answer = reader.read(wire, query)
        except Bad:
            continue
        assert answer.addresses == (), case


def test_long_chains_of_pointers_cost_little() -> None:
    """Each record's name follows thousands of pointers, each to the one before it: minutes, if they were followed."""
    chain = b"\1a\0" + b"".join(b"\1a" + struct.pack("!H", 0xC000 | (29 + 12 + i * 4)) for i in range(3000))
    owner = struct.pack("!H", 0xC000 | 12000)
    head = b"\0" + struct.pack("!HHIH", 16, 1, 60, len(chain)) + chain
    wire, query = hostile(head + (owner + A_RECORD) * 400, 401)
    started = time.process_time()
    with pytest.raises(Bad):
        parse(wire, query)
    assert time.process_time() - started < 2  # not minutes


def test_answers_are_remembered_but_for_their_ttls(monkeypatch: pytest.MonkeyPatch) -> None:
    parsed: list[bytes] = []

    def counted(wire: bytes, query: Query) -> Answer:
        parsed.append(wire)
        return parse(wire, query)

    monkeypatch.setattr("l7proxy.dns.answer.parse", counted)
    message, query = asked()
    reader = Reader()

    def wire(ttl_s: int, *addresses: str, alias_s: int = 900) -> bytes:
        answer = dns.message.make_response(message)
        answer.answer += [
            rrset("www.example", "CNAME", "a.cdn.", ttl_s=alias_s),
            rrset("a.cdn", "A", *addresses, ttl_s=ttl_s),
        ]
        answer.authority.append(rrset("cdn", "NS", "ns.cdn.", ttl_s=ttl_s + 7))
        return answer.to_wire()

    for ttl_s in (300, 299, 1, 0):
        again = b"zz" + wire(ttl_s, V4)[2:]
        assert (texts(reader.read(again, query)), reader.read(again, query).ttl_s) == ([V4], ttl_s)
    assert reader.read(wire(300, V4, alias_s=20), query).ttl_s == 20
    assert len(parsed) == 1
    assert set(texts(reader.read(wire(300, V4, OTHER), query))) == {V4, OTHER}
    assert texts(reader.read(wire(300, OTHER), query)) == [OTHER]
    assert len(parsed) == 3


@given(st.binary(max_size=200), st.integers(0, 20), st.data())
def test_what_is_remembered_is_what_would_be_read(tail: bytes, answers: int, data: st.DataObject) -> None:
    """A second answer that differs in one byte from one that was read brings no address that neither of them holds."""
    wire, query = hostile(b"\xc0\x0c" + A_RECORD + tail, answers)
    other = bytearray(wire)
    other[data.draw(st.integers(12, len(wire) - 1))] = data.draw(st.integers(0, 255))
    reader = Reader()
    held: set[bytes] = set()
    for one in (wire, bytes(other)):
        with suppress(Bad):
            held |= set(parse(one, query).addresses)
    for one in (wire, bytes(other), wire):
        if belongs(one, query, int.from_bytes(wire[:2], "big")):
            with suppress(Bad):
                assert set(reader.read(one, query).addresses) <= held


def test_types_without_addresses_are_not_parsed() -> None:
    message, query = asked(qtype="TXT")
    assert Reader().read(dns.message.make_response(message).to_wire() + b"junk", query) is NOTHING


@given(st.binary(max_size=400), st.integers(0, 600))
def test_random_records_teach_nothing_or_are_refused(tail: bytes, answers: int) -> None:
    wire, query = hostile(tail, answers)
    with suppress(Bad):
        parse(wire, query)


@given(st.data())
def test_answers_with_bytes_changed_never_raise(data: st.DataObject) -> None:
    message, query = asked()
    answer = dns.message.make_response(message)
    answer.answer += [rrset("www.example", "CNAME", "a.cdn."), rrset("a.cdn", "A", V4, OTHER)]
    wire = bytearray(answer.to_wire())
    for _ in range(data.draw(st.integers(1, 4))):
        wire[data.draw(st.integers(0, len(wire) - 1))] = data.draw(st.integers(0, 255))
    cut = bytes(wire[: data.draw(st.integers(0, len(wire)))])
    if belongs(cut, query, message.id):
        with suppress(Bad):
            Reader().read(cut, query)

"""Queries as they come: what is a plain query, and what becomes of everything else."""

from __future__ import annotations

import struct

import dns.edns
import dns.message
import dns.name
import dns.opcode
import dns.rcode
import dns.update
import pytest
from hypothesis import given
from hypothesis import strategies as st

from l7proxy.dns.query import NXDOMAIN, REFUSED, Query, Unusable, id_of, read, refusal, truncated, type_name, with_id

HEAD = struct.Struct("!6H")
PLAIN = dns.message.make_query("www.example.", "A", id=7).to_wire()
NAME = b"\3www\7example\0"


def message(
    *, number: int = 7, flags: int = 0x0100, counts: tuple[int, int, int, int] = (1, 0, 0, 0),
    question: bytes = NAME + struct.pack("!HH", 1, 1), tail: bytes = b"",
) -> bytes:  # fmt: skip
    return HEAD.pack(number, flags, *counts) + question + tail


def asks(qtype: int, qclass: int = 1) -> bytes:
    return NAME + struct.pack("!HH", qtype, qclass)


OPT = struct.pack("!BHHIH", 0, 41, 4096, 0, 0)
COOKIE = struct.pack("!BHHIHHH", 0, 41, 4096, 0, 12, 10, 8) + b"12345678"


@pytest.mark.parametrize(
    ("wire", "name", "qtype", "has_opt"),
    [
        (message(), "www.example", 1, False),
        (message(question=b"\3WWW\7eXample\0" + struct.pack("!HH", 28, 1)), "www.example", 28, False),
        (message(question=b"\0" + struct.pack("!HH", 2, 1)), "", 2, False),
        (message(counts=(1, 0, 0, 1), tail=OPT), "www.example", 1, True),
        (message(counts=(1, 0, 0, 1), tail=COOKIE), "www.example", 1, True),
        (message(question=asks(255)), "www.example", 255, False),
        (message(question=asks(65)), "www.example", 65, False),
        (message(question=asks(65280)), "www.example", 65280, False),
        (message(question=b"\5a.b\\c\1\0\0" + struct.pack("!HH", 1, 1)), "a\\046b\\092c.\\000", 1, False),
        (message(flags=0x0130), "www.example", 1, False),
        (message(question=b"\x3f" + b"a" * 63 + b"\0" + struct.pack("!HH", 1, 1)), "a" * 63, 1, False),
    ],
)
def test_plain_queries(wire: bytes, name: str, qtype: int, has_opt: bool) -> None:
    query = read(wire)
    assert (query.name, query.qtype, query.has_opt) == (name, qtype, has_opt)


REFUSED_FLAGS = 0x8000
UPDATE = dns.update.UpdateMessage("example.", id=7)
UPDATE.add("a", 60, "A", "192.0.2.1")


@pytest.mark.parametrize(
    ("wire", "rcode"),
    [
        (b"", None),
        (PLAIN[:11], None),
        (message(flags=0x8180), None),  # an answer: two proxies must not talk to each other for ever
        (message(flags=0x2000), dns.rcode.NOTIMP),  # notify
        (UPDATE.to_wire(), dns.rcode.NOTIMP),
        (message(counts=(0, 0, 0, 0), question=b""), dns.rcode.FORMERR),
        (message(counts=(2, 0, 0, 0), question=asks(1) + asks(28)), dns.rcode.REFUSED),
        (message(counts=(1, 1, 0, 0), tail=b"\xc0\x0c" + bytes(14)), dns.rcode.REFUSED),
        (message(counts=(1, 0, 1, 0)), dns.rcode.REFUSED),
        (message(counts=(1, 0, 0, 2), tail=OPT + OPT), dns.rcode.REFUSED),
        (message(counts=(1, 0, 0, 1)), dns.rcode.FORMERR),
        (message(counts=(1, 0, 0, 1), tail=OPT[:-1]), dns.rcode.FORMERR),
        (message(counts=(1, 0, 0, 1), tail=COOKIE[:-1]), dns.rcode.FORMERR),
        (message(counts=(1, 0, 0, 1), tail=OPT + b"x"), dns.rcode.FORMERR),
        (message(counts=(1, 0, 0, 1), tail=b"\0" + struct.pack("!HHIH", 16, 1, 0, 0)), dns.rcode.FORMERR),
        (message(tail=b"secret"), dns.rcode.FORMERR),
        (message(question=asks(252)), dns.rcode.REFUSED),  # AXFR
        (message(question=asks(251)), dns.rcode.REFUSED),  # IXFR
        (message(question=asks(250)), dns.rcode.REFUSED),  # TSIG
        (message(question=asks(1, 3)), dns.rcode.REFUSED),  # CHAOS
        (message(question=asks(1, 255)), dns.rcode.REFUSED),  # any class
        (message(question=b"\xc0\x0c" + struct.pack("!HH", 1, 1)), dns.rcode.FORMERR),
        (message(question=b"\x40" + b"a" * 64 + b"\0" + struct.pack("!HH", 1, 1)), dns.rcode.FORMERR),
        (message(question=b"\3www"), dns.rcode.FORMERR),
        (message(question=b"\3www\0\0\1\0"), dns.rcode.FORMERR),
        (message(question=b"\1a" * 128 + b"\0" + struct.pack("!HH", 1, 1)), dns.rcode.FORMERR),
        (PLAIN[:12], dns.rcode.FORMERR),
    ],
)  # fmt: skip
def test_all_else_is_refused(wire: bytes, rcode: int | None) -> None:
    with pytest.raises(Unusable) as caught:
        read(wire)
    if rcode is None:
        assert caught.value.reply == b""
    else:
        reply = dns.message.from_wire(caught.value.reply, one_rr_per_rrset=True)
        assert (reply.id, reply.rcode()) == (int.from_bytes(wire[:2], "big"), rcode)
        assert len(caught.value.reply) <= len(wire) + 11


@pytest.mark.parametrize("use_edns", [False, True])
def test_a_refusal_answers_the_query(use_edns: bool) -> None:
    asked = dns.message.make_query("No.example.", "AAAA", use_edns=use_edns)
    for code in (REFUSED, NXDOMAIN):
        answer = dns.message.from_wire(refusal(asked.to_wire(), read(asked.to_wire()), code))
        assert asked.is_response(answer)
        assert (answer.rcode(), answer.edns >= 0) == (code, use_edns)


def test_a_truncated_answer_says_so() -> None:
    asked = dns.message.make_query("a.example.", "TXT", use_edns=True)
    answer = dns.message.make_response(asked)
    short = dns.message.from_wire(truncated(answer.to_wire(), read(asked.to_wire())))
    assert asked.is_response(short)
    assert short.flags & dns.flags.TC


def test_type_names() -> None:
    assert [type_name(n) for n in (1, 28, 65280)] == ["A", "AAAA", "TYPE65280"]


@given(st.binary(max_size=300))
def test_random_bytes_are_refused_or_read(wire: bytes) -> None:
    _read_or_refuse(wire)


@given(st.data())
def test_queries_with_a_byte_changed(data: st.DataObject) -> None:
    wire = bytearray(message(counts=(1, 0, 0, 1), tail=COOKIE))
    wire[data.draw(st.integers(0, len(wire) - 1))] = data.draw(st.integers(0, 255))
    _read_or_refuse(bytes(wire[: data.draw(st.integers(0, len(wire)))]))


def _read_or_refuse(wire: bytes) -> None:
    """What is read is what the library reads: nobody is asked another name than the rules were."""
    try:
        query: Query = read(wire)
    except Unusable:
        return
    found = dns.message.from_wire(wire, question_only=True)  # what options hold is the resolver's to judge
    assert len(found.question) == 1
    labels = found.question[0].name.labels[:-1]
    wanted = dns.name.from_text(query.name, origin=dns.name.root) if query.name else dns.name.root
    assert dns.name.Name((*labels, b"")) == wanted
    assert with_id(wire, id_of(wire)) == wire

"""What a pod asks, read from the wire. Pure.

Only the plain query is understood, and everything else is refused: opcode QUERY, one question of class IN for one type
of data, nothing besides but an OPT record (RFC 6891). So nothing gets past the rules that they do not speak of: no zone
transfer, no update, no second question, no bytes behind the message. The question has no compression (nothing stands
before it), so that this needs no library, and is fast.
"""

from __future__ import annotations

import struct
from collections.abc import Iterable
from functools import lru_cache

import msgspec
from dns.rdatatype import RdataType

HEADER = struct.Struct("!6H")
ID_BYTES = 2
MAX_NAME = 255  # RFC 1035, 2.3.4
IN = 1
OPT = 41
NOERROR, FORMERR, SERVFAIL, NXDOMAIN, NOTIMP, REFUSED = range(6)

_QR, _OPCODE, _TC, _RD, _CD, _RA = 0x8000, 0x7800, 0x0200, 0x0100, 0x0010, 0x0080
_META_TYPES = frozenset(range(128, 255)) | {0, OPT}
"""Not data of a name: OPT, TKEY, TSIG, IXFR, AXFR, MAILB, MAILA (RFC 6895, 3.1); ANY (255) is."""
_EMPTY_OPT = struct.pack("!BHHIH", 0, OPT, 1232, 0, 0)
_FIXED_OPT = 11
_PLAIN = frozenset(b"abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ0123456789-_")


class Query(msgspec.Struct, frozen=True, gc=False):
    """`name`: canonical, as policies.names has it. `question`: its bytes, as they were sent. The id is not in it."""

    name: str
    qtype: int
    question: bytes
    has_opt: bool


class Unusable(Exception):
    """Not a query that can be passed on. `reply`: what to answer; b"": nothing, it is no query at all."""

    def __init__(self, reply: bytes, why: str) -> None:
        super().__init__(why)
        self.reply = reply


def read(message: bytes) -> Query:
    """Raises Unusable."""
    if len(message) < HEADER.size:
        raise Unusable(b"", "shorter than a header")
    try:
        return _read(message[ID_BYTES:])
    except Unusable as unusable:
        raise Unusable(unusable.reply and with_id(unusable.reply, id_of(message)), str(unusable)) from None


@lru_cache(maxsize=4096)
def _read(message: bytes) -> Query:
    """Of what follows the id: pods ask the same again and again. Raises Unusable."""
    message = bytes(ID_BYTES) + message
    _, flags, questions, answers, authorities, additional = HEADER.unpack_from(message)
    if flags & _QR:
        raise Unusable(b"", "an answer")
    if flags & _OPCODE:
        raise Unusable(_header_only(flags, NOTIMP), "not a query but another operation")
    if (questions, answers, authorities) != (1, 0, 0) or additional > 1:
        raise Unusable(_header_only(flags, REFUSED if questions else FORMERR), "not one question alone")
    name, end = _name(message, flags)
    qtype, qclass = struct.unpack_from("!HH", message, end)
    end += 4
    query = Query(name, qtype, message[HEADER.size : end], bool(additional))
    if qclass != IN or qtype in _META_TYPES:
        raise Unusable(refusal(message, query, REFUSED), "a class or type that is no data")
    if additional:
        end = _opt(message, end, flags)
    if end != len(message):
        raise Unusable(_header_only(flags, FORMERR), "bytes behind its end")
    return query


def refusal(message: bytes, query: Query, rcode: int) -> bytes:
    """The answer to a query that is not passed on: nothing but what it asked."""
    number, flags, *_ = HEADER.unpack_from(message)
    header = HEADER.pack(number, flags & (_RD | _CD) | _QR | _RA | rcode, 1, 0, 0, int(query.has_opt))
    return header + query.question + (_EMPTY_OPT if query.has_opt else b"")


def truncated(answer: bytes, query: Query) -> bytes:
    """Tells the pod to ask again by TCP (RFC 1035, 4.2.1), for an answer too long for a datagram."""
    number, flags, *_ = HEADER.unpack_from(answer)
    header = HEADER.pack(number, flags | _TC, 1, 0, 0, int(query.has_opt))
    return header + query.question + (_EMPTY_OPT if query.has_opt else b"")


def id_of(message: bytes) -> int:
    return int.from_bytes(message[:ID_BYTES], "big")


def with_id(message: bytes, number: int) -> bytes:
    return number.to_bytes(ID_BYTES, "big") + message[ID_BYTES:]


@lru_cache(maxsize=512)
def type_name(qtype: int) -> str:
    """A, AAAA, …; TYPE65280."""
    return RdataType.to_text(RdataType.make(qtype))


def _name(message: bytes, flags: int) -> tuple[str, int]:
    """The name, and where it ends, with type and class behind it. Raises Unusable."""
    labels, at = [], HEADER.size
    while at < len(message):
        length = message[at]
        at += 1
        if not length:
            break
        label = message[at : at + length]
        at += length
        labels.append(label)
        if length > 63 or len(label) < length or at - HEADER.size >= MAX_NAME:
            raise Unusable(_header_only(flags, FORMERR), "its name is none")
    else:
        raise Unusable(_header_only(flags, FORMERR), "its name does not end")
    if at + 4 > len(message):
        raise Unusable(_header_only(flags, FORMERR), "its question does not end")
    return name_text(labels), at


def name_text(labels: Iterable[bytes]) -> str:
    """Canonical, as policies.names has it: what is no letter, digit, hyphen or underscore is escaped."""
    return ".".join(map(_text, labels)).lower()


def _text(label: bytes) -> str:
    if _PLAIN.issuperset(label):
        return label.decode()
    return "".join(chr(byte) if byte in _PLAIN else f"\\{byte:03d}" for byte in label)


def _opt(message: bytes, at: int, flags: int) -> int:
    """Where an OPT record ends. Raises Unusable."""
    if len(message) >= at + _FIXED_OPT:
        owner, kind = struct.unpack_from("!BH", message, at)
        (length,) = struct.unpack_from("!H", message, at + _FIXED_OPT - 2)
        if owner == 0 and kind == OPT:
            return at + _FIXED_OPT + int(length)
    raise Unusable(_header_only(flags, FORMERR), "something besides the question that is no OPT record")


def _header_only(flags: int, rcode: int) -> bytes:
    return HEADER.pack(0, flags & (_OPCODE | _RD) | _QR | _RA | rcode, 0, 0, 0, 0)

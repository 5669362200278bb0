"""What an answer says, as far as policy may believe it. Pure.

An answer is passed on only if it belongs to a query: same id, same question. Addresses are learned from one that also
parses, and only those at the end of the chain of CNAMEs that begins at the name that was asked for. They become
addresses of that name alone: it is the one the rules allowed. What else an answer holds (other owners, authority,
additional records, hints in HTTPS records) is the pod's to read and no address of anybody.
"""

from __future__ import annotations

import struct
from collections import OrderedDict

import dns.exception
import dns.message
import dns.rdatatype
import dns.rrset
import msgspec

from l7proxy.dns.query import HEADER, ID_BYTES, OPT, Query, name_text
from policies.address import V4_MAPPED, parse_address

MAX_RECORDS = 512
"""In one answer. A name of more addresses than that is not resolved through the proxy."""
MAX_STEPS = 200_000
"""Compression pointers an answer could make the parser follow: records × bytes that may begin one."""
MAX_TTL_S = 7 * 86400  # as RFC 8767 has it for caches; also of one with the highest bit set, which means 0 (RFC 2181)
CHAIN = 16
"""CNAMEs that are followed."""
KEPT = 4096
"""Parsed answers that are kept: a resolver's cache gives the same many times, but for the TTLs."""

A, CNAME, AAAA, ANY = 1, 5, 28, 255
ADDRESS_TYPES = frozenset({A, AAAA, ANY})

_RECORD = struct.Struct("!HHIH")
"""Type, class, TTL and length of data, behind the owner's name."""

_QR, _OPCODE = 0x8000, 0x7800
_POINTERS = bytes(range(0xC0, 0x100))
_CHAIN_TYPES = frozenset({A, AAAA, CNAME})


class Bad(Exception):
    """An answer that must not reach the pod."""


class Answer(msgspec.Struct, frozen=True, gc=False):
    """`addresses`: 16 bytes each, as policies.address has them. `texts`: for people, names of the chain included.
    `ttl_s`: the smallest of the answers', at most as long as the chain's."""

    addresses: tuple[bytes, ...] = ()
    texts: tuple[str, ...] = ()
    ttl_s: int = 0


NOTHING = Answer()


def belongs(message: bytes, query: Query, number: int) -> bool:
    """Whether it is an answer to this query, which was passed on under another id. An error may leave out the
    question (RFC 1035 does not say that it must not)."""
    if len(message) < HEADER.size:
        return False
    found, flags, questions, answers, _, _ = HEADER.unpack_from(message)
    if found != number or not flags & _QR or flags & _OPCODE:
        return False
    if questions == 0:
        return answers == 0 and rcode(message) != 0
    if questions != 1:
        return False
    question = message[HEADER.size : HEADER.size + len(query.question)]
    # bytes.lower changes 65-90 only: no length of a label. The type may be one of these, and is compared as it is.
    return question.lower() == query.question.lower() and question[-4:] == query.question[-4:]


def rcode(message: bytes) -> int:
    """Without the bits that EDNS adds."""
    return message[3] & 15


class Reader:
    """Reads answers; remembers the most recent by all their bytes but id and TTLs.

    To find the TTLs it walks over the records itself. Were it to see other records there than the library does, an
    answer would be taken for one that was read before: of the same question, with other addresses, and no new one.
    """

    def __init__(self) -> None:
        self._known: OrderedDict[bytes, Answer] = OrderedDict()

    def read(self, message: bytes, query: Query) -> Answer:
        """What an answer that belongs to the query teaches. Raises Bad."""
        if query.qtype not in ADDRESS_TYPES or not HEADER.unpack_from(message)[3]:
            return NOTHING
        walked = without_ttls(message, HEADER.size + len(query.question))
        if walked is None:
            return parse(message, query)
        key, ttl_s = walked
        known = self._known.get(key)
        if known is None:
            answer = self._known[key] = parse(message, query)
            if len(self._known) > KEPT:
                self._known.popitem(last=False)
            return answer
        self._known.move_to_end(key)
        return Answer(known.addresses, known.texts, ttl_s)


def without_ttls(message: bytes, start: int) -> tuple[bytes, int] | None:
    """The message with 0 for its id and the TTLs of its records, which begin at `start`; and the smallest TTL of the
    answer section. None where they cannot be walked over."""
    _, _, _, answers, authorities, additional = HEADER.unpack_from(message)
    shape, size, at, smallest = bytearray(message), len(message), start, MAX_TTL_S
    shape[:ID_BYTES] = bytes(ID_BYTES)
    for number in range(answers + authorities + additional):
        at = _behind_name(message, at)
        if at + _RECORD.size > size or number > MAX_RECORDS:
            return None
        rdtype, _, ttl, length = _RECORD.unpack_from(message, at)
        if rdtype != OPT:  # whose TTL is flags
            shape[at + 4 : at + 8] = b"\0\0\0\0"
            if number < answers:
                smallest = min(smallest, _seconds(ttl))
        at += _RECORD.size + length
    return (bytes(shape), smallest) if at <= size else None


def _behind_name(message: bytes, at: int) -> int:
    """Where a name ends; beyond the message where it does not."""
    size = len(message)
    while at < size:
        length = message[at]
        if length >= 0xC0:
            return at + 2
        at += 1 + length
        if not length:
            return at
        if length > 63:
            break
    return size + 1


def parse(message: bytes, query: Query) -> Answer:
    """Raises Bad."""
    number, flags, questions, answers, _, _ = HEADER.unpack_from(message)
    pointers = len(message) - len(message.translate(None, _POINTERS))
    if answers > MAX_RECORDS or answers * pointers > MAX_STEPS:
        raise Bad(f"{answers} records: more than are read")
    # The other sections teach nothing: they are left to the pod.
    head = HEADER.pack(number, flags, questions, answers, 0, 0)
    try:
        rest = message[HEADER.size :]
        parsed = dns.message.from_wire(head + rest, ignore_trailing=True, one_rr_per_rrset=True)
        return _end_of_chain(parsed.answer, query.name)
    except (dns.exception.DNSException, ValueError, struct.error, IndexError, AssertionError) as error:
        raise Bad(f"{type(error).__name__}: {error}") from None


def _end_of_chain(records: list[dns.rrset.RRset], asked: str) -> Answer:
    by_name: dict[str, list[dns.rrset.RRset]] = {}
    for rrset in records:
        if rrset.rdclass == 1 and rrset.rdtype in _CHAIN_TYPES:
            by_name.setdefault(name_text(rrset.name.labels[:-1]), []).append(rrset)
    name, ttl_s = asked, MAX_TTL_S
    texts: list[str] = []
    for _ in range(CHAIN + 1):
        found = by_name.pop(name, [])  # each name once: a loop ends
        aliases = [rrset for rrset in found if rrset.rdtype == CNAME]
        if not aliases:
            addresses = list(dict.fromkeys(rdata.address for rrset in found for rdata in rrset))
            ttl_s = min([ttl_s, *(_seconds(rrset.ttl) for rrset in found)])
            return Answer(tuple(map(_address, addresses)), (*texts, *addresses), ttl_s if found else 0)
        if len(aliases) != 1:
            raise Bad(f"several CNAMEs of {name}")
        ttl_s = min(ttl_s, _seconds(aliases[0].ttl))
        name = name_text(aliases[0][0].target.labels[:-1])
        texts.append(name)
    raise Bad(f"more than {CHAIN} CNAMEs")


def _seconds(ttl: int) -> int:
    return 0 if ttl >= 1 << 31 else ttl


def _address(text: str) -> bytes:
    """An AAAA record of an IPv4-mapped address would be an IPv4 address in the maps: it is none that can be reached."""
    address = parse_address(text)
    if ":" in text and address.startswith(V4_MAPPED):
        raise Bad(f"{text} is no IPv6 address of anybody")
    return address

"""DNS between pods of tests: a resolver that notes what reaches it and may lie, and clients that ask it.

with Resolver(netns) as resolver:
    resolver.records["www.example"] = ("198.51.100.10", "2001:db8:100::10")
    resolver.raw["odd.example"] = lambda query: [query[:2] + b"junk"]
    ask(client, address, "www.example", "AAAA", tcp=True).addresses
"""

from __future__ import annotations

import socket
import socketserver
import struct
import threading
from collections.abc import Callable
from typing import Any, cast

import dns.exception
import dns.flags
import dns.message
import dns.name
import dns.rcode
import dns.rdatatype
import dns.rrset
import msgspec
from patience import SLOWER
from rig import Netns

TIMEOUT_S = 30.0 * SLOWER
TRY_S = 10.0 * SLOWER
"""Longer than the proxy lets an answer wait for an agent that is busy."""
TTL_S = 60
LENGTH = struct.Struct("!H")
ETH_P_ALL = 3

Raw = Callable[[bytes], list[bytes]]
"""What is sent for a query, as it stands; several messages are sent one after the other."""


class Asked(msgspec.Struct, frozen=True):
    """One query as it reached the resolver."""

    name: str
    qtype: str
    source: str
    transport: str


class Resolver:
    """On one port of a namespace, UDP and TCP, both families. A name it does not know does not exist.

    `records`: name (no dot at the end) → addresses of both families; `aliases`: name → name; `raw`: see above.
    """

    def __init__(self, netns: Netns, port: int = 53) -> None:
        self.records: dict[str, tuple[str, ...]] = {}
        self.aliases: dict[str, str] = {}
        self.raw: dict[str, Raw] = {}
        self.ttl_s = TTL_S
        self.asked: list[Asked] = []
        self._servers = [
            netns.call(_Datagrams, port, self, _Datagram),
            netns.call(_Streams, port, self, _Stream),
        ]
        self._threads = [threading.Thread(target=s.serve_forever, args=(0.02,), daemon=True) for s in self._servers]
        for thread in self._threads:
            thread.start()

    def __enter__(self) -> Resolver:
        return self

    def __exit__(self, *_: object) -> None:
        for server, thread in zip(self._servers, self._threads, strict=True):
            server.shutdown()
            thread.join()
            server.server_close()

    def forget(self) -> None:
        """What it knows, and what it was asked."""
        for held in (self.records, self.aliases, self.raw, self.asked):
            held.clear()
        self.ttl_s = TTL_S

    def names(self) -> list[str]:
        return [asked.name for asked in self.asked]

    def answer(self, wire: bytes, source: str, transport: str) -> list[bytes]:
        try:
            query = dns.message.from_wire(wire)
            (question,) = query.question
        except (dns.exception.DNSException, ValueError):
            return []
        name = question.name.to_text(omit_final_dot=True).lower()
        self.asked.append(
            Asked(name, dns.rdatatype.to_text(question.rdtype), source.removeprefix("::ffff:"), transport)
        )
        if name in self.raw:
            return self.raw[name](wire)
        return [self._true(query, question, name).to_wire()]

    def _true(self, query: dns.message.Message, question: dns.rrset.RRset, name: str) -> dns.message.Message:
        answer = dns.message.make_response(query, recursion_available=True)
        while (alias := self.aliases.get(name)) is not None:
            answer.answer.append(rrset(name, "CNAME", f"{alias}.", ttl_s=self.ttl_s))
            name = alias
        if name not in self.records:
            answer.set_rcode(dns.rcode.NXDOMAIN)
            return answer
        v6 = question.rdtype == dns.rdatatype.AAAA
        if found := [address for address in self.records[name] if (":" in address) is v6]:
            answer.answer.append(rrset(name, "AAAA" if v6 else "A", *found, ttl_s=self.ttl_s))
        return answer


def rrset(name: str, qtype: str, *data: str, ttl_s: int = TTL_S) -> dns.rrset.RRset:
    return dns.rrset.from_text(f"{name}.", ttl_s, "IN", qtype, *data)


def says(*records: dns.rrset.RRset, section: str = "answer") -> Raw:
    """An answer that holds these records, whatever was asked."""

    def answer(wire: bytes) -> list[bytes]:
        made = dns.message.make_response(dns.message.from_wire(wire), recursion_available=True)
        getattr(made, section).extend(records)
        return [made.to_wire()]

    return answer


class Reply(msgspec.Struct, frozen=True):
    """`rcode` "": no answer came, or the connection was refused."""

    rcode: str
    addresses: tuple[str, ...] = ()
    wire: bytes = b""

    def __bool__(self) -> bool:
        return bool(self.rcode)


def query(name: str, qtype: str = "A") -> dns.message.Message:
    return dns.message.make_query(f"{name}.", qtype, use_edns=0, payload=1232)


def ask(
    netns: Netns, server: str, name: str, qtype: str = "A", *, tcp: bool = False, timeout_s: float = TIMEOUT_S,
    port: int = 53, gave_up: Callable[[], bool] = lambda: False,
) -> Reply:  # fmt: skip
    """One query by a socket of its own, which takes answers from the server's address alone. `gave_up` is called where
    no answer has come: whether there will be none, and a resolver library would ask again."""
    while True:
        asked = query(name, qtype)
        try:
            wire = exchange(netns, server, asked.to_wire(), tcp=tcp, timeout_s=timeout_s, port=port)
        except (OSError, EOFError):
            if gave_up():
                continue
            return Reply("")
        return _understood(asked, wire)


class Asking:
    """One socket that asks again and again. By TCP, another one where that was closed.

    `gave_up`: see `ask`.
    """

    def __init__(
        self, netns: Netns, server: str, *, tcp: bool = False, timeout_s: float = TIMEOUT_S, port: int = 53,
        gave_up: Callable[[], bool] = lambda: False,
    ) -> None:  # fmt: skip
        self._netns, self._server, self._tcp, self._timeout_s = netns, (server, port), tcp, timeout_s
        self._gave_up = gave_up
        self._socket = self._connected()
        self.renewed = 0

    def __enter__(self) -> Asking:
        return self

    def __exit__(self, *_: object) -> None:
        self._socket.close()

    def ask(self, name: str, qtype: str = "A") -> Reply:
        asked = query(name, qtype)
        try:
            wire = _exchange(self._socket, asked.to_wire(), self._tcp)
        except (ConnectionError, EOFError):
            self._socket.close()
            self._socket = self._connected()
            self.renewed += 1
            wire = _exchange(self._socket, asked.to_wire(), self._tcp)
        except TimeoutError:
            if not self._gave_up():
                raise
            wire = _exchange(self._socket, asked.to_wire(), self._tcp)
        return _understood(asked, wire)

    def _connected(self) -> socket.socket:
        made = _socket(self._netns, self._server[0], self._tcp, self._timeout_s)
        made.connect(self._server)
        return made


def exchange(
    netns: Netns, server: str, wire: bytes, *, tcp: bool = False, timeout_s: float = TIMEOUT_S, port: int = 53
) -> bytes:
    """Bytes there and back. Raises OSError where nothing comes back, EOFError where the connection ends."""
    with _socket(netns, server, tcp, timeout_s) as made:
        made.connect((server, port))
        return _exchange(made, wire, tcp)


def _socket(netns: Netns, server: str, tcp: bool, timeout_s: float) -> socket.socket:
    family = socket.AF_INET6 if ":" in server else socket.AF_INET
    made = netns.call(socket.socket, family, socket.SOCK_STREAM if tcp else socket.SOCK_DGRAM)
    made.settimeout(timeout_s)
    return made


def _exchange(made: socket.socket, wire: bytes, tcp: bool) -> bytes:
    if not tcp:
        made.send(wire)
        return made.recv(65535)
    made.sendall(LENGTH.pack(len(wire)) + wire)
    with made.makefile("rb") as stream:
        return _read(stream)


def _understood(asked: dns.message.Message, wire: bytes) -> Reply:
    answer = dns.message.from_wire(wire)
    assert asked.is_response(answer), f"{answer} is no answer to {asked}"
    found = [str(one.address) for records in answer.answer for one in records if hasattr(one, "address")]
    return Reply(dns.rcode.to_text(answer.rcode()), tuple(found), wire)


class Wire:
    """Sees every packet of a namespace, whatever becomes of it: for what must not be there at all."""

    def __init__(self, netns: Netns) -> None:
        self._socket = netns.call(socket.socket, socket.AF_PACKET, socket.SOCK_RAW, socket.htons(ETH_P_ALL))
        self._socket.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 8 << 20)
        self._socket.setblocking(False)

    def __enter__(self) -> Wire:
        return self

    def __exit__(self, *_: object) -> None:
        self._socket.close()

    def carries(self, name: str) -> bool:
        """Whether a packet so far had this DNS name in it. Forgets them."""
        packets = []
        try:
            while True:
                packets.append(self._socket.recv(65535))
        except BlockingIOError:
            pass
        wanted = dns.name.from_text(f"{name}.").to_digestable()  # in lower case
        return any(wanted in packet.lower() for packet in packets)


def _read(stream: Any) -> bytes:
    head = stream.read(LENGTH.size)
    body = stream.read(*LENGTH.unpack(head)) if len(head) == LENGTH.size else b""
    if not head or len(body) < LENGTH.unpack(head)[0]:
        raise EOFError
    return bytes(body)


class _Dual(socketserver.TCPServer):
    """Both families on one socket."""

    address_family = socket.AF_INET6
    allow_reuse_address = True

    def __init__(self, port: int, resolver: Resolver, handler: type[socketserver.BaseRequestHandler]) -> None:
        self.resolver = resolver
        super().__init__(("::", port), handler)

    def server_bind(self) -> None:
        self.socket.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY, 0)
        super().server_bind()

    def handle_error(self, *_: object) -> None:
        """Clients that go are no errors."""


class _Datagram(socketserver.BaseRequestHandler):
    def handle(self) -> None:
        wire, made = self.request
        for answer in cast("Any", self.server).resolver.answer(wire, self.client_address[0], "UDP"):
            made.sendto(answer, self.client_address)


class _Stream(socketserver.StreamRequestHandler):
    timeout = 60

    def handle(self) -> None:
        while True:
            try:
                wire = _read(self.rfile)
            except (EOFError, OSError):
                return
            for answer in cast("Any", self.server).resolver.answer(wire, self.client_address[0], "TCP"):
                self.wfile.write(LENGTH.pack(len(answer)) + answer)


class _Datagrams(socketserver.UDPServer, _Dual):
    max_packet_size = 65535


class _Streams(socketserver.ThreadingMixIn, _Dual):
    daemon_threads = True
    request_queue_size = 128

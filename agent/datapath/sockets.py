"""Connected sockets ended from outside, by sock_diag(7): their next call fails, and the application connects anew.

A client that connected a UDP socket to a service has its backend's address in the socket, and nothing else tells it
that the backend is gone. Layouts: include/uapi/linux/{sock_diag,inet_diag}.h.
"""

from __future__ import annotations

import errno
import os
import socket
import struct
from collections.abc import Callable, Collection, Container, Iterator
from contextlib import suppress
from typing import NamedTuple

from agent.datapath.netns import entered

_PROTOCOLS = (socket.IPPROTO_UDP, socket.IPPROTO_TCP)
_NETLINK_SOCK_DIAG = 4
_SOCK_DIAG_BY_FAMILY, _SOCK_DESTROY = 20, 21
_NLM_F_REQUEST, _NLM_F_ACK, _NLM_F_DUMP = 0x1, 0x4, 0x300
_NLMSG_ERROR, _NLMSG_DONE = 2, 3
_TCP_ESTABLISHED, _TCP_SYN_SENT = 1, 2
_CONNECTED = 1 << _TCP_ESTABLISHED | 1 << _TCP_SYN_SENT
_TCP_ENDING = sum(1 << state for state in (4, 5, 8, 11))  # FIN_WAIT1, FIN_WAIT2, CLOSE_WAIT, CLOSING
_LACKING = (errno.EOPNOTSUPP, errno.EINVAL)
_HEADER = struct.Struct("=IHHII")  # nlmsghdr: length, type, flags, sequence, port
_REQUEST = struct.Struct("=BBxxI48s")  # inet_diag_req_v2: family, protocol, extensions, states, id
_MESSAGE = struct.Struct("=4x48s")  # inet_diag_msg, as far as its id
_SOCKET_ID = struct.Struct("=2s2s16s16sI8s")  # inet_diag_sockid: ports, addresses, interface, cookie
_MAPPED = bytes(10) + b"\xff\xff"
_RECEIVE_BYTES = 1 << 17

Backend = tuple[bytes, int]
"""Address (16 bytes) and port."""


class CannotDestroy(OSError):
    """This kernel ends no sockets for others; the message says what it lacks."""


class _Found(NamedTuple):
    family: int
    id: bytes  # struct inet_diag_sockid
    cookie: int
    peer: Backend


def destroy(netns: int | None, protocol: int, accept: Callable[[int, Backend], bool]) -> int:
    """End the connected sockets of a network namespace (a descriptor; None: the calling thread's) that `accept` accepts
    by their cookie and peer. Returns how many there were.

    `protocol`: TCP or UDP. An application sees ECONNABORTED; where it sends UDP, EDESTADDRREQ. Raises CannotDestroy,
    OSError.
    """
    with _diag_socket(netns) as diag:
        found = [one for family in (socket.AF_INET, socket.AF_INET6) for one in _connected(diag, family, protocol)]
        return sum(_end(diag, protocol, one) for one in found if accept(one.cookie, one.peer))


def destroy_in(namespaces: Collection[str], wanted: Container[tuple[int, Backend]]) -> int:
    """End the TCP and UDP sockets with these cookies that are still connected to the backend given with each, in the
    network namespaces at these paths and in the calling thread's own. A namespace that is gone has none. Returns how
    many there were. Raises CannotDestroy, OSError."""

    def accept(cookie: int, peer: Backend) -> bool:
        return (cookie, peer) in wanted

    ended = sum(destroy(None, protocol, accept) for protocol in _PROTOCOLS)
    for path in namespaces:
        with suppress(FileNotFoundError):
            netns = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
            try:
                ended += sum(destroy(netns, protocol, accept) for protocol in _PROTOCOLS)
            finally:
                os.close(netns)
    return ended


def _diag_socket(netns: int | None) -> socket.socket:
    def make() -> socket.socket:
        return socket.socket(socket.AF_NETLINK, socket.SOCK_DGRAM | socket.SOCK_CLOEXEC, _NETLINK_SOCK_DIAG)

    if netns is None:
        return make()
    with entered(netns):
        return make()


def _connected(diag: socket.socket, family: int, protocol: int) -> Iterator[_Found]:
    states = _CONNECTED if protocol == socket.IPPROTO_UDP else _CONNECTED | _TCP_ENDING
    body = _REQUEST.pack(family, protocol, states, bytes(48))
    diag.send(_message(_SOCK_DIAG_BY_FAMILY, _NLM_F_DUMP, body))
    try:
        payloads = list(_answers(diag, "listing sockets"))
    except FileNotFoundError:
        raise CannotDestroy(
            errno.ENOENT,
            "this kernel cannot list sockets (CONFIG_INET_UDP_DIAG, CONFIG_INET_TCP_DIAG): load udp_diag and tcp_diag "
            "with modprobe, or clients with connected UDP sockets stay with a backend that is gone",
        ) from None
    for payload in payloads:
        (number,) = _MESSAGE.unpack_from(payload)
        _, port, _, address, _, cookie = _SOCKET_ID.unpack(number)
        peer = _MAPPED + address[:4] if family == socket.AF_INET else address
        yield _Found(family, number, struct.unpack("=Q", cookie)[0], (peer, int.from_bytes(port, "big")))


def _end(diag: socket.socket, protocol: int, found: _Found) -> bool:
    """False where it ended by itself."""
    body = _REQUEST.pack(found.family, protocol, 0xFFFFFFFF, found.id)
    diag.send(_message(_SOCK_DESTROY, _NLM_F_ACK, body))
    try:
        for _ in _answers(diag, "ending a socket"):
            pass
    except OSError as error:
        if error.errno in (errno.ENOENT, errno.ESTALE):
            return False
        if error.errno in _LACKING:
            raise CannotDestroy(
                error.errno,
                "this kernel cannot end sockets (CONFIG_INET_DIAG_DESTROY is not set): clients with connected UDP "
                "sockets stay with a backend that is gone until they connect anew; use a kernel that has it",
            ) from None
        raise
    return True


def _message(kind: int, flags: int, body: bytes) -> bytes:
    return _HEADER.pack(_HEADER.size + len(body), kind, _NLM_F_REQUEST | flags, 0, 0) + body


def _answers(diag: socket.socket, what: str) -> Iterator[bytes]:
    """Payloads up to the end of the dump, or the acknowledgement. Raises OSError with the kernel's error."""
    while True:
        data = memoryview(diag.recv(_RECEIVE_BYTES))
        while data:
            length, kind, _, _, _ = _HEADER.unpack_from(data)
            payload = bytes(data[_HEADER.size : length])
            data = data[(length + 3) & ~3 :]
            if kind in (_NLMSG_DONE, _NLMSG_ERROR):
                number = -struct.unpack_from("=i", payload)[0]
                if number:
                    raise OSError(number, f"{what} failed: {os.strerror(number)}")
                return
            yield payload

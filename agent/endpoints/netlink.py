"""Route netlink, batched: several requests in one write, each answered.

Own encoding rather than pyroute2's: a pod takes some fifteen requests, which cost 1.2 ms to encode there and 0.1 ms
here, and a pod's start is counted in milliseconds.
"""

from __future__ import annotations

import errno
import os
import socket
import struct
from collections.abc import Iterator
from typing import NamedTuple

from agent.endpoints.namespaces import cookie_of

# linux/netlink.h, linux/rtnetlink.h
NLM_F_REQUEST, NLM_F_ACK, NLM_F_DUMP = 0x1, 0x4, 0x300
NLM_F_REPLACE, NLM_F_EXCL, NLM_F_CREATE = 0x100, 0x200, 0x400
NLM_F_ACK_TLVS = 0x200
NLMSG_ERROR, NLMSG_DONE = 2, 3
NLA_TYPE_MASK = 0x3FFF
SOL_NETLINK = 270
NETLINK_ADD_MEMBERSHIP, NETLINK_CAP_ACK, NETLINK_EXT_ACK = 1, 10, 11
NLMSGERR_ATTR_MSG = 1
RTNLGRP_LINK, RTNLGRP_IPV6_ROUTE = 1, 11

TIMEOUT_S = 5.0
_HEADER = struct.Struct("=IHHII")
_ATTRIBUTE = struct.Struct("=HH")
_TIMEOUT = struct.pack("@ll", int(TIMEOUT_S), 0)  # struct timeval
_RECEIVE_BYTES = 1 << 16


class NetlinkError(OSError):
    """The kernel refused a request; the message says which and why."""


class Request(NamedTuple):
    """One message to the kernel. `what` is how an error names it."""

    kind: int
    flags: int
    body: bytes
    what: str


class Reply(NamedTuple):
    kind: int
    body: bytes


def attribute(kind: int, data: bytes) -> bytes:
    """A netlink attribute, padded to four bytes."""
    length = 4 + len(data)
    return _ATTRIBUTE.pack(length, kind) + data + bytes(-length % 4)


def number(kind: int, value: int) -> bytes:
    """An attribute that is a 32-bit number in host order."""
    return attribute(kind, struct.pack("=I", value))


def text(kind: int, value: str) -> bytes:
    return attribute(kind, value.encode() + b"\0")


def attributes(data: bytes) -> Iterator[tuple[int, bytes]]:
    """(kind, value) of each attribute in a message body."""
    offset = 0
    while offset + 4 <= len(data):
        length, kind = _ATTRIBUTE.unpack_from(data, offset)
        if length < 4:
            return
        yield kind & NLA_TYPE_MASK, data[offset + 4 : offset + length]
        offset += (length + 3) & ~3


class RouteSocket:
    """A socket to the network namespace its thread is in when it is made; it stays there whoever uses it.

    One user at a time.
    """

    _family = socket.NETLINK_ROUTE

    def __init__(self) -> None:
        self._sequence = 0
        self._notified = 0
        self._socket = socket.socket(socket.AF_NETLINK, socket.SOCK_RAW | socket.SOCK_CLOEXEC, self._family)
        try:
            self._socket.bind((0, 0))
            self._port: int = self._socket.getsockname()[0]
            self._socket.setsockopt(SOL_NETLINK, NETLINK_CAP_ACK, 1)
            self._socket.setsockopt(SOL_NETLINK, NETLINK_EXT_ACK, 1)
            # The kernel's own time-out: with Python's there would be a poll() before each call.
            for option in (socket.SO_RCVTIMEO, socket.SO_SNDTIMEO):
                self._socket.setsockopt(socket.SOL_SOCKET, option, _TIMEOUT)
        except OSError:
            self._socket.close()
            raise

    def close(self) -> None:
        self._socket.close()

    def __enter__(self) -> RouteSocket:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    @property
    def netns_cookie(self) -> int:
        """Of the network namespace it speaks to: see namespaces.cookie."""
        return cookie_of(self._socket)

    def request(self, *requests: Request) -> list[Reply]:
        """Send all in one write, await every answer. Raises NetlinkError for the first that failed; the kernel has
        tried the later ones too."""
        first = self._sequence + 1
        self._send(b"".join(self._encode(request) for request in requests))
        pending = set(range(first, self._sequence + 1))
        replies: list[Reply] = []
        failed: dict[int, tuple[int, str]] = {}
        while pending:
            for kind, sequence, body in self._receive():
                if sequence not in pending:
                    self._notified += sequence == 0  # else it answers a request that timed out
                    continue
                if kind in (NLMSG_ERROR, NLMSG_DONE):
                    pending.discard(sequence)
                    code = -struct.unpack_from("=i", body)[0] if len(body) >= 4 else 0
                    if code > 0:
                        failed[sequence] = code, _explanation(body)
                else:
                    replies.append(Reply(kind, body))
        if failed:
            sequence = min(failed)
            code, explanation = failed[sequence]
            because = f": {explanation}" if explanation else ""
            raise NetlinkError(code, f"{requests[sequence - first].what}: {os.strerror(code)}{because}")
        return replies

    def remove(self, request: Request) -> bool:
        """Send one that removes something; whether that was there."""
        try:
            self.request(request)
        except NetlinkError as error:
            if not is_gone(error):
                raise
            return False
        return True

    def join(self, group: int) -> None:
        """From now on be told of changes of a kind (RTNLGRP_…; see `await_notification`)."""
        self._socket.setsockopt(SOL_NETLINK, NETLINK_ADD_MEMBERSHIP, group)

    def await_notification(self) -> None:
        """Block until something has changed since the last call; TimeoutError after TIMEOUT_S."""
        while not self._notified:
            self._notified += sum(sequence == 0 for _, sequence, _ in self._receive())
        self._notified = 0

    def _encode(self, request: Request) -> bytes:
        self._sequence += 1
        # NLMSG_DONE acknowledges a dump; an ACK besides would be answered twice.
        flags = request.flags | NLM_F_REQUEST | (0 if request.flags & NLM_F_DUMP == NLM_F_DUMP else NLM_F_ACK)
        body = request.body + bytes(-len(request.body) % 4)
        return _HEADER.pack(_HEADER.size + len(body), request.kind, flags, self._sequence, 0) + body

    def _send(self, data: bytes) -> None:
        try:
            self._socket.send(data)
        except BlockingIOError:
            raise TimeoutError(f"the kernel has not taken a request within {TIMEOUT_S:.0f} s") from None

    def _receive(self) -> Iterator[tuple[int, int, bytes]]:
        """(kind, sequence, body) of each message that has come; sequence 0 for what answers nothing of ours."""
        try:
            data = self._socket.recv(_RECEIVE_BYTES)
        except BlockingIOError:
            raise TimeoutError(f"the kernel has not answered within {TIMEOUT_S:.0f} s") from None
        offset = 0
        while offset + _HEADER.size <= len(data):
            length, kind, flags, sequence, port = _HEADER.unpack_from(data, offset)
            body = data[offset + _HEADER.size : offset + length]
            # Only an error that says so carries an explanation behind its fixed part.
            if kind == NLMSG_ERROR and not flags & NLM_F_ACK_TLVS:
                body = body[: 4 + _HEADER.size]
            yield kind, sequence if port == self._port else 0, body
            offset += (length + 3) & ~3


def _explanation(body: bytes) -> str:
    tail = body[4 + _HEADER.size :]
    return next((v.rstrip(b"\0").decode(errors="replace") for k, v in attributes(tail) if k == NLMSGERR_ATTR_MSG), "")


def is_gone(error: OSError) -> bool:
    """The link, route or file that was to be removed is not there (any more)."""
    return error.errno in (errno.ENODEV, errno.ENOENT, errno.ENXIO, errno.ESRCH)

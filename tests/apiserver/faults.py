"""What can be wrong with an API server and the way to it, switched while it runs."""

from __future__ import annotations

import socket
import struct
import threading
from collections.abc import Callable, Iterable
from contextlib import suppress

import msgspec

from apiserver.resources import TABLE


class Rule(msgspec.Struct):
    """Which requests, and what becomes of them. Empty `verbs` or `resources`: all. What is zero does not happen."""

    verbs: frozenset[str]  # get list watch create update patch delete deletecollection; "" for what is no resource
    resources: frozenset[str]  # plurals
    times: int  # so many requests; negative: until it is removed
    status: int = 0
    retry_after_s: int = 0
    hang: bool = False  # taken and never answered
    delay_s: float = 0.0  # before the answer
    bytes_per_s: int = 0  # of the body
    reset_after: int = -1  # so many bytes of the body, then a TCP reset

    def takes(self, verb: str, resource: str) -> bool:
        return (not self.verbs or verb in self.verbs) and (not self.resources or resource in self.resources)


class Faults:
    """Every method may be called from any thread, at any time. Each that returns a Rule adds it; the first that takes
    a request is used. The server looks at them at each request, and at `stalled` before each write of a watch."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._rules: list[Rule] = []
        self.stalled: frozenset[str] = frozenset()  # plurals whose watches send nothing
        self.changed: Callable[[], None] = lambda: None  # called after `stalled` shrinks
        self.gone_as_status = False  # a watch that starts too early is refused with HTTP 410, not with an ERROR event

    def refuse(  # e.g. 429 with Retry-After, 500, 503
        self,
        status: int,
        *,
        retry_after_s: int = 0,
        verbs: Iterable[str] = (),
        resources: Iterable[str] = (),
        times: int = -1,
    ) -> Rule:
        return self._add(
            Rule(frozenset(verbs), frozenset(resources), times, status=status, retry_after_s=retry_after_s)
        )

    def hang(self, *, verbs: Iterable[str] = (), resources: Iterable[str] = (), times: int = -1) -> Rule:
        """Half-open: requests are taken and never answered, until the client or the server closes."""
        return self._add(Rule(frozenset(verbs), frozenset(resources), times, hang=True))

    def slow(
        self,
        *,
        delay_s: float = 0.0,
        bytes_per_s: int = 0,
        verbs: Iterable[str] = (),
        resources: Iterable[str] = (),
        times: int = -1,
    ) -> Rule:
        return self._add(Rule(frozenset(verbs), frozenset(resources), times, delay_s=delay_s, bytes_per_s=bytes_per_s))

    def reset(
        self, after: int = 0, *, verbs: Iterable[str] = (), resources: Iterable[str] = (), times: int = -1
    ) -> Rule:
        """A TCP reset after so many bytes of the body; of a watch: before its next write beyond them."""
        return self._add(Rule(frozenset(verbs), frozenset(resources), times, reset_after=after))

    def stall(self, *resources: str) -> None:
        """Their watches (none named: all) stay open and send nothing until `flow`."""
        self.stalled = self.stalled | frozenset(resources or (resource.plural for resource in TABLE))

    def flow(self, *resources: str) -> None:
        """What was held back by `stall` is sent. The order in which this is called for resources is the order in which
        a client learns of changes, whatever order they were made in."""
        self.stalled = self.stalled - frozenset(resources) if resources else frozenset()
        self.changed()

    def remove(self, rule: Rule) -> None:
        with self._lock, suppress(ValueError):
            self._rules.remove(rule)

    def clear(self) -> None:
        with self._lock:
            self._rules.clear()
        self.gone_as_status = False
        self.flow()

    def for_request(self, verb: str, resource: str) -> Rule | None:
        with self._lock:
            for rule in self._rules:
                if rule.takes(verb, resource) and rule.times != 0:
                    rule.times -= 1 if rule.times > 0 else 0
                    return rule
        return None

    def _add(self, rule: Rule) -> Rule:
        with self._lock:
            self._rules.append(rule)
        return rule


def send_reset(sock: socket.socket) -> None:
    """Closing it from now on sends a TCP reset."""
    with suppress(OSError):
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))

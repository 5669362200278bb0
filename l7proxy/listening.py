"""What Envoy is asked to be, in words: the input of `l7proxy.compile`."""

from __future__ import annotations

from collections.abc import Iterable

import msgspec

from l7proxy.logname import LogName
from policies.l7 import L7, Demands, TlsContext
from policies.model import Direction


class Listening(msgspec.Struct, frozen=True, gc=False, cache_hash=True):
    """One listener. `number`: of `direction` and `demands`, by content. `port`: on 127.0.0.1 and ::1."""

    number: int
    port: int
    direction: Direction
    demands: Demands

    @property
    def name(self) -> str:
        return listener_name(self.number)

    @property
    def log_name(self) -> str:
        return str(LogName(self.number, self.direction.value))


def listener_name(number: int) -> str:
    """Of the Listener and its RouteConfiguration."""
    return f"{number:016x}"


class Override(msgspec.Struct, frozen=True, gc=False, cache_hash=True):
    """Flows of a listener that are judged by other demands than its own; None: whatever they ask is allowed.

    Addresses in 4 or 16 bytes (IPv4-mapped ones stand for IPv4), None: any; `port`: the destination's, None: any.
    The first of a listener's overrides that fits decides.
    """

    demands: Demands | None
    source: bytes | None = None
    destination: bytes | None = None
    port: int | None = None


def judges_again(demands: Demands) -> bool:
    """Whether overrides reach the flows of such a listener that live: requests are judged one by one, a connection that
    is passed on only once. Flows that are not judged again have to be ended."""
    return all(one.http is not None for one in demands if one.dns is None)


def envoy_serves(demands: Demands) -> bool:
    """DNS is not Envoy's: what asks for nothing else has no listener here."""
    return any(one.dns is None for one in demands)


def contexts(demands: Iterable[Iterable[L7]]) -> frozenset[TlsContext]:
    """Which Secrets these name."""
    named = (context for some in demands for one in some for context in (one.terminating, one.originating))
    return frozenset(context for context in named if context)


class TlsMaterial(msgspec.Struct, frozen=True, gc=False, cache_hash=True):
    """What a Secret holds for a TlsContext, in PEM; b"": it does not. Never shown."""

    certificate: bytes = b""
    private_key: bytes = b""
    trusted_ca: bytes = b""

    def __repr__(self) -> str:
        return f"TlsMaterial({', '.join(name for name in self.__struct_fields__ if getattr(self, name)) or 'nothing'})"


class ProxySettings(msgspec.Struct, frozen=True, gc=False, cache_hash=True):
    """What the datapath and Envoy must agree on: SO_MARK of sockets (see MARK_* of the datapath's ABI)."""

    mark_from_egress: int
    mark_from_ingress: int
    mark_answers: int
    ipv6: bool = True
    reuse_port: bool = True  # a listening socket for each worker; bpf_sk_assign takes these from Linux 6.6 on
    log_flush_ms: int = 200
    connect_timeout_s: int = 10
    max_header_kb: int = 60
    transparent: bool = True
    """False: an ordinary proxy that connects on with its own address, for where there is no datapath."""

    def mark_from(self, direction: Direction) -> int:
        return self.mark_from_egress if direction is Direction.EGRESS else self.mark_from_ingress

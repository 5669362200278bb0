"""What `observe` reports: the schema of its JSON. Field names are stable."""

from __future__ import annotations

from enum import StrEnum

import msgspec

from l7proxy.records import L7


class Verdict(StrEnum):
    FORWARDED = "FORWARDED"
    DROPPED = "DROPPED"
    REFUSED = "REFUSED"  # dropped, and the sender was told at once (RST or ICMP)
    REDIRECTED = "REDIRECTED"  # to a proxy, which decides: see its records, of type l7


class FlowType(StrEnum):
    NEW = "new"  # first packet of a flow
    END = "end"  # closed, or silent for so long that it is forgotten; carries the totals
    DROP = "drop"  # one packet
    L7 = "l7"  # one request, DNS name or TLS connection that a proxy judged; `time` is that of its answer


class Endpoint(msgspec.Struct, frozen=True):
    """One side of a flow. `namespace` and `pod` are null for what is no pod of this cluster."""

    identity: int
    namespace: str | None
    pod: str | None
    ip: str
    port: int | None  # null where the protocol has none
    labels: tuple[str, ...]

    def __str__(self) -> str:
        return f"{self.namespace}/{self.pod}" if self.pod else self.ip


class PolicyRule(msgspec.Struct, frozen=True):
    """What decided: a rule someone wrote, or (kind Built-in) one that is always there, such as default-deny."""

    kind: str
    namespace: str
    name: str
    rule: str  # "ingress[0]"; "" where there is but one

    def __str__(self) -> str:
        where = f"{self.namespace}/{self.name}" if self.namespace else self.name
        return f"{where} {self.rule}".rstrip()


class ServicePort(msgspec.Struct, frozen=True):
    """The frontend a client spoke to; `name` is null where its service is not known any more.

    Of a hostPort, namespace and name are the pod's. `port_name` is "" where the port has none.
    """

    namespace: str | None
    name: str | None
    ip: str
    port: int | None
    port_name: str = ""

    def __str__(self) -> str:
        return f"{self.namespace}/{self.name}" if self.name else self.ip


class Icmp(msgspec.Struct, frozen=True):
    type: int
    code: int


class Flow(msgspec.Struct, frozen=True, kw_only=True):
    """One judgement of one packet, or of one request. Source and destination are those after service translation."""

    time: str  # RFC 3339, UTC, nanoseconds
    seq: int  # of the event; both sides of one event have the same
    type: FlowType
    verdict: Verdict
    drop_reason: str | None  # enum drop_reason of bpf/abi.h without DROP_
    direction: str  # whose rules: "egress" the source's, "ingress" the destination's
    source: Endpoint
    destination: Endpoint
    protocol: str
    l7: L7 | None = None  # by `type`: http, dns or tls
    policy: PolicyRule | None
    service: ServicePort | None
    node: str
    packets: int | None = None  # END: of both directions
    bytes: int | None = None
    tcp_flags: tuple[str, ...] | None = None
    icmp: Icmp | None = None
    encrypted: bool  # between nodes, by WireGuard; of a drop: it came so
    hook: str  # the program that saw it: from-pod, to-pod, from-network, to-network, xdp, socket, proxy
    ifindex: int  # where that is attached: host side of a veth, device of the node; 0 for sockets and proxies


class Lost(msgspec.Struct, frozen=True, tag_field="type", tag="lost"):
    """Stands in the stream where events are missing: `where` "kernel" (the ring was full), "proxy" (there were more
    requests than are recorded) or "observer" (too slow).

    `summary` counts what an observer missed, by type and drop reason; of other losses nothing more is known.
    """

    time: str
    where: str
    count: int
    summary: dict[str, int] = {}

"""What becomes of a packet to a service: `gatehouse services trace`, and the oracle of the packet tests. Pure.

It decides from frontends, as the datapath does from its maps (bpf/backend.h, from_pod, from_network), and shares no
code with either.
"""

from __future__ import annotations

from collections.abc import Iterator
from enum import StrEnum
from typing import Protocol

import msgspec

from agent.services import maglev
from agent.services.model import Backend, Frontend, Kind, Target
from agent.services.node import Node
from agent.services.places import LOOPBACKS
from policies.address import format_address, format_socket
from policies.model import ObjectRef
from policies.model import Protocol as IpProtocol


class Place(StrEnum):
    """What an address is, seen from this node."""

    LOCAL_POD = "a pod on this node"
    REMOTE_POD = "a pod on another node"
    NODE = "this node"
    OUTSIDE = "outside the cluster"  # other nodes, too


SCTP = IpProtocol.BY_NAME["SCTP"]
INSIDE = (Place.LOCAL_POD, Place.REMOTE_POD, Place.NODE)
HERE = (Place.LOCAL_POD, Place.NODE)


class Outcome(StrEnum):
    NO_SERVICE = "no service"  # it goes on as it is
    REFUSED = "refused"
    DROPPED = "dropped"
    DELIVERED = "delivered"


class Source(StrEnum):
    """Which source address the backend sees."""

    CLIENT = "client"  # the client's own
    NODE = "node"  # one of this node's
    HAIRPIN = "hairpin"  # the pod is its own backend: a link-local one


NO_LOCAL_BACKEND, SOURCE_RANGE, SCTP_PORT = "NO_LOCAL_BACKEND", "SOURCE_RANGE", "SCTP_PORT"
"""Drop reasons: names of bpf/abi.h's without DROP_."""


class Delivery(msgspec.Struct, frozen=True, order=True, gc=False):
    """`direct`: the backend is on another node and answers the client itself (DSR)."""

    backend: Backend
    source: Source
    local: bool
    direct: bool = False


class Trace(msgspec.Struct, frozen=True):
    """`deliveries`: the backends a new flow may get; one, if it is certain which. `steps`: the reasons, in words.

    `left_out`: endpoints of the service that these clients do not get, and why.
    """

    outcome: Outcome
    reason: str = ""  # of DROPPED
    deliveries: tuple[Delivery, ...] = ()
    service: ObjectRef | None = None
    frontend: Frontend | None = None
    steps: tuple[str, ...] = ()
    left_out: dict[Backend, str] = {}


class View(Protocol):
    """What is asked of the world."""

    @property
    def node(self) -> Node: ...

    def frontend(self, address: bytes, port: int, protocol: int) -> tuple[ObjectRef, Frontend] | None:
        """The one in force, and whose it is."""
        ...

    def place(self, address: bytes) -> Place: ...

    def left_out(self, ref: ObjectRef, frontend: Frontend, target: Target) -> dict[Backend, str]:
        """See agent.services.endpoints.left_out."""
        ...


class Packet(msgspec.Struct, frozen=True):
    """The first of a flow. `source_port` 0: not known."""

    source: bytes
    destination: bytes
    port: int
    protocol: int
    source_port: int = 0


def trace(view: View, packet: Packet) -> Trace:
    """Where a new flow goes."""
    found = view.frontend(packet.destination, packet.port, packet.protocol)
    if found is None:
        return Trace(Outcome.NO_SERVICE, steps=(f"No service has {_socket(packet)} on this node.",))
    ref, frontend = found
    place = view.place(packet.source)
    inside = place in INSIDE
    steps = [
        f"{_socket(packet)} is a frontend of {ref}{_port(frontend)}: {frontend.kind}.",
        f"The client {format_address(packet.source)} is {place}: it counts as {'inside' if inside else 'outside'}.",
    ]
    if not _is_served(frontend, place):
        steps.append(f"{frontend.kind} frontends serve no such clients: the packet goes on as it is.")
        return Trace(Outcome.NO_SERVICE, "", (), ref, frontend, tuple(steps))
    if frontend.ranges:
        allowed = _may(frontend, packet.source, place)
        steps.append(
            f"loadBalancerSourceRanges {', '.join(map(str, frontend.ranges))}: {'in' if allowed else 'not in'}."
        )
        if not allowed:
            return Trace(Outcome.DROPPED, SOURCE_RANGE, (), ref, frontend, tuple(steps))
    target = frontend.inside if inside else frontend.outside
    steps.append(target.why)
    left_out = view.left_out(ref, frontend, target)
    if not target.backends:
        outcome, reason = (Outcome.DROPPED, NO_LOCAL_BACKEND) if target.drops else (Outcome.REFUSED, "")
        return Trace(outcome, reason, (), ref, frontend, tuple(steps), left_out)
    if packet.protocol == SCTP and any(port != packet.port for _, port in target.backends):
        steps.append("SCTP's checksum does not let the port be changed: the target port must be the port.")
        return Trace(Outcome.DROPPED, SCTP_PORT, (), ref, frontend, tuple(steps), left_out)
    steps += _choice(view, packet, place, frontend, target)
    backends = _candidates(view, packet, place, frontend, target)
    deliveries = tuple(_delivery(view, packet, place, frontend, backend) for backend in backends)
    steps += dict.fromkeys(_on_the_way(delivery) for delivery in deliveries)
    return Trace(Outcome.DELIVERED, "", deliveries, ref, frontend, tuple(steps), left_out)


def _is_served(frontend: Frontend, place: Place) -> bool:
    """A packet that comes by the network is not looked up among cluster addresses, nor one of a loopback address's."""
    if frontend.kind is Kind.LOOPBACK:
        return place is Place.NODE
    return frontend.kind is not Kind.CLUSTER_IP or place in HERE


def _may(frontend: Frontend, source: bytes, place: Place) -> bool:
    """The node may, whatever address it will take, if one of its own is in the ranges."""
    return frontend.node_in_ranges if place is Place.NODE else any(block.contains(source) for block in frontend.ranges)


def _choice(view: View, packet: Packet, place: Place, f: Frontend, target: Target) -> Iterator[str]:
    if f.affinity_timeout_s:
        yield f"sessionAffinity ClientIP: a client keeps its backend until it was idle for {f.affinity_timeout_s} s."
    if len(target.backends) == 1:
        yield "There is no other."
    elif not f.maglev:
        yield f"Any of {len(target.backends)}, at random."
    elif _hash(view, packet, place, f) is not None:
        yield "By Maglev: every node chooses this one for a new flow."
    elif place in HERE:
        yield "Maglev is for what comes from elsewhere; sockets here choose at random."
    else:
        yield "By Maglev, which depends on the source port: say which."


def _candidates(view: View, packet: Packet, place: Place, f: Frontend, target: Target) -> tuple[Backend, ...]:
    number = _hash(view, packet, place, f) if f.maglev else None
    if number is None:
        return target.backends
    settings = view.node.services
    table = maglev.table(target.backends, settings.maglev_size, settings.seed)
    return (target.backends[maglev.lookup(table, number)],)


def _hash(view: View, packet: Packet, place: Place, f: Frontend) -> int | None:
    """What the Maglev table is asked with, if that is certain: a socket here has no port yet when it asks."""
    seed = view.node.services.seed
    if f.affinity_timeout_s and place is not Place.NODE:
        return maglev.client_hash(packet.source, seed)
    if not packet.source_port or place in HERE:
        return None
    return maglev.flow_hash(packet.source, packet.source_port, packet.destination, packet.port, packet.protocol, seed)


def _delivery(view: View, packet: Packet, place: Place, frontend: Frontend, backend: Backend) -> Delivery:
    local = view.place(backend[0]) in HERE
    if place is Place.LOCAL_POD and backend[0] == packet.source:
        return Delivery(backend, Source.HAIRPIN, local)
    if place is Place.NODE:
        return Delivery(backend, Source.NODE if packet.source in LOOPBACKS else Source.CLIENT, local)
    if local or place is Place.LOCAL_POD:
        return Delivery(backend, Source.CLIENT, local)
    direct = frontend.dsr and backend[0] != packet.source  # it could not answer itself
    return Delivery(backend, Source.CLIENT if direct else Source.NODE, False, direct)


def _on_the_way(delivery: Delivery) -> str:
    if delivery.source is Source.HAIRPIN:
        return "The pod is its own backend: it sees a link-local address as its peer."
    if delivery.direct:
        return "On another node, which answers the client itself (DSR): it sees the client's address."
    seen = "this node's address" if delivery.source is Source.NODE else "the client's address"
    return f"{'On this node' if delivery.local else 'On another node'}: it sees {seen}."


def _socket(packet: Packet) -> str:
    return (
        f"{format_socket(packet.destination, packet.port)}/{IpProtocol.BY_NUMBER.get(packet.protocol, packet.protocol)}"
    )


def _port(frontend: Frontend) -> str:
    return f", port {frontend.port_name}" if frontend.port_name else ""

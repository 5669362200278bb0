"""`gatehouse services trace`: a packet as people name it, through services.trace and what the kernel remembers."""

from __future__ import annotations

import time
from collections.abc import Mapping
from typing import Annotated

import msgspec
from msgspec.structs import replace

from agent.api.protocol import ApiError
from agent.datapath import abi
from agent.datapath.maps import Map
from agent.objects import ServicePort
from agent.services.endpoints import left_out
from agent.services.model import Backend, Frontend, Kind, Target
from agent.services.places import LOOPBACKS
from agent.services.trace import HERE, Delivery, Outcome, Packet, Place, Source, Trace, trace
from agent.status import DeliveryView, LeftOutView, TraceView
from agent.world.config import NodeConfig
from agent.world.world import World
from policies.address import format_address, format_socket, is_v4, parse_address
from policies.model import ObjectRef, Protocol

ABI = abi.load()
TUPLE, SERVICE_KEY, SERVICE = (ABI.records[name] for name in ("tuple", "service_key", "service_value"))
AFFINITY_KEY, AFFINITY = ABI.records["affinity_key"], ABI.records["affinity_value"]
MEMBER_KEY = ABI.records["member_key"]
FLOWS = {"conntrack": "conntrack", "conntrack_host": "conntrack", "nat": "nat"}
"""Map of flows → record of its values."""

OUTSIDE, NODE = "outside", "node"
ANY = {True: parse_address("0.0.0.0"), False: parse_address("::")}  # noqa: S104  # nothing is bound: somebody outside
REACHED_INSIDE = (Kind.CLUSTER_IP, Kind.LOAD_BALANCER, Kind.EXTERNAL_IP, Kind.NODE_PORT, Kind.HOST_PORT, Kind.LOOPBACK)
REACHED_OUTSIDE = (*REACHED_INSIDE[1:], Kind.CLUSTER_IP)
"""Which of a service's frontends is meant where only its name is given: the first of these."""


class Asked(msgspec.Struct, forbid_unknown_fields=True):
    """`source`: NAMESPACE/POD, node (or this node's name), outside, or an address. `destination`: NAMESPACE/SERVICE or
    an address. `port`: a number or, of a service, the name of a port. `source_port` 0: any."""

    source: str
    destination: str
    port: str
    protocol: str = "TCP"
    source_port: Annotated[int, msgspec.Meta(ge=0, le=65535)] = 0


class Tracer:
    def __init__(self, world: World, maps: Mapping[str, Map]) -> None:
        self._world = world
        self._maps = maps

    def answer(self, asked: Asked) -> TraceView:
        """Raises ApiError."""
        packet = self._packet(asked)
        found = trace(_View(self._world), packet)
        if asked.source == OUTSIDE and found.frontend is not None and _depends_on_client(found.frontend, asked):
            raise ApiError(
                "what becomes of the packet depends on who the client is: give its address in place of `outside`"
            )
        found = self._remembered(packet, found)
        return TraceView(
            source=format_address(packet.source),
            destination=format_socket(packet.destination, packet.port),
            protocol=asked.protocol.upper(),
            outcome=str(found.outcome),
            reason=found.reason.lower(),
            service=f"{found.service.namespace}/{found.service.name}" if found.service else "",
            kind=str(found.frontend.kind) if found.frontend else "",
            deliveries=tuple(map(self._delivery, found.deliveries)),
            steps=found.steps,
            left_out=tuple(
                LeftOutView(address=format_address(address), port=port, why=why)
                for (address, port), why in found.left_out.items()
            ),
        )

    # ---- names

    def _packet(self, asked: Asked) -> Packet:
        protocol = Protocol.BY_NAME.get(asked.protocol.upper())
        if protocol is None:
            raise ApiError(f"{asked.protocol!r} is none of {', '.join(Protocol.BY_NAME)}")
        named = "/" in asked.destination
        v4 = self._family(asked) if named else is_v4(_address(asked.destination))
        source = self._source(asked.source, v4)
        if named:
            inside = _View(self._world).place(source) is not Place.OUTSIDE
            destination, port = self._of_service(asked, protocol, v4, inside)
        else:
            destination, port = _address(asked.destination), _number(asked.port)
        return Packet(source, destination, port, protocol, asked.source_port)

    def _family(self, asked: Asked) -> bool:
        """Whether IPv4: by the source if that is an address, else wherever both ends have it."""
        if asked.source not in (OUTSIDE, NODE, self._world.config.name) and "/" not in asked.source:
            return is_v4(_address(asked.source))
        families = {is_v4(f.address) for f in self._frontends(asked)}
        if "/" in asked.source:
            families &= {is_v4(address) for address in self._pod_addresses(asked.source)}
        return True in families or not families

    def _source(self, text: str, v4: bool) -> bytes:
        if text == OUTSIDE:
            return ANY[v4]
        if text in (NODE, self._world.config.name):
            found: tuple[bytes, ...] = self._world.config.addresses
        elif "/" in text:
            found = self._pod_addresses(text)
        else:
            found = (_address(text),)
        own = [address for address in found if is_v4(address) is v4]
        if not own:
            raise ApiError(f"{text} has no {'IPv4' if v4 else 'IPv6'} address: name a destination of the other family")
        return own[0]

    def _pod_addresses(self, text: str) -> tuple[bytes, ...]:
        namespace, _, name = text.partition("/")
        ref = ObjectRef("Pod", namespace, name)
        state, remote = self._world.pods.get(ref), self._world.remotes.get(ref)
        if state is None and remote is not None:
            return remote.addresses
        if state is None:
            raise ApiError(f"there is no pod {text}: see `gatehouse endpoints`")
        return self._world.config.addresses if state.pod.host_network else state.pod.addresses

    def _frontends(self, asked: Asked) -> tuple[Frontend, ...]:
        namespace, _, name = asked.destination.partition("/")
        ref = ObjectRef("Service", namespace, name)
        if self._world.services.get(ref) is None:
            raise ApiError(f"there is no service {asked.destination}: see `gatehouse services`")
        return self._world.frontends(ref)

    def _of_service(self, asked: Asked, protocol: int, v4: bool, inside: bool) -> tuple[bytes, int]:
        frontends = [f for f in self._frontends(asked) if f.protocol == protocol and is_v4(f.address) is v4]
        meant = [f for f in frontends if asked.port in (str(f.port), f.port_name)]
        order = REACHED_INSIDE if inside else REACHED_OUTSIDE
        if meant:
            chosen = min(meant, key=lambda f: order.index(f.kind))
            return chosen.address, chosen.port
        have = sorted({f"{f.port}" + (f" ({f.port_name})" if f.port_name else "") for f in frontends})
        what = f"{asked.protocol.upper()} port {asked.port} at an {'IPv4' if v4 else 'IPv6'} address"
        raise ApiError(f"service {asked.destination} has no {what}: it has {', '.join(have) or 'none'}")

    # ---- what the kernel remembers

    def _remembered(self, packet: Packet, found: Trace) -> Trace:
        """With the backend that this client, or this very flow, has already."""
        if found.frontend is None:
            return found
        if packet.source_port and (flow := self._flow(packet)) is not None:
            step = f"The flow is known and goes on to {format_socket(*flow.backend)}, whatever new ones get."
            return replace(found, outcome=Outcome.DELIVERED, reason="", deliveries=(flow,), steps=(*found.steps, step))
        if found.outcome is not Outcome.DELIVERED or not found.frontend.affinity_timeout_s:
            return found
        kept = self._affinity(packet, found)
        if kept is None:
            return replace(found, steps=(*found.steps, "This client has no backend yet."))
        step = f"This client is kept at {format_socket(*kept)}."
        deliveries = tuple(d for d in found.deliveries if d.backend == kept)
        return replace(found, deliveries=deliveries, steps=(*found.steps, step))

    def _affinity(self, packet: Packet, found: Trace) -> Backend | None:
        key = SERVICE_KEY.pack_values(packet.destination, abi.be16(packet.port), packet.protocol)
        value = self._maps["services"].lookup(key)
        frontend = SERVICE.unpack(value) if value is not None else None
        if frontend is None or not frontend.affinity:
            return None
        held = self._maps["affinity"].lookup(AFFINITY_KEY.pack_values(frontend.affinity, packet.source))
        if held is None:
            return None
        known = AFFINITY.unpack(held)
        backend = (known.address, abi.be16(known.port_be))
        expired = known.used_ns + frontend.affinity_timeout_s * 1_000_000_000 <= time.monotonic_ns()
        return None if expired or all(d.backend != backend for d in found.deliveries) else backend

    def _flow(self, packet: Packet) -> Delivery | None:
        ports = abi.be16(packet.source_port), abi.be16(packet.port)
        key = TUPLE.pack_values(packet.source, packet.destination, *ports, packet.protocol, 0)
        for name, record in FLOWS.items():
            value = self._maps[name].lookup(key)
            entry = ABI.records[record].unpack(value) if value is not None else None
            if entry is None or entry.expires_ns <= time.monotonic_ns():
                continue
            backend = (entry.after_destination, abi.be16(entry.after_destination_port_be))
            source = Source.CLIENT if entry.after_source == packet.source else Source.NODE
            if backend[0] == packet.source:
                source = Source.HAIRPIN
            direct = name == "nat" and bool(entry.flags & ABI.constants.NAT_DSR)
            return Delivery(backend, source, _View(self._world).place(backend[0]) in HERE, direct)
        return None

    def _delivery(self, delivery: Delivery) -> DeliveryView:
        address, port = delivery.backend
        owner = self._world.addresses.owner(address)
        pod = self._world.pods.get(owner) if owner else None
        remote = self._world.addresses.remote(address)
        return DeliveryView(
            address=format_address(address),
            port=port,
            pod=f"{owner.namespace}/{owner.name}" if owner and (pod or remote) else "",
            node=remote.node if remote else (pod.pod.node or self._world.config.name) if pod else "",
            seen_from=str(delivery.source),
            local=delivery.local,
            direct=delivery.direct,
        )


class _View:
    """The world as a trace asks it: services.trace.View."""

    def __init__(self, world: World) -> None:
        self._world = world

    @property
    def node(self) -> NodeConfig:
        return self._world.config

    def frontend(self, address: bytes, port: int, protocol: int) -> tuple[ObjectRef, Frontend] | None:
        ref = self._world.frontend_owner(address, protocol, port)
        for found in self._world.frontends(ref) if ref else ():
            if (found.address, found.port, found.protocol) == (address, port, protocol):
                return (ref, found) if ref else None
        return None

    def place(self, address: bytes) -> Place:
        if address in self._world.config.addresses or address in LOOPBACKS:
            return Place.NODE
        if self._world.addresses.remote(address) is not None:
            return Place.REMOTE_POD
        owner = self._world.addresses.owner(address)
        if owner is None or (state := self._world.pods.get(owner)) is None or state.pod.host_network:
            return Place.OUTSIDE
        return Place.LOCAL_POD if self._world.is_local(owner) else Place.REMOTE_POD

    def left_out(self, ref: ObjectRef, frontend: Frontend, target: Target) -> dict[Backend, str]:
        service = self._world.services.get(ref)
        port = next((p for p in service.ports if _is_port(p, frontend)), None) if service else None
        if service is None or port is None:
            return {}
        return left_out(self._world.slices(service), port, is_v4(frontend.address), target, self._world.config)


def _is_port(port: ServicePort, frontend: Frontend) -> bool:
    return (port.name, port.protocol) == (frontend.port_name, frontend.protocol)


def _depends_on_client(frontend: Frontend, asked: Asked) -> bool:
    return bool(frontend.ranges or frontend.affinity_timeout_s or (frontend.maglev and asked.source_port))


def _address(text: str) -> bytes:
    try:
        return parse_address(text)
    except ValueError:
        raise ApiError(
            f"{text!r} is no NAMESPACE/NAME and no address (a source may also be `node` or `outside`)"
        ) from None


def _number(text: str) -> int:
    if not text.isdecimal() or not 1 <= int(text) <= 65535:
        raise ApiError(f"{text!r} is not a port between 1 and 65535 (names are for services)")
    return int(text)

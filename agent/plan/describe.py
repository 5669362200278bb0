"""A plan decoded from its entries, for people: plain data in a stable order."""

from __future__ import annotations

from typing import Any

from agent.datapath import abi
from agent.plan.blocks import POOLS, RANGES, ROWS, cells
from agent.plan.ids import CLASS_ANY, NUMBERS
from agent.plan.parts import DIRECTIONS, SERVICE_KEY
from agent.plan.plan import Plan
from agent.plan.pools import KINDS, SERVICE_VALUE, backends, prefixes
from agent.plan.state import ENDPOINT, INTERFACES, IPCACHE, IPCACHE_KEY, NO_ADDRESS, SERVICES, ipcache_class
from agent.services.model import Kind
from agent.world.world import World
from policies.address import Prefix, format_address, format_socket
from policies.describe import demands_text, peer_text
from policies.model import Cell, ObjectRef, Protocol, RemoteClass

REFUSED, DROPPED = "refused", "dropped"
ANY = "any"
"""How the remote is called that stands for every class without a row of its own."""

RESERVED = {
    number: name.removeprefix("IDENTITY_").lower().replace("_", "-")
    for name, number in NUMBERS.items()
    if name.startswith("IDENTITY_") and number < NUMBERS.IDENTITY_CLUSTER_MIN
}


def describe(plan: Plan, world: World) -> dict[str, Any]:
    """Plain data:

    endpoints: pod → identity, subject, addresses
    addresses: prefix → class
    policy: subject → direction → remote class (or "any") → cells, each "allow TCP 80 by RULE"; a missing class has the
        row of "any", a missing "any" is a deny
    services: frontend → service, kind, backends ("refused" or "dropped", where there is none), and what else is so:
        outside_backends (where clients outside get others), traffic_policy, affinity, source_ranges,
        node_in_source_ranges, algorithm, forwarding
    """
    reader = _Reader(plan, world)
    return {
        "endpoints": reader.endpoints(),
        "addresses": reader.addresses(),
        "policy": reader.policy(),
        "services": reader.services(),
    }


class _Reader:
    def __init__(self, plan: Plan, world: World) -> None:
        self._plan = plan
        self._world = world
        self._cidrs = {number: key for key, number in world.allocations.cidr_identities.snapshot().items()}
        self._pods = {number: key for key, number in world.allocations.endpoints.snapshot().items()}

    def endpoints(self) -> dict[str, Any]:
        out = {}
        for value in self._plan.state.tables[INTERFACES].values():
            fields = ENDPOINT.unpack(value)
            out[self._pods[fields.id]] = {
                "identity": fields.identity,
                "subject": self._subject(fields.subject),
                "addresses": [format_address(a) for a in (fields.ipv4, fields.ipv6) if a != NO_ADDRESS],
            }
        return dict(sorted(out.items()))

    def addresses(self) -> dict[str, str]:
        out = {}
        for key, value in self._plan.state.tables[IPCACHE].items():
            bits, network = IPCACHE_KEY.unpack_values(key)
            out[Prefix(network, bits)] = self._class(ipcache_class(value))
        return {str(prefix): out[prefix] for prefix in sorted(out)}

    def policy(self) -> dict[str, Any]:
        out: dict[str, Any] = {}
        state = self._plan.state
        for direction, number in sorted(DIRECTIONS.items()):
            for subject in state.uses.subjects:
                rows = state.policy.get((subject, number), {})
                blocks = {self._class(remote): state.blocks[ROWS][row] for remote, row in rows.items()}
                out.setdefault(self._subject(subject), {})[str(direction)] = {
                    remote: [_cell(cell) for cell in cells(blocks[remote], self._plan.names)]
                    for remote in sorted(blocks, key=lambda name: (name == ANY, name))
                }
        return dict(sorted(out.items()))

    def services(self) -> dict[str, dict[str, Any]]:
        out = {}
        for key, value in self._plan.state.tables[SERVICES].items():
            fields = SERVICE_KEY.unpack(key)
            port = abi.be16(fields.port_be)
            where = f"{format_socket(fields.address, port)}/{Protocol.BY_NUMBER[fields.protocol]}"
            owner = self._world.frontend_owner(fields.address, fields.protocol, port)
            out[where] = self._frontend(owner, SERVICE_VALUE.unpack(value))
        return dict(sorted(out.items()))

    def _frontend(self, owner: ObjectRef | None, value: Any) -> dict[str, Any]:
        flags = value.flags
        kind = next(kind for kind, flag in KINDS.items() if flags & flag)
        service = self._world.services.get(owner) if owner else None
        local = flags & NUMBERS.SERVICE_LOCAL_OUTSIDE
        if service is not None and kind is Kind.CLUSTER_IP:
            local = service.exposure.internal_local
        inside = self._target(value.pool_inside, value.count_inside, flags & NUMBERS.SERVICE_DROP_INSIDE)
        outside = self._target(value.pool_outside, value.count_outside, flags & NUMBERS.SERVICE_DROP_OUTSIDE)
        out: dict[str, Any] = {"service": str(owner), "kind": str(kind), "backends": inside}
        if outside != inside:
            out["outside_backends"] = outside
        if local:
            out["traffic_policy"] = "Local"
        if value.affinity:
            out["affinity"] = f"ClientIP {value.affinity_timeout_s}s"
        if value.ranges:
            out["source_ranges"] = list(map(str, prefixes(self._plan.state.blocks[RANGES][value.ranges])))
            out["node_in_source_ranges"] = bool(flags & NUMBERS.SERVICE_NODE_IN_RANGES)
        if flags & NUMBERS.SERVICE_MAGLEV:
            out["algorithm"] = "maglev"
        if flags & NUMBERS.SERVICE_DSR:
            out["forwarding"] = "dsr"
        return out

    def _target(self, pool: int, count: int, drops: int) -> list[str] | str:
        if not count:
            return DROPPED if drops else REFUSED
        return [format_socket(address, port) for address, port in backends(self._plan.state.blocks[POOLS][pool])]

    def _subject(self, number: int) -> str:
        subject = self._plan.names.subjects[number]
        return self._class_text(RemoteClass(subject.identity, frozenset(), subject.ports))

    def _class(self, number: int) -> str:
        return ANY if number == CLASS_ANY else self._class_text(self._plan.names.classes[number])

    def _class_text(self, remote: RemoteClass) -> str:
        text = self._identity(remote.identity)
        if remote.prefixes:
            text += " in " + ", ".join(map(str, sorted(remote.prefixes)))
        if remote.ports:
            named = (f"{p.name}={Protocol.BY_NUMBER[p.protocol]}/{p.number}" for p in sorted(remote.ports))
            text += " with " + ", ".join(named)
        if remote.marks:
            text += " among " + ", ".join(sorted(map(peer_text, remote.marks)))
        return text

    def _identity(self, number: int) -> str:
        if (reserved := RESERVED.get(number)) is not None:
            return reserved
        identity = self._world.identities.get(number)
        return " ".join(identity.labels) if identity else f"cidr {self._cidrs[number]}"


def _cell(cell: Cell) -> str:
    asks = f", which asks for {demands_text(cell.demands)}" if cell.demands else ""
    return f"{cell.verdict} {_ports(cell)} by {cell.rule}{asks}"


def _ports(cell: Cell) -> str:
    if cell.protocol is None:
        return "any protocol"
    name = Protocol.BY_NUMBER.get(cell.protocol, str(cell.protocol))
    if (cell.first, cell.last) == (0, 65535):
        return name
    return f"{name} {cell.first}" if cell.first == cell.last else f"{name} {cell.first}-{cell.last}"

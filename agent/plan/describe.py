"""A plan decoded from its entries, for people: plain data in a stable order."""

from __future__ import annotations

from typing import Any

from agent.datapath import abi
from agent.plan.blocks import POOLS, ROWS, backends, cells
from agent.plan.ids import CLASS_ANY, NUMBERS
from agent.plan.parts import DIRECTIONS, SERVICE_KEY, SERVICE_VALUE
from agent.plan.plan import Plan
from agent.plan.state import ENDPOINT, INTERFACES, IPCACHE, IPCACHE_KEY, NO_ADDRESS, SERVICES, ipcache_class
from agent.world.world import World
from policies.address import Prefix, format_address, format_socket
from policies.model import Cell, Protocol, RemoteClass, Verdict

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
    services: frontend → backends; none: the client is refused
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

    def services(self) -> dict[str, list[str]]:
        out = {}
        state = self._plan.state
        for key, value in state.tables[SERVICES].items():
            fields, target = SERVICE_KEY.unpack(key), SERVICE_VALUE.unpack(value)
            members = backends(state.blocks[POOLS][target.pool_inside]) if target.count_inside else []
            protocol = Protocol.BY_NUMBER[fields.protocol]
            where = format_socket(fields.address, abi.be16(fields.port_be))
            out[f"{where}/{protocol}"] = [format_socket(address, port) for address, port in members]
        return dict(sorted(out.items()))

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
        return text

    def _identity(self, number: int) -> str:
        if (reserved := RESERVED.get(number)) is not None:
            return reserved
        identity = self._world.identities.get(number)
        return " ".join(identity.labels) if identity else f"cidr {self._cidrs[number]}"


def _cell(cell: Cell) -> str:
    verdict = "allow" if cell.verdict is Verdict.ALLOW else "deny"
    return f"{verdict} {_ports(cell)} by {cell.rule}"


def _ports(cell: Cell) -> str:
    if cell.protocol is None:
        return "any protocol"
    name = Protocol.BY_NUMBER.get(cell.protocol, str(cell.protocol))
    if (cell.first, cell.last) == (0, 65535):
        return name
    return f"{name} {cell.first}" if cell.first == cell.last else f"{name} {cell.first}-{cell.last}"

"""Whom a proxy's record is about, and which rule sent it there: asked of the maps, for the flow has been judged before.

Its conntrack entry names both identities, the rule and the service. Where there is none any more, identities come from
the addresses, and no rule is named.
"""

from __future__ import annotations

from typing import Any

import msgspec

from agent.datapath.abi import Abi, be16
from agent.datapath.maps import Maps
from agent.flows.record import EGRESS, L7_EVENT, NO_ADDRESS, PROXY_HOOK
from l7proxy.records import L7Record
from policies.address import parse_address
from policies.model import Protocol

Ends = tuple[bytes, bytes, int, int, int, str, int]
"""Source, destination, their ports as in maps, protocol: of a flow after service translation, as the proxy sees it.
And whose rules it was asked for, "" where that is not known; and by which listener."""

LEGS = 0, 1
"""Of struct tuple."""


class Judged(msgspec.Struct, frozen=True):
    """Of one flow. A rule is RULE_NONE where that side did not send it to the proxy."""

    source_identity: int
    destination_identity: int
    rule_egress: int
    rule_ingress: int
    is_egress: bool  # the source's rules were asked
    service: bytes = NO_ADDRESS
    service_port_be: int = 0
    encrypted: bool = False


class Judgements:
    def __init__(self, abi: Abi, maps: Maps) -> None:
        self._constants = abi.constants
        self._tuple, self._entry = abi.records["tuple"], abi.records["conntrack"]
        self._endpoint = abi.records["endpoint"]
        self._prefix, self._known = abi.records["ipcache_key"], abi.records["ipcache_value"]
        self._event = abi.records["event"]
        self._conntrack, self._endpoints, self._ipcache = maps["conntrack"], maps["endpoints"], maps["ipcache"]

    def event(self, record: L7Record, time_ns: int, known: dict[Ends, Judged]) -> bytes:
        """A struct event of type l7. `known`: of flows met before in this batch. Raises ValueError."""
        ends = ends_of(record)
        judged = known.get(ends)
        if judged is None:
            judged = known[ends] = self._judged(ends)
        c = self._constants
        source, destination, source_port_be, destination_port_be, protocol, *_ = ends
        return self._event.pack(
            time_ns=time_ns,
            rule_egress=judged.rule_egress if judged.is_egress else c.RULE_NONE,
            rule_ingress=c.RULE_NONE if judged.is_egress else judged.rule_ingress,
            source=source,
            destination=destination,
            service=judged.service,
            source_identity=judged.source_identity,
            destination_identity=judged.destination_identity,
            source_port_be=source_port_be,
            destination_port_be=destination_port_be,
            service_port_be=judged.service_port_be,
            type=L7_EVENT,
            verdict=c.VERDICT_DENY if record.denied else c.VERDICT_ALLOW,
            reason=c.DROP_PROXY_DENIED if record.denied else c.DROP_NONE,
            protocol=protocol,
            hook=PROXY_HOOK,
            egress_judged=int(judged.is_egress),
            ingress_judged=int(not judged.is_egress),
            encrypted=int(judged.encrypted),
        )

    def _judged(self, ends: Ends) -> Judged:
        source, destination, *_, direction, _listener = ends
        entry = self._entry_of(ends)
        if entry is None:
            return self._by_address(source, destination, direction)
        c = self._constants
        is_service = entry.flags & c.CT_SERVICE
        return Judged(
            source_identity=entry.source_identity,
            destination_identity=entry.destination_identity,
            rule_egress=entry.rule_egress,
            rule_ingress=entry.rule_ingress,
            is_egress=direction == EGRESS if direction else entry.rule_egress != c.RULE_NONE,
            service=entry.after_source if is_service else NO_ADDRESS,
            service_port_be=entry.after_source_port_be if is_service else 0,
            encrypted=bool(entry.flags & c.CT_ENCRYPTED),
        )

    def _entry_of(self, ends: Ends) -> Any | None:
        """That of the flow's answers, whose key is what the proxy sees, turned round. Where two proxies judge it, one
        after the other, the flow is tracked twice under the same ends, and goes to another listener each time."""
        source, destination, source_port_be, destination_port_be, protocol, _, listener = ends
        found = None
        for leg in LEGS:
            key = self._tuple.pack_values(destination, source, destination_port_be, source_port_be, protocol, leg)
            value = self._conntrack.lookup(key)
            entry: Any = None if value is None else self._entry.unpack(value)
            if entry is not None and entry.listener == listener:
                return entry
            found = found or entry
        return found

    def _by_address(self, source: bytes, destination: bytes, direction: str) -> Judged:
        none = self._constants.RULE_NONE
        is_egress = direction == EGRESS if direction else self._endpoints.lookup(source) is not None
        return Judged(self._identity(source), self._identity(destination), none, none, is_egress=is_egress)

    def _identity(self, address: bytes) -> int:
        value = self._endpoints.lookup(address)
        if value is not None:
            return int(self._endpoint.unpack(value).identity)
        value = self._ipcache.lookup(self._prefix.pack(prefixlen=128, address=address))
        return int(self._known.unpack(value).identity) if value is not None else self._constants.IDENTITY_UNKNOWN


def ends_of(record: L7Record) -> Ends:
    """Raises ValueError where they are no addresses and ports."""
    ports = record.source_port, record.destination_port
    if not all(0 <= port <= 65535 for port in ports):
        raise ValueError(f"{ports} are no ports")
    source, destination = parse_address(record.source), parse_address(record.destination)
    protocol = Protocol.BY_NAME[record.transport]
    return source, destination, be16(ports[0]), be16(ports[1]), protocol, record.direction, record.listener

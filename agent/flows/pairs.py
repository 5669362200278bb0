"""The two entries of a flow in conntrack or nat, and the event its end is reported with. Pure; mirrors bpf/conntrack.h.

`key` and `entry` are named tuples of struct tuple and of struct conntrack or struct nat.
"""

from __future__ import annotations

from typing import Any

import msgspec

from agent.datapath.abi import Abi
from agent.datapath.record import Record

Address = bytes
Pair = tuple[Address, int, int, Address, int]
"""Address and port of a frontend, protocol; address and port of a backend. Addresses are 16 bytes, ports as in maps."""


class Table(msgspec.Struct, frozen=True):
    """What is different between maps of flows: the values, and the bits of their flags."""

    entry: Record
    reply: int
    gone: int
    over: int  # set: the flow has ended, whatever its expiry
    through: int  # set: the flow goes through a frontend; 0: all do
    aside: int = 0  # set: it does not, all the same
    foreign: int = 0  # set on a reply: the frontend is another node's, who knows what becomes of the flow


def table_of(abi: Abi, entry: str) -> Table:
    """By the name of the struct that the map's values are."""
    c, record = abi.constants, abi.records[entry]
    if entry == "nat":
        return Table(record, c.NAT_REPLY, c.NAT_GONE, c.NAT_CLOSED, 0, c.NAT_MASQUERADE, c.NAT_DSR)
    return Table(record, c.CT_REPLY, c.CT_GONE, c.CT_CLOSED, through=c.CT_SERVICE)


class Pairs:
    """Of a map whose values are of that struct."""

    def __init__(self, abi: Abi, entry: str = "conntrack") -> None:
        constants = abi.constants
        self.table = table_of(abi, entry)
        self._service = constants.CT_SERVICE
        self._ended, self._encrypted = constants.CT_ENDED, constants.CT_ENCRYPTED
        self._of_proxy, self._redirect = constants.CT_TO_PROXY | constants.CT_FROM_PROXY, constants.VERDICT_REDIRECT
        self._no_rule, self._end = constants.RULE_NONE, constants.EVENT_END
        self._from_pod, self._to_pod = constants.HOOK_FROM_POD, constants.HOOK_TO_POD
        self._tuple = abi.records["tuple"]
        self._event = abi.records["event"]

    def partner(self, key: Any, entry: Any) -> bytes:
        """The key of the flow's other entry."""
        return self._tuple.pack_values(
            entry.after_destination,
            entry.after_source,
            entry.after_destination_port_be,
            entry.after_source_port_be,
            key.protocol,
            entry.after_leg,
        )

    def ends(self, key: Any, entry: Any) -> Pair | None:
        """The frontend a flow goes through, and its backend; None where it goes through none."""
        table = self.table
        if entry.flags & table.aside or (table.through and not entry.flags & table.through):
            return None
        if entry.flags & table.reply:
            if entry.flags & table.foreign:
                return None
            return entry.after_source, entry.after_source_port_be, key.protocol, key.source, key.source_port_be
        return (
            key.destination,
            key.destination_port_be,
            key.protocol,
            entry.after_destination,
            entry.after_destination_port_be,
        )

    def is_live(self, entry: Any, partner: Any | None, now_ns: int) -> bool:
        """Expiry is the later of the two entries'; entries made at different times belong to different flows."""
        if entry.expires_ns > now_ns:
            return True
        return partner is not None and partner.created_ns == entry.created_ns and partner.expires_ns > now_ns

    def end(self, key: Any, entry: Any, partner: Any | None, now_ns: int) -> bytes | None:
        """The END event of a conntrack flow, in its originator's direction; None where the datapath has reported it."""
        flags = entry.flags | (partner.flags if partner is not None else 0)
        if flags & self._ended:
            return None
        is_reply, is_service = entry.flags & self.table.reply, entry.flags & self._service
        forward = self._tuple.unpack(self.partner(key, entry)) if is_reply else key
        if is_reply:  # who answers is who was reached
            destination, destination_port_be = key.source, key.source_port_be
        else:
            destination, destination_port_be = entry.after_destination, entry.after_destination_port_be
        judged_egress = entry.rule_egress != self._no_rule
        return self._event.pack(
            time_ns=now_ns,
            rule_egress=entry.rule_egress,
            rule_ingress=entry.rule_ingress,
            packets=entry.packets + (partner.packets if partner is not None else 0),
            bytes=entry.bytes + (partner.bytes if partner is not None else 0),
            source=forward.source,
            destination=destination,
            service=forward.destination if is_service else bytes(16),
            source_identity=entry.source_identity,
            destination_identity=entry.destination_identity,
            ifindex=entry.ifindex,
            source_port_be=forward.source_port_be,
            destination_port_be=destination_port_be,
            service_port_be=forward.destination_port_be if is_service else 0,
            type=self._end,
            verdict=self._redirect if entry.flags & self._of_proxy else entry.verdict,
            protocol=key.protocol,
            hook=self._from_pod if judged_egress else self._to_pod,
            egress_judged=int(judged_egress),
            ingress_judged=int(entry.rule_ingress != self._no_rule),
            encrypted=int(bool(entry.flags & self._encrypted)),
        )

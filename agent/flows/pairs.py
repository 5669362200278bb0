"""The two conntrack entries of a flow, and the event its end is reported with. Pure; mirrors bpf/conntrack.h.

`key` and `entry` are named tuples of struct tuple and struct conntrack.
"""

from __future__ import annotations

from typing import Any

from agent.datapath.abi import Abi
from policies.address import V4_MAPPED, is_v4


class Pairs:
    def __init__(self, abi: Abi) -> None:
        self._constants = abi.constants
        self._tuple = abi.records["tuple"]
        self._event = abi.records["event"]
        self._hairpin_v4 = V4_MAPPED + abi.byte_strings["HAIRPIN_V4_BE_BYTES"]
        self._hairpin_v6 = abi.byte_strings["HAIRPIN_V6_BE_BYTES"]

    def partner(self, key: Any, entry: Any) -> bytes:
        """The key of the flow's other entry."""
        constants = self._constants
        source, source_port_be = key.destination, key.destination_port_be
        destination, destination_port_be = key.source, key.source_port_be
        hairpin = entry.flags & constants.CT_HAIRPIN
        if entry.flags & constants.CT_SERVICE and entry.flags & constants.CT_REPLY:
            destination, destination_port_be = entry.nat_address, entry.nat_port_be
            if hairpin:
                source = key.source
        elif entry.flags & constants.CT_SERVICE:
            source, source_port_be = entry.nat_address, entry.nat_port_be
            if hairpin:
                destination = self._hairpin_v4 if is_v4(key.source) else self._hairpin_v6
        return self._tuple.pack(
            source=source,
            destination=destination,
            source_port_be=source_port_be,
            destination_port_be=destination_port_be,
            protocol=key.protocol,
        )

    def is_live(self, entry: Any, partner: Any | None, now_ns: int) -> bool:
        """Expiry is the later of the two entries'; entries made at different times belong to different flows."""
        if entry.expires_ns > now_ns:
            return True
        return partner is not None and partner.created_ns == entry.created_ns and partner.expires_ns > now_ns

    def end(self, key: Any, entry: Any, partner: Any | None, now_ns: int) -> bytes | None:
        """The END event of a flow, in its originator's direction; None where the datapath has reported it."""
        constants = self._constants
        flags = entry.flags | (partner.flags if partner is not None else 0)
        if flags & constants.CT_ENDED:
            return None
        forward = self._tuple.unpack(self.partner(key, entry)) if entry.flags & constants.CT_REPLY else key
        if entry.flags & constants.CT_REPLY:  # who answers is who was reached
            destination, destination_port_be = key.source, key.source_port_be
        elif entry.flags & constants.CT_SERVICE:
            destination, destination_port_be = entry.nat_address, entry.nat_port_be
        else:
            destination, destination_port_be = key.destination, key.destination_port_be
        service = entry.flags & constants.CT_SERVICE
        judged_egress = entry.rule_egress != constants.RULE_NONE
        return self._event.pack(
            time_ns=now_ns,
            rule_egress=entry.rule_egress,
            rule_ingress=entry.rule_ingress,
            packets=entry.packets + (partner.packets if partner is not None else 0),
            bytes=entry.bytes + (partner.bytes if partner is not None else 0),
            source=forward.source,
            destination=destination,
            service=forward.destination if service else bytes(16),
            source_identity=entry.source_identity,
            destination_identity=entry.destination_identity,
            ifindex=entry.ifindex,
            source_port_be=forward.source_port_be,
            destination_port_be=destination_port_be,
            service_port_be=forward.destination_port_be if service else 0,
            type=constants.EVENT_END,
            verdict=entry.verdict,
            protocol=key.protocol,
            hook=constants.HOOK_FROM_POD if judged_egress else constants.HOOK_TO_POD,
            egress_judged=int(judged_egress),
            ingress_judged=int(entry.rule_ingress != constants.RULE_NONE),
        )

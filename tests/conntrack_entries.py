"""Flows as the two entries the datapath makes of them, in conntrack or nat."""

from __future__ import annotations

from typing import Any

import msgspec
from flow_events import ABI, C

from agent.datapath.abi import be16
from policies.address import is_v4, parse_address

TUPLE, CONNTRACK, NAT = ABI.records["tuple"], ABI.records["conntrack"], ABI.records["nat"]
HAIRPIN_V4, HAIRPIN_V6 = parse_address("169.254.42.1"), parse_address("fdff:6761:7465::1")

Ends = tuple[str, int]


class Flow(msgspec.Struct, frozen=True):
    """`source` and `destination` as the originator sees them; `backend` where that is a service's frontend; `sender`
    is whom the backend sees, where that is another than the source (by SNAT)."""

    source: Ends
    destination: Ends
    backend: Ends | None = None
    protocol: int = 6
    sender: Ends | None = None

    @property
    def hairpin(self) -> bool:
        return self.backend is not None and self.backend[0] == self.source[0]

    @property
    def forward_key(self) -> bytes:
        return _key(self.source, self.destination, self.protocol)

    @property
    def reply_key(self) -> bytes:
        peer = self.sender or self.source
        if self.hairpin:
            hairpin = HAIRPIN_V4 if is_v4(parse_address(self.source[0])) else HAIRPIN_V6
            return _pack(parse_address(self.source[0]), (self.backend or peer)[1], hairpin, peer[1], self.protocol)
        return _key(self.backend or self.destination, peer, self.protocol)

    @property
    def keys(self) -> set[bytes]:
        return {self.forward_key, self.reply_key}

    def entries(self, *, expires_ns: int, reply_expires_ns: int | None = None, **fields: Any) -> dict[bytes, bytes]:
        """Both of conntrack, by key. The forward one has counted 3 packets of 300 bytes, the reply 2 of 200."""
        flags = fields.pop("flags", 0)
        if self.backend:
            flags |= C.CT_SERVICE | (C.CT_SOURCE if self.hairpin else 0)
        common = {
            "created_ns": 1, "verdict": C.VERDICT_ALLOW, "rule_egress": 100, "rule_ingress": 200,
            "source_identity": 300, "destination_identity": 400, "ifindex": 7,
        } | fields  # fmt: skip
        forward = common | {"flags": flags, "expires_ns": expires_ns, "packets": 3, "bytes": 300}
        forward |= _turned(self.reply_key)
        reply = common | {"flags": flags | C.CT_REPLY, "packets": 2, "bytes": 200}
        reply |= _turned(self.forward_key)
        reply["expires_ns"] = expires_ns if reply_expires_ns is None else reply_expires_ns
        return {self.forward_key: CONNTRACK.pack(**forward), self.reply_key: CONNTRACK.pack(**reply)}

    def nat_entries(self, *, expires_ns: int, reply_expires_ns: int | None = None, **fields: Any) -> dict[bytes, bytes]:
        """Both of nat, by key."""
        flags = fields.pop("flags", 0)
        common = {"created_ns": 1, "ifindex": 3, "packets": 3, "bytes": 300} | fields
        forward = common | {"flags": flags, "expires_ns": expires_ns} | _turned(self.reply_key)
        reply = common | {"flags": flags | C.NAT_REPLY} | _turned(self.forward_key)
        reply["expires_ns"] = expires_ns if reply_expires_ns is None else reply_expires_ns
        return {self.forward_key: NAT.pack(**forward), self.reply_key: NAT.pack(**reply)}


def _turned(key: bytes) -> dict[str, Any]:
    """`after` of an entry whose partner has this key."""
    t = TUPLE.unpack(key)
    return {
        "after_source": t.destination,
        "after_destination": t.source,
        "after_source_port_be": t.destination_port_be,
        "after_destination_port_be": t.source_port_be,
        "after_protocol": t.protocol,
    }


def _key(source: Ends, destination: Ends, protocol: int) -> bytes:
    return _pack(parse_address(source[0]), source[1], parse_address(destination[0]), destination[1], protocol)


def _pack(source: bytes, source_port: int, destination: bytes, destination_port: int, protocol: int) -> bytes:
    return TUPLE.pack(
        source=source,
        destination=destination,
        source_port_be=be16(source_port),
        destination_port_be=be16(destination_port),
        protocol=protocol,
    )


FLOWS: dict[str, Flow] = {
    "plain": Flow(("10.0.0.1", 40000), ("10.0.0.2", 8080)),
    "udp over IPv6": Flow(("fd00::1", 40001), ("fd00::2", 53), protocol=17),
    "service": Flow(("10.0.0.1", 40002), ("10.96.0.9", 80), ("10.0.0.2", 8080)),
    "service over IPv6": Flow(("fd00::1", 40003), ("fd00:96::9", 80), ("fd00::2", 8080)),
    "hairpin": Flow(("10.0.0.1", 40004), ("10.96.0.9", 80), ("10.0.0.1", 8080)),
    "hairpin over IPv6": Flow(("fd00::1", 40005), ("fd00:96::9", 80), ("fd00::1", 8080)),
    "echo": Flow(("10.0.0.1", 77), ("10.0.0.2", 0), protocol=1),
}

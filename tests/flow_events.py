"""Events and names that the tests of flows share."""

from __future__ import annotations

from typing import Any

from agent.datapath.abi import be16, load
from agent.flows.names import Names
from policies.address import parse_address

ABI = load()
C = ABI.constants
EVENT = ABI.records["event"]

RULE = {"t": "rule", "kind": "NetworkPolicy", "namespace": "shop"}
NAMES: list[dict[str, Any]] = [
    RULE | {"id": 100, "name": "client", "rule": "egress[1]"},
    RULE | {"id": 200, "name": "web", "rule": "ingress[0]"},
    {"t": "identity", "id": 300, "labels": ["app=client", "tier=front"]},
    {"t": "identity", "id": 400, "labels": ["app=web"]},
    {"t": "pod", "ip": "10.0.0.1", "namespace": "shop", "name": "client-1"},
    {"t": "pod", "ip": "10.0.0.2", "namespace": "shop", "name": "web-1"},
    {
        "t": "service", "address": "10.96.0.9", "port": 80, "protocol": "TCP", "namespace": "shop", "name": "web",
        "port_name": "http",
    },
    {"t": "synced"},
]  # fmt: skip


def known_names(node: str = "n1") -> Names:
    names = Names(ABI, node)
    for line in NAMES:
        names.apply(line, 0)
    return names


def event(**changes: Any) -> dict[str, Any]:
    """A new TCP flow from client-1 to web-1, both sides judged."""
    base: dict[str, Any] = {
        "time_ns": 5,
        "type": C.EVENT_NEW,
        "verdict": C.VERDICT_ALLOW,
        "hook": C.HOOK_FROM_POD,
        "protocol": 6,
        "source": parse_address("10.0.0.1"),
        "destination": parse_address("10.0.0.2"),
        "source_port_be": be16(40000),
        "destination_port_be": be16(8080),
        "source_identity": 300,
        "destination_identity": 400,
        "egress_judged": 1,
        "ingress_judged": 1,
        "rule_egress": 100,
        "rule_ingress": 200,
        "tcp_flags": 2,
        "ifindex": 7,
    }
    return base | changes


def packed(**changes: Any) -> bytes:
    return EVENT.pack(**event(**changes))


def drop(reason: int = C.DROP_POLICY_INGRESS, **changes: Any) -> dict[str, Any]:
    return event(**({"type": C.EVENT_DROP, "verdict": C.VERDICT_DENY, "reason": reason, "rule_ingress": 0} | changes))

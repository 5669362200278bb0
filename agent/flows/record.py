"""Events of the datapath → flow records. Pure."""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Any

from agent.datapath.abi import Abi, be16
from agent.flows.clock import WallClock
from agent.flows.flow import Endpoint, Flow, FlowType, Icmp, PolicyRule, ServicePort, Verdict
from agent.flows.names import Names
from l7proxy.records import L7
from policies.address import format_address
from policies.model import Protocol

INGRESS, EGRESS = "ingress", "egress"
_TCP_BITS = ("FIN", "SYN", "RST", "PSH", "ACK", "URG", "ECE", "CWR")  # RFC 9293, least significant first
TCP_FLAGS = tuple(tuple(name for bit, name in enumerate(_TCP_BITS) if flags >> bit & 1) for flags in range(256))
"""By the octet of the TCP header."""
NO_ADDRESS = bytes(16)

TCP = 6
PORT_PROTOCOLS = frozenset(Protocol.BY_NAME.values())
ICMP_PROTOCOLS = frozenset({1, 58})

L7_EVENT = PROXY_HOOK = 128
"""Numbers of what proxies report (agent.flows.judgements): above all that the datapath gives."""

REFUSALS = ("NO_BACKEND", "BACKEND_GONE", "TOO_BIG", "TTL_EXCEEDED")
"""Drop reasons of which the sender is always told, by RST or ICMP; of others the event says it."""

_format = functools.lru_cache(maxsize=8192)(format_address)


class Recorder:
    """Builds records. `event` arguments are named tuples of struct event, as abi.records["event"].records gives."""

    def __init__(self, abi: Abi, names: Names, clock: WallClock) -> None:
        constants = abi.constants
        self._names = names
        self._clock = clock
        self._end, self._drop = constants.EVENT_END, constants.EVENT_DROP
        self._types = event_types(abi)
        self._verdict = verdict_of(abi)
        self._hooks = hook_names(abi)
        self._on_the_way_out = constants.HOOK_FROM_POD, constants.HOOK_TO_NETWORK, constants.HOOK_SOCKET
        self._no_rule = constants.RULE_NONE
        self._by_policy = {constants.DROP_POLICY_EGRESS: EGRESS, constants.DROP_POLICY_INGRESS: INGRESS}
        self._reasons = drop_reasons(abi)

    def flows(self, seq: int, event: Any, l7: L7 | None = None) -> tuple[Flow, ...]:
        """One record for each side that was judged; of a drop, one for the side that dropped it."""
        if event.type == self._drop or not (event.egress_judged and event.ingress_judged):
            return (self._flow(seq, event, self._direction(event), l7),)
        return self._flow(seq, event, EGRESS, l7), self._flow(seq, event, INGRESS, l7)

    def _direction(self, event: Any) -> str:
        by_policy = self._by_policy.get(event.reason)
        if by_policy is not None:
            return by_policy
        if event.type != self._drop and event.egress_judged != event.ingress_judged:
            return EGRESS if event.egress_judged else INGRESS
        return EGRESS if event.hook in self._on_the_way_out else INGRESS

    def _flow(self, seq: int, event: Any, direction: str, l7: L7 | None) -> Flow:
        protocol = event.protocol
        ended = event.type == self._end
        of_packet = not ended and event.type != L7_EVENT
        return Flow(
            time=self._clock.text(event.time_ns),
            seq=seq,
            type=self._types[event.type],
            verdict=self._verdict(event),
            drop_reason=self._reasons.get(event.reason),
            direction=direction,
            source=self._endpoint(event, event.source, event.source_port_be, event.source_identity),
            destination=self._endpoint(event, event.destination, event.destination_port_be, event.destination_identity),
            protocol=Protocol.BY_NUMBER.get(protocol, str(protocol)),
            l7=l7,
            policy=self._policy(event, direction),
            service=self._service(event),
            node=self._names.node,
            packets=event.packets if ended else None,
            bytes=event.bytes if ended else None,
            tcp_flags=TCP_FLAGS[event.tcp_flags] if protocol == TCP and of_packet else None,
            icmp=Icmp(event.icmp_type, event.icmp_code) if protocol in ICMP_PROTOCOLS and of_packet else None,
            encrypted=bool(event.encrypted),
            hook=self._hooks.get(event.hook, str(event.hook)),
            ifindex=event.ifindex,
        )

    def _policy(self, event: Any, direction: str) -> PolicyRule | None:
        """None where no rule decided. Dropped by policy without a rule means the default deny."""
        rule = event.rule_egress if direction == EGRESS else event.rule_ingress
        if event.type == self._drop and self._by_policy.get(event.reason) != direction:
            return None
        if event.type != self._drop and rule == self._no_rule:
            return None
        return self._names.rule(rule, event.time_ns)

    def _endpoint(self, event: Any, address: bytes, port_be: int, identity: int) -> Endpoint:
        pod = self._names.pod(address, event.time_ns)
        return Endpoint(
            identity=identity,
            namespace=pod.namespace if pod else None,
            pod=pod.name if pod else None,
            ip=_format(address),
            port=be16(port_be) if event.protocol in PORT_PROTOCOLS else None,
            labels=self._names.labels(identity, event.time_ns),
        )

    def _service(self, event: Any) -> ServicePort | None:
        if event.service == NO_ADDRESS:
            return None
        port = be16(event.service_port_be)
        name = self._names.service(event.service, port, event.protocol, event.time_ns)
        return ServicePort(
            namespace=name.namespace if name else None,
            name=name.name if name else None,
            ip=format_address(event.service),
            port=port if event.protocol in PORT_PROTOCOLS else None,
            port_name=name.port_name if name else "",
        )


def verdict_of(abi: Abi) -> Callable[[Any], Verdict]:
    drop = abi.constants.EVENT_DROP
    passed = {
        abi.constants.VERDICT_ALLOW: Verdict.FORWARDED,
        abi.constants.VERDICT_REDIRECT: Verdict.REDIRECTED,
    }
    refused = {abi.constants[f"DROP_{reason}"] for reason in REFUSALS}

    def verdict(event: Any) -> Verdict:
        if event.verdict in passed and event.type != drop:
            return passed[event.verdict]
        return Verdict.REFUSED if event.reason in refused or event.refused else Verdict.DROPPED

    return verdict


def event_types(abi: Abi) -> dict[int, FlowType]:
    constants = abi.constants
    return {
        constants.EVENT_NEW: FlowType.NEW,
        constants.EVENT_END: FlowType.END,
        constants.EVENT_DROP: FlowType.DROP,
        L7_EVENT: FlowType.L7,
    }


def hook_names(abi: Abi) -> dict[int, str]:
    """Number → name: from-pod and the like."""
    programs = {
        hook.value: hook.name.removeprefix("HOOK_").lower().replace("_", "-")
        for hook in abi.enums["hook"]
        if hook.name is not None
    }
    return programs | {PROXY_HOOK: "proxy"}


def drop_reasons(abi: Abi) -> dict[int, str]:
    """Number → name; DROP_NONE and the count at the end are no reasons."""
    return {
        reason.value: reason.name.removeprefix("DROP_")
        for reason in abi.enums["drop_reason"]
        if reason.name is not None and reason.name not in ("DROP_NONE", "DROP_REASONS")
    }

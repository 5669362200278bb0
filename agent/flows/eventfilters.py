"""What `observe` can ask of an event itself, before a record is made of it. Pure."""

from __future__ import annotations

from collections.abc import Callable, Iterable

from agent.datapath.abi import Abi, be16
from agent.flows.flow import FlowType, Verdict
from agent.flows.l7filters import EventTest
from agent.flows.names import reserved_labels
from agent.flows.record import PORT_PROTOCOLS, drop_reasons, event_types, hook_names, verdict_of
from policies.address import Prefix


def event_makers(abi: Abi) -> dict[str, Callable[[str], EventTest]]:
    """By option: value → test of an event. The makers raise ValueError."""
    reasons = {name: number for number, name in drop_reasons(abi).items()}
    hooks = {name: number for number, name in hook_names(abi).items()}
    types = {kind.value: number for number, kind in event_types(abi).items()}
    verdict = verdict_of(abi)
    reserved = {labels[0].removeprefix("reserved:"): number for number, labels in reserved_labels(abi).items()}

    def by_verdict(text: str) -> EventTest:
        wanted = Verdict(_one_of(text.upper(), Verdict))
        return lambda event: verdict(event) is wanted

    def by_reason(text: str) -> EventTest:
        wanted = reasons[_one_of(text.upper().removeprefix("DROP_"), reasons)]
        return lambda event: event.reason == wanted

    def by_type(text: str) -> EventTest:
        wanted = types[_one_of(text.lower(), FlowType)]
        return lambda event: event.type == wanted

    def by_hook(text: str) -> EventTest:
        wanted = hooks[_one_of(text.lower().replace("_", "-"), hooks)]
        return lambda event: event.hook == wanted

    def by_identity(text: str) -> EventTest:
        wanted = reserved.get(text.lower())
        if wanted is None:
            wanted = _number(text, 0, 2**32 - 1)
        return lambda event: wanted in (event.source_identity, event.destination_identity)

    return {
        "verdict": by_verdict,
        "drop_reason": by_reason,
        "type": by_type,
        "hook": by_hook,
        "identity": by_identity,
        "port": _by_port,
        "to_port": _by_to_port,
        "from_ip": _by_from_ip,
        "to_ip": _by_to_ip,
    }


def _by_port(text: str) -> EventTest:
    wanted = be16(_number(text, 1, 65535))
    return lambda e: wanted in (e.source_port_be, e.destination_port_be) and e.protocol in PORT_PROTOCOLS


def _by_to_port(text: str) -> EventTest:
    wanted = be16(_number(text, 1, 65535))
    return lambda event: event.destination_port_be == wanted and event.protocol in PORT_PROTOCOLS


def _by_from_ip(text: str) -> EventTest:
    block = Prefix.parse(text)
    return lambda event: block.contains(event.source)


def _by_to_ip(text: str) -> EventTest:
    block = Prefix.parse(text)
    return lambda event: block.contains(event.destination)


def _one_of(text: str, names: Iterable[str]) -> str:
    known = list(names)
    if text not in known:
        raise ValueError(f"give one of {', '.join(known)}")
    return text


def _number(text: str, low: int, high: int) -> int:
    if not text.isascii() or not text.isdigit() or not low <= int(text) <= high:
        raise ValueError(f"give a number from {low} to {high}")
    return int(text)

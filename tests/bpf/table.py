"""Rows of packet tables: a packet and all that must come of it.

A case is a list of steps; a step is a Step below or a function that changes the maps in between. What a step does
not mention must not happen: any other action, frame, counter or event fails it.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

from frames import Packet, host_mac, pod_mac
from kernel import INTERFACES, TOWARDS_NODE, Kernel

from agent.datapath.testrun import Action

STACK = "stack"
Events = tuple[dict[str, Any], ...]


@dataclass(frozen=True)
class Step:
    """`to`: the local pod it is redirected to, STACK, or "" if dropped. `out`: what leaves, if not the same."""

    pod: str
    packet: Packet
    program: str
    to: str
    out: Packet | None = None
    reason: str = "NONE"
    events: Events = ()
    ingress_ifindex: int = 0
    tally: str = ""
    mark: str = ""  # MARK_…, that it comes with

    def __call__(self, kernel: Kernel) -> None:
        mark = kernel.abi.constants[f"MARK_{self.mark}"] if self.mark else 0
        outcome = kernel.send(self.pod, self.packet, self.program, self.ingress_ifindex, mark=mark)
        summary = f"{self}\ngave {outcome}"
        assert outcome.drops == {f"DROP_{self.reason}": 1}, summary
        assert outcome.action == self._action(), summary
        if self.to:
            assert outcome.frame == self._frame(kernel), summary
        assert outcome.tallies == ({f"TALLY_{self.tally}": 1} if self.tally else {}), summary
        check_events(kernel, self.pod, self.program, outcome.events, self.events, summary)

    def _action(self) -> Action:
        if not self.to:
            return Action.SHOT
        return Action.OK if self.to == STACK else Action.REDIRECT

    def _frame(self, kernel: Kernel) -> bytes:
        """The frame that must come out, checksums computed anew."""
        packet = self.out or self.packet
        if self.to != STACK:
            return packet.encode(kernel.family, pod_mac(self.to), host_mac(self.to))
        macs = host_mac(self.pod), pod_mac(self.pod)
        return packet.encode(kernel.family, *(macs if self.program in TOWARDS_NODE else reversed(macs)))


def check_events(kernel: Kernel, device: str, program: str, found: Sequence[Any], wanted: Events, summary: str) -> None:
    """As many as wanted, of this hook, with the members that are given."""
    assert len(found) == len(wanted), summary
    for event_, members in zip(found, wanted, strict=True):
        assert event_.ifindex == INTERFACES[device], summary
        assert event_.hook == kernel.abi.constants[f"HOOK_{program.upper()}"], summary
        for name, value in members.items():
            assert getattr(event_, name) == resolve(kernel, name, value), (name, summary)


def resolve(kernel: Kernel, name: str, value: Any) -> Any:
    """The value of an event's member: names of addresses and of constants stand for themselves."""
    if name in ("source", "destination", "service"):
        return kernel.address(value) if value else bytes(16)
    if name.endswith("_be"):
        return int.from_bytes(value.to_bytes(2, "big"), "little")
    return kernel.abi.constants[value] if isinstance(value, str) else value


Change = Callable[[Kernel], object]
Case = tuple[str, list[Change]]

NEW: Events = ({"type": "EVENT_NEW", "verdict": 1},)
END: Events = ({"type": "EVENT_END", "verdict": 1},)


def event(kind: str, **members: Any) -> Events:
    return ({"type": f"EVENT_{kind}"} | members,)


def sent(pod: str, packet: Packet, to: str, out: Packet | None = None, events: Events = (), tally: str = "") -> Step:
    """A pod sends; it passes."""
    return Step(pod, packet, "from_pod", to, out, events=events, tally=tally)


def new(pod: str, packet: Packet, to: str, out: Packet | None = None, **members: Any) -> Step:
    """A pod begins a flow; `members` of the event that says so."""
    return sent(pod, packet, to, out, event("NEW", **members))


def dropped(pod: str, packet: Packet, reason: str, tally: str = "", **members: Any) -> Step:
    """A pod sends; it is dropped, and an event says why."""
    return Step(pod, packet, "from_pod", "", None, reason, drop_event(reason, members), tally=tally)


def arrives(
    pod: str, packet: Packet, out: Packet | None = None, events: Events = (), via: int = 7, tally: str = ""
) -> Step:
    """The stack sends to a pod what came in at interface `via` (0: from the node itself); it passes."""
    return Step(pod, packet, "to_pod", STACK, out, "NONE", events, via, tally)


def arrives_new(pod: str, packet: Packet, via: int = 7, **members: Any) -> Step:
    return arrives(pod, packet, None, event("NEW", **members), via)


def stopped(pod: str, packet: Packet, reason: str, via: int = 7, tally: str = "", **members: Any) -> Step:
    """The stack sends to a pod; it is dropped."""
    return Step(pod, packet, "to_pod", "", None, reason, drop_event(reason, members), via, tally)


def drop_event(reason: str, members: dict[str, Any]) -> Events:
    """What is reported of a drop."""
    if reason == "LINK_CONTROL":
        return ()
    return event("DROP", reason=f"DROP_{reason}", **({"verdict": 0, "refused": 0} | members))


def epoch(kernel: Kernel) -> None:
    kernel.raise_epoch()


def policy(*arguments: Any) -> Change:
    """As Kernel.policy, then a new epoch."""

    def change(kernel: Kernel) -> None:
        kernel.policy(*arguments)
        kernel.raise_epoch()

    return change


def do(method: str, *arguments: Any, **named: Any) -> Change:
    """Call a method of Kernel."""
    return lambda kernel: getattr(kernel, method)(*arguments, **named)


def entry(packet: Packet, host: bool = False, leg: int = 0, **members: Any) -> Change:
    """The entry `packet` meets has these values; with none given, there is no entry. `flags` is exact."""

    def check(kernel: Kernel) -> None:
        found = kernel.entry(packet, host, leg)
        if not members:
            assert found is None, found
            return
        assert found is not None, f"no entry for {packet}"
        for name, value in members.items():
            wanted = kernel.abi.constants[value] if isinstance(value, str) else value
            assert getattr(found, name) == wanted, (name, found)

    return check


def run(kernel: Kernel, steps: Sequence[Change]) -> None:
    for number, step in enumerate(steps):
        try:
            step(kernel)
        except AssertionError as error:
            error.add_note(f"step {number}")
            raise

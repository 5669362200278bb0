"""What the plan says of flows that live and began at a proxy's listener, perhaps by rules of an earlier day. Pure."""

from __future__ import annotations

from collections.abc import Iterable, Mapping

import msgspec

from agent.plan.blocks import ROWS, cells
from agent.plan.ids import Asked, Names
from agent.plan.parts import DIRECTIONS
from agent.plan.state import (
    ENDPOINT,
    ENDPOINTS,
    IPCACHE,
    IPCACHE_KEY,
    State,
    ipcache_class,
)
from l7proxy.listening import judges_again
from policies.address import is_v4
from policies.flatten import lookup
from policies.l7 import Demands
from policies.model import Cell, Direction, Verdict

HOST_BITS = 128


class LiveFlow(msgspec.Struct, frozen=True, gc=False):
    """As the proxy sees it: addresses (16 bytes) and port of the destination after service translation. `listener`:
    where it began; `key`: of its entry in conntrack."""

    key: bytes
    listener: int
    source: bytes
    destination: bytes
    protocol: int
    port: int


class Otherwise(msgspec.Struct, frozen=True, order=True, gc=False):
    """Requests between these are judged otherwise than their listener says. `demands` None: all are allowed; empty:
    none is."""

    source: bytes
    destination: bytes
    port: int
    demands: Demands | None


NOTHING: Demands = frozenset()


def cannot_go_on(
    flows: Iterable[LiveFlow], overrides: Mapping[int, tuple[Otherwise, ...]], names: Names
) -> list[LiveFlow]:
    """Those judged otherwise whose proxy looks at a connection only when it begins."""
    found = []
    for flow in flows:
        asked = names.listeners.get(flow.listener)
        if asked is not None and not judges_again(asked.demands) and _fits(flow, overrides.get(flow.listener, ())):
            found.append(flow)
    return found


def out_of_date(flows: Iterable[LiveFlow], state: State, names: Names) -> list[LiveFlow]:
    """Those that began by other rules than hold now, or by rules that nobody knows any more."""
    flows = list(flows)
    overrides = judged_otherwise(flows, state, names, {})
    return [f for f in flows if f.listener not in names.listeners or _fits(f, overrides.get(f.listener, ()))]


def _fits(flow: LiveFlow, overrides: Iterable[Otherwise]) -> bool:
    between = (flow.source, flow.destination, flow.port)
    return any((one.source, one.destination, one.port) == between for one in overrides)


def judged_otherwise(
    flows: Iterable[LiveFlow], state: State, names: Names, lingering: Mapping[int, Asked]
) -> dict[int, tuple[Otherwise, ...]]:
    """By listener. Also flows that are denied now: the datapath stops their packets, and may let them go on later, by
    other rules than those they began by. `lingering`: listeners that no row names."""
    found: dict[int, set[Otherwise]] = {}
    for flow in flows:
        asked = names.listeners.get(flow.listener) or lingering.get(flow.listener)
        if asked is None:
            continue
        demands = _demands(_cell(flow, asked, state, names))
        if demands != asked.demands:
            one = Otherwise(flow.source, flow.destination, flow.port, demands)
            found.setdefault(flow.listener, set()).add(one)
    return {number: tuple(sorted(some, key=_order)) for number, some in found.items()}


def _order(one: Otherwise) -> tuple[bytes, bytes, int]:
    return one.source, one.destination, one.port


def _demands(cell: Cell | None) -> Demands | None:
    if cell is None or cell.verdict is Verdict.DENY:
        return NOTHING
    return cell.demands if cell.verdict is Verdict.REDIRECT else None


def _cell(flow: LiveFlow, asked: Asked, state: State, names: Names) -> Cell | None:
    """What judges the flow now, on the side whose listener it is at; None: nothing, which is a deny."""
    own, other = flow.source, flow.destination
    if asked.direction is Direction.INGRESS:
        own, other = other, own
    value = state.tables[ENDPOINTS].get(own)
    remote = _class_of(other, state)
    if value is None or not remote:
        return None
    row = state.row((ENDPOINT.unpack(value).subject, DIRECTIONS[asked.direction]), remote)
    block = None if row is None else state.blocks[ROWS].get(row)
    return None if block is None else lookup(cells(block, names), flow.protocol, flow.port)


def _class_of(address: bytes, state: State) -> int:
    """As the datapath finds it: that of a local pod, else of the longest prefix. 0: not known."""
    if (value := state.tables[ENDPOINTS].get(address)) is not None:
        fields = ENDPOINT.unpack(value)
        return int(fields.class_v4 if is_v4(address) else fields.class_v6)
    key = IPCACHE_KEY.pack_values(HOST_BITS, address)
    found = state.tables[IPCACHE].get(key) or state.covering(key)
    return ipcache_class(found) if found else 0

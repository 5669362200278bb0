"""The rows of tests/services_rows.py asked of the datapath itself: pods' packets by from_pod, others by from_network.

What the plan compiles goes into the maps as it is; packets of many source ports then must get every backend that the
row names, and no other. The node's own packets are left to the tests of its sockets.
"""

from __future__ import annotations

import struct
from typing import Any

import pytest
from frames import ADDRESSES, FAMILIES, Family, flow
from kernel import Kernel
from map_content import Content
from services_rows import LOCAL, ROWS, TARGET, Row, world_of

from agent.plan.blocks import MAGLEV, MEMBERS, POOLS, RANGES
from agent.plan.plan import Plan
from agent.plan.state import SERVICES
from policies.address import V4_MAPPED
from policies.model import Protocol

MAPS = (POOLS, MEMBERS, MAGLEV, RANGES, SERVICES)
REFUSALS = {"refused": "DROP_NO_BACKEND"}
NODE_SOURCES = ("node", "loopback")
PACKETS = 300
"""So many at most: with five backends the odds of missing one are below 1 in 10^28."""

IPV4_AT, IPV6_AT, EXTENSION = 14, 14, 60


def asked(row: Row, family: Family, *, by_pods: bool) -> list[tuple[str, str, int, int, str]]:
    """(source, destination, port, protocol, expectation) of a row's packets."""
    out = []
    for one in row.packets:
        where, _, protocol = one[1].partition("/")
        name, _, port = where.partition(":")
        if (len(one) == 3 or one[3] == family) and one[0] not in NODE_SOURCES and (one[0] in LOCAL) is by_pods:
            out.append((one[0], name, int(port), Protocol.BY_NAME[protocol or "TCP"], one[2]))
    return out


def fill(content: Content, row: Row) -> None:
    world, plan = world_of(row), Plan()
    plan.advance(plan.update(world, world.take_dirty()))
    held = plan.state.maps()
    for name in MAPS:
        content.maps[name].update_many(held[name])


def ends(frame: bytes, family: Family) -> tuple[bytes, bytes, int]:
    """Source, destination (16 bytes each) and destination port of a packet."""
    if family == 4:
        at = IPV4_AT + (frame[IPV4_AT] & 15) * 4
        source, destination = V4_MAPPED + frame[26:30], V4_MAPPED + frame[30:34]
    else:
        at = IPV6_AT + 40
        source, destination = frame[22:38], frame[38:54]
        if frame[IPV6_AT + 6] == EXTENSION:
            at += 8 * (frame[at + 1] + 1)
    return source, destination, int(struct.unpack_from("!H", frame, at + 2)[0])


def check(kernel: Kernel, device: str, program: str, question: tuple[str, str, int, int, str]) -> None:
    source, destination, port, protocol, expected = question
    family = kernel.family
    names = {kernel.address(name): name for name in reversed(ADDRESSES)}  # of two of one address the first
    wanted = None if expected.partition(" ")[0] in ("refused", "dropped", "no") else set(expected.split())
    seen: set[str] = set()
    for number in range(PACKETS):
        for name in ("affinity", "conntrack", "nat"):
            kernel.empty(name)
        packet = flow(protocol, source, destination, 20000 + number, port)
        outcome = kernel.send(device, packet, program)
        if wanted is None:
            reason = REFUSALS.get(expected) or f"DROP_{expected.removeprefix('dropped ')}"
            if expected != "no service":
                assert reason in outcome.drops, f"{question}: {outcome.drops}"
            else:
                assert ends(outcome.frame, family)[1:] == (kernel.address(destination), port), question
            return
        drops = {name: count for name, count in outcome.drops.items() if name != "DROP_NONE"}
        assert not drops, f"{question}: {drops}"
        by, to, at = ends(outcome.frame, family)
        told = names[to] + ("" if at == TARGET else f":{at}") + ("" if names[by] == source else f"={names[by]}")
        assert told in wanted, f"{question}: {told}"
        seen.add(told)
        if seen == wanted:
            return
    raise AssertionError(f"{question}: of {wanted} only {seen} after {PACKETS} packets")


def rows(*, by_pods: bool) -> list[Any]:
    """Those that have such packets."""
    found = [row for row in ROWS if any(asked(row, family, by_pods=by_pods) for family in FAMILIES)]
    return [pytest.param(row, id=row.name) for row in found]


@pytest.mark.parametrize("row", rows(by_pods=True))
def test_pods_packets(kernel: Kernel, row: Row) -> None:
    for name in ("far", "far-too", "other-node"):
        kernel.identity(name)
    fill(kernel, row)
    for question in asked(row, kernel.family, by_pods=True):
        check(kernel, question[0], "from_pod", question)


@pytest.mark.parametrize("row", rows(by_pods=False))
def test_packets_from_elsewhere(node: Kernel, row: Row) -> None:
    node.config(port_min=61000, port_max=65535)
    fill(node, row)
    for question in asked(row, node.family, by_pods=False):
        check(node, "eth", "from_network", question)

"""The rows of tests/services_rows.py asked of the datapath itself: pods' packets by from_pod, others by from_network
and by XDP, the node's own by its sockets.

What the plan compiles goes into the maps as it is; packets of many source ports then must get every backend that the
row names, and no other.
"""

from __future__ import annotations

import struct
from collections.abc import Callable
from typing import Any, NamedTuple

import pytest
from frames import ADDRESSES, FAMILIES, TCP, UDP, Family, Packet, flow, host_mac, pod_mac
from kernel import Kernel, Outcome
from map_content import INTERFACES, Content
from services_rows import LOCAL, REMOTE, ROWS, TARGET, Row, world_of
from socket_site import SHAPES, Site, cookie_of, sockaddr

from agent.datapath import testrun
from agent.datapath.abi import be16
from agent.datapath.apply import apply
from agent.datapath.testrun import XdpAction
from agent.plan.blocks import MAGLEV, MEMBERS, POOLS, RANGES
from agent.plan.plan import Plan
from agent.plan.state import SERVICES
from policies.address import V4_MAPPED
from policies.model import Protocol

MAPS = (POOLS, MEMBERS, MAGLEV, RANGES, SERVICES)
PACKETS = 300
"""So many at most: with five backends the odds of missing one are below 1 in 10^28."""

IPV4_AT, IPV6_AT, EXTENSION = 14, 14, 60


class Question(NamedTuple):
    """A packet of a row and what is expected of it."""

    source: str
    destination: str
    port: int
    protocol: int
    expected: str

    @property
    def wanted(self) -> set[str]:
        """Who may get it; empty: nobody."""
        return set() if self.expected.partition(" ")[0] in ("refused", "dropped", "no") else set(self.expected.split())

    @property
    def reason(self) -> str:
        """Why nobody gets it; "" where it goes on as it is."""
        given = "NO_BACKEND" if self.expected == "refused" else self.expected.removeprefix("dropped ")
        return "" if self.expected == "no service" else f"DROP_{given}"


PARTIES = {"pods": LOCAL, "node": ("node", "loopback"), "others": (*REMOTE, "world", "router", "other-node")}


def asked(row: Row, family: Family, by: str) -> list[Question]:
    """By these of the PARTIES."""
    out = []
    for one in row.packets:
        where, _, protocol = one[1].partition("/")
        name, _, port = where.partition(":")
        if (len(one) == 3 or one[3] == family) and one[0] in PARTIES[by]:
            out.append(Question(one[0], name, int(port), Protocol.BY_NAME[protocol or "TCP"], one[2]))
    return out


def test_everybody_who_asks_is_a_party() -> None:
    for row in ROWS:
        for family in FAMILIES:
            everything = [one for one in row.packets if len(one) == 3 or one[3] == family]
            assert sum(len(asked(row, family, by)) for by in PARTIES) == len(everything)


def fill(content: Content, row: Row) -> None:
    """By the steps of the row's plan that concern services; who pods are the maps have already."""
    world, plan = world_of(row), Plan()
    steps = plan.advance(plan.update(world, world.take_dirty())).steps
    assert apply(content.maps, [step for step in steps if step.map in MAPS], raise_epoch=False).failure is None


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


def check(kernel: Kernel, send: Callable[[Packet], Outcome], question: Question) -> None:
    names = {kernel.address(name): name for name in reversed(ADDRESSES)}  # of two of one address the first
    seen: set[str] = set()
    for number in range(PACKETS):
        for name in ("affinity", "conntrack", "nat"):
            kernel.empty(name)
        packet = flow(question.protocol, question.source, question.destination, 20000 + number, question.port)
        outcome = send(packet)
        if question.reason and not question.wanted:
            assert question.reason in outcome.drops, f"{question}: {outcome.drops}"
            return
        drops = {name: count for name, count in outcome.drops.items() if name != "DROP_NONE"}
        assert not drops, f"{question}: {drops}"
        by, to, at = ends(outcome.frame, kernel.family)
        if not question.wanted:
            assert (to, at) == (kernel.address(question.destination), question.port), question
            return
        told = names[to] + ("" if at == TARGET else f":{at}")
        told += "" if names[by] == question.source else f"={names[by]}"
        assert told in question.wanted, f"{question}: {told}"
        seen.add(told)
        if seen == question.wanted:
            return
    raise AssertionError(f"{question}: of {question.wanted} only {seen} after {PACKETS} packets")


def rows(by: str) -> list[Any]:
    """Those that have such packets."""
    found = [row for row in ROWS if any(asked(row, family, by) for family in FAMILIES)]
    return [pytest.param(row, id=row.name) for row in found]


@pytest.mark.parametrize("row", rows("pods"))
def test_pods_packets(kernel: Kernel, row: Row) -> None:
    for name in ("far", "far-too", "other-node"):
        kernel.identity(name)
    for name in ("web", "dns", "vip", "loopback"):
        kernel.identity("world", name)
    fill(kernel, row)
    for question in asked(row, kernel.family, "pods"):
        check(kernel, lambda packet: kernel.send(packet.source, packet, "from_pod"), question)


@pytest.mark.parametrize("row", rows("others"))
def test_packets_from_elsewhere(node: Kernel, row: Row) -> None:
    node.config(port_min=61000, port_max=65535)
    fill(node, row)
    for question in asked(row, node.family, "others"):
        check(node, lambda packet: node.send("eth", packet, "from_network"), question)


@pytest.mark.parametrize("row", rows("others"))
def test_packets_from_elsewhere_where_there_is_xdp(node: Kernel, row: Row) -> None:
    """It sends on what goes to another node with this node's address, and leaves all else to tc."""
    node.config(port_min=61000, port_max=65535)
    fill(node, row)

    def send(packet: Packet) -> Outcome:
        frame = packet.encode(node.family, host_mac("eth"), pod_mac("eth"))
        run = testrun.run_xdp
        result = node.network.run(run, node.programs["xdp_network"], frame, ifindex=INTERFACES["eth"])
        if result.action == XdpAction.PASS:
            assert result.packet == frame
            outcome = node.send("eth", packet, "from_network")
            changed = not outcome.events and ends(outcome.frame, node.family)[0] != node.address(packet.source)
            assert not changed or packet.l4.protocol not in (TCP, UDP) or row.settings.get("forwarding") == "dsr"
            return outcome
        assert result.action == XdpAction.TX
        assert ends(result.packet, node.family)[0] == node.address("node")
        return Outcome(result.action, result.packet, {}, {}, [])

    for question in asked(row, node.family, "others"):
        check(node, send, question)


@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("row", rows("node"))
def test_sockets_of_the_node(loaded_site: Site, row: Row, shape: str) -> None:
    """Where they are connected to, by what the programs remember of them: nobody need be there."""
    loaded_site.reset(SHAPES[shape][1])
    fill(loaded_site, row)
    for question in asked(row, loaded_site.family, "node"):
        wanted = {told.partition("=")[0] for told in question.wanted}  # which source they take the kernel decides
        seen: set[str] = set()
        for _ in range(PACKETS):
            loaded_site.empty("affinity")
            told = connected(loaded_site, shape, question)
            assert told == question.reason if not wanted else told in wanted, f"{question}: {told}"
            seen.add(told)
            if not wanted or seen == wanted:
                break
        else:
            raise AssertionError(f"{question}: of {wanted} only {seen} after {PACKETS} sockets")


def connected(site: Site, shape: str, question: Question) -> str:
    """The backend a socket gets, or why it gets none; "": it is not translated."""
    names = {site.address(name): name for name in reversed(ADDRESSES)}
    before = site.maps["drops"].sums()
    with site.party("node").socket(shape, "tcp" if question.protocol == TCP else "udp", timeout_s=0) as client:
        client.connect_ex(sockaddr(question.destination, question.port, shape))
        found = [site.abi.records["socket_key"].unpack(key) for key, _ in site.maps["socket_frontends"].items()]
        backends = [(one.address, be16(one.port_be)) for one in found if one.cookie == cookie_of(client)]
    for name in ("socket_frontends", "socket_backends"):
        site.empty(name)  # of connections that failed entries stay for a while
    counts = zip(site.maps["drops"].sums(), before, strict=True)
    reasons = [site.abi.enums["drop_reason"](number).name for number, (new, old) in enumerate(counts) if new != old]
    assert len(backends) + len(reasons) <= 1
    for address, port in backends:
        return names[address] + ("" if port == TARGET else f":{port}")
    return str(reasons[0]) if reasons else ""

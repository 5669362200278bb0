"""What leaves by the node's devices: by WireGuard where it has to, whatever it is and by whichever route."""

from __future__ import annotations

from dataclasses import replace

import pytest
from encryption_rows import Fate, Mode, Row, encrypts
from frames import (
    AH,
    DESTINATION_OPTIONS,
    HOP_BY_HOP,
    L4,
    TCP,
    Packet,
    echo,
    echo_reply,
    error,
    fragments,
    sctp,
    tcp,
    udp,
)
from kernel import Kernel
from map_content import INTERFACES, Frontend
from network_node import PORT
from network_rows import comes_in, goes_on, goes_out, left_to_tc, nat
from table import Change, do, run

from agent.datapath.testrun import Action

ENCRYPTED, PLAIN, COUNTED, DROPPED = Fate
ON, STRICT, NODES, STRICT_NODES = Mode.ON, Mode.STRICT, Mode.NODES, Mode.STRICT_NODES

ALWAYS = {ON: ENCRYPTED}
NEVER = {ON: PLAIN}
FOR_NODES = {ON: PLAIN, NODES: ENCRYPTED, STRICT_NODES: ENCRYPTED}
NOWHERE = {ON: COUNTED, STRICT: DROPPED, STRICT_NODES: DROPPED}
"""It should be encrypted, and there is nobody to encrypt it for."""
GONE = {ON: DROPPED}

PAIR = tcp("a", "far", 1000, 80)
BIG = udp("a", "far", 1000, 53)
EXTENDED = replace(
    PAIR, extensions=((HOP_BY_HOP, bytes([0, 1, 4, 0, 0, 0, 0])), (DESTINATION_OPTIONS, bytes([0, 1, 4, 0, 0, 0, 0])))
)
TOO_MANY = replace(PAIR, extensions=((DESTINATION_OPTIONS, bytes([0, 1, 4, 0, 0, 0, 0])),) * 8)
NODE_PORT = do("frontend", "node", 30080, Frontend([("b", 8080)], kinds=("NODE_PORT",)))
VIA_A = INTERFACES["a"]

ROWS = [
    Row("a pod to a pod", PAIR, ALWAYS, via=VIA_A),
    Row("its first packet", tcp("a", "far", 1000, 80, "S"), ALWAYS, via=VIA_A),
    Row("UDP", udp("a", "far", 1000, 53), ALWAYS, via=VIA_A),
    Row("SCTP", sctp("a", "far", 1000, 9), ALWAYS, via=VIA_A),
    Row("an echo", echo("a", "far"), ALWAYS, via=VIA_A),
    Row("its answer", echo_reply("b", "far"), ALWAYS, via=VIA_A),
    Row("a protocol without ports", Packet("a", "far", L4(47)), ALWAYS, via=VIA_A),
    Row("an ICMP error", error("a", "far", tcp("far", "a", 80, 1000)), ALWAYS, via=VIA_A),
    Row("an ICMP error that quotes nothing of use", error("a", "far", udp("b", "world", 1, 2)), ALWAYS, via=VIA_A),
    Row("a pod that no endpoint is of", tcp("free", "far", 1000, 80), ALWAYS, via=VIA_A),
    Row("what a proxy sends on", PAIR, ALWAYS, "FROM_EGRESS"),
    Row("what a proxy sends on, of ingress", PAIR, ALWAYS, "FROM_INGRESS"),
    Row("what a proxy answers", PAIR, ALWAYS, "PROXY_ANSWERS"),
    Row("a mark of somebody else's", PAIR, ALWAYS, "TO_PROXY", VIA_A),
    Row("the first fragment", fragments(BIG, (8, 16))[0], ALWAYS, via=VIA_A),
    Row("a later fragment, of which the first was not seen", fragments(BIG, (8, 16))[1], ALWAYS, via=VIA_A),
    Row("a fragment too short for its ports", fragments(PAIR, (8, 28))[0], ALWAYS, via=VIA_A),
    Row("options and extension headers", replace(EXTENDED, options=b"\1\1\1\0"), ALWAYS, via=VIA_A),
    Row("more extension headers than are followed", TOO_MANY, ALWAYS, via=VIA_A),
    Row("an authentication header", replace(PAIR, extensions=((AH, bytes([4] + [0] * 22)),)), ALWAYS, via=VIA_A),
    Row("to a pod of a node that does not encrypt", tcp("a", "beyond", 1000, 80), NOWHERE, via=VIA_A),
    Row("to a block of nobody known", tcp("a", "unreachable", 1000, 80), NOWHERE, via=VIA_A),
    Row("between other nodes' pods", tcp("beyond", "far", 1000, 80), NOWHERE, via=VIA_A),
    Row("to a pod of this node that is gone", tcp("a", "free", 1000, 80), GONE, via=VIA_A),
    Row("from another node to one that is gone", tcp("far", "free", 1000, 80), GONE, "DECRYPTED", 110),
    Row("to a pod that is here", tcp("a", "b", 1000, 80), NEVER, via=VIA_A),
    Row("a pod to the world", tcp("a", "world", 1000, 80), NEVER, via=VIA_A),
    Row("a pod to who knows whom", tcp("a", "nobody", 1000, 80), NEVER, via=VIA_A),
    Row("the world to a pod elsewhere, by this node", tcp("world", "far", 1000, 80), NEVER, via=110),
    Row("the node to a pod", tcp("node", "far", 1000, 80), FOR_NODES),
    Row("the node to a pod of such a node", tcp("node", "beyond", 1000, 80), {ON: PLAIN, STRICT_NODES: DROPPED}),
    Row("a pod to another node", tcp("a", "other-node", 1000, 80), FOR_NODES, via=VIA_A),
    Row("what a pod answers to a node", tcp("a", "other-node", 80, 1000), ALWAYS, "ENCRYPT", VIA_A),
    Row("a pod to a node port", tcp("a", "other-node", 1000, 30080), ALWAYS, via=VIA_A, before=(NODE_PORT,)),
    Row("not a node port", tcp("a", "other-node", 1000, 30081), FOR_NODES, via=VIA_A, before=(NODE_PORT,)),
    Row("the node to another node", tcp("node", "other-node", 1000, 80), NEVER),
    Row("WireGuard itself", udp("node", "other-node", 51871, 51871), NEVER, "WIREGUARD"),
    Row("WireGuard to a node with an address of pods", udp("node", "far", 51871, 51871), NEVER, "WIREGUARD"),
    Row("the node to the world", tcp("node", "world", 1000, 80), NEVER),
]  # fmt: skip


@pytest.mark.parametrize("mode", Mode)
@pytest.mark.parametrize("row", ROWS, ids=lambda row: row.title)
def test_out(node: Kernel, row: Row, mode: Mode) -> None:
    encrypts(mode)(node)
    row.run(node, mode, "to_network")


@pytest.mark.parametrize("mode", Mode)
@pytest.mark.parametrize("row", ROWS, ids=lambda row: row.title)
@pytest.mark.parametrize(("device", "ready"), [(False, True), (True, False)], ids=["no device", "not ready"])
def test_out_before_anything_can_be_encrypted(node: Kernel, row: Row, mode: Mode, device: bool, ready: bool) -> None:
    """Nothing that has to be encrypted leaves in strict mode; otherwise what goes between pods is counted."""
    encrypts(mode, device=device, ready=ready)(node)
    found = row.fate(mode)
    if found is ENCRYPTED:
        between_pods = row.packet.destination == "far" and row.packet.source != "node"
        found = DROPPED if "strict" in mode else COUNTED if between_pods else PLAIN
    replace(row, fates={ON: found, mode: found}).run(node, mode, "to_network")


def test_others_may_use_bits_of_the_mark(node: Kernel) -> None:
    encrypts(ON)(node)
    packet = tcp("a", "other-node", 80, 1000)
    mark = node.abi.constants.MARK_ENCRYPT
    for other, action in ((0x4000, Action.REDIRECT), (0x80, Action.REDIRECT), (0x10000, Action.OK)):
        assert node.send("eth", packet, "to_network", VIA_A, mark=mark ^ other).action == action


def test_answers_of_a_proxy_go_as_the_question_came(node: Kernel) -> None:
    """It answers in a pod's name; the mark says that it is a proxy, and conntrack the rest."""
    constants = node.abi.constants
    answer = tcp("b", "other-node", 80, 1000)
    mark = constants.MARK_PROXY_ANSWERS
    encrypts(ON)(node)
    for flags, action in (
        (constants.CT_REPLY | constants.CT_FROM_PROXY | constants.CT_ENCRYPTED, Action.REDIRECT),
        (constants.CT_REPLY | constants.CT_FROM_PROXY, Action.OK),
        (constants.CT_ENCRYPTED, Action.OK),
    ):
        node.maps["conntrack"].update(node.key(answer), node.pack("conntrack", flags=flags))
        assert node.send("eth", answer, "to_network", mark=mark).action == action


MASQUERADES = do("config", features=1 | 8)


def test_what_is_masqueraded_is_no_pods_any_more(node: Kernel) -> None:
    encrypts(ON)(node)
    MASQUERADES(node)
    packet = tcp("a", "world", 1000, 80, "S")
    run(node, [goes_out(packet, tcp("node", "world", PORT, 80, "S"), via=VIA_A)])


def test_pods_of_other_nodes_know_pods(node: Kernel) -> None:
    """Even where masquerading does not know yet whose a block is, it goes by WireGuard or not at all."""
    encrypts(ON)(node)
    MASQUERADES(node)
    assert node.send("eth", tcp("a", "far", 1000, 80, "S"), "to_network", VIA_A).action == Action.REDIRECT
    outcome = node.send("eth", tcp("a", "beyond", 1000, 80, "S"), "to_network", VIA_A)
    assert (outcome.action, outcome.tallies) == (Action.OK, {"TALLY_PLAINTEXT": 1})
    encrypts(STRICT)(node)
    assert node.send("eth", tcp("a", "beyond", 1000, 80), "to_network", VIA_A).drops == {"DROP_UNENCRYPTED": 1}


# ---- services, at the node that is asked

KINDS = ("LOAD_BALANCER",)
AWAY = do("frontend", "vip", 80, Frontend([("far", 8080)], kinds=KINDS))
AWAY_DSR = do("frontend", "vip", 80, Frontend([("far", 8080)], kinds=(*KINDS, "DSR")))
HERE = do("frontend", "node", 30080, Frontend([("b", 8080)], kinds=("NODE_PORT",)))
OUT, OUT_FAR = tcp("world", "vip", 1000, 80, "S"), tcp("node", "far", PORT, 8080, "S")
ANSWER, ANSWER_VIP = tcp("far", "node", 8080, PORT, "SA"), tcp("vip", "world", 80, 1000, "SA")


@pytest.mark.parametrize("frontend", [AWAY, AWAY_DSR], ids=["SNAT", "DSR"])
@pytest.mark.parametrize("mode", [ON, STRICT, NODES])
def test_a_hop_to_a_backend_elsewhere(node: Kernel, frontend: Change, mode: Mode) -> None:
    """By SNAT in any case: WireGuard would not take a packet with the client's address."""
    run(node, [encrypts(mode), frontend])
    run(node, [left_to_tc(OUT), nat(OUT), goes_on(OUT, OUT_FAR), nat(OUT, flags="FORWARD"), left_to_tc(OUT)])
    run(node, [goes_on(ANSWER, ANSWER_VIP, mark="DECRYPTED"), nat(OUT, flags="FORWARD ESTABLISHED")])


def test_a_hop_has_the_address_that_other_nodes_know(node: Kernel) -> None:
    """Though the route goes by a device with another."""
    node.encryption(("beyond", 24, 64), flags="PEER_PODS READY")
    encrypts(ON)(node)
    node.encryption(("beyond", 24, 64), flags="PEER_PODS READY")
    node.frontend("vip", 80, Frontend([("beyond", 8080)], kinds=KINDS))
    run(node, [goes_on(OUT, tcp("node", "beyond", PORT, 8080, "S"))])


@pytest.mark.parametrize("ready", [False, True])
def test_a_hop_that_cannot_be_encrypted(node: Kernel, ready: bool) -> None:
    encrypts(STRICT, ready=ready, device=not ready)(node)
    AWAY_DSR(node)
    outcome = node.send("eth", OUT, "from_network")
    assert outcome.drops == {"DROP_UNENCRYPTED": 1}
    encrypts(ON, ready=ready, device=not ready)(node)
    outcome = node.send("eth", tcp("world", "vip", 1001, 80, "S"), "from_network")
    assert (outcome.action, outcome.drops, outcome.tallies) == (Action.REDIRECT, {"DROP_NONE": 1}, {})


def test_a_pods_node_port_elsewhere_is_answered_encrypted(node: Kernel) -> None:
    """The answer leaves in the node's name, and is a pod's to a pod all the same."""
    encrypts(STRICT)(node)
    run(node, [HERE, comes_in(tcp("far", "node", 1000, 30080, "S"), tcp("far", "b", 1000, 8080, "S"))])
    outcome = node.send("eth", tcp("b", "far", 8080, 1000, "SA"), "to_network", INTERFACES["b"])
    assert (outcome.action, outcome.drops) == (Action.REDIRECT, {"DROP_NONE": 1})
    encrypts(STRICT, ready=False)(node)
    outcome = node.send("eth", tcp("b", "far", 8080, 1000), "to_network", INTERFACES["b"])
    assert outcome.drops == {"DROP_UNENCRYPTED": 1}


# ---- what comes in

IN_ROWS = [
    Row("between pods", tcp("far", "b", 1000, 80), NOWHERE),
    Row("… of a node that does not encrypt", tcp("beyond", "b", 1000, 80), NOWHERE),
    Row("… of nobody known", tcp("unreachable", "b", 1000, 80), NOWHERE),
    Row("… to one that is not known", tcp("far", "free", 1000, 80), NOWHERE),
    Row("in the name of a pod that is here", tcp("a", "b", 1000, 80), NOWHERE),
    Row("a later fragment", fragments(udp("far", "b", 1000, 53), (8, 16))[1], NOWHERE),
    Row("more extension headers than are followed", replace(TOO_MANY, source="far", destination="b"), NOWHERE),
    Row("an ICMP error", error("far", "b", tcp("b", "far", 80, 1000)), NOWHERE),
    Row("a protocol without ports", Packet("far", "b", L4(47)), NOWHERE),
    Row("came by WireGuard", tcp("far", "b", 1000, 80), NEVER, "DECRYPTED"),
    Row("… a fragment", fragments(udp("far", "b", 1000, 53), (8, 16))[1], NEVER, "DECRYPTED"),
    Row("marked otherwise", tcp("far", "b", 1000, 80), NOWHERE, "ENCRYPT"),
    Row("another node to a pod", tcp("other-node", "b", 1000, 80), NEVER),
    Row("the world to a pod", tcp("world", "b", 1000, 80), NEVER),
    Row("a pod to this node", tcp("far", "node", 1000, 80), NEVER),
    Row("WireGuard itself", udp("other-node", "node", 51871, 51871), NEVER),
]


@pytest.mark.parametrize("mode", Mode)
@pytest.mark.parametrize("ready", [False, True], ids=["not ready", "ready"])
@pytest.mark.parametrize("row", IN_ROWS, ids=lambda row: row.title)
def test_in(node: Kernel, row: Row, mode: Mode, ready: bool) -> None:
    """Whether anything can be encrypted makes no difference."""
    encrypts(mode, device=ready, ready=ready)(node)
    row.run(node, mode, "from_network")


def test_who_was_refused_is_told_of(node: Kernel) -> None:
    encrypts(STRICT)(node)
    for program, packet in (("from_network", tcp("far", "b", 1000, 80)), ("to_network", tcp("a", "beyond", 1000, 80))):
        (event,) = node.send("eth", packet, program).events
        assert event.reason == node.abi.constants.DROP_UNENCRYPTED
        assert (event.source, event.destination) == (node.address(packet.source), node.address(packet.destination))
        assert (event.protocol, event.encrypted) == (TCP, 0)

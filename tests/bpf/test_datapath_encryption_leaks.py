"""Ways in which something of a pod might leave in plaintext, or be believed that came so."""

from __future__ import annotations

import struct
from collections.abc import Callable
from dataclasses import replace

import pytest
from encryption_rows import Fate, Mode, Row, encrypts
from frames import GRE, L4, TIME_EXCEEDED, TOO_BIG, UNREACHABLE, Packet, error, fragments, tcp, udp
from kernel import Kernel
from map_content import INTERFACES, Frontend
from network_node import PORT
from network_rows import comes_in, goes_on, nat, stopped
from table import Change, do, run

from agent.datapath.testrun import Action

ENCRYPTED, PLAIN, COUNTED, DROPPED = Fate
ON, STRICT, NODES, STRICT_NODES = Mode.ON, Mode.STRICT, Mode.NODES, Mode.STRICT_NODES
ALWAYS = {ON: ENCRYPTED}
FOR_NODES = {ON: PLAIN, NODES: ENCRYPTED, STRICT_NODES: ENCRYPTED}
NOWHERE = {ON: COUNTED, STRICT: DROPPED, STRICT_NODES: DROPPED}

VIA_B = INTERFACES["b"]
TUNNEL_PORT = 8472
ASKED = tcp("far", "b", 1000, 80)
"""What another node's pod has sent a pod here."""
HOP = tcp("other-node", "b", 61000, 80)
"""What another node has sent it on behalf of somebody."""
NODE_PORT = do("frontend", "node", 30080, Frontend([("b", 8080)], kinds=("NODE_PORT",)))
NOT_IN_A_BLOCK = do("encryption", ("b", 32, 128), flags="")
"""A pod of this node has an address of none of its blocks."""


def hop_came(encrypted: bool) -> Change:
    """conntrack knows HOP."""

    def change(kernel: Kernel) -> None:
        answer = tcp("b", "other-node", 80, 61000)
        flags = kernel.abi.constants.CT_REPLY | (kernel.abi.constants.CT_ENCRYPTED if encrypted else 0)
        kernel.maps["conntrack"].update(kernel.key(answer), kernel.pack("conntrack", flags=flags))

    return change


# ---- what leaves

NODES_OWN = [
    *(
        Row(f"the node's own error that quotes what a pod sent, {kind}", error("node", "far", ASKED, kind), ALWAYS)
        for kind in (UNREACHABLE, TOO_BIG, TIME_EXCEEDED)
    ),
    Row("… by a fragment", error("node", "far", fragments(udp("far", "b", 1000, 53), (8, 16))[0]), ALWAYS),
    Row("an error that quotes nothing of use", error("node", "far", udp("world", "b", 1, 2)), ALWAYS),
    Row("to a node, about a hop", error("node", "other-node", HOP), ALWAYS, before=(hop_came(True),)),
    Row("… which came in plaintext", error("node", "other-node", HOP), FOR_NODES, before=(hop_came(False),)),
    Row("… about something else", error("node", "other-node", tcp("other-node", "node", 1, 2)), {ON: PLAIN}),
    Row("to a node, forwarded", error("b", "other-node", HOP), ALWAYS, via=VIA_B, before=(hop_came(True),)),
    Row("a node port's refusal", tcp("node", "far", 30080, 1000, "RA"), ALWAYS, before=(NODE_PORT,)),
    Row("not a node port", tcp("node", "far", 30081, 1000, "RA"), FOR_NODES, before=(NODE_PORT,)),
]  # fmt: skip

PODS_OWN = [
    Row("a pod with an address of no block", tcp("b", "far", 1000, 80), ALWAYS, via=VIA_B, before=(NOT_IN_A_BLOCK,)),
    Row("… to a node that does not encrypt", tcp("b", "beyond", 1, 2), NOWHERE, via=VIA_B, before=(NOT_IN_A_BLOCK,)),
    Row("a VLAN tag within the packet", replace(tcp("b", "far", 1000, 80), vlan=5), NOWHERE, via=VIA_B),
    Row("… to somebody else", replace(tcp("b", "world", 1000, 80), vlan=5), {ON: PLAIN}, via=VIA_B),
    Row("IP in IP", Packet("b", "far", L4(4)), ALWAYS, via=VIA_B),
    Row("VXLAN of its own", udp("b", "far", 1000, TUNNEL_PORT), ALWAYS, via=VIA_B),
    Row("to a block's last address", tcp("b", "far-last", 1000, 80), ALWAYS, via=VIA_B),
    Row("what decrypted goes on to a third node", tcp("far", "beyond", 1, 2), NOWHERE, "DECRYPTED", INTERFACES["eth"]),
    Row("answers with a mark of others' bits", tcp("b", "far", 80, 1000), ALWAYS, "HAND_ON", VIA_B),
]  # fmt: skip


@pytest.mark.parametrize("mode", Mode)
@pytest.mark.parametrize("row", [*NODES_OWN, *PODS_OWN], ids=lambda row: row.title)
def test_out(node: Kernel, row: Row, mode: Mode) -> None:
    encrypts(mode)(node)
    row.run(node, mode, "to_network")


@pytest.mark.parametrize("mode", [STRICT, STRICT_NODES])
@pytest.mark.parametrize("row", [*NODES_OWN, *PODS_OWN], ids=lambda row: row.title)
@pytest.mark.parametrize(("device", "ready"), [(False, True), (True, False)], ids=["no device", "not ready"])
def test_nothing_leaves_that_could_not_be_encrypted(
    node: Kernel, row: Row, mode: Mode, device: bool, ready: bool
) -> None:
    encrypts(mode, device=device, ready=ready)(node)
    found = row.fate(mode)
    replace(row, fates={ON: PLAIN if found is PLAIN else DROPPED}).run(node, mode, "to_network")


def tagged(kernel: Kernel, packet: Packet, *tags: int) -> bytes:
    """With several VLAN tags, the outermost first."""
    frame = packet.encode(kernel.family, b"\2" * 6, b"\4" * 6)
    return frame[:12] + b"".join(struct.pack("!HH", kind, 7) for kind in tags) + frame[12:]


@pytest.mark.parametrize("tags", [(0x8100,), (0x88A8,), (0x88A8, 0x8100)], ids=["one", "provider's", "two"])
@pytest.mark.parametrize(
    ("program", "packet"), [("to_network", tcp("b", "far", 1, 2)), ("from_network", tcp("far", "b", 1, 2))]
)
def test_tags_hide_nothing(node: Kernel, program: str, packet: Packet, tags: tuple[int, ...]) -> None:
    for mode, action, tallies in ((ON, Action.OK, {"TALLY_PLAINTEXT": 1}), (STRICT, Action.SHOT, {})):
        encrypts(mode)(node)
        outcome = node.send("eth", tagged(node, packet, *tags), program)
        assert (outcome.action, outcome.tallies) == (action, tallies)
    whole = tagged(node, packet, *tags)
    for size in range(14 + 4 * len(tags), len(whole) - 40, 4):  # cut within the tags or the header: nobody's packet
        assert node.send("eth", whole[:size], program).action in (Action.OK, Action.SHOT)


# ---- what comes in

IN_ROWS = [
    Row("to a pod with an address of no block", ASKED, NOWHERE, before=(NOT_IN_A_BLOCK,)),
    Row("a VLAN tag within the packet", replace(ASKED, vlan=5), NOWHERE),
    Row("… between others", replace(tcp("world", "b", 1, 2), vlan=5), {ON: PLAIN}),
    Row("a mark of WireGuard's own packets", ASKED, NOWHERE, "WIREGUARD"),
    Row("a mark of proxies", ASKED, NOWHERE, "FROM_EGRESS"),
    Row("options", replace(ASKED, options=b"\1\1\1\0"), NOWHERE),
    Row("VXLAN to a pod", udp("far", "b", 1000, TUNNEL_PORT), NOWHERE),
]  # fmt: skip


@pytest.mark.parametrize("mode", Mode)
@pytest.mark.parametrize("row", IN_ROWS, ids=lambda row: row.title)
def test_in(node: Kernel, row: Row, mode: Mode) -> None:
    encrypts(mode)(node)
    row.run(node, mode, "from_network")


@pytest.mark.parametrize(
    ("packet", "kept"),
    [
        (tcp("far", "node", 1000, 80), False),
        (udp("far", "node", 1000, TUNNEL_PORT), False),
        (udp("other-node", "node", 1000, TUNNEL_PORT), False),
        (Packet("far", "node", L4(4)), False),
        (Packet("far", "uplink", L4(GRE)), False),
        (fragments(udp("far", "node", 1000, TUNNEL_PORT), (8, 16))[1], False),
        (error("far", "node", tcp("node", "far", 1, 2)), False),
        (tcp("far", "b", 1000, 80), True),
        (tcp("far", "free", 1000, 80), True),
        (fragments(udp("far", "b", 1000, 53), (8, 16))[1], True),
        (tcp("far", "node", 1000, 30080, "S"), True),
    ],
    ids=lambda value: "" if isinstance(value, bool) else f"{value.l4.protocol} to {value.destination}",
)
def test_what_the_node_unwraps_did_not_come_by_wireguard(node: Kernel, packet: Packet, kept: bool) -> None:
    """A packet in a packet that another pod, or a node, has made: whose its source may be nobody has looked. A mark
    stays with a packet when a tunnel of the node unwraps it."""
    encrypts(STRICT)(node)
    NODE_PORT(node)
    mark = node.abi.constants.MARK_DECRYPTED
    outcome = node.send("eth", packet, "from_network", mark=mark)
    assert (outcome.action, outcome.mark) == (Action.OK, mark if kept else 0)


KINDS = ("LOAD_BALANCER",)
AWAY = do("frontend", "vip", 80, Frontend([("far", 8080)], kinds=KINDS))
OUT, OUT_FAR = tcp("world", "vip", 1000, 80, "S"), tcp("node", "far", PORT, 8080, "S")
ANSWER, ANSWER_VIP = tcp("far", "node", 8080, PORT, "SA"), tcp("vip", "world", 80, 1000, "SA")


def test_a_forged_answer_to_a_hop(node: Kernel) -> None:
    """Who sees the link cannot answer in a backend's name, nor end the flow."""
    run(node, [encrypts(STRICT), AWAY, goes_on(OUT, OUT_FAR)])
    for flags in ("SA", "A", "RA"):
        forged = replace(ANSWER, l4=replace(ANSWER.l4, flags=flags))
        run(node, [stopped(forged, "UNENCRYPTED"), nat(OUT, flags="FORWARD")])
    run(node, [goes_on(ANSWER, ANSWER_VIP, mark="DECRYPTED"), nat(OUT, flags="FORWARD ESTABLISHED")])


@pytest.mark.parametrize(
    "lax", [encrypts(Mode.OFF), encrypts(ON), do("encryption", ("far", 32, 128), flags="")], ids=["off", "on", "no pod"]
)
def test_answers_to_a_hop_that_may_be_in_plaintext(node: Kernel, lax: Callable[[Kernel], None]) -> None:
    run(node, [encrypts(ON), AWAY, goes_on(OUT, OUT_FAR), encrypts(STRICT), lax])
    run(node, [goes_on(ANSWER, ANSWER_VIP)])


def test_a_service_here_is_no_way_around(node: Kernel) -> None:
    """A pod's plaintext for a node port is the backend's to refuse: its mark is not another one now."""
    run(node, [encrypts(STRICT), NODE_PORT])
    run(node, [comes_in(tcp("far", "node", 1000, 30080, "S"), tcp("far", "b", 1000, 8080, "S"))])
    outcome = node.send("eth", tcp("far", "node", 1001, 30080, "S"), "from_network")
    assert outcome.mark == 0

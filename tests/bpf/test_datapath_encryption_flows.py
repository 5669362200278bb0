"""Flows of pods: whether they are encrypted between nodes is kept with them, and decides how they are answered."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

import pytest
from encryption_rows import Mode, encrypts
from frames import Packet, error, fragments, tcp, udp
from kernel import ANY, CLOSED, Kernel, Outcome
from map_content import INTERFACES, Listener
from table import Change, do

from agent.datapath.testrun import Action

UPLINK = INTERFACES["uplink"]
QUESTION, ANSWER = udp("other-node", "a", 1000, 53), udp("a", "other-node", 53, 1000)
OUT, BACK = udp("a", "far", 1000, 53), udp("far", "a", 53, 1000)


@pytest.fixture
def pods(kernel: Kernel) -> Kernel:
    """A node that encrypts."""
    for name in ("other-node", "far", "beyond"):
        kernel.identity(name)
    encrypts(Mode.ON)(kernel)
    return kernel


def arrives(kernel: Kernel, packet: Packet, *, encrypted: bool, via: int = UPLINK) -> Outcome:
    mark = kernel.abi.constants.MARK_DECRYPTED if encrypted else 0
    return kernel.send("a", packet, "to_pod", via, mark=mark)


def is_encrypted(kernel: Kernel, packet: Packet) -> bool:
    """By its entry, and its flow's other."""
    flag = kernel.abi.constants.CT_ENCRYPTED
    answer = replace(
        packet,
        source=packet.destination,
        destination=packet.source,
        l4=replace(packet.l4, source_port=packet.l4.destination_port, destination_port=packet.l4.source_port),
    )
    found = {bool(kernel.entry(one).flags & flag) for one in (packet, answer)}
    assert len(found) == 1, "both entries say the same"
    return found.pop()


def is_marked(kernel: Kernel, outcome: Outcome) -> bool:
    """Whether to_network is told that it has to be encrypted."""
    assert outcome.action == Action.OK
    assert outcome.mark in (0, kernel.abi.constants.MARK_ENCRYPT)
    return bool(outcome.mark)


@pytest.mark.parametrize("encrypted", [False, True])
def test_a_question_is_answered_as_it_came(pods: Kernel, encrypted: bool) -> None:
    outcome = arrives(pods, QUESTION, encrypted=encrypted)
    assert outcome.action == Action.OK
    assert [event.encrypted for event in outcome.events] == [encrypted]
    assert is_encrypted(pods, QUESTION) is encrypted
    for _ in range(2):
        assert is_marked(pods, pods.send("a", ANSWER)) is encrypted


def test_each_packet_that_comes_says_how_the_next_goes(pods: Kernel) -> None:
    """As when encryption is turned on or off, here or there, under a flow that lives."""
    for encrypted in (False, True, True, False, True):
        assert arrives(pods, QUESTION, encrypted=encrypted).drops == {"DROP_NONE": 1}
        assert is_encrypted(pods, QUESTION) is encrypted
        assert is_marked(pods, pods.send("a", ANSWER)) is encrypted


def test_later_fragments_of_an_answer_go_as_the_first(pods: Kernel) -> None:
    arrives(pods, QUESTION, encrypted=True)
    for part in fragments(ANSWER, (8, 8, 8)):
        assert is_marked(pods, pods.send("a", part))


def test_so_does_an_error(pods: Kernel) -> None:
    arrives(pods, QUESTION, encrypted=True)
    assert is_marked(pods, pods.send("a", error("a", "other-node", QUESTION)))


def test_an_error_of_a_router_is_no_sign(pods: Kernel) -> None:
    pods.send("a", OUT)
    arrives(pods, error("router", "a", OUT), encrypted=False)
    assert is_encrypted(pods, OUT)


def test_what_a_pod_begins_is_encrypted_where_that_can_be(pods: Kernel) -> None:
    (event,) = pods.send("a", OUT).events
    assert event.encrypted
    assert is_encrypted(pods, OUT)
    (event,) = pods.send("a", udp("a", "beyond", 1000, 53)).events
    assert not event.encrypted
    for other in ("world", "other-node"):
        (event,) = pods.send("a", udp("a", other, 1000, 53)).events
        assert not event.encrypted


def test_with_nodes_own_traffic(pods: Kernel) -> None:
    encrypts(Mode.NODES)(pods)
    (event,) = pods.send("a", ANSWER).events
    assert event.encrypted


def test_off_nothing_is_encrypted(pods: Kernel) -> None:
    encrypts(Mode.OFF)(pods)
    (event,) = pods.send("a", OUT).events
    assert not event.encrypted


def test_flows_between_pods_here_are_not(pods: Kernel) -> None:
    (event,) = pods.send("a", udp("a", "b", 1000, 53)).events
    assert not event.encrypted
    assert not is_encrypted(pods, udp("a", "b", 1000, 53))


def test_an_end_tells_it_too(pods: Kernel) -> None:
    syn, answer = tcp("a", "far", 1000, 80, "S"), tcp("far", "a", 80, 1000, "SA")
    pods.send("a", syn)
    arrives(pods, answer, encrypted=True)
    (event,) = arrives(pods, replace(answer, l4=replace(answer.l4, flags="RA")), encrypted=True).events
    assert (event.type, event.encrypted) == (pods.abi.constants.EVENT_END, 1)


@pytest.mark.parametrize("encrypted", [False, True])
def test_a_drop_tells_how_it_came(pods: Kernel, encrypted: bool) -> None:
    pods.policy("a", "ingress", ANY, CLOSED)
    outcome = arrives(pods, QUESTION, encrypted=encrypted)
    assert outcome.drops == {"DROP_POLICY_INGRESS": 1}
    assert [event.encrypted for event in outcome.events] == [encrypted]


def test_through_a_proxy(pods: Kernel) -> None:
    """On its way to the proxy the mark becomes another; the flow's entry keeps it."""
    pods.config(features=pods.abi.constants.FEATURE_PROXY | pods.abi.constants.FEATURE_ENCRYPT)
    pods.listener(Listener.DNS, 5353, 5353)
    pods.policy("a", "ingress", ANY, ((None, None, Listener.DNS),))
    outcome = arrives(pods, QUESTION, encrypted=True)
    assert outcome.action == Action.REDIRECT
    assert outcome.mark == pods.abi.constants.MARK_HAND_ON | 5353
    assert is_encrypted(pods, QUESTION)


# ---- to pods of other nodes, past the stack

SHORT = Action.REDIRECT


def test_past_the_stack(pods: Kernel) -> None:
    """What the pod begins, its fragments, and what it answers."""
    for packet in (OUT, OUT, *fragments(OUT, (8, 16))):
        assert pods.send("a", packet).action == SHORT
    arrives(pods, udp("far", "a", 1, 2), encrypted=True)
    assert pods.send("a", udp("a", "far", 2, 1)).action == SHORT


def test_not_where_something_is_still_to_be_done(pods: Kernel) -> None:
    """An answer that a device of the node gives its frontend's address."""
    arrives(pods, udp("far", "a", 1, 2), encrypted=True)
    answer = udp("a", "far", 2, 1)
    pods.maps["nat"].update(pods.key(answer), pods.pack("nat"))
    assert is_marked(pods, pods.send("a", answer))
    pods.maps["nat"].delete(pods.key(answer))
    assert pods.send("a", answer).action == SHORT


@pytest.mark.parametrize(
    "change",
    [
        encrypts(Mode.OFF),
        encrypts(Mode.ON, ready=False),
        encrypts(Mode.ON, device=False),
        lambda kernel: kernel.encryption(("a", 32, 128), flags="PEER_PODS"),
    ],
    ids=["off", "not ready", "no device", "not an address of this node's"],
)
def test_to_network_decides_where_it_cannot_be(pods: Kernel, change: Callable[[Kernel], None]) -> None:
    """Of a flow that went by WireGuard before."""
    assert pods.send("a", OUT).action == SHORT
    change(pods)
    assert is_marked(pods, pods.send("a", OUT))


def test_so_does_an_error_to_a_pod(pods: Kernel) -> None:
    arrives(pods, udp("far", "a", 1, 2), encrypted=True)
    assert pods.send("a", error("a", "far", udp("far", "a", 1, 2))).action == SHORT


# ---- strict mode, at the first and the last place where anything can be refused


def strict(kernel: Kernel) -> None:
    encrypts(Mode.STRICT)(kernel)
    kernel.raise_epoch()


def not_in_a_block(kernel: Kernel) -> None:
    """A pod of this node has an address of none of its blocks."""
    kernel.encryption(("a", 32, 128), flags="")


@pytest.mark.parametrize(
    ("there", "change"),
    [
        ("beyond", do("config")),
        ("unreachable", do("config")),
        ("far", encrypts(Mode.STRICT, ready=False)),
        ("far", encrypts(Mode.STRICT, device=False)),
        ("far", not_in_a_block),
    ],
    ids=["a node that does not encrypt", "a block of nobody", "not ready", "no device", "of no block"],
)
@pytest.mark.parametrize("lives", [False, True], ids=["new", "lives"])
def test_no_plaintext_leaves_a_pod(pods: Kernel, there: str, change: Change, lives: bool) -> None:
    """Whatever device routes lead to: it may be one without programs, or one that came just now."""
    pods.identity("unreachable")
    packet, answer = udp("a", there, 1000, 53), udp(there, "a", 53, 1000)
    if lives:
        assert pods.send("a", packet).drops == {"DROP_NONE": 1}
        assert arrives(pods, answer, encrypted=False).drops == {"DROP_NONE": 1}
    strict(pods)
    change(pods)
    for one in (packet, packet, *fragments(packet, (8, 16)), error("a", there, answer)):
        assert pods.send("a", one).drops == {"DROP_UNENCRYPTED": 1}


def test_a_flow_that_began_in_plaintext_goes_on_encrypted(pods: Kernel) -> None:
    encrypts(Mode.ON, ready=False)(pods)
    assert pods.send("a", OUT).action == Action.OK
    strict(pods)
    assert pods.send("a", OUT).action == SHORT


def test_strict_mode_is_about_pods(pods: Kernel) -> None:
    strict(pods)
    pods.identity("unreachable")
    for there in ("world", "other-node", "node"):
        outcome = pods.send("a", udp("a", there, 1000, 53))
        assert (outcome.action, outcome.drops, outcome.mark) == (Action.OK, {"DROP_NONE": 1}, 0)


def test_no_plaintext_reaches_a_pod_by_any_way(pods: Kernel) -> None:
    """Whichever device it came in by, and whatever its frame was like."""
    strict(pods)
    for packet in (udp("far", "a", 1, 2), udp("beyond", "a", 1, 2), tcp("far", "a", 1, 2, "S")):
        assert arrives(pods, packet, encrypted=False).drops == {"DROP_UNENCRYPTED": 1}
        assert arrives(pods, packet, encrypted=True).drops == {"DROP_NONE": 1}


@pytest.mark.parametrize("mode", [Mode.ON, Mode.STRICT, Mode.NODES])
def test_another_node_says_nothing_in_this_one_s_name(pods: Kernel, mode: Mode) -> None:
    """Nor in that of its pods, whether they are known or not."""
    pods.identity("uplink")
    encrypts(mode)(pods)
    for name in ("node", "uplink", "free"):
        for packet in (udp(name, "a", 1, 2), error(name, "a", udp("a", "far", 1, 2))):
            assert arrives(pods, packet, encrypted=True).drops == {"DROP_SPOOFED_SOURCE": 1}
    assert arrives(pods, udp("other-node", "a", 1, 2), encrypted=True).drops == {"DROP_NONE": 1}
    assert arrives(pods, udp("node", "a", 1, 2), encrypted=False, via=0).drops == {"DROP_NONE": 1}


def test_a_flow_that_was_encrypted_stays_so(pods: Kernel) -> None:
    strict(pods)
    for packet in (udp("far", "a", 1, 2), BACK):
        pods.send("a", OUT)
        assert arrives(pods, packet, encrypted=True).drops == {"DROP_NONE": 1}
        assert arrives(pods, packet, encrypted=False).drops == {"DROP_UNENCRYPTED": 1}
        assert arrives(pods, packet, encrypted=True).drops == {"DROP_NONE": 1}


def test_the_first_answer_in_plaintext_is_refused(pods: Kernel) -> None:
    strict(pods)
    pods.send("a", OUT)
    assert arrives(pods, BACK, encrypted=False).drops == {"DROP_UNENCRYPTED": 1}


def test_turned_on_it_holds_for_flows_that_live(pods: Kernel) -> None:
    arrives(pods, udp("far", "a", 1, 2), encrypted=False)
    strict(pods)
    assert arrives(pods, udp("far", "a", 1, 2), encrypted=False).drops == {"DROP_UNENCRYPTED": 1}


def test_others_are_not_concerned(pods: Kernel) -> None:
    """The world, nodes, a pod of this node that is not ours, and what this node sends itself."""
    strict(pods)
    for packet in (udp("world", "a", 1, 2), QUESTION, udp("free", "a", 1, 2)):
        assert arrives(pods, packet, encrypted=False).drops == {"DROP_NONE": 1}
    assert arrives(pods, udp("node", "a", 1, 2), encrypted=False, via=0).drops == {"DROP_NONE": 1}


def test_without_strict_mode_nothing_is_refused(pods: Kernel) -> None:
    for encrypted in (True, False):
        assert arrives(pods, udp("far", "a", 1, 2), encrypted=encrypted).drops == {"DROP_NONE": 1}

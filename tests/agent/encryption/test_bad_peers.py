"""Nodes that send what they should not, and nodes that do not answer."""

from __future__ import annotations

import base64
import socket
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress

import msgspec
import pytest
import rig
from patience import SLOWER
from tunnel_traffic import captured
from wireguard_backends import stock
from wireguard_nodes import PORT, WAIT_S, EncryptedNode, Wire

from agent.encryption import reconcile
from agent.encryption import silence as silence_module

Pair = tuple[EncryptedNode, EncryptedNode]
SILENT_S = 0.5 * SLOWER
FAMILIES = {4: (0, socket.AF_INET), 6: (1, socket.AF_INET6)}
_TRANSPORT = b"\4"
_KEEPALIVE_BYTES = 32
"""WireGuard paper, section 5.4.6: a message without content."""
_IP_TRANSPARENT, _IPV6_TRANSPARENT = 19, 75


@contextmanager
def hearing(node: EncryptedNode, family: int = 4) -> Iterator[socket.socket]:
    """The node's pod, at a port of its own."""
    at, kind = FAMILIES[family]
    with node.call(socket.socket, kind, socket.SOCK_DGRAM) as sock:
        sock.bind((node.pods[at], 0))
        sock.settimeout(SILENT_S)
        yield sock


def heard(sock: socket.socket) -> list[tuple[bytes, str]]:
    """What comes until nothing does any more: words, and from whom."""
    found: list[tuple[bytes, str]] = []
    while True:
        try:
            words, sender = sock.recvfrom(100)
        except TimeoutError:
            return found
        found.append((words, sender[0]))


def say(node: EncryptedNode, words: bytes, to: socket.socket, source: str) -> None:
    """By the device, in the name of `source`, whoever that is."""
    kind = to.family
    level, option = (
        (socket.SOL_IP, _IP_TRANSPARENT) if kind == socket.AF_INET else (socket.IPPROTO_IPV6, _IPV6_TRANSPARENT)
    )
    with node.call(socket.socket, kind, socket.SOCK_DGRAM) as sock:
        sock.setsockopt(level, option, 1)
        sock.bind((source, 0))
        sock.sendto(words, to.getsockname()[:2])


@pytest.mark.parametrize("family", FAMILIES)
def test_in_the_name_of_another_node_s_pod(wire: Wire, backend: str, family: int) -> None:
    """WireGuard takes of a node only what is its own: not a pod's of a third, not the receiver's, not the world's."""
    at, _ = FAMILIES[family]
    world, neighbour = ("198.51.100.7", "2001:db8:7::7")[at], ("10.244.2.77", "fd00:2::77")[at]
    with wire.node(1, backend) as one, wire.node(2, backend) as two, wire.node(3, backend) as three:
        wire.start(one, two, three)
        assert one.ping(two)
        with hearing(two, family) as pod:
            for source in (three.pods[at], three.addresses[at], two.addresses[at], neighbour, world):
                say(one, b"forged", pod, source)
            say(one, b"own", pod, one.pods[at])
            assert heard(pod) == [(b"own", one.pods[at])]


def test_a_replayed_packet(pair: Pair) -> None:
    """Sent again by somebody on the wire, and by the node itself: nobody hears it twice, and nobody goes there."""
    one, two = pair
    assert one.ping(two)
    with hearing(two) as pod:
        with captured(two, "eth0") as frames:
            say(one, b"once", pod, one.pods[0])
            assert heard(pod) == [(b"once", one.pods[0])]
        packets = [
            frame.payload for frame in frames() if frame.payload[:1] == _TRANSPORT and frame.source == "192.0.2.1"
        ]
        assert packets
        one.ip("address add 192.0.2.99/24 dev eth0")
        with one.call(socket.socket, socket.AF_INET, socket.SOCK_DGRAM) as sender:
            sender.bind(("192.0.2.99", 0))
            for packet in packets * 3:
                sender.sendto(packet, ("192.0.2.2", PORT))
                sender.sendto(packet[:-1] + bytes([packet[-1] ^ 1]), ("192.0.2.2", PORT))
        say(one, b"twice", pod, one.pods[0])
        assert heard(pod) == [(b"twice", one.pods[0])]
    assert "192.0.2.99" not in two.run(*stock("show", two.device, "endpoints")).stdout


def test_a_node_that_is_one_no_more(wire: Wire, backend: str) -> None:
    """It keeps its session and its key; nobody hears it."""
    with wire.node(1, backend) as one, wire.node(2, backend) as two, wire.node(3, backend) as three:
        wire.start(one, two, three)
        assert one.ping(two)
        with hearing(two) as pod:
            two.hear([three.told()])
            rig.wait_until(lambda: two.ready[-1] == {"n3"}, WAIT_S, "it is gone")
            say(one, b"still here", pod, one.pods[0])
            say(three, b"own", pod, three.pods[0])
            assert heard(pod) == [(b"own", three.pods[0])]


def test_no_message_to_the_device_names_the_key(pair: Pair, capfd: pytest.CaptureFixture[str]) -> None:
    """Not in what is said of a device that refuses it, either."""
    one, _ = pair
    assert one.encryption
    secret = (one.instance.state_dir / "wireguard/current.key").read_text().strip()
    index = one.devices[-1]
    one.ip(f"link delete {one.device}")
    rig.wait_until(lambda: one.devices[-1] != index, WAIT_S, "a new device")
    told = "".join((*capfd.readouterr(), *one.encryption.reasons, repr(vars(one.encryption._tunnel))))
    assert "WireGuard" in told
    assert secret not in told and base64.b64decode(secret).hex() not in told


# ---- who answers, and who does not


def test_keepalives_come_without_traffic_and_stop_with_the_setting(wire: Wire, backend: str) -> None:
    with wire.node(1, backend, keepalive_s=1) as one, wire.node(2, backend) as two:
        wire.start(one, two)
        assert one.ping(two)
        assert _keepalive_of(one) == "1"
        with captured(two, "eth0") as frames:
            rig.wait_until(lambda: any(map(_is_keepalive, frames())), WAIT_S, "one comes by itself")
        one.stop()
        one.config = msgspec.structs.replace(one.config, keepalive_s=0)
        one.start()
        assert _keepalive_of(one) == "off"


def _keepalive_of(node: EncryptedNode) -> str:
    return node.run(*stock("show", node.device, "persistent-keepalive")).stdout.split()[1]


def _is_keepalive(frame: object) -> bool:
    payload: bytes = getattr(frame, "payload", b"")
    return payload[:1] == _TRANSPORT and len(payload) == _KEEPALIVE_BYTES


@contextmanager
def talking(send: Callable[[], None]) -> Iterator[None]:
    """All the while."""
    ended = threading.Event()

    def talk() -> None:
        while not ended.wait(0.05):
            send()

    thread = threading.Thread(target=talk)
    thread.start()
    try:
        yield
    finally:
        ended.set()
        thread.join()


def test_who_makes_no_handshake_is_told_of(
    pair: Pair, capfd: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Once, in the log; as long as it lasts, in status, and as a problem. Three minutes are a few seconds here, and a
    session is none that began before them."""
    one, two = pair
    assert one.ping(two) and one.encryption
    assert not one.encryption.problems()
    monkeypatch.setattr(silence_module, "SILENT_NS", 3_000_000_000)
    monkeypatch.setattr(reconcile, "POLL_S", 0.2)
    two.ip("link set eth0 down")
    one.do(lambda e: e._turn())
    with one.call(socket.socket, socket.AF_INET, socket.SOCK_DGRAM) as sock:
        sock.bind((one.pods[0], 0))
        with talking(lambda: _try(sock, (two.pods[0], 9))):
            rig.wait_until(lambda: one.encryption and one.encryption.problems(), WAIT_S, "it is a problem")
            (problem,) = one.encryption.problems()
            assert (problem.subject, problem.warning) == ("NodeEndpoints n2", True)
            (view,) = one.encryption.view().peers
            assert problem.message == view.problem and "no handshake for 3 minutes" in view.problem
            for _ in range(3):
                one.do(lambda e: e._turn())
            two.ip("link set eth0 up")
            one.ip(f"link delete {one.device}")  # the next has no session to go on with
            rig.wait_until(lambda: one.encryption and not one.encryption.problems(), WAIT_S, "it has been heard again")
    said = "".join(capfd.readouterr())
    assert said.count("node n2 has made no handshake for 3 minutes") == 1, said


def _try(sock: socket.socket, there: tuple[str, int]) -> None:
    with suppress(OSError):  # the device is not there at times
        sock.sendto(b"anybody?", there)

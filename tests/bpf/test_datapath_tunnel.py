"""VXLAN between nodes is theirs alone: what a pod wraps in it would be believed to be another pod's."""

from __future__ import annotations

import pytest
from frames import Packet, fragments, sctp, tcp, udp
from kernel import Kernel

TUNNEL_PORT = 8472
NODES = ("node", "other-node", "control-plane")


@pytest.fixture
def pods(kernel: Kernel) -> Kernel:
    for name in ("other-node", "control-plane", "far"):
        kernel.identity(name)
    kernel.config(tunnel_port=TUNNEL_PORT)
    return kernel


def drops(kernel: Kernel, packet: Packet) -> dict[str, int]:
    return dict(kernel.send("a", packet).drops)


REFUSED, PASSED = {"DROP_UNSUPPORTED_PROTOCOL": 1}, {"DROP_NONE": 1}


@pytest.mark.parametrize("there", NODES)
def test_to_a_node(pods: Kernel, there: str) -> None:
    packet = udp("a", there, 1000, TUNNEL_PORT)
    for one in (packet, packet, *fragments(packet, (8, 16))[:1]):
        assert drops(pods, one) == REFUSED
    assert pods.entry(packet) is None


def test_a_flow_that_lives(pods: Kernel) -> None:
    """Of a time before there was a tunnel."""
    packet = udp("a", "other-node", 1000, TUNNEL_PORT)
    pods.config(tunnel_port=0)
    assert drops(pods, packet) == PASSED
    pods.config(tunnel_port=TUNNEL_PORT)
    pods.raise_epoch()
    for _ in range(2):
        assert drops(pods, packet) == REFUSED


@pytest.mark.parametrize(
    "packet",
    [
        *(udp("a", there, 1000, TUNNEL_PORT) for there in ("b", "far", "world")),
        *(udp("a", there, TUNNEL_PORT, 1000) for there in NODES),
        tcp("a", "other-node", 1000, TUNNEL_PORT, "S"),
        sctp("a", "other-node", 1000, TUNNEL_PORT),
    ],
    ids=lambda packet: f"{packet.l4.protocol} to {packet.destination} {packet.l4.destination_port}",
)
def test_all_else_is_as_ever(pods: Kernel, packet: Packet) -> None:
    assert drops(pods, packet) == PASSED


def test_without_a_tunnel_it_is_a_port_as_any_other(pods: Kernel) -> None:
    pods.config(tunnel_port=0)
    assert drops(pods, udp("a", "other-node", 1000, TUNNEL_PORT)) == PASSED

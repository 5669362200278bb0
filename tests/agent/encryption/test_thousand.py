"""A thousand nodes at once: what is sent to the device, and (printed) how long it takes."""

from __future__ import annotations

import time
from collections.abc import Sequence

import rig
from wireguard_nodes import WAIT_S, Wire

from agent.encryption.device import Device, PeerChange, Settings
from agent.encryption.encryption import Encryption
from agent.encryption.keys import PrivateKey
from agent.routing.desired import Own
from agent.world.nodes import Peer
from policies.address import Prefix, parse_address

COUNT = 1000


def node(number: int, at: int = 0) -> Peer:
    here = parse_address(f"172.16.{number >> 8}.{number & 255}"), parse_address(f"2001:db8::{at:x}:{number:x}")
    blocks = Prefix.parse(f"10.{number >> 8}.{number & 255}.0/24"), Prefix.parse(f"fd01:{number:x}::/64")
    return Peer(f"node-{number}", here, blocks, PrivateKey.generate().public)


async def turn(encryption: Encryption) -> float:
    began = time.perf_counter()
    assert await encryption._turn()
    return time.perf_counter() - began


async def changed(encryption: Encryption, own: Own, peers: list[Peer], done: list[float]) -> float:
    """From the World's news to the device's new state."""
    began = time.perf_counter()
    encryption.update(own, peers)
    await turn(encryption)
    return done[-1] - began


def counted(device: Device) -> tuple[list[int], list[float]]:
    """How many peers each message gives addresses, from now on; and when those that do so have been answered."""
    sent: list[int] = []
    done: list[float] = []
    configure = device.configure

    def counting(settings: Settings, changes: Sequence[PeerChange] = ()) -> None:
        sent.append(sum(bool(change.allowed) for change in changes))
        configure(settings, changes)
        if sent[-1]:
            done.append(time.perf_counter())

    device.configure = counting  # type: ignore[method-assign]
    return sent, done


def test_a_thousand_peers(wire: Wire, backend: str) -> None:
    peers = [node(number) for number in range(1, COUNT + 1)]
    with wire.node(1, backend) as one:
        one.addresses = ["172.20.0.1"]
        one.start()
        assert one.encryption and one.encryption._tunnel.device
        sent, done = counted(one.encryption._tunnel.device)
        began = time.perf_counter()
        one.hear(peers)
        rig.wait_until(lambda: one.ready and len(one.ready[-1]) == COUNT, WAIT_S)
        cold_s = time.perf_counter() - began
        assert [count for count in sent if count] == [COUNT]
        tunnel = one.encryption._tunnel
        rig.wait_until(lambda: not tunnel.greets, 3 * WAIT_S, "all have been greeted")
        sent.clear()
        moved = node(500, at=9)
        peers[499] = Peer(moved.name, moved.addresses, moved.pod_cidrs, peers[499].public_key)
        changed_s = one.do(lambda encryption: changed(encryption, one.own(), peers, done))
        assert [count for count in sent if count] == [1]
        table = one.run("wg", "show", one.device, "allowed-ips").stdout
        assert (table.count("\n"), table.count("2001:db8::9:1f4/128")) == (COUNT, 1)
        one.encryption._tunnel._state = None
        read_s = one.do(turn)
    print(f"{backend}: cold {cold_s:.2f} s; one changed {changed_s * 1000:.1f} ms; read {read_s * 1000:.1f} ms")

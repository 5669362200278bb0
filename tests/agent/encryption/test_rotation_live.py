"""Keys change under traffic: nothing breaks, however it is interrupted."""

from __future__ import annotations

import os
import stat
import time

import msgspec
import pytest
import rig
from tunnel_traffic import Connection, Stream
from wireguard_nodes import WAIT_S, EncryptedNode, Wire

from agent.encryption.keys import CURRENT, NEXT, KeyFolder, shown
from agent.encryption.rotation import Bounds

Pair = tuple[EncryptedNode, EncryptedNode]


def keys_of(node: EncryptedNode) -> set[str]:
    return {path.name for path in (node.instance.state_dir / "wireguard").iterdir()}


def is_done(node: EncryptedNode, old: bytes) -> bool:
    return node.facts[0] != old and node.facts[1] == b"" and keys_of(node) == {CURRENT}


def audit(node: EncryptedNode) -> list[dict[str, str]]:
    path = node.instance.state_dir / "audit.jsonl"
    return [msgspec.json.decode(line) for line in path.read_bytes().splitlines()] if path.exists() else []


def peers(node: EncryptedNode) -> set[str]:
    return set(node.run("wg", "show", node.device, "peers").stdout.split())


def test_by_command(pair: Pair) -> None:
    one, two = pair
    old = one.facts[0]
    with Connection(one, two) as connection, Stream(one, two) as there, Stream(two, one) as back:
        first, following = one.do(lambda encryption: encryption.rotate())
        assert first == old and following
        assert one.do(lambda encryption: encryption.rotate()) == (old, following), "one at a time"
        rig.wait_until(lambda: is_done(one, old), WAIT_S, "the rotation is over")
        assert connection.exchange()
        assert one.facts == (following, b"")
        rig.wait_until(lambda: peers(two) == {shown(following)}, WAIT_S, "the old key is gone")
        assert connection.exchange()
        seen = there.received, back.received
        rig.wait_until(lambda: there.received > seen[0] + 20 and back.received > seen[1] + 20, WAIT_S)
    print(
        f"gaps: {there.gap_s * 1000:.0f} ms and {back.gap_s * 1000:.0f} ms; lost {there.sent - there.received},"
        f" {back.sent - back.received}"
    )
    assert max(there.gap_s, back.gap_s) < 10, "no handshake had to be tried a third time"
    records = audit(one)
    assert [record["event"] for record in records] == ["key rotation begun", "key swapped", "old key destroyed"]
    assert {record["node"] for record in records} == {"n1"}
    assert (records[0]["by"], records[0]["key"], records[0]["next_key"]) == ("command", shown(old), shown(following))
    assert stat.S_IMODE((one.instance.state_dir / "audit.jsonl").stat().st_mode) == 0o600
    assert audit(two) == []


def test_both_at_once(pair: Pair) -> None:
    one, two = pair
    before = [node.facts[0] for node in pair]
    with Connection(one, two) as connection:
        for node in pair:
            node.do(lambda encryption: encryption.rotate())
        for node, old in zip(pair, before, strict=True):
            rig.wait_until(lambda n=node, o=old: is_done(n, o), WAIT_S, "the rotation is over")  # type: ignore[misc]
        assert connection.exchange()
        for node, other in ((one, two), (two, one)):
            rig.wait_until(lambda n=node, o=other: peers(n) == {shown(o.facts[0])}, WAIT_S)  # type: ignore[misc]
        assert connection.exchange()


def test_by_age(wire: Wire, backend: str) -> None:
    with wire.node(1, backend, key_rotation_days=1.0) as one, wire.node(2, backend) as two:
        wire.start(one, two)
        one.stop()
        old = one.facts[0]
        day_ago = time.time() - 86401
        os.utime(one.instance.state_dir / "wireguard" / CURRENT, (day_ago, day_ago))
        with Connection(one, two) as connection:
            one.start()
            rig.wait_until(lambda: is_done(one, old), WAIT_S, "the rotation is over")
            assert connection.exchange()
        assert audit(one)[0]["by"] == "age"


@pytest.mark.parametrize("files", (1, 2, 3))
def test_killed_on_the_way(pair: Pair, files: int) -> None:
    """The agent ends in each phase, and between the renames of the swap; the next one goes on from there."""
    one, two = pair
    old = one.facts[0]
    folder = one.instance.state_dir / "wireguard"
    one.bounds = Bounds(overlap_s=1e6)
    one.stop()
    one.start()
    with Connection(one, two) as connection:
        one.do(lambda encryption: encryption.rotate())
        rig.wait_until(lambda: len(peers(two)) == 2, WAIT_S, "the next key is known")
        one.stop()
        if files == 2:
            (folder / CURRENT).rename(folder / "old.key")
        if files == 3:
            KeyFolder(folder).swap()
        assert connection.exchange()
        one.bounds = Bounds(overlap_s=0.2, swapped_s=3.0)
        one.start()
        rig.wait_until(lambda: is_done(one, old), WAIT_S, "the rotation is over")
        assert connection.exchange()
        rig.wait_until(lambda: peers(two) == {shown(one.facts[0])}, WAIT_S)
        assert connection.exchange()


def test_it_waits_until_the_others_can_know(wire: Wire, backend: str) -> None:
    with wire.node(1, backend) as one, wire.node(2, backend) as two:
        one.published = False
        wire.start(one, two)
        old, following = one.do(lambda encryption: encryption.rotate())
        rig.wait_until(lambda: NEXT in keys_of(one), WAIT_S)
        assert one.asked_whether_published.wait(WAIT_S)
        one.asked_whether_published.clear()
        assert one.asked_whether_published.wait(WAIT_S) and one.facts == (old, following)
        one.published = True
        rig.wait_until(lambda: is_done(one, old), WAIT_S)
        assert one.ping(two)

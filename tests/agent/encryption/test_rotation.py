"""When a rotation takes its steps; and a model of nodes that change keys, are killed, and hear of each other late."""

from __future__ import annotations

import random
from pathlib import Path

import pytest

from agent.encryption.audit import AuditFile
from agent.encryption.device import PeerState
from agent.encryption.keys import CURRENT, OLD, KeyFolder
from agent.encryption.peers import Desired, Local, after, desired, difference
from agent.encryption.rotation import SESSION_NS, Bounds, Facts, Phase, Rotation, Step, due, phase_of, turned
from agent.world.nodes import Peer
from policies.address import Prefix, parse_address

BOUNDS = Bounds(overlap_s=20, swapped_s=60)
A, B, C, D = (bytes([n]) * 32 for n in range(4))


@pytest.mark.parametrize(
    ("phase", "changes", "step"),
    [
        (Phase.IDLE, {}, None),
        (Phase.IDLE, {"asked": True}, Step.BEGIN),
        (Phase.IDLE, {"max_age_s": 100.0, "key_age_s": 99.0}, None),
        (Phase.IDLE, {"max_age_s": 100.0, "key_age_s": 100.0}, Step.BEGIN),
        (Phase.IDLE, {"max_age_s": 0.0, "key_age_s": 1e12}, None),
        (Phase.OVERLAP, {}, None),
        (Phase.OVERLAP, {"told_s": 19.9, "asked": True, "turned": True}, None),
        (Phase.OVERLAP, {"told_s": 20.0}, Step.SWAP),
        (Phase.SWAPPED, {"told_s": 1000.0, "swapped_s": 59.0}, None),
        (Phase.SWAPPED, {"turned": True}, Step.FINISH),
        (Phase.SWAPPED, {"swapped_s": 60.0}, Step.FINISH),
    ],
)
def test_steps(phase: Phase, changes: dict[str, float], step: Step | None) -> None:
    facts = {"key_age_s": 0.0, "max_age_s": 0.0, "asked": False, "told_s": None, "swapped_s": 0.0, "turned": False}
    assert due(Facts(phase=phase, **(facts | changes)), BOUNDS) == step  # type: ignore[arg-type]


def test_who_has_to_turn() -> None:
    """Those with a session at the swap; by whichever of their keys."""
    at = 10 * SESSION_NS
    before = {A: at - 1, B: at - SESSION_NS - 1, C: at - 5}
    assert not turned([[A]], before, before, at)
    assert turned([[A]], before, {A: at}, at)
    assert turned([[B]], before, before, at), "its session was over"
    assert turned([[D]], before, {}, at), "there never was one"
    assert turned([[C, D]], before, {C: at - 5, D: at + 1}, at)
    assert not turned([[A], [C]], before, {A: at + 1, C: at - 5}, at)
    assert turned([], before, {}, at)


# ---- the model


class Node:
    """A node: key files on a disk, a device, an agent that may be dead, and what it has heard of the others."""

    def __init__(self, name: str, number: int, folder: Path) -> None:
        self.name, self.number = name, number
        self.address = (parse_address(f"192.0.2.{number}"),)
        self.blocks = (Prefix.parse(f"10.244.{number}.0/24"),)
        self.folder = KeyFolder(folder / "keys")
        self.audit = AuditFile(folder / "audit.jsonl", name)
        self.heard: dict[str, Peer] = {}
        self.device: dict[bytes, PeerState] = {}
        self.private = b""
        self.begin()

    def begin(self) -> None:
        """An agent starts."""
        self.rotation = Rotation(self.folder, self.audit, 0, BOUNDS)
        self.reconcile()

    def told(self) -> Peer:
        return Peer(self.name, self.address, self.blocks, *self.rotation.keys.told)

    def want(self) -> Desired:
        local = Local(self.name, self.address, self.blocks, self.rotation.keys.public, 51871)
        return desired(local, self.heard.values(), {key: one.handshake_ns for key, one in self.device.items()})

    def reconcile(self) -> None:
        self.private = self.rotation.keys.current.public
        self.device = after(self.device, difference(self.want().peers, self.device, {}))


def shake(one: Node, two: Node, now: int) -> None:
    """Both try all keys they have of each other: a handshake is made where each has the other's key in use."""
    if two.private in one.device and one.private in two.device:
        one.device[two.private].handshake_ns = two.device[one.private].handshake_ns = now
        for node in (one, two):
            node.reconcile()


def reaches(one: Node, two: Node) -> bool:
    """Whether a packet gets there: by the key that has the addresses, which the other has in use, which knows the
    sender's key and has the sender's addresses with it."""
    way = next((key for key, state in one.device.items() if two.blocks[0] in state.allowed), b"")
    back = two.device.get(one.private)
    return way == two.private and back is not None and one.blocks[0] in back.allowed


def test_nodes_that_change_keys_in_any_order(tmp_path: Path) -> None:
    """Nobody swaps before the others have heard (which is what the overlap is for). Then, whatever is killed where,
    each pair reaches each other after the next handshake, and in the end everybody has one key, a new one."""
    seed = random.randrange(1 << 32)
    print("seed", seed)
    draw = random.Random(seed)
    now = 1_700_000_000_000_000_000
    for scene in range(8):
        nodes = [Node(f"n{n}", n, _made(tmp_path / f"{scene}-{n}")) for n in (1, 2, 3)]
        first = {node.name: node.rotation.keys.current.public for node in nodes}
        rotations = dict.fromkeys(first, 0)
        for _ in range(120):
            now += SESSION_NS // 10
            node = draw.choice(nodes)
            deed = draw.choice(("hear", "hear", "step", "kill", "cut", "shake"))
            if deed == "hear":
                other = draw.choice([one for one in nodes if one is not node])
                node.heard[other.name] = other.told()
                node.reconcile()
            elif deed == "step":
                phase = node.rotation.phase
                if phase is Phase.IDLE and rotations[node.name] < 2:
                    rotations[node.name] += 1
                    node.rotation.asked = True
                    node.rotation.take(Step.BEGIN)
                elif phase is Phase.OVERLAP and _is_known(node, nodes):
                    node.rotation.take(Step.SWAP)
                elif phase is Phase.SWAPPED:
                    for other in nodes:
                        if other is not node:
                            node.reconcile()
                            shake(node, other, now)
                    node.rotation.take(Step.FINISH)
                node.reconcile()
            elif deed == "kill":
                node.begin()
            elif deed == "cut" and node.rotation.phase is Phase.OVERLAP and _is_known(node, nodes):
                _cut(node)
            pairs = [(one, two) for one in nodes for two in nodes if one is not two]
            for one, two in pairs:
                if one.heard.get(two.name) and two.heard.get(one.name):
                    shake(one, two, now)
                    assert reaches(one, two) and reaches(two, one), (scene, deed, node.name)
        _finish(nodes, now)
        for node in nodes:
            assert phase_of(node.folder.load()) is Phase.IDLE
            assert all(len(keys) == 1 for keys in node.want().keys.values())
            assert (node.private != first[node.name]) is (rotations[node.name] > 0)
            assert not node.folder.notices


def _is_known(node: Node, nodes: list[Node]) -> bool:
    return all(one.heard.get(node.name) == node.told() for one in nodes if one is not node)


def _made(path: Path) -> Path:
    path.mkdir()
    return path


def _cut(node: Node) -> None:
    """Killed between the two renames of a swap, and started again."""
    folder = node.folder._folder
    (folder / CURRENT).rename(folder / OLD)
    node.begin()
    assert {path.name for path in folder.iterdir()} == {CURRENT, OLD}


def _finish(nodes: list[Node], now: int) -> None:
    for _ in range(4):
        for node in nodes:
            for other in nodes:
                if other is not node:
                    node.heard[other.name] = other.told()
            node.reconcile()
        for one in nodes:
            for two in nodes:
                now += 1
                if one is not two:
                    shake(one, two, now)
        for node in nodes:
            if step := {Phase.OVERLAP: Step.SWAP, Phase.SWAPPED: Step.FINISH}.get(node.rotation.phase):
                node.rotation.take(step)
                node.reconcile()

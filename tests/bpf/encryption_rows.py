"""A node that encrypts, and rows for it: a packet, and whether it goes by WireGuard, in plaintext, or nowhere."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from enum import StrEnum

from frames import Packet
from kernel import Kernel
from map_content import Block
from table import Change, do

from agent.datapath.testrun import Action

WIREGUARD = 120
"""Index of the device. Nothing is done in a test of packets that is redirected."""

OWN: Block = ("a", 24, 64)
PEERS: Block = ("far", 24, 64)
OTHER_PEERS: Block = ("beyond", 24, 64)
"""Of a node that does not encrypt."""
CLUSTER: Block = ("a", 16, 16)
HOST = 32, 128


class Mode(StrEnum):
    OFF = "off"
    ON = "on"
    STRICT = "strict"
    NODES = "nodes"  # nodes' own traffic with pods, too
    STRICT_NODES = "strict nodes"


FEATURES = {
    Mode.OFF: "",
    Mode.ON: "ENCRYPT",
    Mode.STRICT: "ENCRYPT STRICT",
    Mode.NODES: "ENCRYPT NODE_ENCRYPTION",
    Mode.STRICT_NODES: "ENCRYPT STRICT NODE_ENCRYPTION",
}


class Fate(StrEnum):
    """What becomes of a packet that leaves or comes in."""

    ENCRYPTED = "encrypted"
    PLAIN = "plain"  # which is nobody's concern
    COUNTED = "counted"  # in plaintext between pods
    DROPPED = "dropped"


def encrypts(mode: Mode, *, device: bool = True, ready: bool = True) -> Change:
    """The settings, who is who, and whether there is a WireGuard device that knows the peer."""

    def change(kernel: Kernel) -> None:
        features = sum(kernel.abi.constants[f"FEATURE_{name}"] for name in FEATURES[mode].split())
        kernel.config(
            features=features,
            wireguard_ifindex=WIREGUARD if device else 0,
            ipv4=kernel.address("node"),
            ipv6=kernel.address("node"),
        )
        flag = "READY" if ready else ""
        kernel.encryption(CLUSTER, OTHER_PEERS, flags="PEER_PODS")
        kernel.encryption(OWN, flags="OWN_PODS")
        kernel.encryption(PEERS, flags=f"PEER_PODS {flag}")
        kernel.encryption(("node", *HOST), ("uplink", *HOST), flags="OWN_NODE")
        kernel.encryption(("other-node", *HOST), flags=f"PEER_NODE {flag}")

    return change


@dataclass(frozen=True)
class Row:
    """`fates`: by mode; where a mode is not given, that of ON."""

    title: str
    packet: Packet
    fates: Mapping[Mode, Fate]
    mark: str = ""
    via: int = 0  # by which device it came to the node; 0: it is the node's own
    before: tuple[Change, ...] = ()

    def fate(self, mode: Mode) -> Fate:
        if mode is Mode.OFF:
            return self.fates.get(mode, Fate.PLAIN)
        return self.fates.get(mode, self.fates[Mode.ON])

    def run(self, kernel: Kernel, mode: Mode, program: str, summary: str = "") -> None:
        for change in self.before:
            change(kernel)
        mark = kernel.abi.constants[f"MARK_{self.mark}"] if self.mark else 0
        outcome = kernel.send("eth", self.packet, program, self.via, mark=mark)
        check(
            self.fate(mode), outcome.action, outcome.drops, outcome.tallies, f"{mode} {summary} {self}\ngave {outcome}"
        )


def check(
    fate: Fate, action: int, drops: Mapping[str, int], tallies: Mapping[str, int], summary: str, passed: bool = False
) -> None:
    """`passed`: the program counts what it leaves alone, too."""
    if fate is Fate.DROPPED:
        assert (action, drops, tallies) == (Action.SHOT, {"DROP_UNENCRYPTED": 1}, {}), summary
    elif fate is Fate.ENCRYPTED:
        assert (action, drops, tallies) == (Action.REDIRECT, {"DROP_NONE": 1}, {}), summary
    else:
        counted = {"TALLY_PLAINTEXT": 1} if fate is Fate.COUNTED else {}
        assert (action, drops, tallies) == (Action.OK, {"DROP_NONE": 1} if passed else {}, counted), summary


UNKNOWN = do("empty", "encryption")
"""As before anything is known of nodes."""

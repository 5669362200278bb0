"""How large packets of pods may be, so that they fit between nodes whole. Pure."""

from __future__ import annotations

from collections.abc import Iterable

USUAL = 1500
LEAST = 1280
"""What IPv6 needs (RFC 8200, section 5): on a link with less it is off. Where nodes' links have less, they fragment."""

VXLAN = {True: 50, False: 70}
"""What VXLAN adds, by whether nodes speak IPv4 (RFC 7348: inner Ethernet 14, VXLAN 8, UDP 8, and the IP header)."""
WIREGUARD = {True: 60, False: 80}
"""What WireGuard adds: 32 of its own, UDP 8, and the IP header."""


def overhead(mode: str, over_v4: bool, encrypted: bool = False) -> int:
    """Bytes added to a pod's packet on its way to another node, from its IP header on. `mode`: native | vxlan | off.
    What is encrypted goes in WireGuard instead of VXLAN, not in both."""
    return max(VXLAN[over_v4] if mode == "vxlan" else 0, WIREGUARD[over_v4] if encrypted else 0)


def between(devices: Iterable[int], added: int) -> int:
    """`devices`: MTUs of those that lead to other nodes."""
    return max(min(devices, default=USUAL) - added, LEAST)


def of_pods(setting: int, devices: Iterable[int], added: int) -> int:
    """`setting` 0: what fits."""
    return setting or between(devices, added)

"""Packets that somebody forges for a pod, and who hears them."""

from __future__ import annotations

import json
import socket
import struct
from collections.abc import Iterator
from contextlib import contextmanager

from encrypted_cluster import status
from kube_cluster import KubeCluster, KubePod
from patience import SLOWER

from agent.config import build
from agent.datapath.devices import TUNNEL
from agent.routing.tunnel import VNI

TUNNEL_PORT = build({"manifests": "m"}).tunnel_port
SILENT_S = 0.5 * SLOWER
WORDS = b"forged"


def checksum(data: bytes) -> int:
    total: int = sum(struct.unpack(f"!{len(data) // 2}H", data))
    while total >> 16:
        total = (total & 0xFFFF) + (total >> 16)
    return ~total & 0xFFFF


def datagram(source: str, destination: str, port: int, words: bytes = WORDS) -> bytes:
    """An IP packet."""
    body = struct.pack("!HHHH", 5000, port, 8 + len(words), 0) + words
    if ":" not in source:
        head = struct.pack("!BBHHHBBH", 0x45, 0, 20 + len(body), 1, 0, 64, socket.IPPROTO_UDP, 0)
        head += socket.inet_aton(source) + socket.inet_aton(destination)
        return head[:10] + struct.pack("!H", checksum(head)) + head[12:] + body
    ends = socket.inet_pton(socket.AF_INET6, source) + socket.inet_pton(socket.AF_INET6, destination)
    pseudo = ends + struct.pack("!II", len(body), socket.IPPROTO_UDP)
    body = body[:6] + struct.pack("!H", checksum(pseudo + body)) + body[8:]
    return struct.pack("!IHBB", 6 << 28, len(body), socket.IPPROTO_UDP, 64) + ends + body


def tunnelled(cluster: KubeCluster, node: str, packet: bytes) -> bytes:
    """The packet as another node would send it to this one in VXLAN (RFC 7348)."""
    (link,) = json.loads(cluster.nodes[node].run("ip", "-j", "link", "show", TUNNEL).stdout)
    mac = bytes.fromhex(link["address"].replace(":", ""))
    kind = 0x0800 if packet[0] >> 4 == 4 else 0x86DD
    return struct.pack("!II", 0x08 << 24, VNI << 8) + mac + b"\2" * 6 + struct.pack("!H", kind) + packet


@contextmanager
def hearing(pod: KubePod, family: str, port: int) -> Iterator[socket.socket]:
    kind = socket.AF_INET6 if family == "v6" else socket.AF_INET
    with pod.netns.call(socket.socket, kind, socket.SOCK_DGRAM) as heard:
        heard.bind((pod.ip(family), port))
        heard.settimeout(SILENT_S)
        yield heard


def senders(heard: socket.socket) -> list[str]:
    """Of all that comes, until nothing does any more."""
    found: list[str] = []
    while True:
        try:
            found.append(heard.recvfrom(100)[1][0])
        except TimeoutError:
            return found


def by_device(cluster: KubeCluster, node: str, *packets: bytes) -> None:
    """Straight into its WireGuard device, past all that a node that is honest asks."""
    device = status(cluster.agents[node])["device"]
    with cluster.nodes[node].call(socket.socket, socket.AF_PACKET, socket.SOCK_DGRAM) as sending:
        for packet in packets:
            sending.sendto(packet, (device, 0x0800 if packet[0] >> 4 == 4 else 0x86DD))

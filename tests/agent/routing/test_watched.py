"""Which of the kernel's notifications are looked at, as it sends them."""

from __future__ import annotations

import json
import re
import socket
import struct

import rig

from agent.routing import tunnel
from agent.routing.watched import GROUPS, may_matter

RTM_NEWROUTE, RTM_DELROUTE = 24, 25
POD, INDEX = "gh0123456789ab", 77
HEADER = struct.Struct("=IHHII")
# Each after those before it. `matters`: any of its notifications.
STEPS = [
    (f"link add {POD} type veth peer name gh0123456789ac", False),
    (f"link set {POD} up", False),
    ("link set gh0123456789ac up", False),
    (f"route add 10.244.1.7/32 dev {POD} proto 71", False),
    (f"neigh add 10.244.1.7 lladdr 02:00:00:00:00:01 dev {POD} nud permanent", False),
    (f"neigh delete 10.244.1.7 dev {POD}", False),
    ("link add eth0 type veth peer name eth1", True),
    ("link set eth0 up", True),
    ("link set eth1 up", True),
    ("address add 192.0.2.1/24 dev eth0", True),
    ("neigh add 192.0.2.9 lladdr 02:00:00:00:00:01 dev eth0 nud reachable", False),
    ("route add 10.244.2.0/24 via 192.0.2.2 dev eth0 proto 71", True),
    ("route delete 10.244.2.0/24", True),
    ("route add 10.99.0.0/16 dev eth0", True),
    (f"link add {tunnel.NAME} index {INDEX} type vxlan id 5 dstport 0 nolearning", True),
    (f"link set {tunnel.NAME} up", True),
    (f"neigh add 10.244.2.0 lladdr 02:00:00:00:00:01 dev {tunnel.NAME} nud permanent", True),
    (f"neigh replace 10.244.2.0 lladdr 02:00:00:00:00:02 dev {tunnel.NAME} nud permanent", True),
    (f"neigh delete 10.244.2.0 dev {tunnel.NAME}", True),
    (f"link delete {tunnel.NAME}", True),
    ("address delete 192.0.2.1/24 dev eth0", True),
    (f"link delete {POD}", False),
]


def test_notifications(root: None) -> None:
    with (
        rig.Node(addresses=()) as node,
        node.call(socket.socket, socket.AF_NETLINK, socket.SOCK_RAW, socket.NETLINK_ROUTE) as heard,
    ):
        heard.bind((0, GROUPS))
        heard.setblocking(False)
        for command, matters in STEPS:
            node.ip(command)
            found = [may_matter(*message, INDEX) for message in messages(heard) if is_about(node, message, command)]
            assert found, command
            assert any(found) == matters, command


def is_about(node: rig.Node, message: tuple[int, bytes], command: str) -> bool:
    """Of what matters, only what the command did: the kernel tells of carriers when it finds the time."""
    kind, body = message
    if kind in (RTM_NEWROUTE, RTM_DELROUTE):
        return re.search(r"10\.[0-9.]+", command) is not None and "route" in command
    names = {link["ifname"] for link in json.loads(node.run("ip", "-j", "link").stdout)} & {*command.split()}
    indexes = {node.call(socket.if_nametoindex, name) for name in names}
    return not indexes or struct.unpack_from("=i", body, 4)[0] in indexes


def messages(heard: socket.socket) -> list[tuple[int, bytes]]:
    """All that have come by now."""
    found: list[tuple[int, bytes]] = []
    while True:
        try:
            data = heard.recv(1 << 16)
        except BlockingIOError:
            return found
        while data:
            length, kind, *_ = HEADER.unpack_from(data)
            found.append((kind, data[HEADER.size : length]))
            data = data[(length + 3) & ~3 :]


def test_of_other_kinds_nothing_is_known() -> None:
    assert not may_matter(9999, b"", INDEX)

"""The node's VXLAN device (RFC 7348): nothing is learned or flooded; what leads where is said entry by entry."""

from __future__ import annotations

import socket
import struct

import msgspec

from agent.datapath.devices import TUNNEL
from agent.endpoints import links
from agent.endpoints.netlink import NLM_F_CREATE, NLM_F_EXCL, Reply, Request, attribute, attributes, number, text
from policies.address import V4_MAPPED, is_v4

NAME = TUNNEL
KIND = "vxlan"
VNI = 0x6A7E
"""Network identifier, the same on every node."""

# linux/if_link.h
_ID, _LEARNING, _PORT, _LOCAL, _LOCAL6 = 1, 7, 15, 4, 17
_LINK = struct.Struct("=BxHiII")
_OFF = bytes([0])

SYSCTLS = {
    f"net/ipv4/conf/{NAME}/rp_filter": "0",  # answers to this node's own addresses come by other ways than they go
    f"net/ipv4/conf/{NAME}/accept_redirects": "0",
    f"net/ipv4/conf/{NAME}/send_redirects": "0",
    f"net/ipv6/conf/{NAME}/accept_ra": "0",
    f"net/ipv6/conf/{NAME}/accept_dad": "0",
    f"net/ipv6/conf/{NAME}/accept_redirects": "0",
}


class Tunnel(msgspec.Struct, frozen=True):
    """What cannot be changed of a device that is there. `local`: the source of what it sends, 16 bytes."""

    vni: int
    port: int
    local: bytes
    learning: bool = False


def add(tunnel: Tunnel, mac: bytes, mtu: int) -> Request:
    """Down, without a link-local address."""
    raw = tunnel.local[12:] if is_v4(tunnel.local) else tunnel.local
    data = number(_ID, tunnel.vni) + attribute(_PORT, struct.pack("!H", tunnel.port)) + attribute(_LEARNING, _OFF)
    data += attribute(_LOCAL if is_v4(tunnel.local) else _LOCAL6, raw)
    info = text(links.IFLA_INFO_KIND, KIND) + attribute(links.IFLA_INFO_DATA, data)
    body = _LINK.pack(socket.AF_UNSPEC, 0, 0, 0, 0) + text(links.IFLA_IFNAME, NAME)
    body += attribute(links.IFLA_ADDRESS, mac) + number(links.IFLA_MTU, mtu) + attribute(links.IFLA_LINKINFO, info)
    return Request(links.RTM_NEWLINK, NLM_F_CREATE | NLM_F_EXCL, body, f"add VXLAN device {NAME}")


def read(reply: Reply) -> Tunnel | None:
    """Of the answer to links.get_link; None for a link of another kind."""
    found = dict(attributes(reply.body[_LINK.size :]))
    info = dict(attributes(found.get(links.IFLA_LINKINFO, b"")))
    if info.get(links.IFLA_INFO_KIND, b"").rstrip(b"\0").decode() != KIND:
        return None
    data = dict(attributes(info[links.IFLA_INFO_DATA]))
    local = V4_MAPPED + data[_LOCAL] if _LOCAL in data else data.get(_LOCAL6, b"")
    return Tunnel(
        struct.unpack("=I", data[_ID])[0], struct.unpack("!H", data[_PORT])[0], local, data[_LEARNING] != _OFF
    )

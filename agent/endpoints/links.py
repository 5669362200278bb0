"""Requests about links, addresses, routes and neighbours, as bytes for netlink; and how the kernel's answers read.

Addresses are 16 bytes, IPv4 held IPv4-mapped (policies.address).
"""

from __future__ import annotations

import socket
import struct
import sys
from collections.abc import Mapping
from typing import NamedTuple

from agent.endpoints.netlink import (
    NLM_F_CREATE,
    NLM_F_DUMP,
    NLM_F_EXCL,
    NLM_F_REPLACE,
    Reply,
    Request,
    attribute,
    attributes,
    number,
    text,
)
from policies.address import V4_MAPPED, format_address, is_v4

# linux/rtnetlink.h, linux/if_link.h, linux/if_addr.h, linux/neighbour.h
RTM_NEWLINK, RTM_DELLINK, RTM_GETLINK, RTM_SETLINK = 16, 17, 18, 19
RTM_NEWADDR, RTM_DELADDR, RTM_GETADDR, RTM_NEWROUTE, RTM_GETROUTE, RTM_NEWNEIGH = 20, 21, 22, 24, 26, 28
IFLA_ADDRESS, IFLA_IFNAME, IFLA_MTU, IFLA_LINK, IFLA_MASTER, IFLA_OPERSTATE, IFLA_LINKINFO = 1, 3, 4, 5, 10, 16, 18
IFLA_IFALIAS, IFLA_STATS64, IFLA_AF_SPEC, IFLA_GROUP, IFLA_NET_NS_FD, IFLA_EXT_MASK = 20, 23, 26, 27, 28, 29
RTEXT_FILTER_SKIP_STATS = 8
IFLA_NUM_TX_QUEUES, IFLA_NUM_RX_QUEUES, IFLA_LINK_NETNSID = 31, 32, 37
IFLA_GSO_MAX_SIZE, IFLA_GRO_MAX_SIZE, IFLA_TSO_MAX_SIZE = 41, 58, 59
IFLA_GSO_IPV4_MAX_SIZE, IFLA_GRO_IPV4_MAX_SIZE = 63, 64
IFLA_INFO_KIND, IFLA_INFO_DATA, VETH_INFO_PEER = 1, 2, 1
IFLA_INET_CONF, IFLA_INET6_CONF, IFLA_INET6_ADDR_GEN_MODE = 1, 2, 8
_DISABLE_IPV6 = 26  # linux/ipv6.h DEVCONF_DISABLE_IPV6
ADDR_GEN_MODE_NONE = 1
IFF_UP = 0x1
OPERSTATE_UP = 6
RTM_GETNSID, NETNSA_NSID, NETNSA_FD = 90, 1, 3  # linux/net_namespace.h
IFA_ADDRESS, IFA_LOCAL, IFA_FLAGS = 1, 2, 8
IFA_F_NODAD, IFA_F_PERMANENT, IFA_F_TENTATIVE, IFA_F_NOPREFIXROUTE = 0x02, 0x80, 0x40, 0x200
RTA_DST, RTA_OIF, RTA_GATEWAY = 1, 4, 5
RT_TABLE_MAIN, RTN_UNICAST, RTN_LOCAL, RTNH_F_ONLINK = 254, 1, 2, 4
RT_SCOPE_UNIVERSE, RT_SCOPE_LINK = 0, 253
RTPROT_GATEHOUSE = 71  # our own mark on routes: `ip route show proto 71`
NDA_DST, NDA_LLADDR, NUD_PERMANENT = 1, 2, 0x80

# linux/ip.h IPV4_DEVCONF_*: of the host side of a pod's veth
_HOST_SIDE_CONF = {
    1: 1,  # forwarding
    4: 0,  # accept_redirects
    6: 0,  # send_redirects
    8: 0,  # rp_filter: the datapath checks sources, and redirected replies come by other interfaces
    9: 0,  # accept_source_route
    23: 1,  # accept_local: what the node answers to a proxy that asks in a pod's name. The datapath checks sources.
}

# Of the pod's side, where the pod's namespace is somebody else's to configure
_POD_SIDE_CONF = {
    4: 0,  # accept_redirects
    8: 0,  # rp_filter
}

_ALIAS_BYTES = 255  # IFALIASZ, less the NUL
_LINK = struct.Struct("=BxHiII")
_ADDRESS = struct.Struct("=BBBBI")
_ROUTE = struct.Struct("=BBBBBBBBI")
_NEIGHBOUR = struct.Struct("=BxxxiHBB")


class Link(NamedTuple):
    ifindex: int
    name: str
    mac: bytes
    peer: int  # interface index of the other side, in its own namespace; 0: none
    up: bool  # administratively
    operational: bool  # carrier, and the kernel sends by it
    kind: str = ""  # "veth", "vxlan" …
    mtu: int = 0
    alias: str = ""
    master: int = 0  # interface index of the bridge or bond it is part of; 0: none
    peer_netns: int = -1  # the kernel's id of the namespace `peer` is in, as seen from the link's; -1: the same


class Limits(NamedTuple):
    """Bytes that a packet which stands for several may have on a link. Read: None where the kernel knows no such limit;
    to be set: None where it is to stay. `most`: that the device can take, never set."""

    gso: int | None = None  # sent; of IPv4 as well where there is no own limit
    gro: int | None = None  # put together of what is received
    gso_ipv4: int | None = None  # Linux 6.3
    gro_ipv4: int | None = None
    most: int | None = None  # Linux 5.19


class Bound(NamedTuple):
    """An address on an interface."""

    ifindex: int
    address: bytes
    tentative: bool
    is_global: bool


def _ifinfo(index: int = 0, flags: int = 0, change: int = 0) -> bytes:
    return _LINK.pack(socket.AF_UNSPEC, 0, index, flags, change)


def add_veth(name: str, peer_name: str, peer_netns: int, mtu: int, mac: bytes = b"", peer_mac: bytes = b"") -> Request:
    """A veth pair, both ends down; the peer is made in the namespace behind the descriptor `peer_netns`.

    One queue each: by default the kernel makes one for each possible CPU, which veth has no use for. MACs that are not
    given are random.
    """
    common = number(IFLA_NUM_TX_QUEUES, 1) + number(IFLA_NUM_RX_QUEUES, 1) + number(IFLA_MTU, mtu)
    own, its = (attribute(IFLA_ADDRESS, one) if one else b"" for one in (mac, peer_mac))
    peer = _ifinfo() + text(IFLA_IFNAME, peer_name) + common + its + number(IFLA_NET_NS_FD, peer_netns)
    info = text(IFLA_INFO_KIND, "veth") + attribute(IFLA_INFO_DATA, attribute(VETH_INFO_PEER, peer))
    body = _ifinfo() + text(IFLA_IFNAME, name) + common + own + attribute(IFLA_LINKINFO, info)
    return Request(RTM_NEWLINK, NLM_F_CREATE | NLM_F_EXCL, body, f"add veth {name}")


def add_wireguard(name: str) -> Request:
    """Of the kernel's; down."""
    body = _ifinfo() + text(IFLA_IFNAME, name) + attribute(IFLA_LINKINFO, text(IFLA_INFO_KIND, "wireguard"))
    return Request(RTM_NEWLINK, NLM_F_CREATE | NLM_F_EXCL, body, f"add WireGuard device {name}")


def configure_host_side(name: str, alias: str = "") -> Request:
    """No link-local address, no reverse-path filter, no redirects. `alias`: as name_host_side has it."""
    body = _ifinfo() + text(IFLA_IFNAME, name) + _HOST_SIDE_SPEC
    return Request(RTM_SETLINK, 0, body + (_aliased(alias) if alias else b""), f"configure {name}")


def configure_adopted(index: int) -> Request:
    """The same of a host side that somebody else made, and gave a link-local address."""
    body = _ifinfo(index) + attribute(IFLA_AF_SPEC, attribute(socket.AF_INET, _conf(_HOST_SIDE_CONF)))
    return Request(RTM_SETLINK, 0, body, f"configure link {index}")


def _conf(values: Mapping[int, int]) -> bytes:
    return attribute(IFLA_INET_CONF, b"".join(number(key, value) for key, value in values.items()))


def name_host_side(index: int, mac: bytes, alias: str) -> Request:
    """The alias tells people which pod is behind the link (`ip link` shows it)."""
    body = _ifinfo(index) + attribute(IFLA_ADDRESS, mac) + _aliased(alias)
    return Request(RTM_SETLINK, 0, body, f"set MAC and alias of link {index}")


def _aliased(alias: str) -> bytes:
    return attribute(IFLA_IFALIAS, alias.encode()[:_ALIAS_BYTES])


def set_mac(index: int, mac: bytes) -> Request:
    return Request(RTM_SETLINK, 0, _ifinfo(index) + attribute(IFLA_ADDRESS, mac), f"set MAC of link {index}")


def _no_link_local() -> bytes:
    return attribute(IFLA_INET6_ADDR_GEN_MODE, bytes([ADDR_GEN_MODE_NONE]))


def _spec(values: Mapping[int, int]) -> bytes:
    return attribute(
        IFLA_AF_SPEC, attribute(socket.AF_INET, _conf(values)) + attribute(socket.AF_INET6, _no_link_local())
    )


_HOST_SIDE_SPEC, _POD_SIDE_SPEC = _spec(_HOST_SIDE_CONF), _spec(_POD_SIDE_CONF)
_NO_STATISTICS = number(IFLA_EXT_MASK, RTEXT_FILTER_SKIP_STATS)  # of IPv6: adding those up takes longer than the rest


def set_up(index: int) -> Request:
    return Request(RTM_SETLINK, 0, _ifinfo(index, IFF_UP, IFF_UP), f"set link {index} up")


def without_link_local(index: int) -> Request:
    spec = attribute(IFLA_AF_SPEC, attribute(socket.AF_INET6, _no_link_local()))
    return Request(RTM_SETLINK, 0, _ifinfo(index) + spec, f"give link {index} no link-local address")


def set_up_without_link_local(index: int) -> Request:
    spec = attribute(IFLA_AF_SPEC, attribute(socket.AF_INET6, _no_link_local()))
    return Request(RTM_SETLINK, 0, _ifinfo(index, IFF_UP, IFF_UP) + spec, f"set link {index} up")


def set_up_pod_side(index: int) -> Request:
    """The same, without a reverse-path filter or redirects."""
    return Request(RTM_SETLINK, 0, _ifinfo(index, IFF_UP, IFF_UP) + _POD_SIDE_SPEC, f"set link {index} up")


def set_up_named(name: str) -> Request:
    return Request(RTM_SETLINK, 0, _ifinfo(0, IFF_UP, IFF_UP) + text(IFLA_IFNAME, name), f"set {name} up")


def get_link(name: str) -> Request:
    return Request(RTM_GETLINK, 0, _ifinfo() + text(IFLA_IFNAME, name) + _NO_STATISTICS, f"look up link {name}")


def get_link_by_index(index: int) -> Request:
    return Request(RTM_GETLINK, 0, _ifinfo(index) + _NO_STATISTICS, f"look up link {index}")


def list_links() -> Request:
    return Request(RTM_GETLINK, NLM_F_DUMP, _ifinfo(), "list links")


def get_netns_id(netns: int) -> Request:
    """By which id the socket's namespace knows the one behind a descriptor."""
    return Request(RTM_GETNSID, 0, bytes(4) + number(NETNSA_FD, netns), "look up the id of a network namespace")


def read_netns_id(reply: Reply) -> int:
    """-1: none."""
    found = dict(attributes(reply.body[4:]))
    return int(struct.unpack("=i", found[NETNSA_NSID])[0])


def set_group(index: int, group: int) -> Request:
    return Request(RTM_SETLINK, 0, _ifinfo(index) + number(IFLA_GROUP, group), f"put link {index} into group {group}")


def delete_link(name: str) -> Request:
    return Request(RTM_DELLINK, 0, _ifinfo() + text(IFLA_IFNAME, name), f"delete link {name}")


def set_mtu(index: int, mtu: int) -> Request:
    return Request(RTM_SETLINK, 0, _ifinfo(index) + number(IFLA_MTU, mtu), f"set MTU of link {index} to {mtu}")


def set_limits(index: int, limits: Limits) -> Request:
    """The general ones first: the kernel sets those of IPv4 along with them, where they are small."""
    kinds = (IFLA_GSO_MAX_SIZE, IFLA_GRO_MAX_SIZE, IFLA_GSO_IPV4_MAX_SIZE, IFLA_GRO_IPV4_MAX_SIZE)
    values = [(kind, value) for kind, value in zip(kinds, limits[:4], strict=True) if value is not None]
    body = _ifinfo(index) + b"".join(number(kind, value) for kind, value in values)
    sizes = ", ".join(str(value) for _, value in values)
    return Request(RTM_SETLINK, 0, body, f"limit packets on link {index} to {sizes} bytes")


def delete_group(group: int) -> Request:
    """Delete every link of a device group at once: one wait of the kernel's instead of one a link."""
    return Request(RTM_DELLINK, 0, _ifinfo() + number(IFLA_GROUP, group), f"delete the links of group {group}")


def add_address(index: int, address: bytes) -> Request:
    """A /32 or /128 that is usable at once (no duplicate address detection)."""
    family, raw = _split(address)
    flags = IFA_F_PERMANENT | IFA_F_NODAD | IFA_F_NOPREFIXROUTE
    body = _ADDRESS.pack(family, len(raw) * 8, IFA_F_PERMANENT | IFA_F_NODAD, RT_SCOPE_UNIVERSE, index)
    body += attribute(IFA_LOCAL, raw) + attribute(IFA_ADDRESS, raw) + number(IFA_FLAGS, flags)
    return Request(RTM_NEWADDR, NLM_F_CREATE | NLM_F_REPLACE, body, f"add address {format_address(address)}")


def remove_address(index: int, address: bytes) -> Request:
    """Undoes add_address."""
    family, raw = _split(address)
    body = _ADDRESS.pack(family, len(raw) * 8, 0, RT_SCOPE_UNIVERSE, index)
    body += attribute(IFA_LOCAL, raw) + attribute(IFA_ADDRESS, raw)
    return Request(RTM_DELADDR, 0, body, f"remove address {format_address(address)}")


def list_addresses() -> Request:
    """Every address of the namespace: only where there are few."""
    return Request(RTM_GETADDR, NLM_F_DUMP, _ADDRESS.pack(socket.AF_UNSPEC, 0, 0, 0, 0), "list addresses")


def route_to_host(index: int, address: bytes) -> Request:
    """The one address is reached by this link, without a gateway."""
    family, raw = _split(address)
    scope = RT_SCOPE_LINK if family == socket.AF_INET else RT_SCOPE_UNIVERSE
    body = _ROUTE.pack(family, len(raw) * 8, 0, 0, RT_TABLE_MAIN, RTPROT_GATEHOUSE, scope, RTN_UNICAST, 0)
    body += attribute(RTA_DST, raw) + number(RTA_OIF, index)
    return Request(RTM_NEWROUTE, NLM_F_CREATE | NLM_F_REPLACE, body, f"add route to {format_address(address)}")


def default_route(index: int, gateway: bytes) -> Request:
    """Everything else by this link; the gateway need not be on it (it is a neighbour entry and nothing more)."""
    family, raw = _split(gateway)
    body = _ROUTE.pack(family, 0, 0, 0, RT_TABLE_MAIN, RTPROT_GATEHOUSE, RT_SCOPE_UNIVERSE, RTN_UNICAST, RTNH_F_ONLINK)
    body += attribute(RTA_GATEWAY, raw) + number(RTA_OIF, index)
    return Request(RTM_NEWROUTE, NLM_F_CREATE | NLM_F_REPLACE, body, f"add default route via {format_address(gateway)}")


def get_route(address: bytes) -> Request:
    """Which route a packet to the address would take."""
    family, raw = _split(address)
    body = _ROUTE.pack(family, len(raw) * 8, 0, 0, 0, 0, 0, 0, 0) + attribute(RTA_DST, raw)
    return Request(RTM_GETROUTE, 0, body, f"look up the route to {format_address(address)}")


def add_neighbour(index: int, address: bytes, mac: bytes) -> Request:
    family, raw = _split(address)
    body = _NEIGHBOUR.pack(family, index, NUD_PERMANENT, 0, 0) + attribute(NDA_DST, raw) + attribute(NDA_LLADDR, mac)
    return Request(RTM_NEWNEIGH, NLM_F_CREATE | NLM_F_REPLACE, body, f"add neighbour {format_address(address)}")


def read_link(reply: Reply) -> Link:
    _, _, index, flags, _ = _LINK.unpack_from(reply.body)
    found = dict(attributes(reply.body[_LINK.size :]))
    return Link(
        index,
        _text(found[IFLA_IFNAME]),
        found.get(IFLA_ADDRESS, b""),
        _number(found, IFLA_LINK),
        bool(flags & IFF_UP),
        found.get(IFLA_OPERSTATE) == bytes([OPERSTATE_UP]),
        _text(dict(attributes(found.get(IFLA_LINKINFO, b""))).get(IFLA_INFO_KIND, b"")),
        _number(found, IFLA_MTU),
        _text(found.get(IFLA_IFALIAS, b"")),
        _number(found, IFLA_MASTER),
        struct.unpack("=i", found[IFLA_LINK_NETNSID])[0] if IFLA_LINK_NETNSID in found else -1,
    )


def read_limits(reply: Reply) -> Limits:
    found = dict(attributes(reply.body[_LINK.size :]))
    kinds = (
        IFLA_GSO_MAX_SIZE, IFLA_GRO_MAX_SIZE, IFLA_GSO_IPV4_MAX_SIZE, IFLA_GRO_IPV4_MAX_SIZE, IFLA_TSO_MAX_SIZE,
    )  # fmt: skip
    return Limits(*(_number(found, kind) if kind in found else None for kind in kinds))


def received(reply: Reply) -> int:
    """How many packets have come by a link."""
    packets = dict(attributes(reply.body[_LINK.size :]))[IFLA_STATS64][:8]  # linux/if_link.h rtnl_link_stats64
    return int.from_bytes(packets, sys.byteorder)


def read_ends(reply: Reply) -> tuple[int, int]:
    """Interface indexes of a veth's side and of its other side: at a fraction of what reading all of it takes."""
    peer = _one(reply.body, IFLA_LINK)
    return _LINK.unpack_from(reply.body)[2], int.from_bytes(peer, sys.byteorder)


def is_operational(reply: Reply) -> bool:
    """The same as Link.operational, as cheaply."""
    return _one(reply.body, IFLA_OPERSTATE) == bytes([OPERSTATE_UP])


def has_ipv6(reply: Reply) -> bool:
    """Whether IPv6 is enabled on the link (sysctl disable_ipv6)."""
    spec = dict(attributes(_one(reply.body, IFLA_AF_SPEC))).get(socket.AF_INET6, b"")
    values = dict(attributes(spec)).get(IFLA_INET6_CONF, b"")
    return len(values) > 4 * _DISABLE_IPV6 and not struct.unpack_from("=i", values, 4 * _DISABLE_IPV6)[0]


def _one(body: bytes, wanted: int) -> bytes:
    """The first attribute of a kind; empty where there is none."""
    return next((value for kind, value in attributes(body[_LINK.size :]) if kind == wanted), b"")


def link_name(body: bytes) -> str:
    """Of the link that a message is about, at a fraction of what reading all of it takes; empty where none is named."""
    return _text(_one(body, IFLA_IFNAME))


def _text(raw: bytes) -> str:
    return raw.rstrip(b"\0").decode(errors="replace")


def _number(found: Mapping[int, bytes], kind: int) -> int:
    return int(struct.unpack("=I", found[kind])[0]) if kind in found else 0


def is_local_route(reply: Reply) -> bool:
    """Whether packets by this route are delivered here."""
    return bool(_ROUTE.unpack_from(reply.body)[7] == RTN_LOCAL)


def read_address(reply: Reply) -> Bound:
    family, _, flags, scope, index = _ADDRESS.unpack_from(reply.body)
    found = dict(attributes(reply.body[_ADDRESS.size :]))
    raw = found.get(IFA_LOCAL, found.get(IFA_ADDRESS, b""))
    address = V4_MAPPED + raw if family == socket.AF_INET else raw
    return Bound(index, address, bool(flags & IFA_F_TENTATIVE), scope == RT_SCOPE_UNIVERSE)


def _split(address: bytes) -> tuple[int, bytes]:
    return (socket.AF_INET, address[12:]) if is_v4(address) else (socket.AF_INET6, address)

"""The node's network devices: which of them traffic from outside comes by, and what the datapath must know of them."""

from __future__ import annotations

import socket
import struct
from collections.abc import Container, Iterable, Sequence

import msgspec

from agent.datapath import abi, tc
from agent.endpoints import links, routes
from agent.endpoints.netlink import NLM_F_DUMP, Reply, Request, RouteSocket, attributes
from agent.endpoints.wiring import HOST_SIDE
from policies.address import V4_MAPPED, is_v4

AUTO = "auto"
TUNNEL = "gatehouse_vxlan"
"""Name of the device by which packets come from other nodes, where they come in VXLAN."""
MTU_MAX = 0xFFFF
MAC_BYTES = 6

# linux/if.h, linux/if_arp.h, linux/if_link.h, linux/if_addr.h, linux/rtnetlink.h
_IFF_LOOPBACK = 0x8
_WITH_ETHERNET = (1, 772)  # ARPHRD_ETHER, ARPHRD_LOOPBACK
_IFLA_LINKINFO, _IFLA_INFO_KIND = 18, 1
_IFLA_XDP, _IFLA_XDP_ATTACHED, _IFLA_XDP_PROG_ID = 43, 2, 4
_IFA_F_DADFAILED, _IFA_F_DEPRECATED, _IFA_F_SECONDARY = 0x08, 0x20, 0x01  # of IPv6 the last one is: temporary
_RTA_MULTIPATH = 9
_LINK = struct.Struct("=BxHiII")
_ADDRESS = struct.Struct("=BBBBI")
_ROUTE = struct.Struct("=BBBBBBBBI")
_TCMSG = struct.Struct("=4xi")  # as far as the interface
_NEXT_HOP = struct.Struct("=HBBi")
_NUMBER = struct.Struct("=I")


class Device(msgspec.Struct, frozen=True):
    """A network device. `xdp`: 0 none, 1 in the driver, 2 generic, 3 in hardware, 4 several (XDP_ATTACHED_*)."""

    ifindex: int
    name: str
    mac: bytes = b""
    mtu: int = 1500
    loopback: bool = False
    ethernet: bool = True  # packets have an Ethernet header, as the programs expect
    addresses: tuple[bytes, ...] = ()  # global ones that can be used, 16 bytes each, the preferred first
    default_route: bool = False
    xdp: int = 0
    xdp_program: int = 0
    veth: bool = False  # one end of a pair

    @property
    def of_pod(self) -> bool:
        return bool(HOST_SIDE.fullmatch(self.name))


# ---- which ones (pure) ---------------------------------------------------------------------------------------


def choose(
    setting: Sequence[str], found: Sequence[Device], node_addresses: Iterable[bytes]
) -> tuple[list[Device], list[str]]:
    """The devices a setting means, and one sentence for each thing that is missing.

    `auto`: Ethernet devices with a default route or an address of the node, but for pods' links. Wherever there are
    any, the VXLAN device is one of them: packets of services come to a backend here by it.
    """
    chosen, problems = _choose(setting, found, node_addresses)
    tunnels = [device for device in found if device.name == TUNNEL and device not in chosen]
    return [*chosen, *(tunnels if chosen else ())], problems


def _choose(
    setting: Sequence[str], found: Iterable[Device], node_addresses: Iterable[bytes]
) -> tuple[list[Device], list[str]]:
    candidates = [device for device in found if not device.of_pod]
    if AUTO not in setting:
        by_name = {device.name: device for device in candidates}
        chosen = [by_name[name] for name in setting if name in by_name and by_name[name].ethernet]
        missing = [name for name in setting if name not in by_name]
        other = [name for name in setting if name in by_name and not by_name[name].ethernet]
        return chosen, [
            *(f"device {name} is not there: it is used as soon as it appears" for name in missing),
            *(f"device {name} carries packets without an Ethernet header, which is not supported" for name in other),
        ]
    own = frozenset(node_addresses)
    usable = [device for device in candidates if device.ethernet and not device.loopback]
    chosen = [device for device in usable if device.default_route or not own.isdisjoint(device.addresses)]
    if chosen:
        return chosen, []
    return [], [
        "no Ethernet device has a default route or an address of this node: give it one, or name devices (--devices)"
    ]


def value(device: Device, node_addresses: Iterable[bytes]) -> bytes:
    """struct device. Of each family the node's address on it goes before others."""
    own = frozenset(node_addresses)
    ordered = sorted(device.addresses, key=lambda address: address not in own)
    first = {is_v4(address): address for address in reversed(ordered)}
    return (
        abi.load()
        .records["device"]
        .pack(
            ipv4=first.get(True, bytes(16)),
            ipv6=first.get(False, bytes(16)),
            mac=device.mac if len(device.mac) == MAC_BYTES else bytes(MAC_BYTES),
            mtu=min(device.mtu, MTU_MAX),
        )
    )


# ---- what there is -------------------------------------------------------------------------------------------


def read(route: RouteSocket) -> list[Device]:
    """Every network device of the socket's namespace."""
    bound = _addresses(route.request(links.list_addresses()))
    defaults = {index for family in (socket.AF_INET, socket.AF_INET6) for index in _default_routes(route, family)}
    body = _LINK.pack(socket.AF_UNSPEC, 0, 0, 0, 0)
    replies = route.request(Request(links.RTM_GETLINK, NLM_F_DUMP, body, "list links"))
    return [_device(reply, bound, defaults) for reply in replies]


def _device(reply: Reply, bound: dict[int, list[bytes]], defaults: set[int]) -> Device:
    _, kind, ifindex, flags, _ = _LINK.unpack_from(reply.body)
    found = dict(attributes(reply.body[_LINK.size :]))
    xdp = dict(attributes(found.get(_IFLA_XDP, b"")))
    return Device(
        ifindex,
        _text(found[links.IFLA_IFNAME]),
        found.get(links.IFLA_ADDRESS, b""),
        _NUMBER.unpack(found[links.IFLA_MTU])[0],
        bool(flags & _IFF_LOOPBACK),
        kind in _WITH_ETHERNET,
        tuple(bound.get(ifindex, ())),
        ifindex in defaults,
        xdp.get(_IFLA_XDP_ATTACHED, b"\0")[0],
        _NUMBER.unpack(xdp.get(_IFLA_XDP_PROG_ID, bytes(4)))[0],
        _text(dict(attributes(found.get(_IFLA_LINKINFO, b""))).get(_IFLA_INFO_KIND, b"")) == "veth",
    )


def _addresses(replies: Iterable[Reply]) -> dict[int, list[bytes]]:
    """Usable global addresses by ifindex: temporary and secondary ones after the others, deprecated ones last."""
    ranked: dict[int, list[tuple[int, bytes]]] = {}
    for reply in replies:
        family, _, flags, scope, ifindex = _ADDRESS.unpack_from(reply.body)
        found = dict(attributes(reply.body[_ADDRESS.size :]))
        if links.IFA_FLAGS in found:
            flags = _NUMBER.unpack(found[links.IFA_FLAGS])[0]
        raw = found.get(links.IFA_LOCAL, found.get(links.IFA_ADDRESS, b""))
        if scope != links.RT_SCOPE_UNIVERSE or flags & (links.IFA_F_TENTATIVE | _IFA_F_DADFAILED):
            continue
        rank = 2 if flags & _IFA_F_DEPRECATED else int(bool(flags & _IFA_F_SECONDARY))
        ranked.setdefault(ifindex, []).append((rank, V4_MAPPED + raw if family == socket.AF_INET else raw))
    return {
        ifindex: [address for _, address in sorted(some, key=lambda one: one[0])] for ifindex, some in ranked.items()
    }


def _default_routes(route: RouteSocket, family: int) -> set[int]:
    """Devices by which default routes of the main table go."""
    body = _ROUTE.pack(family, 0, 0, 0, 0, 0, 0, 0, 0)
    found: set[int] = set()
    for reply in route.request(Request(links.RTM_GETROUTE, NLM_F_DUMP, body, "list routes")):
        if _is_default(reply.body):
            parts = dict(attributes(reply.body[_ROUTE.size :]))
            if links.RTA_OIF in parts:
                found.add(_NUMBER.unpack(parts[links.RTA_OIF])[0])
            found |= _next_hops(parts.get(_RTA_MULTIPATH, b""))
    return found


def _next_hops(data: bytes) -> set[int]:
    """Interfaces of the struct rtnexthops of a route with several."""
    found = set()
    while len(data) >= _NEXT_HOP.size:
        length, _, _, ifindex = _NEXT_HOP.unpack_from(data)
        found.add(ifindex)
        data = data[max((length + 3) & ~3, _NEXT_HOP.size) :]
    return found


def _is_default(body: bytes) -> bool:
    _, destination_bits, _, _, table, _, _, kind, _ = _ROUTE.unpack_from(body)
    return bool(destination_bits == 0 and table == links.RT_TABLE_MAIN and kind == links.RTN_UNICAST)


# ---- what changes --------------------------------------------------------------------------------------------


def may_matter(kind: int, body: bytes, used: Container[int]) -> bool:
    """Whether a notification may change what `choose` or `value` say, or that something was taken off a device that is
    `used` (ifindexes). Pods' links come and go without."""
    if kind in (tc.RTM_DELQDISC, tc.RTM_DELTFILTER):
        return _TCMSG.unpack_from(body)[0] in used
    if kind in (links.RTM_NEWLINK, links.RTM_DELLINK):
        return not HOST_SIDE.fullmatch(links.link_name(body))
    if kind in (links.RTM_NEWROUTE, routes.RTM_DELROUTE):
        return _is_default(body)
    return kind in (links.RTM_NEWADDR, links.RTM_DELADDR)


def _text(raw: bytes) -> str:
    return raw.rstrip(b"\0").decode(errors="replace")

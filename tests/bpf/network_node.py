"""A node with two devices, for tests of its devices' programs: addresses, routes, neighbours, and what maps say of it.

`eth` leads to clients, to other nodes and to their pods; `uplink`, of a smaller MTU, to "nobody" and "beyond".
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from frames import ADDRESSES, Family, host_mac
from kernel import Kernel, load_kernel
from map_content import INTERFACES
from pyroute2 import IPRoute

from agent.datapath.programs import NETWORK_PROGRAMS

PORT = 61000
"""The one source port the node gives out, unless a test says otherwise."""

SMALL_MTU = 1280
"""Of `uplink`."""

OTHERS_MAC = "02:00:00:00:09:09"
_DEVICES = {"eth": ("node", 1500), "uplink": ("uplink", SMALL_MTU)}
"""The name of its address, and its MTU."""

_ROUTES = (
    ("eth", "192.0.2.254", "10.0.1.0/24"),
    ("eth", "192.0.2.254", "198.51.100.0/24"),
    ("eth", "2001:db8:0:1::254", "fd00:1::/64"),
    ("eth", "2001:db8:0:1::254", "2001:db8:7::/64"),
    ("uplink", "203.0.113.253", "10.0.9.0/24"),
    ("uplink", "2001:db8:0:2::253", "fd00:9::/64"),
    ("uplink", "203.0.113.254", "203.0.113.9/32"),
    ("uplink", "2001:db8:0:2::254", "2001:db8:dead::/64"),
)
_UNKNOWN = ("203.0.113.254", "2001:db8:0:2::254")
"""Gateways whose link addresses are not known."""


@contextmanager
def load_node(instance: str) -> Iterator[Kernel]:
    """The programs of network.c, in a namespace that forwards."""
    with load_kernel(instance, units={"network.c": NETWORK_PROGRAMS}) as kernel:
        kernel.network.run(_set_up)
        yield kernel


def _set_up() -> None:
    for name in ("ipv4/ip_forward", "ipv6/conf/all/forwarding"):
        Path("/proc/sys/net", name).write_text("1")
    with IPRoute() as ip:
        for device, (at, mtu) in _DEVICES.items():
            index = INTERFACES[device]
            ip.link("set", index=index, address=host_mac(device).hex(":"), mtu=mtu, state="up")
            for address, bits in zip(ADDRESSES[at], (24, 64), strict=True):
                ip.addr("add", index=index, address=address, prefixlen=bits)
        for device, gateway, block in _ROUTES:
            if gateway not in _UNKNOWN:
                ip.neigh("replace", ifindex=INTERFACES[device], dst=gateway, lladdr=OTHERS_MAC, state="permanent")
            ip.route("add", dst=block, gateway=gateway, oif=INTERFACES[device], flags=["onlink"])


def reset(kernel: Kernel, family: Family) -> None:
    """Pods a, b and c are here, the others elsewhere; both devices are the datapath's."""
    kernel.reset(family)
    for name in ("other-node", "far", "far-too", "beyond", "unreachable"):
        kernel.identity(name)
    kernel.device("eth")
    kernel.device("uplink", "uplink")
    kernel.config(port_min=PORT, port_max=PORT)

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
_FAMILY = {4: 2, 6: 10}
_GATEWAYS = {4: "192.0.2.254", 6: "2001:db8:0:1::254"}
_UPLINK_GATEWAYS = {4: "203.0.113.254", 6: "2001:db8:0:2::254"}
_ROUTES = {
    "eth": {4: ("10.0.1.0/24", "198.51.100.0/24"), 6: ("fd00:1::/64", "2001:db8:7::/64")},
    "uplink": {4: ("203.0.113.9/32", "10.0.9.0/24"), 6: ("2001:db8:dead::/64", "fd00:9::/64")},
}


@contextmanager
def load_node(instance: str) -> Iterator[Kernel]:
    """The programs of network.c, in a namespace that forwards."""
    with load_kernel(instance, units={"network.c": NETWORK_PROGRAMS}) as kernel:
        kernel.network.run(_set_up)
        yield kernel


def _set_up() -> None:
    """Neighbours are known, but for the gateway of `uplink`."""
    for name in ("ipv4/ip_forward", "ipv6/conf/all/forwarding"):
        Path("/proc/sys/net", name).write_text("1")
    with IPRoute() as ip:
        for device, at in (("eth", "node"), ("uplink", "uplink")):
            index = INTERFACES[device]
            mtu = SMALL_MTU if device == "uplink" else 1500
            ip.link("set", index=index, address=host_mac(device).hex(":"), mtu=mtu, state="up")
            for family, bits in ((4, 24), (6, 64)):
                address = ADDRESSES[at][0 if family == 4 else 1]
                ip.addr("add", index=index, address=address, prefixlen=bits, family=_FAMILY[family])
                gateway = (_GATEWAYS if device == "eth" else _UPLINK_GATEWAYS)[family]
                if device == "eth":
                    ip.neigh("add", ifindex=index, dst=gateway, lladdr=OTHERS_MAC, state="permanent")
                for block in _ROUTES[device][family]:
                    ip.route("add", dst=block, gateway=gateway, oif=index, flags=["onlink"])


def reset(kernel: Kernel, family: Family) -> None:
    """Pods a, b and c are here, the others elsewhere; both devices are the datapath's."""
    kernel.reset(family)
    for name in ("other-node", "far", "far-too", "beyond", "unreachable"):
        kernel.identity(name)
    kernel.device("eth")
    kernel.device("uplink", "uplink")
    kernel.config(port_min=PORT, port_max=PORT)

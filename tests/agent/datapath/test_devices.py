"""The node's devices: which ones a setting means, what is known of them, which changes matter."""

from __future__ import annotations

import pytest
import rig

from agent.datapath import abi, devices
from agent.datapath.devices import Device
from agent.endpoints.netlink import RouteSocket
from policies.address import parse_address

A4, A6, B4 = map(parse_address, ("192.0.2.1", "2001:db8::1", "198.51.100.1"))
LO = Device(1, "lo", loopback=True, addresses=(A4, A6))
ETH0 = Device(2, "eth0", mac=bytes(range(6)), addresses=(B4, A4, A6), default_route=True)
ETH1 = Device(3, "eth1", addresses=(B4,))
ETH2 = Device(4, "eth2", default_route=True)
TUN = Device(6, "tun0", default_route=True, addresses=(A4, B4), ethernet=False)
POD = Device(5, "gh0123456789ab", default_route=True, addresses=(A4,))
ALL = (LO, ETH0, ETH1, ETH2, TUN, POD)

CHOICES = [
    (("eth1",), (A4,), ["eth1"], 0),
    (("eth1", "eth0"), (A4,), ["eth1", "eth0"], 0),
    (("eth1", "eth9"), (A4,), ["eth1"], 1),
    (("lo",), (A4,), ["lo"], 0),  # whoever names it means it
    (("gh0123456789ab",), (A4,), [], 1),  # never a pod's
    (("tun0", "eth1"), (A4,), ["eth1"], 1),
    (("auto",), (A4,), ["eth0", "eth2"], 0),
    (("auto",), (B4,), ["eth0", "eth1", "eth2"], 0),
    (("auto",), (), ["eth0", "eth2"], 0),
]


@pytest.mark.parametrize(("setting", "own", "names", "missing"), CHOICES)
def test_which_devices_a_setting_means(
    setting: tuple[str, ...], own: tuple[bytes, ...], names: list[str], missing: int
) -> None:
    chosen, sentences = devices.choose(setting, ALL, own)
    assert [d.name for d in chosen] == names
    assert len(sentences) == missing


@pytest.mark.parametrize(("setting", "names"), [(("auto",), ["eth0", "eth2"]), (("eth1",), ["eth1"]), (("eth9",), [])])
def test_the_tunnel_goes_with_the_devices(setting: tuple[str, ...], names: list[str]) -> None:
    """Whatever comes by it comes from outside, too; where nothing else is served, neither is that."""
    tunnel = Device(7, devices.TUNNEL)
    chosen, _ = devices.choose(setting, (*ALL, tunnel), (A4,))
    assert [d.name for d in chosen] == [*names, *([devices.TUNNEL] if names else [])]
    named, _ = devices.choose((devices.TUNNEL, "eth1"), (*ALL, tunnel), (A4,))
    assert [d.name for d in named] == [devices.TUNNEL, "eth1"]


def test_auto_that_finds_nothing_says_so() -> None:
    chosen, (sentence,) = devices.choose(("auto",), (LO, POD, ETH1, TUN), (A4,))
    assert chosen == []
    assert "--devices" in sentence


VALUES = [
    (ETH0, (), B4, A6),
    (ETH0, (A4,), A4, A6),
    (ETH1, (A4,), B4, bytes(16)),
    (ETH2, (A4,), bytes(16), bytes(16)),
]


@pytest.mark.parametrize(("device", "own", "ipv4", "ipv6"), VALUES)
def test_what_the_datapath_knows(device: Device, own: tuple[bytes, ...], ipv4: bytes, ipv6: bytes) -> None:
    value = abi.load().records["device"].unpack(devices.value(device, own))
    assert (value.ipv4, value.ipv6, value.mtu) == (ipv4, ipv6, 1500)
    assert value.mac == (device.mac or bytes(6))


def test_a_huge_mtu_fits() -> None:
    value = abi.load().records["device"].unpack(devices.value(Device(1, "lo", mtu=65536), ()))
    assert value.mtu == 65535


def test_what_is_read(outside: rig.Outside) -> None:
    node = outside.node
    node.ip(
        f"link set {outside.link} mtu 1400",
        f"address add 198.51.100.9/24 dev {outside.link}",
        f"address add 2001:db8:9::9/64 dev {outside.link} nodad preferred_lft 0",
        f"address add 2001:db8:9::8/64 dev {outside.link} nodad",
    )

    def read() -> dict[str, Device]:
        with RouteSocket() as route:
            return {device.name: device for device in devices.read(route)}

    found = node.call(read)
    device = found[outside.link]
    assert found["lo"].loopback
    node.ip("tuntap add dev tun7 mode tun", "tuntap add dev tap7 mode tap")
    assert [node.call(read)[name].ethernet for name in ("lo", outside.link, "tap7", "tun7")] == [
        True,
        True,
        True,
        False,
    ]
    assert (device.loopback, device.default_route, device.mtu, device.xdp, len(device.mac)) == (
        False,
        False,
        1400,
        0,
        6,
    )
    known = [rig.NODE_V4, "198.51.100.9", "2001:db8:9::8", rig.NODE_V6, "2001:db8:9::9"]
    assert set(device.addresses) == {parse_address(text) for text in known}, "no link-local address"
    assert device.addresses[-1] == parse_address("2001:db8:9::9"), "a deprecated one comes last"
    hops = " ".join(f"nexthop via 2001:db8:9::{number} dev {outside.link}" for number in (1, 2))
    for command in (f"route add default via 198.51.100.1 dev {outside.link}", f"-6 route add default {hops}"):
        node.run("ip", *command.split())
        assert node.call(read)[outside.link].default_route, command
        node.run("ip", *command.replace(" add ", " del ").split())
        assert not node.call(read)[outside.link].default_route

"""Behind another CNI plugin, with the datapath and without: a routed veth is adopted, anything else is refused."""

from __future__ import annotations

import json
import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import probes
import pytest
import rig

from agent.cni.networks import Networks
from agent.cni.place import NotConnected
from agent.objects import Interface
from policies.address import parse_address
from policies.model import ObjectRef

PLUGINS = Path("/usr/lib/cni")
V4, V6 = "10.88.0.5", "fd00:10:88::5"
ADDRESSES = (parse_address(V4), parse_address(V6))
GATEWAY = "10.88.0.1"


@pytest.fixture
def routing(node: rig.Node) -> rig.Node:
    node.sysctl(ipv4__ip_forward="1", ipv6__conf__all__forwarding="1")
    return node


@pytest.fixture
def networks(routing: rig.Node) -> Iterator[Networks]:
    made = routing.call(Networks)
    yield made
    made.close()


@pytest.fixture
def pod(root: None) -> Iterator[rig.Netns]:
    with rig.Netns("pod") as netns:
        yield netns


def routed(node: rig.Netns, pod: rig.Netns, addresses: tuple[str, ...] = (V4, V6)) -> None:
    """A routed veth as other plugins make it: the pod's gateway is an address of the host's side."""
    node.ip(
        f"link add host0 type veth peer name eth0 netns {pod.name}",
        "link set host0 up",
        f"address add {GATEWAY}/32 dev host0",
    )
    pod.ip(
        "link set eth0 up",
        *(f"address add {a}/{'128' if ':' in a else '32'} dev eth0 {'nodad' if ':' in a else ''}" for a in addresses),
        f"route add {GATEWAY} dev eth0 scope link",
        f"route add default via {GATEWAY} dev eth0",
    )
    node.ip(*(f"route add {a} dev host0" for a in addresses))


def test_a_routed_veth(networks: Networks, routing: rig.Node, pod: rig.Netns) -> None:
    routed(routing, pod)
    interface = networks.adopt(pod.path, "eth0", ADDRESSES)
    (host,) = json.loads(routing.run("ip", "-j", "link", "show", "dev", "host0").stdout)
    (eth0,) = json.loads(pod.run("ip", "-j", "link", "show", "dev", "eth0").stdout)
    assert (interface.index, interface.name, interface.resolves) == (host["ifindex"], "host0", True)
    assert (interface.mac.hex(":"), interface.host_mac.hex(":")) == (eth0["address"], host["address"])
    assert interface.netns_cookie
    assert networks.check(pod.path, "eth0", ADDRESSES, interface) == []
    assert networks.existing() == [], "it is not ours"
    assert networks.disconnect(interface) is False
    assert probes.ping(pod, GATEWAY), "and it stays as it was"
    assert routing.run("sysctl", "-n", "net.ipv4.conf.host0.accept_local").stdout == "1\n"


def test_check_says_what_changed(networks: Networks, routing: rig.Node, pod: rig.Netns) -> None:
    routed(routing, pod)
    interface = networks.adopt(pod.path, "eth0", ADDRESSES)
    routing.ip(f"route delete {V4}", "link set host0 address 02:00:00:00:00:09")
    pod.ip(f"address delete {V6}/128 dev eth0")
    assert networks.check(pod.path, "eth0", ADDRESSES, interface) == [
        f"eth0 has not the address {V6}",
        f"the node has no route to {V4} by host0",
        "host0 has the MAC address 02:00:00:00:00:09",
    ]
    routing.ip("link delete host0")
    routed(routing, pod)
    assert networks.check(pod.path, "eth0", ADDRESSES, interface) == ["eth0 does not lead to host0 of the node"]


def test_nothing_there(networks: Networks, pod: rig.Netns) -> None:
    with pytest.raises(NotConnected, match=r"the plugin before made no interface eth0 in .* such as ptp"):
        networks.adopt(pod.path, "eth0", ADDRESSES)


def test_no_veth(networks: Networks, routing: rig.Node, pod: rig.Netns) -> None:
    routing.ip(
        "link add under0 type veth peer name under1",
        f"link add link under0 name eth0 netns {pod.name} type macvlan mode bridge",
    )
    with pytest.raises(NotConnected, match=r"eth0 in .* is a macvlan, no veth"):
        networks.adopt(pod.path, "eth0", ADDRESSES)


def test_a_bridge(networks: Networks, routing: rig.Node, pod: rig.Netns) -> None:
    routed(routing, pod)
    routing.ip("link add br0 type bridge", "link set host0 master br0")
    with pytest.raises(NotConnected, match="host0, the node's side of eth0, is a port of a bridge"):
        networks.adopt(pod.path, "eth0", ADDRESSES)


def test_a_veth_to_somewhere_else(networks: Networks, routing: rig.Node, pod: rig.Netns) -> None:
    """Even where the node has a veth of that very index, to the same index of another namespace."""
    with rig.Netns("elsewhere") as elsewhere, rig.Netns("other") as other:
        routed(elsewhere, pod)
        routed(routing, other)
        with pytest.raises(NotConnected, match="not in the node's network namespace"):
            networks.adopt(pod.path, "eth0", ADDRESSES)
        assert networks.adopt(other.path, "eth0", ADDRESSES).resolves


def test_addresses_that_are_not_there(networks: Networks, routing: rig.Node, pod: rig.Netns) -> None:
    routed(routing, pod, (V4,))
    with pytest.raises(
        NotConnected, match=f"eth0 has not the address {V6}; the node has no route to {V6} by host0: chain"
    ):
        networks.adopt(pod.path, "eth0", ADDRESSES)


@pytest.fixture
def ptp(root: None, tmp_path: Path) -> dict[str, Any]:
    """Debian's containernetworking-plugins."""
    if not (PLUGINS / "ptp").exists():
        pytest.skip("the CNI plugins of Debian's containernetworking-plugins are not in /usr/lib/cni")
    ipam = {
        "type": "static",
        "addresses": [
            {"address": f"{V4}/24", "gateway": GATEWAY},
            {"address": f"{V6}/64", "gateway": "fd00:10:88::1"},
        ],
        "routes": [{"dst": "0.0.0.0/0"}, {"dst": "::/0"}],
    }
    return {"cniVersion": "1.0.0", "name": "chain", "type": "ptp", "mtu": 1400, "ipam": ipam}


def invoke(node: rig.Node, command: str, configuration: dict[str, Any], pod: rig.Netns) -> dict[str, Any]:
    environment = {
        **os.environ,
        "CNI_COMMAND": command,
        "CNI_CONTAINERID": "c1",
        "CNI_NETNS": pod.path,
        "CNI_IFNAME": "eth0",
        "CNI_PATH": str(PLUGINS),
    }
    done = node.run(str(PLUGINS / "ptp"), input=json.dumps(configuration), env=environment)
    found: dict[str, Any] = json.loads(done.stdout or "{}")
    return found


def test_behind_debians_ptp(networks: Networks, routing: rig.Node, pod: rig.Netns, ptp: dict[str, Any]) -> None:
    result = invoke(routing, "ADD", ptp, pod)
    addresses = [parse_address(ip["address"].partition("/")[0]) for ip in result["ips"]]
    assert tuple(addresses) == ADDRESSES
    interface: Interface = networks.adopt(pod.path, "eth0", addresses)
    assert interface.name in {one["name"] for one in result["interfaces"]}
    assert networks.check(pod.path, "eth0", addresses, interface) == []
    invoke(routing, "DEL", ptp, pod)
    assert networks.check(pod.path, "eth0", addresses, interface) == [f"there is no interface eth0 in {pod.path}"]


def test_a_pod_of_ours_is_no_veth_of_another_plugin(networks: Networks, pod: rig.Netns) -> None:
    """Chained behind ourselves by mistake: it has no need to resolve anything, and is adopted as what it is."""
    interface = networks.connect(pod.path, "eth0", ADDRESSES, ObjectRef("Pod", "shop", "web"), 1500, lambda index: None)
    assert networks.adopt(pod.path, "eth0", ADDRESSES).index == interface.index

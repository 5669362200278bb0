"""Networks in namespaces that somebody else made, in a scratch node namespace."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import probes
import pytest
import rig

from agent.cni.networks import Networks
from agent.cni.place import Connected, NotConnected, host_link
from agent.endpoints import links, wiring
from agent.endpoints.netlink import NetlinkError, RouteSocket
from agent.objects import Interface
from policies.address import parse_address
from policies.model import ObjectRef

POD = ObjectRef("Pod", "shop", "web")
V4, V6 = "10.244.0.7", "fd00:10:244::7"
ADDRESSES = (parse_address(V4), parse_address(V6))
MTU = 1410


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
    """As a runtime hands it over: nothing is up."""
    with rig.Netns("pod") as netns:
        netns.ip("link set lo down")
        yield netns


def show(netns: rig.Netns, *command: str) -> list[dict[str, Any]]:
    found: list[dict[str, Any]] = json.loads(netns.run("ip", "-j", *command).stdout or "[]")
    return [entry for entry in found if entry]


def connected(
    networks: Networks,
    pod: rig.Netns,
    ifname: str = "eth0",
    addresses: Sequence[bytes] = ADDRESSES,
    guard: Callable[[int], None] = lambda index: None,
    name: str = "web",
) -> Interface:
    interface = networks.connect(pod.path, ifname, addresses, ObjectRef("Pod", "shop", name), MTU, guard)
    networks.await_ready(interface)
    return interface


def names(netns: rig.Netns) -> list[str]:
    return [link["ifname"] for link in show(netns, "link")]


def test_the_pods_side(networks: Networks, pod: rig.Netns) -> None:
    interface = connected(networks, pod, "net1")
    assert interface.netns == pod.path
    found = {link["ifname"]: link for link in show(pod, "-d", "link")}
    assert set(found) == {"lo", "net1"}
    assert "UP" in found["lo"]["flags"]
    assert (found["net1"]["operstate"], found["net1"]["mtu"]) == ("UP", MTU)
    assert found["net1"]["address"] == interface.mac.hex(":")
    assert found["net1"]["inet6_addr_gen_mode"] == "none"
    bound = [a for a in show(pod, "address", "show", "dev", "net1") for a in a["addr_info"]]
    assert {(a["local"], a["prefixlen"]) for a in bound} == {(V4, 32), (V6, 128)}
    ways = show(pod, "route") + show(pod, "-6", "route")
    assert {(r["dst"], r["gateway"], r["dev"]) for r in ways} == {
        ("default", "169.254.1.1", "net1"),
        ("default", "fe80::1", "net1"),
    }


def test_the_hosts_side(networks: Networks, routing: rig.Node, pod: rig.Netns) -> None:
    guarded = []

    def guard(index: int) -> None:
        (link,) = show(routing, "-d", "link", "show", "dev", host_link(ADDRESSES))
        assert "UP" not in link["flags"], "nothing passes yet"
        assert (link["ifindex"], link["mtu"]) == (index, MTU)
        guarded.append(index)

    interface = connected(networks, pod, guard=guard)
    assert guarded == [interface.index]
    (link,) = show(routing, "-d", "link", "show", "dev", interface.name)
    assert (link["ifindex"], link["address"]) == (interface.index, interface.host_mac.hex(":"))
    assert networks.existing() == [Connected(interface.name, interface.index, POD, "eth0", True)]
    assert {r["dst"] for r in show(routing, "route") + show(routing, "-6", "route")} >= {V4, V6}
    conf = "net.ipv6.conf.{}.accept_ra", "net.ipv4.conf.{}.rp_filter", "net.ipv4.conf.{}.send_redirects"
    assert routing.run("sysctl", "-n", *(one.format(interface.name) for one in conf)).stdout == "0\n0\n0\n"


def test_what_is_not_guarded_does_not_stand(networks: Networks, routing: rig.Node, pod: rig.Netns) -> None:
    def refuse(index: int) -> None:
        raise OSError("no programs")

    with pytest.raises(OSError, match="no programs"):
        connected(networks, pod, guard=refuse)
    assert (names(pod), names(routing)) == (["lo"], ["lo"])


def test_traffic_from_the_first_packet_on(networks: Networks, routing: rig.Node, pod: rig.Netns) -> None:
    with rig.Netns("other") as other:
        mine = (parse_address("10.244.0.8"), parse_address("fd00:10:244::8"))
        connected(networks, pod)
        connected(networks, other, addresses=mine, name="two")
        for target in (V4, V6):
            assert probes.ping(other, target)
        with probes.Server(pod, "tcp", 80, "web"):
            assert probes.tcp(other, V4, 80) == probes.Answer("ok", "web", "10.244.0.8")
            assert probes.tcp(other, V6, 80) == probes.Answer("ok", "web", "fd00:10:244::8")
            assert probes.tcp(pod, V6, 80), "and a pod reaches itself"


@pytest.mark.parametrize("off", [("all", "default"), ("default",), ("lo",)])
def test_a_namespace_where_the_runtime_turned_ipv6_off(
    networks: Networks, routing: rig.Node, pod: rig.Netns, off: tuple[str, ...]
) -> None:
    for where in off:
        pod.sysctl(**{f"ipv6__conf__{where}__disable_ipv6": "1"})
    connected(networks, pod)
    with probes.Server(pod, "tcp", 80, "web"):
        assert probes.tcp(routing, V6, 80)
        assert probes.tcp(pod, V6, 80)


def test_what_a_runtime_set_stays(networks: Networks, pod: rig.Netns) -> None:
    pod.sysctl(ipv4__ip_unprivileged_port_start="1000", ipv4__ip_forward="1")
    connected(networks, pod)
    assert pod.run("sysctl", "-n", "net.ipv4.ip_unprivileged_port_start", "net.ipv4.ip_forward").stdout == "1000\n1\n"


@pytest.mark.parametrize("only", [0, 1])
def test_one_family(networks: Networks, routing: rig.Node, pod: rig.Netns, only: int) -> None:
    addresses = ADDRESSES[only : only + 1]
    interface = connected(networks, pod, addresses=addresses)
    assert probes.ping(routing, (V4, V6)[only])
    assert networks.check(pod.path, "eth0", addresses, interface) == []


def test_twice_is_once(networks: Networks, routing: rig.Node, pod: rig.Netns) -> None:
    first = connected(networks, pod)
    guarded: list[int] = []
    assert connected(networks, pod, guard=guarded.append) == first
    assert guarded == [first.index], "the programs may be others by now"
    assert len(networks.existing()) == 1


def test_a_path_of_a_process_is_as_good(networks: Networks, pod: rig.Netns) -> None:
    process = pod.popen("sleep", "60")
    path = f"/proc/{process.pid}/ns/net"
    assert networks.connect(path, "eth0", ADDRESSES, POD, MTU, lambda index: None).netns == path
    assert "eth0" in names(pod)


def test_an_interface_of_somebody_else_is_refused(networks: Networks, routing: rig.Node, pod: rig.Netns) -> None:
    pod.ip("link add eth0 type veth peer name other")
    with pytest.raises(NotConnected, match="has an interface eth0 already"):
        connected(networks, pod)
    assert networks.existing() == []


def test_other_addresses_are_refused(networks: Networks, pod: rig.Netns) -> None:
    interface = connected(networks, pod)
    with pytest.raises(NotConnected, match="not this pod's with these addresses"):
        connected(networks, pod, addresses=(parse_address("10.244.0.9"),))
    assert networks.check(pod.path, "eth0", ADDRESSES, interface) == []


def test_what_is_half_made_is_made_anew(networks: Networks, routing: rig.Node, pod: rig.Netns) -> None:
    """Killed at any point, the next call completes it."""
    routing.ip(f"link add {host_link(ADDRESSES)} type veth peer name eth0 netns {pod.name}")
    interface = connected(networks, pod)
    assert networks.check(pod.path, "eth0", ADDRESSES, interface) == []
    pod.ip("route delete default")
    assert connected(networks, pod) != interface, "the link is another"


def test_a_leftover_of_a_pod_that_had_the_address_goes(networks: Networks, pod: rig.Netns) -> None:
    with rig.Netns("earlier") as earlier:
        connected(networks, earlier)
        connected(networks, pod)
        assert names(earlier) == ["lo"]
    assert len(networks.existing()) == 1


def test_disconnect(networks: Networks, routing: rig.Node, pod: rig.Netns) -> None:
    interface = connected(networks, pod)
    assert networks.disconnect(interface) is True
    assert networks.disconnect(interface) is False
    assert networks.disconnect(host_link(ADDRESSES)) is False
    assert (names(pod), names(routing)) == (["lo"], ["lo"])
    with pytest.raises(ValueError, match="no link that Gatehouse made"):
        networks.disconnect("lo")


def test_disconnect_after_the_namespace_is_gone(networks: Networks, routing: rig.Node) -> None:
    with rig.Netns("brief") as brief:
        interface = connected(networks, brief)
    networks.disconnect(interface)
    assert networks.disconnect(interface) is False
    assert names(routing) == ["lo"]


def test_a_path_that_leads_nowhere(networks: Networks, tmp_path: Path) -> None:
    with pytest.raises(NotConnected, match="No such file"):
        networks.connect("/run/netns/never-was", "eth0", ADDRESSES, POD, MTU, lambda index: None)
    (tmp_path / "file").touch()
    with pytest.raises(NotConnected, match="HostToContainer"):
        networks.connect(str(tmp_path / "file"), "eth0", ADDRESSES, POD, MTU, lambda index: None)


def test_a_failure_leaves_nothing(
    networks: Networks, routing: rig.Node, pod: rig.Netns, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(*_: object) -> None:
        raise OSError("as if")

    monkeypatch.setattr(wiring, "pod_side", fail)
    with pytest.raises(OSError, match="as if"):
        connected(networks, pod)
    assert (names(pod), names(routing)) == (["lo"], ["lo"])


DIFFERENCES = [
    ("address delete {v4}/32 dev eth0", "", "eth0 has not the address 10.244.0.7"),
    ("address add 10.9.9.9/32 dev eth0", "", "eth0 has the address 10.9.9.9 as well"),
    ("link set eth0 address 02:00:00:00:00:01", "", "eth0 has the MAC address 02:00:00:00:00:01"),
    ("route delete default", "", "there is no default route via 169.254.1.1 by eth0"),
    ("neigh delete 169.254.1.1 dev eth0", "", "169.254.1.1 is no permanent neighbour of eth0"),
    ("link delete eth0", "", "there is no interface eth0 in {path}"),
    ("", "route delete {v4}", "the node has no route to 10.244.0.7 by {link}"),
    ("", "neigh delete {v6} dev {link}", "fd00:10:244::7 is no permanent neighbour of {link}"),
]


@pytest.mark.parametrize(("inside", "outside", "said"), DIFFERENCES)
def test_check_says_what_differs(
    networks: Networks, routing: rig.Node, pod: rig.Netns, inside: str, outside: str, said: str
) -> None:
    interface = connected(networks, pod)
    assert networks.check(pod.path, "eth0", ADDRESSES, interface) == []
    words = {"v4": V4, "v6": V6, "link": interface.name, "path": pod.path}
    pod.ip(inside.format(**words))
    routing.ip(outside.format(**words))
    assert said.format(**words) in networks.check(pod.path, "eth0", ADDRESSES, interface)


def test_check_of_a_link_that_was_replaced(networks: Networks, routing: rig.Node, pod: rig.Netns) -> None:
    interface = connected(networks, pod)
    routing.ip(f"link delete {interface.name}")
    routing.ip(f"link add elsewhere type veth peer name eth0 netns {pod.name}")
    assert f"eth0 does not lead to {interface.name} of the node" in networks.check(
        pod.path, "eth0", ADDRESSES, interface
    )


def test_check_without_the_namespace(networks: Networks, pod: rig.Netns) -> None:
    interface = connected(networks, pod)
    (said,) = networks.check("/run/netns/never-was", "eth0", ADDRESSES, interface)
    assert "never-was" in said


def test_fifty_at_once_from_many_threads(networks: Networks, routing: rig.Node) -> None:
    def one(number: int) -> Interface:
        addresses = (parse_address(f"10.244.1.{number}"), parse_address(f"fd00:10:244:1::{number:x}"))
        return connected(networks, pods[number], addresses=addresses, name=f"p{number}")

    with ExitStack() as stack:
        pods = {number: stack.enter_context(rig.Netns(f"p{number}")) for number in range(1, 51)}
        with ThreadPoolExecutor(10) as threads:
            made = list(threads.map(one, pods))
            assert len(networks.existing()) == len({interface.name for interface in made}) == 50
            assert probes.ping(pods[1], "10.244.1.50")
            assert all(threads.map(networks.disconnect, made))
    assert names(routing) == ["lo"]


def test_the_link_says_what_it_is(networks: Networks, routing: rig.Node, pod: rig.Netns) -> None:
    interface = connected(networks, pod)
    with routing.call(RouteSocket) as route:
        link = links.read_link(route.request(links.get_link(interface.name))[0])
        with pytest.raises(NetlinkError):
            route.request(links.delete_link("never-was"))
    assert (link.kind, link.mtu, link.alias, link.master) == ("veth", MTU, "shop/web eth0", 0)

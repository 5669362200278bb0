"""Pods of different nodes reach each other, in each mode; and routes follow the nodes."""

from __future__ import annotations

import socket
from collections.abc import Iterator
from contextlib import suppress

import probes
import pytest
import rig
from node_network import BITS, FAMILIES, NodeNetwork, RoutedNode, following

from agent.routing import desired, tunnel
from agent.routing import routing as routing_module
from policies.address import format_address

MODES = ("native", "vxlan")
HEADERS = {"v4": 28, "v6": 48}
"""Of an echo: IP and ICMP."""
IN_VXLAN = 50
REPAIRED_S = 30.0


@pytest.fixture(scope="module")
def network(root: None) -> Iterator[NodeNetwork]:
    with NodeNetwork("n1", "n2", "n3") as network:
        yield network


@pytest.fixture(params=MODES)
def mode(network: NodeNetwork, request: pytest.FixtureRequest) -> str:
    chosen: str = request.param
    network.route(chosen)
    return chosen


def problems(node: RoutedNode) -> list[str]:
    assert node.routing is not None
    return node.routing.problems


@pytest.mark.parametrize("family", FAMILIES)
def test_pods_reach_each_other(network: NodeNetwork, mode: str, family: str) -> None:
    for node in network.nodes.values():
        assert problems(node) == []
        with probes.Server(node.pod, "tcp", 80, node.name), probes.Server(node.pod, "udp", 53, node.name):
            for other in network.nodes.values():
                if other is node:
                    continue
                seen_as = other.ip(family)
                assert probes.tcp(other.pod, node.ip(family), 80) == probes.Answer("ok", node.name, seen_as)
                assert probes.udp(other.pod, node.ip(family), 53) == probes.Answer("ok", node.name, seen_as)


@pytest.mark.parametrize("family", FAMILIES)
def test_nodes_and_pods_of_others_reach_each_other(network: NodeNetwork, mode: str, family: str) -> None:
    here, there = network["n1"], network["n2"]
    assert probes.ping(here.netns, there.ip(family))
    assert probes.ping(here.pod, there.addresses[family])


@pytest.mark.parametrize("family", FAMILIES)
def test_packets_of_every_size(network: NodeNetwork, mode: str, family: str) -> None:
    """The largest goes whole; what is larger is fragmented, and arrives."""
    here, there = network["n1"], network["n2"]
    assert here.routing is not None
    size = here.routing.mtu
    assert size == (network.underlay_mtu - IN_VXLAN if mode == "vxlan" else network.underlay_mtu)
    for length in (size - HEADERS[family], size - HEADERS[family] + 1, 4000, 20000):
        assert probes.ping(here.pod, there.ip(family), size=length), length
    with Fragments(there.netns) as fragments:
        assert probes.ping(here.pod, there.ip(family), size=size - HEADERS[family])
        assert fragments() == 0, "it has gone whole, outside as well"


class Fragments:
    """Counts fragments that arrive at a node's eth0."""

    def __init__(self, netns: rig.Netns) -> None:
        self._netns = netns

    def __enter__(self) -> Fragments:
        self._before = self._count()
        return self

    def __exit__(self, *_: object) -> None:
        pass

    def __call__(self) -> int:
        return self._count() - self._before

    def _count(self) -> int:
        shown = self._netns.run("nstat", "-az", "IpReasmReqds", "Ip6ReasmReqds", "IpFragCreates", "Ip6FragCreates")
        return sum(int(line.split()[1]) for line in shown.stdout.splitlines() if line.startswith("Ip"))


@pytest.mark.parametrize("family", FAMILIES)
def test_much_data(network: NodeNetwork, mode: str, family: str) -> None:
    here, there = network["n1"], network["n2"]
    assert transferred(here.pod, there.pod, there.ip(family)) == AMOUNT


AMOUNT = 20_000_000


def transferred(client: rig.Netns, server: rig.Netns, address: str) -> int:
    """Bytes that came of AMOUNT by TCP."""
    family = socket.AF_INET6 if ":" in address else socket.AF_INET
    with server.call(socket.socket, family) as listener, client.call(socket.socket, family) as sender:
        listener.bind((address, 0))
        listener.listen()
        sender.settimeout(60)
        sender.connect((address, listener.getsockname()[1]))
        receiver = listener.accept()[0]
        with receiver:
            receiver.settimeout(60)
            left = memoryview(bytes(AMOUNT))
            sender.setblocking(False)
            total = 0
            while total < AMOUNT:
                with suppress(BlockingIOError):
                    left = left[sender.send(left[:65536]) :] if left else left
                total += len(receiver.recv(65536))
    return total


@pytest.mark.parametrize("family", FAMILIES)
def test_pods_that_send_larger_packets_than_fit(network: NodeNetwork, family: str) -> None:
    """Their MTU was set by hand: they are told what fits, and go on with that."""
    network.route("vxlan", "mtu=1500")
    here, there = network["n1"], network["n2"]
    assert transferred(here.pod, there.pod, there.ip(family)) == AMOUNT


@pytest.mark.parametrize("family", FAMILIES)
def test_a_node_changes_its_address(network: NodeNetwork, mode: str, family: str) -> None:
    """All routes by that device go with the IPv4 address."""
    here, there = network["n1"], network["n2"]
    before = there.addresses
    moved = {"v4": "192.0.2.99", "v6": "2001:db8:0:1::99"}
    readdress(there, before, moved)
    try:
        network.tell()
        assert probes.ping(here.pod, there.ip(family))
        assert problems(here) == problems(there) == []
    finally:
        readdress(there, moved, before)


def readdress(node: RoutedNode, old: dict[str, str], new: dict[str, str]) -> None:
    nodad = {"v4": "", "v6": "nodad"}
    node.netns.ip(
        *(f"address delete {old[f]}/{BITS[f]} dev eth0" for f in FAMILIES),
        *(f"address add {new[f]}/{BITS[f]} dev eth0 {nodad[f]}" for f in FAMILIES),
    )
    node.addresses = new


def test_nodes_come_and_go(network: NodeNetwork, mode: str) -> None:
    here = network["n1"]
    assert here.routing is not None
    others = {"10.244.2.0/24", "10.244.3.0/24", "fd00:10:244:2::/64", "fd00:10:244:3::/64"}
    assert here.blocks_routed() == others
    here.routing.update(here.own, network.peers(without="n2"))
    here.routing.sync()
    assert here.blocks_routed() == {"10.244.3.0/24", "fd00:10:244:3::/64"}
    assert probes.ping(here.pod, network["n3"].ip("v4"))
    assert not probes.ping(here.pod, network["n2"].ip("v4"), timeout_s=0.2)
    if mode == "vxlan":
        shown = here.netns.run("bridge", "fdb", "show", "dev", tunnel.NAME).stdout
        assert shown.count("dst") == 1
        assert len(here.show("neigh", "show", "dev", tunnel.NAME)) == 2
    here.routing.update(here.own, network.peers())
    here.routing.sync()
    assert here.blocks_routed() == others
    assert probes.ping(here.pod, network["n2"].ip("v4"))


def test_one_mode_after_the_other_leaves_nothing(network: NodeNetwork) -> None:
    here = network["n1"]
    for mode in ("native", "vxlan", "native", "vxlan", "off"):
        network.route(mode)
        assert bool(here.blocks_routed()) == (mode != "off")
        assert (tunnel.NAME in here.links()) == (mode == "vxlan")
        assert problems(here) == []
        if mode != "off":
            assert all(probes.ping(here.pod, network["n2"].ip(family)) for family in FAMILIES)
    assert here.links() == {"lo", "eth0"}
    assert not probes.ping(here.pod, network["n2"].ip("v4"), timeout_s=0.2)


def test_cleanup(network: NodeNetwork, mode: str) -> None:
    here = network["n1"]
    assert here.netns.call(routing_module.remove) == (5 if mode == "vxlan" else 4)
    assert here.netns.call(routing_module.remove) == 0
    assert (here.blocks_routed(), here.links()) == (set(), {"lo", "eth0"})
    assert here.show("route", "show", here.ip("v4")), "the pod's own route stays"


def test_a_restart_changes_nothing(network: NodeNetwork, mode: str) -> None:
    here = network["n1"]
    before = [here.show(*what) for what in (("route",), ("-6", "route"), ("neigh",), ("link",))]
    routing = here.set_routing(mode)
    routing.sync()
    assert here.blocks_routed(), "nothing is touched before it is known how things are"
    routing.update(here.own, network.peers())
    routing.sync()
    after = [here.show(*what) for what in (("route",), ("-6", "route"), ("neigh",), ("link",))]
    assert static(after) == static(before)


def static(found: list[list[dict[str, object]]]) -> list[list[dict[str, object]]]:
    """Without neighbours that the kernel learns and forgets."""
    return [[entry for entry in some if entry.get("state", ["PERMANENT"]) == ["PERMANENT"]] for some in found]


def link_local(name: str) -> str:
    """Next hop of a node's IPv6 block."""
    return format_address(desired.link_local(desired.node_mac(name)))


DAMAGE = {
    "native": ["route delete 10.244.2.0/24", "route delete fd00:10:244:2::/64", "link set eth0 down"],
    "vxlan": [
        "route delete 10.244.2.0/24",
        "route delete fd00:10:244:2::/64",
        f"link delete {tunnel.NAME}",
        f"link set {tunnel.NAME} down",
        f"link set {tunnel.NAME} address 02:00:00:00:00:01",
        f"neigh delete 10.244.2.0 dev {tunnel.NAME}",
        f"neigh delete {link_local('n2')} dev {tunnel.NAME}",
    ],
}


@pytest.mark.parametrize(("mode_", "damage"), [(mode, one) for mode, some in DAMAGE.items() for one in some])
def test_what_others_break_is_repaired(network: NodeNetwork, mode_: str, damage: str) -> None:
    network.route(mode_)
    here, there = network["n1"], network["n2"]
    assert here.routing is not None
    with following(here.routing):
        here.netns.ip(damage)
        if damage == "link set eth0 down":
            here.netns.ip("link set eth0 up", f"address add {here.addresses['v6']}/64 dev eth0 nodad")
        rig.wait_until(
            lambda: all(probes.ping(here.pod, there.ip(family), timeout_s=0.2) for family in FAMILIES),
            REPAIRED_S,
            f"{damage} is repaired",
        )
    assert len(here.blocks_routed()) == 4


def test_forwarding_entries_are_repaired(network: NodeNetwork) -> None:
    network.route("vxlan")
    here, there = network["n1"], network["n2"]
    assert here.routing is not None
    (mac,) = {n["lladdr"] for n in here.show("neigh", "show", "dev", tunnel.NAME) if n["dst"] == "10.244.2.0"}
    with following(here.routing):
        here.netns.run("bridge", "fdb", "delete", mac, "dev", tunnel.NAME)
        rig.wait_until(lambda: probes.ping(here.pod, there.ip("v4"), timeout_s=0.2), REPAIRED_S, "it is repaired")


def test_a_route_of_somebody_else_stays(network: NodeNetwork, mode: str) -> None:
    network.route("off")
    here = network["n1"]
    third = network["n3"].addresses["v4"]
    here.netns.ip("route add 10.244.2.0/24 via 192.0.2.200", f"route add 10.244.3.0/24 via {third}")
    try:
        network.route(mode)
        said = problems(here)
        assert here.blocks_routed() == {"fd00:10:244:2::/64", "fd00:10:244:3::/64"}
        assert any("there is a route to 10.244.2.0/24 already, via 192.0.2.200" in problem for problem in said)
        assert len(said) == (1 if mode == "native" else 2), "one that leads the same way is as good"
    finally:
        here.netns.ip("route delete 10.244.2.0/24", "route delete 10.244.3.0/24")


@pytest.mark.parametrize(
    "way",
    ["blackhole 10.244.2.0/24", "10.244.2.0/24 nexthop via 192.0.2.200 nexthop via 192.0.2.201"],
    ids=["to nowhere", "by several ways"],
)
def test_a_route_of_another_kind_stays(network: NodeNetwork, mode: str, way: str) -> None:
    network.route("off")
    here = network["n1"]
    here.netns.ip(f"route add {way}")
    before = here.show("route", "show", "10.244.2.0/24")
    try:
        network.route(mode)
        (said,) = problems(here)
        assert "there is a route to 10.244.2.0/24 already, by several ways or to nowhere" in said
        assert here.show("route", "show", "10.244.2.0/24") == before
    finally:
        here.netns.ip(f"route delete {way}")


def test_a_node_behind_a_router(network: NodeNetwork) -> None:
    """Native routing cannot reach it: its router would have to know the block."""
    here, there = network["n1"], network["n2"]
    before, there.addresses = there.addresses, {**there.addresses, "v4": "198.51.100.9"}
    here.netns.ip("route add 198.51.100.9 via 192.0.2.13")
    try:
        network.route("native")
        assert "10.244.2.0/24" not in here.blocks_routed()
        (said,) = problems(here)
        assert "198.51.100.9 is not on the same link, but behind 192.0.2.13: use --routing vxlan" in said
        network.route("vxlan")
        assert problems(here) == []
    finally:
        here.netns.ip("route delete 198.51.100.9")
        there.addresses = before


def test_strict_source_checks_are_reported(network: NodeNetwork) -> None:
    here = network["n1"]
    here.netns.sysctl(ipv4__conf__eth0__rp_filter="1")
    try:
        network.route("vxlan")
        assert any("net.ipv4.conf.eth0.rp_filter=2" in problem for problem in problems(here))
    finally:
        here.netns.sysctl(ipv4__conf__eth0__rp_filter="0")


def test_a_name_that_is_taken(network: NodeNetwork) -> None:
    """Somebody's device of that name is no reason to take it away: it is said, and tried again."""
    network.route("off")
    here = network["n1"]
    here.netns.ip(f"link add {tunnel.NAME} type veth peer name other0")
    try:
        network.route("vxlan")
        assert any(tunnel.NAME in problem and "tried again" in problem for problem in problems(here))
        assert here.blocks_routed() == set()
    finally:
        here.netns.ip(f"link delete {tunnel.NAME}")
    network.route("vxlan")
    assert problems(here) == []


@pytest.mark.parametrize(("family", "added"), [("v4", 50), ("v6", 70)])
def test_nodes_of_one_family_and_small_links(root: None, family: str, added: int) -> None:
    with NodeNetwork("n1", "n2", families=[family], underlay_mtu=1450) as network:
        network.route("vxlan")
        here, there = network["n1"], network["n2"]
        assert problems(here) == []
        assert here.routing is not None
        assert here.routing.mtu == 1450 - added
        for inner in FAMILIES:
            assert probes.ping(here.pod, there.ip(inner), size=here.routing.mtu - HEADERS[inner])
            assert transferred(here.pod, there.pod, there.ip(inner)) == AMOUNT
        network.route("native")
        assert here.blocks_routed() == {there.blocks[family]}
        other = "v4" if family == "v6" else "v6"
        assert any(f"pods of node n2 in {there.blocks[other]} are not reached" in p for p in problems(here))


def test_links_too_small_for_ipv6(root: None) -> None:
    """Pods keep the least that IPv6 needs, and nodes fragment."""
    with NodeNetwork("n1", "n2", families=["v4"], underlay_mtu=1300) as network:
        network.route("vxlan")
        here, there = network["n1"], network["n2"]
        assert here.routing is not None
        assert here.routing.mtu == 1280
        for inner in FAMILIES:
            assert transferred(here.pod, there.pod, there.ip(inner)) == AMOUNT

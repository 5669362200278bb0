"""What leads to the pods of other nodes, worked out without a kernel."""

from __future__ import annotations

import pytest

from agent.endpoints.routes import Forwarding, Neighbour, Reach, Route
from agent.routing.desired import Own, is_over_v4, link_local, native, node_mac, vxlan
from agent.world.nodes import Peer
from policies.address import Prefix, parse_address

ETH0, TUNNEL = 2, 9
ON_LINK, ROUTED, LOCAL = Reach(ETH0), Reach(ETH0, parse_address("192.0.2.254")), Reach(1, local=True)


def addresses(*texts: str) -> tuple[bytes, ...]:
    return tuple(map(parse_address, texts))


def blocks(*texts: str) -> tuple[Prefix, ...]:
    return tuple(map(Prefix.parse, texts))


OWN = Own("n1", addresses("192.0.2.1", "2001:db8::1"), blocks("10.244.1.0/24", "fd00:1::/64"))
N2 = Peer("n2", addresses("192.0.2.2", "2001:db8::2"), blocks("10.244.2.0/24", "fd00:2::/64"))
REACH = dict.fromkeys(addresses("192.0.2.2", "2001:db8::2", "192.0.2.3"), ON_LINK)


def peer(name: str = "n2", at: str = "192.0.2.2", *pods: str) -> Peer:
    return Peer(name, addresses(*at.split()), blocks(*(pods or ("10.244.2.0/24",))))


def test_native() -> None:
    desired = native(OWN, [N2], REACH)
    assert desired.problems == []
    assert set(desired.routes.values()) == {
        Route(N2.pod_cidrs[0], ETH0, N2.addresses[0]),
        Route(N2.pod_cidrs[1], ETH0, N2.addresses[1]),
    }
    assert not (desired.neighbours or desired.forwarding)


def test_native_takes_the_first_address_that_is_on_the_link() -> None:
    several = peer("n2", "198.51.100.2 192.0.2.3 192.0.2.2")
    reach = {parse_address("198.51.100.2"): ROUTED} | REACH
    (route,) = native(OWN, [several], reach).routes.values()
    assert route.gateway == parse_address("192.0.2.3")


UNREACHED = [
    (peer(), {}, "there is no route to its address 192.0.2.2: connect the nodes"),
    (
        peer(),
        {parse_address("192.0.2.2"): LOCAL},
        "its address 192.0.2.2 is this node's: give each node one",
    ),
    (
        peer(),
        {parse_address("192.0.2.2"): ROUTED},
        "its address 192.0.2.2 is not on the same link, but behind 192.0.2.254: use --routing vxlan, or let your "
        "network route them (--routing off)",
    ),
    (peer(at="2001:db8::2"), REACH, "it has no IPv4 address: give it one, or use --routing vxlan"),
]


@pytest.mark.parametrize(("other", "reach", "why"), UNREACHED)
def test_native_where_it_cannot(other: Peer, reach: dict[bytes, Reach], why: str) -> None:
    desired = native(OWN, [other], reach)
    assert desired.routes == {}
    assert desired.problems == [f"pods of node n2 in 10.244.2.0/24 are not reached: {why}"]


def test_vxlan() -> None:
    desired = vxlan(OWN, [N2], TUNNEL)
    v4, v6 = N2.pod_cidrs
    mac = node_mac("n2")
    assert desired.problems == []
    assert desired.routes == {
        v4: Route(v4, TUNNEL, v4.network, onlink=True),
        v6: Route(v6, TUNNEL, link_local(mac)),
    }
    assert desired.neighbours == {Neighbour(TUNNEL, v4.network, mac), Neighbour(TUNNEL, link_local(mac), mac)}
    assert desired.forwarding == {Forwarding(TUNNEL, mac, N2.addresses[0])}


def test_every_node_knows_every_nodes_mac() -> None:
    macs = {node_mac(f"node-{number}") for number in range(2000)}
    assert len(macs) == 2000
    assert all(mac[0] & 3 == 2 for mac in macs), "unicast, locally administered"
    assert node_mac("n2") == node_mac("n2")


def test_vxlan_over_ipv6_where_there_is_no_ipv4() -> None:
    own = Own("n1", addresses("2001:db8::1"), OWN.pod_cidrs)
    assert (is_over_v4(own), is_over_v4(OWN)) == (False, True)
    assert {entry.node for entry in vxlan(own, [N2], TUNNEL).forwarding} == {parse_address("2001:db8::2")}
    (said,) = vxlan(own, [peer()], TUNNEL).problems
    assert "it has no IPv6 address, over which this node speaks VXLAN" in said


REFUSED = [
    ([peer("n2", "192.0.2.2", "10.244.1.128/25")], "10.244.1.0/24 is node n1's"),
    ([peer("n2", "192.0.2.2", "10.244.0.0/16")], "10.244.1.0/24 is node n1's"),
    ([peer("n2", "192.0.2.2", "0.0.0.0/0")], "127.0.0.0/8 holds no pods' addresses"),
    ([peer("n2", "192.0.2.2", "::/0")], "::1/128 holds no pods' addresses"),
    ([peer("n2", "192.0.2.2", "169.254.0.0/24")], "169.254.0.0/16 holds no pods' addresses"),
    ([peer("n2", "192.0.2.2", "192.0.2.0/24")], "it holds 192.0.2.1, an address of node n1"),
    ([peer("n2", "192.0.2.2", "192.0.2.2/32")], "it holds 192.0.2.2, an address of node n2"),
    ([peer("n2", "192.0.2.2", "192.0.2.3/32"), peer("n3", "192.0.2.3", "10.244.3.0/24")], "an address of node n3"),
    ([peer("n2"), peer("n3", "192.0.2.3", "10.244.2.0/25")], "10.244.2.0/24 is node n2's"),
]


@pytest.mark.parametrize(("others", "why"), REFUSED)
@pytest.mark.parametrize("backwards", [False, True])
def test_blocks_that_are_not_theirs(others: list[Peer], why: str, backwards: bool) -> None:
    """Whoever is told of first: it does not depend on that."""
    given = others[::-1] if backwards else others
    for desired in (native(OWN, given, REACH), vxlan(OWN, given, TUNNEL)):
        (said,) = desired.problems
        assert why in said
        assert len(desired.routes) == len(others) - 1


def test_a_nodes_own_news_leads_nowhere() -> None:
    me = Peer(OWN.name, OWN.addresses, OWN.pod_cidrs)
    for desired in (native(OWN, [me, N2], REACH), vxlan(OWN, [me, N2], TUNNEL)):
        assert set(desired.routes) == set(N2.pod_cidrs)
        assert desired.problems == []
